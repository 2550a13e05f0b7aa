//! The whole device as a program uses it: DMA of a PCI function behind the IOMMU.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ioasid_core::{
    Prot,
    host::{CountingIrq, IrqSink, StdSpawner},
    inject::{Failure, Point, When},
    memory::OwnPages,
};
use ioasid_edu::{
    Edu,
    spec::{
        BUFFER, DMA_DONE, DMA_INTERRUPT, DMA_MASK, DMA_START, DMA_TO_MEMORY, FACTORIAL_DONE,
        FACTORIAL_INTERRUPT, offset,
    },
};
use ioasid_iommu::{Device, DeviceConfig, FaultReason, Iommu, IommuConfig};
use ioasid_iommufd::{Context, MapArgs, ObjectId};
use ioasid_vfio::{
    DeviceFile, Eventfd, IrqAction, IrqData, IrqIndex, Passthrough, SetIrqs, Vfio, VfioDevice,
};

const IOVA: u64 = 0x10_0000;
/// `PCI_COMMAND`: memory, with Bus Master and without.
const COMMAND: u64 = (7 << 40) + 4;
const BUS_MASTER: u16 = 6;
const NO_BUS_MASTER: u16 = 2;

struct Machine {
    dma: Arc<Device>,
    device: Arc<VfioDevice>,
    file: Arc<DeviceFile>,
    context: Arc<Context>,
    ioas: ObjectId,
    pages: OwnPages,
}

impl Machine {
    /// Bound, attached, two pages mapped, Bus Master on.
    fn new(dma_mask: u64) -> Self {
        let iommu = Iommu::new(IommuConfig::default());
        let dma = iommu
            .add_device(DeviceConfig::new("0000:6a:01.0".parse().unwrap()))
            .unwrap();
        let edu = Edu::whole(&dma, dma_mask, &StdSpawner).unwrap();
        let device = Vfio::new(&iommu).add(edu, Passthrough::Whole(Arc::clone(&dma)));
        let context = Context::new(&iommu);
        let ioas = context.ioas_alloc().unwrap();
        let pages = OwnPages::new(iommu.space(), 0x2000).unwrap();
        let args = MapArgs::fixed(IOVA, 0x2000, Prot::RW);
        context
            .ioas_map(ioas, Arc::new(pages.clone()), args)
            .unwrap();
        let file = device.open().unwrap();
        file.bind(&context).unwrap();
        file.attach(ioas, None).unwrap();
        file.write(COMMAND, &BUS_MASTER.to_le_bytes()).unwrap();
        Machine {
            dma,
            device,
            file,
            context,
            ioas,
            pages,
        }
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        assert_eq!(self.file.read(offset, &mut data), Ok(4));
        u32::from_le_bytes(data)
    }

    fn set(&self, offset: u64, value: u64) {
        let bytes = value.to_le_bytes();
        let bytes = if offset < 0x80 { &bytes[..4] } else { &bytes };
        assert_eq!(self.file.write(offset, bytes), Ok(bytes.len()));
    }

    fn start(&self, from: u64, to: u64, count: u64, command: u64) {
        self.set(offset::DMA_SOURCE, from);
        self.set(offset::DMA_DESTINATION, to);
        self.set(offset::DMA_COUNT, count);
        self.set(offset::DMA_COMMAND, command | DMA_START);
    }

    fn transfer(&self, from: u64, to: u64, count: u64, command: u64) {
        self.start(from, to, count, command);
        until(|| u64::from(self.get(offset::DMA_COMMAND)) & DMA_START == 0);
    }

    fn signals(&self, index: IrqIndex) -> Arc<CountingIrq> {
        let signals = CountingIrq::new();
        let sink: Arc<dyn IrqSink> = signals.clone();
        let set = SetIrqs {
            index,
            action: IrqAction::Trigger,
            start: 0,
            count: 1,
            data: IrqData::Eventfds(vec![Eventfd::Sink(sink)]),
        };
        self.file.set_irqs(&set).unwrap();
        signals
    }

    fn bytes(&self, offset: usize) -> [u8; 8] {
        let mut bytes = [0; 8];
        self.pages.memory().read(offset, &mut bytes);
        bytes
    }
}

/// Waits until `holds`; the deadline is for a device that never answers.
fn until(holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(600), "no answer");
        std::thread::yield_now();
    }
}

#[test]
fn what_is_copied_in_comes_out_elsewhere_through_a_domain() {
    let machine = Machine::new(DMA_MASK);
    machine.pages.memory().write(0xffc, b"two page");
    machine.transfer(IOVA + 0xffc, BUFFER, 8, 0);
    machine.transfer(BUFFER, IOVA + 0x10, 8, DMA_TO_MEMORY);
    assert_eq!(&machine.bytes(0x10), b"two page");
    assert_eq!(machine.device.faults().total(), 0);
}

#[test]
fn what_is_not_mapped_is_a_fault_and_the_transfer_ends() {
    let machine = Machine::new(DMA_MASK);
    machine.transfer(IOVA + 0x2000, BUFFER, 8, 0);
    assert_eq!(machine.device.faults().total(), 1);
    // It reaches what is mapped, and stops there.
    machine.transfer(BUFFER, IOVA + 0x1ffc, 8, DMA_TO_MEMORY);
    assert_eq!(machine.device.faults().total(), 2);
    machine.file.detach(None).unwrap();
    machine.transfer(IOVA, BUFFER, 8, 0);
    // Of nobody's domain: the device's own log has it.
    assert_eq!(machine.dma.fault_log().total(), 1);
    machine.file.attach(machine.ioas, None).unwrap();
    machine
        .context
        .ioas_unmap(machine.ioas, IOVA, 0x2000)
        .unwrap();
    machine.transfer(IOVA, BUFFER, 8, 0);
    assert_eq!(machine.device.faults().total(), 3);
}

