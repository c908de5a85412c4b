//! The XDP program: each packet goes to the AF_XDP socket of the queue it came in by, or on to the kernel where there is none.
//!
//! It is six instructions, and some more where a filter leaves packets to the kernel, so they are assembled here: no compiler, no
//! object file, no library to load it.
#![forbid(unsafe_code)]

use super::abi::{self, Instruction};
use super::assembler::{Assembler, Label, Register};
use super::filter::Filter;
use super::sys;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// `bpf_redirect_map` of the helper functions.
const REDIRECT_MAP: i32 = 51;
/// `XDP_PASS`.
const PASS: i32 = 2;
/// Where `struct xdp_md` has the receive queue's number.
const RX_QUEUE_INDEX: i16 = 16;

/// `return bpf_redirect_map(&map, context->rx_queue_index, XDP_PASS)`: the last argument is what is returned
/// for a queue that the map has no socket for. Before that, what the filter names passes.
pub(super) fn instructions(map: RawFd, filter: &Filter) -> Vec<Instruction> {
    let redirect = |assembler: Assembler, context| {
        assembler
            .load_word(Register::R2, context, RX_QUEUE_INDEX)
            .load_map(Register::R1, map)
            .move_constant(Register::R3, PASS)
            .call(REDIRECT_MAP)
            .exit()
    };
    if filter.is_empty() {
        return redirect(Assembler::default(), Register::R1).finish();
    }
    let kept = Assembler::default().move_register(Register::R6, Register::R1);
    redirect(filter.emit(kept, Register::R6).label(Label::Redirect), Register::R6)
        .label(Label::Pass)
        .move_constant(Register::R0, PASS)
        .exit()
        .finish()
}

/// Where the program sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// In the driver.
    Native,
    /// Behind the driver, on socket buffers: any interface, more slowly.
    Generic,
}

impl Hook {
    fn flags(self) -> u32 {
        match self {
            Hook::Native => abi::XDP_FLAGS_DRV_MODE,
            Hook::Generic => abi::XDP_FLAGS_SKB_MODE,
        }
    }

    /// For [`Port::mode`](crate::Port::mode).
    pub(super) fn name(self) -> &'static str {
        match self {
            Hook::Native => "native XDP",
            Hook::Generic => "generic (skb) XDP",
        }
    }
}

/// The loaded program with its map of sockets.
pub(super) struct Program {
    program: OwnedFd,
    map: OwnedFd,
}

impl Program {
    /// Loads it, for queues 0 to `queues` - 1; `frags` where packets may come in several buffers.
    pub(super) fn load(queues: u32, filter: &Filter, frags: bool) -> io::Result<Self> {
        let map = sys::create_socket_map(queues, *b"isoplane_xsks\0\0\0")?;
        let instructions = instructions(map.as_raw_fd(), filter);
        let flags = if frags { abi::BPF_F_XDP_HAS_FRAGS } else { 0 };
        let load = |log: &mut [u8]| {
            sys::load_program(&instructions, c"Dual MIT/GPL", flags, *b"isoplane_xdp\0\0\0\0", log)
        };
        let program = load(&mut []).or_else(|error| {
            // Once more, for the verifier's reason.
            let mut log = vec![0; 4096];
            load(&mut log).map_err(|_| {
                let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
                tracing::debug!("the verifier says: {}", String::from_utf8_lossy(&log[..end]).trim());
                error
            })
        })?;
        Ok(Self { program, map })
    }

    /// Attaches it, until the returned descriptor is closed, by whatever end.
    pub(super) fn attach(&self, interface: u32, hook: Hook) -> io::Result<OwnedFd> {
        sys::attach_program(self.program.as_fd(), interface, hook.flags())
    }

    /// Sends the packets of a queue to a socket from now on, until the socket is closed.
    pub(super) fn redirect(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        sys::set_socket(self.map.as_fd(), queue, socket)
    }

    /// Leaves the packets of a queue to the kernel from now on.
    pub(super) fn stop_redirect(&self, queue: u32) -> io::Result<()> {
        sys::clear_socket(self.map.as_fd(), queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes, as `llvm-objdump -d` of the same program in C shows them.
    #[test]
    fn the_program_is_these_bytes() {
        let bytes: Vec<u8> = instructions(0x11, &Filter::default())
            .iter()
            .flat_map(|instruction| {
                let mut bytes = vec![instruction.code, instruction.registers];
                bytes.extend(instruction.offset.to_le_bytes());
                bytes.extend(instruction.immediate.to_le_bytes());
                bytes
            })
            .collect();
        let wanted: [[u8; 8]; 6] = [
            [0x61, 0x12, 0x10, 0, 0, 0, 0, 0],
            [0x18, 0x11, 0, 0, 0x11, 0, 0, 0],
            [0; 8],
            [0xb7, 0x03, 0, 0, 2, 0, 0, 0],
            [0x85, 0, 0, 0, 51, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes, wanted.concat());
    }
}
