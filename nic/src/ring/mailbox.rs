//! Short messages from any number of threads to one that never waits for them.
//!
//! Who posts takes the next place by adding to a count, writes, and marks the place as written. A thread that loses its CPU in between holds up
//! those behind it, until it has it again; but it holds up nobody who only looks: where the next message is not written yet, there is none.
//!
//! The users see to it that there is room: no more messages are under way than there are places. (The slow path's submitters have as many
//! jobs answered as they have submitted.)
//!
//! Orders: the mark is a release that the reader's load acquires, so a message is whole before it is seen. A place is written again only when its message was taken: among
//! those who posted since, somebody has heard of that, by another way, or there would have been no room; and the count hands on what they know, from each who adds to
//! it to the next.
#![forbid(unsafe_code)]

use super::sync::{AtomicU64, Ordering};
use crossbeam_utils::CachePadded;

/// A message of `N` words, and the number of the message that was written last, from 1 on.
struct Place<const N: usize> {
    words: [AtomicU64; N],
    written: AtomicU64,
}

/// Places for messages of `N` words.
pub struct Mailbox<const N: usize> {
    posted: CachePadded<AtomicU64>,
    places: Box<[CachePadded<Place<N>>]>,
}

impl<const N: usize> Mailbox<N> {
    /// With room for at least so many messages (rounded up to a power of two).
    pub fn new(capacity: usize) -> Self {
        let word = || AtomicU64::new(0);
        let place = |_| CachePadded::new(Place { words: std::array::from_fn(|_| word()), written: word() });
        let count = capacity.max(1).next_power_of_two();
        Self { posted: CachePadded::new(word()), places: (0..count).map(place).collect() }
    }

    fn place(&self, number: u64) -> &Place<N> {
        &self.places[number as usize & (self.places.len() - 1)]
    }

    /// Posts a message. There is room: see the module.
    pub fn post(&self, message: [u64; N]) {
        let number = self.posted.fetch_add(1, Ordering::AcqRel);
        let place = self.place(number);
        for (word, value) in place.words.iter().zip(message) {
            word.store(value, Ordering::Relaxed);
        }
        place.written.store(number + 1, Ordering::Release);
    }

    /// The message with this number, if it has been written: the reader counts them from 0.
    #[inline]
    pub fn get(&self, number: u64) -> Option<[u64; N]> {
        let place = self.place(number);
        (place.written.load(Ordering::Acquire) == number + 1)
            .then(|| std::array::from_fn(|index| place.words[index].load(Ordering::Relaxed)))
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::super::sync::Arc;
    use super::*;
    use loom::thread;

    /// Two threads post, and one of them again when the first message was taken, into a place that was used: each message comes once, and whole.
    #[test]
    fn each_message_comes_once_and_whole() {
        loom::model(|| {
            let mailbox = Arc::new(Mailbox::<2>::new(2));
            let heard = Arc::new(AtomicU64::new(0));
            let posters = [1, 2].map(|value| {
                let (mailbox, heard) = (mailbox.clone(), heard.clone());
                thread::spawn(move || {
                    mailbox.post([value, value]);
                    if value == 1 && heard.load(Ordering::Acquire) > 0 {
                        mailbox.post([3, 3]);
                    }
                })
            });
            let mut taken = Vec::new();
            let take = |taken: &mut Vec<u64>| {
                if let Some([first, second]) = mailbox.get(taken.len() as u64) {
                    assert_eq!(first, second);
                    taken.push(first);
                    heard.store(1, Ordering::Release);
                }
            };
            take(&mut taken);
            posters.into_iter().for_each(|poster| poster.join().unwrap());
            (0..3).for_each(|_| take(&mut taken));
            let last = taken.iter().position(|value| *value == 3);
            taken.sort_unstable();
            assert!(taken == [1, 2] || taken == [1, 2, 3] && last.is_some_and(|at| at > 0), "{taken:?}");
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn many_threads_messages_come_each_once_and_in_each_threads_order() {
        const EACH: u64 = 500;
        let mailbox = Mailbox::<3>::new(4 * EACH as usize);
        thread::scope(|scope| {
            for who in 0..4 {
                let mailbox = &mailbox;
                scope.spawn(move || (0..EACH).for_each(|number| mailbox.post([who, number, who ^ number])));
            }
            let mut next = [0; 4];
            for number in 0..4 * EACH {
                let [who, count, check] = loop {
                    match mailbox.get(number) {
                        Some(message) => break message,
                        None => thread::yield_now(),
                    }
                };
                assert_eq!((count, check), (next[who as usize], who ^ count));
                next[who as usize] += 1;
            }
            assert_eq!((next, mailbox.get(4 * EACH)), ([EACH; 4], None));
        });
    }
}
