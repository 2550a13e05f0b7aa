//! PCI functions (drivers/pci/pci-sysfs.c, iov.c, pcie/aer.c; drivers/base/bus.c).

use std::fmt::Write as _;

use ioasid_core::PciAddress;
use ioasid_vfio::pci::Bar;

use super::{
    READ, READ_WRITE, SysfsBuilder, SysfsFile, SysfsKind, Unit, VfioName, WRITE, bus_name,
    bus_path, cpus::Cpus, pci_bus_path, pci_path,
};

/// A PCI function as sysfs shows it.
#[derive(Clone, Debug)]
pub struct PciFunction {
    /// Its address.
    pub address: PciAddress,
    /// The header of configuration space, 64 bytes, with the ids that it works as.
    pub header: Vec<u8>,
    /// BAR 0-5, and where each is.
    pub bars: [Option<(u64, Bar)>; 6],
    /// It has a PCI Express capability.
    pub is_express: bool,
    /// It can be reset by itself (FLR).
    pub has_reset: bool,
    /// It has a power management capability.
    pub has_power: bool,
    /// It reports errors (AER).
    pub reports_errors: bool,
    /// It is a virtual function.
    pub is_virtual: bool,
    /// Name of the bound driver.
    pub driver: &'static str,
    /// IOMMU group number.
    pub group: u32,
    /// It is a mediated device that has an address besides: no IOMMU translates for it.
    pub is_mediated: bool,
    /// Its VFIO node, if vfio-pci drives it.
    pub vfio: Option<VfioName>,
    /// What a physical function of SR-IOV has more.
    pub sriov: Option<Sriov>,
    /// Files that follow its registers, by their names.
    pub live: Vec<(String, SysfsFile)>,
    /// The remapping unit that translates for it.
    pub(crate) unit: Option<Unit>,
    /// The processors near it.
    pub(crate) cpus: Cpus,
    /// What was written to attributes that keep it, by their names.
    pub(crate) kept: Vec<(&'static str, String)>,
}

/// The SR-IOV of a physical function as sysfs shows it.
#[derive(Clone, Debug, Default)]
pub struct Sriov {
    /// Virtual functions that there can be.
    pub total: u16,
    /// Routing ids from the physical function to the first virtual one.
    pub offset: u16,
    /// Routing ids from one virtual function to the next.
    pub stride: u16,
    /// Device id of the virtual functions.
    pub device: u16,
    /// Their BARs, each as large as those of all together, and where each is.
    pub bars: [Option<(u64, Bar)>; 6],
    /// Those that there are.
    pub virtual_functions: Vec<PciAddress>,
}

/// Correctable errors (`aer_correctable_error_string`).
const CORRECTABLE: &str = "RxErr BadTLP BadDLLP Rollover Timeout NonFatalErr CorrIntErr HeaderOF";

/// Uncorrectable ones (`aer_uncorrectable_error_string`).
const UNCORRECTABLE: &str = "Undefined DLP SDES TLP FCP CmpltTO CmpltAbrt UnxCmplt RxOF MalfTLP ECRC \
     UnsupReq ACSViol UncorrIntErr BlockedTLP AtomicOpBlocked TLPBlockedErr PoisonTLPBlocked \
     DMWrReqBlocked IDECheck MisIDETLP PCRC_CHECK TLPXlatBlocked";

impl PciFunction {
    fn kept(&self, name: &str, default: &str) -> String {
        let kept = self.kept.iter().find(|(known, _)| *known == name);
        let value = kept.map_or(default, |(_, value)| value);
        format!("{value}\n")
    }
}

impl SysfsBuilder {
    /// Adds a PCI function.
    pub fn pci(&mut self, function: &PciFunction) {
        let path = pci_path(function.address);
        self.identity(&path, function);
        self.fixed(&path, function);
        for (name, file) in &function.live {
            self.push(format!("{path}/{name}"), SysfsKind::File(file.clone()));
        }
        self.resources(&path, function);
        if function.is_express {
            self.express(&path);
        }
        // Both are there, empty, for every function.
        self.dir(format!("{path}/aer"));
        self.dir(format!("{path}/link"));
        if function.reports_errors {
            self.errors(&path);
        }
        if function.is_virtual {
            self.attribute(format!("{path}/sriov_vf_msix_count"), WRITE, "");
        } else {
            self.attribute(format!("{path}/remove"), 0o220, "");
            self.attribute(format!("{path}/rescan"), WRITE, "");
        }
        if let Some(sriov) = &function.sriov {
            self.physical_function(&path, sriov);
        }
        let control = match function.vfio {
            Some(_) => "auto",
            None => "on",
        };
        let control = function.kept("power/control", control);
        self.power(&path, control.trim_end(), "active");
        self.pci_links(&path, function);
        self.bus(function);
    }

