//! The whole scene of one VM.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    config::{Config, Interface},
    device::Device,
    dsa::{Descriptor, Status},
    error::{Error, Result},
    memory::{DmaMemory, MemoryKind},
    plan,
    queue::DsaQueue,
    role::Role,
    vm::{Area, Vm},
};

/// IOVA of the data area, bytes. The source is its first half, the destination its second.
pub const DATA_IOVA: u64 = 4 << 30;
/// IOVA of the completion records, bytes.
pub const RECORDS_IOVA: u64 = 1 << 20;

/// Descriptors from one migration to the next.
const MIGRATED_AFTER: usize = 5;
/// Completion records per device, and so descriptors in flight at most.
const SLOTS: usize = 32;
/// Largest source (and destination) area, bytes: a longer copy goes over it again.
const LARGEST_WINDOW: u64 = 16 << 20;

/// A step that was just done.
#[derive(Clone, Debug)]
pub enum Step<'a> {
    /// The VM has an IOAS.
    Opened {
        /// Its id.
        ioas: u32,
    },
    /// A device is open and bound.
    Bound {
        /// Which.
        role: Role,
        /// Its sysfs directory.
        path: &'a Path,
    },
    /// A device is attached.
    Attached {
        /// Which.
        role: Role,
        /// The page table that it reports.
        pt_id: u32,
    },
    /// An area is mapped, once, for every device.
    Mapped {
        /// What it is for.
        what: &'static str,
        /// First IOVA.
        iova: u64,
        /// Length, bytes.
        len: u64,
    },
    /// A device's queue is enabled.
    Ready {
        /// Which.
        role: Role,
        /// Descriptors in its queue.
        queue_size: u16,
        /// Largest transfer, bytes.
        max_transfer: u64,
    },
    /// Part of the copy is done and checked.
    Copied {
        /// Which device.
        role: Role,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The data area is not mapped any more.
    Unmapped {
        /// First IOVA.
        iova: u64,
        /// Length, bytes.
        len: u64,
    },
    /// A device faulted, as it should.
    Faulted {
        /// Which.
        role: Role,
        /// Status of the completion record.
        status: Status,
        /// Address in it.
        address: u64,
    },
    /// A device is detached.
    Detached {
        /// Which.
        role: Role,
    },
}

/// Is told each step. It may take its time: the scene goes on when it returns.
pub trait Observer {
    /// `step` was just done.
    fn step(&mut self, step: &Step<'_>);
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn step(&mut self, _: &Step<'_>) {}
}

impl<F: FnMut(&Step<'_>)> Observer for F {
    fn step(&mut self, step: &Step<'_>) {
        self(step);
    }
}

/// What one device did.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// Which.
    pub role: Role,
    /// Its sysfs directory.
    pub path: PathBuf,
    /// The page table that it reported at attach.
    pub pt_id: u32,
    /// Bytes copied and checked.
    pub bytes: u64,
    /// Descriptors of the copy.
    pub descriptors: u64,
    /// Interrupts taken during the copy.
    pub interrupts: u64,
    /// Time of the copy without the checks.
    pub elapsed: Duration,
}

/// What the scene showed.
#[derive(Clone, Debug)]
pub struct Report {
    /// Id of the IOAS.
    pub ioas: u32,
    /// One entry per device, in the order of attachment.
    pub devices: Vec<DeviceReport>,
}

struct Guest<'a> {
    role: Role,
    queue: &'a mut DsaQueue,
    report: &'a mut DeviceReport,
}

