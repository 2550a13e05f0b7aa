//! A program on the published crates with one mistake in it, of the kind that is named: what the crates
//! say of it, and an exit status of 1.
//!
//! ```sh
//! ioasid run --explain --device dsa,driver=vfio -- target/debug/examples/planted msi
//! ```
// UNSAFETY: a descriptor is taken for an eventfd that is none.
#![allow(unsafe_code)]
#![allow(clippy::print_stderr, reason = "an example shows what it met")]

use std::{
    error::Error,
    fs::File,
    os::fd::{FromRawFd as _, IntoRawFd as _},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use passthrough_client::{
    Device, DmaMemory, DsaQueue, MemoryKind, Vm, discover,
    dsa::{Descriptor, Flags},
};
use vmm_sys_util::eventfd::EventFd;

const IOVA: u64 = 0x10_0000;
const BYTES: usize = 0x1_0000;

/// Makes the mistake; what the crates say of it.
fn make(mistake: &str) -> Result<String, Box<dyn Error>> {
    let memory = Arc::new(DmaMemory::new(BYTES, MemoryKind::Private)?);
    let vm = Vm::open()?;
    let device = vm.open_device(&discover::first_pdev()?.ok_or("no device")?)?;
    device.attach(vm.ioas())?;
    let area = vm.map(IOVA, &memory)?;
    let said: Result<String, String> = match mistake {
        "msi" => text(vm.map(0xfee0_0000, &memory)),
        "unaligned" => text(vm.map(IOVA + 8, &memory)),
        "twice" => text(vm.map(IOVA + 0x1000, &memory)),
        "cut" => text(vm.unmap_range(IOVA, 0x1000)),
        "attach" => text(device.attach(99)),
        "destroy" => text(vm.destroy(vm.ioas())),
        "hwpt" => text(vm.alloc_hwpt(&device, 0x40)),
        "irq" => {
            let file = File::open("/dev/null")?.into_raw_fd();
            // SAFETY: a descriptor that nobody else has, if not of the kind that is said.
            let event = unsafe { EventFd::from_raw_fd(file) };
            text(device.enable_vectors(&[event]))
        }
        "region" => text(device.try_read(Device::CONFIG, 4094, &mut [0; 4])),
        "dma" => {
            let mut queue = DsaQueue::bring_up(device, &area, 0, 1, Duration::from_secs(60))?;
            let mut copy = Descriptor::memmove(9 * IOVA, IOVA, 64);
            copy.flags = Flags::NONE;
            let done = queue.execute(copy)?;
            Err(format!("completion status {:#x}", done.record.status.0))
        }
        _ => return Err("which mistake?".into()),
    };
    match said {
        Ok(_) => Err("it was allowed".into()),
        Err(said) => Ok(said),
    }
}

fn text<T: std::fmt::Debug, E: std::fmt::Display>(result: Result<T, E>) -> Result<String, String> {
    match result {
        Ok(value) => Ok(format!("{value:?}")),
        Err(error) => Err(error.to_string()),
    }
}

fn main() -> ExitCode {
    let mistake = std::env::args().nth(1).unwrap_or_default();
    match make(&mistake) {
        Ok(said) => eprintln!("the crates say: {said}"),
        Err(error) => {
            eprintln!("planted: {error}");
            return ExitCode::from(2);
        }
    }
    ExitCode::FAILURE
}
