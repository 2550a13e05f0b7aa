//! Clocks and processors.

use std::time::Instant;

use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

/// CPU time of this thread in nanoseconds: does not run while another thread has the processor.
pub(crate) fn thread_cpu() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time of all threads of this process in nanoseconds.
pub(crate) fn process_cpu() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A clock of the time that passes, in nanoseconds from now on.
pub(crate) fn wall_clock() -> impl Fn() -> u64 {
    let start = Instant::now();
    move || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Tells whether a thread had its processor for itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Presence {
    wall: Instant,
    cpu: u64,
}

impl Presence {
    /// From here on.
    pub(crate) fn start() -> Presence {
        Presence {
            wall: Instant::now(),
            cpu: thread_cpu(),
        }
    }

    /// Whether this thread ran nine tenths of the time since, or more.
    pub(crate) fn held(&self) -> bool {
        let (wall, cpu) = (self.wall.elapsed().as_nanos(), thread_cpu() - self.cpu);
        u128::from(cpu) * 10 >= wall * 9
    }
}

/// The processors that this process may use.
pub(crate) fn processors() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect(),
        Err(_) => vec![0],
    }
}

/// Keeps this thread on one processor; without effect where that is refused.
pub(crate) fn pin(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    // Figures of two threads are noisier without it, not wrong.
    let _ = sched_setaffinity(None, &set);
}
