//! A program that does most things wrong, on purpose: one mistake after another, each once. Under
//! `ioasid run --explain` each gives one line, which says what was wrong with it.
//!
//! ```sh
//! ioasid run --explain --machine mistakes.toml -- target/debug/examples/mistakes
//! ```
//!
//! With the word `flood` it makes one mistake 20000 times.
//!
//! It prints a line for each: its name and the errno that it met; for DMA `fault`. The machine must have a
//! whole DSA at 0000:6b:01.0, a whole I/OAT at 0000:6c:01.0 and a mediated device.
// UNSAFETY: ioctls with structs of this file, some of them wrong; `mmap` without looking at the memory.
#![allow(unsafe_code)]
#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::{
    error::Error,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd as _},
        unix::fs::FileExt as _,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use passthrough_client::{
    DmaMemory, DsaQueue, MemoryKind, Vm, discover, dsa::Descriptor, dsa::Flags,
};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Words of a struct.
type Words = [u32];

const DESTROY: u32 = 0x3b80;
const IOAS_ALLOC: u32 = 0x3b81;
const IOVA_RANGES: u32 = 0x3b84;
const IOAS_MAP: u32 = 0x3b85;
const IOAS_UNMAP: u32 = 0x3b86;
const OPTION: u32 = 0x3b87;
const VFIO_IOAS: u32 = 0x3b88;
const HWPT_ALLOC: u32 = 0x3b89;
const SET_IOMMU: u32 = 0x3b66;
const SET_CONTAINER: u32 = 0x3b68;
const GET_DEVICE_FD: u32 = 0x3b6a;
const GET_INFO: u32 = 0x3b6b;
const GET_REGION_INFO: u32 = 0x3b6c;
const SET_IRQS: u32 = 0x3b6e;
const PCI_HOT_RESET: u32 = 0x3b71;
const IOEVENTFD: u32 = 0x3b74;
const FEATURE: u32 = 0x3b75;
const BIND: u32 = 0x3b76;
const ATTACH: u32 = 0x3b77;
const CONTAINER_INFO: u32 = 0x3b70;
const MAP_DMA: u32 = 0x3b71;
const UNMAP_DMA: u32 = 0x3b72;

const DSA: &str = "0000:6b:01.0";
const IOAT: &str = "0000:6c:01.0";
const CONFIG: u64 = 7 << 40;
const PAGE: u64 = 0x1000;
const IOVA: u64 = 0x10_0000;

/// `/dev/vfio/devices/vfioN` of a PCI device.
fn node(address: &str) -> Result<String> {
    let folder = format!("/sys/bus/pci/devices/{address}/vfio-dev");
    let entry = std::fs::read_dir(folder)?.next().ok_or("no vfio-dev")??;
    let name = entry.file_name().into_string().map_err(|_| "no text")?;
    Ok(format!("/dev/vfio/devices/{name}"))
}

/// `/dev/vfio/N` of a PCI device.
fn group(address: &str) -> Result<String> {
    let link = std::fs::read_link(format!("/sys/bus/pci/devices/{address}/iommu_group"))?;
    let number = link.file_name().ok_or("no group")?.to_string_lossy();
    Ok(format!("/dev/vfio/{number}"))
}

fn open(path: impl AsRef<Path>) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// An ioctl with a struct of 32-bit words.
fn ioctl(file: &impl AsRawFd, request: u32, words: &mut Words) -> io::Result<i32> {
    at(file, request, words.as_mut_ptr() as u64)
}

/// An ioctl with any argument.
fn at(file: &impl AsRawFd, request: u32, argument: u64) -> io::Result<i32> {
    // SAFETY: the kernel, or what stands for it, checks what it is given.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request.into(), argument) };
    match done {
        -1 => Err(io::Error::last_os_error()),
        done => Ok(done),
    }
}

/// Prints how a mistake ended.
fn mistake<T>(name: &str, result: io::Result<T>) -> Result<()> {
    match result {
        Ok(_) => Err(format!("{name}: it was allowed").into()),
        Err(error) => {
            println!("{name}: {}", error.raw_os_error().unwrap_or(0));
            Ok(())
        }
    }
}

/// Both halves of a 64-bit field.
fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

/// IOAS_MAP.
fn map(flags: u32, ioas: u32, va: u64, len: u64, iova: u64) -> [u32; 10] {
    let (va, len, iova) = (
        [low(va), high(va)],
        [low(len), high(len)],
        [low(iova), high(iova)],
    );
    [
        40, flags, ioas, 0, va[0], va[1], len[0], len[1], iova[0], iova[1],
    ]
}

