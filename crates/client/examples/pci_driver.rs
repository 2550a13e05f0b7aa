//! A driver on the crate `pci-driver`, which knows nothing but legacy containers: it maps the registers
//! of an I/OAT, copies a few MiB by chains of descriptors with one interrupt each, and resets the device.
//!
//! ```sh
//! ioasid run --device ioat,driver=vfio -- target/debug/examples/pci_driver 0000:6a:01.0
//! ```
// UNSAFETY: `pci-driver` takes memory for DMA as a pointer; it is mapped for longer than the device.
#![allow(unsafe_code)]
#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::{error::Error, os::fd::AsRawFd as _};

use passthrough_client::{DmaMemory, MemoryKind};
use pci_driver::{
    backends::vfio::VfioPciDevice,
    device::PciDevice as _,
    regions::{MappedOwningPciRegion, PciRegion as _, Permissions},
};
use vmm_sys_util::eventfd::EventFd;

/// Where the memory is for the device: descriptors, the completion word, source and destination.
const IOVA: u64 = 0x10_0000;
const WORD: u64 = 0x1000;
const SOURCE: u64 = 0x10_0000;
const DESTINATION: u64 = 0x20_0000;
const BYTES: usize = 0x30_0000;
/// Bytes of one descriptor's copy, and descriptors of a chain.
const PIECE: u64 = 0x1_0000;
const CHAIN: u64 = 16;
const ROUNDS: u64 = 20;

/// The first channel's registers in BAR 0 (names as in Linux `drivers/dma/ioat/registers.h`).
const INTRCTRL: u64 = 0x03;
const CHANCTRL: u64 = 0x80;
const CHANCMD: u64 = 0x84;
const DMACOUNT: u64 = 0x86;
const CHAINADDR: u64 = 0x90;
const CHANCMP: u64 = 0x98;
/// Vectors of the channels' own; tell of a completion again; reset.
const MSIX_VECTOR_CONTROL: u8 = 0x08;
const INT_REARM: u16 = 0x01;
const RESET: u8 = 0x20;
/// Of a descriptor: interrupt, and write the completion word.
const INT_AND_COMPLETION: u64 = 0x09 << 32;

/// A register of 64 bits, which takes two stores of 32.
fn write64(registers: &MappedOwningPciRegion, offset: u64, value: u64) -> std::io::Result<()> {
    registers.write_le_u32(offset, value as u32)?;
    registers.write_le_u32(offset + 4, (value >> 32) as u32)
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("which device?")?;
    let memory = DmaMemory::new(BYTES, MemoryKind::Private)?;
    let device = VfioPciDevice::open(format!("/sys/bus/pci/devices/{address}"))?;
    let config = device.config();
    let ids = (config.vendor_id().read()?, config.device_id().read()?);
    if ids != (0x8086, 0x2021) {
        return Err(format!("{:04x}:{:04x} is no I/OAT", ids.0, ids.1).into());
    }
    device.reset()?;
    config.command().memory_space_enable().write(true)?;
    config.command().bus_master_enable().write(true)?;
    let capabilities = config.capabilities()?.into_iter().count();

    let registers = device
        .bar(0)
        .ok_or("no BAR 0")?
        .map(.., Permissions::ReadWrite)?;
    let interrupts = device.interrupts();
    let interrupts = interrupts.msi_x();
    let completed = EventFd::new(0)?;
    interrupts.enable(&[completed.as_raw_fd()])?;
    let at = memory.address() as *const u8;
    // SAFETY: the memory is unmapped before it goes, and nobody has a reference to its bytes.
    unsafe {
        device
            .iommu()
            .map(IOVA, BYTES, at, Permissions::ReadWrite)?
    };

    registers.write_u8(INTRCTRL, MSIX_VECTOR_CONTROL)?;
    write64(&registers, CHANCMP, IOVA + WORD)?;
    let mut delivered = 0;
    for round in 0..ROUNDS {
        memory.fill_pattern(SOURCE, CHAIN * PIECE, round);
        for n in 0..CHAIN {
            let last = n + 1 == CHAIN;
            let words = [
                PIECE | if last { INT_AND_COMPLETION } else { 0 },
                IOVA + SOURCE + n * PIECE,
                IOVA + DESTINATION + n * PIECE,
                if last { 0 } else { IOVA + (n + 1) * 64 },
            ];
            for (index, word) in (0..).zip(words) {
                memory.write(n * 64 + index * 8, &word.to_le_bytes());
            }
        }
        // A chain begins where a reset has left the channel.
        registers.write_u8(CHANCMD, RESET)?;
        while registers.read_u8(CHANCMD)? & RESET != 0 {}
        write64(&registers, CHAINADDR, IOVA)?;
        registers.write_le_u16(CHANCTRL, INT_REARM)?;
        registers.write_le_u16(DMACOUNT, CHAIN as u16)?;
        delivered += completed.read()?;
        if let Some(offset) = memory.first_difference(DESTINATION, CHAIN * PIECE, round) {
            return Err(format!("round {round}: byte {offset:#x} is wrong").into());
        }
    }
    device.iommu().unmap(IOVA, BYTES)?;
    interrupts.disable()?;
    device.reset()?;
    println!(
        "pci-driver: {capabilities} capabilities, {} MiB in {ROUNDS} chains, {delivered} interrupts",
        (ROUNDS * CHAIN * PIECE) >> 20
    );
    Ok(())
}
