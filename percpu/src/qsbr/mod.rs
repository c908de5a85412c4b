//! Tables that many threads read without a lock, and one replaces while they read: quiescent-state based reclamation (QSBR).
//!
//! A reading thread goes round a loop. While it is within a turn it may hold references into tables; between two turns it holds none, and says so
//! by one store to a line of its own: a quiescent state. Whoever replaces a table keeps the old one until each thread that was within a
//! turn has had a quiescent state. So a lookup costs a plain load of a pointer, and a table is whole or not to be seen.
//!
//! What a [`Reader`] gives out is borrowed from it, and a quiescent state needs it exclusively: no reference outlives its turn.
//!
//! A thread that stays within a turn keeps old tables from being freed. That is bounded: a table has [`MOST_RETIRED`] old ones at the most, then no
//! new one is taken, and [`Refused`] names the thread.
//!
//! M. Desnoyers et al., "User-Level Implementations of Read-Copy Update", IEEE TPDS 2012, section 3 (QSBR); DPDK's `rte_rcu_qsbr` is of the same kind.

mod domain;
mod published;

pub use domain::{Domain, Held, Reader};
pub use published::{MOST_RETIRED, Published, Refused, Shared};
