//! The registers of the thread whose instruction is carried out.

/// A segment whose base counts in 64-bit mode (those of CS, DS, ES and SS are 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// FS: thread-local storage on Linux.
    Fs,
    /// GS.
    Gs,
}

/// The registers of one thread.
///
/// General registers go by their number in an instruction's encoding (Intel SDM volume 2, 3.1.1):
/// 0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp, 5 rbp, 6 rsi, 7 rdi, 8 to 15 r8 to r15. Numbers are never out
/// of range.
pub trait Cpu {
    /// General register `index`, 0 to 15, all 64 bits.
    fn gpr(&self, index: u8) -> u64;
    /// Sets all 64 bits of general register `index`, 0 to 15.
    fn set_gpr(&mut self, index: u8, value: u64);
    /// The instruction pointer.
    fn rip(&self) -> u64;
    /// Sets the instruction pointer.
    fn set_rip(&mut self, rip: u64);
    /// RFLAGS.
    fn flags(&self) -> u64;
    /// Sets RFLAGS; only the status flags (CF, PF, AF, ZF, SF, OF) ever differ from what it was.
    fn set_flags(&mut self, flags: u64);
    /// Vector register `index`, 0 to 31: xmm in bytes 0 to 15, the rest of ymm up to 31, of zmm up to 63,
    /// lowest byte first. Bytes that the processor does not have are 0.
    fn vector(&self, index: u8) -> [u8; 64];
    /// Sets vector register `index`, 0 to 31. Bytes that the processor does not have are 0 or are to
    /// be ignored.
    fn set_vector(&mut self, index: u8, value: &[u8; 64]);
    /// AVX-512 mask register `index`, 0 to 7.
    fn opmask(&self, index: u8) -> u64;
    /// Sets mask register `index`, 0 to 7 (`kmov` from memory). A processor without mask registers
    /// never comes here.
    fn set_opmask(&mut self, index: u8, value: u64) {
        let _ = (index, value);
    }
    /// The PASID that `enqcmd` puts into a command, 20 bits: that of the register `IA32_PASID`, which
    /// counts as valid. 0 if the space knows by the device whose commands they are.
    fn pasid(&self) -> u32 {
        0
    }
    /// Whether the thread runs with privilege (CPL 0), as `enqcmds` demands.
    fn is_privileged(&self) -> bool {
        false
    }
    /// The base that an FS or GS prefix adds.
    fn segment_base(&self, segment: Segment) -> u64;
}
