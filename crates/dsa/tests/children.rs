//! Children with one queue: what they show, what they can reach, and how they come and go.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_core::Pasid;
use ioasid_dsa::{
    DsaChild, DsaConfig, DsaDevice, DsaParent, HostDriver, TYPE_1DWQ,
    spec::{
        Command, CommandError, Descriptor, Opcode, Status,
        registers::{self as reg, GenCap, WqCap},
        tables::{WQCFG_SIZE, WqUse},
    },
};
use ioasid_iommu::{Device, DmaSource, Domain, FaultLog, FaultSink, Iommu, PasidQuota};
use ioasid_vfio::{
    DefaultPasid, DeviceModel, Vfio,
    error::MdevError,
    mdev::{MdevParent, MdevRegistry},
};

/// Bytes mapped in each child's address space.
const SIZE: u64 = 1 << 20;

/// A parent with its driver; queues 1 to 3 are for children.
struct Parent {
    iommu: Arc<Iommu>,
    device: Arc<Device>,
    dsa: Arc<DsaDevice>,
    driver: Arc<HostDriver>,
}

impl Parent {
    fn new() -> Self {
        let iommu = new_iommu();
        let device = add_device(&iommu, "0000:6a:01.0");
        let mut config = DsaConfig::with_queues(4);
        config.queues[1..]
            .iter_mut()
            .for_each(|queue| queue.mdev = true);
        let dsa = new_dsa(&iommu, &device, config);
        let driver = HostDriver::probe(&dsa).unwrap();
        Parent {
            iommu,
            device,
            dsa,
            driver,
        }
    }

    /// The pasid dword of a real queue.
    fn real_usage(&self, queue: u64) -> WqUse {
        let driver = Driver {
            model: self.dsa.clone(),
        };
        WqUse::from_bits(driver.read32(reg::WQCFG + queue * WQCFG_SIZE + 8))
    }

    fn real_state(&self, queue: u64) -> u32 {
        let driver = Driver {
            model: self.dsa.clone(),
        };
        driver.read32(reg::WQCFG + queue * WQCFG_SIZE + 24) >> 30
    }
}

/// A child, bound and attached to a domain of its own.
struct Guest {
    child: Arc<DsaChild>,
    driver: Driver,
    pasid: Pasid,
    domain: Arc<Domain>,
    area: Area,
    faults: Arc<FaultLog>,
}

impl Guest {
    fn new(parent: &Parent, queue: usize) -> Self {
        let child = DsaChild::new(&parent.dsa, queue).unwrap();
        let (device, pasid) = child.bind().unwrap();
        let domain = new_domain(&parent.iommu, &device);
        let area = Area::new(&parent.iommu, SIZE as usize);
        area.map(&domain, SIZE);
        let faults = FaultLog::new(64);
        let sink: Arc<dyn FaultSink> = faults.clone();
        DmaSource::new(&device, Some(pasid))
            .attach(&domain, &sink)
            .unwrap();
        let driver = Driver::new(child.clone());
        Guest {
            child,
            driver,
            pasid,
            domain,
            area,
            faults,
        }
    }

    fn enabled(parent: &Parent, queue: usize) -> Self {
        let guest = Guest::new(parent, queue);
        assert_eq!(guest.driver.command(Command::ResetDevice, 0), 0);
        assert_eq!(guest.driver.command(Command::EnableDevice, 0), 0);
        assert_eq!(guest.driver.command(Command::EnableWq, 0), 0);
        guest
    }

    fn copies(&self) -> bool {
        self.area.write(Area::BASE, &[0; 32]);
        self.area.write(Area::BASE + 0x1000, &[0x5a; 4096]);
        self.area.write(Area::BASE + 0x2000, &[0; 4096]);
        let (to, from) = (Area::BASE + 0x2000, Area::BASE + 0x1000);
        self.driver
            .submit(0, Descriptor::memory_move(to, from, 4096, Area::BASE));
        self.area.wait(Area::BASE).status == 1 && self.area.read(to, 4096) == vec![0x5a; 4096]
    }

    fn leave(&self) {
        self.child.quiesce();
        DmaSource::new(self.child.parent().device(), Some(self.pasid)).detach();
        self.child.unbind();
    }
}

