//! Accesses to mapped registers.
//!
//! A BAR is mapped past the end of the file behind it, so the processor raises a signal at every access. The
//! library in the program catches it and asks here, by an `ioctl` on no descriptor
//! ([`ioasid_preload::call`]); a program without the library is traced ([`super::trace`]). Which
//! register is meant follows from the address alone: what file the program has mapped there now.

use std::{
    collections::HashMap,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use ioasid_core::host::Caller;
use ioasid_host::{Client, Process};
use ioasid_preload::call::{ACCESS, IN_BUFFER, Kind, Shape};
use ioasid_uapi::Errno;
use ioasid_vfio::DeviceFile;

use super::{
    Server,
    attend::Attendant,
    calls::{Answer, Outcome},
    files::Identity,
    trace,
};
use crate::{listener::Request, preload, wire::Mmio};

/// The open device files that somebody has mapped, for threads beside the session's.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    files: Mutex<HashMap<Identity, Weak<DeviceFile>>>,
}

impl Mapped {
    fn files(&self) -> MutexGuard<'_, HashMap<Identity, Weak<DeviceFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, identity: Identity, file: &Arc<DeviceFile>) {
        let mut files = self.files();
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(identity, Arc::downgrade(file));
    }

    /// The file with this inode.
    pub(super) fn get(&self, identity: Identity) -> Option<Arc<DeviceFile>> {
        self.files().get(&identity).and_then(Weak::upgrade)
    }
}

/// How accesses of a program tree are caught.
#[derive(Debug)]
pub(super) struct Traps {
    mode: Mmio,
    mapped: Arc<Mapped>,
    client: Arc<Client>,
    tracers: Arc<trace::Tracers>,
    /// Who answers where accesses come thick and fast.
    pub(super) attendant: Attendant,
    /// An instruction that is not emulated was told of.
    refused: bool,
}

impl Traps {
    pub(super) fn new(mode: Mmio, client: &Arc<Client>) -> Self {
        Traps {
            mode,
            mapped: Arc::default(),
            client: Arc::clone(client),
            tracers: Arc::default(),
            attendant: Attendant::new(),
            refused: false,
        }
    }

    /// Whether regions can be mapped at all.
    pub(super) fn serve(&self) -> bool {
        self.mode != Mmio::Off
    }

    /// Sees to it that accesses of `process` to what it is about to map of `file` are caught. Where
    /// that cannot be, they are what they are: SIGBUS, as on a device that does not answer.
    ///
    /// # Errors
    /// EINVAL if no region can be mapped.
    pub(super) fn prepare(
        &mut self,
        process: &Arc<Process>,
        identity: Identity,
        file: &Arc<DeviceFile>,
    ) -> Result<(), Errno> {
        if !self.serve() {
            return Err(Errno::EINVAL);
        }
        self.mapped.insert(identity, file);
        if self.mode != Mmio::Ptrace && process.has_mapped(preload::NAME) {
            tracing::debug!(
                process = process.id(),
                "accesses to mapped registers are caught by the library in the program"
            );
            return Ok(());
        }
        if self.mode == Mmio::Preload {
            tracing::warn!(
                process = process.id(),
                "the program has not loaded the library for registers, and was not to be traced: its \
                 accesses are SIGBUS"
            );
            return Ok(());
        }
        match trace::follow(process, &self.client, &self.mapped, &self.tracers) {
            Ok(false) => {}
            Ok(true) => tracing::info!(
                process = process.id(),
                "accesses to mapped registers are caught by ptrace: {}",
                match self.mode {
                    Mmio::Ptrace => "it was asked for",
                    _ => "the program has not loaded the library (is it static?)",
                }
            ),
            Err(error) => tracing::warn!(
                process = process.id(),
                "accesses to mapped registers are SIGBUS: the program has not loaded the library and \
                 cannot be traced: {error}{}",
                match process.tracer() {
                    0 => "",
                    _ => " (a debugger has it already)",
                }
            ),
        }
        Ok(())
    }
}

/// Whether a request asks for one access.
pub(super) fn is_access(request: &Request) -> bool {
    let [fd, cmd, ..] = request.args;
    request.nr == libc::SYS_ioctl && fd as i32 == -1 && cmd as u32 == ACCESS
}

