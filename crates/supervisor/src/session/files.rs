//! The open files of ours that a program tree holds.
//!
//! Behind each descriptor of a node stands a memfd, *reopened* through `/proc/self/fd`: such a file tells
//! inotify when its last reference goes, which counts `dup`, `fork` and descriptors in flight. The
//! event is queued before `close` returns to the program, so draining the queue before each request
//! gives the exact order of a close and a following open. Nothing is stored in the memfd of a device, and
//! its size is sealed, which makes a write that bypasses the filter an error instead of a loss; that of `/dev/iommu`
//! holds what can be mapped of it ([`super::mmap`]). A mapping holds the file open as a descriptor does. A file of events has a
//! pipe instead ([`super::event`]), opened the same way.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use ioasid_core::memory::MemoryGone;
use ioasid_host::{Client, Registers};
use ioasid_iommufd::{Context, EventFile};
use ioasid_vfio::{Container, DeviceFile, GroupFile};
use rustix::{
    fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, inotify, memfd_create},
    io::Errno,
};

use super::attribute::AttributeFile;
use super::event::{EventPipe, Readiness};
use crate::wire::NodeName;

/// Device and inode number: what a file is known by.
pub(super) type Identity = (u64, u64);

/// What an open file of ours is.
#[derive(Clone, Debug)]
pub(super) enum Object {
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
    pub(super) fn close(&self) {
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

/// A node of ours that a program opened.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its name.
    pub(super) name: NodeName,
    /// Device number that `fstat` reports: major, minor.
    pub(super) rdev: (u32, u32),
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// What it is.
    pub(super) object: Object,
    /// The node that was opened; none if the file has no name, as one of events.
    pub(super) node: Option<Node>,
    /// Where `read` and `write` without an offset go on. One for all duplicates, as in Linux.
    pub(super) position: u64,
    /// How it was opened: O_RDONLY, O_WRONLY, O_RDWR or O_ACCMODE, which is neither.
    access: OFlags,
    watch: i32,
}

impl OpenFile {
    /// The access mode, as F_GETFL tells it.
    pub(super) fn access(&self) -> OFlags {
        self.access
    }

    /// Whether it may be read (`FMODE_READ`).
    pub(super) fn is_readable(&self) -> bool {
        matches!(self.access, OFlags::RDONLY | OFlags::RDWR)
    }

    /// Whether it may be written to (`FMODE_WRITE`).
    pub(super) fn is_writable(&self) -> bool {
        matches!(self.access, OFlags::WRONLY | OFlags::RDWR)
    }
}

/// What of the flags of an `open` a node keeps, and F_GETFL shows.
const KEPT: OFlags = OFlags::ACCMODE
    .union(OFlags::APPEND)
    .union(OFlags::NONBLOCK)
    .union(OFlags::SYNC)
    .union(OFlags::NOATIME);

/// The last descriptor of a file is gone: it was open for writing, or for reading alone.
const CLOSES: inotify::ReadFlags =
    inotify::ReadFlags::CLOSE_WRITE.union(inotify::ReadFlags::CLOSE_NOWRITE);

/// The table.
#[derive(Debug)]
pub(super) struct Files {
    inotify: OwnedFd,
    open: HashMap<Identity, OpenFile>,
    watches: HashMap<i32, Identity>,
    events: HashMap<Identity, Arc<EventPipe>>,
    readiness: Arc<Readiness>,
    /// Whose mappings of devices are registers.
    client: Arc<Client>,
}

impl Files {
    /// No files of `client`'s.
    pub(super) fn new(client: &Arc<Client>) -> io::Result<Self> {
        Ok(Files {
            inotify: inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?,
            open: HashMap::new(),
            watches: HashMap::new(),
            events: HashMap::new(),
            readiness: Readiness::new()?,
            client: Arc::clone(client),
        })
    }

