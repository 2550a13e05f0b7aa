//! The register file and its commands: what drivers find there, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use ioasid_dsa::{
    DsaConfig,
    spec::{
        Command, CommandError,
        registers::{self as reg, GenCap, TableOffsets, WqCap},
    },
};

/// A new device with four queues of 32 entries, without bus mastering yet.
fn fresh() -> Driver {
    let iommu = new_iommu();
    let device = add_device(&iommu, "0000:6b:01.0");
    let model = new_dsa(&iommu, &device, DsaConfig::with_queues(4));
    Driver { model }
}

/// Sees that a command is refused, and why.
fn refuses(driver: &Driver, command: Command, operand: u32, error: CommandError) {
    let code = driver.command(command, operand);
    assert_eq!(code, error as u8, "{command:?} {operand:#x}: {error}");
}

#[test]
fn commands_on_the_device_refuse_what_the_specification_refuses() {
    let driver = fresh();
    refuses(&driver, Command::EnableDevice, 0, CommandError::BusMaster);
    let driver = Driver::new(driver.model);
    refuses(
        &driver,
        Command::EnableWq,
        0,
        CommandError::DeviceNotEnabled,
    );
    refuses(
        &driver,
        Command::DisableDevice,
        0,
        CommandError::DisableNotEnabled,
    );
    refuses(
        &driver,
        Command::DrainWq,
        1,
        CommandError::QueueDeviceNotEnabled,
    );
    driver.write32(reg::CMD, 13 << 20);
    let error = driver.command_status().error();
    assert_eq!(error, CommandError::InvalidCommand as u8);
    // Sizes and groups.
    driver.configure_queue(0, 129, usage());
    let enable = |error| refuses(&driver, Command::EnableDevice, 0, error);
    enable(CommandError::QueueSizeRange);
    driver.configure_queue(0, 32, usage());
    enable(CommandError::GroupQueues);
    driver.write64(reg::GRPCFG, 1);
    enable(CommandError::GroupNoEngine);
    driver.write64(reg::GRPCFG + 32, 4);
    enable(CommandError::GroupEngines);
    driver.write64(reg::GRPCFG + 32, 1);
    assert_eq!(driver.command(Command::EnableDevice, 0), 0);
    enable(CommandError::DeviceEnabled);
    // The device is enabled: no more configuration.
    driver.write64(reg::GRPCFG, 3);
    driver.write32(reg::WQCFG, 1);
    assert_eq!(
        (driver.read64(reg::GRPCFG), driver.read32(reg::WQCFG)),
        (1, 32)
    );
}

#[test]
fn commands_on_queues_refuse_what_the_specification_refuses() {
    let driver = Driver::new(fresh().model);
    driver.configure_queue(0, 32, usage());
    driver.write64(reg::GRPCFG, 1);
    driver.write64(reg::GRPCFG + 32, 1);
    assert_eq!(driver.command(Command::EnableDevice, 0), 0);
    refuses(&driver, Command::EnableWq, 9, CommandError::InvalidQueue);
    refuses(&driver, Command::EnableWq, 1, CommandError::QueueSize);
    let enable = |error| refuses(&driver, Command::EnableWq, 0, error);
    for (wrong, error) in [
        (usage().with_priority(0), CommandError::QueuePriority),
        // A shared queue without a threshold.
        (usage().with_dedicated(false), CommandError::QueueSize),
        (usage().with_pasid_en(true), CommandError::PasidEnable),
    ] {
        driver.configure_queue(0, 32, wrong);
        enable(error);
    }
    driver.configure_queue(0, 32, usage());
    driver.write32(reg::WQCFG + 12, 22);
    enable(CommandError::MaxTransfer);
    driver.write32(reg::WQCFG + 12, 21 | 11 << 5);
    enable(CommandError::MaxBatch);
    driver.write32(reg::WQCFG + 12, 21 | 10 << 5);
    assert_eq!(driver.command(Command::EnableWq, 0), 0);
    enable(CommandError::QueueEnabled);
    assert_eq!(
        driver.read32(reg::WQCFG + 24) >> 30,
        1,
        "drivers read the state back"
    );
    for operand in [0, 0x10, 1 << 16 | 1] {
        refuses(
            &driver,
            Command::DrainWq,
            operand,
            CommandError::InvalidQueue,
        );
    }
}

#[test]
fn the_register_file_is_what_drivers_expect() {
    let iommu = new_iommu();
    let device = add_device(&iommu, "0000:6b:01.0");
    let driver = Driver::new(new_dsa(&iommu, &device, DsaConfig::default()));
    assert_eq!(driver.read32(reg::VERSION), 0x100);
    let general = GenCap::from_bits(driver.read64(reg::GENCAP));
    assert!(general.config_en() && general.cmd_cap() && general.max_xfer_shift() <= 21);
    assert_eq!(driver.read32(reg::CMDCAP) & 1 << 13, 0);
    let queues = WqCap::from_bits(driver.read64(reg::WQCAP));
    assert_eq!(
        (
            queues.num_wqs(),
            queues.total_wq_size(),
            queues.wqcfg_size()
        ),
        (8, 256, 0)
    );
    assert_eq!(driver.read64(reg::ENGCAP), 2);
    let offsets = TableOffsets::from_bits(driver.read64(reg::OFFSETS).into());
    assert_eq!(u64::from(offsets.wqcfg()) << 8, reg::WQCFG);
    let function = driver.model.function();
    assert_eq!(function.vectors().count(), 9);
    assert_eq!(function.bar(0).unwrap().size, 0x1_0000);
    assert_eq!(function.bar(2).unwrap().size, 8 * 0x4000);
    let mut id = [0; 4];
    function.read_config(0, &mut id).unwrap();
    assert_eq!(id, [0x86, 0x80, 0x25, 0x0b]);
    // Every offset and width answers, and nothing panics.
    for offset in 0..0x4000 {
        for width in [1, 2, 4, 8] {
            let mut data = vec![0xee; width];
            driver.model.read(0, offset, &mut data);
            driver.model.write(0, offset, &vec![0xff; width]);
        }
    }
    driver.model.read(0, u64::MAX - 2, &mut [0; 8]);
    driver.model.write(2, !63, &[0; 64]);
    driver.model.write(7, 0, &[0; 64]);
}