/// Carries out one access of `process`: loaded bytes are in `data` then, stored ones were; for an enqueue
/// its first word says whether it is to be tried again.
///
/// # Errors
/// EFAULT if the address is no register of ours (as for any memory that nobody has), and what the
/// device says if it does not answer. Nothing has been done then.
pub(super) fn carry_out(
    process: &Process,
    mapped: &Mapped,
    address: u64,
    shape: Shape,
    data: &mut [u8; 64],
) -> Result<(), Errno> {
    let place = process.mapped_file(address).ok_or(Errno::EFAULT)?;
    let file = mapped.get(place.identity).ok_or(Errno::EFAULT)?;
    let allowed = match shape.kind {
        Kind::Load => place.readable,
        Kind::Store | Kind::Enqueue => place.writable,
        Kind::Refuse | Kind::Share | Kind::Await | Kind::Node => false,
    };
    if !allowed || place.left < shape.size as u64 - 1 {
        return Err(Errno::EFAULT);
    }
    let bytes = data.get_mut(..shape.size).unwrap_or_default();
    match shape.kind {
        Kind::Load => file.mapped_read(place.offset, bytes)?,
        Kind::Store => file.mapped_write(place.offset, bytes)?,
        _ => {
            let taken = file.mapped_enqueue(place.offset, data)?;
            *data = [0; 64];
            data[0] = (!taken).into();
        }
    }
    Ok(())
}

impl Server {
    /// One question of the library in the program.
    ///
    /// # Errors
    /// As [`carry_out`].
    pub(super) fn access(&mut self, request: &Request, process: &Arc<Process>) -> Outcome {
        let [_, _, address, shape, value, buffer] = request.args;
        let shape = Shape::decode(shape).ok_or(Errno::EINVAL)?;
        let mut data = [0; 64];
        match shape.kind {
            Kind::Share => return self.share(request, process),
            Kind::Node => {
                let identity = (value, address);
                let opened = self.files.get(identity).and_then(|file| file.node.as_ref());
                let node = opened.map(|node| &node.name);
                let node = node.or_else(|| self.node_at(identity));
                let (major, minor) = node
                    .and_then(|node| self.rdev_of(node))
                    .ok_or(Errno::ENOENT)?;
                return Ok(Answer::Value(u64::from(major) << 32 | u64::from(minor)));
            }
            Kind::Await => {
                self.traps.attendant.settle(process);
                return Ok(Answer::Value(0));
            }
            Kind::Refuse => {
                let bytes = data.get_mut(..shape.size).unwrap_or_default();
                process.read(buffer, bytes)?;
                if !self.traps.refused {
                    self.traps.refused = true;
                    trace::tell_of_instruction(process.id(), address, bytes);
                }
                return Err(Errno::EFAULT);
            }
            Kind::Load => {}
            Kind::Store if shape.size <= size_of_val(&value) => {
                if let Some(word) = data.first_chunk_mut() {
                    *word = value.to_le_bytes();
                }
            }
            Kind::Store | Kind::Enqueue => {
                let bytes = data.get_mut(..shape.size).unwrap_or_default();
                process.read(buffer, bytes)?;
            }
        }
        carry_out(process, &self.traps.mapped, address, shape, &mut data)?;
        self.traps.attendant.note(process);
        let word = data
            .first_chunk()
            .map_or(0, |word| u64::from_le_bytes(*word));
        match shape.kind {
            Kind::Load => {
                let bytes = data.get(..shape.size).unwrap_or_default();
                if shape.size > size_of_val(&word) {
                    process.write(buffer, bytes)?;
                    return Ok(Answer::Value(0));
                }
                if (-4095..0).contains(&word.cast_signed()) {
                    process.write(buffer, bytes)?;
                    return Ok(Answer::Fails(rustix::io::Errno::from_raw_os_error(
                        IN_BUFFER,
                    )));
                }
                Ok(Answer::Value(word))
            }
            Kind::Enqueue => Ok(Answer::Value(word)),
            _ => Ok(Answer::Value(0)),
        }
    }

    /// Gives `process` a page to ask in.
    fn share(&mut self, request: &Request, process: &Arc<Process>) -> Outcome {
        let Traps {
            attendant, mapped, ..
        } = &mut self.traps;
        let page = attendant.share(process, mapped, &self.shared.requests)?;
        let listener = &self.shared.listener;
        match listener.reply_with_fd(request.id, page.as_fd(), None, true) {
            Ok(_) => Ok(Answer::Answered),
            Err(_) => Err(Errno::EMFILE),
        }
    }
}
