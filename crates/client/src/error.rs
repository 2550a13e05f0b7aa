//! What can go wrong, each as one sentence.

use std::{io, path::PathBuf};

use crate::role::Role;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the client stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a pdev nor an mdev is there or was named.
    #[error(
        "no device: no vfio-pci device 8086:0b25 under /sys/bus/pci/devices and nothing under \
         /sys/bus/mdev/devices"
    )]
    NoDevice,
    /// A device that was asked for by role is not there.
    #[error("no {0} found in sysfs")]
    NoSuchRole(Role),
    /// sysfs could not be read.
    #[error("cannot read {path}: {error}")]
    Sysfs {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// `/dev/iommu` or one of its ioctls failed.
    #[error("{doing}: {error}")]
    Iommufd {
        /// What was being done.
        doing: &'static str,
        /// The crate's error, with the errno.
        error: iommufd_ioctls::IommufdError,
    },
    /// A VFIO device could not be opened, or one of its ioctls failed.
    #[error("{doing} {path}: {error}")]
    Vfio {
        /// What was being done.
        doing: &'static str,
        /// The device's sysfs directory.
        path: PathBuf,
        /// The crate's error, with the errno where it keeps it.
        error: vfio_ioctls::VfioError,
    },
    /// Something that only `/dev/iommu` has was asked of a container.
    #[error("a VFIO container has no {0}")]
    NotInContainer(&'static str),
    /// An ioctl or system call that is made directly failed.
    #[error("{doing}: {error}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The errno.
        error: io::Error,
    },
    /// Two devices of one IOAS report different page tables.
    #[error("the devices of one IOAS report two page tables: {first} and {second}")]
    DifferentPageTables {
        /// What the first attach reported.
        first: u32,
        /// What the second reported.
        second: u32,
    },
    /// An unmap reported another length than was mapped.
    #[error("unmapped {unmapped:#x} bytes where {expected:#x} were mapped")]
    UnmapLength {
        /// What the ioctl reported.
        unmapped: u64,
        /// What was mapped.
        expected: u64,
    },
    /// A register could not be read.
    #[error("cannot read {len} bytes at {offset:#x} of region {region}")]
    RegionRead {
        /// VFIO region index.
        region: u32,
        /// Offset in the region, bytes.
        offset: u64,
        /// Length, bytes.
        len: usize,
    },
    /// A register does not hold what was written.
    #[error("register {register} reads {read:#x} after {written:#x} was written")]
    RegisterDiffers {
        /// Its name in the specification.
        register: &'static str,
        /// What it reads.
        read: u64,
        /// What was written.
        written: u64,
    },
    /// The device does not say that it is a DSA this client can drive.
    #[error("not a usable DSA: {0}")]
    Unusable(&'static str),
    /// A command ended with an error code.
    #[error("command {command:?} with operand {operand:#x} failed with code {code:#x}")]
    Command {
        /// The command.
        command: crate::dsa::Command,
        /// Its operand.
        operand: u32,
        /// The `err` field of CMDSTS.
        code: u8,
    },
    /// The device did not finish in time.
    #[error("timed out waiting for {0}")]
    Timeout(&'static str),
    /// A completion record has another status than was expected.
    #[error(
        "{what} ended with status {status:#04x}, expected {expected:#04x} (address {address:#x})"
    )]
    Status {
        /// What was submitted.
        what: &'static str,
        /// The record's status byte.
        status: u8,
        /// The status that is right.
        expected: u8,
        /// The record's fault address.
        address: u64,
    },
    /// A fault names the wrong address.
    #[error("{what} reports a fault at {reported:#x}, expected {expected:#x}")]
    FaultAddress {
        /// What was submitted.
        what: &'static str,
        /// The address in the record.
        reported: u64,
        /// The address that is right.
        expected: u64,
    },
    /// A byte is not what it should be after a copy.
    #[error("wrong data at byte {offset:#x} of the destination after copying through the {role}")]
    Corrupt {
        /// Which device copied.
        role: Role,
        /// First wrong byte, offset in the destination area.
        offset: u64,
    },
    /// The device reported an error outside of any descriptor.
    #[error("the device reports software error {0:#04x} (SWERR)")]
    SoftwareError(u8),
    /// More interrupts than descriptors that ask for one.
    #[error("{interrupts} interrupts for {descriptors} descriptors")]
    SpuriousInterrupt {
        /// Eventfd count.
        interrupts: u64,
        /// Descriptors with RCI.
        descriptors: u64,
    },
    /// The device has no room for so many descriptors or such a size; a mistake of the caller.
    #[error("{0}")]
    Limit(&'static str),
}

impl Error {
    /// Wraps the errno of the last system call.
    pub(crate) fn last_os(doing: &'static str) -> Error {
        Error::System {
            doing,
            error: io::Error::last_os_error(),
        }
    }

    /// Wraps the error of a read or write.
    pub(crate) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |error| Error::System { doing, error }
    }

    /// The errno behind the error, where there is one and the crates keep it.
    pub fn errno(&self) -> Option<i32> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = match self {
            Error::Sysfs { error, .. } | Error::System { error, .. } => Some(error),
            Error::Iommufd { error, .. } => Some(error),
            Error::Vfio { error, .. } => Some(error),
            _ => None,
        };
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return error.raw_os_error();
            }
            if let Some(error) = error.downcast_ref::<vmm_sys_util::errno::Error>() {
                return Some(error.errno());
            }
            cause = error.source();
        }
        None
    }
}
