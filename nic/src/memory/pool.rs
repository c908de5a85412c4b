//! A pool: one region cut into frames, and the books on where each frame is.
//!
//! Every port of a process can use every frame. The data of a fresh packet starts at the headroom plus a *colour*, a
//! multiple of the cache line that differs from frame to frame: without it all headers of a pool fall on the same few sets of
//! the first-level cache and push each other out.
#![allow(unsafe_code)]

use super::batch::{BATCH_SIZE, Batch};
use super::frame::{Frame, INDEX_MASK};
use super::free_list::FreeList;
use super::packet::{Packet, SEGMENT_HEADER};
use super::region::{PageChoice, PageSize, Region, RegionError};
use super::registry::{self, MAX_POOLS};
use super::window;
use super::words::Fresh;
use crate::port::PortId;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use thiserror::Error;

/// The smallest headroom, in bytes: room for the segment header and for some tunnels' headers.
pub const MIN_HEADROOM: usize = 128;
/// Half of what handles can number, so that frames of 4 KiB, which take two handles each, fit too.
const MAX_FRAMES: usize = (INDEX_MASK / 2) as usize;
pub(super) const CACHE_LINE: usize = 64;
/// Enough that a few batches of headers fit into an 8-way cache; more would take room from the data.
const MAX_COLOURS: usize = 8;
/// What colouring leaves for data in any case: a full Ethernet frame with two VLAN tags.
const MIN_DATA_ROOM: usize = 1526;

/// What a pool is to be like.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// How many frames.
    pub frames: usize,
    /// Bytes of one frame: 2048 or 4096.
    pub frame_size: usize,
    /// Bytes before the data of a fresh packet, at least [`MIN_HEADROOM`].
    pub headroom: usize,
    /// The pages to put it on.
    pub pages: PageChoice,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { frames: 8192, frame_size: 2048, headroom: MIN_HEADROOM, pages: PageChoice::Auto }
    }
}

/// Why there is no pool.
#[derive(Debug, Error)]
pub enum PoolError {
    /// Not 2048 or 4096.
    #[error("frames of {0} bytes are not supported: choose 2048 or 4096")]
    FrameSize(usize),
    /// None, or more than a handle can number.
    #[error("a pool of {0} frames is not possible: choose from 64 to {MAX_FRAMES}")]
    Frames(usize),
    /// No room left for a full Ethernet frame, or none for the segment header.
    #[error("headroom {headroom} does not fit frames of {frame_size} bytes: choose from {MIN_HEADROOM} to {most}", most = .frame_size - MIN_DATA_ROOM)]
    Headroom {
        /// Bytes asked for.
        headroom: usize,
        /// Bytes of one frame.
        frame_size: usize,
    },
    /// All pool numbers are in use.
    #[error("{MAX_POOLS} pools are open already: close one first")]
    TooMany,
    /// No memory.
    #[error(transparent)]
    Region(#[from] RegionError),
}

impl PoolConfig {
    /// Says what is wrong with the numbers, before any memory is asked for.
    pub fn check(&self) -> Result<(), PoolError> {
        if !matches!(self.frame_size, 2048 | 4096) {
            return Err(PoolError::FrameSize(self.frame_size));
        }
        if self.frames < BATCH_SIZE || self.frames > MAX_FRAMES {
            return Err(PoolError::Frames(self.frames));
        }
        if self.headroom < MIN_HEADROOM || self.headroom + MIN_DATA_ROOM > self.frame_size {
            return Err(PoolError::Headroom { headroom: self.headroom, frame_size: self.frame_size });
        }
        Ok(())
    }
}

/// What the registry's slot points to.
pub(crate) struct PoolInner {
    pub(crate) region: Region,
    pub(crate) frame_size: usize,
    pub(crate) free_list: FreeList,
    number: u32,
    frames: usize,
    headroom: u16,
    colours: u16,
    /// Frames that a device may still write to although its port is closed.
    withheld: AtomicUsize,
}

/// The handle of a pool; clones are handles of the same pool. When the last is dropped the memory goes, as soon as
/// every frame is back.
#[derive(Clone)]
pub struct Pool {
    owner: Arc<Owner>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}, {} frames of {} bytes)", self.number(), self.frames(), self.frame_size())
    }
}

