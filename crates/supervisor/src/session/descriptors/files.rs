//! The open files of the machine that a program tree has.
//!
//! Behind each descriptor of a node stands a memfd, *reopened* through `/proc/self/fd`: inotify
//! reports when the last reference of such a file goes, which counts `dup`, `fork` and descriptors
//! in flight. The event is queued before `close` returns to the program, so draining the queue
//! before each request gives the exact order of a close and a following open. Nothing is stored in
//! the memfd of a device, and its size is sealed, which makes a write that bypasses the filter an
//! error instead of a loss; that of `/dev/iommu` holds what can be mapped of it
//! ([`super::mappings`]). A mapping holds the file open as a descriptor does. A file of events has
//! a pipe instead ([`super::event`]), opened the same way.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use ioasid_core::memory::MemoryGone;
use ioasid_host::{Client, Registers};
use ioasid_iommufd::EventFile;
use ioasid_vfio::DeviceFile;
use rustix::{
    fs::{Mode, OFlags, inotify},
    io::Errno,
};

use super::{
    attribute::AttributeFile,
    event::{EventPipe, Readiness},
    memfd::reopened_memfd,
    object::{Node, Object, OpenFile},
};
use crate::{session::identity::Identity, wire::NodeName};

/// What of the flags of an `open` a node keeps, and F_GETFL shows.
const KEPT: OFlags = OFlags::ACCMODE
    .union(OFlags::APPEND)
    .union(OFlags::NONBLOCK)
    .union(OFlags::SYNC)
    .union(OFlags::NOATIME);

/// The last descriptor of a file is gone: it was open for writing, or for reading alone.
const CLOSES: inotify::ReadFlags =
    inotify::ReadFlags::CLOSE_WRITE.union(inotify::ReadFlags::CLOSE_NOWRITE);

/// The table of open files.
#[derive(Debug)]
pub(crate) struct Files {
    inotify: OwnedFd,
    open: HashMap<Identity, OpenFile>,
    watches: HashMap<i32, Identity>,
    events: HashMap<Identity, Arc<EventPipe>>,
    readiness: Arc<Readiness>,
    /// The number of the last file.
    last: u64,
    /// Open files of devices.
    devices: usize,
    /// Whose mappings of devices are registers.
    client: Arc<Client>,
}

impl Files {
    /// No files of `client`'s.
    pub(crate) fn new(client: &Arc<Client>) -> io::Result<Self> {
        Ok(Files {
            inotify: inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?,
            open: HashMap::new(),
            watches: HashMap::new(),
            events: HashMap::new(),
            readiness: Readiness::new()?,
            last: 0,
            devices: 0,
            client: Arc::clone(client),
        })
    }

    /// Makes a file for `object`, an open of `node` with `flags`. It is open as long as a process
    /// has the descriptor.
    pub(crate) fn create(
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
    pub(crate) fn create_device(&mut self, device: Arc<DeviceFile>) -> io::Result<OwnedFd> {
        let file = reopened_memfd(
            &NodeName::Device(device.device().name().to_owned()),
            OFlags::RDWR,
        )?;
        self.watch(&file, Object::Device(device), None)?;
        Ok(file)
    }

    /// Makes `fail-nth` of a thread, likewise.
    pub(crate) fn create_fail_nth(&mut self, tid: u32) -> io::Result<OwnedFd> {
        let file = reopened_memfd(&NodeName::Device("fail-nth".to_owned()), OFlags::RDWR)?;
        self.watch(&file, Object::FailNth(tid), None)?;
        Ok(file)
    }

    /// Adds an attribute behind `file`, likewise.
    pub(crate) fn add_attribute(
        &mut self,
        attribute: Arc<AttributeFile>,
        file: &OwnedFd,
    ) -> io::Result<()> {
        self.watch(file, Object::Attribute(attribute), None)
            .map(drop)
    }

    /// Makes a file of events, likewise.
    pub(crate) fn create_event(&mut self, file: Arc<dyn EventFile>) -> io::Result<OwnedFd> {
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
            // A pipe that is not open for writing makes poll report what there is.
            Object::Event(_) => OFlags::RDWR,
            _ => opened,
        };
        let watch = inotify::add_watch(&self.inotify, path, close)?;
        // Nobody else is to make a second open file of this inode, whose close would look like
        // ours.
        rustix::fs::fchmod(file, Mode::empty())?;
        let identity = (stat.st_dev, stat.st_ino);
        if let Object::Device(device) = &object {
            let registers = Bars(Arc::clone(device));
            self.client.add_registers(identity, Arc::new(registers));
            self.devices += 1;
        }
        self.watches.insert(watch, identity);
        self.last += 1;
        self.open.insert(
            identity,
            OpenFile {
                number: self.last,
                object,
                node,
                position: 0,
                access,
                watch,
            },
        );
        Ok(identity)
    }

    /// The number of the file that was made last.
    pub(crate) fn last_number(&self) -> u64 {
        self.last
    }

    /// What wakes the session when a file of events changes by itself.
    pub(crate) fn readiness(&self) -> BorrowedFd<'_> {
        self.readiness.as_ref().as_fd()
    }

    /// Makes poll report the events there are now.
    pub(crate) fn sync_events(&self) {
        if self.readiness.take() {
            for pipe in self.events.values() {
                pipe.sync();
            }
        }
    }

    /// The file of the machine with this inode.
    pub(crate) fn get(&self, identity: Identity) -> Option<&OpenFile> {
        self.open.get(&identity)
    }

    /// All that are open.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &OpenFile> {
        self.open.values()
    }

    /// As [`Files::get`].
    pub(crate) fn get_mut(&mut self, identity: Identity) -> Option<&mut OpenFile> {
        self.open.get_mut(&identity)
    }

    /// Takes out what the program has closed since the last call, in the order of closing.
    pub(crate) fn take_closed(&mut self) -> Vec<OpenFile> {
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
                self.devices -= usize::from(matches!(file.object, Object::Device(_)));
                closed.push(file);
            }
        }
        closed
    }

    /// Takes out everything: devices first, since they stand on the others.
    pub(crate) fn take_all(&mut self) -> Vec<OpenFile> {
        self.watches.clear();
        self.events.clear();
        self.devices = 0;
        for identity in self.open.keys() {
            self.client.remove_registers(*identity);
        }
        let mut files: Vec<OpenFile> = self.open.drain().map(|(_, file)| file).collect();
        files.sort_by_key(|file| match &file.object {
            Object::Device(_) => 0,
            Object::Event(_) | Object::Group(_) => 1,
            Object::Iommufd(_)
            | Object::Container(_)
            | Object::FailNth(_)
            | Object::Attribute(_) => 2,
        });
        files
    }

    /// How many of them are devices.
    pub(crate) fn devices(&self) -> usize {
        self.devices
    }

    /// The names of the devices that are open, in order, each once.
    pub(crate) fn device_names(&self) -> Vec<String> {
        let names = self.open.values().filter_map(|file| match &file.object {
            Object::Device(device) => Some(device.device().name().to_owned()),
            _ => None,
        });
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
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
