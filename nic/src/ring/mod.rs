//! Rings between threads of this process.
//!
//! One reader for each and mostly one writer, so that neither ever waits for the other: a worker and the control core, a worker and a
//! worker. Compiled alone under `cfg(loom)`, where every interleaving of a small model is tried.

#[cfg(not(loom))]
mod batch;
mod mailbox;
mod marks;
mod slots;
pub mod spsc;
mod sync;

pub use mailbox::Mailbox;
pub use marks::Marks;
pub use spsc::{Consumer, Observer, Producer, ring};
