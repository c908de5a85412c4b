//! `bpf(2)`, one thin function for each command.
#![allow(unsafe_code)]

use super::abi::{
    BPF_LINK_CREATE, BPF_MAP_CREATE, BPF_MAP_DELETE_ELEM, BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM,
    BPF_PROG_LOAD, BPF_RAW_TRACEPOINT_OPEN, Instruction, LinkCreate, MapCreate, MapElement, ProgLoad,
    RawTracepointOpen,
};
use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// # Safety
/// `T` is what `command` takes, and every address in it is that of live memory as large as the command reads or writes there.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is exclusively borrowed and of the size passed; what its addresses lead to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// # Safety
/// As for [`bpf`]; and the command is one that makes a descriptor.
unsafe fn bpf_fd<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the descriptor is new, so nobody else owns it.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(command, attr)?)) }
}

pub(super) fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// A map; gone when the last descriptor and the last program that knows it are.
///
/// The kernel takes the lengths of keys and values on trust: here they are checked.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    key_size: usize,
    value_size: usize,
}

pub(super) fn create_map(mut attr: MapCreate) -> io::Result<Map> {
    let (key_size, value_size) = (attr.key_size as usize, attr.value_size as usize);
    // SAFETY: this command has no addresses in it.
    let fd = unsafe { bpf_fd(BPF_MAP_CREATE, &mut attr)? };
    Ok(Map { fd, key_size, value_size })
}

fn wrong_length() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the key or value is not as long as the map's")
}

impl Map {
    fn check(&self, key: &[u8], value: usize) -> io::Result<()> {
        if key.len() == self.key_size && value == self.value_size { Ok(()) } else { Err(wrong_length()) }
    }

    fn element(&self, key: &[u8]) -> MapElement {
        MapElement { map_fd: number(self.fd.as_fd()), key: key.as_ptr() as u64, ..Default::default() }
    }

    /// Sets the value of a key.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key, value.len())?;
        let mut attr = MapElement { value: value.as_ptr() as u64, ..self.element(key) };
        // SAFETY: key and value are as long as the map's, outlive the call, and are only read.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop) }
    }

    /// Reads the value of a key; false where there is none.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(key, value.len())?;
        let mut attr = MapElement { value: value.as_mut_ptr() as u64, ..self.element(key) };
        // SAFETY: key and value are as long as the map's and outlive the call; of the types that MapType has, none has more
        // than one value for a key.
        match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a key.
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.check(key, self.value_size)?;
        // SAFETY: `key` is as long as the map's, outlives the call, and is only read.
        unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut self.element(key)).map(drop) }
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Loads a program. The verifier writes its reasons into `log`, unless that is empty.
pub(super) fn load(
    mut attr: ProgLoad,
    instructions: &[Instruction],
    license: &CStr,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    attr.insns = instructions.as_ptr() as u64;
    attr.insn_cnt = instructions.len() as u32;
    attr.license = license.as_ptr() as u64;
    if !log.is_empty() {
        attr.log_level = 1;
        attr.log_buf = log.as_mut_ptr() as u64;
        attr.log_size = log.len() as u32;
    }
    // SAFETY: instructions (as many as said), licence (with its end) and log (as long as said) outlive the call; no
    // other address is set, since only this function sets any.
    unsafe { bpf_fd(BPF_PROG_LOAD, &mut attr) }
}

/// Attaches a program to an interface until the descriptor given back is closed.
pub(super) fn link(mut attr: LinkCreate) -> io::Result<OwnedFd> {
    // SAFETY: for interfaces this command has no addresses in it.
    unsafe { bpf_fd(BPF_LINK_CREATE, &mut attr) }
}

/// Attaches a program to the hook that it was loaded for, until the descriptor given back is closed.
pub(super) fn open_hook(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = RawTracepointOpen { prog_fd: number(program), ..Default::default() };
    // SAFETY: the only address is that of the name, 0, which the kernel takes for "none".
    unsafe { bpf_fd(BPF_RAW_TRACEPOINT_OPEN, &mut attr) }
}
