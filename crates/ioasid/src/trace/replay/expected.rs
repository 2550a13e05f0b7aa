//! What the call that is replayed now did in the trace, and what it has done differently.

use std::{fmt, ops::Range};

use ioasid_core::{memory::PinError, sync::Mutex};
use ioasid_selftest::spec::TEST_CMD;
use ioasid_trace::schema::{Call, Exchange, errors::pin_error};

use super::files::Object;

/// How many bytes of its struct a call fills by itself, if the rest that it writes is what devices
/// wrote at their own pace, or what the program's memory held. The rest is not compared.
fn own_bytes(call: &Call) -> Option<u64> {
    /// More than any struct.
    const STRUCT: u64 = 128;
    if call
        .request
        .is_some_and(|request| request.0 & 0xff == u64::from(TEST_CMD))
    {
        return Some(STRUCT);
    }
    match &*call.name {
        "HWPT_GET_DIRTY_BITMAP" | "IOMMU_DIRTY_PAGES" => Some(STRUCT),
        // Its size and flags.
        "FEATURE" => Some(8),
        _ => None,
    }
}

/// The steps of the traced call that is replayed now, and how many of them the replay has come to.
#[derive(Debug, Default)]
pub(crate) struct Expected(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Each step, until the replay has done it.
    steps: Vec<Option<Exchange>>,
    /// The bytes that are compared, by their addresses; all of them without.
    compared: Option<Range<u64>>,
    difference: Option<Difference>,
    given: Vec<Object>,
}

impl State {
    /// Whether what the call does with memory at `address` is compared.
    fn compares(&self, address: u64) -> bool {
        let compared = self.compared.as_ref();
        compared.is_none_or(|range| range.contains(&address))
    }
}

/// What was different in one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// What the trace has.
    pub(crate) expected: String,
    /// What the replay did.
    pub(crate) got: String,
}

impl Expected {
    /// `call` begins.
    pub(crate) fn begin(&self, call: &Call) {
        let argument = call.argument.map_or(0, |argument| argument.0);
        let compared = own_bytes(call).map(|len| argument..argument.saturating_add(len));
        *self.0.lock() = State {
            steps: call.exchange.iter().cloned().map(Some).collect(),
            compared,
            difference: None,
            given: Vec::new(),
        };
    }

    /// The call has ended: what was different first, and what the program was given.
    pub(crate) fn end(&self) -> (Option<Difference>, Vec<Object>) {
        let mut state = std::mem::take(&mut *self.0.lock());
        let missing = state.steps.iter().flatten().find_map(|step| match step {
            Exchange::Wrote { at, bytes } if state.compares(at.0) => Some(Difference {
                expected: format!("{} bytes written at {at}: {bytes}", bytes.0.len()),
                got: "nothing written there".to_owned(),
            }),
            _ => None,
        });
        (state.difference.take().or(missing), state.given)
    }

    /// Takes the first step that is left of which `pick` makes something.
    pub(crate) fn take<T>(&self, pick: impl Fn(&Exchange) -> Option<T>) -> Option<T> {
        let mut state = self.0.lock();
        state.steps.iter_mut().find_map(|step| {
            let picked = pick(step.as_ref()?)?;
            *step = None;
            Some(picked)
        })
    }

    /// The replay does something that the traced call did not.
    pub(crate) fn unexpected(&self, got: impl fmt::Display) {
        self.differs("nothing of the kind".to_owned(), got.to_string());
    }

    pub(crate) fn differs(&self, expected: String, got: String) {
        let difference = &mut self.0.lock().difference;
        difference.get_or_insert(Difference { expected, got });
    }

    /// Whether what the call does with memory at `address` is compared.
    pub(crate) fn compares(&self, address: u64) -> bool {
        self.0.lock().compares(address)
    }

    /// The program is given `object`.
    pub(crate) fn give(&self, object: Object) {
        self.0.lock().given.push(object);
    }

    /// Where pages were pinned in the trace, by their addresses there; `None` if it does not say.
    pub(crate) fn pin(&self, at: u64, len: u64) -> Option<Result<Vec<(u64, u64)>, PinError>> {
        self.take(|step| match step {
            Exchange::Pinned {
                at: pinned,
                len: bytes,
                extents,
            } if (pinned.0, bytes.0) == (at, len) => {
                let extents = extents.iter();
                Some(Ok(extents
                    .map(|extent| (extent.spa.0, extent.len.0))
                    .collect()))
            }
            Exchange::NotPinned {
                at: pinned,
                len: bytes,
                error,
            } if (pinned.0, bytes.0) == (at, len) => {
                Some(Err(pin_error(error).unwrap_or(PinError::Fault)))
            }
            _ => None,
        })
    }

    /// Whether memory was not there when the traced call looked.
    pub(crate) fn is_not_there(&self, at: u64, len: u64) -> bool {
        let gone = self.take(|step| match step {
            Exchange::NotPinned {
                at: looked,
                len: bytes,
                ..
            } if (looked.0, bytes.0) == (at, len) => Some(()),
            _ => None,
        });
        gone.is_some()
    }
}
