//! Changing what can be changed while the machine runs, so that it can be put back whatever happens.
//!
//! All is read first, and each value that is to change is written to the state file, old and new, before the first one does. A crash leaves that file: `restore` finds
//! each value old, changed by us, or changed by somebody else since, and does nothing, puts the old one back, or leaves it alone and
//! says so. Nothing is put back by halves: the bytes that the kernel shows must be those of before.
#![forbid(unsafe_code)]

mod change;
mod partition;
mod restore;
mod stages;
mod state;

pub use change::{Change, Undone};
pub use restore::{Restored, restore};
pub use stages::{Options, STAGES, Stage};
pub use state::StateFile;

use super::{Host, HostError, workers};
use percpu::CpuList;
use stages::Target;
use state::State;

/// What was not changed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The stage.
    pub stage: String,
    /// What it is about: a file, mostly.
    pub what: String,
    /// Why, in words.
    pub why: String,
}

/// What would be changed.
#[derive(Debug)]
pub struct Plan {
    cpus: CpuList,
    /// The changes, in the order in which they are made.
    pub changes: Vec<Change>,
    /// What cannot be changed.
    pub notes: Vec<Note>,
}

/// What was changed.
#[derive(Debug)]
pub struct Outcome {
    /// What was.
    pub changes: Vec<Change>,
    /// What was not, and why.
    pub notes: Vec<Note>,
}

/// Checks all stages: what they would change for workers on these CPUs. Changes nothing, and needs no privilege.
pub fn plan(host: &Host, cpus: &CpuList, options: Options) -> Result<Plan, HostError> {
    let housekeeping = workers::to_prepare(host, cpus)?;
    let tickless = super::conditions::tickless(host)?;
    let target = Target { cpus, housekeeping: &housekeeping, tickless: tickless.as_ref(), options };
    let mut plan = Plan { cpus: cpus.clone(), changes: Vec::new(), notes: Vec::new() };
    for stage in STAGES {
        stage.check(host, &target, &mut plan.changes, &mut plan.notes);
    }
    Ok(plan)
}

/// Makes the plan's changes, and leaves their old values in `file`. What the kernel refuses is in the outcome, and no error.
pub fn prepare(host: &Host, plan: Plan, file: &StateFile) -> Result<Outcome, HostError> {
    need_root(host, "prepare", "; --dry-run shows the changes without")?;
    let _lock = file.lock(true)?;
    if let Some(state) = file.load()? {
        if state.is_of_this_boot(host) {
            return Err(file.prepared(&state.cpus));
        }
        // Nothing of it is left.
        file.remove()?;
    }
    let Plan { cpus, changes, mut notes } = plan;
    if changes.is_empty() {
        return Ok(Outcome { changes, notes });
    }
    let mut state = State::new(host, &cpus, changes);
    file.save(&state)?;
    state.changes.retain_mut(|change| match change.apply(host) {
        Ok(()) => true,
        Err(why) => {
            notes.push(Note { stage: change.stage.clone(), what: change.what(), why });
            false
        }
    });
    if state.changes.is_empty() {
        file.remove()?;
    } else if let Err(error) = file.save(&state) {
        // The first one has all that it takes.
        notes.push(Note {
            stage: "state".into(),
            what: "how the kernel shows it".into(),
            why: error.to_string(),
        });
    }
    Ok(Outcome { changes: state.changes, notes })
}

fn need_root(host: &Host, command: &'static str, hint: &'static str) -> Result<(), HostError> {
    // The effective one is the second.
    let is_root = host.own_status("Uid")?.split_whitespace().nth(1) == Some("0");
    if is_root { Ok(()) } else { Err(HostError::NotRoot { command, hint }) }
}

/// Ends after so many changes, as a crash would.
#[cfg(test)]
pub(super) fn interrupted(host: &Host, plan: Plan, file: &StateFile, after: usize) {
    let mut state = State::new(host, &plan.cpus, plan.changes);
    file.save(&state).unwrap();
    state.changes.iter_mut().take(after).for_each(|change| change.apply(host).unwrap());
}