/// The seven mistakes that all read `Invalid argument`, and others of the same command.
fn maps(iommu: &File, ioas: u32, memory: u64) -> Result<()> {
    let call = |mut words: [u32; 10]| ioctl(iommu, IOAS_MAP, &mut words);
    mistake("map-msi", call(map(7, ioas, memory, PAGE, 0xfee0_0000)))?;
    mistake("map-iova", call(map(7, ioas, memory, PAGE, IOVA + 1)))?;
    mistake("map-length", call(map(7, ioas, memory, PAGE + 1, IOVA)))?;
    mistake("map-address", call(map(7, ioas, memory + 1, PAGE, IOVA)))?;
    mistake("map-empty", call(map(7, ioas, memory, 0, IOVA)))?;
    mistake("map-aperture", call(map(7, ioas, memory, PAGE, 1 << 58)))?;
    mistake("map-no-flags", call(map(1, ioas, memory, PAGE, IOVA)))?;
    mistake("map-flag", call(map(0xf, ioas, memory, PAGE, IOVA)))?;
    let mut reserved = map(7, ioas, memory, PAGE, IOVA);
    reserved[3] = 7;
    mistake("map-reserved", call(reserved))?;
    let mut short = map(7, ioas, memory, PAGE, IOVA);
    short[0] = 8;
    mistake("map-size", call(short))?;
    let mut long = [0; 12];
    long[..10].copy_from_slice(&map(7, ioas, memory, PAGE, IOVA));
    (long[0], long[10]) = (48, 1);
    mistake("map-tail", ioctl(iommu, IOAS_MAP, &mut long))?;
    mistake("map-object", call(map(7, 99, memory, PAGE, IOVA)))?;
    call(map(7, ioas, memory, 2 * PAGE, IOVA))?;
    mistake("map-twice", call(map(7, ioas, memory, PAGE, IOVA + PAGE)))?;
    mistake("map-nowhere", call(map(7, ioas, 0x1000, PAGE, 2 * IOVA)))?;
    mistake("map-end", call(map(7, ioas, memory, PAGE, u64::MAX)))?;
    let unmap = |iova: u64, len: u64| {
        let mut words = [24, ioas, low(iova), high(iova), low(len), high(len)];
        ioctl(iommu, IOAS_UNMAP, &mut words)
    };
    mistake("unmap-nothing", unmap(8 * IOVA, PAGE))?;
    mistake("unmap-cut", unmap(IOVA, PAGE))?;
    unmap(IOVA, 2 * PAGE)?;
    Ok(())
}

/// Other commands of `/dev/iommu`.
fn objects(iommu: &File, ioas: u32) -> Result<()> {
    mistake("iommu-ioctl", ioctl(iommu, 0x3bff, &mut [8, 0]))?;
    mistake("iommu-address", at(iommu, DESTROY, 8))?;
    mistake("destroy-used", ioctl(iommu, DESTROY, &mut [8, ioas]))?;
    mistake(
        "ranges-room",
        ioctl(iommu, IOVA_RANGES, &mut [32, ioas, 0, 0, 0, 0, 0, 0]),
    )?;
    mistake("option", ioctl(iommu, OPTION, &mut [24, 99, 0, 0, 0, 0]))?;
    mistake(
        "option-value",
        ioctl(iommu, OPTION, &mut [24, 1, 0, ioas, 7, 0]),
    )?;
    mistake("vfio-ioas", ioctl(iommu, VFIO_IOAS, &mut [12, 0, 0]))?;
    let mut hwpt = [0; 12];
    (hwpt[0], hwpt[2], hwpt[3]) = (48, 77, ioas);
    mistake("hwpt-device", ioctl(iommu, HWPT_ALLOC, &mut hwpt))?;
    mistake("iommu-read", iommu.read_at(&mut [0; 8], 0))
}

/// Bind and attach, with and without a PASID.
fn attaches(iommu: &File, ioas: u32, device: &File) -> Result<()> {
    let bind = |fd: i32| ioctl(device, BIND, &mut [16, 0, fd as u32, 0]);
    mistake("unbound", ioctl(device, GET_INFO, &mut [16, 0, 0, 0]))?;
    let other = File::open("/dev/null")?;
    mistake("bind-file", bind(other.as_raw_fd()))?;
    mistake("bind-negative", bind(-1))?;
    bind(iommu.as_raw_fd())?;
    mistake("bind-again", bind(iommu.as_raw_fd()))?;
    mistake("attach-object", ioctl(device, ATTACH, &mut [12, 0, 99]))?;
    ioctl(device, ATTACH, &mut [12, 0, ioas])?;
    let pasid = |pasid: u32| ioctl(device, ATTACH, &mut [16, 1, ioas, pasid]);
    mistake("attach-pasid-0", pasid(1 << 20))?;
    mistake("attach-pasid-plain", pasid(5))?;
    mistake("attach-argsz", ioctl(device, ATTACH, &mut [12, 1, ioas, 5]))
}

