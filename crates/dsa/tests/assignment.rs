//! A parent with its own driver, two children and a whole device of two VMs, in one process:
//!
//! ```text
//! RID1 = parent device, RID2 = a whole device of VM1
//! domain 1 (DMA API of the parent's driver) : [RID1]
//! domain 2 (guest addresses of VM1)         : [RID1, PASID x] [RID2]
//! domain 3 (guest addresses of VM2)         : [RID1, PASID y]
//! ```
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use common::*;
use ioasid_core::{Pasid, Prot, memory::OwnPages};
use ioasid_dsa::{
    DsaConfig, DsaDevice, DsaParent, HostDriver, HostQueue, TYPE_1DWQ,
    spec::{Command, CompletionRecord, Descriptor, Status, completion::RECORD_SIZE},
};
use ioasid_iommu::{Device, Domain, DomainKind, Iommu};
use ioasid_iommufd::{Context, HwptAlloc, MapArgs, ObjectId};
use ioasid_vfio::{
    DeviceFile, Passthrough, Vfio, VfioDevice,
    mdev::{MdevParent, MdevRegistry},
};

/// One I/O virtual address in all three domains: where the DMA API puts the parent's buffer.
const DATA: usize = 4 << 20;
const PORTALS: u64 = 2 << 40;

/// One parent with its driver on queue 0, and a second device; nothing is assigned yet.
struct Machine {
    iommu: Arc<Iommu>,
    parent: Arc<Device>,
    whole: Arc<Device>,
    queue: HostQueue,
    mdevs: [Arc<VfioDevice>; 2],
    pdev: Arc<VfioDevice>,
    parents: Arc<DsaParent>,
    registry: Arc<MdevRegistry>,
}

impl Machine {
    fn new() -> Self {
        let iommu = new_iommu();
        let parent = add_device(&iommu, "0000:6a:01.0");
        let whole = add_device(&iommu, "0000:6b:01.0");
        let mut config = DsaConfig::with_queues(4);
        for queue in &mut config.queues[1..] {
            queue.mdev = true;
        }
        let dsa: Arc<DsaDevice> = new_dsa(&iommu, &parent, config);
        let queue = HostDriver::probe(&dsa).unwrap().open_queue(0).unwrap();
        let vfio = Vfio::new(&iommu);
        let registry = MdevRegistry::new(&vfio);
        let parents = DsaParent::new(dsa);
        registry.add_parent(parents.clone());
        let create = |uuid: &str| {
            let mdev = registry.create(&parents.name(), TYPE_1DWQ, uuid.as_bytes());
            Arc::clone(mdev.unwrap().device())
        };
        let mdevs = [
            create("5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01"),
            create("5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a02"),
        ];
        let second = new_dsa(&iommu, &whole, DsaConfig::with_queues(1));
        let pdev = vfio.add(second, Passthrough::Whole(Arc::clone(&whole)));
        Machine {
            iommu,
            parent,
            whole,
            queue,
            mdevs,
            pdev,
            parents,
            registry,
        }
    }

    /// The default PASID of an mdev.
    fn pasid(&self, index: usize) -> Pasid {
        let uuid = self.registry.list()[index].uuid();
        self.parents.child(uuid).unwrap().pasid().unwrap()
    }

    fn domain_at(&self, device: &Device, pasid: Option<Pasid>) -> Arc<Domain> {
        let mut attachments = device.attachments().into_iter();
        let found = attachments.find(|(at, _)| *at == pasid);
        found.expect("something is attached").1
    }
}

/// One program: an address space and the memory in it.
struct Vm {
    context: Arc<Context>,
    ioas: ObjectId,
    pages: OwnPages,
    base: u64,
}

impl Vm {
    fn new(iommu: &Arc<Iommu>, base: u64, seed: u64) -> Self {
        let context = Context::new(iommu);
        let ioas = context.ioas_alloc().unwrap();
        let pages = OwnPages::new(iommu.space(), DATA).unwrap();
        pages.memory().write(0, &pattern(DATA, seed));
        let args = MapArgs::fixed(base, DATA as u64, Prot::RW);
        context
            .ioas_map(ioas, Arc::new(pages.clone()), args)
            .unwrap();
        Vm {
            context,
            ioas,
            pages,
            base,
        }
    }

