//! Putting back what prepare changed.
#![forbid(unsafe_code)]

use super::super::{Host, HostError};
use super::change::{Change, Undone};
use super::state::StateFile;

/// What became of all that prepare had changed.
#[derive(Debug, Default)]
pub struct Restored {
    /// Each change and what became of it, in the order in which they were undone; empty where nothing was prepared.
    pub changes: Vec<(Change, Undone)>,
    /// The machine was booted since, which put everything back.
    pub rebooted: bool,
}

impl Restored {
    /// What could not be put back. The state file keeps it.
    pub fn left(&self) -> impl Iterator<Item = &(Change, Undone)> {
        self.changes.iter().filter(|(_, undone)| !undone.is_done())
    }
}

/// Puts back every old value that `file` has. A value that somebody else has changed since is left alone, unless `force` is
/// given. What is not put back stays in the file; when nothing is left, the file goes. Without a file there is nothing to do.
pub fn restore(host: &Host, file: &StateFile, force: bool) -> Result<Restored, HostError> {
    super::need_root(host, "restore", "")?;
    if !file.may_exist() {
        return Ok(Restored::default());
    }
    let _lock = file.lock(false)?;
    let Some(mut state) = file.load()? else {
        // What a run left that was killed before it changed anything.
        file.remove()?;
        return Ok(Restored::default());
    };
    if !state.is_of_this_boot(host) {
        file.remove()?;
        return Ok(Restored { changes: Vec::new(), rebooted: true });
    }
    let undo = |change: &Change| {
        let undone = change.undo(host, force);
        (change.clone(), undone)
    };
    let restored = Restored { changes: state.changes.iter().rev().map(undo).collect(), rebooted: false };
    // As they were: the order of undoing is the reverse of it.
    state.changes = restored.left().map(|(change, _)| change.clone()).collect();
    state.changes.reverse();
    if state.changes.is_empty() {
        file.remove()?
    } else {
        file.save(&state)?
    }
    Ok(restored)
}