struct Owner {
    inner: &'static PoolInner,
}

impl Drop for Owner {
    fn drop(&mut self) {
        registry::retire(self.inner.number);
    }
}

/// The books of a pool, counted frame by frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Frames the pool has.
    pub frames: usize,
    /// Frames that are free.
    pub free: usize,
    /// Frames that are in packets or on rings.
    pub held: usize,
    /// Those of them that are out of use for good: a driver of the kernel has not let go of them.
    pub withheld: usize,
    /// Frames found on the free list twice: always 0, or a driver is wrong.
    pub duplicated: usize,
}

impl Pool {
    /// Allocates a pool.
    pub fn new(config: &PoolConfig) -> Result<Self, PoolError> {
        config.check()?;
        let inner = registry::register(|number| {
            let place = window::reserve(number)?;
            let bytes = config.frames * config.frame_size;
            // SAFETY: `place` starts the part of the window that belongs to this pool's number, which was free, and
            // `check` keeps a pool below 512 GiB, so the region does not reach into the next part.
            let region = unsafe { Region::allocate(place, bytes, config.pages) }?;
            let spare = config.frame_size - config.headroom - MIN_DATA_ROOM;
            Ok::<_, PoolError>(PoolInner {
                region,
                frame_size: config.frame_size,
                free_list: FreeList::new(number, config.frames, config.frame_size >> window::STRIDE_SHIFT),
                number,
                frames: config.frames,
                headroom: config.headroom as u16,
                colours: (spare / CACHE_LINE + 1).min(MAX_COLOURS) as u16,
                withheld: AtomicUsize::new(0),
            })
        });
        Ok(Self { owner: Arc::new(Owner { inner: inner.ok_or(PoolError::TooMany)?? }) })
    }

    #[inline(always)]
    fn inner(&self) -> &PoolInner {
        self.owner.inner
    }

    /// Allocates a packet of `length` bytes (their content is whatever was there); `None` where the pool is empty, or the
    /// length does not fit a frame.
    pub fn allocate(&self, length: usize) -> Option<Packet> {
        let mut batch = Batch::new();
        self.allocate_batch(&mut batch, 1, length, PortId(0));
        batch.pop()
    }

    /// Adds up to `count` packets of `length` bytes that came in by `port` to `batch`, as many as there are frames and room
    /// for, and says how many.
    #[inline]
    pub fn allocate_batch(&self, batch: &mut Batch, count: usize, length: usize, port: PortId) -> usize {
        let inner = self.inner();
        if length > self.data_room() {
            return 0;
        }
        let fresh = self.fresh(length, port);
        inner.free_list.take(count.min(batch.room()), |handles| {
            // SAFETY: the free list hands them over; `length` fits a frame behind the largest offset.
            unsafe { batch.extend_fresh(handles, fresh) };
        })
    }

    /// Takes one bare frame, for a driver that puts it on a ring; `None` where the pool is empty.
    pub fn allocate_frame(&self) -> Option<Frame> {
        let mut frame = None;
        self.allocate_frames(1, |allocated| frame = Some(allocated));
        frame
    }

    /// Takes up to `count` (at most 64) bare frames, for a driver that puts them on a ring, and says how many.
    #[inline]
    pub fn allocate_frames(&self, count: usize, receive: impl FnMut(Frame)) -> usize {
        // Copied first: what `receive` does may use the free list again.
        let mut taken = [0; BATCH_SIZE];
        let count = self.allocate_handles(&mut taken[..count.min(BATCH_SIZE)]);
        taken[..count].iter().map(|handle| Frame::from_handle(*handle)).for_each(receive);
        count
    }

