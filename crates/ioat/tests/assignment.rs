//! Channels of several users in one process: a parent whose driver works, two VMs with a
//! child each, and the first with a whole device besides, all at the same address.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use common::*;
use ioasid_core::{Prot, memory::OwnPages};
use ioasid_ioat::{
    HostChannel, HostDriver, IoatParent, TYPE_1CHAN,
    spec::{ChannelStatus, Descriptor, registers as reg},
};
use ioasid_iommu::Iommu;
use ioasid_iommufd::{Context, MapArgs, ObjectId};
use ioasid_vfio::{
    DeviceFile, Passthrough, Vfio, VfioDevice,
    mdev::{MdevParent, MdevRegistry},
};

const DATA: usize = 1 << 20;
const HALF: usize = DATA / 2;
/// Where a VM keeps its chain, and its completion word behind it.
const CHAIN: usize = DATA;
const WORD: usize = DATA + 0x1000;

struct Machine {
    iommu: Arc<Iommu>,
    channel: HostChannel,
    mdevs: [Arc<VfioDevice>; 2],
    pdev: Arc<VfioDevice>,
}

impl Machine {
    fn new() -> Self {
        let iommu = new_iommu();
        let ioat = new_ioat(&iommu, "0000:6a:01.0", 3);
        let channel = HostDriver::probe(&ioat).unwrap().open_channel(0).unwrap();
        let vfio = Vfio::new(&iommu);
        let registry = MdevRegistry::new(&vfio);
        let parent = IoatParent::new(ioat);
        registry.add_parent(parent.clone());
        let mdevs = [1, 2].map(|n| {
            let uuid = format!("5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a0{n}");
            let mdev = registry.create(&parent.name(), TYPE_1CHAN, uuid.as_bytes());
            Arc::clone(mdev.unwrap().device())
        });
        let second = new_ioat(&iommu, "0000:6b:01.0", 1);
        let whole = Passthrough::Whole(Arc::clone(second.device()));
        let pdev = vfio.add(second, whole);
        Machine {
            iommu,
            channel,
            mdevs,
            pdev,
        }
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
        let pages = OwnPages::new(iommu.space(), 2 * DATA).unwrap();
        pages.memory().write(0, &pattern(DATA, seed));
        let args = MapArgs::fixed(base, 2 * DATA as u64, Prot::RW);
        let mapped = context.ioas_map(ioas, Arc::new(pages.clone()), args);
        mapped.unwrap();
        Vm {
            context,
            ioas,
            pages,
            base,
        }
    }

    fn open(&self, device: &Arc<VfioDevice>) -> Arc<DeviceFile> {
        let file = device.open().unwrap();
        file.bind(&self.context).unwrap();
        file.attach(self.ioas, None).unwrap();
        file
    }

    fn read(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pages.memory().read(0, &mut bytes);
        bytes
    }
}

/// A program's chain on one device; `place` keeps two of one VM apart.
struct Channel<'a> {
    vm: &'a Vm,
    driver: Driver,
    place: usize,
}

impl<'a> Channel<'a> {
    fn new(vm: &'a Vm, file: &DeviceFile, place: usize) -> Self {
        let driver = Driver::new(file.device().model().clone());
        driver.reset();
        driver.control(RUN);
        driver.set_completion(vm.base + (WORD + place * 64) as u64);
        Channel { vm, driver, place }
    }

    fn start(&self, descriptor: Descriptor, count: u16) {
        let at = CHAIN + self.place * 64;
        let chain = self.vm.base + at as u64;
        let descriptor = descriptor.with_next(chain);
        self.vm.pages.memory().write(at, &descriptor.to_bytes());
        self.driver.write(reg::CHAINADDR, &chain.to_le_bytes());
        self.driver.count(count);
    }

    fn copy(&self, to: usize, from: usize, len: usize) {
        let (to, from) = (self.vm.base + to as u64, self.vm.base + from as u64);
        self.start(reporting(Descriptor::copy(to, from, len as u32)), 1);
        assert_eq!(self.driver.wait_for_end().into_bits(), 0);
        self.driver.command(common::SUSPEND);
        self.driver.wait_for(ChannelStatus::Suspended);
    }
}

/// From where to where a round copies how much: from the first half into the second.
fn step(round: usize) -> (usize, usize, usize) {
    let len = 64 + round * 37 % 4000;
    let from = round * 8191 % (HALF - 4096);
    (from, HALF + round * 4093 % (HALF - 4096), len)
}

/// What memory of `seed` looks like after this many rounds.
fn expected(seed: u64, rounds: usize) -> Vec<u8> {
    let mut bytes = pattern(DATA, seed);
    for round in 0..rounds {
        let (from, to, len) = step(round);
        bytes.copy_within(from..from + len, to);
    }
    bytes
}

