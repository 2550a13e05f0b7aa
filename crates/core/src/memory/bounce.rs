//! Copies between raw bytes and memory that is reached by calls, through a buffer.

use super::raw::{MemoryGone, RawBytes};

/// Fills `dst` by `read`, which gets an offset in it and a buffer. What could be read arrives.
///
/// # Errors
/// [`MemoryGone`] at the first byte that `read` did not read or that could not be written.
pub(super) fn pull(
    dst: RawBytes<'_>,
    buffer: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), MemoryGone>,
) -> Result<(), MemoryGone> {
    each(dst, buffer, |done, bytes, buffer| {
        let result = read(done, buffer);
        let read = result.map_or_else(|gone| gone.done, |()| buffer.len());
        bytes.write(buffer.get(..read).unwrap_or_default())?;
        result
    })
}

/// Gives the bytes of `src` to `write`, with their offset in it.
///
/// # Errors
/// [`MemoryGone`] at the first byte that is gone or that `write` did not write.
pub(super) fn push(
    src: RawBytes<'_>,
    buffer: &mut [u8],
    mut write: impl FnMut(u64, &[u8]) -> Result<(), MemoryGone>,
) -> Result<(), MemoryGone> {
    each(src, buffer, |done, bytes, buffer| {
        let result = bytes.read(buffer);
        let read = result.map_or_else(|gone| gone.done, |()| buffer.len());
        write(done, buffer.get(..read).unwrap_or_default())?;
        result
    })
}

/// Calls `step` with the offset of each piece of `bytes`, the piece and as much of `buffer`.
fn each(
    bytes: RawBytes<'_>,
    buffer: &mut [u8],
    mut step: impl FnMut(u64, RawBytes<'_>, &mut [u8]) -> Result<(), MemoryGone>,
) -> Result<(), MemoryGone> {
    let mut done = 0;
    while done < bytes.len() {
        let len = (bytes.len() - done).min(buffer.len());
        let gone = MemoryGone { done };
        if len == 0 {
            return Err(gone);
        }
        let piece = bytes.slice(done, len).ok_or(gone)?;
        step(done as u64, piece, &mut buffer[..len]).map_err(|gone| gone.after(done))?;
        done += len;
    }
    Ok(())
}

#[cfg(all(test, not(ioasid_shuttle)))]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::{super::OwnMemory, *};

    const PIECE: usize = 1000;
    const LEN: usize = 3 * PIECE + 100;

    /// Memory of which only the first `good` bytes are there.
    fn there(good: usize, offset: u64, len: usize) -> Result<(), MemoryGone> {
        let done = good.saturating_sub(offset as usize).min(len);
        if done == len {
            Ok(())
        } else {
            Err(MemoryGone { done })
        }
    }

    proptest! {
        #[test]
        fn what_is_there_arrives_and_nothing_else_changes(len in 0..=LEN, good in 0..=LEN) {
            let far: Vec<u8> = (0..LEN).map(|at| (at / 7) as u8).collect();
            let near = OwnMemory::new(LEN);
            let expected = if good >= len { Ok(()) } else { Err(MemoryGone { done: good }) };
            let count = good.min(len);

            let bytes = near.bytes().slice(0, len).unwrap();
            let mut buffer = [0xa5; PIECE];
            let pulled = pull(bytes, &mut buffer, |offset, buffer| {
                let result = there(good, offset, buffer.len());
                let read = result.map_or_else(|gone| gone.done, |()| buffer.len());
                buffer[..read].copy_from_slice(&far[offset as usize..][..read]);
                result
            });
            prop_assert_eq!(pulled, expected);
            let mut found = vec![1; LEN];
            near.read(0, &mut found);
            prop_assert!(found[..count] == far[..count]);
            prop_assert!(found[count..].iter().all(|&byte| byte == 0));

            near.write(0, &far);
            let taken = RefCell::new(vec![0; LEN]);
            let pushed = push(bytes, &mut buffer, |offset, buffer| {
                let result = there(good, offset, buffer.len());
                let written = result.map_or_else(|gone| gone.done, |()| buffer.len());
                taken.borrow_mut()[offset as usize..][..written].copy_from_slice(&buffer[..written]);
                result
            });
            prop_assert_eq!(pushed, expected);
            let taken = taken.into_inner();
            prop_assert!(taken[..count] == far[..count]);
            prop_assert!(taken[count..].iter().all(|&byte| byte == 0));
        }
    }
}
