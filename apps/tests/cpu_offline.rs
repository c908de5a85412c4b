//! A worker on a CPU that is offline (root). In a file of its own: no other test runs beside it, whose CPU it could be.
#![allow(clippy::unwrap_used)]

mod common;

use common::{error_lines, l2fwd, run_within};
use percpu::Topology;
use std::time::Duration;

/// Puts a CPU back on line, whatever happens.
struct Offline(String);

impl Drop for Offline {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.0, "1");
    }
}

#[test]
fn namespace_a_cpu_that_is_offline_is_named() {
    const TEST: &str = "namespace_a_cpu_that_is_offline_is_named";
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {TEST}: needs root to take a CPU off line");
        return;
    }
    let online = Topology::read().unwrap().online;
    let Some(cpu) = online.iter().last().filter(|cpu| *cpu != 0) else {
        eprintln!("SKIPPED {TEST}: needs a second CPU");
        return;
    };
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    let back = Offline(path.clone());
    if std::fs::write(&path, "0").is_err() {
        eprintln!("SKIPPED {TEST}: this machine lets no CPU go offline");
        return;
    }
    let cpu = cpu.to_string();
    let args = ["--port", "mem:null", "--port", "mem:null", "--workers", &cpu, "--duration", "1"];
    let output = run_within(&mut l2fwd(&args), Duration::from_secs(10));
    let lines = error_lines(&output);
    assert_eq!((output.status.code(), lines.len()), (Some(2), 1), "{lines:?}");
    for word in [&*format!("CPU {cpu} is offline"), "echo 1 >", "/online"] {
        assert!(lines[0].contains(word), "{word}: {lines:?}");
    }
    drop(back);
}
