//! Opens of nodes, and the numbers that descriptors of ours get.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};

use ioasid_core::{failpoint, host::FdError};
use ioasid_host::Process;
use ioasid_machine::sysfs::{CONTAINER_DEVICE, IOMMU_DEVICE, VFIO_GROUP_MAJOR};
use ioasid_uapi::Errno;
use ioasid_vfio::{Container, VfioGroup};
use rustix::fs::OFlags;

use super::{
    Server,
    calls::{Answer, Outcome},
    files::{Identity, Node, Object},
    path,
    paths::PathArgument,
};
use crate::{filter::RESERVED_FDS, listener::Request, wire::NodeName};

/// The numbers that are ours: from `base` on, as many as the filter knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) base: u32,
}

impl Numbers {
    /// One past the last.
    fn end(self) -> u32 {
        self.base.saturating_add(RESERVED_FDS)
    }

    pub(super) fn contains(self, number: u32) -> bool {
        (self.base..self.end()).contains(&number)
    }

    /// Numbers that are free in the program's table, ours first. After them come those that the
    /// kernel gives out last: reads and writes of a file there do not work, ioctls do.
    pub(super) fn free(self, process: &Process) -> impl Iterator<Item = u32> {
        let limit = process.descriptor_limit();
        (self.base..self.end())
            .chain((0..self.base).rev())
            .filter(move |number| *number < limit && is_free(process, *number))
    }

    /// The first free number of ours from `least` on.
    fn first_free(self, process: &Process, least: u32) -> Option<u32> {
        (self.base.max(least)..self.end()).find(|number| is_free(process, *number))
    }
}

fn is_free(process: &Process, number: u32) -> bool {
    let number = i32::try_from(number);
    number.is_ok_and(|n| matches!(process.fd_identity(n), Err(FdError::NotOpen)))
}

impl Server {
    pub(super) fn numbers(&self) -> Numbers {
        Numbers { base: self.base }
    }

    pub(super) fn count_open_files(&self) {
        let open = self.files.len();
        self.shared.open_files.store(open, Ordering::Relaxed);
    }

    pub(super) fn open(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        dirfd: i32,
        path: u64,
        flags: u64,
    ) -> Outcome {
        let has = |flag: i32| flags & flag as u64 != 0;
        let trapped = self.overlay.is_some();
        let never_a_node = has(libc::O_PATH)
            || has(libc::O_DIRECTORY)
            || (has(libc::O_CREAT) && has(libc::O_EXCL));
        if never_a_node && !trapped {
            return Ok(Answer::Proceed);
        }
        let Some(path) = path::read_path(process, path) else {
            return Ok(Answer::Proceed);
        };
        let reads = flags & libc::O_ACCMODE as u64 == libc::O_RDONLY as u64;
        if reads
            && self.view.shows_locked_memory()
            && let Some(outcome) = self.open_status(request, &path, has(libc::O_CLOEXEC))
        {
            return outcome;
        }
        if let Some(file) = self.open_fail_nth(request.tid, path.as_bytes())? {
            let cloexec = has(libc::O_CLOEXEC);
            return self.hand_over(request, process, file.as_fd(), self.base, cloexec);
        }
        let argument = PathArgument {
            dirfd,
            address: 0,
            follow: !has(libc::O_NOFOLLOW),
        };
        let both = flags & libc::O_ACCMODE as u64 == libc::O_RDWR as u64;
        if !reads
            && let Some(file) = self.open_attribute(request, process, &path, argument, both)?
        {
            let cloexec = has(libc::O_CLOEXEC);
            return self.hand_over(request, process, file.as_fd(), self.base, cloexec);
        }
        let node = if trapped && path::descriptor_path(path.as_bytes()).is_none() {
            self.open_path(request, process, &path, argument, flags)
        } else if never_a_node {
            Err(Answer::Proceed)
        } else {
            self.placeholder(request, process, &path, argument)?
        };
        let node = match node {
            Ok(node) => node,
            Err(answer) => return Ok(answer),
        };
        let file = self.open_node(node, OFlags::from_bits_retain(flags as u32))?;
        self.hand_over(
            request,
            process,
            file.as_fd(),
            self.base,
            has(libc::O_CLOEXEC),
        )
    }

    /// The node that a path leads to by way of the kernel, or how the call ends.
    fn placeholder(
        &self,
        request: &Request,
        process: &Process,
        path: &CString,
        PathArgument { dirfd, follow, .. }: PathArgument,
    ) -> Result<Result<NodeName, Answer>, Errno> {
        let Some(identity) = path::look_up(process, request.tid, dirfd, path, follow) else {
            return Ok(Err(Answer::Proceed));
        };
        if let Some(node) = self.node_at(identity) {
            return Ok(Ok(node.clone()));
        }
        match self.files.get(identity) {
            // A file of ours that is opened again through /proc is a new open of its node.
            Some(file) => Ok(Ok(file.node.as_ref().ok_or(Errno::ENXIO)?.name.clone())),
            None => Ok(Err(Answer::Proceed)),
        }
    }

