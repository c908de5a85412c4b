//! Packet memory: regions, pools of frames, packets and batches.
//!
//! A [`Region`] is a stretch of (huge) pages. A [`Pool`] cuts it into frames. A [`Packet`] is the owned, 16-byte handle
//! of one frame and of the bytes in it that matter; dropping it gives the frame back. A [`Batch`] holds up to
//! [`BATCH_SIZE`] packets and is what ports and applications hand to each other.

mod batch;
mod frame;
mod free_list;
mod packet;
mod pool;
mod region;
mod registry;
mod window;
mod words;

pub use batch::{BATCH_SIZE, Batch};
pub use frame::Frame;
pub(crate) use frame::{POOL_SHIFT, Returned};
pub(crate) use packet::SEGMENT_HEADER;
pub use packet::{Checksum, Packet, Segments};
pub use pool::{Audit, MIN_HEADROOM, Pool, PoolConfig, PoolError};
pub use region::{PageChoice, PageSize, Region, RegionError};
pub use registry::MAX_POOLS;
pub(crate) use window::address as window_address;
pub(crate) use words::{Fresh, bounds, write_starts};
