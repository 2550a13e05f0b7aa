//! Raw bytes as one instruction that touched a register: whatever they are, the emulator ends, with
//! a bounded number of accesses, and an error leaves the instruction pointer where it was.
//!
//! An input is 16 bytes of addresses and flags, one for each general register, then the instruction.
#![no_main]

use ioasid_mmio::{Cpu, Fault, FaultKind, MAX_ITERATIONS, Segment, Space, execute};
use libfuzzer_sys::fuzz_target;

const BASE: u64 = 0x10_0000;

struct Thread {
    gpr: [u64; 16],
    vectors: [[u8; 64]; 32],
    opmasks: [u64; 8],
    rip: u64,
    flags: u64,
}

impl Cpu for Thread {
    fn gpr(&self, index: u8) -> u64 {
        self.gpr[usize::from(index)]
    }
    fn set_gpr(&mut self, index: u8, value: u64) {
        self.gpr[usize::from(index)] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn flags(&self) -> u64 {
        self.flags
    }
    fn set_flags(&mut self, flags: u64) {
        self.flags = flags;
    }
    fn vector(&self, index: u8) -> [u8; 64] {
        self.vectors[usize::from(index)]
    }
    fn set_vector(&mut self, index: u8, value: &[u8; 64]) {
        self.vectors[usize::from(index)] = *value;
    }
    fn opmask(&self, index: u8) -> u64 {
        self.opmasks[usize::from(index)]
    }
    fn set_opmask(&mut self, index: u8, value: u64) {
        self.opmasks[usize::from(index)] = value;
    }
    fn segment_base(&self, segment: Segment) -> u64 {
        match segment {
            Segment::Fs => 0x40,
            Segment::Gs => u64::MAX,
        }
    }
}

/// Memory with a hole below `BASE`.
struct Memory(u64);

impl Memory {
    fn at(&mut self, address: u64, length: usize) -> Result<(), Fault> {
        assert!(matches!(length, 1 | 2 | 4 | 8 | 16 | 32 | 64));
        self.0 += 1;
        if address < BASE {
            return Err(Fault {
                address,
                kind: FaultKind::Bus,
            });
        }
        Ok(())
    }
}

impl Space for Memory {
    fn load(&mut self, address: u64, data: &mut [u8]) -> Result<(), Fault> {
        self.at(address, data.len())?;
        data.fill(address.to_le_bytes()[0]);
        Ok(())
    }
    fn store(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.at(address, data.len())
    }
    fn enqueue(&mut self, address: u64, _: &[u8; 64]) -> Result<bool, Fault> {
        self.at(address, 64)?;
        Ok(address & 64 != 0)
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((registers, code)) = data.split_first_chunk::<16>() else {
        return;
    };
    let mut thread = Thread {
        gpr: registers.map(|byte| match byte {
            0..=191 => BASE + u64::from(byte),
            _ => u64::from(byte) << (byte % 57),
        }),
        vectors: [[registers[0]; 64]; 32],
        opmasks: [u64::from_le_bytes([registers[1]; 8]); 8],
        rip: 0x1000,
        flags: 2 | u64::from(registers[2]) | u64::from(registers[3] & 0xc) << 8,
    };
    let mut memory = Memory(0);
    if execute(code, &mut thread, &mut memory).is_err() {
        assert_eq!(thread.rip, 0x1000);
    }
    assert!(memory.0 <= 2 * u64::from(MAX_ITERATIONS) + 64);
});
