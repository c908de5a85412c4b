//! Packets as the four words they lie in memory as, many in a row: what allocating and freeing in bulk comes down to.
//!
//! On x86-64 by vectors of 16 bytes, a packet each: SSE2, which all of them have. The same in plain words is for the rest of a row, and for other
//! architectures.
#![allow(unsafe_code)]

use super::frame;
use super::packet::Packet;
use std::mem::{self, MaybeUninit};

/// A packet's fields in memory order: handle; offset and length; next; port and flags.
type Words = [u32; 4];

const _: () = assert!(
    mem::size_of::<Packet>() == mem::size_of::<Words>()
        && mem::align_of::<Packet>() == mem::align_of::<Words>()
);

/// How fresh packets are alike.
#[derive(Clone, Copy)]
pub(crate) struct Fresh {
    /// The least offset of their data, in bytes.
    pub(crate) headroom: u16,
    /// By how many cache lines less one it may be more.
    pub(crate) colours: u16,
    /// Bytes of data.
    pub(crate) length: u16,
    /// The port they came in by.
    pub(crate) port: u16,
}

/// A frame's colour is the upper half of a product of two halves of a word: no division.
const HASH: u16 = 0x9E37;
const COLOUR_SHIFT: u32 = super::pool::CACHE_LINE.trailing_zeros();

impl Fresh {
    /// Where the data of a fresh packet in this frame starts.
    #[inline(always)]
    pub(crate) fn offset(self, handle: u32) -> u16 {
        let hash = (handle as u16).wrapping_mul(HASH);
        let colour = (u32::from(hash) * u32::from(self.colours)) >> 16;
        self.headroom + (colour << COLOUR_SHIFT) as u16
    }

    #[inline(always)]
    fn words(self, handle: u32) -> Words {
        [handle, pair(self.offset(handle), self.length), frame::NONE, pair(self.port, 0)]
    }
}

/// Two fields of 16 bits that follow each other.
#[inline(always)]
const fn pair(first: u16, second: u16) -> u32 {
    if cfg!(target_endian = "little") {
        first as u32 | (second as u32) << 16
    } else {
        second as u32 | (first as u32) << 16
    }
}

/// Makes a packet of each handle, in as many places.
///
/// # Safety
/// The caller owns the handles and gives them up, and `fresh` is a packet that fits their frames.
#[inline(always)]
pub(crate) unsafe fn write_packets(handles: &[u32], places: &mut [MaybeUninit<Packet>], fresh: Fresh) {
    let places = &mut places[..handles.len()];
    let (fours, rest) = handles.as_chunks::<4>();
    let (place_fours, place_rest) = places.as_chunks_mut::<4>();
    for (four, place) in fours.iter().zip(place_fours) {
        // SAFETY: the caller's promise; four packets are four times four words.
        unsafe { write_four(four, place.as_mut_ptr().cast(), fresh) };
    }
    for (handle, place) in rest.iter().zip(place_rest) {
        // SAFETY: as above. A packet of these words is the only one of its handle.
        unsafe { place.as_mut_ptr().cast::<Words>().write(fresh.words(*handle)) };
    }
}

/// Writes for each handle how a fresh packet of it begins, for [`Packet::from_start`], into as many places.
#[inline(always)]
pub(crate) fn write_starts(handles: &[u32], places: &mut [u64], fresh: Fresh) {
    let places = &mut places[..handles.len()];
    let (fours, rest) = handles.as_chunks::<4>();
    let (place_fours, place_rest) = places.as_chunks_mut::<4>();
    let fresh = Fresh { length: 0, ..fresh };
    for (four, place) in fours.iter().zip(place_fours) {
        // SAFETY: every x86-64 has SSE2; elsewhere it asks for nothing.
        unsafe { start_four(four, place, fresh) };
    }
    for (handle, place) in rest.iter().zip(place_rest) {
        *place = Packet::start(*handle, fresh.offset(*handle));
    }
}