/// Regions, interrupts and features.
fn registers(device: &File) -> Result<()> {
    mistake(
        "region-index",
        ioctl(device, GET_REGION_INFO, &mut [32, 0, 12, 0, 0, 0, 0, 0]),
    )?;
    mistake("region-none", device.read_at(&mut [0; 4], 12 << 40))?;
    mistake("config-end", device.read_at(&mut [0; 4], CONFIG + 4094))?;
    device.write_all_at(&0u16.to_le_bytes(), CONFIG + 4)?;
    mistake("memory-off", device.read_at(&mut [0; 8], 0))?;
    device.write_all_at(&6u16.to_le_bytes(), CONFIG + 4)?;
    mistake("bar-end", device.read_at(&mut [0; 8], 1 << 39))?;
    let irqs = |words: &mut Words| ioctl(device, SET_IRQS, words);
    mistake("irq-index", irqs(&mut [24, 0x24, 9, 0, 1, 0]))?;
    mistake("irq-vectors", irqs(&mut [24, 0x24, 2, 0, 4096, 0]))?;
    mistake(
        "irq-eventfd",
        irqs(&mut [24, 0x24, 2, 0, 1, device.as_raw_fd() as u32]),
    )?;
    mistake("irq-action", irqs(&mut [24, 0x4, 2, 0, 1, 0]))?;
    mistake("irq-data", irqs(&mut [24, 0x27, 2, 0, 1, 0]))?;
    mistake("irq-argsz", irqs(&mut [20, 0x24, 2, 0, 1, 0]))?;
    mistake("feature", ioctl(device, FEATURE, &mut [8, 11 | 1 << 16]))?;
    mistake("feature-way", ioctl(device, FEATURE, &mut [8, 5 | 1 << 16]))?;
    mistake("hot-reset", ioctl(device, PCI_HOT_RESET, &mut [12, 0, 0]))?;
    mistake(
        "ioeventfd",
        ioctl(device, IOEVENTFD, &mut [32, 3, 0, 0, 0, 0, 0, 0]),
    )?;
    for (name, kind, offset) in [
        ("mmap-private", libc::MAP_PRIVATE, 0),
        ("mmap-config", libc::MAP_SHARED, CONFIG),
    ] {
        let (prot, fd) = (libc::PROT_READ, device.as_raw_fd());
        // SAFETY: a new mapping, of which nothing is used.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                prot,
                kind,
                fd,
                offset.cast_signed(),
            )
        };
        let refused = match mapped {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            _ => Ok(()),
        };
        mistake(name, refused)?;
    }
    Ok(())
}

/// A container, and the DMA of an I/OAT in it.
fn container(memory: &DmaMemory) -> Result<()> {
    let container = open("/dev/vfio/vfio")?;
    mistake(
        "container-info",
        ioctl(&container, CONTAINER_INFO, &mut [24, 0, 0, 0, 0, 0]),
    )?;
    mistake("container-group", at(&container, SET_IOMMU, 3))?;
    let group = open(group(IOAT)?)?;
    let name = std::ffi::CString::new(IOAT)?;
    let open_device = || at(&group, GET_DEVICE_FD, name.as_ptr() as u64);
    mistake("group-container", open_device())?;
    let null = File::open("/dev/null")?;
    let mut fd = [null.as_raw_fd() as u32];
    mistake("group-file", ioctl(&group, SET_CONTAINER, &mut fd))?;
    fd[0] = container.as_raw_fd() as u32;
    ioctl(&group, SET_CONTAINER, &mut fd)?;
    mistake("container-type", at(&container, SET_IOMMU, 9))?;
    at(&container, SET_IOMMU, 3)?;
    mistake("container-ioctl", at(&container, 0x3b7f, 0))?;
    mistake(
        "group-device",
        at(&group, GET_DEVICE_FD, c"0000:99:00.0".as_ptr() as u64),
    )?;
    // SAFETY: a new descriptor that nobody else has.
    let device = unsafe { File::from_raw_fd(open_device()?) };
    let address = memory.address();
    let map = |flags: u32, iova: u64, len: u64| {
        let (va, iova, len) = (
            [low(address), high(address)],
            [low(iova), high(iova)],
            [low(len), high(len)],
        );
        let mut words = [32, flags, va[0], va[1], iova[0], iova[1], len[0], len[1]];
        ioctl(&container, MAP_DMA, &mut words)
    };
    mistake("dma-map-aligned", map(3, IOVA + 1, PAGE))?;
    map(3, IOVA, 4 * PAGE)?;
    map(1, 2 * IOVA, PAGE)?;
    mistake("dma-map-twice", map(3, IOVA, PAGE))?;
    mistake("dma-map-flags", map(0x13, 3 * IOVA, PAGE))?;
    mistake("dma-unmap-cut", {
        let mut words = [24, 0, low(IOVA), 0, low(PAGE), 0];
        ioctl(&container, UNMAP_DMA, &mut words)
    })?;
    device.write_all_at(&6u16.to_le_bytes(), CONFIG + 4)?;
    copy(&device, memory, 5 * IOVA, IOVA + PAGE)?;
    println!("ioat-not-mapped: fault");
    copy(&device, memory, IOVA + PAGE, 2 * IOVA)?;
    println!("ioat-read-only: fault");
    Ok(())
}

