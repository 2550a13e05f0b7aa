//! Accesses to mapped registers.
//!
//! A BAR is mapped past the end of the file behind it, so the processor raises a signal at every access. The
//! library in the program catches it and asks here, by an `ioctl` on no descriptor
//! ([`ioasid_preload::call`]); a program without the library is traced ([`super::trace`]). Which
//! register is meant follows from the address alone: what file the program has mapped there now.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use ioasid_core::host::Caller;
use ioasid_host::{Client, Process};
use ioasid_preload::call::{ACCESS, IN_BUFFER, Kind, Shape};
use ioasid_uapi::Errno;
use ioasid_vfio::DeviceFile;

use super::{
    Server,
    calls::{Answer, Outcome},
    files::{Identity, Object},
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

impl Server {
    /// Carries out one access for the library in the program.
    ///
    /// EFAULT if the address is no register of ours (as for any memory that nobody has), and what the
    /// device says if it does not answer.
    pub(super) fn access(&mut self, request: &Request, process: &Arc<Process>) -> Outcome {
        let [_, _, address, shape, value, buffer] = request.args;
        let shape = Shape::decode(shape).ok_or(Errno::EINVAL)?;
        let mapped = process.mapped_file(address).ok_or(Errno::EFAULT)?;
        let file = self.files.get(mapped.identity).ok_or(Errno::EFAULT)?;
        let Object::Device(file) = &file.object else {
            return Err(Errno::EFAULT);
        };
        let at = mapped.offset;
        let mut bytes = [0; 64];
        let bytes = bytes.get_mut(..shape.size).unwrap_or_default();
        let allowed = match shape.kind {
            Kind::Load => mapped.readable,
            Kind::Store | Kind::Enqueue => mapped.writable,
            Kind::Refuse => true,
        };
        if !allowed || mapped.left < shape.size as u64 - 1 {
            return Err(Errno::EFAULT);
        }
        match shape.kind {
            Kind::Load => {
                file.mapped_read(at, bytes)?;
                let mut word = [0; 8];
                if shape.size > word.len() {
                    process.write(buffer, bytes)?;
                    return Ok(Answer::Value(0));
                }
                for (to, from) in word.iter_mut().zip(bytes.iter()) {
                    *to = *from;
                }
                let word = u64::from_le_bytes(word);
                if (-4095..0).contains(&word.cast_signed()) {
                    process.write(buffer, bytes)?;
                    return Ok(Answer::Fails(rustix::io::Errno::from_raw_os_error(
                        IN_BUFFER,
                    )));
                }
                Ok(Answer::Value(word))
            }
            Kind::Store => {
                match value.to_le_bytes().get(..shape.size) {
                    Some(word) => bytes.copy_from_slice(word),
                    None => process.read(buffer, bytes)?,
                }
                file.mapped_write(at, bytes)?;
                Ok(Answer::Value(0))
            }
            Kind::Enqueue => {
                process.read(buffer, bytes)?;
                let command = bytes.first_chunk::<64>().ok_or(Errno::EINVAL)?;
                let taken = file.mapped_enqueue(at, command)?;
                Ok(Answer::Value(u64::from(!taken)))
            }
            Kind::Refuse => {
                process.read(buffer, bytes)?;
                if !self.traps.refused {
                    self.traps.refused = true;
                    trace::tell_of_instruction(process.id(), address, bytes);
                }
                Err(Errno::EFAULT)
            }
        }
    }
}
