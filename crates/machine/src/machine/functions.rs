//! The PCI functions that programs see in sysfs: devices of the machine file, virtual functions, and
//! mediated devices that have an address besides.

use std::sync::Arc;

use ioasid_core::PciAddress;
use ioasid_iommufd::VtdRegisters;
use ioasid_vfio::{
    VfioDevice,
    pci::{Bar, Function, spec::EXT_AER},
};

use super::{
    device::MachineDevice,
    live::{LiveFile, Source},
    node::{MdevInfo, VfioNode},
    running::Machine,
    sriov::VirtualFunction,
};
use crate::sysfs::{PciFunction, Sriov, Unit, bar_base, cpus::Cpus, pci_path};

/// A function as sysfs shows it, and what is behind it.
pub(super) struct Shown {
    pub(super) function: PciFunction,
    pub(super) source: Source,
}

/// Bytes of the header of configuration space.
const HEADER: usize = 64;

impl Machine {
    /// Sets which processors are online, and which there can be, as lists
    /// (`/sys/devices/system/cpu/online` and `possible`): they are near every device. What is no list
    /// changes nothing.
    pub fn set_processors(&self, online: &str, possible: &str) {
        if let Some(cpus) = Cpus::new(online, possible) {
            *self.cpus.lock() = cpus;
        }
    }

    /// The files of sysfs that change without being written, for a program of `vm`.
    pub fn live_files(&self, vm: Option<&str>) -> Vec<LiveFile> {
        let functions = self.functions(vm).into_iter();
        let files = |shown: Shown| LiveFile::of(&pci_path(shown.function.address), &shown.source);
        functions.flat_map(files).collect()
    }

    /// The functions that a program of `vm` sees. It sees the parents of the mediated devices that it
    /// sees.
    pub(super) fn functions(&self, vm: Option<&str>) -> Vec<Shown> {
        let mdevs = self.mdevs(vm);
        let is_shown = |device: &&MachineDevice| {
            let name = device.address.to_string();
            let mut pdevs = self.pdevs(vm);
            (vm.is_none() && (device.vfio.is_none() || self.is_there(device)))
                || mdevs.iter().any(|mdev| mdev.parent == name)
                || pdevs.any(|visible| visible.address == device.address)
        };
        let devices = self.devices.iter().filter(is_shown);
        let devices = devices.map(|device| self.device_function(device));
        let virtual_functions = self.shown_virtual_functions(vm);
        let virtual_functions = virtual_functions.iter();
        let virtual_functions = virtual_functions.map(|function| self.virtual_function(function));
        let presented = mdevs
            .iter()
            .filter_map(|mdev| self.presented_function(mdev));
        devices.chain(virtual_functions).chain(presented).collect()
    }

    fn device_function(&self, device: &MachineDevice) -> Shown {
        let source = match &device.vfio {
            Some(node) => Source::Node(Arc::clone(node)),
            None => Source::Host(device.whole.clone()),
        };
        let mut shown = self.function(device.address, source, device.group);
        shown.function.driver = device.driver_name();
        let node = device.vfio.as_ref();
        shown.function.sriov = node.and_then(|node| self.sriov(device, node));
        shown
    }

    fn virtual_function(&self, function: &VirtualFunction) -> Shown {
        let node = &function.node;
        let source = Source::Node(Arc::clone(node));
        let mut shown = self.function(function.address, source, node.group_number());
        // Its ids are those that it works as.
        let (vendor, device) = node.model().function().ids();
        if let Some((ids, _)) = shown.function.header.split_first_chunk_mut::<4>() {
            *ids = (u32::from(device) << 16 | u32::from(vendor)).to_le_bytes();
        }
        shown
    }

    fn presented_function(&self, mdev: &MdevInfo) -> Option<Shown> {
        let node = &mdev.node.device;
        let source = Source::Node(Arc::clone(node));
        let address = self.mdevs.address(mdev.uuid)?;
        let mut shown = self.function(address, source, node.group_number());
        shown.function.is_mediated = true;
        shown.function.unit = None;
        Some(shown)
    }

