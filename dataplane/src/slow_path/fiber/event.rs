//! What fibers wait for.
#![forbid(unsafe_code)]

use super::super::thread::Unstopped;
use super::host::Host;
use std::fmt;
use std::sync::Arc;

/// Something that fibers of one class wait for, and any thread signals: a count of signals that have not been waited for. Clones are the same event.
#[derive(Clone)]
pub struct Event(Arc<Held>);

/// The last one gives the number back.
struct Held {
    host: Arc<Host>,
    index: u32,
}

impl Event {
    pub(super) fn new(host: &Arc<Host>, index: u32) -> Self {
        Self(Arc::new(Held { host: Arc::clone(host), index }))
    }

    /// Its number, where it is this host's.
    pub(super) fn index_at(&self, host: &Arc<Host>) -> Option<u32> {
        Arc::ptr_eq(&self.0.host, host).then_some(self.0.index)
    }

    /// Wakes one fiber that waits, or the next that will. Of use to workers too: it never waits, locks, allocates or makes a system call.
    pub fn signal(&self) {
        // Stopped halfway, it would hold this event's other signals up.
        let _unstopped = Unstopped::begin();
        self.0.host.marks.set(self.0.index);
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({})", self.0.index)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _unstopped = Unstopped::begin();
        self.host.give_event_back(self.index);
    }
}
