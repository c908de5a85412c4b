//! The devices of one IOMMU group that are open.
//!
//! While one of them is, the kernel gives none of its group to another driver. So a group stays open until the last of its devices is closed, and
//! only then the bindings of all of them are undone.
#![forbid(unsafe_code)]

use super::pci::bind::Binding;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What undoes a binding when it is dropped.
type Undo = Box<dyn Send + Sync>;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open group. Its fields go in this order.
pub(super) struct Group {
    /// `/dev/vfio/N`; iommufd does without.
    pub(super) file: Option<File>,
    /// Those of its devices that are closed already.
    undo: Mutex<Vec<Undo>>,
}

/// The open groups of one address space, by number.
#[derive(Default)]
pub(super) struct Groups(Mutex<Vec<(u32, Weak<Group>)>>);

impl Groups {
    /// True where none is open.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).iter().all(|(_, group)| group.strong_count() == 0)
    }

    /// The group of this number, opened by `open` where it is not open yet.
    pub(super) fn get<E>(
        &self,
        number: u32,
        open: impl FnOnce() -> Result<Option<File>, E>,
    ) -> Result<Arc<Group>, E> {
        let mut groups = lock(&self.0);
        groups.retain(|(_, group)| group.strong_count() > 0);
        let known = groups.iter().find(|(known, _)| *known == number);
        if let Some(group) = known.and_then(|(_, group)| group.upgrade()) {
            return Ok(group);
        }
        let group = Arc::new(Group { file: open()?, undo: Mutex::default() });
        groups.push((number, Arc::downgrade(&group)));
        Ok(group)
    }
}

/// Keeps a group open for one of its devices, and has the device's binding undone when the group is closed. To be dropped when the device is closed.
pub(super) struct Membership {
    pub(super) group: Arc<Group>,
    undo: Option<Undo>,
}

impl Membership {
    pub(super) fn new(group: Arc<Group>, binding: Binding) -> Self {
        Self { group, undo: Some(Box::new(binding)) }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        lock(&self.group.undo).extend(self.undo.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn bindings_are_undone_when_the_last_device_of_the_group_is_closed() {
        let (groups, undone) = (Groups::default(), Arc::new(AtomicUsize::new(0)));
        let member = |number| {
            let group = groups.get(number, || Ok::<_, ()>(None)).unwrap();
            Membership { group, undo: Some(Box::new(Counted(Arc::clone(&undone)))) }
        };
        let [first, second, other] = [member(1), member(1), member(2)];
        assert!(Arc::ptr_eq(&first.group, &second.group) && !Arc::ptr_eq(&first.group, &other.group));
        let count = || undone.load(Ordering::Relaxed);
        drop(first);
        assert_eq!(count(), 0);
        drop(other);
        assert_eq!(count(), 1);
        drop(second);
        assert_eq!((count(), groups.is_empty()), (3, true));
        // What cannot be opened is not remembered.
        assert_eq!(groups.get(1, || Err(7)).err(), Some(7));
        assert!(groups.is_empty());
    }
}
