//! Writes BPF instructions, by the opcodes of [RFC 9669](https://www.rfc-editor.org/rfc/rfc9669.html).
#![forbid(unsafe_code)]

use super::abi::Instruction;
use std::os::fd::RawFd;

/// A register.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Register {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    R5 = 5,
    /// From here on a helper leaves them as they are.
    R6 = 6,
}

/// A place that jumps go to, always further down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Redirect,
    Pass,
    Ipv6,
    Transport,
    Udp,
}

/// `BPF_PSEUDO_MAP_FD`: the constant is a descriptor, to be turned into the map.
const MAP_DESCRIPTOR: u8 = 1;

/// The instructions so far, and the jumps whose place is not known yet.
#[derive(Default)]
pub(super) struct Assembler {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn emit(mut self, code: u8, target: Register, source: u8, offset: i16, immediate: i32) -> Self {
        let registers = target as u8 | source << 4;
        self.instructions.push(Instruction { code, registers, offset, immediate });
        self
    }

    /// target = *(u32 *)(source + offset)
    pub(super) fn load_word(self, target: Register, source: Register, offset: i16) -> Self {
        self.emit(0x61, target, source as u8, offset, 0)
    }

    /// target = *(u16 *)(source + offset)
    pub(super) fn load_half(self, target: Register, source: Register, offset: i16) -> Self {
        self.emit(0x69, target, source as u8, offset, 0)
    }

    /// target = *(u8 *)(source + offset)
    pub(super) fn load_byte(self, target: Register, source: Register, offset: i16) -> Self {
        self.emit(0x71, target, source as u8, offset, 0)
    }

    /// target = immediate
    pub(super) fn move_constant(self, target: Register, immediate: i32) -> Self {
        self.emit(0xb7, target, 0, 0, immediate)
    }

    /// target = source
    pub(super) fn move_register(self, target: Register, source: Register) -> Self {
        self.emit(0xbf, target, source as u8, 0, 0)
    }

    /// target += immediate
    pub(super) fn add(self, target: Register, immediate: i32) -> Self {
        self.emit(0x07, target, 0, 0, immediate)
    }

    /// target += source
    pub(super) fn add_register(self, target: Register, source: Register) -> Self {
        self.emit(0x0f, target, source as u8, 0, 0)
    }

    /// target &= immediate
    pub(super) fn and(self, target: Register, immediate: i32) -> Self {
        self.emit(0x57, target, 0, 0, immediate)
    }

    /// target <<= immediate
    pub(super) fn shift_left(self, target: Register, immediate: i32) -> Self {
        self.emit(0x67, target, 0, 0, immediate)
    }

    fn jump_by(mut self, code: u8, target: Register, source: u8, immediate: i32, label: Label) -> Self {
        self.jumps.push((self.instructions.len(), label));
        self.emit(code, target, source, 0, immediate)
    }

    /// goto label
    pub(super) fn jump(self, label: Label) -> Self {
        self.jump_by(0x05, Register::R0, 0, 0, label)
    }

    /// if (left == immediate) goto label
    pub(super) fn jump_if_equal(self, left: Register, immediate: i32, label: Label) -> Self {
        self.jump_by(0x15, left, 0, immediate, label)
    }

    /// if (left != immediate) goto label
    pub(super) fn jump_unless_equal(self, left: Register, immediate: i32, label: Label) -> Self {
        self.jump_by(0x55, left, 0, immediate, label)
    }

    /// if (left < immediate) goto label, without signs
    pub(super) fn jump_if_below(self, left: Register, immediate: i32, label: Label) -> Self {
        self.jump_by(0xa5, left, 0, immediate, label)
    }

    /// if (left > right) goto label, without signs
    pub(super) fn jump_if_above(self, left: Register, right: Register, label: Label) -> Self {
        self.jump_by(0x2d, left, right as u8, 0, label)
    }

    /// Here is the place that earlier jumps go to.
    pub(super) fn label(mut self, label: Label) -> Self {
        let here = self.instructions.len();
        for (from, _) in self.jumps.extract_if(.., |(_, to)| *to == label) {
            // Counted from the instruction behind the jump.
            self.instructions[from].offset = (here - from - 1) as i16;
        }
        self
    }

    /// target = the map of a descriptor; takes two places.
    pub(super) fn load_map(self, target: Register, map: RawFd) -> Self {
        self.emit(0x18, target, MAP_DESCRIPTOR, 0, map).emit(0, Register::R0, 0, 0, 0)
    }

    /// r0 = helper(r1, r2, r3, ...)
    pub(super) fn call(self, helper: i32) -> Self {
        self.emit(0x85, Register::R0, 0, 0, helper)
    }

    /// return r0
    pub(super) fn exit(self) -> Self {
        self.emit(0x95, Register::R0, 0, 0, 0)
    }

    pub(super) fn finish(self) -> Vec<Instruction> {
        debug_assert!(self.jumps.is_empty(), "jumps to nowhere: {:?}", self.jumps);
        self.instructions
    }
}