    fn open(&self, device: &Arc<VfioDevice>) -> (Arc<DeviceFile>, ObjectId) {
        let file = device.open().unwrap();
        let id = file.bind(&self.context).unwrap();
        (file, id)
    }

    fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pages.memory().read(offset, &mut bytes);
        bytes
    }
}

/// A program's driver of one device: registers and portal through the device file.
struct Queue<'a> {
    vm: &'a Vm,
    file: Arc<DeviceFile>,
    /// Offset of its completion records in the memory.
    records: usize,
}

impl<'a> Queue<'a> {
    /// Sets the device up as its registers say: a child has nothing to configure.
    fn start(vm: &'a Vm, file: &Arc<DeviceFile>, records: usize) -> Self {
        let driver = Driver::new(file.device().model().clone());
        assert_eq!(driver.command(Command::ResetDevice, 0), 0);
        if driver.read64(0x10) & 1 << 31 != 0 {
            driver.configure(&[32]);
        } else {
            assert_eq!(driver.command(Command::EnableDevice, 0), 0);
        }
        assert_eq!(driver.command(Command::EnableWq, 0), 0);
        Queue {
            vm,
            file: Arc::clone(file),
            records,
        }
    }

    /// Runs one descriptor. The record goes to the VM's own memory.
    fn run(&self, mut descriptor: Descriptor) -> CompletionRecord {
        let memory = self.vm.pages.memory();
        memory.write(self.records, &[0; RECORD_SIZE]);
        descriptor.record_addr = self.vm.base + self.records as u64;
        self.file.write(PORTALS, &descriptor.to_bytes()).unwrap();
        eventually("a completion record", || {
            self.vm.read(self.records, 1)[0] != 0
        });
        std::sync::atomic::fence(Ordering::Acquire);
        let bytes = self.vm.read(self.records, RECORD_SIZE);
        CompletionRecord::from_bytes(bytes.as_slice().try_into().unwrap())
    }

