//! What an open file of the machine is.

use std::sync::Arc;

use ioasid_iommufd::Context;
use ioasid_vfio::{Container, DeviceFile, GroupFile};
use rustix::fs::OFlags;

use super::{attribute::AttributeFile, event::EventPipe};
use crate::wire::NodeName;

/// What an open file of the machine is.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    /// An open `/dev/iommu`.
    Iommufd(Arc<Context>),
    /// An open `/dev/vfio/vfio`.
    Container(Arc<Container>),
    /// An open group.
    Group(Arc<GroupFile>),
    /// An open device, by its own node or by its group.
    Device(Arc<DeviceFile>),
    /// A file of events, which an ioctl gave.
    Event(Arc<EventPipe>),
    /// `fail-nth` of a thread.
    FailNth(u32),
    /// An attribute of `/sys`.
    Attribute(Arc<AttributeFile>),
}

impl Object {
    /// The program has let go of it.
    pub(crate) fn close(&self) {
        match self {
            Object::Iommufd(context) => context.close(),
            Object::Group(file) => file.close(),
            Object::Device(file) => file.close(),
            Object::Event(pipe) => pipe.file().closed(),
            Object::Attribute(file) => file.close(),
            // A container lives as long as groups are in it.
            Object::Container(_) | Object::FailNth(_) => {}
        }
    }
}

/// A node that a program opened.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: NodeName,
    /// Device number that `fstat` reports: major, minor.
    pub(crate) rdev: (u32, u32),
}

/// An open file.
#[derive(Debug)]
pub(crate) struct OpenFile {
    /// Its number among the files of the session, from 1.
    pub(crate) number: u64,
    /// What it is.
    pub(crate) object: Object,
    /// The node that was opened; none if the file has no name, as one of events.
    pub(crate) node: Option<Node>,
    /// Where `read` and `write` without an offset go on. One for all duplicates, as in Linux.
    pub(crate) position: u64,
    /// How it was opened: O_RDONLY, O_WRONLY, O_RDWR or O_ACCMODE, which is neither.
    pub(crate) access: OFlags,
    /// Its inotify watch.
    pub(crate) watch: i32,
}

impl OpenFile {
    /// The access mode, as F_GETFL shows it.
    pub(crate) fn access(&self) -> OFlags {
        self.access
    }

    /// Whether it may be read (`FMODE_READ`).
    pub(crate) fn is_readable(&self) -> bool {
        matches!(self.access, OFlags::RDONLY | OFlags::RDWR)
    }

    /// Whether it may be written to (`FMODE_WRITE`).
    pub(crate) fn is_writable(&self) -> bool {
        matches!(self.access, OFlags::WRONLY | OFlags::RDWR)
    }
}
