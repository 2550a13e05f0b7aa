//! Each call goes to its handler.
//!
//! A call that turns out not to concern a file of the machine is carried out by the kernel, which
//! also gives the errno for a bad descriptor or pointer.

use std::sync::Arc;

use ioasid_core::failpoint;
use ioasid_host::{Process, ProcessError};
use ioasid_uapi::{
    Errno,
    error::{FileError, Operation, RegisterError},
    memory,
};

use super::{
    answer::{Answer, Outcome, Pending},
    handlers::{
        descriptors, ioctl, kvm, list, mmap, mount, open, path, register, regular, stat, statfs,
        transfer,
    },
    report,
    state::State,
};
use crate::{
    calls::{call::Call, greeting, table},
    system::listener::Request,
};

/// Answers one request.
pub(crate) fn dispatch(state: &mut State, request: &Request) {
    state.paths.attach_current(request.tid);
    state.follow_changes(request.tid);
    let started = state.program.observers.watch();
    let outcome = with_faults(state, request);
    // A program that polls after this call finds what the call has changed.
    state.descriptors.files.sync_events();
    // Before the answer: what the program does next comes later in every account.
    if started.is_some() || outcome.is_err() {
        report::finished(state, request, &outcome, started);
    }
    let listener = &state.program.listener;
    match outcome {
        Ok(Answer::Value(value)) => listener.reply(request.id, value.cast_signed()),
        Ok(Answer::Proceed) => listener.proceed(request.id),
        Ok(Answer::Answered(_)) => {}
        Ok(Answer::Fails(errno)) => listener.fail(request.id, errno.raw_os_error()),
        Err(error) => listener.fail(request.id, error.errno().get()),
    }
}

/// Carries out a request while the countdown of its thread to a failing allocation runs.
fn with_faults(state: &mut State, request: &Request) -> Outcome {
    let armed = state.faults.get(request.tid);
    if let Some(steps) = &state.steps {
        steps.begin(armed);
    }
    if armed == 0 {
        return outcome(state, request);
    }
    let (outcome, left) = failpoint::counting_down(armed, || outcome(state, request));
    // Otherwise what the request itself has set stands.
    if left != armed {
        state.faults.set(request.tid, left);
    }
    outcome
}

fn outcome(state: &mut State, request: &Request) -> Outcome {
    let tid = i32::try_from(request.tid).unwrap_or(0);
    state.descriptors.end_close(tid);
    let call = table::parse(request.nr, &request.args);
    match call {
        Call::Exec => {
            // An agent would keep the memory that the program is about to leave.
            if !state.agents.is_empty()
                && let Some(process) = process(state, request, tid)
            {
                state.agents.end_of(process.id());
            }
            state.client.forget_memory_of(tid);
            return Ok(Answer::Proceed);
        }
        Call::Close => {
            state.descriptors.begin_close(tid);
            return Ok(Answer::Proceed);
        }
        _ => {}
    }
    for first in [true, false] {
        let Some(process) = process(state, request, tid) else {
            break;
        };
        let pending = Pending {
            id: request.id,
            tid: request.tid,
            process: &process,
        };
        let outcome = handle(state, pending, call);
        // Only if it cannot be read: what its program was before an `exec` that the filter reported
        // too early. Nothing has been done then.
        let faulted = matches!(&outcome, Err(error) if error.errno() == Errno::EFAULT);
        if first && faulted && !process.still_same() {
            state.client.forget_memory_of(tid);
            if let Some(steps) = &state.steps {
                steps.again();
            }
            continue;
        }
        return outcome;
    }
    match call {
        Call::Greeting { .. } => Err(RegisterError::MemoryClosed.into()),
        _ => Ok(Answer::Proceed),
    }
}

/// The process that makes the call, if it may be looked at.
fn process(state: &State, request: &Request, tid: i32) -> Option<Arc<Process>> {
    if let Some(process) = state.client.known_process(tid) {
        return Some(process);
    }
    if tid == 0 {
        return None;
    }
    let process = match state.client.process(tid) {
        Ok(process) => process,
        Err(error @ (ProcessError::Denied(_) | ProcessError::NoMemory(_))) => {
            state.program.warn_of_closed_memory(&error);
            return None;
        }
        Err(ProcessError::Gone | ProcessError::Failed(_)) => return None,
    };
    // While it waits, its number cannot have passed to another process: this is the right one.
    let waits = state.program.listener.is_waiting(request.id);
    waits.then_some(process)
}

