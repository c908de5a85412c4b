//! Tables that many threads read without a lock, and one replaces while they read: quiescent-state based reclamation (QSBR).
//!
//! A reading thread goes round a loop. While it is within a turn it may hold references into tables; between two turns it holds none, and says so
//! by one store to a line of its own: a quiescent state. Whoever replaces a table keeps the old one until each thread that was within a
//! turn has had a quiescent state. So a lookup costs a plain load of a pointer, and a table is whole or not to be seen.
//!
//! What a [`Reader`] gives out is borrowed from it, and a quiescent state needs it exclusively: no reference outlives its turn.
//!
//! ```
//! use percpu::qsbr::{Domain, Published};
//! use std::time::Duration;
//!
//! let domain = Domain::new();
//! let published = Published::new(&domain, vec![1, 2, 3]);
//! let (table, mut reader) = (published.shared(), domain.reader(0));
//! reader.begin();
//! assert_eq!(table.get(&reader)[0], 1);
//! published.publish(vec![4, 5, 6], Duration::ZERO)?;
//! assert_eq!(table.get(&reader)[0], 4);
//! assert_eq!(published.collect(), 1, "the old one waits for the reader");
//! reader.quiescent();
//! assert_eq!(published.collect(), 0);
//! # Ok::<(), percpu::qsbr::Refused<Vec<i32>>>(())
//! ```
//!
//! To keep a reference for longer does not compile:
//!
//! ```compile_fail,E0502
//! # use percpu::qsbr::{Domain, Published};
//! # let domain = Domain::new();
//! # let published = Published::new(&domain, vec![1, 2, 3]);
//! # let (table, mut reader) = (published.shared(), domain.reader(0));
//! reader.begin();
//! let first = table.get(&reader);
//! reader.quiescent();
//! println!("{first:?}");
//! ```
//!
//! A thread that stays within a turn keeps old tables from being freed. That is bounded: a table has [`MOST_RETIRED`] old ones at the most, then no
//! new one is taken, and [`Refused`] names the thread.
//!
//! M. Desnoyers et al., "User-Level Implementations of Read-Copy Update", IEEE TPDS 2012, section 3 (QSBR); DPDK's `rte_rcu_qsbr` is of the same kind.

mod domain;
mod published;

pub use domain::{Domain, Held, Reader};
pub use published::{MOST_RETIRED, Published, Refused, Shared};
