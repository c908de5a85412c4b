//! Why a thread cannot be isolated, in words. Strict isolation refuses; soft isolation says the same and goes on.
#![forbid(unsafe_code)]

use super::traps::TrapError;
use percpu::CpuList;
use std::io;
use thiserror::Error;

/// One reason, with the way out.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The kernel keeps its tick on this CPU.
    #[error(
        "CPU {cpu} keeps its timer tick: boot a kernel with CONFIG_NO_HZ_FULL with \"{}\" (nohz_full now: {nohz_full}), or use --isolation soft",
        crate::KernelIsolation::boot_words(cpu)
    )]
    Ticks {
        /// The CPU.
        cpu: usize,
        /// The CPUs that could be tickless.
        nohz_full: String,
    },
    /// The tick could stop, and did not.
    #[error(
        "the timer tick of CPU {cpu} has not stopped within {waited_ms} ms ({interrupts} timer interrupts in the last {window_ms}): something else wants that CPU; \"isoplane check --cpus {cpu}\" says what, --isolation soft goes on"
    )]
    StillTicks {
        /// The CPU.
        cpu: usize,
        /// How long it was waited for.
        waited_ms: u64,
        /// Timer interrupts at the end of that time.
        interrupts: u64,
        /// Over this long.
        window_ms: u64,
    },
    /// The thread may run elsewhere.
    #[error("the thread is not pinned to CPU {cpu} (its mask is {mask}): pin it first")]
    NotPinned {
        /// The CPU.
        cpu: usize,
        /// Its affinity mask.
        mask: CpuList,
    },
    /// Memory could not be locked.
    #[error(
        "cannot lock {bytes} bytes of memory ({source}): raise the limit (ulimit -l unlimited, LimitMEMLOCK=infinity) or give CAP_IPC_LOCK, or use --isolation soft"
    )]
    Memory {
        /// How many.
        bytes: u64,
        /// What the kernel answered.
        source: io::Error,
    },
    /// No Syscall User Dispatch.
    #[error(
        "the kernel does not trap system calls ({0}): it takes Syscall User Dispatch (Linux 5.11, x86-64), or leave \"syscalls\" out of --signal"
    )]
    Dispatch(#[source] io::Error),
    /// No perf events.
    #[error(transparent)]
    Traps(#[from] TrapError),
    /// The thread is isolated already.
    #[error("this thread is isolated already: one guard at a time")]
    Nested,
    /// Something else that the kernel did not give.
    #[error("cannot {what}: {source}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// What a refusal proposes, and what has been done where it is a shortcoming.
const GO_ON_WITHOUT: [&str; 2] = [", or use --isolation soft", ", --isolation soft goes on"];

impl Refusal {
    /// The same words where the thread is isolated without: those that propose just that are left out.
    pub fn as_shortcoming(&self) -> String {
        GO_ON_WITHOUT.iter().fold(self.to_string(), |text, words| text.replace(words, ""))
    }

    /// Whether the thread can be isolated all the same, though less well.
    pub(super) fn is_soft(&self) -> bool {
        matches!(self, Self::Ticks { .. } | Self::StillTicks { .. } | Self::Memory { .. } | Self::Traps(_))
    }

    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
