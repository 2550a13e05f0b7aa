//! Mappings that lead to registers.

use std::sync::{Arc, Mutex};

use ioasid_core::{
    access::Prot,
    memory::{MemoryGone, PinError},
};
use ioasid_host::Registers;

use crate::dma::Fixture;

const LEN: u64 = 1 << 16;

/// Answers a load with the low byte of its offset, and writes down what comes.
#[derive(Debug, Default)]
struct Journal(Mutex<Vec<(u64, usize)>>);

impl Registers for Journal {
    fn load(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        for (byte, at) in dst.iter_mut().zip(offset..) {
            *byte = at as u8;
        }
        Ok(())
    }

    fn store(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.0.lock().unwrap().push((offset, src.len()));
        Ok(())
    }
}

/// A file of registers that the child has mapped, and where.
fn mapped(f: &mut Fixture) -> ((u64, u64), u64, Arc<Journal>) {
    let fd = f.child.ask(&format!("memfd {LEN}"));
    let address = f.child.ask(&format!("map {fd} {LEN} rw"));
    let file = f.process.fd_identity(fd as i32).unwrap();
    let journal = Arc::new(Journal::default());
    f.client.add_registers(file, journal.clone());
    (file, address, journal)
}

#[test]
fn registers_are_no_memory_unless_the_request_allows_for_them() {
    let mut f = Fixture::new();
    let (file, address, _journal) = mapped(&mut f);
    assert_eq!(f.pin(address, 4096, Prot::RW).unwrap_err(), PinError::Fault);
    let pin = |len| {
        let pages = f.process.pages_or_registers(address, len)?;
        pages.pin(0, len, Prot::RW)
    };
    assert_eq!(pin(LEN).unwrap()[0].len, LEN);
    assert_eq!(pin(LEN + 4096).unwrap_err(), PinError::Fault, "beyond them");
    f.client.remove_registers(file);
    // A file like any other again.
    assert!(f.pin(address, 4096, Prot::RW).is_ok());
}

#[test]
fn dma_to_registers_arrives_as_aligned_accesses_of_at_most_8_bytes() {
    let mut f = Fixture::new();
    let (file, address, journal) = mapped(&mut f);
    let pages = f.process.pages_or_registers(address + 0x1000, 0x2000);
    let pages = pages.unwrap().pin(4, 0x1ffc, Prot::RW).unwrap();
    assert!(!f.is_direct(&pages));
    f.write(&pages, &[0; 15]).unwrap();
    let stores = std::mem::take(&mut *journal.0.lock().unwrap());
    assert_eq!(stores, [(0x1004, 4), (0x1008, 8), (0x1010, 2), (0x1012, 1)]);
    assert_eq!(f.read(&pages, 5).unwrap(), [4, 5, 6, 7, 8]);

    // When the device is closed nothing answers, but the address stays taken.
    f.client.remove_registers(file);
    drop(journal);
    assert_eq!(f.read(&pages, 5), Err(MemoryGone { done: 0 }));
    assert_eq!(f.write(&pages, &[0; 4]), Err(MemoryGone { done: 0 }));
}

#[test]
fn registers_take_a_window_as_long_as_they_are_mapped_for_dma() {
    let mut f = Fixture::new();
    let (_, address, _journal) = mapped(&mut f);
    let pages = f.process.pages_or_registers(address, LEN).unwrap();
    let extents = pages.pin(0, LEN, Prot::RW).unwrap();
    assert_eq!(f.space.used_windows(), 1);
    drop(extents);
    f.space.grace().collect();
    assert_eq!(f.space.used_windows(), 0);
}
