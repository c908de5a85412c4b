//! What a burst of ordinary packets costs: four loops, each over what lies in a row on the ring, in the books and in the batch. How long the row is, is worked
//! out before; whatever is not as usual ends it, and is the queues' to deal with.
//!
//! What a device says is read once, compared with what the books expect, and only then used. A buffer that is given back in order is the oldest that is
//! outstanding: so none comes back twice.
#![allow(unsafe_code)]

use super::abi::header;
use super::ledger::{Ledger, Sent, Starts};
use super::ring::{FreeRow, Ring, Segment, UsedRow};
use crate::memory::{BATCH_SIZE, Batch, Frame, Packet, SEGMENT_HEADER, window_address};
use crate::vfio::dma::{PoolMapping, observe};
use crate::vfio::usual::Usual;

const HEADER: u32 = header::BYTES as u32;
/// Zeros that are written before a packet: its header ends where the packet begins. As many as one vector has.
const ZEROS: usize = 16;
const _: () = assert!(ZEROS >= header::BYTES);
/// Where the data of a packet starts at the least that has room for them, behind what a chain has at the frame's start.
pub(super) const LEAST_OFFSET: usize = SEGMENT_HEADER + ZEROS;

/// Packets, or whatever a loop has done with, and their bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Done {
    pub(super) count: usize,
    pub(super) bytes: u64,
}

/// Takes packets of one buffer each that come in order, of a header that nobody reads and at least a byte but no more than `room` behind it.
#[inline(always)]
pub(super) fn receive<R: Ring>(
    ring: &mut R,
    ledger: &mut Ledger<Starts>,
    batch: &mut Batch,
    room: u32,
    port: u16,
) -> Done {
    let used = ring.used_row(ledger.clean());
    let starts = ledger.books().row(ledger.front(used.count().min(batch.room() as u32)));
    let mut bytes = 0;
    let write = |packets: *mut Packet, _places: usize| {
        let mut count = 0;
        while count < starts.len() {
            // SAFETY: there are no more starts than the row has descriptors.
            let Some(written) = (unsafe { used.written(count) }) else { break };
            // Too little is far too much by this.
            let last = written.wrapping_sub(HEADER + 1);
            if last >= room {
                break;
            }
            let length = last + 1;
            bytes += u64::from(length);
            let packet = Packet::from_start(starts[count].word(), length as u16, port);
            // SAFETY: there are no more starts than places. The frame is the packet's: the entry is given up below.
            unsafe { packets.add(count).write(packet) };
            count += 1;
        }
        count
    };
    // SAFETY: `write` has initialised as many as it says, one after the other.
    let count = unsafe { batch.extend_raw(write) };
    drop(used);
    // Before anybody looks at what is in them.
    observe();
    ledger.advance(count);
    ring.consume(count as u32, count as u32);
    Done { count, bytes }
}

/// Gives the device as many frames as there is room for, at most 64, as buffers of `length` bytes: whether there were so many. A header comes before where a packet is to
/// start.
#[inline(always)]
pub(super) fn give<R: Ring>(
    ring: &mut R,
    ledger: &mut Ledger<Starts>,
    frames: &PoolMapping,
    length: u32,
) -> bool {
    let mut handles = [0; BATCH_SIZE];
    let wanted = (ledger.room() as usize).min(BATCH_SIZE);
    let got = frames.pool().allocate_handles(&mut handles[..wanted]);
    let origin = frames.origin().wrapping_sub(HEADER.into());
    let mut rest = &handles[..got];
    // Up to the end of the ring, and on from its start: there is room for all.
    while !rest.is_empty() {
        let (at, slots) = (ledger.next(), ledger.back(rest.len() as u32));
        let starts = ledger.books_mut().row_mut(slots);
        let (now, later) = rest.split_at(starts.len());
        let address = |handle: u32, offset: u32| {
            origin.wrapping_add(Frame::window_offset_of(handle)).wrapping_add(offset.into())
        };
        let (Some(first), Some(start)) = (now.first(), starts.first_mut()) else { break };
        start.handle = *first;
        let segment = Segment { head: at, more: false, writable: true };
        ring.put_segment(at, address(*first, start.offset), length, segment);
        let row = ring.put_row(at.wrapping_add(1), now.len() - 1, true);
        for index in 1..starts.len() {
            let (handle, start) = (now[index], &mut starts[index]);
            start.handle = handle;
            // SAFETY: there are as many in the row as handles, but for the first.
            unsafe { row.write(index - 1, address(handle, start.offset), length) };
        }
        drop(row);
        ledger.entered(now.len());
        rest = later;
    }
    got == wanted
}

