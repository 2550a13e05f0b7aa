//! The shape of every table of ioctls.
//!
//! Each kind of file has a table of [`Command`]s, one a line: number, name, struct, handler. What a
//! handler gets is the kind's own business, and so is the order of its checks.

use std::fmt;

use crate::fields::{Described, Field, Names, Tail};

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

/// What the argument of an ioctl is.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// Nothing.
    None,
    /// A number; what some are called.
    Number(Names),
    /// The address of a text, up to a 0.
    Text,
    /// The address of a struct.
    Struct {
        /// Bytes of it, as Linux 7.2 knows it.
        size: usize,
        /// Whether the program says how many it has, and may have data behind it.
        grows: bool,
        /// What is in it.
        fields: &'static [Field],
        /// What reads the data behind it.
        #[doc(hidden)]
        tail: Option<Tail>,
    },
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
    /// What its argument is.
    pub argument: Argument,
    pub(crate) handler: H,
}

impl<H: Copy> Command<H> {
    /// A command without an argument, or with one that is no struct.
    pub(crate) const fn plain(
        request: u32,
        name: &'static str,
        argument: Argument,
        handler: H,
    ) -> Self {
        Command {
            request,
            name,
            size: 0,
            min_size: 0,
            support: Support::Yes,
            argument,
            handler,
        }
    }

    /// A command with a `T`, of which a program may have as little as `min_size` bytes.
    pub(crate) const fn with<T: Described>(
        request: u32,
        name: &'static str,
        min_size: usize,
        handler: H,
    ) -> Self {
        let argument = Argument::Struct {
            size: size_of::<T>(),
            grows: T::GROWS,
            fields: T::FIELDS,
            tail: T::TAIL,
        };
        Command {
            size: size_of::<T>(),
            min_size,
            ..Command::plain(request, name, argument, handler)
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
        argument: command.argument,
    })
}

/// One ioctl, as documents show it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What it is for.
    pub file: File,
    /// The whole request number.
    pub request: u32,
    /// The kernel's name, without the prefix that all of its kind share.
    pub name: &'static str,
    /// Whether it works.
    pub support: Support,
    /// What its argument is.
    pub argument: Argument,
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

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            File::Iommufd => "/dev/iommu",
            File::CompatContainer => "/dev/iommu as a VFIO container",
            File::Container => "a VFIO container",
            File::Group => "a VFIO group",
            File::Device => "a VFIO device",
        })
    }
}
