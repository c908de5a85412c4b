//! An error for the one who would change a pinned thread's affinity: the last answer of the `pin_on_cpu` discussion.
//!
//! A BPF program on the kernel's security hook `task_setscheduler` says EPERM when another process wants to change the affinity of a thread
//! that asked for protection. The thread's own process may: it knows what it does. Everything is gone when the [`Veto`] is,
//! or the process, by whatever end.
//!
//! # What it takes
//! Linux 5.7 with CONFIG_BPF_LSM, `bpf` among the security modules of the kernel's command line (`lsm=...,bpf`), CAP_BPF and CAP_PERFMON (or root), and
//! the initial PID namespace, since the kernel knows threads by the numbers they have there.
//!
//! # What it covers, and what not
//! - `sched_setaffinity(2)`, by root too; and since they share the hook, changes of policy and priority (`chrt`).
//! - Moving the thread to another cgroup of cpusets: the kernel asks the hook.
//! - Not a write to `cpuset.cpus` of the cgroup the thread is in, and not CPU hot-unplug: the kernel asks nobody.
//!   [`Pinned::check`](crate::Pinned::check) and [`Watch`](crate::pin::Watch) see these.
#![forbid(unsafe_code)]

use crate::bpf::instruction::{Arithmetic, AssembleError, Condition, Helper, Size};
use crate::bpf::{
    Assembler, BPF_LSM_MAC, Btf, BtfError, Instruction, LoadError, Map, MapSpec, MapType, Program,
    ProgramSpec, ProgramType, Register, attach_hook, btf,
};
use crate::sys;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use thiserror::Error;

