//! The device files that are mapped, and one access to their registers.
//!
//! Which register is meant follows from the address alone: what file the program has mapped there
//! now.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use ioasid_host::Process;
use ioasid_preload::call::{Kind, Shape};
use ioasid_uapi::{
    CallError,
    decode::{Decoded, Value},
    error::RegisterError,
};
use ioasid_vfio::DeviceFile;

use crate::session::{
    identity::Identity,
    observe::{CallResult, CalledFile, FinishedCall, place},
    program::Program,
};

/// The open device files that some process has mapped, for threads beside the session's.
#[derive(Debug)]
pub(crate) struct Mapped {
    program: Arc<Program>,
    files: Mutex<HashMap<Identity, Weak<DeviceFile>>>,
}

impl Mapped {
    pub(crate) fn new(program: &Arc<Program>) -> Arc<Self> {
        Arc::new(Mapped {
            program: Arc::clone(program),
            files: Mutex::default(),
        })
    }

    /// Counts an access that its device refused to a traced thread of `process`, and tells observers.
    /// Accesses that the session is asked for it reports like every call.
    pub(crate) fn report(
        &self,
        (process, thread): (&Process, i32),
        (name, len): (&'static str, usize),
        (file, offset): (&DeviceFile, u64),
        error: &CallError,
    ) {
        let observers = &self.program.observers;
        observers.account().add_refused();
        if observers.is_empty() {
            return;
        }
        let call = place(Decoded::new(name), offset);
        observers.finished(&FinishedCall {
            program: &self.program.name,
            process: process.id(),
            thread: thread.cast_unsigned(),
            file: Some(CalledFile::Device(file.device().name().to_owned())),
            fd: None,
            call: call.with("len", Value::Number(len as u64)),
            request: None,
            reply: None,
            result: CallResult::Refused(error),
            is_foreign: false,
            began: Instant::now(),
            took: Duration::ZERO,
            again: None,
        });
    }

    fn files(&self) -> MutexGuard<'_, HashMap<Identity, Weak<DeviceFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, identity: Identity, file: &Arc<DeviceFile>) {
        let mut files = self.files();
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(identity, Arc::downgrade(file));
    }

    /// The file with this inode.
    pub(crate) fn get(&self, identity: Identity) -> Option<Arc<DeviceFile>> {
        self.files().get(&identity).and_then(Weak::upgrade)
    }
}

/// Carries out one access of `process`: loaded bytes are in `data` then, stored ones were; for an
/// enqueue its first word says whether it is to be tried again.
///
/// # Errors
/// EFAULT if the address is no register (as for any memory that is not mapped), and what the
/// device says if it does not answer. Nothing has been done then.
pub(crate) fn carry_out(
    process: &Process,
    mapped: &Mapped,
    address: u64,
    shape: Shape,
    data: &mut [u8; 64],
) -> Result<(), CallError> {
    let size = shape.size as u64;
    let missing = RegisterError::NotMapped { address, size };
    let place = process.mapped_file(address).ok_or(missing)?;
    let file = mapped.get(place.identity).ok_or(missing)?;
    let allowed = match shape.kind {
        Kind::Load => place.readable,
        Kind::Store | Kind::Enqueue => place.writable,
        _ => false,
    };
    if !allowed || place.left < shape.size as u64 - 1 {
        return Err(missing.into());
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

/// Logs that an instruction on a register is not emulated.
pub(crate) fn report_instruction(process: i32, address: u64, code: &[u8]) {
    let mut bytes = String::new();
    for byte in code {
        let _ = write!(bytes, " {byte:02x}");
    }
    tracing::warn!(
        process,
        "an instruction on a mapped register at {address:#x} is not emulated and raises its signal; \
         it begins with{bytes}"
    );
}
