//! The state of a thread, as the real processor and the emulator both work on it.

use ioasid_mmio::{Cpu, Fault, FaultKind, Segment, Space};

/// All registers that an instruction can see.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct State {
    pub vectors: [[u8; 64]; 32],
    pub opmasks: [u64; 8],
    pub gpr: [u64; 16],
    pub flags: u64,
    /// The stack pointer of the test, while the instruction has its own.
    pub host_stack: u64,
}

/// The emulator's thread.
#[derive(Clone, Debug)]
pub struct Thread {
    pub state: State,
    pub rip: u64,
    pub fs: u64,
    pub gs: u64,
    pub privileged: bool,
    pub pasid: u32,
}

impl Cpu for Thread {
    fn gpr(&self, index: u8) -> u64 {
        self.state.gpr[usize::from(index)]
    }
    fn set_gpr(&mut self, index: u8, value: u64) {
        self.state.gpr[usize::from(index)] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn flags(&self) -> u64 {
        self.state.flags
    }
    fn set_flags(&mut self, flags: u64) {
        self.state.flags = flags;
    }
    fn vector(&self, index: u8) -> [u8; 64] {
        self.state.vectors[usize::from(index)]
    }
    fn set_vector(&mut self, index: u8, value: &[u8; 64]) {
        self.state.vectors[usize::from(index)] = *value;
    }
    fn opmask(&self, index: u8) -> u64 {
        self.state.opmasks[usize::from(index)]
    }
    fn set_opmask(&mut self, index: u8, value: u64) {
        self.state.opmasks[usize::from(index)] = value;
    }
    fn segment_base(&self, segment: Segment) -> u64 {
        match segment {
            Segment::Fs => self.fs,
            Segment::Gs => self.gs,
        }
    }
    fn pasid(&self) -> u32 {
        self.pasid
    }
    fn is_privileged(&self) -> bool {
        self.privileged
    }
}

/// One access that the emulator made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Load(u64, usize),
    Store(u64, usize),
    Enqueue(u64),
}

/// The emulator's memory: some bytes at some address, nothing elsewhere.
#[derive(Clone, Debug)]
pub struct Memory {
    pub start: u64,
    pub bytes: Vec<u8>,
    pub accesses: Vec<Access>,
    /// What a device says to a command.
    pub retry: bool,
}

impl Memory {
    pub fn new(start: u64, bytes: &[u8]) -> Memory {
        Memory {
            start,
            bytes: bytes.to_vec(),
            accesses: Vec::new(),
            retry: false,
        }
    }

    fn at(&mut self, address: u64, length: usize) -> Result<&mut [u8], Fault> {
        let fault = Fault {
            address,
            kind: FaultKind::Page,
        };
        let offset = address.checked_sub(self.start).ok_or(fault)? as usize;
        let end = offset.checked_add(length).ok_or(fault)?;
        self.bytes.get_mut(offset..end).ok_or(fault)
    }
}

impl Space for Memory {
    fn load(&mut self, address: u64, data: &mut [u8]) -> Result<(), Fault> {
        data.copy_from_slice(self.at(address, data.len())?);
        self.accesses.push(Access::Load(address, data.len()));
        Ok(())
    }
    fn store(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.at(address, data.len())?.copy_from_slice(data);
        self.accesses.push(Access::Store(address, data.len()));
        Ok(())
    }
    fn enqueue(&mut self, address: u64, command: &[u8; 64]) -> Result<bool, Fault> {
        self.at(address, 64)?.copy_from_slice(command);
        self.accesses.push(Access::Enqueue(address));
        Ok(self.retry)
    }
}

/// Reproducible numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }
    pub fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
    /// A number of which the borders of arithmetic are likely.
    pub fn operand(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            _ => self.number(),
        }
    }
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let number = self.operand().to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}
