//! Whose registration the critical sections run on: the C library's, our own, or nobody's.
//!
//! A thread has one area at most. glibc registers one for each thread from 2.35 on; where it does not (an older one, musl, a
//! tunable) each thread registers its own when it first comes here, and takes it back when it ends. Where there is no
//! rseq at all, every structure of this crate works on plain atomics.
#![forbid(unsafe_code)]

use super::abi::{self, Area};
use super::{sys, thread};
use crate::membarrier;
use std::fmt;
use std::sync::OnceLock;

/// What this process stands on. The environment variable `ISOPLANE_RSEQ` (`auto`, `glibc`, `own`, `off`) can force one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registration {
    /// The C library has registered its threads.
    Glibc,
    /// Each thread registers itself when it first uses per-CPU data.
    Own,
    /// No critical sections: per-CPU data is claimed by atomics.
    Off {
        /// Why, in words.
        why: String,
    },
}

impl fmt::Display for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Glibc => f.write_str("rseq, registered by the C library"),
            Self::Own => f.write_str("rseq, registered by each thread itself"),
            Self::Off { why } => write!(f, "atomics, without rseq: {why}"),
        }
    }
}

static CHOSEN: OnceLock<Registration> = OnceLock::new();

/// What this process stands on: found out once, and the same from then on.
pub fn registration() -> &'static Registration {
    CHOSEN.get_or_init(|| choose(std::env::var("ISOPLANE_RSEQ").ok().as_deref()))
}

fn choose(wish: Option<&str>) -> Registration {
    let off = |why: &str| Registration::Off { why: why.into() };
    let glibc_has = || sys::of_the_c_library().is_some();
    let found = match wish.unwrap_or("auto") {
        "off" => return off("ISOPLANE_RSEQ=off asks for it"),
        _ if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) => {
            return off("there are critical sections for x86-64 Linux only");
        }
        "glibc" if glibc_has() => Registration::Glibc,
        "glibc" => {
            return off("ISOPLANE_RSEQ=glibc, but this C library has registered none: use auto or own");
        }
        "own" if glibc_has() => {
            return off(
                "ISOPLANE_RSEQ=own, but the C library was first: start with GLIBC_TUNABLES=glibc.pthread.rseq=0",
            );
        }
        "auto" if glibc_has() => Registration::Glibc,
        "own" | "auto" => match thread::try_own() {
            Ok(()) => Registration::Own,
            Err(error) => return off(&format!("the kernel registers none ({error})")),
        },
        other => return off(&format!("ISOPLANE_RSEQ={other} is unknown: choose auto, glibc, own or off")),
    };
    match membarrier::register() {
        Ok(()) => found,
        Err(error) => off(&format!(
            "the kernel cannot stop another CPU's critical sections, which takes Linux 5.10 (membarrier: {error})"
        )),
    }
}

/// True where threads have concurrency ids (`mm_cid`, Linux 6.3).
pub fn has_concurrency_ids() -> bool {
    !matches!(registration(), Registration::Off { .. }) && sys::feature_size() >= abi::MM_CID_END
}

/// The calling thread's area, where it can have one; a cold path.
pub(super) fn find_area() -> Option<*const Area> {
    match registration() {
        Registration::Glibc => sys::of_the_c_library(),
        Registration::Own => thread::own(),
        Registration::Off { .. } => None,
    }
}