    /// The node that a file stands for.
    pub(super) fn node_at(&self, identity: Identity) -> Option<&NodeName> {
        let mut all = self.placeholders.iter();
        let found = all.find(|placeholder| (placeholder.dev, placeholder.ino) == identity);
        found.map(|placeholder| &placeholder.node)
    }

    /// The device number of a node.
    pub(super) fn rdev_of(&self, name: &NodeName) -> Option<(u32, u32)> {
        match name {
            NodeName::Iommu => Some(IOMMU_DEVICE),
            NodeName::Container => Some(CONTAINER_DEVICE),
            NodeName::Group(number) => self.group(*number).map(|_| group_rdev(*number)),
            NodeName::Device(name) => {
                let nodes = self.view.nodes(self.shared.vm.as_deref());
                let info = nodes.into_iter().find(|info| info.name == *name)?;
                Some((info.major, info.minor))
            }
        }
    }

    /// The group with this number, if the program sees a device of it.
    fn group(&self, number: u32) -> Option<Arc<VfioGroup>> {
        let nodes = self.view.nodes(self.shared.vm.as_deref()).into_iter();
        let mut groups = nodes.map(|info| Arc::clone(info.device.group()));
        groups.find(|group| group.number() == number)
    }

    pub(super) fn open_node(&mut self, name: NodeName, flags: OFlags) -> Result<OwnedFd, Errno> {
        failpoint::allocation()?;
        let (object, rdev) = match &name {
            NodeName::Iommu => (Object::Iommufd(self.view.new_context()), IOMMU_DEVICE),
            NodeName::Container => {
                let container = Container::new(self.view.new_context());
                (Object::Container(container), CONTAINER_DEVICE)
            }
            NodeName::Group(number) => {
                let group = self.group(*number).ok_or(Errno::ENODEV)?;
                let file = group.open()?;
                if self.traps.serve() {
                    let devices = group.devices();
                    devices.iter().for_each(|device| device.set_mappable(true));
                }
                (Object::Group(file), group_rdev(*number))
            }
            NodeName::Device(name) => {
                let nodes = self.view.nodes(self.shared.vm.as_deref());
                let info = nodes.into_iter().find(|info| info.name == *name);
                // It was removed since the program's /dev was made.
                let info = info.ok_or(Errno::ENODEV)?;
                if self.traps.serve() {
                    info.device.set_mappable(true);
                }
                let file = info.device.open().map_err(Errno::from)?;
                (Object::Device(file), (info.major, info.minor))
            }
        };
        let file = match self
            .files
            .create(object.clone(), Node { name, rdev }, flags)
        {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(%error, "no file can be made for a program");
                object.close();
                return Err(Errno::ENOMEM);
            }
        };
        self.count_open_files();
        Ok(file)
    }

    /// Gives `file` a number of ours in the program's table, and that number as the answer.
    pub(super) fn hand_over(
        &self,
        request: &Request,
        process: &Process,
        file: BorrowedFd<'_>,
        least: u32,
        cloexec: bool,
    ) -> Outcome {
        let listener = &self.shared.listener;
        if let Some(number) = self.numbers().first_free(process, least)
            && listener
                .reply_with_fd(request.id, file, Some(number), cloexec)
                .is_ok()
        {
            return Ok(Answer::Answered);
        }
        // Ours are used up, or over a limit that was lowered: any number then. Ioctls work there.
        match listener.reply_with_fd(request.id, file, None, cloexec) {
            Ok(_) => Ok(Answer::Answered),
            Err(error) if is(&error, libc::ENOENT) => Ok(Answer::Answered),
            // Its table is full: what the kernel says is what `open` says.
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(Errno::ENOMEM.get());
                listener.fail(request.id, errno);
                Ok(Answer::Answered)
            }
        }
    }

    /// `dup` and `fcntl(F_DUPFD)`: the copy gets a number of ours too, so that `read` on it works.
    pub(super) fn duplicate(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        least: u32,
        cloexec: bool,
    ) -> Outcome {
        let fd = request.args[0];
        if self.file(process, fd).is_none() {
            return Ok(Answer::Proceed);
        }
        let Ok(file) = process.get_fd(fd as i32) else {
            return Ok(Answer::Proceed);
        };
        self.hand_over(request, process, file.as_fd(), least, cloexec)
    }
}

/// Device number of a group's node.
fn group_rdev(number: u32) -> (u32, u32) {
    (VFIO_GROUP_MAJOR, number)
}

fn is(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}