/// What sending in bulk must know of packets.
pub(crate) struct Bounds {
    /// The bits that all handles have.
    pub(crate) common: u32,
    /// The bits in which two handles differ.
    pub(crate) differs: u32,
    /// Whether any is chained.
    pub(crate) chained: bool,
    /// The flags that any has.
    pub(crate) flags: u16,
    /// The least and the most bytes of data, as signed numbers: what is longer than 32,767 bytes is below 0.
    pub(crate) lengths: (i16, i16),
    /// The least offset of their data, as a signed number as well.
    pub(crate) offset: i16,
}

/// Looks at packets in one pass without a branch for each.
#[inline(always)]
pub(crate) fn bounds(packets: &[Packet]) -> Bounds {
    let (fours, rest) = packets.as_chunks::<4>();
    // SAFETY: every x86-64 has SSE2; elsewhere it asks for nothing.
    let mut row = unsafe { look_at_fours(fours) };
    for packet in rest {
        row.add(packet);
    }
    let ([common, .., next, _], [any, .., rest]) = (row.all, row.any);
    let flags = if cfg!(target_endian = "little") { rest >> 16 } else { rest };
    Bounds {
        common,
        differs: common ^ any,
        chained: next != frame::NONE,
        flags: flags as u16,
        lengths: (row.least, row.most),
        offset: row.offset,
    }
}

/// A row of packets' words, put together.
struct Row {
    all: Words,
    any: Words,
    least: i16,
    most: i16,
    offset: i16,
}

impl Row {
    #[inline(always)]
    fn add(&mut self, packet: &Packet) {
        // SAFETY: a packet is these words.
        let words = unsafe { (&raw const *packet).cast::<Words>().read() };
        let length = (packet.len() as u16).cast_signed();
        for (index, word) in words.into_iter().enumerate() {
            self.all[index] &= word;
            self.any[index] |= word;
        }
        self.least = self.least.min(length);
        self.most = self.most.max(length);
        self.offset = self.offset.min((packet.offset() as u16).cast_signed());
    }
}

/// What freeing in bulk must know of packets.
pub(crate) struct Survey {
    /// The bits in which any handle differs from the first.
    pub(crate) differs: u32,
    /// Whether any is chained.
    pub(crate) chained: bool,
    /// Bytes of data in their first segments.
    pub(crate) bytes: u32,
}

/// Copies the handle of each packet to as many places, in one pass without a branch for each.
#[inline(always)]
pub(crate) fn read_handles(packets: &[Packet], places: &mut [MaybeUninit<u32>]) -> Survey {
    let places = &mut places[..packets.len()];
    let first = packets.first().map_or(0, Packet::handle);
    let (fours, rest) = packets.as_chunks::<4>();
    let (place_fours, place_rest) = places.as_chunks_mut::<4>();
    // SAFETY: every x86-64 has SSE2; elsewhere it asks for nothing.
    let (mut differs, mut nexts, mut bytes) = unsafe { read_fours(fours, place_fours, first) };
    for (packet, place) in rest.iter().zip(place_rest) {
        place.write(packet.handle());
        differs |= packet.handle() ^ first;
        nexts &= packet.next_handle();
        bytes += packet.len() as u32;
    }
    Survey { differs, chained: nexts != frame::NONE, bytes }
}

#[cfg(not(target_arch = "x86_64"))]
use plain::{look_at_fours, read_fours, start_four, write_four};
#[cfg(target_arch = "x86_64")]
use vectors::{look_at_fours, read_fours, start_four, write_four};

#[cfg(target_arch = "x86_64")]
mod vectors {
    use super::{COLOUR_SHIFT, Fresh, HASH, MaybeUninit, Packet, Row, Words, frame, pair};
    use std::arch::x86_64::{
        __m128i, _mm_add_epi16, _mm_add_epi32, _mm_and_si128, _mm_extract_epi16, _mm_loadu_si128,
        _mm_max_epi16, _mm_min_epi16, _mm_mulhi_epu16, _mm_mullo_epi16, _mm_or_si128, _mm_set_epi32,
        _mm_set1_epi16, _mm_set1_epi32, _mm_setzero_si128, _mm_slli_epi32, _mm_srli_epi32, _mm_storeu_si128,
        _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64, _mm_xor_si128,
    };