    /// What is common to fresh packets; with [`Fresh::offset`] a driver that receives into a frame knows where.
    #[inline(always)]
    pub(crate) fn fresh(&self, length: usize, port: PortId) -> Fresh {
        let inner = self.inner();
        Fresh { headroom: inner.headroom, colours: inner.colours, length: length as u16, port: port.0 }
    }

    /// The same for the handles of so many frames as there are places (at most 64): whoever has a handle is to see that its frame is freed.
    #[inline(always)]
    pub(crate) fn allocate_handles(&self, places: &mut [u32]) -> usize {
        let wanted = places.len().min(BATCH_SIZE);
        self.inner().free_list.take(wanted, |handles| places[..handles.len()].copy_from_slice(handles))
    }

    /// Bytes every fresh packet has room for, whatever its frame's colour.
    #[inline(always)]
    pub fn data_room(&self) -> usize {
        let inner = self.inner();
        inner.frame_size - inner.headroom as usize - (inner.colours as usize - 1) * CACHE_LINE
    }

    /// Bytes of one frame.
    pub fn frame_size(&self) -> usize {
        self.inner().frame_size
    }

    /// Bytes before the data of a fresh packet, at the least.
    pub fn headroom(&self) -> usize {
        self.inner().headroom as usize
    }

    /// How many frames it has.
    pub fn frames(&self) -> usize {
        self.inner().frames
    }

    /// How many are free; exact while nobody allocates or frees.
    pub fn free(&self) -> usize {
        self.inner().free_list.len()
    }

    /// Its number, which frames carry.
    pub fn number(&self) -> u32 {
        self.inner().number
    }

    /// The memory behind it.
    pub fn region(&self) -> &Region {
        &self.inner().region
    }

    /// The pages behind it.
    pub fn page(&self) -> PageSize {
        self.inner().region.page()
    }

    /// Gives back what waits on the calling thread's CPU, where somebody asked for it: a worker whose CPU is isolated calls it once a turn of its
    /// loop. One load where nobody asked.
    #[inline]
    pub fn serve(&self) {
        self.inner().free_list.serve();
    }

    /// Takes back free frames from CPUs that are not isolated where an isolated worker was short of them, and says how many: for a control thread, a
    /// few times a second.
    pub fn serve_requests(&self) -> usize {
        self.inner().free_list.serve_requests()
    }

    /// Takes back free frames from CPUs that no thread of this process can run on any more (off line, or taken away by a cpuset), and says
    /// how many. Reads `/proc`: for a control thread.
    pub fn drain_stranded(&self) -> std::io::Result<usize> {
        self.inner().free_list.drain_stranded()
    }

    /// Takes `frames` out of use for good: a driver says that the device of a closed port may still write to them, and
    /// forgets them.
    pub(crate) fn withhold(&self, frames: usize) {
        self.inner().withheld.fetch_add(frames, Ordering::Relaxed);
    }

    /// Counts frame by frame. For a quiet pool: no thread allocates or frees meanwhile.
    pub fn audit(&self) -> Audit {
        let (counted, duplicated) = self.inner().free_list.audit();
        let free = counted + self.inner().free_list.left_alone();
        let withheld = self.inner().withheld.load(Ordering::Relaxed);
        Audit { frames: self.frames(), free, held: self.frames() - free, withheld, duplicated }
    }
}