    /// What all functions have. One without a node is the host's.
    fn function(&self, address: PciAddress, source: Source, group: u32) -> Shown {
        let model = Arc::clone(source.model());
        let function = model.function();
        let config = function.host_config();
        let vfio = match &source {
            Source::Node(node) => Some(VfioNode::new(node).sysfs_name()),
            Source::Host(_) => None,
        };
        let live = LiveFile::of(&pci_path(address), &source);
        let function = PciFunction {
            address,
            header: config.iter().take(HEADER).copied().collect(),
            bars: bars(function, address),
            is_express: function.is_express(),
            has_reset: function.has_function_reset(),
            has_power: function.has_power_states(),
            reports_errors: has_extended(&config, EXT_AER),
            is_virtual: function.is_virtual(),
            driver: "vfio-pci",
            group,
            is_mediated: false,
            vfio,
            sriov: None,
            live: live.iter().map(LiveFile::entry).collect(),
            unit: self.unit(address),
            cpus: self.cpus.lock().clone(),
            kept: self.kept_of(address),
        };
        Shown { function, source }
    }

    fn sriov(&self, device: &MachineDevice, node: &VfioDevice) -> Option<Sriov> {
        let function = node.model().function();
        let layout = function.sriov()?;
        let all = self.virtual_functions.all().into_iter();
        let own = all.filter(|function| function.physical == device.address);
        let mut bars = [None; 6];
        for (index, bar) in (0..).zip(&mut bars) {
            *bar = function.virtual_bar(index).map(|(start, one)| {
                let size = one.size * u64::from(layout.total);
                (start, Bar { size, ..one })
            });
        }
        Some(Sriov {
            total: layout.total,
            offset: layout.offset,
            stride: layout.stride,
            device: layout.device,
            bars,
            virtual_functions: own.map(|function| function.address).collect(),
        })
    }

    /// The remapping units: one for devices of which it says the same.
    pub(super) fn units(&self) -> Vec<Unit> {
        let mut units: Vec<Unit> = Vec::new();
        for device in &self.devices {
            let registers = self.iommu.device(device.address);
            let registers = registers.and_then(|device| VtdRegisters::new(&device));
            if let Some(registers) = registers
                && !units.iter().any(|unit| unit.registers == registers)
            {
                let number = units.len();
                units.push(Unit { number, registers });
            }
        }
        units
    }

    fn unit(&self, address: PciAddress) -> Option<Unit> {
        let registers = VtdRegisters::new(&*self.iommu.device(address)?)?;
        let mut units = self.units().into_iter();
        units.find(|unit| unit.registers == registers)
    }
}

/// The BARs, and where firmware has put them: one without a place gets one by the address of the
/// function.
fn bars(function: &Function, address: PciAddress) -> [Option<(u64, Bar)>; 6] {
    let mut next = bar_base(address);
    let mut bars = [None; 6];
    for (index, place) in (0..).zip(&mut bars) {
        let Some(bar) = function.bar(index) else {
            continue;
        };
        let start = match function.bar_address(index) {
            0 => next.next_multiple_of(bar.size),
            start => start,
        };
        next = start + bar.size;
        *place = Some((start, bar));
    }
    bars
}

/// Whether the extended capability `id` is in `config`.
fn has_extended(config: &[u8], id: u16) -> bool {
    let mut at = 0x100;
    // As many as there can be, so that a loop ends.
    for _ in 0..960 {
        let Some(header) = config.get(at..).and_then(|rest| rest.first_chunk()) else {
            return false;
        };
        let header = u32::from_le_bytes(*header);
        if header & 0xffff == u32::from(id) {
            return true;
        }
        at = (header >> 20) as usize;
        if at < 0x100 {
            return false;
        }
    }
    false
}
