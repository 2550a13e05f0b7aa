//! Accesses to mapped registers.
//!
//! A BAR is mapped past the end of the file behind it, so the processor raises a signal at every
//! access. The library in the program catches it and asks here, by an `ioctl` on no descriptor
//! ([`ioasid_preload::call`]), or in a page that it shares with [`poller`]; a program without the
//! library is traced ([`trace`]). What an access does stands in [`mapped`].

mod mapped;
mod poller;
mod trace;

use std::{os::fd::AsFd, sync::Arc};

use ioasid_host::{Client, Process};
use ioasid_preload::call::{IN_BUFFER, Kind, Shape};
use ioasid_uapi::{
    CallError,
    error::{FileError, RegisterError},
    memory,
};
use ioasid_vfio::DeviceFile;
use mapped::{Mapped, carry_out, report_instruction};
use poller::Poller;

use super::{
    answer::{Answer, Outcome, Pending},
    identity::Identity,
    program::Program,
};
use crate::{calls::call::RegisterQuestion, launch::preload, wire::Mmio};

/// How accesses of a program tree are caught.
#[derive(Debug)]
pub(crate) struct Registers {
    mode: Mmio,
    mapped: Arc<Mapped>,
    client: Arc<Client>,
    tracers: Arc<trace::Tracers>,
    poller: Poller,
    /// That an instruction is not emulated was logged.
    reported_instruction: bool,
}

impl Registers {
    pub(crate) fn new(mode: Mmio, program: &Arc<Program>, client: &Arc<Client>) -> Self {
        Registers {
            mode,
            mapped: Mapped::new(program),
            client: Arc::clone(client),
            tracers: Arc::default(),
            poller: Poller::new(),
            reported_instruction: false,
        }
    }

    /// Whether regions can be mapped at all.
    pub(crate) fn can_be_mapped(&self) -> bool {
        self.mode != Mmio::Off
    }

    /// Makes sure that accesses of `process` to what it is about to map of `file` are caught. Where
    /// that cannot be, they are what they are: SIGBUS, as on a device that does not answer.
    ///
    /// # Errors
    /// EINVAL if no region can be mapped.
    pub(crate) fn prepare(
        &mut self,
        process: &Arc<Process>,
        identity: Identity,
        file: &Arc<DeviceFile>,
    ) -> Result<(), CallError> {
        if !self.can_be_mapped() {
            return Err(FileError::MappingOff.into());
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

    /// The device whose register is mapped at an address of `process`, and its file offset.
    pub(crate) fn place(&self, process: &Process, address: u64) -> Option<(String, u64)> {
        let place = process.mapped_file(address)?;
        let file = self.mapped.get(place.identity)?;
        Some((file.device().name().to_owned(), place.offset))
    }

    /// Carries out one access that the library in `process` asks for by a system call.
    ///
    /// # Errors
    /// As [`mapped::carry_out`].
    fn access(&mut self, process: &Process, question: RegisterQuestion, shape: Shape) -> Outcome {
        let RegisterQuestion {
            address,
            value,
            buffer,
            ..
        } = question;
        let mut data = [0; 64];
        if shape.kind == Kind::Store && shape.size <= size_of_val(&value) {
            if let Some(word) = data.first_chunk_mut() {
                *word = value.to_le_bytes();
            }
        } else if shape.kind != Kind::Load {
            let bytes = data.get_mut(..shape.size).unwrap_or_default();
            memory::read(process, buffer, bytes)?;
        }
        carry_out(process, &self.mapped, address, shape, &mut data)?;
        self.poller.note(process);
        let word = data
            .first_chunk()
            .map_or(0, |word| u64::from_le_bytes(*word));
        match shape.kind {
            Kind::Load => {
                let bytes = data.get(..shape.size).unwrap_or_default();
                if shape.size > size_of_val(&word) {
                    memory::write(process, buffer, bytes)?;
                    return Ok(Answer::Value(0));
                }
                if (-4095..0).contains(&word.cast_signed()) {
                    memory::write(process, buffer, bytes)?;
                    let errno = rustix::io::Errno::from_raw_os_error(IN_BUFFER);
                    return Ok(Answer::Fails(errno));
                }
                Ok(Answer::Value(word))
            }
            Kind::Enqueue => Ok(Answer::Value(word)),
            _ => Ok(Answer::Value(0)),
        }
    }

    /// The library in `process` has met an instruction that is not emulated.
    fn refuse(
        &mut self,
        process: &Process,
        question: RegisterQuestion,
        shape: Shape,
    ) -> Result<(), CallError> {
        let mut data = [0; 64];
        let bytes = data.get_mut(..shape.size).unwrap_or_default();
        memory::read(process, question.buffer, bytes)?;
        if !std::mem::replace(&mut self.reported_instruction, true) {
            report_instruction(process.id(), question.address, bytes);
        }
        Ok(())
    }

    /// Answers a question of the library in the program that the registers alone decide.
    ///
    /// # Errors
    /// As [`carry_out`].
    pub(crate) fn answer(
        &mut self,
        program: &Program,
        call: Pending<'_>,
        question: RegisterQuestion,
        shape: Shape,
    ) -> Outcome {
        match shape.kind {
            Kind::Load | Kind::Store | Kind::Enqueue => self.access(call.process, question, shape),
            Kind::Refuse => {
                self.refuse(call.process, question, shape)?;
                let address = question.address;
                Err(RegisterError::Instruction { address }.into())
            }
            Kind::Await => {
                self.poller.wait_for_answer(call.process);
                Ok(Answer::Value(0))
            }
            Kind::Share => {
                let page = self
                    .poller
                    .share(call.process, &self.mapped, &program.requests)?;
                call.hand_over(&program.listener, page.as_fd())
            }
            // About no register.
            Kind::Node | Kind::Errands | Kind::Agent => Err(RegisterError::Malformed {
                shape: question.shape,
            }
            .into()),
        }
    }

    /// Threads have ended, and with them processes perhaps.
    pub(crate) fn forget_ended(&mut self) {
        self.poller.forget_ended();
    }

    /// Ends the thread that watches shared pages: what answers after this session is asked by the
    /// system call.
    pub(crate) fn stop_polling(&mut self) {
        self.poller = Poller::new();
    }
}
