//! Questions of the library in the program ([`ioasid_preload::call`]).

use std::os::fd::AsFd;

use ioasid_preload::call::{Kind, Shape};
use ioasid_uapi::error::RegisterError;

use crate::{
    calls::call::RegisterQuestion,
    session::{
        answer::{Answer, Outcome, Pending},
        state::State,
    },
};

/// One question of the library in the program.
///
/// # Errors
/// EINVAL if it cannot be understood; EFAULT if the address is no register; ENOENT if the file is
/// no node.
pub(crate) fn ask(state: &mut State, call: Pending<'_>, question: RegisterQuestion) -> Outcome {
    let shape = Shape::decode(question.shape).ok_or(RegisterError::Malformed {
        shape: question.shape,
    })?;
    match shape.kind {
        Kind::Node => node(state, question),
        Kind::Errands => {
            let page = state.agents.share(call.process)?;
            call.hand_over(&state.program.listener, page.as_fd())
        }
        Kind::Agent => {
            state.agents.welcome(&state.program, call.process)?;
            Ok(Answer::Value(0))
        }
        _ => state
            .registers
            .answer(&state.program, call, question, shape),
    }
}

/// The device number of the node that a file stands for, or was opened by.
fn node(state: &State, question: RegisterQuestion) -> Outcome {
    let identity = (question.value, question.address);
    let opened = state.descriptors.files.get(identity);
    let node = opened.and_then(|file| file.node.as_ref());
    let node = node.map(|node| &node.name);
    let node = node.or_else(|| state.paths.node_at(identity));
    let (major, minor) = node
        .and_then(|node| state.paths.rdev_of(node))
        .ok_or(RegisterError::NoNode)?;
    Ok(Answer::Value(u64::from(major) << 32 | u64::from(minor)))
}