    fn memory_move(&self, to: usize, from: usize, len: usize) -> u8 {
        let (to, from) = (self.vm.base + to as u64, self.vm.base + from as u64);
        self.run(Descriptor::memory_move(to, from, len as u32, 0))
            .status
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A job mix on private areas: returns the checksum that its destination should have.
fn step(round: usize) -> (usize, usize, usize) {
    let len = 64 + round * 37 % 4000;
    let from = round * 8191 % (1 << 20);
    let to = (1 << 20) + round * 4093 % (1 << 20);
    (from, to, len)
}

#[test]
fn domains_are_counted_from_one_to_three_and_back() {
    let machine = Machine::new();
    let count = || machine.iommu.paging_domains();
    assert_eq!(count(), 1, "the parent driver's own");
    let base = 1 << 30;
    let (vm1, vm2) = (
        Vm::new(&machine.iommu, base, 1),
        Vm::new(&machine.iommu, base, 2),
    );
    assert_eq!(
        count(),
        1,
        "an address space is no page table before something attaches"
    );
    let (mdev1, _) = vm1.open(&machine.mdevs[0]);
    let hwpt = mdev1.attach(vm1.ioas, None).unwrap();
    assert_eq!(count(), 2);
    let (mdev2, _) = vm2.open(&machine.mdevs[1]);
    mdev2.attach(vm2.ioas, None).unwrap();
    assert_eq!(count(), 3);
    // VM1's whole device joins the domain that is there.
    let (pdev, _) = vm1.open(&machine.pdev);
    assert_eq!(pdev.attach(vm1.ioas, None).unwrap(), hwpt);
    assert_eq!(count(), 3);
    let shared = machine.domain_at(&machine.parent, Some(machine.pasid(0)));
    let mut attachments = shared.attachments();
    attachments.sort();
    let expected = [
        (machine.parent.address(), Some(machine.pasid(0))),
        (machine.whole.address(), None),
    ];
    assert_eq!(attachments, expected);
    assert_eq!(machine.domain_at(&machine.whole, None).id(), shared.id());
    assert_eq!(shared.kind(), DomainKind::Unmanaged);
    // Primary goes first, then the children: the domain goes with its last attachment.
    drop(pdev);
    assert_eq!(count(), 3);
    drop(mdev1);
    drop(shared);
    assert_eq!(count(), 2);
    drop(mdev2);
    assert_eq!(count(), 1);
}

#[test]
fn a_whole_device_that_attached_first_leaves_no_domain_to_create() {
    for manual in [false, true] {
        let machine = Machine::new();
        let vm = Vm::new(&machine.iommu, 1 << 30, 1);
        let (pdev, id) = vm.open(&machine.pdev);
        let table = match manual {
            true => vm.context.hwpt_alloc(HwptAlloc::new(id, vm.ioas)).unwrap(),
            false => vm.ioas,
        };
        pdev.attach(table, None).unwrap();
        assert_eq!(machine.iommu.paging_domains(), 2);
        let (mdev, _) = vm.open(&machine.mdevs[0]);
        mdev.attach(vm.ioas, None).unwrap();
        assert_eq!(machine.iommu.paging_domains(), 2, "manual: {manual}");
        let primary = machine.domain_at(&machine.whole, None);
        let auxiliary = machine.domain_at(&machine.parent, Some(machine.pasid(0)));
        assert_eq!(primary.id(), auxiliary.id());
    }
}

#[test]
fn one_address_reaches_three_memories_and_thirty_thousand_copies_stay_apart() {
    const COPIES: usize = 10_000;
    let machine = Machine::new();
    let buffer = machine.queue.driver().dma().alloc_coherent(DATA).unwrap();
    let base = buffer.iova();
    buffer.memory().write(0, &pattern(DATA, 3));
    // The VMs choose the very address that the DMA API gave to the parent's driver.
    let (vm1, vm2) = (
        Vm::new(&machine.iommu, base, 1),
        Vm::new(&machine.iommu, base, 2),
    );
    let (mdev1, _) = vm1.open(&machine.mdevs[0]);
    let (mdev2, _) = vm2.open(&machine.mdevs[1]);
    let (pdev, _) = vm1.open(&machine.pdev);
    mdev1.attach(vm1.ioas, None).unwrap();
    mdev2.attach(vm2.ioas, None).unwrap();
    pdev.attach(vm1.ioas, None).unwrap();
    let records = DATA - 4096;
    // What each memory must look like in the end.
    let model = |seed: u64| {
        let mut bytes = pattern(DATA, seed);
        for round in 0..COPIES {
            let (from, to, len) = step(round);
            bytes.copy_within(from..from + len, to);
        }
        bytes.truncate(records);
        checksum(&bytes)
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..COPIES {
                let (from, to, len) = step(round);
                let (to, from) = (base + to as u64, base + from as u64);
                machine.queue.memory_move(to, from, len as u32).unwrap();
            }
        });
        for (vm, file) in [(&vm1, &mdev1), (&vm2, &mdev2)] {
            scope.spawn(move || {
                let queue = Queue::start(vm, file, records);
                for round in 0..COPIES {
                    let (from, to, len) = step(round);
                    assert_eq!(queue.memory_move(to, from, len), 1, "{round}");
                }
            });
        }
    });
    let mut own = vec![0; records];
    buffer.memory().read(0, &mut own);
    assert_eq!(checksum(&own), model(3), "the parent's memory");
    assert_eq!(checksum(&vm1.read(0, records)), model(1), "VM1's memory");
    assert_eq!(checksum(&vm2.read(0, records)), model(2), "VM2's memory");
    assert_eq!(machine.queue.counts().jobs, COPIES as u64);
    assert_eq!(machine.queue.counts().faults, 0);
}