#[test]
fn a_child_shows_one_queue_that_cannot_be_configured() {
    let parent = Parent::new();
    let guest = Guest::new(&parent, 2);
    let driver = &guest.driver;
    let general = GenCap::from_bits(driver.read64(reg::GENCAP));
    assert!(!general.config_en() && general.cmd_cap());
    let queues = WqCap::from_bits(driver.read64(reg::WQCAP));
    assert_eq!((queues.num_wqs(), queues.total_wq_size()), (1, 32));
    assert!(queues.dedicated_mode() && !queues.shared_mode());
    assert_eq!(
        (driver.read64(reg::GRPCFG), driver.read64(reg::GRPCFG + 32)),
        (1, 1)
    );
    let usage = WqUse::from_bits(driver.read32(reg::WQCFG + 8));
    assert!(usage.dedicated() && !usage.pasid_en());
    let function = guest.child.function();
    assert_eq!(function.vectors().count(), 2);
    assert_eq!(function.bar(2).unwrap().size, 0x4000);
}

#[test]
fn enabling_its_queue_programs_the_default_pasid_into_the_parent_and_nowhere_else() {
    let parent = Parent::new();
    // A number that no register holds by chance.
    let quota = PasidQuota::unlimited();
    let pool = parent.iommu.pasids();
    let _lower: Vec<_> = (1..0x2345).map(|_| pool.alloc(&quota).unwrap()).collect();
    let guest = Guest::new(&parent, 1);
    assert_eq!(guest.pasid.get(), 0x2345);
    assert!(!parent.real_usage(1).pasid_en());
    assert_eq!(
        guest.driver.command(Command::EnableWq, 0),
        CommandError::DeviceNotEnabled as u8
    );
    assert_eq!(guest.driver.command(Command::EnableDevice, 0), 0);
    assert_eq!(guest.driver.command(Command::EnableWq, 0), 0);
    let real = parent.real_usage(1);
    assert!(real.pasid_en() && real.pasid() == guest.pasid.get());
    assert_eq!(
        guest.driver.command(Command::EnableWq, 0),
        CommandError::QueueEnabled as u8
    );
    assert!(guest.copies());
    // No register of the child shows the PASID, at whatever bit.
    for offset in (0..reg::MSIX_TABLE).step_by(4) {
        let value = guest.driver.read64(offset);
        let shown = (0..45).any(|bit| value >> bit & 0xf_ffff == 0x2345);
        assert!(!shown, "{offset:#x} holds {value:#x}");
    }
    // Disabling takes it out again.
    assert_eq!(guest.driver.command(Command::DisableWq, 1), 0);
    assert!(!parent.real_usage(1).pasid_en() && parent.real_usage(1).pasid() == 0);
}

#[test]
fn what_a_child_writes_to_the_tables_does_not_reach_the_parent() {
    let parent = Parent::new();
    let (guest, other) = (Guest::new(&parent, 1), Guest::enabled(&parent, 2));
    let snapshot = || {
        let driver = Driver {
            model: parent.dsa.clone(),
        };
        let tables = (reg::GRPCFG..reg::MSIX_TABLE).step_by(4);
        let registers = [reg::GENCFG, reg::GENCTRL, reg::GENSTS, reg::INTCAUSE];
        let offsets = tables.chain(registers);
        offsets.map(|at| driver.read32(at)).collect::<Vec<_>>()
    };
    let before = snapshot();
    for offset in (0..reg::MSIX_TABLE).step_by(4) {
        if offset != reg::CMD {
            guest.driver.write32(offset, u32::MAX);
        }
    }
    guest.driver.write32(reg::WQCFG + 8, other.pasid.get() << 8);
    assert_eq!(snapshot(), before);
    assert_eq!(guest.driver.command(Command::ResetDevice, 0), 0);
    // A PASID that it claims for itself is refused when the queue is enabled, or ignored.
    let stolen = WqUse::new()
        .with_pasid(other.pasid.get())
        .with_pasid_en(true);
    guest.driver.write32(reg::WQCFG + 8, stolen.into_bits());
    assert_eq!(guest.driver.command(Command::EnableDevice, 0), 0);
    assert_eq!(
        guest.driver.command(Command::EnableWq, 0),
        CommandError::PasidEnable as u8
    );
    guest
        .driver
        .write32(reg::WQCFG + 8, stolen.with_pasid_en(false).into_bits());
    assert_eq!(guest.driver.command(Command::EnableWq, 0), 0);
    assert_eq!(parent.real_usage(1).pasid(), guest.pasid.get());
    assert!(guest.copies() && other.copies());
}

