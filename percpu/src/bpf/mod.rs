//! BPF without a compiler, an object file or a library: instructions assembled by hand, `bpf(2)`, and a reader of BTF.
//!
//! The programs of this project are a few dozen instructions long. They are loaded by whoever runs, on whatever kernel, with nothing to install and
//! nothing to unpack; what depends on the kernel (an offset in a structure, the number of a hook) is looked up in its BTF.
//!
//! - [`instruction`]: the instruction set, RFC 9669, and an assembler with labels;
//! - [`btf`]: offsets and numbers of the running kernel;
//! - [`Map`], [`Program`], [`attach_interface`], [`attach_hook`]: the commands of `bpf(2)`.

mod abi;
pub mod btf;
pub mod instruction;
mod object;
mod sys;

pub use abi::{BPF_LSM_MAC, BPF_TCX_INGRESS, BPF_XDP, MapType, ProgramType};
pub use btf::{Btf, BtfError};
pub use instruction::{Assembler, Instruction, Label, Register};
pub use object::{LoadError, MapSpec, Program, ProgramSpec, attach_hook, attach_interface};
pub use sys::Map;
