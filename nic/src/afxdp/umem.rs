//! One UMEM for all ports that use a pool, so that a packet moves between them by its address alone.
//!
//! The first socket registers the pool's memory, later ones share it through that socket's descriptor. The kernel makes
//! all sharers of a UMEM alike in zero-copy and multi-buffer; a port that must differ registers the same memory once
//! more. The addresses are the same in each registration, so even then nothing is copied between ports.
#![forbid(unsafe_code)]

use super::socket::Socket;
use crate::memory::Pool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What all sharers of a registration have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// The pool's number.
    pub(super) pool: u32,
    /// Zero-copy.
    pub(super) zero_copy: bool,
    /// Packets in several frames.
    pub(super) multi_buffer: bool,
}

impl Kind {
    pub(super) fn new(pool: &Pool, zero_copy: bool, multi_buffer: bool) -> Self {
        Self { pool: pool.number(), zero_copy, multi_buffer }
    }
}

/// The sockets that are open. They keep their pool, so a number stands for one pool as long as its sockets live.
static SOCKETS: Mutex<Vec<(Kind, Weak<Socket>)>> = Mutex::new(Vec::new());

/// The registry, locked: held while a socket registers or joins, so that two do not both register.
pub(super) struct Registry(MutexGuard<'static, Vec<(Kind, Weak<Socket>)>>);

impl Registry {
    pub(super) fn lock() -> Self {
        let mut sockets = SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|(_, socket)| socket.strong_count() > 0);
        Self(sockets)
    }

    /// A socket of this kind whose UMEM can be shared. One whose interface has gone cannot: it is bound to nothing.
    pub(super) fn sharer(&self, kind: Kind) -> Option<Arc<Socket>> {
        self.0
            .iter()
            .filter(|(known, _)| *known == kind)
            .filter_map(|(_, socket)| socket.upgrade())
            .find(|socket| socket.is_bound())
    }

    /// Adds a socket that is bound.
    pub(super) fn add(&mut self, kind: Kind, socket: &Arc<Socket>) {
        self.0.push((kind, Arc::downgrade(socket)));
    }
}
