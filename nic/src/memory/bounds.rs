//! What a burst's packets are within: a driver's quick way wants to know that all of them are plain, in one pass and without a branch for each.
//!
//! Each packet is looked at as the eight half words that it is in memory; the least and the greatest of each half word say all. On x86-64 these are two
//! instructions of SSE2, which all of them have.
#![allow(unsafe_code)]

use super::frame::POOL_SHIFT;
use super::packet::{FILL_CHECKSUM, Packet};
use std::mem;

/// Half words of a packet. The two of a word are in the order of the machine; of those that are all ones, either may be first.
const LANES: usize = 8;
const HANDLE_UPPER: usize = if cfg!(target_endian = "big") { 0 } else { 1 };
const OFFSET: usize = 2;
const LENGTH: usize = 3;
const NEXT: [usize; 2] = [4, 5];
const FLAGS: usize = 7;
/// Where the pool's number starts in the upper half of a handle.
const POOL: u32 = POOL_SHIFT - 16;

const _: () = {
    assert!(mem::size_of::<Packet>() == mem::size_of::<[i16; LANES]>());
    assert!(mem::align_of::<Packet>() >= mem::align_of::<[i16; LANES]>());
};

/// The least and the greatest of each half word, as signed numbers: SSE2 has those alone. No frame is so large that an offset or a length of its packet would be
/// negative; one that is, is out of all bounds.
pub(crate) struct Bounds {
    least: [i16; LANES],
    most: [i16; LANES],
}

impl Bounds {
    /// Those of `packets`. Of none, nothing below is true.
    #[inline(always)]
    pub(crate) fn of(packets: &[Packet]) -> Self {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 has SSE2.
        unsafe {
            vectors::bounds(packets)
        }
        #[cfg(not(target_arch = "x86_64"))]
        plain(packets)
    }

    /// Whether the first segments of all are of this pool.
    #[inline(always)]
    pub(crate) fn are_of_pool(&self, number: u32) -> bool {
        // What lies between two numbers that begin alike begins like them.
        let of = |half: i16| u32::from(half.cast_unsigned() >> POOL);
        of(self.least[HANDLE_UPPER]) == number && of(self.most[HANDLE_UPPER]) == number
    }

    /// Whether none is chained.
    #[inline(always)]
    pub(crate) fn are_whole(&self) -> bool {
        // NONE is all ones.
        NEXT.iter().all(|lane| self.least[*lane] == -1 && self.most[*lane] == -1)
    }

    /// Whether all lengths are from `least` to `most`.
    #[inline(always)]
    pub(crate) fn are_of_length(&self, least: i16, most: i16) -> bool {
        (least <= self.least[LENGTH]) & (self.most[LENGTH] <= most)
    }

    /// Whether all data starts at `least` or behind it.
    #[inline(always)]
    pub(crate) fn start_from(&self, least: i16) -> bool {
        least <= self.least[OFFSET]
    }

    /// Whether none [wants its checksum filled in](Packet::fill_checksum).
    #[inline(always)]
    pub(crate) fn want_nothing(&self) -> bool {
        const { assert!(FILL_CHECKSUM.is_power_of_two(), "the highest flag") };
        (self.most[FLAGS] < FILL_CHECKSUM.cast_signed()) & (self.least[FLAGS] >= 0)
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn plain(packets: &[Packet]) -> Bounds {
    let (mut least, mut most) = ([i16::MAX; LANES], [i16::MIN; LANES]);
    for packet in packets {
        // SAFETY: a Packet is 16 bytes of integers without padding, aligned for halves; any bits are valid ones.
        let halves: &[i16; LANES] = unsafe { &*(&raw const *packet).cast() };
        for lane in 0..LANES {
            least[lane] = least[lane].min(halves[lane]);
            most[lane] = most[lane].max(halves[lane]);
        }
    }
    Bounds { least, most }
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use super::{Bounds, Packet};
    use std::arch::x86_64::{_mm_loadu_si128, _mm_max_epi16, _mm_min_epi16, _mm_set1_epi16};
    use std::mem;

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn bounds(packets: &[Packet]) -> Bounds {
        let (mut least, mut most) = (_mm_set1_epi16(i16::MAX), _mm_set1_epi16(i16::MIN));
        for packet in packets {
            // SAFETY: a packet is 16 bytes without padding; they need no alignment.
            let halves = unsafe { _mm_loadu_si128((&raw const *packet).cast()) };
            (least, most) = (_mm_min_epi16(least, halves), _mm_max_epi16(most, halves));
        }
        // SAFETY: both are 16 bytes of plain numbers.
        unsafe { Bounds { least: mem::transmute::<_, _>(least), most: mem::transmute::<_, _>(most) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Pool, PoolConfig};
    use proptest::prelude::*;

    fn any_packet() -> impl Strategy<Value = [u32; 4]> {
        let few = |plain: u32| prop_oneof![6 => Just(plain), 1 => any::<u32>()];
        let words = (few(0x3000_0007), few(1500 << 16 | 128), few(u32::MAX), few(1 << 16));
        words.prop_map(|(handle, place, next, rest)| [handle, place, next, rest])
    }

    proptest! {
        #[test]
        fn property_they_say_what_is_so_of_each(words in proptest::collection::vec(any_packet(), 1..70), pool in 2_u32..5, least in 0_i16..2000, most: i16) {
            // SAFETY: a packet is four words, and any are valid. None is dropped: there are no such frames.
            let packets = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<Packet>(), words.len()) };
            let (bounds, same) = (Bounds::of(packets), plain(packets));
            prop_assert_eq!((bounds.least, bounds.most), (same.least, same.most));
            let all = |is_so: &dyn Fn(&Packet) -> bool| packets.iter().all(is_so);
            let is_small = |number: usize| number < 0x8000;
            prop_assert_eq!(bounds.are_of_pool(pool), all(&|packet| packet.pool_number() == pool));
            prop_assert_eq!(bounds.are_whole(), all(&|packet| !packet.is_chained()));
            let fits = |packet: &Packet| is_small(packet.len()) && (i32::from(least)..=i32::from(most)).contains(&(packet.len() as i32));
            prop_assert_eq!(bounds.are_of_length(least, most), all(&fits));
            prop_assert_eq!(bounds.start_from(least), all(&|packet| is_small(packet.offset()) && packet.offset() >= least as usize));
            // Flags that there are not count as a wish.
            prop_assert_eq!(bounds.want_nothing(), words.iter().all(|words| words[3] >> 16 < 4));
        }
    }

    #[test]
    fn a_wish_is_seen() {
        let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
        let mut packet = pool.allocate(60).unwrap();
        let want_nothing = |packet: &Packet| Bounds::of(std::slice::from_ref(packet)).want_nothing();
        assert!(want_nothing(&packet));
        packet.fill_checksum(true);
        assert!(!want_nothing(&packet) && packet.wants_checksum());
        drop(packet);
        assert_eq!(pool.audit().held, 0);
    }
}
