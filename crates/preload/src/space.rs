//! Memory as the instruction sees it.

use ioasid_mmio::{Fault, FaultKind, Space};

use crate::{
    ask,
    call::{Kind, Shape},
    sys,
};

/// What is known of the page that an access lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Belief {
    /// The session has answered for it, or it has just raised SIGBUS.
    Register,
    Unknown,
}

/// The memory of this process. Registers are the session's business, everything else is copied as
/// another process would copy it, so that what is not there is an error here and no second signal.
#[derive(Debug)]
pub struct OwnMemory {
    /// Pages (addresses over 4096) with registers.
    registers: [u64; 2],
    next: usize,
    /// Only registers are to be touched.
    strict: bool,
    /// Whether a register has been touched.
    touched: bool,
}

const PAGE_SHIFT: u32 = 12;

impl OwnMemory {
    /// The memory, when an access at `address` has raised SIGBUS.
    pub fn faulted(address: u64) -> Self {
        OwnMemory {
            registers: [address >> PAGE_SHIFT; 2],
            next: 0,
            strict: false,
            touched: false,
        }
    }

    /// The memory, for an instruction that the processor does not know: what it stores to has to be
    /// a register, or else the program is to have its signal.
    pub fn unknown_instruction() -> Self {
        OwnMemory {
            registers: [u64::MAX; 2],
            next: 0,
            strict: true,
            touched: false,
        }
    }

    /// Whether a register has been touched.
    pub fn has_touched(&self) -> bool {
        self.touched
    }

    fn belief(&self, address: u64) -> Belief {
        if self.registers.contains(&(address >> PAGE_SHIFT)) {
            Belief::Register
        } else {
            Belief::Unknown
        }
    }

    /// The session answered for it.
    fn learn(&mut self, address: u64) {
        self.touched = true;
        let page = address >> PAGE_SHIFT;
        if !self.registers.contains(&page) {
            if let Some(place) = self.registers.get_mut(self.next) {
                *place = page;
            }
            self.next ^= 1;
        }
    }

    fn register_load(&mut self, address: u64, data: &mut [u8]) -> bool {
        let mut buffer = [0; 64];
        if !self.register(Kind::Load, address, data.len(), &mut buffer) {
            return false;
        }
        for (to, from) in data.iter_mut().zip(buffer) {
            *to = from;
        }
        true
    }

    fn register_store(&mut self, address: u64, data: &[u8]) -> bool {
        let mut buffer = [0; 64];
        for (to, from) in buffer.iter_mut().zip(data) {
            *to = *from;
        }
        self.register(Kind::Store, address, data.len(), &mut buffer)
    }

    fn register(&mut self, kind: Kind, address: u64, size: usize, buffer: &mut [u8; 64]) -> bool {
        let done = ask::access(address, Shape { kind, size }, buffer);
        if done {
            self.learn(address);
        }
        done
    }

    /// What an access to something that is neither memory nor a register is.
    fn fault(&self, address: u64) -> Fault {
        let kind = match self.belief(address) {
            Belief::Register => FaultKind::Bus,
            Belief::Unknown => FaultKind::Page,
        };
        Fault { address, kind }
    }
}

/// How a copy of our own memory ended.
enum Copied {
    All,
    Partly,
    /// The kernel has no such call, or a filter forbids it.
    Refused,
}

fn copied(len: usize, ret: i64) -> Copied {
    match ret {
        _ if ret == len as i64 => Copied::All,
        _ if ret == -sys::ENOSYS || ret == -sys::EPERM => Copied::Refused,
        _ => Copied::Partly,
    }
}

impl Space for OwnMemory {
    fn load(&mut self, address: u64, data: &mut [u8]) -> Result<(), Fault> {
        if self.belief(address) == Belief::Unknown {
            match copied(data.len(), sys::read_own(address, data)) {
                Copied::All => return Ok(()),
                Copied::Partly => {}
                Copied::Refused => {
                    for (at, byte) in (address..).zip(data) {
                        // SAFETY: the program's own instruction reads here; if it may not, it gets
                        // the signal that it would have had.
                        *byte = unsafe { (at as *const u8).read_volatile() };
                    }
                    return Ok(());
                }
            }
        }
        if self.register_load(address, data) {
            return Ok(());
        }
        Err(self.fault(address))
    }

    fn store(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        if self.belief(address) == Belief::Unknown && !self.strict {
            match copied(data.len(), sys::write_own(address, data)) {
                Copied::All => return Ok(()),
                Copied::Partly => {}
                Copied::Refused => {
                    for (at, byte) in (address..).zip(data) {
                        // SAFETY: as above, for the instruction's store.
                        unsafe { (at as *mut u8).write_volatile(*byte) };
                    }
                    return Ok(());
                }
            }
        }
        if self.register_store(address, data) {
            return Ok(());
        }
        Err(self.fault(address))
    }

    fn enqueue(&mut self, address: u64, command: &[u8; 64]) -> Result<bool, Fault> {
        let mut buffer = *command;
        if !self.register(Kind::Enqueue, address, command.len(), &mut buffer) {
            return Err(self.fault(address));
        }
        let [refused, ..] = buffer;
        Ok(refused != 0)
    }
}
