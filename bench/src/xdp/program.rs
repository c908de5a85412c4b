//! The programs, as BPF instructions (`Documentation/bpf/standardization/instruction-set.rst`).
#![forbid(unsafe_code)]

use super::abi::{FUNC_KTIME_GET_NS, FUNC_REDIRECT, Instruction, TCX_DROP, TCX_NEXT, XDP_DROP};
use std::net::Ipv4Addr;

/// Where generated packets go: the second address of the network that RFC 2544 sets aside for benchmarks.
pub(crate) const DESTINATION: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Where they say they come from.
pub(crate) const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

const ETHERTYPE_OFFSET: i16 = 12;
const IPV4_DESTINATION_OFFSET: i16 = 30;
const HEADERS_BYTES: i32 = 34;

const fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

const fn load_immediate(to: u8, immediate: i32) -> Instruction {
    op(0xb7, to, 0, 0, immediate)
}

const fn copy(to: u8, from: u8) -> Instruction {
    op(0xbf, to, from, 0, 0)
}

const fn add_immediate(to: u8, immediate: i32) -> Instruction {
    op(0x07, to, 0, 0, immediate)
}

const fn load_u16(to: u8, from: u8, offset: i16) -> Instruction {
    op(0x69, to, from, offset, 0)
}

const fn load_u32(to: u8, from: u8, offset: i16) -> Instruction {
    op(0x61, to, from, offset, 0)
}

/// `if left > right`, unsigned: skips `skip` instructions.
const fn jump_if_greater(left: u8, right: u8, skip: i16) -> Instruction {
    op(0x2d, left, right, skip, 0)
}

/// `if left != immediate`, in the low 32 bits: skips `skip` instructions.
const fn jump_unless_equal(left: u8, immediate: i32, skip: i16) -> Instruction {
    op(0x56, left, 0, skip, immediate)
}

const fn call(function: i32) -> Instruction {
    op(0x85, 0, 0, 0, function)
}

const fn exit() -> Instruction {
    op(0x95, 0, 0, 0, 0)
}

/// `BPF_PSEUDO_MAP_VALUE`: the register gets the address of the array's entry plus an offset in bytes.
const fn load_entry_address(to: u8, array: i32, offset: i32) -> [Instruction; 2] {
    [op(0x18, to, 2, 0, array), op(0x00, 0, 0, 0, offset)]
}

const fn load_immediate_u64(to: u8, value: u64) -> [Instruction; 2] {
    [op(0x18, to, 0, 0, value as i32), op(0x00, 0, 0, 0, (value >> 32) as i32)]
}

/// Adds 1, atomically, to number `index` of the array's entry. Uses registers 1 and 2.
fn count(array: i32, index: i32) -> Vec<Instruction> {
    let mut program = load_entry_address(1, array, index * 8).to_vec();
    program.extend([load_immediate(2, 1), op(0xdb, 1, 2, 0, 0)]);
    program
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
pub(crate) fn generator(array: i32, ifindex: i32, pace: Option<Pace>) -> Vec<Instruction> {
    const NS: i32 = 1_000_000_000;
    let mut send = count(array, 0);
    send.extend([load_immediate(1, ifindex), load_immediate(2, 0), call(FUNC_REDIRECT), exit()]);
    let Some(Pace { rate_pps, total, burst }) = pace else {
        return send;
    };
    let forget = [
        copy(5, 7),
        op(0x27, 5, 0, 0, NS),       // r5 *= 10^9
        op(0x37, 5, 0, 0, rate_pps), // r5 /= rate: when the next one is due, from the beginning
        op(0x1f, 0, 5, 0, 0),        // now - r5: as if it had begun then
        op(0x7b, 6, 0, BEGAN_NS, 0),
        op(0x79, 5, 6, STALLS, 0),
        add_immediate(5, 1),
        op(0x7b, 6, 5, STALLS, 0),
    ];
    let due = [
        copy(3, 0),
        op(0x1f, 3, 1, 0, 0),        // now - began
        op(0x27, 3, 0, 0, rate_pps), // r3 *= rate
        op(0x37, 3, 0, 0, NS),       // r3 /= 10^9: packets due by now
    ];
    let not_due = send.len() as i16 + forget.len() as i16;
    let mut program = load_entry_address(6, array, 0).to_vec();
    program.extend([
        call(FUNC_KTIME_GET_NS),
        op(0x79, 1, 6, BEGAN_NS, 0),
        op(0x55, 1, 0, 3, 0), // if began != 0, skip the next three
        op(0x7b, 6, 0, FIRST_NS, 0),
        op(0x7b, 6, 0, BEGAN_NS, 0),
        copy(1, 0),
        op(0x79, 7, 6, 0, 0), // sent
    ]);
    program.extend(load_immediate_u64(2, total));
    program.push(op(0x3d, 7, 2, due.len() as i16 + 5 + not_due, 0)); // if sent >= total
    program.push(op(0x7b, 6, 0, LAST_NS, 0)); // now
    program.extend(due);
    program.push(op(0x3d, 7, 3, 3 + not_due, 0)); // if sent >= due
    program.extend([copy(4, 3), op(0x1f, 4, 7, 0, 0)]); // how many are overdue
    program.push(op(0xb5, 4, 0, forget.len() as i16, burst)); // if overdue <= burst
    program.extend(forget);
    program.extend(send);
    program.extend([load_immediate(0, XDP_DROP), exit()]);
    program
}

/// Counts and drops generated packets as number 0; counts any other frame as number 1 and lets it pass.
pub(crate) fn sink(array: i32) -> Vec<Instruction> {
    let ethertype = i32::from(u16::from_ne_bytes([0x08, 0x00]));
    let destination = i32::from_ne_bytes(DESTINATION.octets());
    // Each of the three tests skips what is left of them, then the six instructions that count and drop.
    let mut program = vec![
        load_u32(3, 1, 80), // __sk_buff.data_end
        load_u32(2, 1, 76), // __sk_buff.data
        copy(4, 2),
        add_immediate(4, HEADERS_BYTES),
        jump_if_greater(4, 3, 4 + 6),
        load_u16(5, 2, ETHERTYPE_OFFSET),
        jump_unless_equal(5, ethertype, 2 + 6),
        load_u32(5, 2, IPV4_DESTINATION_OFFSET),
        jump_unless_equal(5, destination, 6),
    ];
    program.extend(count(array, 0));
    program.extend([load_immediate(0, TCX_DROP), exit()]);
    program.extend(count(array, 1));
    program.extend([load_immediate(0, TCX_NEXT), exit()]);
    program
}