#[test]
fn one_map_serves_both_devices_of_a_vm_and_one_unmap_stops_both() {
    let machine = Machine::new();
    let vm = Vm::new(&machine.iommu, 1 << 30, 1);
    let (mdev, _) = vm.open(&machine.mdevs[0]);
    let (pdev, _) = vm.open(&machine.pdev);
    mdev.attach(vm.ioas, None).unwrap();
    pdev.attach(vm.ioas, None).unwrap();
    let (child, whole) = (
        Queue::start(&vm, &mdev, DATA - 4096),
        Queue::start(&vm, &pdev, DATA - 2048),
    );
    let extra = OwnPages::new(machine.iommu.space(), 1 << 20).unwrap();
    let at = 2 << 30;
    let domain = machine.domain_at(&machine.whole, None);
    let args = MapArgs::fixed(at, 1 << 20, Prot::RW);
    // Once without counting: the first map makes the tables.
    let pages = Arc::new(extra.clone());
    vm.context.ioas_map(vm.ioas, pages, args).unwrap();
    vm.context.ioas_unmap(vm.ioas, at, 1 << 20).unwrap();
    let writes = domain.pte_writes();
    vm.context
        .ioas_map(vm.ioas, Arc::new(extra.clone()), args)
        .unwrap();
    let for_both = domain.pte_writes() - writes;
    for (queue, value) in [(&child, 0x11), (&whole, 0x22)] {
        let pattern = u64::from_le_bytes([value; 8]);
        assert_eq!(
            queue.run(Descriptor::fill(at, pattern, 1 << 20, 0)).status,
            1
        );
        let mut bytes = vec![0; 1 << 20];
        extra.memory().read(0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == value));
    }
    assert_eq!(
        vm.context.ioas_unmap(vm.ioas, at, 1 << 20).unwrap(),
        1 << 20
    );
    for queue in [&child, &whole] {
        let record = queue.run(Descriptor::fill(at, 0, 1 << 20, 0));
        assert_eq!(
            (record.status, record.completed),
            (Status::PageFault as u8 | 0x80, 0)
        );
        assert_eq!(record.fault_addr, at);
        assert_eq!(
            queue.memory_move(0, 4096, 4096),
            1,
            "the rest is mapped still"
        );
    }
    let mut bytes = vec![0; 1 << 20];
    extra.memory().read(0, &mut bytes);
    assert!(bytes.iter().all(|byte| *byte == 0x22));
    // A second attachment costs a map nothing.
    pdev.detach(None).unwrap();
    let writes = domain.pte_writes();
    vm.context.ioas_map(vm.ioas, Arc::new(extra), args).unwrap();
    assert_eq!(domain.pte_writes() - writes, for_both);
}

