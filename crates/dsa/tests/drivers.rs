//! What drivers in the field do, step by step, on a whole device and on a child: the user-space
//! driver of the kernel's VFIO self-tests, and Linux's own `idxd`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_core::Pasid;
use ioasid_dsa::{
    DsaChild, DsaConfig, HostDriver, QueueConfig,
    spec::{
        Cmd, Command, Descriptor, Flags, Status,
        command::queue_operand,
        registers::{self as reg, EngineCap, GenCap, GroupCap, PORTAL_PAGE, TableOffsets, WqCap},
        tables::{GRPCFG_SIZE, WqUse},
    },
};
use ioasid_iommu::{Device, DmaSource, FaultLog, FaultSink, Iommu};
use ioasid_vfio::{DefaultPasid, DeviceModel};

const SIZE: u64 = 16 << 20;
const COPY_RECORD: u64 = Area::BASE;
const BATCH_RECORD: u64 = Area::BASE + 32;
const LIST: u64 = Area::BASE + 0x1_0000;
const SRC: u64 = Area::BASE + 0x10_0000;
const DST: u64 = Area::BASE + 0x80_0000;
/// Not mapped.
const NOWHERE: u64 = Area::BASE + SIZE + 0x1000;

/// A device for a program, with memory at its addresses.
struct Target {
    _iommu: Arc<Iommu>,
    _host: Option<Arc<HostDriver>>,
    child: Option<Arc<DsaChild>>,
    driver: Driver,
    area: Area,
}

impl Target {
    fn attach(
        iommu: &Arc<Iommu>,
        device: &Arc<Device>,
        pasid: Option<Pasid>,
        model: Arc<dyn DeviceModel>,
    ) -> (Driver, Area) {
        let domain = new_domain(iommu, device);
        let area = Area::new(iommu, SIZE as usize);
        area.map(&domain, SIZE);
        area.write(SRC, &pattern(4 << 20, 7));
        let sink: Arc<dyn FaultSink> = FaultLog::new(64);
        let route = DmaSource::new(device, pasid);
        route.attach(&domain, &sink).unwrap();
        (Driver { model }, area)
    }

    fn whole() -> Self {
        let iommu = new_iommu();
        let device = add_device(&iommu, "0000:6b:01.0");
        let dsa = new_dsa(&iommu, &device, DsaConfig::default());
        let (driver, area) = Self::attach(&iommu, &device, None, dsa);
        Target {
            _iommu: iommu,
            _host: None,
            child: None,
            driver,
            area,
        }
    }

    fn child(entries: u16) -> Self {
        let iommu = new_iommu();
        let device = add_device(&iommu, "0000:6a:01.0");
        let mut config = DsaConfig::with_queues(2);
        config.queues[1] = QueueConfig {
            size: entries,
            mdev: true,
            ..QueueConfig::default()
        };
        let dsa = new_dsa(&iommu, &device, config);
        let host = HostDriver::probe(&dsa).unwrap();
        let child = DsaChild::new(&dsa, 1).unwrap();
        let (device, pasid) = child.bind().unwrap();
        let (driver, area) = Self::attach(&iommu, &device, Some(pasid), child.clone());
        Target {
            _iommu: iommu,
            _host: Some(host),
            child: Some(child),
            driver,
            area,
        }
    }

    fn each() -> [Self; 2] {
        [Self::whole(), Self::child(32)]
    }

    fn config(&self, offset: u64, value: [u8; 2]) {
        let function = self.driver.model.function();
        function.write_config(offset, &value).map(drop).unwrap();
    }

    /// The self-test driver's `dsa_command`.
    fn command(&self, code: Command) {
        self.driver.start(code, 0);
        eventually("the end of a command", || {
            assert_eq!(self.driver.software_error(), None);
            !self.driver.command_status().active()
        });
        assert_eq!(self.driver.command_status().error(), 0, "{code:?}");
    }

