//! The launcher's greeting: an `ioctl` on no descriptor that shows, before the program runs, that
//! the session reaches its memory.

use super::filter::TYPE_BYTE;

/// The request number: our type byte, with a number that no ioctl of Linux has.
pub(crate) const REQUEST: u32 = TYPE_BYTE | 0xfe;
/// What the launcher writes into the buffer.
pub(crate) const QUESTION: [u8; 8] = *b"ioasid ?";
/// What the session answers.
pub(crate) const ANSWER: [u8; 8] = *b"ioasid !";
