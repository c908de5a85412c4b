//! Builds programs for the guest, which has no C library of its own: they bring theirs.
#![forbid(unsafe_code)]

use super::VmError;
use super::kit::{target, workspace};
use serde_json::Value;
use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What the guest runs. The target is named so that the flag below reaches no build script and no procedural macro.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the binary `program` of crate `package` with everything linked in, and says where it is. It costs what has changed since the
/// last time.
pub fn build_static(package: &str, program: &str) -> Result<PathBuf, VmError> {
    build(package, program, &["build", "--bin"])
}

/// The same for `tests/NAME.rs` of a crate.
pub fn build_static_test(package: &str, name: &str) -> Result<PathBuf, VmError> {
    build(package, name, &["test", "--no-run", "--test"])
}

/// The same for the unit tests of a crate's library. Those that are for a guest are ignored elsewhere.
pub fn build_static_unit_tests(package: &str) -> Result<PathBuf, VmError> {
    build(package, package, &["test", "--no-run", "--lib"])
}

fn build(package: &str, program: &str, what: &[&str]) -> Result<PathBuf, VmError> {
    let named = if what.contains(&"--lib") { &[][..] } else { &[program] };
    let failed = |why: String| VmError::Build { program: program.to_owned(), why };
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace())
        .args(what)
        .args(named)
        .args(["--locked", "--message-format=json-render-diagnostics"])
        .args(["--target", TARGET, "--package", package])
        .env("CARGO_TARGET_DIR", target())
        // It would take precedence.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // The guest has nobody who would read debug information, and its memory holds the file twice while it boots.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_STRIP", "debuginfo")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("cannot start cargo: {error}")))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == program)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| failed("cargo named no executable".to_owned()))
}
