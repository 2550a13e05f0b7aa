//! Clocks and processors.
// UNSAFETY: the clock of another process, for which there is no safe function.
#![allow(unsafe_code)]

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

/// As [`process_cpu`], with that of the children that live.
pub(crate) fn cpu_with_children() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let lists = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let of_children: u64 = lists
        .flat_map(|list| {
            let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
            pids.map(cpu_of).collect::<Vec<_>>()
        })
        .sum();
    process_cpu() + of_children
}

/// CPU time of process `pid` in nanoseconds; 0 if there is none.
fn cpu_of(pid: i32) -> u64 {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both results are live locals.
    let read = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    match read {
        true => time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
        false => 0,
    }
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
