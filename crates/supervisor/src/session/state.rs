//! What a session owns, by subject, and what concerns more than one of them.

use std::{io, os::fd::OwnedFd, sync::Arc};

use ioasid_core::{failpoint, host::FdError};
use ioasid_host::Client;
use ioasid_machine::sysfs::{CONTAINER_DEVICE, IOMMU_DEVICE};
use ioasid_uapi::{
    CallError,
    error::{FileError, RequestError, Wanted},
};
use ioasid_vfio::Container;
use rustix::fs::OFlags;

use super::{
    agents::Agents,
    answer::Pending,
    descriptors::{
        Descriptors,
        object::{Node, Object},
    },
    faults::Faults,
    identity::Identity,
    machine::{Machine, group_rdev},
    paths::Paths,
    program::Program,
    registers::Registers,
    steps::Steps,
};
use crate::wire::{Attach, NodeName};

/// What the session thread owns.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) program: Arc<Program>,
    pub(crate) machine: Machine,
    pub(crate) client: Arc<Client>,
    pub(crate) descriptors: Descriptors,
    pub(crate) paths: Paths,
    pub(crate) registers: Registers,
    pub(crate) agents: Agents,
    pub(crate) faults: Faults,
    /// What the call in hand does in its program, if somebody wants to know.
    pub(crate) steps: Option<Arc<Steps>>,
    /// The struct of the ioctl in hand as it was when the call began, if somebody wants to know.
    pub(crate) argument: Vec<u8>,
    pub(crate) freed: Freed,
}

/// When memory that mappings had is given back to the system.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    /// The most mappings since then.
    most: usize,
}

impl Freed {
    /// Mappings that have gone before it is worth the look at everything that is free: some 16 MB.
    const MANY: usize = 1 << 16;

    /// A call has left this many mappings.
    pub(crate) fn left(&mut self, mappings: usize) {
        self.most = self.most.max(mappings);
        if self.most - mappings >= Self::MANY {
            self.most = mappings;
            ioasid_host::service::give_back_memory();
        }
    }
}

impl State {
    /// # Errors
    /// If the host has no inotify instance left, or no place for an overlay.
    pub(crate) fn new(
        program: &Arc<Program>,
        machine: Machine,
        client: Arc<Client>,
        attach: Attach,
    ) -> io::Result<Self> {
        Ok(State {
            paths: Paths::new(program, &machine, attach.mode)?,
            registers: Registers::new(attach.mmio, program, &client),
            descriptors: Descriptors::new(program, &client, attach.base)?,
            agents: Agents::default(),
            faults: Faults::default(),
            steps: program.observers.wants_steps().then(Arc::default),
            argument: Vec::new(),
            freed: Freed::default(),
            program: Arc::clone(program),
            machine,
            client,
        })
    }

    /// The file of the machine behind a descriptor, if there is one. A placeholder becomes one: the
    /// filter does not ask about every `open`, and one for reading alone, or one by io_uring, gives
    /// the program the placeholder of a node. It becomes a file when a call first means it, as the
    /// subject of the call or as a descriptor that the argument of an ioctl names, and stays open
    /// as it was opened.
    ///
    /// # Errors
    /// What opening the node says.
    pub(crate) fn bound(
        &mut self,
        call: Pending<'_>,
        fd: i32,
    ) -> Result<Option<Identity>, CallError> {
        match self.descriptors.identity(call.process, fd) {
            Some(identity) => self.bound_as(call, fd, identity),
            None => Ok(None),
        }
    }

    /// The same for a descriptor whose file is known to have this `identity`.
    pub(crate) fn bound_as(
        &mut self,
        call: Pending<'_>,
        fd: i32,
        identity: Identity,
    ) -> Result<Option<Identity>, CallError> {
        if self.descriptors.files.get(identity).is_some() {
            return Ok(Some(identity));
        }
        let Some(node) = self.paths.node_at(identity).cloned() else {
            return Ok(None);
        };
        if call.process.fd_is_a_path(fd) {
            return Ok(None);
        }
        self.bind(call, (fd, identity), node).map(Some)
    }

    /// Puts a file of the machine in the place of a placeholder, and of its duplicates in this
    /// process.
    fn bind(
        &mut self,
        call: Pending<'_>,
        (fd, identity): (i32, Identity),
        node: NodeName,
    ) -> Result<Identity, CallError> {
        let process = call.process;
        let mut numbers = process.duplicates(fd);
        numbers.retain(|number| process.fd_identity(*number) == Ok(identity));
        let flags = |fd| process.fd_flags(fd).map_err(|error| unusable(fd, error));
        let file = self.open_node(node, flags(fd)?)?;
        let stat = rustix::fs::fstat(&file).map_err(|_| FileError::HostFailed)?;
        numbers.push(fd);
        for number in numbers {
            let cloexec = flags(number)?.contains(OFlags::CLOEXEC);
            let unsigned = number.cast_unsigned();
            let replaced = self.descriptors.replace(call, &file, unsigned, cloexec);
            replaced.map_err(|_| FileError::Closed { fd: number })?;
        }
        Ok((stat.st_dev, stat.st_ino))
    }

    /// A new open file of a node, opened with `flags`.
    pub(crate) fn open_node(
        &mut self,
        name: NodeName,
        flags: OFlags,
    ) -> Result<OwnedFd, CallError> {
        failpoint::allocation()?;
        let view = &self.machine.view;
        let (object, rdev) = match &name {
            NodeName::Iommu => (Object::Iommufd(view.new_context()), IOMMU_DEVICE),
            NodeName::Container => {
                let container = Container::new(view.new_context());
                (Object::Container(container), CONTAINER_DEVICE)
            }
            NodeName::Group(number) => {
                let group = self.machine.group(*number).ok_or_else(|| gone(number))?;
                let file = group.open()?;
                if self.registers.can_be_mapped() {
                    let devices = group.devices();
                    devices.iter().for_each(|device| device.set_mappable(true));
                }
                (Object::Group(file), group_rdev(*number))
            }
            NodeName::Device(name) => {
                // It was removed since the program's /dev was made.
                let info = self.machine.node(name).ok_or_else(|| gone(name))?;
                if self.registers.can_be_mapped() {
                    info.device.set_mappable(true);
                }
                let file = info.device.open()?;
                (Object::Device(file), (info.major, info.minor))
            }
        };
        self.descriptors.create(object, Node { name, rdev }, flags)
    }

    /// Brings into the program's `/dev` and `/sys` what has changed on the machine.
    pub(crate) fn follow_changes(&mut self, tid: u32) {
        self.paths.follow_changes(tid);
    }
}

/// The machine has no such node any more.
fn gone(name: impl ToString) -> FileError {
    let name = name.to_string();
    FileError::Gone { name }
}

/// A descriptor that a call means cannot be looked at.
pub(crate) fn unusable(fd: i32, error: FdError) -> RequestError {
    let wanted = Wanted::OfMachine;
    RequestError::Descriptor { fd, wanted, error }
}
