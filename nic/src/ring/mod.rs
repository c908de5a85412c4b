//! Rings between two threads of this process.