/// Plays the scene: open, attach, map, copy and check, unmap, fault, detach.
///
/// # Errors
/// The first thing that is not as it should be. Everything is closed then.
pub fn run(config: &Config, observer: &mut dyn Observer) -> Result<Report> {
    let mut paths = Vec::new();
    for role in config.attach.roles() {
        let choice = match role {
            Role::Pdev => &config.pdev,
            Role::Mdev => &config.mdev,
        };
        if let Some(path) = choice.resolve(role)? {
            paths.push((role, path));
        }
    }
    if paths.is_empty() {
        return Err(Error::NoDevice);
    }

    let vm = match config.interface {
        Interface::Iommufd => Vm::open()?,
        Interface::Container => Vm::open_container()?,
    };
    observer.step(&Step::Opened { ioas: vm.ioas() });
    let mut devices = Vec::new();
    for (role, path) in &paths {
        devices.push((*role, vm.open_device(path)?));
        observer.step(&Step::Bound { role: *role, path });
    }
    let (attached, hwpts) = attach(config, &vm, &devices, observer)?;

    let window = config.bytes.min(LARGEST_WINDOW);
    let data = map(&vm, "data", DATA_IOVA, 2 * window, config.data, observer)?;
    let records_len = (paths.len() * SLOTS * 32) as u64;
    let what = "completion records";
    let records = map(
        &vm,
        what,
        RECORDS_IOVA,
        records_len,
        config.records,
        observer,
    )?;

    let mut reports = Vec::new();
    let mut queues = Vec::new();
    for (index, (role, device)) in devices.into_iter().enumerate() {
        reports.push(DeviceReport {
            role,
            path: device.path().to_owned(),
            pt_id: attached[index],
            bytes: 0,
            descriptors: 0,
            interrupts: 0,
            elapsed: Duration::ZERO,
        });
        let first = (index * SLOTS * 32) as u64;
        let queue = DsaQueue::bring_up(device, &records, first, SLOTS, config.timeout)?;
        let limits = queue.limits();
        observer.step(&Step::Ready {
            role,
            queue_size: limits.queue_size,
            max_transfer: limits.max_transfer,
        });
        queues.push((role, queue));
    }
    for ((role, queue), report) in queues.iter_mut().zip(&mut reports) {
        let role = *role;
        Guest {
            role,
            queue,
            report,
        }
        .copy(config, &data, window, observer)?;
    }

    vm.unmap(&data)?;
    let (iova, len) = (data.iova, data.len());
    observer.step(&Step::Unmapped { iova, len });
    for (role, queue) in &mut queues {
        expect_faults(*role, queue, &data, observer)?;
    }

    if vm.is_container() {
        // With the last device everything is unmapped.
        vm.unmap(&records)?;
    }
    for role in config.detach.roles() {
        if let Some(index) = queues.iter().position(|(of, _)| *of == role) {
            let device = queues.remove(index).1.shut_down()?;
            if !vm.is_container() {
                device.detach()?;
            }
            drop(device);
            observer.step(&Step::Detached { role });
        }
    }
    for hwpt in hwpts {
        vm.destroy(hwpt)?;
    }
    if !vm.is_container() {
        vm.unmap(&records)?;
    }
    Ok(Report {
        ioas: vm.ioas(),
        devices: reports,
    })
}

/// Attaches every device; gives back what each reported, and the HWPTs that were made by hand.
fn attach(
    config: &Config,
    vm: &Vm,
    devices: &[(Role, Device)],
    observer: &mut dyn Observer,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let (mut reported, mut hwpts) = (Vec::<u32>::new(), Vec::<u32>::new());
    for (role, device) in devices {
        if vm.is_container() {
            // It is attached since it is open.
            reported.push(0);
            continue;
        }
        let target = if !config.page_tables.manual(*role) {
            vm.ioas()
        } else if let Some(&hwpt) = hwpts.first() {
            hwpt
        } else {
            let hwpt = vm.alloc_hwpt(device, 0)?;
            hwpts.push(hwpt);
            hwpt
        };
        let pt_id = device.attach(target)?;
        observer.step(&Step::Attached { role: *role, pt_id });
        if let Some(&first) = reported.first()
            && config.page_tables.one_id()
            && first != pt_id
        {
            let second = pt_id;
            return Err(Error::DifferentPageTables { first, second });
        }
        reported.push(pt_id);
    }
    Ok((reported, hwpts))
}

fn map(
    vm: &Vm,
    what: &'static str,
    iova: u64,
    len: u64,
    kind: MemoryKind,
    observer: &mut dyn Observer,
) -> Result<Area> {
    let memory = Arc::new(DmaMemory::new(len as usize, kind)?);
    let area = vm.map(iova, &memory)?;
    let len = area.len();
    observer.step(&Step::Mapped { what, iova, len });
    Ok(area)
}