/// Threads that can be protected at a time.
const MAX_THREADS: u32 = 1024;
/// The function that the hook's programs are attached to.
const HOOK: &str = "bpf_lsm_task_setscheduler";
/// Where the kernel tells its security modules.
const LSM_LIST: &str = "/sys/kernel/security/lsm";
/// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`.
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Why affinity cannot be protected.
#[derive(Debug, Error)]
pub enum VetoError {
    /// No type information, so no hook could be found.
    #[error("cannot forbid changes of affinity: {0}")]
    Btf(#[from] BtfError),
    /// The kernel was built without.
    #[error(
        "cannot forbid changes of affinity: this kernel has no BPF LSM: it takes one with CONFIG_BPF_LSM=y, started with \"lsm={lsms},bpf\" on its command line"
    )]
    NotBuilt {
        /// The security modules there are.
        lsms: String,
    },
    /// It has the hook, and does not call it.
    #[error(
        "cannot forbid changes of affinity: bpf is not among the security modules this kernel runs: start it with \"lsm={lsms},bpf\" on its command line"
    )]
    NotEnabled {
        /// The security modules there are.
        lsms: String,
    },
    /// Not root.
    #[error(
        "cannot forbid changes of affinity: {what}: {source}: run as root, or \"setcap cap_bpf,cap_perfmon+ep PROGRAM\""
    )]
    Privilege {
        /// What was refused.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Root, and refused all the same: a sandbox, or a kernel that is locked down.
    #[error(
        "cannot forbid changes of affinity: {what}: {source}, though run as root: it takes a kernel that is started with \"lsm={lsms},bpf\" and lets root load BPF LSM programs"
    )]
    Forbidden {
        /// What was refused.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
        /// The security modules there are.
        lsms: String,
    },
    /// The kernel's thread numbers are not known here.
    #[error(
        "cannot forbid changes of affinity from within a PID namespace: run in the host's (by docker: --pid=host)"
    )]
    PidNamespace,
    /// All places are taken.
    #[error("cannot forbid changes of affinity of more than {MAX_THREADS} threads")]
    Full,
    /// The verifier refused.
    #[error("cannot forbid changes of affinity: {0}")]
    Load(#[from] LoadError),
    /// A mistake in the program.
    #[error("cannot forbid changes of affinity: {0}")]
    Assemble(#[from] AssembleError),
    /// The kernel refused for another reason.
    #[error("cannot forbid changes of affinity: {what}: {source}")]
    Refused {
        /// What was refused.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Where in a map entry the numbers are, each a `u32`: the process that may, how often it did, how often others were refused.
const OWNER: i16 = 0;
const ALLOWED: i16 = 4;
const REFUSED: i16 = 8;
const ENTRY_BYTES: u32 = 12;

/// `int task_setscheduler(struct task_struct *p)`: 0 lets it pass.
///
/// ```c
/// struct entry *entry = map_lookup(&threads, &p->pid);
/// if (!entry) return 0;
/// if (current->tgid == entry->owner) { entry->allowed++; return 0; }
/// entry->refused++; return -EPERM;
/// ```
fn instructions(threads: &impl AsFd, pid_offset: i16) -> Result<Vec<Instruction>, AssembleError> {
    use Register::{R0, R1, R2, R3, R6, R7, R10};
    let mut program = Assembler::new();
    let (refuse, pass) = (program.label(), program.label());
    program
        // The context is the array of the hook's arguments.
        .load(Size::Double, R6, R1, 0)
        .load(Size::Word, R2, R6, pid_offset)
        .store(Size::Word, R10, -4, R2)
        .load_map(R1, threads)
        .move_register(R2, R10)
        .constant(Arithmetic::Add, R2, -4)
        .call(Helper::MapLookup)
        .jump_if(R0, Condition::Equal, 0, pass)
        .move_register(R6, R0)
        .load(Size::Word, R7, R6, OWNER)
        .call(Helper::GetCurrentPidTgid)
        .constant(Arithmetic::ShiftRight, R0, 32)
        .move_constant(R3, 1)
        .jump_if_register(R0, Condition::NotEqual, R7, refuse)
        .atomic_add(Size::Word, R6, ALLOWED, R3)
        .place(pass)
        .move_constant(R0, 0)
        .exit()
        .place(refuse)
        .atomic_add(Size::Word, R6, REFUSED, R3)
        .move_constant(R0, -libc::EPERM)
        .exit()
        .finish()
}

/// The program on its hook, and the threads it protects. A clone is the same one.
#[derive(Clone, Debug)]
pub struct Veto(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    threads: Map,
    _program: Program,
    /// The program is off the hook when this is closed.
    _link: OwnedFd,
}

/// The security modules other than BPF; "..." where they cannot be read (securityfs is not mounted).
fn lsms() -> String {
    let text = fs::read_to_string(LSM_LIST).unwrap_or_default();
    let others: Vec<&str> = text.trim().split(',').filter(|name| !["", "bpf"].contains(name)).collect();
    if others.is_empty() { "...".into() } else { others.join(",") }
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> VetoError {
    move |source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if nix::unistd::geteuid().is_root() => {
            VetoError::Forbidden { what, source, lsms: lsms() }
        }
        Some(libc::EPERM | libc::EACCES) => VetoError::Privilege { what, source },
        _ => VetoError::Refused { what, source },
    }
}

impl Veto {
    /// Loads the program and makes sure that the kernel calls it. Protects no thread yet.
    pub fn load() -> Result<Self, VetoError> {
        let namespace =
            fs::metadata("/proc/self/ns/pid").map_err(refused("cannot tell the PID namespace"))?;
        if namespace.ino() != INITIAL_PID_NAMESPACE {
            return Err(VetoError::PidNamespace);
        }
        let types = Btf::of_kernel()?;
        let hook =
            types.find(btf::Kind::Function, HOOK).ok_or_else(|| VetoError::NotBuilt { lsms: lsms() })?;
        let pid = types.member_offset("task_struct", "pid").and_then(|offset| i16::try_from(offset).ok());
        let pid = pid.ok_or(BtfError::Malformed { at: 0, what: "task_struct has no pid" })?;
        let threads = Map::create(&MapSpec {
            map_type: MapType::Hash,
            name: "isoplane_pinned",
            key_size: 4,
            value_size: ENTRY_BYTES,
            max_entries: MAX_THREADS,
        });
        let threads = threads.map_err(refused("no BPF map"))?;
        let spec = ProgramSpec {
            program_type: ProgramType::Lsm,
            name: "isoplane_veto",
            flags: 0,
            attach_type: BPF_LSM_MAC,
            attach_btf_id: hook,
        };
        let program = Program::load(&spec, &instructions(&threads, pid)?).map_err(|error| {
            // Without a word of the verifier it was not even read.
            if error.verifier.is_empty() { refused("no BPF program")(error.source) } else { error.into() }
        })?;
        let link = attach_hook(&program).map_err(refused("no BPF program on the hook"))?;
        let veto = Self(Arc::new(Loaded { threads, _program: program, _link: link }));
        veto.prove()?;
        Ok(veto)
    }

    /// A kernel whose BPF LSM is built but not enabled attaches the program, and never calls it: sets this thread's own affinity as it is,
    /// and sees whether the program counted.
    fn prove(&self) -> Result<(), VetoError> {
        let proof = self.protect(nix::unistd::gettid().as_raw())?;
        let what = "cannot set this thread's own affinity";
        let refused = |source| VetoError::Refused { what, source };
        let mask = sys::get_affinity().map_err(refused)?;
        sys::set_affinity(&mask).map_err(refused)?;
        if proof.number(ALLOWED) > 0 { Ok(()) } else { Err(VetoError::NotEnabled { lsms: lsms() }) }
    }

    /// Protects a thread of this process until the guard is dropped.
    pub(crate) fn protect(&self, tid: i32) -> Result<Protection, VetoError> {
        let mut entry = [0; ENTRY_BYTES as usize];
        entry[..4].copy_from_slice(&std::process::id().to_ne_bytes());
        self.0.threads.update(&tid.to_ne_bytes(), &entry).map_err(|source| match source.raw_os_error() {
            Some(libc::E2BIG) => VetoError::Full,
            _ => VetoError::Refused { what: "no entry in the BPF map", source },
        })?;
        Ok(Protection { veto: self.clone(), tid })
    }
}

/// One thread's protection.
#[derive(Debug)]
pub(crate) struct Protection {
    veto: Veto,
    tid: i32,
}

impl Protection {
    fn number(&self, at: i16) -> u32 {
        let mut entry = [0; ENTRY_BYTES as usize];
        match self.veto.0.threads.lookup(&self.tid.to_ne_bytes(), &mut entry) {
            Ok(true) => {
                let at = at as usize;
                u32::from_ne_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
            }
            _ => 0,
        }
    }

    pub(crate) fn is_by(&self, veto: &Veto) -> bool {
        Arc::ptr_eq(&self.veto.0, &veto.0)
    }

    /// How often somebody else was refused.
    pub(crate) fn refused(&self) -> u64 {
        self.number(REFUSED).into()
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        // The number may be another thread's soon. Fails only where it is gone already.
        let _ = self.veto.0.threads.delete(&self.tid.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_one_line_with_the_way_out() {
        let lsms = "lockdown,yama".to_owned();
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        let errors = [
            (VetoError::NotEnabled { lsms: lsms.clone() }, "\"lsm=lockdown,yama,bpf\""),
            (VetoError::NotBuilt { lsms }, "CONFIG_BPF_LSM=y"),
            (VetoError::Privilege { what: "no BPF map", source: denied() }, "setcap cap_bpf,cap_perfmon+ep"),
            (
                VetoError::Forbidden { what: "no BPF map", source: denied(), lsms: "yama".into() },
                "\"lsm=yama,bpf\"",
            ),
            (VetoError::PidNamespace, "--pid=host"),
        ];
        for (error, words) in errors {
            let text = error.to_string();
            assert!(text.contains(words) && !text.contains('\n'), "{text}");
        }
    }

    /// Two paths end with 0, one with -EPERM, and no jump leaves the program.
    #[test]
    fn the_program_passes_or_refuses_and_nothing_else() {
        let file = fs::File::open("/dev/null").unwrap();
        let code = instructions(&file, 1000).unwrap();
        let exits: Vec<i32> =
            (1..code.len()).filter(|&at| code[at].code == 0x95).map(|at| code[at - 1].immediate).collect();
        assert_eq!(exits, [0, -libc::EPERM]);
        assert_eq!(code[1].offset, 1000);
    }
}