#[test]
fn unmap_stops_running_copies_of_both_devices_before_it_returns() {
    let machine = Machine::new();
    let vm = Vm::new(&machine.iommu, 1 << 30, 1);
    let (mdev, _) = vm.open(&machine.mdevs[0]);
    let (pdev, _) = vm.open(&machine.pdev);
    mdev.attach(vm.ioas, None).unwrap();
    pdev.attach(vm.ioas, None).unwrap();
    let extra = OwnPages::new(machine.iommu.space(), 1 << 20).unwrap();
    let at = 2 << 30;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (file, records) in [(&mdev, DATA - 4096), (&pdev, DATA - 2048)] {
            let (vm, stop) = (&vm, &stop);
            scope.spawn(move || {
                let queue = Queue::start(vm, file, records);
                let mut pattern = 0;
                while !stop.load(Ordering::Relaxed) {
                    pattern += 1;
                    let record = queue.run(Descriptor::fill(at, pattern, 1 << 20, 0));
                    assert!(matches!(record.status, 0x01 | 0x83), "{record:?}");
                }
            });
        }
        for round in 0..500_u64 {
            let args = MapArgs::fixed(at, 1 << 20, Prot::RW);
            vm.context
                .ioas_map(vm.ioas, Arc::new(extra.clone()), args)
                .unwrap();
            if round % 3 == 0 {
                std::thread::yield_now();
            }
            vm.context.ioas_unmap(vm.ioas, at, 1 << 20).unwrap();
            extra.memory().write(0, &[0xa5; 1 << 20]);
            std::thread::yield_now();
            let mut bytes = vec![0; 1 << 20];
            extra.memory().read(0, &mut bytes);
            assert!(bytes.iter().all(|byte| *byte == 0xa5), "{round}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn random_attaches_and_detaches_leave_the_parents_queue_without_a_fault() {
    let machine = Machine::new();
    let (from, to) = (
        machine
            .queue
            .driver()
            .dma()
            .alloc_coherent(1 << 16)
            .unwrap(),
        machine
            .queue
            .driver()
            .dma()
            .alloc_coherent(1 << 16)
            .unwrap(),
    );
    from.memory().write(0, &pattern(1 << 16, 4));
    let stop = AtomicBool::new(false);
    let choices = pattern(4000, 99);
    std::thread::scope(|scope| {
        let parent = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                machine
                    .queue
                    .memory_move(to.iova(), from.iova(), 1 << 16)
                    .unwrap();
            }
        });
        let vms = [
            Vm::new(&machine.iommu, from.iova(), 1),
            Vm::new(&machine.iommu, from.iova(), 2),
        ];
        let devices = [&machine.mdevs[0], &machine.mdevs[1], &machine.pdev];
        let mut open: [Option<(Arc<DeviceFile>, usize)>; 3] = [None, None, None];
        for choice in choices.chunks_exact(2) {
            let (slot, what) = (usize::from(choice[0] % 3), choice[1]);
            let vm = usize::from(what >> 4 & 1);
            match &open[slot] {
                None => open[slot] = Some((vms[vm].open(devices[slot]).0, vm)),
                Some((file, vm)) => match what % 4 {
                    0 | 1 => drop(file.attach(vms[*vm].ioas, None).unwrap()),
                    2 => file.detach(None).unwrap(),
                    _ => open[slot] = None,
                },
            }
        }
        drop(open);
        stop.store(true, Ordering::Relaxed);
        parent.join().unwrap();
    });
    let counts = machine.queue.counts();
    assert!(counts.jobs > 0);
    assert_eq!((counts.errors, counts.faults), (0, 0));
    assert_eq!(machine.parent.fault_log().total(), 0);
    assert_eq!(machine.iommu.paging_domains(), 1);
    assert_eq!(
        machine.iommu.pasids().held() + machine.iommu.pasids().pending(),
        0
    );
}

#[test]
fn binding_the_parent_itself_is_refused_while_its_driver_works_and_a_child_is_not() {
    let machine = Machine::new();
    let vfio = Vfio::new(&machine.iommu);
    let dsa = machine.parents.device().clone();
    let whole = vfio.add(dsa, Passthrough::Whole(Arc::clone(&machine.parent)));
    let vm = Vm::new(&machine.iommu, 1 << 30, 1);
    assert!(matches!(
        whole.open().unwrap().bind(&vm.context),
        Err(ioasid_vfio::Error::Iommufd(ioasid_iommufd::Error::Attach(
            ioasid_iommufd::AttachError::NotOwner(_)
        )))
    ));
    let (mdev, _) = vm.open(&machine.mdevs[0]);
    mdev.attach(vm.ioas, None).unwrap();
    assert_ne!(machine.mdevs[0].group_number(), whole.group_number());
}

#[test]
fn a_closed_child_has_written_its_last_byte_and_given_back_its_pasid() {
    let machine = Machine::new();
    for round in 0..100_u64 {
        let vm = Vm::new(&machine.iommu, 1 << 30, round);
        let (mdev, _) = vm.open(&machine.mdevs[0]);
        mdev.attach(vm.ioas, None).unwrap();
        let queue = Queue::start(&vm, &mdev, DATA - 4096);
        for index in 0..8 {
            let to = vm.base + index * 0x4_0000;
            let job = Descriptor::fill(to, round, 0x4_0000, vm.base + DATA as u64 - 2048);
            queue.file.write(PORTALS, &job.to_bytes()).unwrap();
        }
        drop(queue);
        mdev.close();
        let before = vm.read(0, DATA);
        let pool = machine.iommu.pasids();
        assert_eq!((pool.held(), pool.pending()), (0, 0));
        std::thread::yield_now();
        assert!(vm.read(0, DATA) == before, "{round}");
    }
}