    /// Makes a file for `object`, an open of `node` with `flags`. It is open as long as somebody holds the
    /// descriptor.
    pub(super) fn create(
        &mut self,
        object: Object,
        node: Node,
        flags: OFlags,
    ) -> io::Result<OwnedFd> {
        let file = reopened_memfd(&node.name, flags.intersection(KEPT))?;
        self.watch(&file, object, Some(node))?;
        Ok(file)
    }

    /// Makes a file for a device that was opened by its group, likewise. It has no name.
    pub(super) fn create_device(&mut self, device: Arc<DeviceFile>) -> io::Result<OwnedFd> {
        let file = reopened_memfd(
            &NodeName::Device(device.device().name().to_owned()),
            OFlags::RDWR,
        )?;
        self.watch(&file, Object::Device(device), None)?;
        Ok(file)
    }

    /// Makes `fail-nth` of a thread, likewise.
    pub(super) fn create_fail_nth(&mut self, tid: u32) -> io::Result<OwnedFd> {
        let file = reopened_memfd(&NodeName::Device("fail-nth".to_owned()), OFlags::RDWR)?;
        self.watch(&file, Object::FailNth(tid), None)?;
        Ok(file)
    }

    /// Adds an attribute behind `file`, likewise.
    pub(super) fn add_attribute(
        &mut self,
        attribute: Arc<AttributeFile>,
        file: &OwnedFd,
    ) -> io::Result<()> {
        self.watch(file, Object::Attribute(attribute), None)
            .map(drop)
    }

    /// Makes a file of events, likewise.
    pub(super) fn create_event(&mut self, file: Arc<dyn EventFile>) -> io::Result<OwnedFd> {
        let (pipe, program) = EventPipe::new(file, &self.readiness)?;
        let identity = self.watch(&program, Object::Event(Arc::clone(&pipe)), None)?;
        self.events.insert(identity, pipe);
        Ok(program)
    }

    fn watch(
        &mut self,
        file: &OwnedFd,
        object: Object,
        node: Option<Node>,
    ) -> io::Result<Identity> {
        let stat = rustix::fs::fstat(file)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opened = rustix::fs::fcntl_getfl(file)? & OFlags::ACCMODE;
        let close = match opened {
            OFlags::WRONLY | OFlags::RDWR => inotify::WatchFlags::CLOSE_WRITE,
            _ => inotify::WatchFlags::CLOSE_NOWRITE,
        };
        let access = match object {
            // A pipe that is not open for writing makes poll tell the truth.
            Object::Event(_) => OFlags::RDWR,
            _ => opened,
        };
        let watch = inotify::add_watch(&self.inotify, path, close)?;
        // Nobody else is to make a second open file of this inode, whose close would look like ours.
        rustix::fs::fchmod(file, Mode::empty())?;
        let identity = (stat.st_dev, stat.st_ino);
        if let Object::Device(device) = &object {
            let registers = Bars(Arc::clone(device));
            self.client.add_registers(identity, Arc::new(registers));
        }
        self.watches.insert(watch, identity);
        self.open.insert(
            identity,
            OpenFile {
                object,
                node,
                position: 0,
                access,
                watch,
            },
        );
        Ok(identity)
    }

    /// What wakes the session when a file of events changes by itself.
    pub(super) fn readiness(&self) -> BorrowedFd<'_> {
        self.readiness.as_ref().as_fd()
    }

    /// Makes poll tell of the events there are now.
    pub(super) fn sync_events(&self) {
        if self.readiness.take() {
            for pipe in self.events.values() {
                pipe.sync();
            }
        }
    }

    /// The file of ours with this inode.
    pub(super) fn get(&self, identity: Identity) -> Option<&OpenFile> {
        self.open.get(&identity)
    }

    /// All that are open.
    pub(super) fn iter(&self) -> impl Iterator<Item = &OpenFile> {
        self.open.values()
    }

    /// As [`Files::get`].
    pub(super) fn get_mut(&mut self, identity: Identity) -> Option<&mut OpenFile> {
        self.open.get_mut(&identity)
    }

