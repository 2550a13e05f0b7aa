//! A machine of one device: a counter that interrupts when it is written, with a portal.
//!
//! BAR 0: 0x0 (8 bytes) adds what is written; 0x100..0x200 is memory; 0x208 tells the size of the
//! last access that wrote to it, 0x210 how many stores of 64 bytes BAR 2 took, 0x218 the sum of
//! their first 8 bytes, 0x220 how many deferrable stores, of which it takes every other one.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

use ioasid_core::{inspect, spa::SpaSpace, sync::Mutex};
use ioasid_iommu::{DeviceConfig, Iommu, IommuConfig};
use ioasid_iommufd::Context;
use ioasid_supervisor::{LiveFile, MachineView, SysfsEntry, SysfsFile, SysfsKind, VfioNode};
use ioasid_vfio::{
    AttributeError, DeviceModel, Migrate, Passthrough, StateError, Vfio,
    pci::{Bar, Function, FunctionBuilder, MsixLayout},
};

pub(crate) const ADDRESS: &str = "0000:6b:01.0";
pub(crate) const RDEV: (u32, u32) = (511, 3);

#[derive(Debug)]
struct Adder {
    function: Function,
    sum: AtomicU64,
    memory: Mutex<[u8; 0x100]>,
    last_size: AtomicU64,
    stores: AtomicU64,
    stored: AtomicU64,
    offered: AtomicU64,
}

impl DeviceModel for Adder {
    fn function(&self) -> &Function {
        &self.function
    }

    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let number = match (bar, offset) {
            (0, 0) => self.sum.load(Ordering::Acquire),
            (0, 0x100..0x200) => {
                let at = offset as usize - 0x100;
                data.copy_from_slice(&self.memory.lock()[at..at + data.len()]);
                return;
            }
            (0, 0x208) => self.last_size.load(Ordering::Acquire),
            (0, 0x210) => self.stores.load(Ordering::Acquire),
            (0, 0x218) => self.stored.load(Ordering::Acquire),
            (0, 0x220) => self.offered.load(Ordering::Acquire).div_ceil(2),
            _ => return,
        };
        data.copy_from_slice(&number.to_le_bytes()[..data.len()]);
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        if let (0, 0, Ok(data)) = (bar, offset, data.try_into()) {
            self.sum
                .fetch_add(u64::from_le_bytes(data), Ordering::AcqRel);
            self.function.vectors().signal(0);
        }
        if let (0, 0x100..0x200) = (bar, offset) {
            let at = offset as usize - 0x100;
            self.memory.lock()[at..at + data.len()].copy_from_slice(data);
            self.last_size.store(data.len() as u64, Ordering::Release);
        }
        if let (2, Some(first), 64) = (bar, data.first_chunk(), data.len()) {
            self.stored
                .fetch_add(u64::from_le_bytes(*first), Ordering::AcqRel);
            self.stores.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn enqueue(&self, bar: u8, _offset: u64, _data: &[u8; 64]) -> bool {
        bar == 2
            && self
                .offered
                .fetch_add(1, Ordering::AcqRel)
                .is_multiple_of(2)
    }

    fn reset(&self) {
        self.sum.store(0, Ordering::Release);
    }

    fn migration(&self) -> Option<&dyn Migrate> {
        Some(self)
    }
}

/// Of its sum alone.
impl Migrate for Adder {
    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Vec<u8> {
        self.sum.load(Ordering::Acquire).to_le_bytes().to_vec()
    }

    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        let sum = state.try_into().map_err(|_| StateError)?;
        self.sum.store(u64::from_le_bytes(sum), Ordering::Release);
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Example {
    iommu: Arc<Iommu>,
    vfio: Arc<Vfio>,
    contexts: Mutex<Vec<Weak<Context>>>,
    /// What was written to the attribute `count`, and how often.
    count: AtomicU64,
    generation: AtomicU64,
}

impl Example {
    pub(crate) fn new() -> Arc<Self> {
        let iommu = Iommu::new(IommuConfig::default());
        let config = DeviceConfig::new(ADDRESS.parse().unwrap());
        let dma = iommu.add_device(config).unwrap();
        let function = FunctionBuilder::new(0x1b36, 0x0005)
            .class(0x00ff00, 1)
            .bar(0, Bar::memory64(0x4000))
            .bar(2, Bar::memory64(0x4000).with_wide_stores())
            .express()
            .msix(MsixLayout::new(0, 0x2000, 0x3000, 1))
            .build()
            .unwrap();
        let vfio = Vfio::new(&iommu);
        let adder = Adder {
            function,
            sum: AtomicU64::new(0),
            memory: Mutex::new([0; 0x100]),
            last_size: AtomicU64::new(0),
            stores: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            offered: AtomicU64::new(0),
        };
        vfio.add(Arc::new(adder), Passthrough::Whole(dma));
        Arc::new(Example {
            iommu,
            vfio,
            contexts: Mutex::default(),
            count: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        })
    }
}

impl MachineView for Example {
    fn new_context(&self) -> Arc<Context> {
        let context = Context::new(&self.iommu);
        self.contexts.lock().push(Arc::downgrade(&context));
        context
    }

