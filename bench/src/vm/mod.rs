//! A guest for tests: what a test must not do to the machine it runs on (take a CPU off line, break the kernel), and what that
//! machine's kernel lacks, runs under QEMU on a packaged Debian kernel.
//!
//! `bench/vm/fetch.sh` puts QEMU, the kernel and busybox into `target/vm` once. A [`Guest`] boots with an initramfs made on the
//! spot, runs commands (programs, or lines of shell), and gives back what they printed, [`CheckResult`]s among it. It boots in 4 to
//! 9 s, so one boot runs many checks. QEMU interprets the guest's instructions, and its host may be busy: nothing measured in here
//! says anything about speed.
//!
//! A guest may have NICs ([`Guest::nic`]) whose wires lead to the test, which then talks with it while it runs ([`Guest::converse`]): it has a
//! forwarder started, sends frames into one NIC and receives them from another ([`Wire`]), and has it stopped.
//!
//! ```no_run
//! # fn main() -> Result<(), bench::vm::VmError> {
//! let kit = bench::vm::Kit::find()?;
//! let report = bench::vm::Guest::new("hello").cpus(2).run("echo RESULT hello ok").boot(&kit)?;
//! assert_eq!(report.results[0].name, "hello");
//! # Ok(())
//! # }
//! ```

mod cpio;
mod error;
mod guest;
mod kit;
mod libraries;
mod module;
mod nic;
mod program;
mod report;
mod session;
mod sys;
mod tap;
mod wire;

pub use error::VmError;
pub use guest::Guest;
pub use kit::Kit;
pub use program::{build, build_static, build_test, build_unit_tests};
pub use report::{CheckResult, Outcome, Report};
pub use session::Session;
pub use wire::{Tallies, Tally, Traffic, Wire};