    #[inline]
    #[target_feature(enable = "sse2")]
    fn each(word: u32) -> __m128i {
        _mm_set1_epi32(word.cast_signed())
    }

    fn lanes(vector: __m128i) -> [u32; 4] {
        // SAFETY: both are 16 bytes of plain numbers.
        unsafe { std::mem::transmute(vector) }
    }

    /// The first halves of four packets, two by two.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn first_halves(handles: &[u32; 4], fresh: Fresh) -> [__m128i; 2] {
        // SAFETY: 16 bytes, of no alignment.
        let handles = unsafe { _mm_loadu_si128(handles.as_ptr().cast()) };
        // Of each word the lower half; the upper half of these factors is 0.
        let hash = _mm_mullo_epi16(handles, each(HASH.into()));
        let colour = _mm_mulhi_epu16(hash, each(fresh.colours.into()));
        let offset = _mm_slli_epi32::<{ COLOUR_SHIFT as i32 }>(colour);
        let place = _mm_add_epi16(offset, each(pair(fresh.headroom, fresh.length)));
        [_mm_unpacklo_epi32(handles, place), _mm_unpackhi_epi32(handles, place)]
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn start_four(handles: &[u32; 4], to: &mut [u64; 4], fresh: Fresh) {
        for (two, place) in first_halves(handles, fresh).into_iter().zip(to.as_chunks_mut::<2>().0) {
            // SAFETY: two words of eight bytes, of no alignment.
            unsafe { _mm_storeu_si128(place.as_mut_ptr().cast(), two) };
        }
    }

    /// # Safety
    /// `to` has room for four packets' words; the CPU has SSE2.
    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) unsafe fn write_four(handles: &[u32; 4], to: *mut Words, fresh: Fresh) {
        let (none, port) = (frame::NONE.cast_signed(), pair(fresh.port, 0).cast_signed());
        let rest = _mm_set_epi32(port, none, port, none);
        let [low, high] = first_halves(handles, fresh);
        let packets = [
            _mm_unpacklo_epi64(low, rest),
            _mm_unpackhi_epi64(low, rest),
            _mm_unpacklo_epi64(high, rest),
            _mm_unpackhi_epi64(high, rest),
        ];
        for (index, packet) in packets.into_iter().enumerate() {
            // SAFETY: the caller's promise. One store for each packet: what reads it whole need not wait for pieces to be put together.
            unsafe { _mm_storeu_si128(to.add(index).cast(), packet) };
        }
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn look_at_fours(fours: &[[Packet; 4]]) -> Row {
        let (mut all, mut any) = (each(u32::MAX), _mm_setzero_si128());
        let (mut least, mut most) = (_mm_set1_epi16(i16::MAX), _mm_set1_epi16(i16::MIN));
        for packets in fours {
            for packet in packets {
                // SAFETY: a packet is 16 bytes, of no alignment.
                let packet = unsafe { _mm_loadu_si128((&raw const *packet).cast()) };
                (all, any) = (_mm_and_si128(all, packet), _mm_or_si128(any, packet));
                (least, most) = (_mm_min_epi16(least, packet), _mm_max_epi16(most, packet));
            }
        }
        // Of the eight fields of 16 bits the offset is the third, the length the fourth.
        let length = |of| _mm_extract_epi16::<3>(of) as i16;
        let offset = _mm_extract_epi16::<2>(least) as i16;
        Row { all: lanes(all), any: lanes(any), least: length(least), most: length(most), offset }
    }

    /// Copies handles, and says in which bits they differ from the first, which bits all `next` have, and how many bytes there are.
    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn read_fours(
        fours: &[[Packet; 4]],
        places: &mut [[MaybeUninit<u32>; 4]],
        first: u32,
    ) -> (u32, u32, u32) {
        let (first, mut common) = (each(first), each(u32::MAX));
        let (mut differs, mut bytes) = (_mm_setzero_si128(), _mm_setzero_si128());
        for (packets, place) in fours.iter().zip(places) {
            // SAFETY: four packets of 16 bytes, of no alignment.
            let [a, b, c, d] =
                [0, 1, 2, 3].map(|index| unsafe { _mm_loadu_si128((&raw const packets[index]).cast()) });
            let (two, others) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
            let handles = _mm_unpacklo_epi64(two, others);
            // SAFETY: four places of four bytes.
            unsafe { _mm_storeu_si128(place.as_mut_ptr().cast(), handles) };
            differs = _mm_or_si128(differs, _mm_xor_si128(handles, first));
            let four = _mm_and_si128(_mm_and_si128(a, b), _mm_and_si128(c, d));
            common = _mm_and_si128(common, four);
            // Above each offset its length: this architecture's order.
            let lengths = _mm_srli_epi32::<16>(_mm_unpackhi_epi64(two, others));
            bytes = _mm_add_epi32(bytes, lengths);
        }
        let differs = lanes(differs).into_iter().fold(0, |all, lane| all | lane);
        // Of all packets' words, whole, the third.
        (differs, lanes(common)[2], lanes(bytes).into_iter().sum())
    }
}

