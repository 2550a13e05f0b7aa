//! A whole DSA with four dedicated queues, each with a PASID or without.

use std::time::{Duration, Instant};

use passthrough_client::{
    Device,
    dsa::{
        Command, CommandRegister, CommandStatus, Descriptor, Flags, GeneralCaps, SoftwareErrorWord,
        TableOffsets, WqCaps, WqConfig, register as reg,
    },
};

use crate::{Result, check};

/// Bytes of BAR 2 for each queue.
const PORTAL: u64 = 0x4000;

/// Whose requests a queue makes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Queue {
    pub(crate) pasid: Option<u32>,
    pub(crate) privileged: bool,
}

impl Queue {
    /// Without a PASID.
    pub(crate) const RID: Queue = Queue {
        pasid: None,
        privileged: false,
    };

    pub(crate) const fn of(pasid: u32) -> Queue {
        Queue {
            pasid: Some(pasid),
            privileged: false,
        }
    }

    pub(crate) const fn privileged(pasid: u32) -> Queue {
        Queue {
            pasid: Some(pasid),
            privileged: true,
        }
    }
}

/// Waits until `condition` holds; a program that waits for long has failed.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result {
    let start = Instant::now();
    while !condition()? {
        check!(
            start.elapsed() < Duration::from_secs(60),
            "{what} does not come"
        );
        std::thread::sleep(Duration::from_micros(20));
    }
    Ok(())
}

/// The device, enabled.
pub(crate) struct Dsa {
    device: Device,
}

impl Dsa {
    /// Configures and enables the device with these queues.
    pub(crate) fn bring_up(device: Device, queues: &[Queue]) -> Result<Dsa> {
        let dsa = Dsa { device };
        let device = &dsa.device;
        let on = reg::PCI_COMMAND_ON.to_le_bytes();
        device.write(Device::CONFIG, reg::PCI_COMMAND, &on);
        dsa.command(Command::ResetDevice, 0)?;
        let general = GeneralCaps::from_bits(device.read64(reg::GENCAP)?);
        let caps = WqCaps::from_bits(device.read64(reg::WQCAP)?);
        check!(usize::from(caps.queues()) >= queues.len(), "too few queues");
        let offsets = TableOffsets::from_bits(device.read64(reg::OFFSETS)?);
        let groups = u64::from(offsets.groups()) * TableOffsets::UNIT;
        device.write64(groups, (1 << queues.len()) - 1);
        device.write64(groups + reg::GRPCFG_ENGINES, 3);
        for (index, queue) in (0..).zip(queues) {
            let config = WqConfig::new()
                .with_size(caps.total_size() / u16::from(caps.queues()))
                .with_dedicated(true)
                .with_block_on_fault(true)
                .with_priority(8)
                .with_pasid(queue.pasid.unwrap_or(0))
                .with_pasid_enabled(queue.pasid.is_some())
                .with_privileged(queue.privileged)
                .with_max_transfer_shift(general.max_transfer_shift())
                .with_max_batch_shift(general.max_batch_shift());
            let table = u64::from(offsets.queues()) * TableOffsets::UNIT;
            let stride = 32 << caps.config_size();
            let bytes = u128::from(config).to_le_bytes();
            for (dword, bytes) in (0..).zip(bytes.chunks_exact(4)) {
                let at = table + stride * index + 4 * dword;
                device.write(Device::REGISTERS, at, bytes);
            }
        }
        dsa.command(Command::EnableDevice, 0)?;
        for index in 0..queues.len() as u32 {
            dsa.command(Command::EnableWq, index)?;
        }
        Ok(dsa)
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Runs a command to its end.
    pub(crate) fn command(&self, command: Command, operand: u32) -> Result {
        let value = CommandRegister::new()
            .with_command(command as u8)
            .with_operand(operand);
        self.device.write32(reg::CMD, value.into());
        let mut status = CommandStatus::new();
        eventually("the end of a command", || {
            status = CommandStatus::from_bits(self.device.read32(reg::CMDSTS)?);
            Ok(!status.active())
        })?;
        check!(status.error() == 0, "{command:?}: {:#x}", status.error());
        Ok(())
    }

    /// Waits until everything that was submitted has ended.
    pub(crate) fn drain(&self) -> Result {
        self.command(Command::DrainAll, 0)
    }

    /// Stores `descriptor` to the portal of `queue`, with a record at `record`.
    pub(crate) fn submit(&self, queue: u64, record: u64, descriptor: Descriptor) {
        let descriptor = Descriptor {
            flags: descriptor.flags | Flags::RECORD_VALID | Flags::REQUEST_RECORD,
            completion: record,
            ..descriptor
        };
        let bytes = descriptor.encode();
        self.device.write(Device::PORTALS, PORTAL * queue, &bytes);
    }

    /// The code of an error outside of any record, and the address that it is about; it is cleared.
    pub(crate) fn take_error(&self) -> Result<Option<(u8, u64)>> {
        let word = SoftwareErrorWord::from_bits(self.device.read64(reg::SWERR)?);
        let address = self.device.read64(reg::SWERR + 16)?;
        self.device.write64(reg::SWERR, 3);
        Ok(word.valid().then_some((word.error(), address)))
    }
}