    /// The self-test driver's `dsa_init`; gives the largest batch and how many batches it would
    /// have under way.
    fn init_as_the_self_test(&self) -> (u64, u64) {
        self.config(4, [0x06, 0x04]);
        self.command(Command::ResetDevice);
        let general = GenCap::from_bits(self.driver.read64(reg::GENCAP));
        let queues = WqCap::from_bits(self.driver.read64(reg::WQCAP));
        let groups = GroupCap::from_bits(self.driver.read64(reg::GRPCAP));
        let engines = EngineCap::from_bits(self.driver.read64(reg::ENGCAP));
        assert!(queues.num_wqs() > 0 && groups.num_groups() > 0 && engines.num_engines() > 0);
        assert!(general.max_xfer_shift() <= 21);
        assert!(!general.cmd_cap() || self.driver.read32(reg::CMDCAP) & 1 << 13 == 0);
        let low = u128::from(self.driver.read64(reg::OFFSETS));
        let high = u128::from(self.driver.read64(reg::OFFSETS + 8));
        let offsets = TableOffsets::from_bits(low | high << 64);
        let wqcfg = u64::from(offsets.wqcfg()) << 8;
        let usage = WqUse::new()
            .with_dedicated(true)
            .with_priority(1)
            .with_ats_disable(queues.wq_ats_support());
        let shifts =
            u32::from(general.max_xfer_shift()) | u32::from(general.max_batch_shift()) << 5;
        let entry = [
            queues.total_wq_size().into(),
            0,
            usage.into_bits(),
            shifts,
            0,
            0,
            0,
            0,
            1 << 1 | 1 << 3,
        ];
        let dwords = 1_usize << (queues.wqcfg_size() + 3);
        for (at, value) in (wqcfg..).step_by(4).zip(&entry[..dwords]) {
            self.driver.write32(at, *value);
        }
        let grpcfg = u64::from(offsets.grpcfg()) << 8;
        self.driver.write64(grpcfg, 1);
        self.driver.write64(grpcfg + GRPCFG_SIZE / 2, 1);
        self.command(Command::EnableDevice);
        self.command(Command::EnableWq);
        // On x86 a shift counts modulo the width.
        let batches = 1_u32.wrapping_shl(u32::from(queues.total_wq_size()) + 5);
        (1 << general.max_batch_shift(), batches.min(32).into())
    }

    fn copy(&self, source: u64, destination: u64, size: u32, interrupt: bool) -> Descriptor {
        let copy = Descriptor {
            privileged: true,
            ..Descriptor::memory_move(destination, source, size, COPY_RECORD)
        };
        match interrupt {
            true => copy.with_interrupt(1),
            false => copy,
        }
    }

    /// The status of one copy, and its record.
    fn one(&self, source: u64, destination: u64, interrupt: bool) -> u8 {
        self.area.write(COPY_RECORD, &[0; 32]);
        self.driver
            .submit(0, self.copy(source, destination, 4096, interrupt));
        self.wait(COPY_RECORD)
    }

    fn wait(&self, record: u64) -> u8 {
        eventually("a record", || {
            assert_eq!(self.driver.software_error(), None);
            self.area.read(record, 1)[0] != 0
        });
        self.area.wait(record).status
    }

    /// Several batches without a record of their own but for the last one.
    fn batches(&self, count: u64, copies: u64) -> u8 {
        self.area.write(BATCH_RECORD, &[0; 32]);
        let mut copy = self.copy(SRC, DST, 4096, false);
        copy.flags.set_request_record(false);
        for index in 0..copies {
            self.area.write(LIST + index * 64, &copy.to_bytes());
        }
        for index in 1..=count {
            let mut batch = Descriptor::batch(LIST, copies as u32, BATCH_RECORD);
            batch.flags = Flags::new()
                .with_record_valid(true)
                .with_request_record(index == count);
            self.driver.submit(0, batch);
        }
        self.wait(BATCH_RECORD)
    }
}

#[test]
fn the_driver_of_the_self_tests_works_on_a_device_and_on_a_child() {
    for target in Target::each() {
        let (copies, batches) = target.init_as_the_self_test();
        let irq = target.driver.listen(1);
        assert_eq!(target.one(SRC, DST, false), 1);
        assert_eq!(target.area.read(DST, 4096), target.area.read(SRC, 4096));
        assert_eq!(target.batches(1, 2), 1);
        assert_eq!(target.batches(batches, copies.min(1024)), 1);
        assert_eq!(irq.count(), 0, "none was asked for");
        assert_eq!(target.one(SRC, DST, true), 1);
        eventually("an interrupt", || irq.count() == 1);
        // To and from nowhere: an error, no interrupt, and the device goes on.
        assert_eq!(target.one(NOWHERE, DST, false), Status::PageFault as u8);
        assert_eq!(
            target.one(SRC, NOWHERE, false),
            0x80 | Status::PageFault as u8
        );
        assert_eq!(irq.count(), 1);
        assert_eq!(target.driver.software_error(), None);
        assert_eq!(target.one(SRC, DST, false), 1);
        target.command(Command::ResetDevice);
        // And again, as the next test does.
        target.init_as_the_self_test();
        assert_eq!(target.one(SRC, DST, false), 1);
    }
}

#[test]
fn what_the_self_test_writes_to_the_tables_of_a_child_changes_nothing_there() {
    let target = Target::child(32);
    let tables = || {
        let offsets = (reg::GRPCFG..reg::GRPCFG + GRPCFG_SIZE).chain(reg::WQCFG..reg::WQCFG + 24);
        let offsets = offsets.step_by(4);
        offsets
            .map(|at| target.driver.read32(at))
            .collect::<Vec<_>>()
    };
    target.config(4, [6, 4]);
    target.command(Command::ResetDevice);
    let before = tables();
    target.init_as_the_self_test();
    assert_eq!(tables(), before);
    assert_eq!(target.one(SRC, DST, false), 1);
}

