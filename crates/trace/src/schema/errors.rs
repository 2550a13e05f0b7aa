//! The words for errors of memory and descriptors, which a replay turns into errors again.

use ioasid_core::{host::FdError, memory::PinError};

const DESCRIPTORS: [(&str, FdError); 7] = [
    ("not-open", FdError::NotOpen),
    ("wrong-type", FdError::WrongType),
    ("beyond-end", FdError::BeyondEnd),
    ("no-memory", FdError::NoMemory),
    ("outside-buffer", FdError::OutsideBuffer),
    ("revoked", FdError::Revoked),
    ("none-free", FdError::NoneFree),
];

const PINS: [(&str, PinError); 4] = [
    ("fault", PinError::Fault),
    ("no-memory", PinError::NoMemory),
    ("out-of-range", PinError::OutOfRange),
    ("revoked", PinError::Revoked),
];

/// The word for an error of a descriptor.
pub fn descriptor_word(error: FdError) -> &'static str {
    word(&DESCRIPTORS, error)
}

/// The error that a word stands for.
pub fn descriptor_error(word: &str) -> Option<FdError> {
    error(&DESCRIPTORS, word)
}

/// The word for an error of pinning.
pub fn pin_word(error: PinError) -> &'static str {
    word(&PINS, error)
}

/// The error that a word stands for.
pub fn pin_error(word: &str) -> Option<PinError> {
    error(&PINS, word)
}

fn word<E: Copy + PartialEq>(words: &[(&'static str, E)], error: E) -> &'static str {
    let found = words.iter().find(|(_, known)| *known == error);
    found.map_or("other", |(word, _)| word)
}

fn error<E: Copy>(words: &[(&str, E)], word: &str) -> Option<E> {
    let found = words.iter().find(|(known, _)| *known == word);
    found.map(|(_, error)| *error)
}
