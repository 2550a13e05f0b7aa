//! One VM of the demo: a process of its own that joined the machine and uses the ABI alone. It does
//! what it is told on standard input and knows nothing of the machine behind /dev/iommu.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, Write as _},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use passthrough_client::{
    Area, Device, DmaMemory, DsaQueue, MemoryKind, Vm, discover,
    dsa::{Completion, Descriptor, Flags},
    plan,
};

use super::order::{Answer, Order, Which};

/// Longest wait for a completion.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Completion records of one queue.
const SLOTS: usize = 32;
/// Largest copy of one descriptor.
const LARGEST: u64 = 1 << 20;

/// Serves orders until the demo hangs up.
pub(crate) fn main() -> Result<()> {
    let mut guest = Guest::default();
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line.context("reading an order")?)?;
        let exit = matches!(order, Order::Exit);
        let answer = guest
            .carry_out(order)
            .unwrap_or_else(|error| Answer::Failed {
                errno: error
                    .chain()
                    .find_map(|cause| cause.downcast_ref::<passthrough_client::Error>())
                    .and_then(passthrough_client::Error::errno),
                sentence: format!("{error:#}"),
            });
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &answer)?;
        writeln!(out)?;
        out.flush()?;
        if exit {
            break;
        }
    }
    Ok(())
}

/// One device: attached, then brought up.
enum Attached {
    Idle(Device),
    Ready(DsaQueue),
}

#[derive(Default)]
struct Guest {
    pdev: Option<Attached>,
    mdev: Option<Attached>,
    areas: BTreeMap<u64, Area>,
    // The last field: devices and areas go before the address space.
    vm: Option<Vm>,
}

impl Guest {
    fn vm(&self) -> Result<&Vm> {
        self.vm.as_ref().context("/dev/iommu is not open yet")
    }

    fn attached(&mut self, which: Which) -> &mut Option<Attached> {
        match which {
            Which::Pdev => &mut self.pdev,
            Which::Mdev => &mut self.mdev,
        }
    }

    fn queue(&mut self, which: Which) -> Result<&mut DsaQueue> {
        match self.attached(which) {
            Some(Attached::Ready(queue)) => Ok(queue),
            _ => bail!("the device is not up"),
        }
    }

    /// The area that holds the `len` bytes at `iova`, and their offset in it.
    fn area(&self, iova: u64, len: u64) -> Result<(&Area, u64)> {
        let (start, area) = self
            .areas
            .range(..=iova)
            .next_back()
            .with_context(|| format!("no area at {iova:#x}"))?;
        let offset = iova - start;
        if offset.checked_add(len).is_none_or(|end| end > area.len()) {
            bail!("{len} bytes at {iova:#x} leave their area");
        }
        Ok((area, offset))
    }

    #[expect(clippy::too_many_lines, reason = "a decoder: one arm for each order")]
    fn carry_out(&mut self, order: Order) -> Result<Answer> {
        match order {
            Order::Open => {
                self.vm = Some(Vm::open()?);
            }
            Order::Attach(which) => return self.attach(which),
            Order::Detach(which) => {
                let device = match self.attached(which).take() {
                    Some(Attached::Ready(queue)) => queue.shut_down()?,
                    Some(Attached::Idle(device)) => device,
                    None => bail!("the device is not attached"),
                };
                device.detach()?;
            }
            Order::Map { iova, len } => {
                let memory = Arc::new(DmaMemory::new(len, MemoryKind::File)?);
                let area = self.vm()?.map(iova, &memory)?;
                self.areas.insert(iova, area);
            }
            Order::CopyMapping { from, to, len } => {
                self.vm()?.copy_mapping(from, to, len)?;
            }
            Order::Unmap { iova, len } => {
                return Ok(Answer::Number(self.vm()?.unmap_range(iova, len)?));
            }
            Order::BringUp {
                which,
                records,
                first,
            } => {
                let (area, _) = self.area(records, first + (SLOTS * Completion::SIZE) as u64)?;
                let area = area.clone();
                let Some(Attached::Idle(device)) = self.attached(which).take() else {
                    bail!("the device is not attached, or is up already")
                };
                let queue = DsaQueue::bring_up(device, &area, first, SLOTS, TIMEOUT)?;
                *self.attached(which) = Some(Attached::Ready(queue));
            }
            Order::Pattern { iova, len, seed } => {
                let (area, offset) = self.area(iova, len)?;
                area.memory.fill_pattern(offset, len, seed);
            }
            Order::Check { iova, len, seed } => {
                let (area, offset) = self.area(iova, len)?;
                return Ok(Answer::Difference(
                    area.memory.first_difference(offset, len, seed),
                ));
            }
            Order::Copy {
                which,
                to,
                from,
                len,
            } => return self.copy(which, to, from, len),
            Order::Job {
                which,
                to,
                from,
                len,
                pasid,
            } => {
                let descriptor = Descriptor {
                    pasid,
                    ..Descriptor::memmove(to, from, len)
                };
                let record = self.queue(which)?.execute(descriptor)?.record;
                return Ok(Answer::Job {
                    status: record.status.0,
                    done: record.done,
                    fault_address: record.fault_address,
                });
            }
            Order::WriteRegister {
                which,
                offset,
                value,
            } => {
                self.queue(which)?.device().write32(offset, value);
            }
            Order::ReadRegister { which, offset } => {
                let value = self.queue(which)?.device().read32(offset)?;
                return Ok(Answer::Number(value.into()));
            }
            Order::Command {
                which,
                command,
                operand,
            } => {
                return self.command(which, command, operand);
            }
            Order::BringUpAgain(which) => self.queue(which)?.bring_up_again()?,
            Order::Flood {
                which,
                to,
                from,
                len,
            } => return self.flood(which, to, from, len),
            Order::Exit => {
                // In the order in which a VM goes: devices first.
                self.mdev = None;
                self.pdev = None;
                self.vm = None;
            }
        }
        Ok(Answer::Done)
    }