#[test]
fn device_wide_commands_of_a_child_touch_its_own_queue_only() {
    let parent = Parent::new();
    let queue = parent.driver.open_queue(0).unwrap();
    let (guest, other) = (Guest::enabled(&parent, 1), Guest::enabled(&parent, 2));
    let requests = Requests::install(&other.domain);
    // Something that never ends by itself is under way for the other one.
    let waiting = Descriptor::memory_move(Area::BASE + 2 * SIZE, Area::BASE, 64, Area::BASE + 0x40);
    other.driver.submit(0, waiting.with_block_on_fault());
    eventually("the other to wait", || !requests.is_empty());
    for command in [Command::DrainAll, Command::AbortAll, Command::DisableDevice] {
        assert_eq!(guest.driver.command(command, 0), 0, "{command:?}");
    }
    assert_eq!(
        (
            parent.real_state(0),
            parent.real_state(1),
            parent.real_state(2)
        ),
        (1, 0, 1)
    );
    assert_eq!(guest.driver.command(Command::ResetDevice, 0), 0);
    assert_eq!((parent.real_state(0), parent.real_state(2)), (1, 1));
    // Other queues cannot be named.
    assert_eq!(guest.driver.command(Command::EnableDevice, 0), 0);
    for (command, operand) in [
        (Command::EnableWq, 2),
        (Command::DisableWq, 4),
        (Command::ResetWq, 5),
        (Command::AbortWq, 0xffff),
    ] {
        let refused = guest.driver.command(command, operand);
        assert_eq!(refused, CommandError::InvalidQueue as u8, "{command:?}");
    }
    let refused = guest.driver.command(Command::AbortPasid, other.pasid.get());
    assert_eq!(refused, CommandError::InvalidCommand as u8);
    assert!(!requests.is_empty(), "the other one still waits");
    let buffer = parent.driver.dma().alloc_coherent(4096).unwrap();
    queue.fill(buffer.iova(), 1, 4096).unwrap();
    assert_eq!(guest.driver.command(Command::EnableWq, 0), 0);
    assert!(guest.copies());
}

#[test]
fn a_job_at_an_address_of_another_child_moves_nothing_and_faults_for_its_owner_alone() {
    let parent = Parent::new();
    let (guest, other) = (Guest::enabled(&parent, 1), Guest::enabled(&parent, 2));
    let only_other = Area::BASE + SIZE;
    let secret = Area::new(&parent.iommu, 4096);
    other
        .domain
        .map(only_other, secret.pages.spa(), 4096, ioasid_core::Prot::RW)
        .unwrap();
    for (to, from, status) in [
        (Area::BASE + 0x2000, only_other, 0x03),
        (only_other, Area::BASE + 0x2000, 0x83),
    ] {
        guest.area.write(Area::BASE, &[0; 32]);
        let forged = Descriptor {
            pasid: other.pasid.get(),
            ..Descriptor::memory_move(to, from, 4096, Area::BASE)
        };
        guest.driver.submit(0, forged);
        let record = guest.area.wait(Area::BASE);
        assert_eq!((record.status, record.completed), (status, 0));
    }
    assert_eq!(secret.read(Area::BASE, 4096), vec![0; 4096]);
    assert_eq!((guest.faults.total(), other.faults.total()), (2, 0));
}

#[test]
fn an_interrupt_handle_outside_of_its_own_vectors_is_an_error() {
    let parent = Parent::new();
    let guest = Guest::enabled(&parent, 1);
    let parents: Vec<_> = (0..5)
        .map(|vector| {
            Driver {
                model: parent.dsa.clone(),
            }
            .listen(vector)
        })
        .collect();
    let own = guest.driver.listen(1);
    for handle in [2, 3, 0x100, u16::MAX] {
        guest.area.write(Area::BASE, &[0; 32]);
        let forged = Descriptor::new(Opcode::Noop, Area::BASE).with_interrupt(handle);
        guest.driver.submit(0, forged);
        assert_eq!(
            guest.area.wait(Area::BASE).status,
            Status::InterruptHandle as u8
        );
    }
    guest.area.write(Area::BASE, &[0; 32]);
    guest.driver.submit(
        0,
        Descriptor::new(Opcode::Noop, Area::BASE).with_interrupt(1),
    );
    eventually("its own interrupt", || own.count() == 1);
    assert!(parents.iter().all(|irq| irq.count() == 0));
}