    /// What is read from the header.
    fn identity(&mut self, path: &str, function: &PciFunction) {
        let byte = |offset: usize| u32::from(function.header.get(offset).copied().unwrap_or(0));
        let word = |offset: usize| byte(offset) | byte(offset + 1) << 8;
        let class = byte(9) | byte(10) << 8 | byte(11) << 16;
        let (vendor, device, sub_vendor, sub_device) = (word(0), word(2), word(0x2c), word(0x2e));
        let modalias = format!(
            "pci:v{vendor:08X}d{device:08X}sv{sub_vendor:08X}sd{sub_device:08X}\
             bc{:02X}sc{:02X}i{:02X}",
            byte(11),
            byte(10),
            byte(9)
        );
        for (name, text) in [
            ("vendor", format!("{vendor:#06x}")),
            ("device", format!("{device:#06x}")),
            ("subsystem_vendor", format!("{sub_vendor:#06x}")),
            ("subsystem_device", format!("{sub_device:#06x}")),
            ("class", format!("{class:#08x}")),
            ("revision", format!("{:#04x}", byte(8))),
            ("modalias", modalias.clone()),
        ] {
            self.file(format!("{path}/{name}"), format!("{text}\n"));
        }
        let uevent = format!(
            "DRIVER={}\nPCI_CLASS={class:04X}\nPCI_ID={vendor:04X}:{device:04X}\n\
             PCI_SUBSYS_ID={sub_vendor:04X}:{sub_device:04X}\nPCI_SLOT_NAME={}\n\
             MODALIAS={modalias}\n",
            function.driver, function.address
        );
        self.attribute(format!("{path}/uevent"), READ_WRITE, uevent);
    }

    /// What does not depend on registers.
    fn fixed(&mut self, path: &str, function: &PciFunction) {
        let cold = if function.has_power { "1" } else { "0" };
        for (name, mode, text) in [
            ("ari_enabled", READ, "0\n".to_owned()),
            ("consistent_dma_mask_bits", READ, "64\n".to_owned()),
            ("dma_mask_bits", READ, "64\n".to_owned()),
            ("irq", READ, "0\n".to_owned()),
            ("local_cpulist", READ, format!("{}\n", function.cpus.list)),
            ("local_cpus", READ, format!("{}\n", function.cpus.mask)),
            ("msi_bus", READ_WRITE, "1\n".to_owned()),
            ("numa_node", READ_WRITE, "-1\n".to_owned()),
            (
                "broken_parity_status",
                READ_WRITE,
                function.kept("broken_parity_status", "0"),
            ),
            (
                "d3cold_allowed",
                READ_WRITE,
                function.kept("d3cold_allowed", cold),
            ),
            (
                "driver_override",
                READ_WRITE,
                function.kept("driver_override", "(null)"),
            ),
        ] {
            self.attribute(format!("{path}/{name}"), mode, text);
        }
        if function.has_reset {
            self.attribute(format!("{path}/reset"), WRITE, "");
            self.attribute(format!("{path}/reset_method"), READ_WRITE, "flr\n");
        }
    }

    /// `resource`, and a file for each BAR.
    fn resources(&mut self, path: &str, function: &PciFunction) {
        let own = function.bars;
        let virtual_functions = function
            .sriov
            .as_ref()
            .map_or([None; 6], |sriov| sriov.bars);
        // 6 BARs, the expansion ROM, and 6 BARs of virtual functions.
        let all = own.into_iter().chain([None]).chain(virtual_functions);
        let mut text = String::new();
        for bar in all {
            let (start, last, flags) = bar.map_or((0, 0, 0), |(start, bar)| {
                (start, start + (bar.size - 1), resource_flags(bar))
            });
            let _ = writeln!(text, "{start:#018x} {last:#018x} {flags:#018x}");
        }
        self.file(format!("{path}/resource"), text);
        for (index, bar) in own.into_iter().enumerate() {
            let Some((_, bar)) = bar else { continue };
            let combining = bar.prefetchable && !bar.is_io;
            for suffix in ["", "_wc"].iter().take(1 + usize::from(combining)) {
                let file = SysfsFile {
                    bytes: Vec::new(),
                    mode: 0o600,
                    size: bar.size,
                };
                self.push(
                    format!("{path}/resource{index}{suffix}"),
                    SysfsKind::File(file),
                );
            }
        }
    }

    /// The link of an endpoint inside the root complex, which has none.
    fn express(&mut self, path: &str) {
        for (name, text) in [
            ("current_link_speed", "Unknown"),
            ("current_link_width", "0"),
            ("max_link_speed", "Unknown"),
            ("max_link_width", "255"),
        ] {
            self.file(format!("{path}/{name}"), format!("{text}\n"));
        }
    }

