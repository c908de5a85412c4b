//! The instruction set, [RFC 9669](https://www.rfc-editor.org/rfc/rfc9669.html), as far as programs here need it, and an
//! assembler with labels: a jump counted by hand is wrong after the next change.
#![forbid(unsafe_code)]

pub use super::abi::Instruction;
use std::os::fd::{AsFd, AsRawFd};
use thiserror::Error;

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Register {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    R5 = 5,
    R6 = 6,
    R7 = 7,
    R8 = 8,
    R9 = 9,
    /// The end of the stack frame, of 512 bytes below it.
    R10 = 10,
}

/// How much a load or store moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Size {
    /// 4 bytes.
    Word = 0x00,
    /// 2 bytes.
    Half = 0x08,
    /// 1 byte.
    Byte = 0x10,
    /// 8 bytes.
    Double = 0x18,
}

/// What is done to a 64-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Arithmetic {
    Add = 0x00,
    Subtract = 0x10,
    Multiply = 0x20,
    Divide = 0x30,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}

/// When a jump is taken; comparisons are unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Condition {
    Equal = 0x10,
    Greater = 0x20,
    GreaterOrEqual = 0x30,
    NotEqual = 0x50,
    Less = 0xa0,
    LessOrEqual = 0xb0,
}

/// Helper functions, by their numbers in `linux/bpf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Helper {
    /// `r0 = &map[*r2]`, or 0; `r1` is the map.
    MapLookup = 1,
    /// `r0` = nanoseconds of the monotonic clock.
    KtimeGetNs = 5,
    /// `r0` = tgid << 32 | pid of the current thread.
    GetCurrentPidTgid = 14,
    /// To the interface `r1`.
    Redirect = 23,
    /// To `map[r2]`; `r1` is the map, `r3` what to do without an entry.
    RedirectMap = 51,
}

/// `BPF_LDX | BPF_MEM`, `BPF_ST | BPF_MEM`, `BPF_STX | BPF_MEM`, `BPF_STX | BPF_ATOMIC`.
const LOAD_MEMORY: u8 = 0x61;
const STORE_CONSTANT: u8 = 0x62;
const STORE_REGISTER: u8 = 0x63;
const ATOMIC: u8 = 0xc3;
/// `BPF_JMP`, `BPF_JMP32`, `BPF_ALU64`.
const CLASS_JUMP: u8 = 0x05;
const CLASS_JUMP32: u8 = 0x06;
const CLASS_ALU64: u8 = 0x07;
/// The second operand is a register, not the immediate.
const SOURCE_REGISTER: u8 = 0x08;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// `BPF_LD | BPF_IMM | BPF_DW`: two places.
const LOAD_IMMEDIATE64: u8 = Size::Double as u8;
/// `BPF_PSEUDO_MAP_FD`.
const PSEUDO_MAP: u8 = 1;
/// `BPF_PSEUDO_MAP_VALUE`.
const PSEUDO_MAP_VALUE: u8 = 2;

/// A place in the program to jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// Why a program could not be assembled: a mistake in it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AssembleError {
    /// A jump to nowhere.
    #[error("instruction {at} jumps to a label that was never placed")]
    Unplaced {
        /// The jump.
        at: usize,
    },
    /// A loop without an end is nothing that these programs need.
    #[error("instruction {at} jumps backwards")]
    Backwards {
        /// The jump.
        at: usize,
    },
    /// Beyond 16 bits.
    #[error("instruction {at} jumps too far")]
    TooFar {
        /// The jump.
        at: usize,
    },
}

