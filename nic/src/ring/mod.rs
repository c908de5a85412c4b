//! Rings between two threads of this process.
//!
//! One writer and one reader for each, so that neither ever waits for the other: a worker and the control core, a worker and a
//! worker. Compiled alone under `cfg(loom)`, where every interleaving of a small model is tried.

#[cfg(not(loom))]
mod batch;
mod marks;
mod slots;
pub mod spsc;
mod sync;

pub use marks::Marks;
pub use spsc::{Consumer, Observer, Producer, ring};