    /// Takes out what the program has closed since the last call, in the order of closing.
    pub(super) fn take_closed(&mut self) -> Vec<Object> {
        let mut closed = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut watches = Vec::new();
        loop {
            match reader.next() {
                Ok(event) if event.events().intersects(CLOSES) => watches.push(event.wd()),
                Ok(event) if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) => {
                    tracing::warn!("a program closes files faster than they can be counted");
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        for watch in watches {
            let Some(identity) = self.watches.remove(&watch) else {
                continue;
            };
            self.events.remove(&identity);
            self.client.remove_registers(identity);
            if let Some(file) = self.open.remove(&identity) {
                // The inode goes with the watch; it is gone already if this fails.
                let _ = inotify::remove_watch(&self.inotify, file.watch);
                closed.push(file.object);
            }
        }
        closed
    }

    /// Takes out everything: devices first, since they stand on the others.
    pub(super) fn take_all(&mut self) -> Vec<Object> {
        self.watches.clear();
        self.events.clear();
        for identity in self.open.keys() {
            self.client.remove_registers(*identity);
        }
        let mut objects: Vec<Object> = self.open.drain().map(|(_, file)| file.object).collect();
        objects.sort_by_key(|object| match object {
            Object::Device(_) => 0,
            Object::Event(_) | Object::Group(_) => 1,
            Object::Iommufd(_)
            | Object::Container(_)
            | Object::FailNth(_)
            | Object::Attribute(_) => 2,
        });
        objects
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

impl AsFd for Files {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// The BARs of an open device, for DMA from another one.
#[derive(Debug)]
struct Bars(Arc<DeviceFile>);

impl Registers for Bars {
    fn load(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let loaded = self.0.dma_read(offset, dst);
        loaded.map_err(|_| MemoryGone { done: 0 })
    }

    fn store(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let stored = self.0.dma_write(offset, src);
        stored.map_err(|_| MemoryGone { done: 0 })
    }
}

/// An empty memory file that can be sealed.
pub(super) fn memfd(name: &str) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // A host with vm.memfd_noexec=2 wants the flag; a kernel before 6.3 does not know it.
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => Ok(memfd_create(name, flags)?),
        other => Ok(other?),
    }
}

fn reopened_memfd(node: &NodeName, flags: OFlags) -> io::Result<OwnedFd> {
    let name = match node {
        NodeName::Iommu => "iommu",
        NodeName::Container => "vfio-container",
        NodeName::Group(_) => "vfio-group",
        NodeName::Device(name) => name.as_str(),
    };
    let memfd = memfd(name)?;
    let seals = match node {
        NodeName::Iommu => SealFlags::SHRINK,
        _ => SealFlags::GROW | SealFlags::SHRINK,
    };
    fcntl_add_seals(&memfd, seals | SealFlags::SEAL)?;
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let file = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object without a machine cannot be made, so this tests the file behind it.
    #[test]
    fn the_last_close_is_seen_at_once_and_a_dup_holds_it_open() {
        let inotify =
            inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        let file = reopened_memfd(&NodeName::Iommu, OFlags::RDWR).unwrap();
        inotify::add_watch(
            &inotify,
            format!("/proc/self/fd/{}", file.as_raw_fd()),
            inotify::WatchFlags::CLOSE_WRITE,
        )
        .unwrap();
        let closed = || {
            let mut buffer = [MaybeUninit::uninit(); 256];
            inotify::Reader::new(&inotify, &mut buffer).next().is_ok()
        };
        let duplicate = file.try_clone().unwrap();
        drop(file);
        assert!(!closed());
        drop(duplicate);
        assert!(closed());
    }

    #[test]
    fn a_write_past_the_filter_is_refused() {
        let file = reopened_memfd(&NodeName::Device("vfio0".to_owned()), OFlags::RDWR).unwrap();
        assert_eq!(rustix::io::pwrite(&file, b"x", 0), Err(Errno::PERM));
    }
}