#[test]
fn errors_show_to_their_owner_alone() {
    let parent = Parent::new();
    let (guest, other) = (Guest::enabled(&parent, 1), Guest::enabled(&parent, 2));
    let misc = other.driver.listen(0);
    other.driver.write32(reg::GENCTRL, 1);
    let unreachable = Area::BASE + SIZE;
    guest
        .driver
        .submit(0, Descriptor::new(Opcode::Noop, unreachable));
    assert_eq!(guest.driver.command(Command::DrainAll, 0), 0);
    assert_eq!(
        guest.driver.software_error(),
        Some(Status::RecordFault as u8)
    );
    let index = guest.driver.read64(reg::SWERR) >> 16 & 0xff;
    assert_eq!(index, 0, "its own queue index, not the parent's");
    assert_eq!(guest.driver.read64(reg::SWERR) >> 40, 0, "no PASID");
    let whole = Driver {
        model: parent.dsa.clone(),
    };
    assert_eq!(
        (other.driver.software_error(), whole.software_error()),
        (None, None)
    );
    assert_eq!(misc.count(), 0);
}

#[test]
fn a_write_with_a_pasid_to_the_interrupt_window_is_no_interrupt() {
    let parent = Parent::new();
    let guest = Guest::enabled(&parent, 1);
    let irqs: Vec<_> = (0..2).map(|vector| guest.driver.listen(vector)).collect();
    guest.area.write(Area::BASE, &[0; 32]);
    guest
        .driver
        .submit(0, Descriptor::fill(0xfee0_0000, 0, 64, Area::BASE));
    assert_eq!(guest.area.wait(Area::BASE).status, 0x83);
    assert!(irqs.iter().all(|irq| irq.count() == 0));
}

#[test]
fn traffic_of_the_parent_never_uses_the_address_space_of_a_child() {
    let parent = Parent::new();
    let queue = parent.driver.open_queue(0).unwrap();
    let guest = Guest::enabled(&parent, 1);
    let before = guest.area.read(Area::BASE, SIZE as usize);
    assert!(queue.fill(Area::BASE, u64::MAX, 4096).is_err());
    assert!(guest.area.read(Area::BASE, SIZE as usize) == before);
    assert_eq!(guest.faults.total(), 0);
}

#[test]
fn a_pasid_is_not_reused_while_a_descriptor_that_was_accepted_with_it_is_under_way() {
    let parent = Parent::new();
    let guest = Guest::enabled(&parent, 1);
    let first = guest.pasid;
    let requests = Requests::install(&guest.domain);
    let waiting = Descriptor::memory_move(Area::BASE + 2 * SIZE, Area::BASE, 64, Area::BASE + 0x40);
    guest.driver.submit(0, waiting.with_block_on_fault());
    eventually("it to wait", || !requests.is_empty());
    // The handle goes before the queue is stopped, which no caller does: the number stays taken.
    guest.child.unbind();
    assert_eq!(
        (
            parent.iommu.pasids().held(),
            parent.iommu.pasids().pending()
        ),
        (0, 1)
    );
    let second = DsaChild::new(&parent.dsa, 2).unwrap();
    let (_, other) = second.bind().unwrap();
    assert_ne!(other, first);
    second.unbind();
    // Stopping the queue lets it go.
    guest.child.quiesce();
    assert_eq!(parent.iommu.pasids().pending(), 0);
    let (_, again) = second.bind().unwrap();
    assert_eq!(again, first);
}

