//! What the program wants done on the signals that we use.
//!
//! The kernel has our handler for them. What the program sets is kept here, is what it reads back,
//! and is done when a signal is not ours.

use core::sync::atomic::{
    AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

use crate::{
    own,
    sys::{self, KernelAction},
};

/// The signals that we may use.
const SIGNALS: [i32; 3] = [sys::SIGBUS, sys::SIGILL, sys::SIGSEGV];

/// Those that we do use: bit N-1 for signal N.
static HOOKED: AtomicU64 = AtomicU64::new(0);

static SLOTS: [Slot; 3] = [const { Slot::new() }; 3];

/// How often a reader looks again while another thread writes. A writer that is never done was
/// another thread of the parent at the moment of a `fork`.
const PATIENCE: u32 = 1 << 16;

/// One action: a sequence lock whose readers and writers give up waiting.
#[derive(Debug)]
struct Slot {
    /// Odd while it is written.
    sequence: AtomicU32,
    handler: AtomicUsize,
    flags: AtomicU64,
    mask: AtomicU64,
    restorer: AtomicUsize,
}

impl Slot {
    const fn new() -> Self {
        Slot {
            sequence: AtomicU32::new(0),
            handler: AtomicUsize::new(sys::DEFAULT),
            flags: AtomicU64::new(0),
            mask: AtomicU64::new(0),
            restorer: AtomicUsize::new(0),
        }
    }

    fn read(&self) -> KernelAction {
        let mut found = KernelAction::default();
        for _ in 0..PATIENCE {
            let before = self.sequence.load(Acquire);
            found = KernelAction {
                handler: self.handler.load(Relaxed),
                flags: self.flags.load(Relaxed),
                restorer: self.restorer.load(Relaxed),
                mask: self.mask.load(Relaxed),
            };
            fence(Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Relaxed) == before {
                break;
            }
            core::hint::spin_loop();
        }
        found
    }

    fn write(&self, action: &KernelAction) {
        let mut now = self.sequence.load(Relaxed);
        for _ in 0..PATIENCE {
            if now.is_multiple_of(2) {
                match self
                    .sequence
                    .compare_exchange(now, now | 1, Acquire, Relaxed)
                {
                    Ok(_) => break,
                    Err(other) => now = other,
                }
            } else {
                core::hint::spin_loop();
                now = self.sequence.load(Relaxed);
            }
        }
        fence(Release);
        self.handler.store(action.handler, Relaxed);
        self.flags.store(action.flags, Relaxed);
        self.restorer.store(action.restorer, Relaxed);
        self.mask.store(action.mask, Relaxed);
        self.sequence.store((now | 1).wrapping_add(1), Release);
    }
}

/// Bit of a signal in a set.
pub fn bit(signal: i32) -> u64 {
    1u64.checked_shl((signal - 1).cast_unsigned()).unwrap_or(0)
}

/// The signals that are never to be blocked: while one is, the kernel kills at a fault.
pub fn hooked() -> u64 {
    HOOKED.load(Relaxed)
}

/// Whether we use this signal.
pub fn is_hooked(signal: i32) -> bool {
    signal > 0 && hooked() & bit(signal) != 0
}

fn slot(signal: i32) -> Option<&'static Slot> {
    let index = SIGNALS.iter().position(|its| *its == signal)?;
    SLOTS.get(index)
}

/// Uses this signal from now on; what the program (or its parent) had set is kept.
pub fn hook(signal: i32, handler: usize) {
    if let Ok(old) = sys::sigaction(signal, None)
        && let Some(slot) = slot(signal)
    {
        slot.write(&old);
        HOOKED.fetch_or(bit(signal), Relaxed);
        HANDLER.store(handler, Relaxed);
        install(signal, &old);
    }
}

static HANDLER: AtomicUsize = AtomicUsize::new(sys::DEFAULT);

/// Everything but the signals of faults: a handler of the program's must not come in between.
const WHILE_HANDLED: u64 = !(1 << 10 | 1 << 6 | 1 << 3 | 1 << 7 | 1 << 4);

/// Makes our handler the kernel's, with what of the program's action the kernel itself looks at.
fn install(signal: i32, wanted: &KernelAction) {
    let ours = KernelAction {
        handler: HANDLER.load(Relaxed),
        flags: sys::flag::SIGINFO
            | sys::flag::ONSTACK
            | sys::flag::NODEFER
            | sys::flag::RESTORER
            | wanted.flags & sys::flag::RESTART,
        restorer: sys::restorer(),
        mask: WHILE_HANDLED,
    };
    // Fails for no signal that we use.
    let _ = sys::sigaction(signal, Some(&ours));
}

/// What the program has set.
pub fn get(signal: i32) -> KernelAction {
    slot(signal).map_or_else(KernelAction::default, Slot::read)
}

/// The program's action is the default from now on (`SA_RESETHAND`).
pub fn reset(signal: i32) {
    if let Some(slot) = slot(signal) {
        slot.write(&KernelAction::default());
    }
}

/// Makes the default the kernel's own action: what comes next ends the program.
pub fn give_up(signal: i32) {
    let _ = sys::sigaction(signal, Some(&KernelAction::default()));
}

/// The program's call of `sigaction` for any signal.
///
/// # Errors
/// The errno.
pub fn set(signal: i32, new: Option<&KernelAction>) -> Result<KernelAction, i32> {
    let new = new.map(|new| KernelAction {
        flags: new.flags | sys::flag::RESTORER,
        restorer: sys::restorer(),
        mask: new.mask & !hooked(),
        ..*new
    });
    let Some(slot) = slot(signal).filter(|_| is_hooked(signal)) else {
        return sys::sigaction(signal, new.as_ref());
    };
    if own::is_borrowed() {
        let old = slot.read();
        if let Some(new) = &new {
            sys::sigaction(signal, Some(new))?;
        }
        return Ok(old);
    }
    // A handler that runs in the middle of the write would wait for it.
    let before = sys::sigprocmask(sys::SETMASK, Some(u64::MAX));
    let old = slot.read();
    if let Some(new) = &new {
        slot.write(new);
        install(signal, new);
    }
    if let Ok(before) = before {
        let _ = sys::sigprocmask(sys::SETMASK, Some(before));
    }
    Ok(old)
}