    fn nodes(&self, vm: Option<&str>) -> Vec<VfioNode> {
        if vm == Some("vm2") {
            return Vec::new();
        }
        let node = |device: Arc<ioasid_vfio::VfioDevice>| VfioNode {
            name: device.name().to_owned(),
            major: RDEV.0,
            minor: RDEV.1,
            device,
        };
        self.vfio.devices().into_iter().map(node).collect()
    }

    fn sysfs(&self, vm: Option<&str>) -> Vec<SysfsEntry> {
        if vm == Some("vm2") {
            return Vec::new();
        }
        let device = format!("devices/pci0000:6b/{ADDRESS}");
        let entry = |path: String, kind| SysfsEntry { path, kind };
        let count = self.count.load(Ordering::Acquire);
        let parts = (0..count).flat_map(|part| {
            [
                entry(
                    format!("{device}/part{part}/name"),
                    SysfsKind::File(SysfsFile::read_only(format!("part {part}\n"))),
                ),
                entry(
                    format!("bus/pci/devices/part{part}"),
                    SysfsKind::Link(format!("../../../{device}/part{part}")),
                ),
            ]
        });
        let mut entries: Vec<_> = parts.collect();
        let device_of = self.vfio.devices().into_iter().next();
        let config = device_of.map(|device| device.model().function().host_config());
        entries.extend([
            entry(
                format!("{device}/config"),
                SysfsKind::File(SysfsFile::writable(config.unwrap_or_default())),
            ),
            entry(
                format!("{device}/remove"),
                SysfsKind::File(SysfsFile {
                    mode: 0o220,
                    ..SysfsFile::read_only("")
                }),
            ),
            entry(
                format!("{device}/resource0"),
                SysfsKind::File(SysfsFile {
                    mode: 0o600,
                    size: 0x4000,
                    ..SysfsFile::read_only("")
                }),
            ),
            entry(
                format!("{device}/count"),
                SysfsKind::File(SysfsFile::writable(format!("{count}\n"))),
            ),
            entry(
                format!("{device}/vendor"),
                SysfsKind::File(SysfsFile::read_only("0x1b36\n")),
            ),
            entry(
                format!("{device}/vfio-dev/vfio0/dev"),
                SysfsKind::File(SysfsFile::read_only(format!("{}:{}\n", RDEV.0, RDEV.1))),
            ),
            entry(
                format!("bus/pci/devices/{ADDRESS}"),
                SysfsKind::Link(format!("../../../{device}")),
            ),
            entry(
                format!("{device}/subsystem"),
                SysfsKind::Link("../../../bus/pci".to_owned()),
            ),
        ]);
        entries
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn live_files(&self, vm: Option<&str>) -> Vec<LiveFile> {
        if vm == Some("vm2") {
            return Vec::new();
        }
        let path = format!("devices/pci0000:6b/{ADDRESS}/config");
        let devices = self.vfio.devices().into_iter();
        devices
            .map(|device| LiveFile::config(path.clone(), &device))
            .collect()
    }

    fn attributes(&self, vm: Option<&str>) -> Vec<String> {
        if vm == Some("vm2") {
            return Vec::new();
        }
        ["count", "config"]
            .map(|name| format!("devices/pci0000:6b/{ADDRESS}/{name}"))
            .to_vec()
    }

    fn write_attribute(
        &self,
        _vm: Option<&str>,
        _path: &str,
        data: &[u8],
    ) -> Result<(), AttributeError> {
        let text = std::str::from_utf8(data).map_err(|_| AttributeError::Invalid)?;
        let count: u64 = text
            .trim_end()
            .parse()
            .map_err(|_| AttributeError::Invalid)?;
        if count > 9 {
            return Err(AttributeError::OutOfRange);
        }
        self.count.store(count, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn space(&self) -> Arc<SpaSpace> {
        Arc::clone(self.iommu.space())
    }

    fn inspect(&self) -> inspect::Node {
        let mut contexts = self.contexts.lock();
        contexts.retain(|context| context.strong_count() > 0);
        let bound = self.vfio.devices().iter().any(|d| d.is_bound());
        inspect::Node::new()
            .with("contexts", contexts.len())
            .with("bound", bound)
    }

    fn has_vm(&self, vm: &str) -> bool {
        matches!(vm, "vm1" | "vm2")
    }
}
