//! Maps and programs as the rest of the project sees them.
#![forbid(unsafe_code)]

use super::abi::{Instruction, LinkCreate, MapCreate, MapType, ProgLoad, ProgramType};
use super::sys::{self, Map};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use thiserror::Error;

/// What a map should be.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec<'a> {
    /// Its type.
    pub map_type: MapType,
    /// What `bpftool` shows; up to 15 bytes.
    pub name: &'a str,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many entries at most.
    pub max_entries: u32,
}

fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    let length = text.len().min(15);
    name[..length].copy_from_slice(&text.as_bytes()[..length]);
    name
}

impl Map {
    /// Makes one, empty (or all zeroes).
    pub fn create(spec: &MapSpec<'_>) -> io::Result<Self> {
        sys::create_map(MapCreate {
            map_type: spec.map_type as u32,
            key_size: spec.key_size,
            value_size: spec.value_size,
            max_entries: spec.max_entries,
            map_name: name(spec.name),
            ..Default::default()
        })
    }
}

/// What a program should be.
#[derive(Clone, Copy, Debug)]
pub struct ProgramSpec<'a> {
    /// Its type.
    pub program_type: ProgramType,
    /// What `bpftool` shows; up to 15 bytes.
    pub name: &'a str,
    /// `prog_flags`.
    pub flags: u32,
    /// `expected_attach_type`; 0 where the type has only one.
    pub attach_type: u32,
    /// The function that it is attached to, by its number in the kernel's BTF; 0 where the type is not attached by that.
    pub attach_btf_id: u32,
}

/// Why a program was not loaded.
#[derive(Debug, Error)]
#[error("the kernel does not take the BPF program {name}: {source}{}{verifier}", if verifier.is_empty() { "" } else { ": " })]
pub struct LoadError {
    /// The program's.
    pub name: String,
    /// What the kernel answered.
    pub source: io::Error,
    /// The last line that the verifier had to say.
    pub verifier: String,
}

/// A program in the kernel.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// Loads it; its licence is "Dual MIT/GPL".
    pub fn load(spec: &ProgramSpec<'_>, instructions: &[Instruction]) -> Result<Self, LoadError> {
        let attr = ProgLoad {
            prog_type: spec.program_type as u32,
            prog_name: name(spec.name),
            prog_flags: spec.flags,
            expected_attach_type: spec.attach_type,
            attach_btf_id: spec.attach_btf_id,
            ..Default::default()
        };
        let load = |log: &mut [u8]| sys::load(attr, instructions, c"Dual MIT/GPL", log);
        load(&mut []).map(Self).map_err(|source| {
            // Once more, for the verifier's reasons.
            let mut log = vec![0; 65_536];
            let _ = load(&mut log);
            LoadError { name: spec.name.to_owned(), source, verifier: last_reason(&log) }
        })
    }
}

/// The verifier's last line is its statistics; the one before it is why.
fn last_reason(log: &[u8]) -> String {
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let reason = text.lines().rev().find(|line| !line.is_empty() && !line.starts_with("processed "));
    reason.unwrap_or_default().trim().to_owned()
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Attaches a program to an interface (`XDP_FLAGS_...` in `flags`) until the descriptor given back is closed.
pub fn attach_interface(
    program: &Program,
    interface: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    sys::link(LinkCreate {
        prog_fd: sys::number(program.as_fd()),
        target_ifindex: interface,
        attach_type,
        flags,
    })
}

/// Attaches a program to the kernel function that it was loaded for (`attach_btf_id`), until the descriptor given back is
/// closed.
pub fn attach_hook(program: &Program) -> io::Result<OwnedFd> {
    sys::open_hook(program.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{Assembler, Register};

    fn spec(map_type: MapType) -> MapSpec<'static> {
        MapSpec { map_type, name: "isoplane_test", key_size: 4, value_size: 8, max_entries: 4 }
    }

    #[test]
    fn namespace_a_map_keeps_what_it_is_given_and_checks_lengths() {
        const TEST: &str = "namespace_a_map_keeps_what_it_is_given_and_checks_lengths";
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED {TEST}: needs root");
            return;
        }
        let map = Map::create(&spec(MapType::Hash)).unwrap();
        let (key, mut value) = (7_u32.to_ne_bytes(), [0; 8]);
        assert!(!map.lookup(&key, &mut value).unwrap());
        map.update(&key, &9_u64.to_ne_bytes()).unwrap();
        assert!(map.lookup(&key, &mut value).unwrap());
        assert_eq!(u64::from_ne_bytes(value), 9);
        assert!(map.update(&key, &[0; 7]).is_err());
        assert!(map.lookup(&key, &mut [0; 4]).is_err());
        assert!(map.delete(&[0; 3]).is_err());
        map.delete(&key).unwrap();
        assert!(!map.lookup(&key, &mut value).unwrap());
    }

    #[test]
    fn namespace_a_program_that_the_verifier_refuses_says_why() {
        const TEST: &str = "namespace_a_program_that_the_verifier_refuses_says_why";
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED {TEST}: needs root");
            return;
        }
        let spec = ProgramSpec {
            program_type: ProgramType::Xdp,
            name: "isoplane_test",
            flags: 0,
            attach_type: 0,
            attach_btf_id: 0,
        };
        let error = Program::load(&spec, &Assembler::new().exit().finish().unwrap()).unwrap_err();
        assert!(error.verifier.contains("R0 !read_ok"), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
        let good = Assembler::new().move_constant(Register::R0, 2).exit().finish().unwrap();
        Program::load(&spec, &good).unwrap();
    }
}
