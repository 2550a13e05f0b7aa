//! A descriptor on an engine or on its client's worker.

use std::{mem, sync::Arc};

use ioasid_core::Pasid;
use ioasid_engine::{Halt, Job, JobId, Place};
use ioasid_iommu::{DmaPort, Stop};

use crate::{
    exec::{Counts, Effects, Execution, Terms},
    queues::session::Session,
    spec::Opcode,
};

/// A descriptor under way.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) queue: usize,
    pub(crate) sequence: u64,
    pub(crate) session: Arc<Session>,
    pub(crate) execution: Execution,
    /// Those of the session, with the vectors that its client may name now.
    terms: Terms,
    /// The descriptor has ended; its errors may have to be logged still.
    done: bool,
    /// Errors have to be logged.
    logs: bool,
    /// What it has done since it was last accounted for.
    counts: Counts,
}

impl Task {
    pub(crate) fn new(
        queue: usize,
        sequence: u64,
        session: Arc<Session>,
        execution: Execution,
    ) -> Self {
        Task {
            queue,
            sequence,
            terms: session.terms,
            session,
            execution,
            done: false,
            logs: false,
            counts: Counts::default(),
        }
    }

    /// What it has done since this was last called.
    pub(crate) fn take_counts(&mut self) -> Counts {
        mem::take(&mut self.counts)
    }
}

impl Job for Task {
    fn id(&self) -> JobId {
        JobId {
            unit: self.queue,
            number: self.sequence,
        }
    }

    fn operation(&self) -> &'static str {
        let opcode = Opcode::from_code(self.execution.descriptor().opcode);
        opcode.map_or("unknown", Opcode::name)
    }

    fn aborted(&self) -> bool {
        self.session.aborted()
    }

    fn begin(&mut self) {
        if self.terms.shared {
            // The PASID that the client knows.
            let named = Pasid::new(self.execution.descriptor().pasid);
            self.terms.vectors = self.session.endpoint.vectors_of(named);
        }
    }

    fn step(&mut self, port: &mut DmaPort, place: Place) -> Result<(), Halt> {
        let session = &*self.session;
        let privileged = self.terms.privileges(self.execution.descriptor());
        let mut effects = Effects::default();
        let result = if self.done {
            Ok(())
        } else {
            port.set_privileged(privileged);
            let mut guard = match place {
                Place::Engine if self.terms.ats => port.enter(session.pasid),
                Place::Engine => port.enter_untranslated(session.pasid),
                Place::Worker => port.enter_blocking(session.pasid),
            };
            self.execution.step(&mut guard, &self.terms, &mut effects)
        };
        self.logs |= !effects.errors.is_empty();
        deliver(session, &mut effects);
        self.counts.add(effects.counts);
        self.done = result.is_ok();
        if self.logs {
            // What halted the descriptor halts it again where the log can be reached.
            write_log(session, privileged, port, place)?;
            self.logs = false;
        }
        result
    }
}

/// Delivers what a step caused outside of memory; no guard and no lock is held.
fn deliver(session: &Session, effects: &mut Effects) {
    let endpoint = &session.endpoint;
    for mut event in effects.errors.drain(..) {
        event.error.info.set_wq_idx_valid(true);
        event.error.info.set_wq_idx(session.index);
        endpoint.raise(endpoint.log(event));
    }
    for vector in effects.interrupts.drain(..) {
        endpoint.interrupt(vector);
    }
}

/// Writes what waits for the event log of the session's owner; `privileged` are the requests of the
/// descriptor.
///
/// # Errors
/// [`Halt::Remote`]: where it has to be done. [`Halt::Withheld`]: it has to wait.
fn write_log(
    session: &Session,
    privileged: bool,
    port: &mut DmaPort,
    place: Place,
) -> Result<(), Halt> {
    let endpoint = &session.endpoint;
    let privileged_mode = session.terms.privileged_mode;
    while let Some(slot) = endpoint.begin_entry(session.pasid, privileged) {
        port.set_privileged(slot.privileged && privileged_mode);
        let bytes = slot.event.to_bytes();
        let mut done = 0;
        let stop = loop {
            let mut guard = match place {
                Place::Engine => port.enter(slot.pasid),
                Place::Worker => port.enter_blocking(slot.pasid),
            };
            let rest = bytes.get(done as usize..).unwrap_or_default();
            let transfer = guard.write(slot.address.wrapping_add(done), rest);
            done += transfer.done;
            match transfer.stop {
                Some(Stop::Budget) => {}
                stop => break stop,
            }
        };
        match stop {
            None => endpoint.raise(endpoint.end_entry()),
            Some(Stop::Remote(worker)) if place == Place::Engine => {
                endpoint.put_off_entry();
                return Err(Halt::Remote(worker));
            }
            Some(Stop::Withheld) => {
                endpoint.put_off_entry();
                return Err(Halt::Withheld);
            }
            Some(_) => endpoint.raise(endpoint.abandon_log()),
        }
    }
    Ok(())
}