    /// Errors that the function has reported: none, since no link and no device of the model's has any.
    fn errors(&mut self, path: &str) {
        for (name, errors, total) in [
            ("correctable", CORRECTABLE, "COR"),
            ("fatal", UNCORRECTABLE, "FATAL"),
            ("nonfatal", UNCORRECTABLE, "NONFATAL"),
        ] {
            let mut text = String::new();
            for error in errors.split_ascii_whitespace() {
                let _ = writeln!(text, "{error} 0");
            }
            let _ = writeln!(text, "TOTAL_ERR_{total} 0");
            self.file(format!("{path}/aer_dev_{name}"), text);
        }
        // In jiffies, with 250 of them a second.
        for kind in ["correctable", "nonfatal"] {
            for (name, text) in [("interval_ms", "1250\n"), ("burst", "10\n")] {
                let path = format!("{path}/aer/{kind}_ratelimit_{name}");
                self.attribute(path, READ_WRITE, text);
            }
        }
    }

    fn physical_function(&mut self, path: &str, sriov: &Sriov) {
        for (name, mode, text) in [
            ("sriov_totalvfs", READ, sriov.total.to_string()),
            (
                "sriov_numvfs",
                READ_WRITE,
                sriov.virtual_functions.len().to_string(),
            ),
            ("sriov_offset", READ, sriov.offset.to_string()),
            ("sriov_stride", READ, sriov.stride.to_string()),
            ("sriov_vf_device", READ, format!("{:x}", sriov.device)),
            ("sriov_vf_total_msix", READ, "0".to_owned()),
            ("sriov_drivers_autoprobe", READ_WRITE, "1".to_owned()),
        ] {
            self.attribute(format!("{path}/{name}"), mode, format!("{text}\n"));
        }
        for (index, virtual_function) in sriov.virtual_functions.iter().enumerate() {
            let its = pci_path(*virtual_function);
            self.link(format!("{path}/virtfn{index}"), &its);
            self.link(format!("{its}/physfn"), path);
        }
    }

    fn pci_links(&mut self, path: &str, function: &PciFunction) {
        let name = function.address.to_string();
        self.link(format!("{path}/subsystem"), "bus/pci");
        self.link(format!("bus/pci/devices/{name}"), path);
        let driver = format!("bus/pci/drivers/{}", function.driver);
        self.link(format!("{driver}/{name}"), path);
        self.link(format!("{path}/driver"), &driver);
        let module = format!("module/{}", function.driver.replace('-', "_"));
        self.dir(format!("{module}/drivers"));
        self.link(format!("{driver}/module"), &module);
        let in_module = format!("{module}/drivers/pci:{}", function.driver);
        self.link(in_module, &driver);
        match function.is_mediated {
            true => self.group_without_iommu(path, function.group),
            false => self.iommu_group(path, function.group),
        }
        if let Some(unit) = function.unit {
            self.iommu_link(path, unit);
        }
        if let Some(vfio) = &function.vfio {
            self.vfio_group(function.group);
            self.vfio_dev(path, vfio);
        }
    }

    /// The root bus that the function is on.
    fn bus(&mut self, function: &PciFunction) {
        let (bridge, name) = (bus_path(function.address), bus_name(function.address));
        self.attribute(format!("{bridge}/uevent"), READ_WRITE, "");
        self.power(&bridge, "auto", "unsupported");
        let path = pci_bus_path(function.address);
        let Cpus { list, mask } = &function.cpus;
        self.file(format!("{path}/cpuaffinity"), format!("{mask}\n"));
        self.file(format!("{path}/cpulistaffinity"), format!("{list}\n"));
        self.attribute(format!("{path}/rescan"), WRITE, "");
        self.attribute(format!("{path}/uevent"), READ_WRITE, "");
        self.power(&path, "auto", "unsupported");
        self.link(format!("{path}/device"), &bridge);
        self.link(format!("{path}/subsystem"), "class/pci_bus");
        self.link(format!("class/pci_bus/{name}"), &path);
    }
}

/// `IORESOURCE_*` (include/linux/ioport.h), and the low bits of the BAR.
fn resource_flags(bar: Bar) -> u64 {
    const IO: u64 = 0x100;
    const MEMORY: u64 = 0x200;
    const PREFETCH: u64 = 0x2000;
    const SIZE_ALIGNED: u64 = 0x4_0000;
    const MEMORY_64: u64 = 0x10_0000;
    if bar.is_io {
        return SIZE_ALIGNED | IO | 1;
    }
    let mut flags = SIZE_ALIGNED | MEMORY;
    if bar.prefetchable {
        flags |= PREFETCH | 8;
    }
    if bar.is_64bit {
        flags |= MEMORY_64 | 4;
    }
    flags
}