#[cfg(any(not(target_arch = "x86_64"), test))]
#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
mod plain {
    use super::{Fresh, MaybeUninit, Packet, Row, Words, frame};

    #[inline(always)]
    pub(super) unsafe fn start_four(handles: &[u32; 4], to: &mut [u64; 4], fresh: Fresh) {
        *to = handles.map(|handle| Packet::start(handle, fresh.offset(handle)));
    }

    #[inline(always)]
    pub(super) unsafe fn look_at_fours(fours: &[[Packet; 4]]) -> Row {
        let mut row =
            Row { all: [u32::MAX; 4], any: [0; 4], least: i16::MAX, most: i16::MIN, offset: i16::MAX };
        fours.as_flattened().iter().for_each(|packet| row.add(packet));
        row
    }

    /// # Safety
    /// `to` has room for four packets' words.
    #[inline(always)]
    pub(super) unsafe fn write_four(handles: &[u32; 4], to: *mut Words, fresh: Fresh) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[Words; 4]>().write(handles.map(|handle| fresh.words(handle))) };
    }

    #[inline(always)]
    pub(super) unsafe fn read_fours(
        fours: &[[Packet; 4]],
        places: &mut [[MaybeUninit<u32>; 4]],
        first: u32,
    ) -> (u32, u32, u32) {
        let (mut differs, mut nexts, mut bytes) = (0, frame::NONE, 0);
        for (packet, place) in fours.as_flattened().iter().zip(places.as_flattened_mut()) {
            place.write(packet.handle());
            differs |= packet.handle() ^ first;
            nexts &= packet.next_handle();
            bytes += packet.len() as u32;
        }
        (differs, nexts, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Checksum;
    use crate::port::PortId;
    use crate::{Batch, Pool, PoolConfig};
    use proptest::prelude::*;

    /// What plain words make of handles, as packets' words.
    fn plainly(handles: &[u32; 4], fresh: Fresh) -> [Words; 4] {
        let mut words = [[0; 4]; 4];
        // SAFETY: room for four.
        unsafe { plain::write_four(handles, words.as_mut_ptr(), fresh) };
        words
    }

    proptest! {
        #[test]
        fn property_vectors_write_what_plain_words_do(
            handles in any::<[u32; 4]>(), headroom in 128_u16..2048, colours in 1_u16..=8, length in any::<u16>(), port in any::<u16>()
        ) {
            let fresh = Fresh { headroom, colours, length, port };
            let mut words = [[0; 4]; 4];
            // SAFETY: room for four.
            unsafe { write_four(&handles, words.as_mut_ptr(), fresh) };
            prop_assert_eq!(words, plainly(&handles, fresh));
            for [handle, place, next, rest] in words {
                prop_assert!(handles.contains(&handle) && next == frame::NONE && rest == pair(port, 0));
                let offset = if cfg!(target_endian = "little") { place as u16 } else { (place >> 16) as u16 };
                prop_assert!(offset >= headroom && offset <= headroom + (colours - 1) * 64 && (offset - headroom) % 64 == 0);
            }
        }

        #[test]
        fn property_starts_are_those_of_fresh_packets(
            handles in proptest::collection::vec(any::<u32>(), 0..20), headroom in 128_u16..2048, colours in 1_u16..=8, length in any::<u16>(), port in any::<u16>()
        ) {
            let fresh = Fresh { headroom, colours, length, port };
            let mut starts = vec![u64::MAX; handles.len() + 1];
            write_starts(&handles, &mut starts, fresh);
            prop_assert_eq!(starts.pop(), Some(u64::MAX));
            for (start, handle) in starts.into_iter().zip(handles) {
                let (packet, made) = (Packet::from_start(start, length, port), Packet::new(handle, fresh.offset(handle), length, port));
                // SAFETY: two integers each.
                let words = [packet, made].map(|packet| unsafe { mem::transmute::<Packet, Words>(packet) });
                prop_assert_eq!(words[0], words[1]);
            }
        }

        #[test]
        fn property_bounds_are_those_of_all_packets(packets in proptest::collection::vec((any::<u32>(), any::<u16>(), any::<[bool; 8]>(), any::<u16>()), 1..70)) {
            let row: Vec<_> = packets.iter().map(|(handle, length, [chained, asks, good, ..], offset)| {
                let mut packet = Packet::new(*handle, *offset, *length, 9);
                packet.fill_checksum(*asks);
                packet.set_checksum(if *good { Checksum::Good } else { Checksum::Unknown });
                // SAFETY: four integers.
                let mut words = unsafe { mem::transmute::<Packet, Words>(packet) };
                words[2] = if *chained { 7 } else { frame::NONE };
                // SAFETY: as above; the packet is forgotten below.
                mem::ManuallyDrop::new(unsafe { mem::transmute::<Words, Packet>(words) })
            }).collect();
            // SAFETY: of the same layout.
            let seen = bounds(unsafe { std::slice::from_raw_parts(row.as_ptr().cast(), row.len()) });
            let handles = || packets.iter().map(|(handle, ..)| *handle);
            let lengths = || packets.iter().map(|(_, length, ..)| length.cast_signed());
            prop_assert_eq!(seen.common, handles().fold(u32::MAX, |all, handle| all & handle));
            prop_assert_eq!(seen.differs, handles().fold(0, |bits, handle| bits | handle ^ packets[0].0));
            prop_assert_eq!(seen.lengths, (lengths().min().unwrap(), lengths().max().unwrap()));
            prop_assert_eq!(seen.offset, packets.iter().map(|(.., offset)| offset.cast_signed()).min().unwrap());
            prop_assert_eq!(seen.chained, packets.iter().any(|(.., [chained, ..], _)| *chained));
            prop_assert_eq!(seen.flags & Packet::ASKS != 0, packets.iter().any(|(.., [_, asks, ..], _)| *asks));
        }

        #[test]
        fn property_a_row_is_surveyed_packet_by_packet(count in 0_usize..=64, chained in proptest::option::of(0_usize..64), length in 0_usize..1500) {
            let pool = Pool::new(&PoolConfig { frames: 128, ..PoolConfig::default() }).unwrap();
            let mut batch = Batch::new();
            prop_assert_eq!(pool.allocate_batch(&mut batch, count, length, PortId(7)), count);
            prop_assert!(batch.iter().all(|packet| packet.len() == length && packet.port() == PortId(7)));
            let chained = chained.filter(|index| *index < count);
            if let Some(index) = chained {
                batch.as_mut_slice()[index].chain(pool.allocate(1).unwrap());
            }
            let mut places = [MaybeUninit::<u32>::uninit(); 64];
            let survey = read_handles(batch.as_slice(), &mut places);
            // SAFETY: that many were written.
            let read: Vec<u32> = places[..count].iter().map(|place| unsafe { place.assume_init() }).collect();
            let handles: Vec<u32> = batch.iter().map(Packet::handle).collect();
            let differs = handles.iter().fold(0, |bits, handle| bits | handle ^ handles[0]);
            prop_assert_eq!((read, survey.differs, survey.chained), (handles, differs, chained.is_some()));
            prop_assert_eq!(survey.bytes as usize, batch.len() * length);
            drop(batch);
            prop_assert_eq!(pool.audit().held, 0);
        }
    }
}
