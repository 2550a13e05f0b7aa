//! The shape of every table of ioctls, and all of them in one list: what `docs/ioctls.md` shows.
//!
//! Each kind of file has a table of [`Command`]s, one a line: number, name, struct, handler. What a
//! handler gets is the kind's own business, and so is the order of its checks.

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

/// One ioctl of a kind of file, carried out by an `H`.
#[derive(Clone, Copy, Debug)]
pub struct Command<H> {
    /// The whole request number.
    pub request: u32,
    /// The kernel's name, without the prefix that all of its kind share.
    pub name: &'static str,
    /// Bytes of the struct as Linux 7.2 knows it; 0 if the argument is no struct.
    pub size: usize,
    /// The least bytes of it that a program may have.
    pub min_size: usize,
    /// Whether it does what Linux does.
    pub support: Support,
    pub(crate) handler: H,
}

impl<H: Copy> Command<H> {
    /// A command whose argument is a number, or none.
    pub(crate) const fn plain(request: u32, name: &'static str, handler: H) -> Self {
        Command {
            request,
            name,
            size: 0,
            min_size: 0,
            support: Support::Yes,
            handler,
        }
    }

    /// A command with a `T`, of which a program may have as little as `min_size` bytes.
    pub(crate) const fn with<T>(
        request: u32,
        name: &'static str,
        min_size: usize,
        handler: H,
    ) -> Self {
        Command {
            size: size_of::<T>(),
            min_size,
            ..Command::plain(request, name, handler)
        }
    }

    /// The same, of which a part is refused.
    pub(crate) const fn partial(self) -> Self {
        Command {
            support: Support::Partial,
            ..self
        }
    }
}

/// The command `request` of a table.
pub(crate) fn find<H>(table: &'static [Command<H>], request: u32) -> Option<&'static Command<H>> {
    table.iter().find(|command| command.request == request)
}

/// A table as documents show it.
pub(crate) fn rows<H>(file: File, table: &'static [Command<H>]) -> impl Iterator<Item = Row> {
    table.iter().map(move |command| Row {
        file,
        request: command.request,
        name: command.name,
        support: command.support,
    })
}

/// One ioctl, as documents show it.
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
    let mut rows: Vec<Row> = iommufd::rows().collect();
    rows.extend(vfio::container::rows());
    rows.extend(vfio::group::rows());
    rows.extend(vfio::rows());
    rows.sort_by_key(|row| (row.file, row.request));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_each_number_once() {
        let rows = ioctls();
        for pair in rows.windows(2) {
            let key = |row: &Row| (row.file, row.request);
            assert!(key(&pair[0]) < key(&pair[1]), "{pair:?}");
        }
    }
}
