//! The device side of a VMM, in one page: guest memory by `vm-memory`, a whole I/OAT and a channel of
//! another as a mediated device, one address space for both. docs/how-to/embed.md walks through it;
//! `cargo run -p ioasid-host --example vmm` runs it.
#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::{
    error::Error,
    fs::File,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use ioasid_core::{
    Prot,
    host::{IrqSink, StdSpawner},
};
use ioasid_host::{Client, Closer, ReceivedFd, prepare_received};
use ioasid_ioat::spec::{DESCRIPTOR_SIZE, Descriptor, registers as reg};
use ioasid_iommufd::MapArgs;
use ioasid_machine::{Machine, MachineFile};
use ioasid_vfio::{DeviceFile, Eventfd, IrqAction, IrqData, IrqIndex, SetIrqs};
use vm_memory::{
    Bytes as _, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap,
    GuestMemoryRegion as _,
};

/// The parent keeps its first channel for its own driver; the second goes to the VM.
const MACHINE: &str = r#"
[[device]]
model = "ioat"
address = "0000:6a:01.0"
driver = "host"
  [[device.queue]]
  owner = "host"
  [[device.queue]]
  owner = "mdev"
  uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01"
  vm = "vm1"

[[device]]
model = "ioat"
address = "0000:6b:01.0"
driver = "vfio"
vm = "vm1"
"#;

/// Guest memory with a hole, as a PC has it: (guest-physical address, bytes).
const MEMORY: [(u64, usize); 2] = [(0, 16 << 20), (1 << 32, 16 << 20)];

/// An interrupt of a device: a VMM would raise the guest's vector.
#[derive(Debug)]
struct Vector(Sender<()>);

impl IrqSink for Vector {
    fn signal(&self) {
        // Nobody listens any more when the VM has ended.
        let _ = self.0.send(());
    }
}

/// What a VMM does once for a device: opens it, puts it into the guest's address space, and connects
/// its first vector.
fn plug(
    device: &ioasid_machine::ExportedDevice,
    context: &Arc<ioasid_iommufd::Context>,
    ioas: ioasid_iommufd::ObjectId,
) -> Result<(Arc<DeviceFile>, Receiver<()>), Box<dyn Error>> {
    let file = device.device.open()?;
    file.bind(context)?;
    file.attach(ioas, None)?;
    let (vector, interrupts) = channel();
    let sink: Arc<dyn IrqSink> = Arc::new(Vector(vector));
    file.set_irqs(&SetIrqs {
        index: IrqIndex::Msix,
        action: IrqAction::Trigger,
        start: 0,
        count: 1,
        data: IrqData::Eventfds(vec![Eventfd::Sink(sink)]),
    })?;
    Ok((file, interrupts))
}

/// A driver in the guest: its memory accesses go to guest memory, its register accesses leave the
/// guest, and the VMM makes them. Copies `len` bytes from `from` to `to` by one descriptor at `at`.
fn guest_copies(
    memory: &GuestMemoryMmap,
    device: &DeviceFile,
    [at, from, to]: [u64; 3],
    len: u32,
) -> Result<(), Box<dyn Error>> {
    let descriptor = Descriptor::copy(to, from, len).with_control(|control| {
        control.set_int_en(true);
        control.set_compl_write(true);
    });
    memory.write_slice(&descriptor.to_bytes(), GuestAddress(at))?;
    // PCI_COMMAND in region 7, configuration space: memory and bus mastering on.
    device.write((7 << 40) + 4, &6_u16.to_le_bytes())?;
    // In BAR 0: vectors of the channels on, then the first channel's block.
    device.write(reg::INTRCTRL, &[0x08])?;
    let completion = at + DESCRIPTOR_SIZE as u64;
    device.write(
        reg::CHANNEL_STRIDE + reg::CHANCMP,
        &completion.to_le_bytes(),
    )?;
    device.write(reg::CHANNEL_STRIDE + reg::CHANCTRL, &1_u16.to_le_bytes())?;
    device.write(reg::CHANNEL_STRIDE + reg::CHAINADDR, &at.to_le_bytes())?;
    device.write(reg::CHANNEL_STRIDE + reg::DMACOUNT, &1_u16.to_le_bytes())?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    // Guest memory in a memfd: what the VMM maps, and what the devices reach, without a copy.
    prepare_received()?;
    let size: usize = MEMORY.iter().map(|(_, len)| len).sum();
    let memfd = File::from(rustix::fs::memfd_create(
        "guest",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    memfd.set_len(size as u64)?;
    let mut start = 0;
    let mut regions = Vec::new();
    for (address, len) in MEMORY {
        let file = FileOffset::new(memfd.try_clone()?, start);
        regions.push((GuestAddress(address), len, Some(file)));
        start += len as u64;
    }
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files(regions)?;

    // The machine, and the guest's address space: every region at its guest-physical address.
    let machine = Machine::build("vmm", &MACHINE.parse::<MachineFile>()?, &StdSpawner)?;
    let client = Client::new("vm1", Arc::clone(machine.iommu().space()))?;
    let closer = Closer::new("vm1");
    let context = machine.new_context();
    let ioas = context.ioas_alloc()?;
    for region in memory.iter() {
        let file = region.file_offset().ok_or("a region has no file")?;
        let fd = ReceivedFd::new(file.file().try_clone()?.into(), &closer);
        let (_, pages) = client.received_file(fd, file.start(), region.len())?;
        let at = region.start_addr().0;
        context.ioas_map(ioas, pages, MapArgs::fixed(at, region.len(), Prot::RW))?;
    }

    // Its devices: one whole, one a queue of a parent that goes on with its own work.
    let before = machine.iommu().paging_domains();
    let [whole, mediated] = machine
        .exports()
        .try_into()
        .map_err(|_| "the machine has two devices for VMs")?;
    let plugged = [
        plug(&whole, &context, ioas)?,
        plug(&mediated, &context, ioas)?,
    ];
    println!(
        "{} and {} are in one domain; the machine has {} more than before",
        whole.name,
        mediated.name,
        machine.iommu().paging_domains() - before
    );
    assert_eq!(machine.iommu().paging_domains() - before, 1);

    // The guest: one copy by each device, from below the hole to above it.
    for (number, (device, interrupts)) in plugged.iter().enumerate() {
        let number = number as u64;
        let from = 0x10_0000 + number * 0x1_0000;
        let to = (1 << 32) + number * 0x1_0000;
        let text = format!("copied by device {number}");
        memory.write_slice(text.as_bytes(), GuestAddress(from))?;
        let len = text.len() as u32;
        guest_copies(&memory, device, [0x1000 + number * 0x1000, from, to], len)?;
        interrupts.recv_timeout(Duration::from_secs(60))?;
        let mut copy = vec![0; text.len()];
        memory.read_slice(&mut copy, GuestAddress(to))?;
        println!("{:#x}: {}", to, String::from_utf8_lossy(&copy));
        assert_eq!(copy, text.as_bytes());
    }
    Ok(())
}

#[test]
fn it_does_what_it_says() -> Result<(), Box<dyn Error>> {
    main()
}