#[test]
fn one_address_leads_to_three_memories_while_everybody_copies() {
    const ROUNDS: usize = 5000;
    let machine = Machine::new();
    let buffer = machine.channel.driver().dma().alloc_coherent(DATA).unwrap();
    buffer.memory().write(0, &pattern(DATA, 3));
    // The VMs choose the very address that the DMA API gave to the parent's driver.
    let base = buffer.iova();
    assert_eq!(machine.iommu.paging_domains(), 1);
    let vms = [1, 2].map(|seed| Vm::new(&machine.iommu, base, seed));
    let files = [0, 1].map(|index| vms[index].open(&machine.mdevs[index]));
    let whole = vms[0].open(&machine.pdev);
    assert_eq!(machine.iommu.paging_domains(), 3);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS {
                let (from, to, len) = step(round);
                let (to, from) = (base + to as u64, base + from as u64);
                machine.channel.copy(to, from, len as u32).unwrap();
            }
        });
        for (vm, file) in vms.iter().zip(&files) {
            scope.spawn(move || {
                let channel = Channel::new(vm, file, 0);
                for round in 0..ROUNDS {
                    let (from, to, len) = step(round);
                    channel.copy(to, from, len);
                }
            });
        }
        // The whole device of the first VM reads what its child reads, and writes elsewhere.
        scope.spawn(|| {
            let channel = Channel::new(&vms[0], &whole, 1);
            for round in 0..ROUNDS {
                let (from, _, len) = step(round);
                channel.copy(DATA + 0x8_0000, from, len);
            }
        });
    });
    let mut own = vec![0; DATA];
    buffer.memory().read(0, &mut own);
    assert!(own == expected(3, ROUNDS), "the parent's memory");
    for (seed, vm) in (1..).zip(&vms) {
        assert!(
            vm.read(DATA) == expected(seed, ROUNDS),
            "VM {seed}'s memory"
        );
    }
    assert_eq!(machine.channel.counts().jobs, ROUNDS as u64);
    assert_eq!(machine.channel.counts().errors, 0);
    drop((files, whole));
    assert_eq!(machine.iommu.paging_domains(), 1);
}

#[test]
fn a_program_that_is_gone_mid_flight_has_written_its_last_byte() {
    let machine = Machine::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let parent = scope.spawn(|| {
            let dma = machine.channel.driver().dma();
            let [from, to] = [1, 2].map(|_| dma.alloc_coherent(0x1_0000).unwrap());
            while !stop.load(Ordering::Relaxed) {
                let copied = machine.channel.copy(to.iova(), from.iova(), 0x1_0000);
                copied.unwrap();
            }
        });
        for round in 0..60_u64 {
            let vm = Vm::new(&machine.iommu, 1 << 30, round);
            let device = match round % 3 {
                0 => &machine.pdev,
                index => &machine.mdevs[index as usize - 1],
            };
            let file = vm.open(device);
            let channel = Channel::new(&vm, &file, 0);
            let fill = Descriptor::fill(vm.base, round, (DATA / 4) as u32);
            channel.start(reporting(fill), u16::MAX);
            (0..round * 50).for_each(|_| std::hint::spin_loop());
            file.close();
            let pool = machine.iommu.pasids();
            assert_eq!(pool.held() + pool.pending(), 0);
            vm.pages.memory().write(0, &[0xa5; 2 * DATA]);
            std::thread::yield_now();
            assert!(
                vm.read(2 * DATA).iter().all(|byte| *byte == 0xa5),
                "{round}"
            );
        }
        stop.store(true, Ordering::Relaxed);
        parent.join().unwrap();
    });
    assert_eq!(machine.channel.counts().errors, 0);
    assert_eq!(machine.iommu.paging_domains(), 1);
}

#[test]
fn an_unmap_stops_the_copies_of_child_and_whole_device_before_it_returns() {
    let machine = Machine::new();
    let vm = Vm::new(&machine.iommu, 1 << 30, 1);
    let files = [vm.open(&machine.mdevs[0]), vm.open(&machine.pdev)];
    let extra = OwnPages::new(machine.iommu.space(), DATA).unwrap();
    let at = 2 << 30;
    let args = MapArgs::fixed(at, DATA as u64, Prot::RW);
    let channels: Vec<_> = (0..)
        .zip(&files)
        .map(|(n, file)| Channel::new(&vm, file, n))
        .collect();
    for round in 0..100 {
        let mapped = vm.context.ioas_map(vm.ioas, Arc::new(extra.clone()), args);
        mapped.unwrap();
        for channel in &channels {
            channel.start(Descriptor::fill(at, round, (DATA / 4) as u32), u16::MAX);
        }
        (0..round * 20).for_each(|_| std::hint::spin_loop());
        vm.context.ioas_unmap(vm.ioas, at, DATA as u64).unwrap();
        extra.memory().write(0, &[0xa5; DATA]);
        for channel in &channels {
            channel.driver.wait_for(ChannelStatus::Halted);
            assert!(channel.driver.errors().write_data());
            channel.driver.reset();
        }
        let mut bytes = vec![0; DATA];
        extra.memory().read(0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0xa5), "{round}");
    }
}