    fn attach(&mut self, which: Which) -> Result<Answer> {
        let path = match which {
            Which::Pdev => discover::first_pdev()?.context("sysfs shows no whole device")?,
            Which::Mdev => discover::first_mdev()?.context("sysfs shows no mediated device")?,
        };
        let vm = self.vm()?;
        let device = vm.open_device(&path)?;
        let pt_id = device.attach(vm.ioas())?;
        *self.attached(which) = Some(Attached::Idle(device));
        Ok(Answer::Number(pt_id.into()))
    }

    /// Copies in descriptors of growing size, as many in flight as the queue takes.
    fn copy(&mut self, which: Which, to: u64, from: u64, len: u64) -> Result<Answer> {
        let queue = self.queue(which)?;
        let largest = queue.limits().max_transfer.min(LARGEST);
        let before = queue.interrupts();
        let start = Instant::now();
        let (mut pieces, mut descriptors) = (plan::pieces(len, largest).peekable(), 0);
        while pieces.peek().is_some() {
            let mut slots = Vec::new();
            for slot in (0..queue.depth())
                .filter_map(|index| queue.slot(index))
                .collect::<Vec<_>>()
            {
                let Some((offset, size)) = pieces.next() else {
                    break;
                };
                let size = u32::try_from(size).map_err(|_| anyhow!("a piece of {size} bytes"))?;
                queue.submit(slot, Descriptor::memmove(to + offset, from + offset, size))?;
                slots.push((slot, size));
                descriptors += 1;
            }
            for (slot, size) in slots {
                let record = queue.wait(slot)?.record;
                if record.status.0 != 1 {
                    bail!(
                        "a copy of {size} bytes ended with status {:#04x}",
                        record.status.0
                    );
                }
            }
        }
        queue.settle_interrupts(Duration::from_secs(30))?;
        Ok(Answer::Copied {
            descriptors,
            nanoseconds: u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            interrupts: queue.interrupts() - before,
        })
    }

    fn command(&mut self, which: Which, command: u8, operand: u32) -> Result<Answer> {
        use passthrough_client::dsa::register;
        let device = self.queue(which)?.device();
        device.write32(register::CMD, operand | u32::from(command) << 20);
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let status = device.read32(register::CMDSTS)?;
            if status >> 31 == 0 {
                return Ok(Answer::Number((status & 0xff).into()));
            }
            if Instant::now() > deadline {
                bail!("command {command} did not end");
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn flood(&mut self, which: Which, to: u64, from: u64, len: u32) -> Result<Answer> {
        let Some(Attached::Ready(queue)) = self.attached(which).take() else {
            bail!("the device is not up")
        };
        let record = queue
            .slot(0)
            .map(|slot| queue.record_iova(slot))
            .unwrap_or_default();
        let descriptor = Descriptor {
            flags: Flags::RECORD_VALID | Flags::REQUEST_RECORD,
            completion: record,
            ..Descriptor::memmove(to, from, len)
        };
        let (started, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for round in 0_u64.. {
                queue.submit_unwatched(&descriptor);
                if round == 8 {
                    let _ = started.send(());
                }
            }
        });
        wait.recv_timeout(TIMEOUT)
            .context("the flood did not start")?;
        Ok(Answer::Done)
    }
}