/// A command with interrupt 0, as idxd sends all but the first.
fn idxd_command(target: &Target, command: Command, operand: u32) {
    let irq = target.driver.listen(0);
    let cmd = Cmd::new()
        .with_code(command as u8)
        .with_operand(operand)
        .with_request_interrupt(true);
    target.driver.write32(reg::CMD, cmd.into_bits());
    eventually("interrupt 0", || irq.count() == 1);
    assert_eq!(target.driver.read32(reg::INTCAUSE), 2);
    target.driver.write32(reg::INTCAUSE, 2);
    assert_eq!(target.driver.read32(reg::INTCAUSE), 0);
    assert_eq!(target.driver.command_status().into_bits(), 0, "{command:?}");
}

#[test]
fn idxd_probes_enables_and_uses_a_child() {
    let target = Target::child(16);
    let driver = &target.driver;
    target.config(4, [6, 4]);
    // Probe: the state must not be halted, the reset is polled for.
    assert_eq!(driver.read32(reg::GENSTS) & 3, 0);
    target.command(Command::ResetDevice);
    assert_eq!(driver.read32(reg::VERSION), 0x100);
    let general = GenCap::from_bits(driver.read64(reg::GENCAP));
    assert!(!general.config_en() && general.cmd_cap());
    let operations = driver.read64(reg::OPCAP);
    assert_eq!(operations & 0x27f, 0x27f);
    assert_eq!(driver.read64(reg::OPCAP + 8), 0);
    // The configuration is read, as it is not the driver's to write.
    assert_eq!(driver.read64(reg::GRPCFG), 1);
    assert_eq!(driver.read64(reg::GRPCFG + 32), 1);
    let usage = WqUse::from_bits(driver.read32(reg::WQCFG + 8));
    assert!(usage.dedicated() && !usage.pasid_en() && usage.priority() > 0);
    assert_eq!(driver.read32(reg::WQCFG), 16);
    let limits = driver.read32(reg::WQCFG + 12);
    assert_eq!(limits, 21 | 10 << 5);
    assert!(
        driver.model.function().vectors().count() >= 2,
        "one for each queue and one more"
    );
    // Interrupts: permission of the queue's vector, and errors.
    let offsets = TableOffsets::from_bits(driver.read64(reg::OFFSETS).into());
    let permissions = u64::from(offsets.msix_perm()) << 8;
    driver.write32(permissions + 8, 0);
    assert_eq!(driver.read32(permissions + 8), 0);
    driver.write32(reg::GENCTRL, 1);
    // Event log.
    driver.write64(reg::EVLCFG, LIST);
    driver.write64(reg::EVLCFG + 8, 64);
    driver.write32(reg::GENCTRL, driver.read32(reg::GENCTRL) | 4);
    driver.write32(reg::GENCFG, driver.read32(reg::GENCFG) | 1 << 13);
    idxd_command(&target, Command::EnableDevice, 0);
    assert_eq!(driver.read32(reg::GENSTS) & 3, 1);
    idxd_command(&target, Command::EnableWq, 0);
    assert_eq!(driver.read32(reg::WQCFG + 24) >> 30, 1);
    // A descriptor through the limited portal, at an address that moves, with its own vector.
    let irq = driver.listen(1);
    for index in 0..64 {
        target.area.write(COPY_RECORD, &[0; 32]);
        let bytes = target.copy(SRC, DST + 4096 * index, 4096, true).to_bytes();
        driver.model.write(2, PORTAL_PAGE + 64 * index, &bytes);
        assert_eq!(target.wait(COPY_RECORD), 1);
    }
    eventually("interrupts", || irq.count() == 64);
    idxd_command(&target, Command::DrainWq, queue_operand(0));
    idxd_command(&target, Command::DisableWq, queue_operand(0));
    assert_eq!(driver.read32(reg::WQCFG + 24) >> 30, 0);
    idxd_command(&target, Command::EnableWq, 0);
    idxd_command(&target, Command::AbortWq, queue_operand(0));
    idxd_command(&target, Command::ResetWq, queue_operand(0));
    idxd_command(&target, Command::DisableDevice, 0);
    assert_eq!(driver.read32(reg::GENSTS) & 3, 0);
    target.command(Command::ResetDevice);
    assert_eq!(
        driver.read32(reg::WQCFG + 8),
        usage.into_bits(),
        "clean again"
    );
    assert_eq!(driver.software_error(), None);
    assert_eq!(driver.read64(reg::EVLSTATUS), 0);
    assert!(target.child.is_some());
}

#[test]
fn the_tables_of_a_whole_device_read_back_clean_after_a_reset() {
    let target = Target::whole();
    target.init_as_the_self_test();
    let registers = [reg::GENCFG, reg::GENCTRL, reg::INTCAUSE, reg::CMDSTS];
    for offset in registers {
        target.driver.write32(offset, u32::MAX);
    }
    target.command(Command::ResetDevice);
    for offset in (reg::GRPCFG..reg::MSIX_TABLE).step_by(4).chain(registers) {
        assert_eq!(target.driver.read32(offset), 0, "{offset:#x}");
    }
}
