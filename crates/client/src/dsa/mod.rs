//! The Intel Data Streaming Accelerator as its specification has it: registers, descriptors and
//! completion records (Intel DSA architecture specification, chapters 8 and 9; the same facts are in
//! the kernel's include/uapi/linux/idxd.h).
//!
//! Only what this client uses is here, and no logic.

pub mod descriptor;
pub mod register;

pub use descriptor::{Completion, Descriptor, Flags, Opcode, Status};
pub use register::{
    Command, CommandRegister, CommandStatus, GeneralCaps, SoftwareErrorWord, TableOffsets, WqCaps,
    WqConfig,
};
