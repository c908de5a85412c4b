//! Items written where they will lie, without a copy on the way.
//!
//! A copy reads what has just been written in other sizes, and so waits until that has left the CPU's store buffer, behind whatever lines of the ring the
//! buffer waits for.
#![allow(unsafe_code)]

use super::spsc::Producer;

impl<T: Send> Producer<T> {
    /// Where the next item goes, if there is room for one: to be written, and then [published](Self::publish). What is written there and not
    /// published is forgotten.
    #[inline(always)]
    pub fn place(&mut self) -> Option<*mut T> {
        self.free_place()
    }

    /// Hands the item at [`place`](Self::place) to the consumer.
    ///
    /// # Safety
    /// `place` has given an address since the last item went in, and a whole item was written there.
    #[inline(always)]
    pub unsafe fn publish(&mut self) {
        // SAFETY: by the caller's word.
        unsafe { self.advance() }
    }

    /// Has the CPU fetch the line of the place that is `ahead` of the next one, for writing. The consumer's CPU had it last; asked for early enough,
    /// it is here when its turn comes.
    #[inline(always)]
    pub fn fetch_ahead(&self, ahead: usize) {
        let place = self.place_ahead(ahead);
        // SAFETY: a hint, which changes nothing that the language knows of; where a CPU does not know it, it does nothing. The address is of the ring.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = place;
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring;
    use std::sync::Arc;

    #[test]
    fn what_is_written_in_place_comes_out_in_order_and_what_is_not_published_does_not() {
        let witness = Arc::new(());
        let (mut producer, mut consumer) = ring::<(u64, Arc<()>)>(2);
        for round in 0..5 {
            for number in 0..2 {
                producer.fetch_ahead(number as usize);
                let place = producer.place().unwrap();
                // SAFETY: a place of the ring, for one item.
                unsafe {
                    place.write((2 * round + number, witness.clone()));
                    producer.publish();
                }
            }
            assert!(producer.place().is_none(), "full");
            for number in 0..2 {
                assert_eq!(consumer.pop().map(|item| item.0), Some(2 * round + number));
            }
            assert!(producer.place().is_some());
            assert!(consumer.pop().is_none(), "never published");
        }
        assert_eq!(Arc::strong_count(&witness), 1);
    }
}
