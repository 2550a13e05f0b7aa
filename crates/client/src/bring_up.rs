//! Making a DSA ready: PCI command, reset, capabilities, queue and group, enable.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    device::Device,
    dsa::{
        Command, CommandRegister, CommandStatus, GeneralCaps, TableOffsets, WqCaps, WqConfig,
        register as reg,
    },
    error::{Error, Result},
};

/// What queue 0 of a device can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Descriptors in the queue. One more than that is dropped silently.
    pub queue_size: u16,
    /// Largest transfer of one descriptor, bytes.
    pub max_transfer: u64,
    /// Most descriptors in one batch.
    pub max_batch: u32,
    /// Whether this is a whole device, whose queues and groups the driver configures.
    pub configurable: bool,
}

/// Resets the device and enables its queue 0, configuring it first if it is a whole device. A
/// one-queue child comes configured and has nothing but the two enable commands.
pub(crate) fn bring_up(device: &Device, timeout: Duration) -> Result<Limits> {
    let mut id = [0; 4];
    device.read(Device::CONFIG, 0, &mut id)?;
    if u32::from_le_bytes(id) != reg::PCI_ID {
        return Err(Error::Unusable("its PCI id is not 8086:0b25"));
    }
    enable_memory_and_master(device)?;
    command(device, Command::ResetDevice, 0, timeout)?;

    let general = GeneralCaps::from_bits(device.read64(reg::GENCAP)?);
    let queues = WqCaps::from_bits(device.read64(reg::WQCAP)?);
    let offsets = TableOffsets::from_bits(device.read64(reg::OFFSETS)?);
    if queues.queues() == 0 || queues.total_size() == 0 {
        return Err(Error::Unusable("it has no work queue"));
    }
    if !queues.dedicated_mode() {
        return Err(Error::Unusable("it has no dedicated work queues"));
    }
    let wqcfg = u64::from(offsets.queues()) * TableOffsets::UNIT;
    if general.configurable() {
        configure_queue(device, wqcfg, general, queues)?;
        configure_group(device, u64::from(offsets.groups()) * TableOffsets::UNIT)?;
    }
    let config = read_queue(device, wqcfg)?;
    if config.size() == 0 || !config.dedicated() {
        return Err(Error::Unusable(
            "its queue 0 is not a dedicated queue with a size",
        ));
    }

    command(device, Command::EnableDevice, 0, timeout)?;
    command(device, Command::EnableWq, 0, timeout)?;
    let shift = |of_queue: u8, of_device: u8| match of_queue {
        0 => of_device,
        shift => shift.min(of_device),
    };
    let transfer = shift(config.max_transfer_shift(), general.max_transfer_shift());
    let batch = shift(config.max_batch_shift(), general.max_batch_shift());
    Ok(Limits {
        queue_size: config.size(),
        max_transfer: 1 << transfer,
        max_batch: 1 << batch,
        configurable: general.configurable(),
    })
}

/// Starts a command and waits until it is done.
pub(crate) fn command(
    device: &Device,
    command: Command,
    operand: u32,
    timeout: Duration,
) -> Result<CommandStatus> {
    let value = CommandRegister::new()
        .with_command(command as u8)
        .with_operand(operand & 0xf_ffff);
    device.write32(reg::CMD, value.into());
    let deadline = Instant::now() + timeout;
    loop {
        let status = CommandStatus::from_bits(device.read32(reg::CMDSTS)?);
        if !status.active() {
            return match status.error() {
                0 => Ok(status),
                code => Err(Error::Command {
                    command,
                    operand,
                    code,
                }),
            };
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout("a device command"));
        }
        thread::sleep(Duration::from_micros(100));
    }
}

fn enable_memory_and_master(device: &Device) -> Result<()> {
    let on = reg::PCI_COMMAND_ON;
    device.write(Device::CONFIG, reg::PCI_COMMAND, &on.to_le_bytes());
    let mut bytes = [0; 2];
    device.read(Device::CONFIG, reg::PCI_COMMAND, &mut bytes)?;
    let read = u16::from_le_bytes(bytes);
    if read & on == on {
        Ok(())
    } else {
        Err(Error::RegisterDiffers {
            register: "PCI_COMMAND",
            read: read.into(),
            written: on.into(),
        })
    }
}

fn read_queue(device: &Device, wqcfg: u64) -> Result<WqConfig> {
    let mut bytes = [0; 16];
    for (index, dword) in bytes.chunks_exact_mut(4).enumerate() {
        let value = device.read32(wqcfg + 4 * index as u64)?;
        dword.copy_from_slice(&value.to_le_bytes());
    }
    Ok(WqConfig::from_bits(u128::from_le_bytes(bytes)))
}

fn configure_queue(
    device: &Device,
    wqcfg: u64,
    general: GeneralCaps,
    queues: WqCaps,
) -> Result<()> {
    let config = WqConfig::new()
        .with_size(queues.total_size())
        .with_dedicated(true)
        .with_priority(1)
        .with_max_transfer_shift(general.max_transfer_shift())
        .with_max_batch_shift(general.max_batch_shift());
    for (index, dword) in u128::from(config).to_le_bytes().chunks_exact(4).enumerate() {
        device.write(Device::REGISTERS, wqcfg + 4 * index as u64, dword);
    }
    if queues.operation_config() {
        for word in 0..4 {
            let operations = device.read64(reg::OPCAP + 8 * word)?;
            device.write64(wqcfg + reg::WQCFG_OPERATIONS + 8 * word, operations);
        }
    }
    let read = read_queue(device, wqcfg)?;
    if (read.size(), read.dedicated()) == (config.size(), true) {
        Ok(())
    } else {
        Err(Error::RegisterDiffers {
            register: "WQCFG[0]",
            read: read.into_bits() as u64,
            written: config.into_bits() as u64,
        })
    }
}

/// Queue 0 and engine 0 into group 0.
fn configure_group(device: &Device, grpcfg: u64) -> Result<()> {
    for offset in [0, reg::GRPCFG_ENGINES] {
        device.write64(grpcfg + offset, 1);
        let read = device.read64(grpcfg + offset)?;
        if read != 1 {
            return Err(Error::RegisterDiffers {
                register: "GRPCFG[0]",
                read,
                written: 1,
            });
        }
    }
    Ok(())
}