/// Writes instructions one after the other.
#[derive(Clone, Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Jumps, and where they go.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    fn emit(mut self, code: u8, target: Register, source: u8, offset: i16, immediate: i32) -> Self {
        let registers = target as u8 | source << 4;
        self.code.push(Instruction { code, registers, offset, immediate });
        self
    }

    /// `target = *(size *)(source + offset)`
    pub fn load(self, size: Size, target: Register, source: Register, offset: i16) -> Self {
        self.emit(LOAD_MEMORY | size as u8, target, source as u8, offset, 0)
    }

    /// `*(size *)(target + offset) = source`
    pub fn store(self, size: Size, target: Register, offset: i16, source: Register) -> Self {
        self.emit(STORE_REGISTER | size as u8, target, source as u8, offset, 0)
    }

    /// `*(size *)(target + offset) = immediate`
    pub fn store_constant(self, size: Size, target: Register, offset: i16, immediate: i32) -> Self {
        self.emit(STORE_CONSTANT | size as u8, target, 0, offset, immediate)
    }

    /// `*(size *)(target + offset) += source`, atomically; a word or a double.
    pub fn atomic_add(self, size: Size, target: Register, offset: i16, source: Register) -> Self {
        self.emit(ATOMIC | size as u8, target, source as u8, offset, 0)
    }

    /// `target = target OPERATION immediate`, 64 bits; the immediate is sign-extended.
    pub fn constant(self, operation: Arithmetic, target: Register, immediate: i32) -> Self {
        self.emit(CLASS_ALU64 | operation as u8, target, 0, 0, immediate)
    }

    /// `target = target OPERATION source`, 64 bits
    pub fn register(self, operation: Arithmetic, target: Register, source: Register) -> Self {
        self.emit(CLASS_ALU64 | SOURCE_REGISTER | operation as u8, target, source as u8, 0, 0)
    }

    /// `target = immediate`
    pub fn move_constant(self, target: Register, immediate: i32) -> Self {
        self.constant(Arithmetic::Move, target, immediate)
    }

    /// `target = source`
    pub fn move_register(self, target: Register, source: Register) -> Self {
        self.register(Arithmetic::Move, target, source)
    }

    /// `target = value`, all 64 bits; takes two places.
    pub fn move_constant64(self, target: Register, value: u64) -> Self {
        self.wide(target, 0, value as i32, (value >> 32) as i32)
    }

    /// `target = map`, for helpers; takes two places.
    pub fn load_map(self, target: Register, map: &impl AsFd) -> Self {
        self.wide(target, PSEUDO_MAP, map.as_fd().as_raw_fd(), 0)
    }

    /// `target` = the address of the first entry of an array, plus `offset` bytes; takes two places.
    pub fn load_map_value(self, target: Register, map: &impl AsFd, offset: i32) -> Self {
        self.wide(target, PSEUDO_MAP_VALUE, map.as_fd().as_raw_fd(), offset)
    }

    fn wide(self, target: Register, source: u8, low: i32, high: i32) -> Self {
        self.emit(LOAD_IMMEDIATE64, target, source, 0, low).emit(0, Register::R0, 0, 0, high)
    }

    /// `r0 = helper(r1, r2, r3, ...)`; r1 to r5 are lost.
    pub fn call(self, helper: Helper) -> Self {
        self.emit(CALL, Register::R0, 0, 0, helper as i32)
    }

    /// `return r0`
    pub fn exit(self) -> Self {
        self.emit(EXIT, Register::R0, 0, 0, 0)
    }

    /// A label to jump to; [`Assembler::place`] says where it is.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub fn place(mut self, label: Label) -> Self {
        self.labels[label.0] = Some(self.code.len());
        self
    }

    fn jump_to(mut self, label: Label) -> Self {
        self.jumps.push((self.code.len(), label));
        self
    }

    /// `goto label`
    pub fn jump(self, label: Label) -> Self {
        self.jump_to(label).emit(CLASS_JUMP, Register::R0, 0, 0, 0)
    }

    /// `if (left CONDITION immediate) goto label`, 64 bits; the immediate is sign-extended.
    pub fn jump_if(self, left: Register, condition: Condition, immediate: i32, label: Label) -> Self {
        self.jump_to(label).emit(CLASS_JUMP | condition as u8, left, 0, 0, immediate)
    }

    /// `if ((u32)left CONDITION immediate) goto label`
    pub fn jump_if_word(self, left: Register, condition: Condition, immediate: i32, label: Label) -> Self {
        self.jump_to(label).emit(CLASS_JUMP32 | condition as u8, left, 0, 0, immediate)
    }

    /// `if (left CONDITION right) goto label`, 64 bits
    pub fn jump_if_register(
        self,
        left: Register,
        condition: Condition,
        right: Register,
        label: Label,
    ) -> Self {
        self.jump_to(label).emit(CLASS_JUMP | SOURCE_REGISTER | condition as u8, left, right as u8, 0, 0)
    }

    /// The program, with its jumps filled in.
    pub fn finish(mut self) -> Result<Vec<Instruction>, AssembleError> {
        for (at, label) in self.jumps {
            let to = self.labels[label.0].ok_or(AssembleError::Unplaced { at })?;
            let skip = to.checked_sub(at + 1).ok_or(AssembleError::Backwards { at })?;
            self.code[at].offset = i16::try_from(skip).map_err(|_| AssembleError::TooFar { at })?;
        }
        Ok(self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Register::{R0, R1, R2, R3, R6, R7, R10};

    fn bytes(code: &[Instruction]) -> Vec<[u8; 8]> {
        let bytes = |instruction: &Instruction| {
            let [offset0, offset1] = instruction.offset.to_le_bytes();
            let [a, b, c, d] = instruction.immediate.to_le_bytes();
            [instruction.code, instruction.registers, offset0, offset1, a, b, c, d]
        };
        code.iter().map(bytes).collect()
    }

    /// The bytes, as `llvm-mc -triple bpfel -show-encoding` has them.
    #[test]
    fn instructions_are_encoded_as_the_standard_says() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut program = Assembler::new();
        let end = program.label();
        let code = program
            .load(Size::Word, R2, R1, 16)
            .load(Size::Double, R6, R1, 0)
            .load(Size::Half, R6, R1, 12)
            .load(Size::Byte, R6, R1, 12)
            .store(Size::Word, R10, -4, R2)
            .store_constant(Size::Double, R10, -8, 1)
            .atomic_add(Size::Double, R1, 0, R2)
            .atomic_add(Size::Word, R1, 4, R2)
            .move_constant(R3, 2)
            .move_register(R7, R6)
            .constant(Arithmetic::Add, R2, -4)
            .register(Arithmetic::Subtract, R3, R1)
            .constant(Arithmetic::ShiftRight, R0, 32)
            .move_constant64(R1, 0x1122_3344_5566_7788)
            .call(Helper::RedirectMap)
            .jump_if(R0, Condition::NotEqual, 0, end)
            .jump_if_word(R1, Condition::NotEqual, 8, end)
            .jump_if_register(R2, Condition::Greater, R3, end)
            .jump(end)
            .place(end)
            .exit()
            .finish()
            .unwrap();
        let wanted: [[u8; 8]; 21] = [
            [0x61, 0x12, 16, 0, 0, 0, 0, 0],
            [0x79, 0x16, 0, 0, 0, 0, 0, 0],
            [0x69, 0x16, 12, 0, 0, 0, 0, 0],
            [0x71, 0x16, 12, 0, 0, 0, 0, 0],
            [0x63, 0x2a, 0xfc, 0xff, 0, 0, 0, 0],
            [0x7a, 0x0a, 0xf8, 0xff, 1, 0, 0, 0],
            [0xdb, 0x21, 0, 0, 0, 0, 0, 0],
            [0xc3, 0x21, 4, 0, 0, 0, 0, 0],
            [0xb7, 0x03, 0, 0, 2, 0, 0, 0],
            [0xbf, 0x67, 0, 0, 0, 0, 0, 0],
            [0x07, 0x02, 0, 0, 0xfc, 0xff, 0xff, 0xff],
            [0x1f, 0x13, 0, 0, 0, 0, 0, 0],
            [0x77, 0x00, 0, 0, 32, 0, 0, 0],
            [0x18, 0x01, 0, 0, 0x88, 0x77, 0x66, 0x55],
            [0x00, 0x00, 0, 0, 0x44, 0x33, 0x22, 0x11],
            [0x85, 0x00, 0, 0, 51, 0, 0, 0],
            [0x55, 0x00, 3, 0, 0, 0, 0, 0],
            [0x56, 0x01, 2, 0, 8, 0, 0, 0],
            [0x2d, 0x32, 1, 0, 0, 0, 0, 0],
            [0x05, 0x00, 0, 0, 0, 0, 0, 0],
            [0x95, 0x00, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes(&code), wanted);
        let fd = file.as_raw_fd() as u8;
        let maps = Assembler::new().load_map(R1, &file).load_map_value(R6, &file, 8).finish().unwrap();
        let wanted = [
            [0x18, 0x11, 0, 0, fd, 0, 0, 0],
            [0; 8],
            [0x18, 0x26, 0, 0, fd, 0, 0, 0],
            [0, 0, 0, 0, 8, 0, 0, 0],
        ];
        assert_eq!(bytes(&maps), wanted);
    }

    #[test]
    fn jumps_that_cannot_be_are_errors() {
        let mut program = Assembler::new();
        let label = program.label();
        assert_eq!(program.clone().jump(label).finish(), Err(AssembleError::Unplaced { at: 0 }));
        let backwards = program.clone().place(label).exit().jump(label).finish();
        assert_eq!(backwards, Err(AssembleError::Backwards { at: 1 }));
        let mut far = program.jump(label);
        for _ in 0..40_000 {
            far = far.exit();
        }
        assert_eq!(far.place(label).finish(), Err(AssembleError::TooFar { at: 0 }));
    }
}
