//! The kinds of device that the kernel's VFIO self-tests run on.

use clap::ValueEnum;

/// A kind of device under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// A whole DSA.
    Dsa,
    /// A whole IOAT.
    Ioat,
    /// A work queue of a DSA as a mediated device, under a PCI address.
    Mdev,
    /// A channel of an IOAT as a mediated device, under a PCI address.
    MdevIoat,
    /// A physical function with virtual functions.
    Sriov,
}

/// The programs, in the order of the kernel's makefile.
pub(crate) const PROGRAMS: [&str; 6] = [
    "vfio_dma_mapping_test",
    "vfio_dma_mapping_mmio_test",
    "vfio_iommufd_setup_test",
    "vfio_pci_device_test",
    "vfio_pci_device_init_perf_test",
    "vfio_pci_driver_test",
];

/// The program about virtual functions: it enables one before it does anything.
pub(crate) const SRIOV: &str = "vfio_pci_sriov_uapi_test";

impl Device {
    /// Its name on the command line and in names of files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dsa => "dsa",
            Self::Ioat => "ioat",
            Self::Mdev => "mdev",
            Self::MdevIoat => "mdev-ioat",
            Self::Sriov => "sriov",
        }
    }

    /// The programs that run on it.
    pub(crate) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Sriov => &[SRIOV],
            _ => &PROGRAMS,
        }
    }

    /// Where the machine file puts it: the device, and a second one for the test of many.
    pub(crate) fn addresses(self) -> &'static [&'static str] {
        match self {
            Self::Dsa | Self::Ioat => &["0000:6a:01.0", "0000:6b:01.0"],
            Self::Mdev | Self::MdevIoat => &["0000:70:00.0"],
            Self::Sriov => &["0000:6a:01.0"],
        }
    }

    /// Whether `test` is for this kind. A mediated device is tried in the mode that assigns one: the
    /// legacy container asks for a device that is alone behind the IOMMU.
    pub(crate) fn has(self, test: &str) -> bool {
        match self {
            Self::Mdev | Self::MdevIoat => test
                .split('.')
                .all(|part| !part.starts_with("vfio_type1") && !part.starts_with("iommufd_compat")),
            _ => true,
        }
    }
}
