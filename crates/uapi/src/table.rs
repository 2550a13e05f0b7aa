//! Every ioctl that a program may send to one of our files, in one list: what `docs/ioctls.md` shows.

use crate::{iommufd, vfio};

/// Whether an ioctl does what Linux 7.2 does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It does.
    Yes,
    /// Some of what it can be asked for is refused, with an errno that Linux has for it.
    Partial,
    /// It is not known (ENOTTY).
    No,
}

impl Support {
    /// As documents have it.
    pub const fn word(self) -> &'static str {
        match self {
            Support::Yes => "yes",
            Support::Partial => "partial",
            Support::No => "no",
        }
    }
}

/// The kind of file that an ioctl is for: numbers mean other commands on other kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    /// `/dev/iommu`.
    Iommufd,
    /// A VFIO container that an iommufd stands in for: `/dev/iommu` too.
    CompatContainer,
    /// A VFIO container, `/dev/vfio/vfio`.
    Container,
    /// A VFIO group.
    Group,
    /// A VFIO device.
    Device,
}

/// One ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is for.
    pub file: File,
    /// The whole request number.
    pub request: u32,
    /// The kernel's name, without the prefix that all of its kind share.
    pub name: &'static str,
    /// Whether it works.
    pub support: Support,
}

impl File {
    /// What all names of a kind start with.
    pub const fn prefix(self) -> &'static str {
        match self {
            File::Iommufd => "IOMMU_",
            File::CompatContainer | File::Container => "VFIO_",
            File::Group => "VFIO_GROUP_",
            File::Device => "VFIO_DEVICE_",
        }
    }

    /// The heading of its table in documents.
    pub const fn heading(self) -> &'static str {
        match self {
            File::Iommufd => "/dev/iommu",
            File::CompatContainer => "VFIO container, on /dev/iommu",
            File::Container => "VFIO container, /dev/vfio/vfio",
            File::Group => "VFIO groups, /dev/vfio/N",
            File::Device => "VFIO devices, /dev/vfio/devices/vfioN",
        }
    }
}

/// Every ioctl, by kind and number.
pub fn ioctls() -> Vec<Row> {
    let iommufd = iommufd::COMMANDS.iter().map(|command| Row {
        file: File::Iommufd,
        request: command.request(),
        name: command.name,
        support: command.support,
    });
    let mut rows: Vec<Row> = iommufd.chain(iommufd::container_rows()).collect();
    rows.extend(vfio::container::rows());
    rows.extend(vfio::group::rows());
    rows.extend(vfio::rows());
    rows.sort_by_key(|row| (row.file, row.request));
    rows
}
