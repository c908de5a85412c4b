//! The XDP program: each packet goes to the AF_XDP socket of the queue it came in by, or on to the kernel where there is none.
//!
//! It is six instructions, and some more where a filter leaves packets to the kernel, so they are assembled here: no compiler, no
//! object file, no library to load it.
#![forbid(unsafe_code)]

use super::abi;
use super::filter::Filter;
use percpu::bpf::instruction::{AssembleError, Assembler, Helper, Register, Size};
use percpu::bpf::{self, Instruction, MapSpec, MapType, ProgramSpec, ProgramType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `XDP_PASS`.
const PASS: i32 = 2;
/// Where `struct xdp_md` has the receive queue's number.
const RX_QUEUE_INDEX: i16 = 16;

/// `return bpf_redirect_map(&map, context->rx_queue_index, XDP_PASS)`: the last argument is what is returned
/// for a queue that the map has no socket for. Before that, what the filter names passes.
pub(super) fn instructions(map: &impl AsFd, filter: &Filter) -> Result<Vec<Instruction>, AssembleError> {
    let redirect = |assembler: Assembler, context| {
        assembler
            .load(Size::Word, Register::R2, context, RX_QUEUE_INDEX)
            .load_map(Register::R1, map)
            .move_constant(Register::R3, PASS)
            .call(Helper::RedirectMap)
            .exit()
    };
    let mut assembler = Assembler::new();
    if filter.is_empty() {
        return redirect(assembler, Register::R1).finish();
    }
    let (to_kernel, to_socket) = (assembler.label(), assembler.label());
    let kept = assembler.move_register(Register::R6, Register::R1);
    let tested = filter.emit(kept, Register::R6, to_kernel, to_socket);
    redirect(tested.place(to_socket), Register::R6)
        .place(to_kernel)
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
    program: bpf::Program,
    map: bpf::Map,
}

impl Program {
    /// Loads it, for queues 0 to `queues` - 1; `frags` where packets may come in several buffers.
    pub(super) fn load(queues: u32, filter: &Filter, frags: bool) -> io::Result<Self> {
        let map = bpf::Map::create(&MapSpec {
            map_type: MapType::XskMap,
            name: "isoplane_xsks",
            key_size: 4,
            value_size: 4,
            max_entries: queues,
        })?;
        let instructions = instructions(&map, filter).map_err(io::Error::other)?;
        let spec = ProgramSpec {
            program_type: ProgramType::Xdp,
            name: "isoplane_xdp",
            flags: if frags { abi::BPF_F_XDP_HAS_FRAGS } else { 0 },
            attach_type: bpf::BPF_XDP,
            attach_btf_id: 0,
        };
        let program = bpf::Program::load(&spec, &instructions).map_err(|error| {
            tracing::debug!("{error}");
            error.source
        })?;
        Ok(Self { program, map })
    }

    /// Attaches it, until the returned descriptor is closed, by whatever end.
    pub(super) fn attach(&self, interface: u32, hook: Hook) -> io::Result<OwnedFd> {
        bpf::attach_interface(&self.program, interface, bpf::BPF_XDP, hook.flags())
    }

    /// Sends the packets of a queue to a socket from now on, until the socket is closed.
    pub(super) fn redirect(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.map.update(&queue.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes())
    }

    /// Leaves the packets of a queue to the kernel from now on.
    pub(super) fn stop_redirect(&self, queue: u32) -> io::Result<()> {
        self.map.delete(&queue.to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes, as `llvm-objdump -d` of the same program in C shows them.
    #[test]
    fn the_program_is_these_bytes() {
        let map = std::fs::File::open("/dev/null").unwrap();
        let bytes: Vec<u8> = instructions(&map, &Filter::default())
            .unwrap()
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
            [0x18, 0x11, 0, 0, map.as_raw_fd() as u8, 0, 0, 0],
            [0; 8],
            [0xb7, 0x03, 0, 0, 2, 0, 0, 0],
            [0x85, 0, 0, 0, 51, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes, wanted.concat());
    }
}
