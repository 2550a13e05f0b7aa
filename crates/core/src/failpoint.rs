//! Out of memory, on purpose.
//!
//! Every place of the object model that takes memory in a kernel, and so can fail there, says so by
//! [`allocation`]. That is always granted, but while a countdown runs on the thread
//! ([`counting_down`]): then the allocation at which it reaches 0 is refused, and only that one. A
//! test that repeats a sequence of calls with countdowns from 1 up, until one is left over, has seen
//! each of its allocations fail once. It is the same idea as `fail-nth` of the kernel's fault injection
//! (Documentation/fault-injection).
//!
//! Nothing here is armed in a machine that programs use; a call costs the look at one number of the
//! thread. What ends something (an unmap, a detach, a destroy) never asks: it cannot fail.

use std::cell::Cell;

thread_local! {
    static COUNTDOWN: Cell<u32> = const { Cell::new(0) };
}

/// An allocation was refused (ENOMEM).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory")]
pub struct OutOfMemory;

/// Memory is taken here.
///
/// # Errors
/// [`OutOfMemory`] if this is where the thread's countdown ends.
#[inline]
pub fn allocation() -> Result<(), OutOfMemory> {
    let left = COUNTDOWN.get();
    if left == 0 {
        return Ok(());
    }
    COUNTDOWN.set(left - 1);
    if left == 1 { Err(OutOfMemory) } else { Ok(()) }
}

/// Does `work` while the `countdown`-th allocation of this thread from now on is to fail; none if it
/// is 0. Returns what is left of the countdown too: 0 if the allocation was reached.
pub fn counting_down<R>(countdown: u32, work: impl FnOnce() -> R) -> (R, u32) {
    /// Stops the countdown, also when `work` panics.
    struct Disarm;
    impl Drop for Disarm {
        fn drop(&mut self) {
            COUNTDOWN.set(0);
        }
    }
    let disarm = Disarm;
    COUNTDOWN.set(countdown);
    let result = work();
    let left = COUNTDOWN.get();
    drop(disarm);
    (result, left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_allocation_fails_and_no_other() {
        let three = || [allocation(), allocation(), allocation()];
        let refused = Err(OutOfMemory);
        assert_eq!(counting_down(2, three), ([Ok(()), refused, Ok(())], 0));
        assert_eq!(counting_down(5, three), ([Ok(()); 3], 2));
        assert_eq!(counting_down(0, three), ([Ok(()); 3], 0));
        assert_eq!(three(), [Ok(()); 3]);
    }

    #[test]
    fn a_countdown_is_of_one_thread_and_ends_with_a_panic() {
        let panics = || counting_down(2, || panic!("as a test"));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!([allocation(), allocation()], [Ok(()); 2]);
        let (other, left) = counting_down(1, || std::thread::spawn(allocation).join());
        assert_eq!((other.ok(), left), (Some(Ok(())), 1));
    }
}