/// A copy of the I/OAT's first channel that ends in an error (registers as in Linux
/// `drivers/dma/ioat/registers.h`). The descriptor is at the start of the memory.
fn copy(device: &File, memory: &DmaMemory, from: u64, to: u64) -> Result<()> {
    let descriptor = [0x100 | 9 << 32, from, to, 0];
    for (at, word) in descriptor.into_iter().enumerate() {
        memory.write(8 * at as u64, &u64::to_le_bytes(word));
    }
    let halves = |offset: u64, value: u64| -> io::Result<()> {
        device.write_all_at(&low(value).to_le_bytes(), offset)?;
        device.write_all_at(&high(value).to_le_bytes(), offset + 4)
    };
    device.write_all_at(&[0x20], 0x84)?;
    let mut command = [0x20];
    while command[0] & 0x20 != 0 {
        device.read_exact_at(&mut command, 0x84)?;
    }
    // The completion word, the chain, and one descriptor of it.
    halves(0x98, IOVA + 0x200)?;
    halves(0x90, IOVA)?;
    device.write_all_at(&1u16.to_le_bytes(), 0x86)?;
    // Halted.
    let mut status = [0; 4];
    while u32::from_le_bytes(status) & 7 != 3 {
        device.read_exact_at(&mut status, 0x88)?;
    }
    Ok(())
}

/// DMA of a mediated queue of a DSA to an address that is not mapped, by way of the published crates.
fn queue(memory: &Arc<DmaMemory>) -> Result<()> {
    let vm = Vm::open()?;
    let area = vm.map(IOVA, memory)?;
    let device = vm.open_device(&discover::first_mdev()?.ok_or("no mediated device")?)?;
    device.attach(vm.ioas())?;
    mistake(
        "mdev-pasid",
        ioctl(device.vfio(), ATTACH, &mut [16, 1, vm.ioas(), 5]),
    )?;
    let mut queue = DsaQueue::bring_up(device, &area, 0, 1, Duration::from_secs(60))?;
    let mut copy = Descriptor::memmove(9 * IOVA, IOVA + PAGE, 64);
    copy.flags = Flags::NONE;
    let done = queue.execute(copy)?;
    if done.record.fault_address != 9 * IOVA {
        return Err(format!("no fault: {done:?}").into());
    }
    println!("dsa-not-mapped: fault");
    Ok(())
}

/// A call that is refused, as often as it takes to fill every pipe.
fn flood() -> Result<()> {
    let iommu = open("/dev/iommu")?;
    for number in 0..20_000 {
        ioctl(&iommu, DESTROY, &mut [8, 1000 + number]).expect_err("there is no such object");
    }
    println!("done");
    Ok(())
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("flood") {
        return flood();
    }
    let memory = Arc::new(DmaMemory::new(16 * PAGE as usize, MemoryKind::Private)?);
    let iommu = open("/dev/iommu")?;
    let mut alloc = [12, 0, 0];
    ioctl(&iommu, IOAS_ALLOC, &mut alloc)?;
    let ioas = alloc[2];
    let device = open(node(DSA)?)?;
    attaches(&iommu, ioas, &device)?;
    mistake("group-busy", open(group(DSA)?))?;
    maps(&iommu, ioas, memory.address())?;
    objects(&iommu, ioas)?;
    registers(&device)?;
    container(&memory)?;
    queue(&memory)
}