#[test]
fn without_bus_master_nothing_moves_and_nothing_is_a_fault() {
    let machine = Machine::new(DMA_MASK);
    machine.pages.memory().write(0, b"a secret");
    machine
        .file
        .write(COMMAND, &NO_BUS_MASTER.to_le_bytes())
        .unwrap();
    machine.transfer(IOVA, BUFFER, 8, 0);
    machine
        .file
        .write(COMMAND, &BUS_MASTER.to_le_bytes())
        .unwrap();
    machine.transfer(BUFFER, IOVA + 0x10, 8, DMA_TO_MEMORY);
    assert_eq!(machine.bytes(0x10), [0; 8]);
    assert_eq!(machine.device.faults().total(), 0);
}

#[test]
fn the_device_drives_the_address_bits_of_its_mask_alone() {
    let above = IOVA | 1 << 28;
    let machine = Machine::new(DMA_MASK);
    machine.pages.memory().write(0, b"28 bits!");
    machine.transfer(above, BUFFER, 8, 0);
    machine.transfer(BUFFER, IOVA + 0x10, 8, DMA_TO_MEMORY);
    assert_eq!(&machine.bytes(0x10), b"28 bits!");
    let machine = Machine::new(u64::MAX);
    machine.transfer(above, BUFFER, 8, 0);
    assert_eq!(machine.device.faults().total(), 1);
}

#[test]
fn a_transfer_and_a_factorial_interrupt_by_msi_and_by_intx() {
    for index in [IrqIndex::Msi, IrqIndex::Intx] {
        let machine = Machine::new(DMA_MASK);
        let signals = machine.signals(index);
        machine.start(IOVA, BUFFER, 8, DMA_INTERRUPT);
        until(|| signals.count() == 1);
        assert_eq!(machine.get(offset::INTERRUPT_STATUS), DMA_DONE);
        machine.set(offset::INTERRUPT_ACKNOWLEDGE, DMA_DONE.into());
        assert_eq!(machine.get(offset::INTERRUPT_STATUS), 0);
        if index == IrqIndex::Intx {
            // The line is masked until the program asks for it again.
            let unmask = SetIrqs {
                index,
                action: IrqAction::Unmask,
                start: 0,
                count: 1,
                data: IrqData::None,
            };
            machine.file.set_irqs(&unmask).unwrap();
        }
        machine.set(offset::STATUS, FACTORIAL_INTERRUPT.into());
        machine.set(offset::FACTORIAL, 5);
        until(|| signals.count() == 2);
        assert_eq!(machine.get(offset::INTERRUPT_STATUS), FACTORIAL_DONE);
        assert_eq!(machine.get(offset::FACTORIAL), 120);
    }
}

#[test]
fn a_closed_device_reaches_nothing_and_is_as_new() {
    let machine = Machine::new(DMA_MASK);
    machine.pages.memory().write(0, b"a secret");
    machine.transfer(IOVA, BUFFER, 8, 0);
    machine.set(offset::LIVENESS, 5);
    let Machine {
        dma,
        device,
        file,
        context,
        ioas,
        pages,
    } = machine;
    drop(file);
    let file = device.open().unwrap();
    file.bind(&context).unwrap();
    file.attach(ioas, None).unwrap();
    file.write(COMMAND, &BUS_MASTER.to_le_bytes()).unwrap();
    let machine = Machine {
        dma,
        device,
        file,
        context,
        ioas,
        pages,
    };
    assert_eq!(machine.get(offset::LIVENESS), 0);
    machine.transfer(BUFFER, IOVA + 0x10, 8, DMA_TO_MEMORY);
    assert_eq!(machine.bytes(0x10), [0; 8]);
}

#[test]
fn a_transfer_fails_as_a_test_has_asked_for() {
    let machine = Machine::new(DMA_MASK);
    machine.pages.memory().write(0, b"injected");
    let injections = machine.dma.injections();
    injections.add(Point::Descriptor, When::Nth(2), Failure::Refuse, None);
    injections.add(Point::Descriptor, When::Nth(4), Failure::Lose, None);
    for number in 1..=3 {
        machine.transfer(IOVA, BUFFER, 8, 0);
        assert_eq!(machine.device.faults().total(), u64::from(number >= 2));
    }
    let faults = machine.device.faults().faults();
    assert_eq!(faults[0].reason, FaultReason::Injected);
    let signals = machine.signals(IrqIndex::Msi);
    machine.start(IOVA, BUFFER, 8, DMA_INTERRUPT);
    // Its thread has taken the command when it begins with nothing else: a reset waits for that.
    until(|| !injections.is_armed());
    machine.file.reset().unwrap();
    assert_eq!(signals.count(), 0);
    machine
        .file
        .write(COMMAND, &BUS_MASTER.to_le_bytes())
        .unwrap();
    machine.transfer(IOVA, BUFFER, 8, 0);
}

#[test]
fn an_interrupt_is_lost_as_a_test_has_asked_for() {
    let machine = Machine::new(DMA_MASK);
    let signals = machine.signals(IrqIndex::Msi);
    let injections = machine.device.model().function().vectors().injections();
    injections.add(Point::Interrupt, When::Nth(2), Failure::Lose, None);
    for expected in [1, 1, 2] {
        machine.set(offset::INTERRUPT_RAISE, 1);
        assert_eq!(signals.count(), expected);
    }
}