#[test]
fn a_child_that_leaves_in_the_middle_of_work_leaves_no_write_and_a_pristine_queue() {
    let parent = Parent::new();
    let child = DsaChild::new(&parent.dsa, 1).unwrap();
    drop(child);
    for round in 0..50_u64 {
        let guest = Guest::enabled(&parent, 1);
        for index in 0..16 {
            let to = Area::BASE + 0x1_0000 + index * 0x4000;
            guest.driver.submit(
                0,
                Descriptor::fill(to, round, 0x4000, Area::BASE + index * 32),
            );
        }
        guest.leave();
        let before = guest.area.read(Area::BASE, SIZE as usize);
        guest.child.release();
        let pool = parent.iommu.pasids();
        assert_eq!((pool.held(), pool.pending()), (0, 0));
        assert!(
            parent
                .device
                .attachments()
                .iter()
                .all(|(pasid, _)| pasid.is_none())
        );
        assert!(!parent.real_usage(1).pasid_en());
        assert_eq!(parent.real_state(1), 0);
        assert_eq!(guest.driver.read32(reg::GENSTS) & 3, 0);
        assert!(
            guest.area.read(Area::BASE, SIZE as usize) == before,
            "{round}"
        );
    }
}

#[test]
fn children_come_and_go_by_uuid_through_the_registry() {
    let parent = Parent::new();
    let vfio = Vfio::new(&parent.iommu);
    let registry = MdevRegistry::new(&vfio);
    let mdevs = DsaParent::new(parent.dsa.clone());
    registry.add_parent(mdevs.clone());
    let name = mdevs.name();
    assert_eq!(name, "0000:6a:01.0");
    assert_eq!(mdevs.available_instances(TYPE_1DWQ), 3);
    let uuid = |n: u8| format!("5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a0{n}");
    for n in 1..=3 {
        registry
            .create(&name, TYPE_1DWQ, uuid(n).as_bytes())
            .unwrap();
    }
    assert_eq!(mdevs.available_instances(TYPE_1DWQ), 0);
    let full = registry.create(&name, TYPE_1DWQ, uuid(4).as_bytes());
    let none = full.unwrap_err();
    assert!(matches!(none, MdevError::NoInstance { .. }), "{none}");
    let second = registry.list()[1].clone();
    assert_eq!(mdevs.child(second.uuid()).unwrap().queue(), 2);
    let held = second.clone();
    registry.remove(second.uuid(), PATIENCE).unwrap();
    assert_eq!(
        mdevs.available_instances(TYPE_1DWQ),
        1,
        "free although it is still in use"
    );
    // What is left of the removed child reaches nothing.
    let driver = Driver::new(held.device().model().clone());
    assert_eq!(
        driver.command(Command::EnableDevice, 0),
        CommandError::Hardware as u8
    );
    let again = registry
        .create(&name, TYPE_1DWQ, uuid(4).as_bytes())
        .unwrap();
    assert_eq!(mdevs.child(again.uuid()).unwrap().queue(), 2);
}

fn set_master(model: &dyn DeviceModel, on: bool) {
    let command = if on { 6 } else { 2 };
    let _ = model.function().write_config(4, &[command]).unwrap();
}

#[test]
fn a_childs_bus_master_bit_holds_its_own_queue_and_its_parents_holds_all() {
    let parent = Parent::new();
    let [one, two] = [1, 2].map(|queue| Guest::enabled(&parent, queue));
    let record = Area::BASE + 0x100;
    let copy = Descriptor::memory_move(Area::BASE + 0x2000, Area::BASE + 0x1000, 4096, record);
    one.area.write(Area::BASE + 0x1000, &[0x5a; 4096]);
    set_master(&*parent.dsa, false);
    one.driver.submit(0, copy);
    two.driver.submit(0, copy);
    // No work goes on; what a child's bit says makes no difference.
    set_master(&*two.child, false);
    assert_eq!(one.area.read(record, 1), [0]);
    set_master(&*parent.dsa, true);
    assert_eq!(one.area.wait(record).status, 1);
    assert_eq!(two.area.read(record, 1), [0], "its own bit is 0");
    // The others are not held up by that, and neither is a command of the parent's on all queues.
    assert!(one.copies());
    let host = Driver {
        model: parent.dsa.clone(),
    };
    assert_eq!(host.command(Command::DrainAll, 0), 0);
    set_master(&*two.child, true);
    assert!(two.copies());
    assert_eq!(two.area.read(record, 1), [0], "dropped by the drain");
}
