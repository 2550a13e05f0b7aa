//! Shared virtual addressing in two virtual machines, as a VMM gives it: a virtual IOMMU reads its guest's
//! table of PASIDs, and nests each first-stage table on the domain of that guest's memory. Four guest
//! processes on two devices, one of them shared by the machines; docs/how-to/embed.md tells more.
//! `cargo run -p ioasid-iommu --example vsva` runs it.
#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::{collections::BTreeMap, error::Error, sync::Arc};

use ioasid_core::{
    AddrRange, Pasid, Prot,
    memory::{OwnPages, PAGE_SIZE},
};
use ioasid_iommu::{
    Device, DeviceConfig, DmaSource, Domain, DomainConfig, FaultLog, FaultSink, FirstStage,
    Invalidate, Iommu, IommuConfig,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

// The virtual IOMMU: from here to the end of `impl Viommu`.

/// A guest's IOMMU. Its table of PASIDs is one page of entries of 64 bytes (Intel VT-d specification, 9.6,
/// scalable-mode PASID table entry; the directory above it is left out).
struct Viommu {
    memory: OwnPages,
    /// The guest's physical memory: what all its devices end in.
    gpa: Arc<Domain>,
    table: u64,
    attached: BTreeMap<(u32, Pasid), (DmaSource, Arc<Domain>)>,
    faults: Arc<dyn FaultSink>,
}

impl Viommu {
    /// The guest has changed an entry of its table of PASIDs, and says so. `virtual_pasid` is its number, `pasid`
    /// the one that the device's requests carry: the VMM's business, as one device serves several guests.
    fn invalidate_pasid(
        &mut self,
        device: &Arc<Device>,
        virtual_pasid: u32,
        pasid: Pasid,
    ) -> Result<()> {
        let mut entry = [0; 64];
        self.memory.memory().read(
            (self.table + 64 * u64::from(virtual_pasid)) as usize,
            &mut entry,
        );
        let word = |n: usize| {
            entry
                .as_chunks::<8>()
                .0
                .get(n)
                .map_or(0, |word| u64::from_le_bytes(*word))
        };
        let source = DmaSource::new(device, Some(pasid));
        let key = (device.id(), pasid);
        // PGTT 1: first stage only, for the guest. Its second stage is the host's.
        if word(0) & 1 == 0 || word(0) >> 6 & 7 != 1 {
            if let Some((source, _)) = self.attached.remove(&key) {
                source.detach();
            }
            return Ok(());
        }
        let nested = self.gpa.nest(FirstStage {
            root: word(2),
            levels: if word(2) >> 2 & 3 == 1 { 5 } else { 4 },
            supervisor: word(2) & 1 != 0,
            write_protect: word(2) >> 4 & 1 != 0,
            extended_accessed: word(2) >> 7 & 1 != 0,
        })?;
        match self.attached.contains_key(&key) {
            true => source.replace(&nested, &self.faults)?,
            false => source.attach(&nested, &self.faults)?,
        }
        self.attached.insert(key, (source, nested));
        Ok(())
    }

    /// The guest has changed entries of a first-stage table, and waits: when this returns it may use the pages
    /// for something else.
    fn invalidate_pages(&self, device: &Device, pasid: Pasid, range: AddrRange) {
        if let Some((_, nested)) = self.attached.get(&(device.id(), pasid)) {
            nested.invalidate(range, Invalidate::Tables);
        }
    }
}

// The guests: what their kernels and processes do.

/// Where every process has its buffer.
const BUFFER: u64 = 0x4000_0000;
const WRITABLE: u64 = 0b111; // present, writable, user

/// A virtual machine with 2 MiB.
struct Vm {
    viommu: Viommu,
    free: u64,
}

impl Vm {
    fn new(iommu: &Arc<Iommu>) -> Result<Self> {
        let memory = OwnPages::new(iommu.space(), 2 << 20)?;
        let gpa = iommu.alloc_domain(DomainConfig::unmanaged(iommu.config().format))?;
        gpa.map(0, memory.spa(), 2 << 20, Prot::RW)?;
        let viommu = Viommu {
            memory,
            gpa,
            table: 0,
            attached: BTreeMap::new(),
            faults: FaultLog::new(16),
        };
        Ok(Vm {
            viommu,
            free: PAGE_SIZE,
        })
    }

    fn page(&mut self) -> u64 {
        self.free += PAGE_SIZE;
        self.free - PAGE_SIZE
    }

    fn store(&self, address: u64, word: u64) {
        let memory = self.viommu.memory.memory();
        memory.write(address as usize, &word.to_le_bytes());
    }

    /// A process starts and binds its address space to a device.
    fn bind(&mut self, device: &Arc<Device>, virtual_pasid: u32, pasid: Pasid) -> Result<Process> {
        let root = self.page();
        let mut table = root;
        for level in (1..4).rev() {
            let next = self.page();
            self.store(
                table + 8 * (BUFFER >> (12 + 9 * level) & 511),
                next | WRITABLE,
            );
            table = next;
        }
        let (entry, buffer) = (table + 8 * (BUFFER >> 12 & 511), self.page());
        self.store(entry, buffer | WRITABLE);
        let of_pasid = self.viommu.table + 64 * u64::from(virtual_pasid);
        self.store(of_pasid + 16, root);
        self.store(of_pasid, 1 | 1 << 6);
        self.viommu.invalidate_pasid(device, virtual_pasid, pasid)?;
        Ok(Process {
            device: Arc::clone(device),
            pasid,
            buffer,
            entry,
        })
    }
}

/// A guest's process.
struct Process {
    device: Arc<Device>,
    pasid: Pasid,
    /// Guest-physical address of its buffer, and of the entry that maps it.
    buffer: u64,
    entry: u64,
}

impl Process {
    /// The device works on the process's own addresses.
    fn dma(&self, bytes: &[u8]) -> bool {
        let mut port = self.device.port();
        port.enter(Some(self.pasid))
            .write(BUFFER, bytes)
            .is_complete()
    }
}

fn main() -> Result<()> {
    let iommu = Iommu::new(IommuConfig::default());
    let shared = iommu.add_device(DeviceConfig::new("0000:6a:01.0".parse()?))?;
    let own = iommu.add_device(DeviceConfig::new("0000:6a:02.0".parse()?))?;
    let (mut vm1, mut vm2) = (Vm::new(&iommu)?, Vm::new(&iommu)?);
    let pasid = |number| Pasid::new(number).ok_or("no PASID");
    let (a, b, c) = (pasid(0x10)?, pasid(0x11)?, pasid(0x12)?);
    // Both guests number their processes from 1.
    let processes = [
        ("process 1 of vm1", vm1.bind(&shared, 1, a)?),
        ("process 2 of vm1", vm1.bind(&shared, 2, b)?),
        ("process 1 of vm2", vm2.bind(&shared, 1, c)?),
        ("process 2 of vm2", vm2.bind(&own, 2, a)?),
    ];
    for domain in iommu.domains() {
        let parent = domain.parent();
        let on = parent.map_or(String::new(), |parent| {
            format!(" on domain {}", parent.id())
        });
        print!("domain {}: {}{on}", domain.id(), domain.kind());
        for (device, pasid) in domain.attachments() {
            print!(
                " [{device}{}]",
                pasid.map_or(String::new(), |pasid| format!(" + PASID {pasid}"))
            );
        }
        println!();
    }

    println!("\nwhich buffer a process's DMA to {BUFFER:#x} changes:");
    let memory = |number: usize| match number {
        0 | 1 => vm1.viommu.memory.memory(),
        _ => vm2.viommu.memory.memory(),
    };
    for (number, (name, process)) in processes.iter().enumerate() {
        for (other, (_, process)) in processes.iter().enumerate() {
            memory(other).write(process.buffer as usize, &[0; 8]);
        }
        if !process.dma(&[0xff; 8]) {
            return Err(format!("the DMA of {name} was refused").into());
        }
        print!("{name}:");
        for (other, (_, process)) in processes.iter().enumerate() {
            let mut found = [0; 8];
            memory(other).read(process.buffer as usize, &mut found);
            print!(" {}", if found == [0; 8] { '-' } else { 'x' });
            if (found == [0xff; 8]) != (number == other) {
                return Err(format!("{name} does not reach its buffer alone").into());
            }
        }
        println!();
    }

    // A process ends: its guest takes the page away, and nobody else notices.
    let ended = &processes[0].1;
    vm1.store(ended.entry, 0);
    let page = AddrRange::from_len(BUFFER, PAGE_SIZE).ok_or("a page")?;
    vm1.viommu.invalidate_pages(&shared, a, page);
    let still = processes.iter().map(|(_, process)| process.dma(&[1; 8]));
    let still: Vec<bool> = still.collect();
    println!("\nafter process 1 of vm1 has unmapped it, DMA succeeds: {still:?}");
    if still != [false, true, true, true] {
        return Err("the wrong process lost its buffer".into());
    }
    vm1.store(vm1.viommu.table + 64, 0);
    vm1.viommu.invalidate_pasid(&shared, 1, a)?;
    Ok(())
}

#[test]
fn four_processes_reach_their_own_buffers_and_no_other() {
    main().unwrap_or_else(|error| panic!("{error}"));
}
