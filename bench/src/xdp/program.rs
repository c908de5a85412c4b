//! The programs, and the numbers that they count.
#![forbid(unsafe_code)]

use super::abi::{TCX_DROP, TCX_NEXT, XDP_DROP};
use percpu::bpf::instruction::Arithmetic::{Add, Divide, Multiply, Subtract};
use percpu::bpf::instruction::Condition::{Greater, GreaterOrEqual, LessOrEqual, NotEqual};
use percpu::bpf::instruction::Register::{R0, R1, R2, R3, R4, R5, R6, R7};
use percpu::bpf::instruction::{AssembleError, Helper, Size};
use percpu::bpf::{Assembler, Instruction, Map, MapSpec, MapType, Program, ProgramSpec, ProgramType};
use std::io;
use std::net::Ipv4Addr;

/// Where generated packets go: the second address of the network that RFC 2544 sets aside for benchmarks.
pub(crate) const DESTINATION: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Where they say they come from.
pub(crate) const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

const ETHERTYPE_OFFSET: i16 = 12;
const IPV4_DESTINATION_OFFSET: i16 = 30;
const HEADERS_BYTES: i32 = 34;
/// Where `struct __sk_buff` has the start and the end of the frame.
const SKB_DATA: i16 = 76;
const SKB_DATA_END: i16 = 80;

/// What a program counts, as the only entry of an array: `N` numbers.
#[derive(Debug)]
pub(crate) struct Numbers<const N: usize>(Map);

impl<const N: usize> Numbers<N> {
    /// All 0.
    pub(crate) fn new() -> io::Result<Self> {
        let spec = MapSpec {
            map_type: MapType::Array,
            name: "isoplane_bench",
            key_size: 4,
            value_size: 8 * N as u32,
            max_entries: 1,
        };
        Map::create(&spec).map(Self)
    }

    pub(crate) fn read(&self) -> io::Result<[u64; N]> {
        let mut bytes = vec![0; 8 * N];
        self.0.lookup(&0_u32.to_ne_bytes(), &mut bytes)?;
        let mut numbers = bytes.chunks_exact(8).map(|bytes| {
            let mut number = [0; 8];
            number.copy_from_slice(bytes);
            u64::from_ne_bytes(number)
        });
        Ok(std::array::from_fn(|_| numbers.next().unwrap_or(0)))
    }
}

/// Loads a program.
pub(crate) fn load(program_type: ProgramType, instructions: &[Instruction]) -> io::Result<Program> {
    let spec =
        ProgramSpec { program_type, name: "isoplane_bench", flags: 0, attach_type: 0, attach_btf_id: 0 };
    Program::load(&spec, instructions).map_err(|error| error.source)
}

/// Adds 1, atomically, to one of the numbers. Uses registers 1 and 2.
fn count<const N: usize>(program: Assembler, numbers: &Numbers<N>, index: i32) -> Assembler {
    program.load_map_value(R1, &numbers.0, index * 8).move_constant(R2, 1).atomic_add(Size::Double, R1, 0, R2)
}

/// Numbers in the generator's array: frames sent; and, where it is paced, when it first and last sent, times it fell
/// behind, and from when on packets are due, which a stall moves. Times are the kernel's monotonic nanoseconds.
pub(crate) const GENERATOR_NUMBERS: usize = 5;
const FIRST_NS: i16 = 8;
const LAST_NS: i16 = 16;
const STALLS: i16 = 24;
const BEGAN_NS: i16 = 32;

/// When to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Packets a second; above 0.
    pub(crate) rate_pps: i32,
    /// Packets in all. Times 10^9 it must fit 64 bits.
    pub(crate) total: u64,
    /// The longest burst; where more is overdue, the debt is forgotten.
    pub(crate) burst: i32,
}

/// Counts the frame and sends it out of the interface; with a pace, drops it uncounted where none is due.
///
/// Frames that are dropped here cost some 50 ns each, and interrupts are not held up meanwhile, as they would be by waiting.
pub(crate) fn generator(
    numbers: &Numbers<GENERATOR_NUMBERS>,
    ifindex: i32,
    pace: Option<Pace>,
) -> Result<Vec<Instruction>, AssembleError> {
    const NS: i32 = 1_000_000_000;
    let send = |program: Assembler| {
        count(program, numbers, 0)
            .move_constant(R1, ifindex)
            .move_constant(R2, 0)
            .call(Helper::Redirect)
            .exit()
    };
    let mut program = Assembler::new();
    let Some(Pace { rate_pps, total, burst }) = pace else {
        return send(program).finish();
    };
    let (begun, in_time, not_due) = (program.label(), program.label(), program.label());
    // r0: now, r1: when it began, r7: how many were sent.
    let program = program
        .load_map_value(R6, &numbers.0, 0)
        .call(Helper::KtimeGetNs)
        .load(Size::Double, R1, R6, BEGAN_NS)
        .jump_if(R1, NotEqual, 0, begun)
        .store(Size::Double, R6, FIRST_NS, R0)
        .store(Size::Double, R6, BEGAN_NS, R0)
        .move_register(R1, R0)
        .place(begun)
        .load(Size::Double, R7, R6, 0)
        .move_constant64(R2, total)
        .jump_if_register(R7, GreaterOrEqual, R2, not_due)
        .store(Size::Double, R6, LAST_NS, R0);
    // r3: how many are due by now; r4: how many of them are overdue.
    let program = program
        .move_register(R3, R0)
        .register(Subtract, R3, R1)
        .constant(Multiply, R3, rate_pps)
        .constant(Divide, R3, NS)
        .jump_if_register(R7, GreaterOrEqual, R3, not_due)
        .move_register(R4, R3)
        .register(Subtract, R4, R7)
        .jump_if(R4, LessOrEqual, burst, in_time);
    // The debt is forgotten, as if it had begun so that the next one is due now.
    let program = program
        .move_register(R5, R7)
        .constant(Multiply, R5, NS)
        .constant(Divide, R5, rate_pps)
        .register(Subtract, R0, R5)
        .store(Size::Double, R6, BEGAN_NS, R0)
        .load(Size::Double, R5, R6, STALLS)
        .constant(Add, R5, 1)
        .store(Size::Double, R6, STALLS, R5)
        .place(in_time);
    send(program).place(not_due).move_constant(R0, XDP_DROP).exit().finish()
}

/// Counts and drops generated packets as number 0; counts any other frame as number 1 and lets it pass.
pub(crate) fn sink(numbers: &Numbers<2>) -> Result<Vec<Instruction>, AssembleError> {
    let ethertype = i32::from(u16::from_ne_bytes([0x08, 0x00]));
    let destination = i32::from_ne_bytes(DESTINATION.octets());
    let mut program = Assembler::new();
    let other = program.label();
    let program = program
        .load(Size::Word, R3, R1, SKB_DATA_END)
        .load(Size::Word, R2, R1, SKB_DATA)
        .move_register(R4, R2)
        .constant(Add, R4, HEADERS_BYTES)
        .jump_if_register(R4, Greater, R3, other)
        .load(Size::Half, R5, R2, ETHERTYPE_OFFSET)
        .jump_if_word(R5, NotEqual, ethertype, other)
        .load(Size::Word, R5, R2, IPV4_DESTINATION_OFFSET)
        .jump_if_word(R5, NotEqual, destination, other);
    let program = count(program, numbers, 0).move_constant(R0, TCX_DROP).exit().place(other);
    count(program, numbers, 1).move_constant(R0, TCX_NEXT).exit().finish()
}