/// Sends as many packets from the front of the batch as there is room for; none at all, and says false, where one of them is not as usual.
#[inline(always)]
pub(super) fn send<R: Ring>(
    ring: &mut R,
    ledger: &mut Ledger<Sent>,
    batch: &mut Batch,
    usual: &Usual,
    frames: &PoolMapping,
) -> bool {
    let count = batch.len().min(ledger.room() as usize);
    let mut rest = &batch.as_slice()[..count];
    if count > 0 && !usual.are(rest) {
        return false;
    }
    // Where the window of all pools begins, to us and to the device.
    let window = window_address(0);
    let origin = frames.origin().wrapping_sub(HEADER.into());
    // Where the packet's header begins, to the device.
    let prepare = |packet: &Packet| {
        let place = Frame::window_offset_of(packet.handle()) + packet.offset() as u64;
        // SAFETY: the packet owns its frame, which is of this pool, and its data starts so far behind the frame's first bytes, which are a chain's: the zeros are
        // inside the frame, and no reference to a packet reaches there.
        unsafe { window.wrapping_add(place as usize - ZEROS).cast::<[u8; ZEROS]>().write([0; ZEROS]) };
        origin.wrapping_add(place)
    };
    // Up to the end of the ring, and on from its start.
    while !rest.is_empty() {
        let (at, slots) = (ledger.next(), ledger.back(rest.len() as u32));
        let (handles, notes) = ledger.books_mut().row_mut(slots);
        let (now, later) = rest.split_at(handles.len());
        let Some(first) = now.first() else { break };
        (handles[0], notes[0]) = (first.handle(), first.len() as u32);
        let segment = Segment { head: at, more: false, writable: false };
        ring.put_segment(at, prepare(first), notes[0] + HEADER, segment);
        let row = ring.put_row(at.wrapping_add(1), now.len() - 1, false);
        let notes = &mut notes[..now.len()];
        for index in 1..now.len() {
            let (packet, length) = (&now[index], now[index].len() as u32);
            (handles[index], notes[index]) = (packet.handle(), length);
            // SAFETY: there are as many in the row as packets, but for the first.
            unsafe { row.write(index - 1, prepare(packet), length + HEADER) };
        }
        drop(row);
        ledger.entered(now.len());
        rest = later;
    }
    // SAFETY: there are as many; their frames are the books' now, and none has another segment.
    unsafe { batch.forget_front(count) };
    true
}

/// Frees packets of one descriptor that come back in order, up to 64. All are of one pool.
#[inline(always)]
pub(super) fn reclaim<R: Ring>(ring: &mut R, ledger: &mut Ledger<Sent>) -> Done {
    let used = ring.used_row(ledger.clean());
    let (handles, lengths) = ledger.books().row(ledger.front(used.count().min(BATCH_SIZE as u32)));
    let mut count = 0;
    // SAFETY: it is asked for no more than there are handles, and there are no more of these than the row has descriptors.
    let differs = |at: usize| unsafe { used.differs(at) };
    // By fours, and what is left one by one.
    while count + 4 <= handles.len()
        && differs(count) | differs(count + 1) | differs(count + 2) | differs(count + 3) == 0
    {
        count += 4;
    }
    while count < handles.len() && differs(count) == 0 {
        count += 1;
    }
    drop(used);
    // At most 64 times 64 KiB.
    let bytes = lengths[..count].iter().sum::<u32>().into();
    Frame::free_handles(&handles[..count]);
    ledger.advance(count);
    ring.consume(count as u32, count as u32);
    Done { count, bytes }
}
