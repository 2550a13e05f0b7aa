//! Races between an engine and whoever takes its translation away. `IOASID_RACES` sets the number of
//! races (100 000 by default).
#![cfg(not(ioasid_shuttle))]

use std::{
    env,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use ioasid_core::{Pasid, memory::OwnPages};
use ioasid_iommu::{DmaPort, Iommu, Stop};

use super::Random;

pub const IOVA: u64 = 0x40_0000;
pub const LEN: usize = 8192;
/// In one race of this many the engine is waited for, so that both outcomes occur on any machine.
pub const WAITED: u64 = 64;

pub fn races() -> u64 {
    races_or(100_000)
}

/// The number of races, with a default of one's own.
pub fn races_or(default: u64) -> u64 {
    env::var("IOASID_RACES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// The requests of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Entered {
    pub pasid: Option<Pasid>,
    /// Under guards that may block.
    pub blocking: bool,
}

impl From<Option<Pasid>> for Entered {
    fn from(pasid: Option<Pasid>) -> Self {
        Entered {
            pasid,
            blocking: false,
        }
    }
}

/// Copies to [`IOVA`] without end, fault or not, and counts its rounds.
pub struct Engine {
    pub rounds: AtomicU64,
    pub stop: AtomicBool,
}

impl Engine {
    pub fn new() -> Arc<Self> {
        Arc::new(Engine {
            rounds: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    fn run(&self, mut port: DmaPort, requests: Entered) {
        while !self.stop.load(Ordering::Acquire) {
            let mut guard = match requests.blocking {
                true => port.enter_blocking(requests.pasid),
                false => port.enter(requests.pasid),
            };
            let transfer = guard.fill(IOVA, u64::MAX, LEN as u64);
            drop(guard);
            assert!(!matches!(transfer.stop, Some(Stop::Remote(_))));
            self.rounds.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Returns when `count` rounds that began after the call have ended.
    pub fn wait_for_rounds(&self, count: u64) {
        // The round that is under way began before.
        let seen = self.rounds.load(Ordering::Acquire);
        while self.rounds.load(Ordering::Acquire) < seen + 1 + count {
            thread::yield_now();
        }
    }
}

/// Ends an engine also when an assertion ends the test.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs `races` rounds of: give the engine the memory with `begin`, take it away with `end`, mark
/// the memory, and see that the mark stays while the engine goes on.
pub fn race(
    iommu: &Arc<Iommu>,
    port: impl Fn() -> DmaPort + Sync,
    requests: impl Into<Entered>,
    races: u64,
    memory: &OwnPages,
    begin: impl Fn(),
    end: impl Fn(),
) {
    // One race at a time: they want a CPU for each side.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (engine, requests) = (Engine::new(), requests.into());
    let mut hits = 0;
    thread::scope(|scope| {
        let running = scope.spawn(|| engine.run(port(), requests));
        let _stop = StopOnDrop(&engine.stop);
        let mut random = Random(races | 1);
        for round in 0..races {
            memory.memory().write(0, &[0; LEN]);
            begin();
            for _ in 0..random.below(200) {
                std::hint::spin_loop();
            }
            if round % WAITED == 0 {
                // The first finds the translation, the second may use what was kept of it.
                engine.wait_for_rounds(2);
            }
            end();
            let mut found = vec![0; LEN];
            memory.memory().read(0, &mut found);
            hits += u64::from(found.contains(&0xff));
            memory.memory().write(0, &[0x55; LEN]);
            // What was in flight would land now. A whole round of the engine is waited for only now
            // and then: where CPUs are few it takes a time slice. Once where it has just kept what it found:
            // it uses that no more.
            if round % (WAITED / 2) == 0 {
                engine.wait_for_rounds(1);
            }
            for _ in 0..random.below(2000) {
                std::hint::spin_loop();
            }
            memory.memory().read(0, &mut found);
            assert!(
                found.iter().all(|byte| *byte == 0x55),
                "round {round}: written after the call returned"
            );
            assert!(!running.is_finished());
        }
    });
    assert!(hits >= races / WAITED, "the engine did reach the memory");
    assert_eq!(iommu.grace().retired_items(), 0, "nothing is left behind");
}
