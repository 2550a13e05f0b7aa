//! Files that the kernel opened in our place.
//!
//! The filter does not ask about every `open`: one for reading alone, or one by io_uring, gives the program
//! the placeholder of a node. It becomes a file of ours when a call first means it, as the subject of the
//! call or as a descriptor that the argument of an ioctl names. It stays open as it was opened.

use std::{os::fd::AsFd, sync::Arc};

use ioasid_host::Process;
use ioasid_uapi::Errno;
use rustix::fs::OFlags;

use super::{Server, files::Identity};
use crate::{listener::Request, wire::NodeName};

impl Server {
    /// The file of ours behind a descriptor, if there is one; a placeholder becomes one.
    ///
    /// # Errors
    /// What opening the node says.
    pub(super) fn bound(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        fd: u64,
    ) -> Result<Option<Identity>, Errno> {
        match self.identity(process, fd) {
            Some(identity) => self.bound_as(request, process, fd, identity),
            None => Ok(None),
        }
    }

    /// The same for a descriptor whose file is known to have this `identity`.
    pub(super) fn bound_as(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        fd: u64,
        identity: Identity,
    ) -> Result<Option<Identity>, Errno> {
        if self.files.get(identity).is_some() {
            return Ok(Some(identity));
        }
        let Some(node) = self.node_at(identity).cloned() else {
            return Ok(None);
        };
        if process.fd_is_a_path(fd as i32) {
            return Ok(None);
        }
        self.bind_late(request, process, (fd as i32, identity), node)
            .map(Some)
    }

    /// Says once what does not work on a number that the filter does not know.
    pub(super) fn tell_of_number(&self, number: u32) {
        if !self.numbers().contains(number) && !self.told_of_number.replace(true) {
            tracing::info!(
                program = %self.shared.name,
                "descriptor {number} is a file of the machine on a number below {}: a read or write without an \
                 offset does not reach it there; all else works",
                self.base
            );
        }
    }

    /// Puts a file of ours in the place of a placeholder, and of its duplicates in this process.
    fn bind_late(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        (fd, identity): (i32, Identity),
        node: NodeName,
    ) -> Result<Identity, Errno> {
        let mut numbers = process.duplicates(fd);
        numbers.retain(|number| process.fd_identity(*number) == Ok(identity));
        let file = self.open_node(node, process.fd_flags(fd)?)?;
        let stat = rustix::fs::fstat(&file).map_err(|_| Errno::EIO)?;
        numbers.push(fd);
        for number in numbers {
            let flags = process.fd_flags(number)?;
            let replaced = self.shared.listener.replace_fd(
                request.id,
                file.as_fd(),
                number.cast_unsigned(),
                flags.contains(OFlags::CLOEXEC),
            );
            replaced.map_err(|_| Errno::EBADF)?;
        }
        Ok((stat.st_dev, stat.st_ino))
    }
}
