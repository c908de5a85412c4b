//! What the host's dynamic linker would load for a program, so that the guest has it at the same place.
#![forbid(unsafe_code)]

use super::VmError;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The shared libraries of a program of ours, and the linker that loads them; none of a static program, nor of any other file.
pub(super) fn of(program: &Path) -> Result<Vec<PathBuf>, VmError> {
    let failed = |why: String| VmError::Libraries { program: program.to_owned(), why };
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .env_remove("LD_PRELOAD")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("cannot start ldd: {error}")))?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if said.contains("not a dynamic executable") || said.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !output.status.success() {
        return Err(failed(said.trim().to_owned()));
    }
    paths(&said).map_err(failed)
}

/// A line is `NAME => PATH (ADDRESS)`, `PATH (ADDRESS)` of the linker itself, or `NAME (ADDRESS)` of what the kernel brings.
fn paths(said: &str) -> Result<Vec<PathBuf>, String> {
    let mut paths = Vec::new();
    for line in said.lines() {
        let line = line.trim();
        let place = line.split_once(" => ").map_or(line, |(_, place)| place);
        if place.starts_with("not found") {
            return Err(line.to_owned());
        }
        let place = place.rsplit_once(" (").map_or(place, |(place, _)| place);
        if place.starts_with('/') {
            paths.push(PathBuf::from(place));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_linker_are_found_and_the_kernels_part_is_not() {
        let said = "\tlinux-vdso.so.1 (0x00007f983f3f8000)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f983f2e1000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f983f3fa000)\n";
        let expected = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(paths(said).unwrap(), expected);
        let error = paths("\tlibm.so.6 => not found\n").unwrap_err();
        assert_eq!(error, "libm.so.6 => not found");
    }

    #[test]
    fn this_test_has_libraries_and_a_text_has_none() {
        let of_this = of(&std::env::current_exe().unwrap()).unwrap();
        assert!(of_this.iter().all(|path| path.exists()), "{of_this:?}");
        assert!(of_this.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{of_this:?}");
        assert_eq!(
            of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap(),
            Vec::<PathBuf>::new()
        );
    }
}
