//! What this machine can do at most, measured first: every other figure stands on these.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    clock::{self, Presence, thread_cpu},
    measure::{Effort, Quartiles, number},
    opaque::opaque,
};

/// One line: round trip between two cores, copies, cache misses.
pub(crate) fn line(effort: Effort) -> String {
    let round_trip = match core_to_core(Duration::from_millis(effort.slot / 400_000)) {
        Some(nanoseconds) => format!("{} ns", number(nanoseconds)),
        None => "unknown (busy, or one processor)".to_owned(),
    };
    format!(
        "host: core to core and back {round_trip}; memcpy GB/s: 4 KiB hot {}, 64 KiB cold {}, \
         1 MiB cold {}; load after load: 256 KiB {} ns, 8 MiB {} ns, 256 MiB {} ns",
        number(copy_rate(4 << 10, 8 << 10, effort)),
        number(copy_rate(64 << 10, 128 << 20, effort)),
        number(copy_rate(1 << 20, 128 << 20, effort)),
        number(chase(256 << 10, effort)),
        number(chase(8 << 20, effort)),
        number(chase(256 << 20, effort)),
    )
}

/// Nanoseconds from one core to another and back (median of short windows); `None` with one
/// processor, or if the two threads did not run at the same time.
pub(crate) fn core_to_core(time: Duration) -> Option<f64> {
    let processors = clock::processors();
    let (&first, &second) = (processors.first()?, processors.get(1)?);
    const STOP: u64 = u64::MAX;
    let ball = Arc::new(Padded(AtomicU64::new(0)));
    let there = Arc::clone(&ball);
    let partner = thread::spawn(move || {
        clock::pin(second);
        let presence = Presence::start();
        loop {
            match there.0.load(Ordering::Acquire) {
                STOP => return presence.held(),
                value if value % 2 == 1 => there.0.store(value + 1, Ordering::Release),
                _ => std::hint::spin_loop(),
            }
        }
    });
    let measured = thread::spawn(move || {
        clock::pin(first);
        let presence = Presence::start();
        let deadline = Instant::now() + time;
        let mut windows = Vec::new();
        let mut value = 0;
        while Instant::now() < deadline {
            let before = Instant::now();
            for _ in 0..256 {
                ball.0.store(value + 1, Ordering::Release);
                while ball.0.load(Ordering::Acquire) != value + 2 {
                    std::hint::spin_loop();
                }
                value += 2;
            }
            windows.push(before.elapsed().as_nanos() as f64 / 256.0);
        }
        ball.0.store(STOP, Ordering::Release);
        let median = Quartiles::of(windows).median;
        presence.held().then_some(median)
    });
    let result = measured.join().ok().flatten();
    let together = partner.join().unwrap_or(false);
    result.filter(|_| together)
}

#[repr(align(128))]
struct Padded(AtomicU64);

/// GB/s of `copy_from_slice` in pieces of `piece` bytes that walk over `span` bytes.
fn copy_rate(piece: usize, span: usize, effort: Effort) -> f64 {
    // Both begin at a page: how fast a copy is depends on where its sides lie modulo the page.
    const PAGE: usize = 4096;
    let (mut source, mut target) = (vec![1_u8; span + PAGE], vec![2_u8; span + PAGE]);
    let start = |memory: &[u8]| memory.as_ptr().align_offset(PAGE);
    let (from, to) = (start(&source), start(&target));
    let (source, target) = (&mut source[from..], &mut target[to..]);
    let (before, mut bytes, mut offset) = (thread_cpu(), 0, 0);
    let mut spent = 0;
    while spent < 2 * effort.slot {
        for _ in 0..16 {
            target[offset..offset + piece].copy_from_slice(&source[offset..offset + piece]);
            offset = (offset + piece) % span;
            bytes += piece;
        }
        opaque(u64::from(target[offset]));
        spent = thread_cpu() - before;
    }
    bytes as f64 / spent as f64
}

/// Nanoseconds of a load whose address comes from the load before, in random order over `span`
/// bytes, one load per cache line.
fn chase(span: usize, effort: Effort) -> f64 {
    const LINE: usize = 8;
    let lines = span / 64;
    // One cycle through all lines: a step of an odd number, spread by a bijection of the index.
    let mix = |index: usize| (index.wrapping_mul(0x9e37_79b1) ^ (index >> 7)) & (lines - 1);
    let mut order: Vec<u32> = (0..lines as u32).collect();
    for index in (1..lines).rev() {
        order.swap(index, mix(index) % (index + 1));
    }
    let mut next = vec![0_u64; lines * LINE];
    for (index, &line) in order.iter().enumerate() {
        let after = order[(index + 1) % lines];
        next[line as usize * LINE] = u64::from(after);
    }
    let (before, mut loads, mut at) = (thread_cpu(), 0, 0);
    let mut spent = 0;
    while spent < 2 * effort.slot {
        for _ in 0..1024 {
            at = opaque(next[at as usize * LINE]);
        }
        loads += 1024;
        spent = thread_cpu() - before;
    }
    spent as f64 / f64::from(loads)
}