fn handle(state: &mut State, pending: Pending<'_>, call: Call) -> Outcome {
    match call {
        Call::Greeting { buffer } => {
            state.agents.begin(pending.process);
            greet(pending.process, buffer)
        }
        Call::Register(question) => register::ask(state, pending, question),
        Call::KvmAttribute { fd, attribute } => kvm::set_attribute(state, pending, fd, attribute),
        Call::Ioctl {
            fd,
            request,
            argument,
        } => ioctl::ioctl(state, pending, (fd, request, argument)),
        Call::Open { at, flags } => open::open(state, pending, at, flags),
        Call::OpenHow {
            dirfd,
            path,
            how,
            size,
        } => open::open_how(state, pending, (dirfd, path), (how, size)),
        Call::Transfer(transfer) => transfer::transfer(state, pending, &transfer),
        Call::Stat { fd, buffer } => stat::stat(state, pending, fd, buffer),
        Call::StatPath {
            at,
            empty_path,
            buffer,
        } => stat::stat_path(state, pending, (at, empty_path), buffer),
        Call::Statx {
            at,
            empty_path,
            mask,
            buffer,
        } => stat::statx(state, pending, (at, empty_path), mask, buffer),
        Call::Statfs { at, buffer } => statfs::statfs(&state.paths, pending, at, buffer),
        Call::Fstatfs { fd, buffer } => statfs::fstatfs(state, pending, fd, buffer),
        Call::Access { at, mode } => path::access(&state.paths, pending, at, mode),
        Call::ReadLink { at, buffer, size } => {
            path::read_link(&state.paths, pending, at, (buffer, size))
        }
        Call::List { fd, buffer, size } => list::list(&state.paths, pending, fd, (buffer, size)),
        Call::GetXattr { at } => path::get_attribute(&state.paths, pending, at),
        Call::ListXattr { at } => path::list_attributes(&state.paths, pending, at),
        Call::Mount {
            source,
            target,
            filesystem,
            flags,
        } => mount::mount(state, pending, [source, target, filesystem], flags),
        Call::Mmap(arguments) => mmap::mmap(state, pending, arguments),
        Call::Seek { fd, offset, whence } => {
            regular::seek(&mut state.descriptors, pending, fd, (offset, whence))
        }
        Call::Truncate { fd, len } => regular::truncate(&mut state.descriptors, pending, fd, len),
        Call::Allocate {
            fd,
            mode,
            offset,
            len,
        } => regular::allocate(&mut state.descriptors, pending, fd, mode, (offset, len)),
        Call::Sync { fd } => regular::sync(&mut state.descriptors, pending, fd),
        Call::AddSeals { fd } => regular::add_seals(&mut state.descriptors, pending, fd),
        Call::GetSeals { fd } => regular::get_seals(&mut state.descriptors, pending, fd),
        Call::GetFlags { fd } => descriptors::flags(&mut state.descriptors, pending, fd),
        Call::Duplicate { fd, least, cloexec } => {
            descriptors::duplicate(&mut state.descriptors, pending, fd, least, cloexec)
        }
        Call::LeaveNamespace => {
            state.agents.end_of(pending.process.id());
            Ok(Answer::Proceed)
        }
        Call::ChangeUser => {
            pending.process.forget_account();
            Ok(Answer::Proceed)
        }
        Call::Close | Call::Exec | Call::Other => Ok(Answer::Proceed),
    }
}

/// The launcher's greeting: shows that its memory can be read and written.
fn greet(process: &Process, address: u64) -> Outcome {
    let mut word = [0; 8];
    memory::read(process, address, &mut word)?;
    if word != greeting::QUESTION {
        let operation = Operation::Ioctl;
        return Err(FileError::NoOperation { operation }.into());
    }
    memory::write(process, address, &greeting::ANSWER)?;
    Ok(Answer::Value(0))
}
