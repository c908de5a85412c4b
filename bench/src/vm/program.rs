//! Builds programs for the guest.
//!
//! Most are those that the tests on the host run, without their debug information: [`Guest::file`](super::Guest::file) brings the libraries
//! that they name. A static program takes a build of its own of all that is below it: for checks that are about such a program.
#![forbid(unsafe_code)]

use super::VmError;
use super::kit::{target, workspace};
use serde_json::Value;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The static program's target. It is named so that the flag below reaches no build script and no procedural macro.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// cargo chooses the features of a crate by all that it builds at a time. This is what `cargo test` at the root chooses: those of the
/// whole workspace, and of development dependencies, which an example takes. So what that has built is not built again.
const AS_TESTED: [&str; 3] = ["--workspace", "--example", "requests"];

/// Builds the binary `program` of the workspace, and says where a copy without debug information is. It costs what has changed since the
/// tests were built.
pub fn build(program: &str) -> Result<PathBuf, VmError> {
    let mut cargo = cargo("build");
    without_debug_information(program, &built(program, cargo.args(["--bin", program]).args(AS_TESTED))?)
}

/// The same for `tests/NAME.rs`, of whichever crate has it.
pub fn build_test(name: &str) -> Result<PathBuf, VmError> {
    let mut cargo = cargo("test");
    without_debug_information(name, &built(name, cargo.args(["--no-run", "--workspace", "--test", name]))?)
}

/// The same for the unit tests of a crate's library; those that are for a guest are ignored elsewhere.
pub fn build_unit_tests(package: &str) -> Result<PathBuf, VmError> {
    let mut cargo = cargo("test");
    without_debug_information(package, &built(package, cargo.args(["--no-run", "--workspace", "--lib"]))?)
}

/// Builds the binary `program` of crate `package` with everything linked in, and says where it is. It costs what has changed since the
/// last time.
pub fn build_static(package: &str, program: &str) -> Result<PathBuf, VmError> {
    let mut cargo = cargo("build");
    cargo
        .args(["--bin", program, "--target", TARGET, "--package", package])
        // It would take precedence.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_STRIP", "debuginfo");
    built(program, &mut cargo)
}

fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace())
        .args([command, "--locked", "--message-format=json-render-diagnostics"])
        .env("CARGO_TARGET_DIR", target())
        .stdin(Stdio::null());
    cargo
}

/// Runs cargo, and says where it has put the program or the test of this name.
fn built(name: &str, cargo: &mut Command) -> Result<PathBuf, VmError> {
    let failed = |why: String| VmError::Build { program: name.to_owned(), why };
    let output = cargo.output().map_err(|error| failed(format!("cannot start cargo: {error}")))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| failed("cargo named no executable".to_owned()))
}

/// The guest has nobody who would read it, and its memory holds the file twice while it boots.
fn without_debug_information(name: &str, executable: &Path) -> Result<PathBuf, VmError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let failed = |why: String| VmError::Build { program: name.to_owned(), why };
    let folder = target().join("vm/programs");
    fs::create_dir_all(&folder)
        .map_err(|error| failed(format!("cannot make {}: {error}", folder.display())))?;
    let copy = folder.join(name);
    // Other tests want the same program, and see the old one or the new one.
    let partial = folder.join(format!("{name}.{}.{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let output = Command::new("strip")
        .arg("--strip-debug")
        .arg("-o")
        .args([&partial, executable])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("cannot start strip (install binutils): {error}")))?;
    if !output.status.success() {
        return Err(failed(format!("strip: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    fs::rename(&partial, &copy)
        .map_err(|error| failed(format!("cannot write {}: {error}", copy.display())))?;
    Ok(copy)
}