const _: () = assert!(SEGMENT_HEADER <= MIN_HEADROOM);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::thread;

    fn pool(frames: usize) -> Pool {
        Pool::new(&PoolConfig { frames, ..PoolConfig::default() }).unwrap()
    }

    #[track_caller]
    fn assert_whole(pool: &Pool) {
        let audit = pool.audit();
        assert_eq!(
            audit,
            Audit { frames: pool.frames(), free: pool.frames(), held: 0, withheld: 0, duplicated: 0 }
        );
    }

    #[test]
    fn an_audit_counts_what_it_must_leave_on_an_isolated_cpu() {
        let pool = pool(1000);
        let cpu = percpu::Topology::read().unwrap().allowed.iter().last().unwrap();
        let worker = thread::spawn({
            let pool = pool.clone();
            move || {
                let _pinned = percpu::pin_on_cpu(cpu).unwrap();
                let mut batch = Batch::new();
                pool.allocate_batch(&mut batch, BATCH_SIZE, 60, PortId(0));
                batch.clear();
                percpu::mark_isolated(cpu)
            }
        });
        let mark = worker.join().unwrap();
        assert_whole(&pool);
        drop(mark);
        assert_whole(&pool);
    }

    #[test]
    fn every_frame_can_be_had_once() {
        let pool = pool(1000);
        let mut batches: Vec<Batch> = Vec::new();
        loop {
            let mut batch = Batch::new();
            if pool.allocate_batch(&mut batch, BATCH_SIZE, 60, PortId(3)) == 0 {
                break;
            }
            batches.push(batch);
        }
        let mut handles: Vec<u32> = batches.iter().flat_map(Batch::iter).map(Packet::handle).collect();
        handles.sort_unstable();
        handles.dedup();
        assert_eq!(handles.len(), 1000);
        assert_eq!(pool.audit().held, 1000);
        assert!(pool.allocate(60).is_none());
        drop(batches);
        assert_whole(&pool);
    }

    #[test]
    fn a_held_packet_is_seen_by_the_audit_and_stays_valid_after_the_pool() {
        let pool = pool(64);
        let mut packet = pool.allocate(5).unwrap();
        packet.data_mut().copy_from_slice(b"hello");
        assert_eq!((pool.audit().held, pool.free()), (1, 63));
        drop(pool);
        assert_eq!(packet.data(), b"hello");
    }

    #[test]
    fn headers_are_spread_over_the_cache_sets() {
        let pool = pool(4096);
        let mut sets = [0; 64];
        let packets: Vec<Packet> = std::iter::from_fn(|| pool.allocate(60)).collect();
        for packet in &packets {
            sets[packet.data().as_ptr() as usize / CACHE_LINE % 64] += 1;
        }
        let used = sets.iter().filter(|count| **count > 0).count();
        let most = *sets.iter().max().unwrap();
        assert!(used >= 12 && most < 4096 / 12 * 2, "{used} sets used, {most} headers on one: {sets:?}");
    }

    #[test]
    fn too_much_is_an_error_in_words() {
        let refuse = |frames, pages| {
            Pool::new(&PoolConfig { frames, pages, ..PoolConfig::default() }).err().unwrap().to_string()
        };
        let error = refuse(MAX_FRAMES, PageChoice::Exactly(PageSize::Base));
        assert!(error.contains("fewer frames"), "{error}");
        let error = refuse(MAX_FRAMES, PageChoice::Exactly(PageSize::Huge2M));
        assert!(error.contains("nr_hugepages"), "{error}");
    }

    #[test]
    fn large_frames_do_not_overlap() {
        let pool = Pool::new(&PoolConfig { frames: 64, frame_size: 4096, ..PoolConfig::default() }).unwrap();
        let mut packets: Vec<Packet> = std::iter::from_fn(|| pool.allocate(3000)).collect();
        assert_eq!(packets.len(), 64);
        packets.iter_mut().enumerate().for_each(|(mark, packet)| packet.data_mut().fill(mark as u8));
        for (mark, packet) in packets.iter().enumerate() {
            assert!(packet.data().iter().all(|byte| *byte == mark as u8), "packet {mark} was overwritten");
        }
        drop(packets);
        assert_whole(&pool);
    }

    #[test]
    fn frames_that_wait_on_an_idle_cpu_are_taken_back() {
        let pool = pool(1000);
        let name = "frames_that_wait_on_an_idle_cpu_are_taken_back";
        let cpus: Vec<usize> = percpu::Topology::read().unwrap().allowed.iter().collect();
        if cpus.len() < 2 {
            return eprintln!("SKIPPED {name}: needs a second CPU");
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                let _pinned = percpu::pin_on_cpu(cpus[1]).unwrap();
                let packets: Vec<Packet> = std::iter::from_fn(|| pool.allocate(60)).collect();
                assert_eq!(packets.len(), 1000);
            });
        });
        let _pinned = percpu::pin_on_cpu(cpus[0]).unwrap();
        let packets: Vec<Packet> = std::iter::from_fn(|| pool.allocate(60)).collect();
        assert_eq!(packets.len(), 1000, "some stayed on CPU {}", cpus[1]);
        drop(packets);
        assert_whole(&pool);
    }

    #[test]
    fn frames_cross_threads_without_loss() {
        let pool = pool(2048);
        let (send, receive) = std::sync::mpsc::sync_channel::<Batch>(4);
        let producer = thread::spawn({
            let pool = pool.clone();
            move || {
                for _ in 0..2000 {
                    let mut batch = Batch::new();
                    while pool.allocate_batch(&mut batch, BATCH_SIZE, 60, PortId(0)) == 0 {
                        thread::yield_now();
                    }
                    send.send(batch).unwrap();
                }
            }
        });
        let freed =
            thread::spawn(move || receive.iter().map(|batch| batch.len()).sum::<usize>()).join().unwrap();
        producer.join().unwrap();
        assert!(freed >= 2000);
        assert_whole(&pool);
    }

    #[test]
    fn frames_taken_while_frames_are_taken_are_other_frames() {
        let pool = pool(256);
        let (mut frames, mut packets) = (Vec::new(), Vec::new());
        pool.allocate_frames(BATCH_SIZE, |frame| {
            frames.push(frame);
            packets.extend(pool.allocate(60));
        });
        let mut handles: Vec<u64> = frames.iter().map(Frame::region_offset).collect();
        handles.extend(
            packets.iter().map(|packet| u64::from(packet.handle() & INDEX_MASK) << window::STRIDE_SHIFT),
        );
        handles.sort_unstable();
        handles.dedup();
        assert_eq!(handles.len(), 2 * BATCH_SIZE);
        drop((frames, packets));
        assert_whole(&pool);
    }

    #[test]
    fn a_thread_that_keeps_free_frames_keeps_no_pool() {
        // More pools, one after the other, than there can be at a time; the other thread lives on with frames of each.
        let (give, packets) = std::sync::mpsc::sync_channel::<Packet>(0);
        let (freed, wait) = std::sync::mpsc::sync_channel::<()>(0);
        let keeper = thread::spawn(move || {
            for packet in packets {
                drop(packet);
                freed.send(()).unwrap();
            }
        });
        for _ in 0..3 * MAX_POOLS {
            let pool = pool(64);
            give.send(pool.allocate(60).unwrap()).unwrap();
            wait.recv().unwrap();
        }
        drop(give);
        keeper.join().unwrap();
    }

    #[test]
    fn a_batch_is_parted_in_order() {
        let pool = pool(128);
        let (mut batch, mut others) = (Batch::new(), Batch::new());
        for length in 0..60 {
            batch.push(pool.allocate(length).unwrap()).unwrap();
        }
        batch.partition(&mut others, |packet| packet.len() % 3 != 0);
        let lengths = |batch: &Batch| batch.iter().map(Packet::len).collect::<Vec<_>>();
        assert_eq!(lengths(&batch), (0..60).filter(|length| length % 3 != 0).collect::<Vec<_>>());
        assert_eq!(lengths(&others), (0..60).step_by(3).collect::<Vec<_>>());
        drop((batch, others));
        assert_whole(&pool);
    }

    #[test]
    fn bad_numbers_are_refused_in_words() {
        let refuse = |config: PoolConfig| Pool::new(&config).err().unwrap().to_string();
        assert!(refuse(PoolConfig { frame_size: 3000, ..PoolConfig::default() }).contains("2048 or 4096"));
        assert!(refuse(PoolConfig { frames: 0, ..PoolConfig::default() }).contains("choose from 64"));
        assert!(
            refuse(PoolConfig { frames: usize::MAX, ..PoolConfig::default() }).contains("choose from 64")
        );
        assert!(
            refuse(PoolConfig { headroom: 1024, ..PoolConfig::default() }).contains("choose from 128 to 522")
        );
    }

    /// What a user of DPDK's mbufs would do to a packet, against a plain vector of bytes.
    #[derive(Clone, Debug)]
    enum Edit {
        Prepend(usize),
        Append(usize),
        Adj(usize),
        Trim(usize),
    }

    fn edits() -> impl Strategy<Value = Vec<Edit>> {
        let count = 0..200_usize;
        proptest::collection::vec(
            prop_oneof![
                count.clone().prop_map(Edit::Prepend),
                count.clone().prop_map(Edit::Append),
                count.clone().prop_map(Edit::Adj),
                count.prop_map(Edit::Trim),
            ],
            0..40,
        )
    }

    proptest! {
        #[test]
        fn property_editing_a_packet_is_editing_its_bytes(edits in edits()) {
            let pool = pool(64);
            let mut packet = pool.allocate(100).unwrap();
            packet.data_mut().fill(7);
            let mut model = vec![7_u8; 100];
            for (step, edit) in edits.into_iter().enumerate() {
                let mark = step as u8;
                let fits = match edit {
                    Edit::Prepend(count) => {
                        let done = packet.prepend(count).map(|bytes| bytes.fill(mark));
                        if done.is_some() { model.splice(0..0, std::iter::repeat_n(mark, count)); }
                        prop_assert!(done.is_some() || count > packet.headroom());
                        done
                    }
                    Edit::Append(count) => {
                        let done = packet.append(count).map(|bytes| bytes.fill(mark));
                        if done.is_some() { model.extend(std::iter::repeat_n(mark, count)); }
                        prop_assert!(done.is_some() || count > packet.tailroom());
                        done
                    }
                    Edit::Adj(count) => {
                        let done = packet.adj(count);
                        if done.is_some() { model.drain(..count); }
                        prop_assert_eq!(done.is_some(), count <= model.len() + if done.is_some() { count } else { 0 });
                        done
                    }
                    Edit::Trim(count) => {
                        let done = packet.trim(count);
                        if done.is_some() { model.truncate(model.len() - count); }
                        done
                    }
                };
                let _ = fits;
                prop_assert_eq!(packet.data(), &model[..]);
                prop_assert_eq!(packet.headroom() + packet.len() + packet.tailroom() + SEGMENT_HEADER, 2048);
            }
        }

        #[test]
        fn property_a_chain_is_its_segments(lengths in proptest::collection::vec(0..1500_usize, 1..7)) {
            let pool = pool(64);
            let mut model = Vec::new();
            let mut parts = lengths.iter().enumerate().map(|(mark, length)| {
                let mut part = pool.allocate(*length).unwrap();
                part.data_mut().fill(mark as u8);
                model.extend(std::iter::repeat_n(mark as u8, *length));
                part
            });
            let mut packet = parts.next().unwrap();
            parts.for_each(|part| packet.chain(part));
            prop_assert_eq!(packet.to_vec(), &model[..]);
            prop_assert_eq!(packet.total_len(), lengths.iter().sum::<usize>());
            prop_assert_eq!(packet.segment_count(), lengths.len());
            let last = *lengths.last().unwrap();
            prop_assert_eq!(packet.trim(last + 1), None);
            prop_assert!(packet.trim(last / 2).is_some());
            model.truncate(model.len() - last / 2);
            packet.append(7).unwrap().fill(0xEE);
            model.extend([0xEE; 7]);
            prop_assert_eq!(packet.to_vec(), model);
            let rest = packet.split_first();
            prop_assert_eq!(rest.map_or(0, |rest| rest.segment_count()), lengths.len() - 1);
            drop(packet);
            prop_assert_eq!(pool.audit().held, 0);
        }
    }
}
