//! Receive-side scaling: which queue a packet goes to.
//!
//! The key makes both directions of a flow have the same hash (Woo and Park, "Scalable TCP session monitoring with symmetric receive-side
//! scaling", 2012), so one worker sees both. UDP is hashed by addresses alone: the fragments of a packet have no ports, and would overtake it or be overtaken.
#![forbid(unsafe_code)]

use crate::vfio::registers::RegisterSpace;

/// RETA: which queue for the low 7 bits of a hash (82574 datasheet 10.2.5.12, 82576 datasheet 8.10.17; the 82599 has it there, too).
pub(crate) const RETA: usize = 0x5C00;
/// RSSRK: the key.
pub(crate) const RSSRK: usize = 0x5C80;
/// Entries of the table.
pub(crate) const ENTRIES: usize = 128;
/// Bytes of the key.
pub(crate) const KEY_BYTES: usize = 40;

/// The key: the same 16 bits over and over.
pub(crate) const KEY: [u8; KEY_BYTES] = {
    let mut key = [0x6D; KEY_BYTES];
    let mut at = 1;
    while at < KEY_BYTES {
        key[at] = 0x5A;
        at += 2;
    }
    key
};

/// Writes key and table for this many queues; `entry` makes the byte of a queue's number.
pub(crate) fn program(registers: &dyn RegisterSpace, queues: u16, entry: impl Fn(u8) -> u8) {
    for (at, word) in KEY.chunks_exact(4).enumerate() {
        registers.write32(RSSRK + at * 4, u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    }
    let queue = |index: usize| entry((index % usize::from(queues.max(1))) as u8);
    for at in (0..ENTRIES).step_by(4) {
        registers
            .write32(RETA + at, u32::from_le_bytes([queue(at), queue(at + 1), queue(at + 2), queue(at + 3)]));
    }
}