impl Guest<'_> {
    /// Copies `config.bytes` in rounds of `window` from the first half of `data` to the second, with
    /// new contents each round, and checks every byte.
    fn copy(
        mut self,
        config: &Config,
        data: &Area,
        window: u64,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let total = config.bytes;
        while self.report.bytes < total {
            let len = window.min(total - self.report.bytes);
            let seed = (self.role as u64 + 1) << 32 | self.report.bytes;
            data.memory.fill_pattern(0, len, seed);
            data.memory.fill(window, len, 0xee);
            let started = Instant::now();
            self.copy_window(config, data, window, len)?;
            self.report.elapsed += started.elapsed();
            if let Some(offset) = data.memory.first_difference(window, len, seed) {
                let role = self.role;
                return Err(Error::Corrupt { role, offset });
            }
            self.report.bytes += len;
            observer.step(&Step::Copied {
                role: self.role,
                done: self.report.bytes,
                total,
            });
        }
        self.queue.settle_interrupts(Duration::from_secs(30))?;
        self.report.interrupts = self.queue.interrupts();
        let (interrupts, descriptors) = (self.report.interrupts, self.report.descriptors);
        if interrupts > descriptors
            || interrupts == 0
            || (config.exact_interrupts && interrupts != descriptors)
        {
            return Err(Error::SpuriousInterrupt {
                interrupts,
                descriptors,
            });
        }
        no_software_error(self.queue)
    }

    fn copy_window(&mut self, config: &Config, data: &Area, window: u64, len: u64) -> Result<()> {
        let depth = self.queue.depth();
        let mut in_flight = std::collections::VecDeque::with_capacity(depth);
        let pieces = plan::pieces(len, self.queue.limits().max_transfer);
        for (next, (offset, len)) in pieces.enumerate() {
            if in_flight.len() == depth
                && let Some((slot, len)) = in_flight.pop_front()
            {
                self.finish(slot, len)?;
            }
            // Slots are used in turn, and the one that comes next is the oldest in flight.
            let slot = self.queue.slot(next % depth);
            let slot = slot.ok_or(Error::Limit("no completion record"))?;
            let source = data.iova + offset;
            let size = u32::try_from(len).map_err(|_| Error::Limit("too large a piece"))?;
            let descriptor = Descriptor::memmove(source + window, source, size);
            self.queue.submit(slot, descriptor)?;
            self.report.descriptors += 1;
            if config.migrate && next % MIGRATED_AFTER == MIGRATED_AFTER - 1 {
                self.queue.device().save_and_restore()?;
            }
            in_flight.push_back((slot, size));
        }
        while let Some((slot, len)) = in_flight.pop_front() {
            self.finish(slot, len)?;
        }
        Ok(())
    }

    fn finish(&mut self, slot: crate::queue::RecordSlot, len: u32) -> Result<()> {
        let record = self.queue.wait(slot)?.record;
        // The count is only meaningful for a descriptor that was cut short, but it is never wrong.
        if record.status != Status::SUCCESS || record.done > len {
            return Err(Error::Status {
                what: "a copy",
                status: record.status.0,
                expected: Status::SUCCESS.0,
                address: record.fault_address,
            });
        }
        Ok(())
    }
}

/// A read and a write of the area that is not mapped any more must fault; the records still land.
fn expect_faults(
    role: Role,
    queue: &mut DsaQueue,
    data: &Area,
    observer: &mut dyn Observer,
) -> Result<()> {
    let (source, destination) = (data.iova, data.iova + data.len() / 2);
    let tries = [
        (
            "a copy from unmapped memory",
            Descriptor::memmove(destination, source, 4096),
            (Status::PAGE_FAULT, source),
        ),
        (
            "a fill of unmapped memory",
            Descriptor::fill(destination, 0, 4096),
            (Status::PAGE_FAULT_ON_WRITE, destination),
        ),
    ];
    for (what, descriptor, (status, address)) in tries {
        let record = queue.execute(descriptor)?.record;
        if record.status != status {
            return Err(Error::Status {
                what,
                status: record.status.0,
                expected: status.0,
                address: record.fault_address,
            });
        }
        if record.fault_address != address {
            return Err(Error::FaultAddress {
                what,
                reported: record.fault_address,
                expected: address,
            });
        }
        observer.step(&Step::Faulted {
            role,
            status,
            address,
        });
    }
    no_software_error(queue)
}

fn no_software_error(queue: &DsaQueue) -> Result<()> {
    match queue.software_error()? {
        word if word.valid() => Err(Error::SoftwareError(word.error())),
        _ => Ok(()),
    }
}
