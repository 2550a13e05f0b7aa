//! Memory that may block: descriptors that need it run on their client's worker, and only that
//! client waits.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::{
    Arc, Weak,
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use common::*;
use ioasid_core::{
    Prot,
    host::{Job, Worker, WorkerStopped},
    memory::{Backing, Memory, MemoryGone, RemoteMemory},
    spa::SpaRange,
    sync::{Condvar, Mutex},
};
use ioasid_ioat::spec::{ChanErr, ChannelStatus, Descriptor, registers as reg};
use ioasid_vfio::DeviceModel;

const SIZE: u64 = 4 << 20;
/// Where the other process's memory is mapped.
const REMOTE: u64 = 0x1_0000_0000;

/// A thread that runs jobs until it is stopped.
#[derive(Debug)]
struct Thread {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    /// Jobs that it was given.
    given: AtomicUsize,
}

impl Worker for Thread {
    fn submit(&self, job: Job) -> Result<(), WorkerStopped> {
        self.given.fetch_add(1, Ordering::Relaxed);
        let jobs = self.jobs.lock();
        let sent = jobs.as_ref().ok_or(WorkerStopped)?.send(job);
        sent.map_err(|_| WorkerStopped)
    }
}

/// Another process's memory: accesses wait while the gate is shut.
#[derive(Debug)]
struct Process {
    worker: Arc<dyn Worker>,
    bytes: Mutex<Vec<u8>>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    shut: bool,
    dead: bool,
    waiting: usize,
    thread: Option<std::thread::ThreadId>,
}

impl Process {
    fn pass(&self) -> Result<(), MemoryGone> {
        let mut gate = self.gate.lock();
        gate.thread = Some(std::thread::current().id());
        gate.waiting += 1;
        while gate.shut && !gate.dead {
            gate = self.changed.wait(gate);
        }
        gate.waiting -= 1;
        match gate.dead {
            true => Err(MemoryGone { done: 0 }),
            false => Ok(()),
        }
    }

    fn set(&self, set: impl FnOnce(&mut Gate)) {
        set(&mut self.gate.lock());
        self.changed.notify_all();
    }

    fn blocked(&self) -> bool {
        self.gate.lock().waiting == 1
    }
}

impl RemoteMemory for Process {
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.pass()?;
        dst.copy_from_slice(&self.bytes.lock()[offset as usize..][..dst.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.pass()?;
        self.bytes.lock()[offset as usize..][..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }
}

impl Backing for Process {
    fn size(&self) -> u64 {
        SIZE
    }

    fn memory(&self) -> Memory<'_> {
        Memory::Remote(self)
    }
}

struct Setup {
    whole: Whole,
    process: Arc<Process>,
    thread: Arc<Thread>,
    _range: SpaRange,
}

/// A device whose domain maps another process's memory.
fn setup() -> Setup {
    let whole = Whole::new();
    let (sender, receiver) = mpsc::channel::<Job>();
    std::thread::spawn(move || receiver.into_iter().for_each(|job| job()));
    let thread = Arc::new(Thread {
        jobs: Mutex::new(Some(sender)),
        given: AtomicUsize::new(0),
    });
    let process = Arc::new(Process {
        worker: thread.clone(),
        bytes: Mutex::new(pattern(SIZE as usize, 9)),
        gate: Mutex::default(),
        changed: Condvar::new(),
    });
    let range = whole.iommu.space().register(process.clone(), 0).unwrap();
    let domain = &whole.domain;
    domain.map(REMOTE, range.start(), SIZE, Prot::RW).unwrap();
    Setup {
        whole,
        process,
        thread,
        _range: range,
    }
}

impl Setup {
    /// Channel 1 copies `count` times from memory that does not answer.
    fn block(&self, count: u16) -> common::Driver {
        self.process.set(|gate| gate.shut = true);
        let driver = self.whole.driver.with_channel(1);
        driver.set_completion(WORD + 64);
        driver.control(RUN);
        let chain = CHAIN + 0x1000;
        let copy = reporting(Descriptor::copy(DST, REMOTE, 4096)).with_next(chain);
        self.whole.area.write(chain, &copy.to_bytes());
        driver.start(chain, count);
        eventually("its worker to block", || self.process.blocked());
        driver
    }
}

#[test]
fn chain_data_and_completion_word_may_all_be_remote() {
    let setup = setup();
    let driver = &setup.whole.driver;
    let size = 222_222;
    let chain: Vec<_> = (0..5_u64)
        .map(|n| {
            let descriptor = Descriptor::copy(REMOTE + 0x20_0001, REMOTE + 0x10_0000 + n, size);
            reporting(descriptor).with_next(REMOTE + (n + 1) * 64)
        })
        .collect();
    for (n, descriptor) in chain.iter().enumerate() {
        setup.process.bytes.lock()[n * 64..][..64].copy_from_slice(&descriptor.to_bytes());
    }
    driver.set_completion(REMOTE + 0x8000);
    driver.start(REMOTE, 5);
    driver.wait_for(ChannelStatus::Done);
    let bytes = setup.process.bytes.lock();
    let copied = &bytes[0x20_0001..][..size as usize];
    assert!(copied == &bytes[0x10_0004..][..size as usize]);
    let word = ((REMOTE + 256) | 1).to_le_bytes();
    assert_eq!(bytes[0x8000..][..8], word);
    drop(bytes);
    // All of it was done by the client's own thread.
    let (sender, receiver) = mpsc::channel();
    let job = move || sender.send(std::thread::current().id()).unwrap();
    setup.thread.submit(Box::new(job)).unwrap();
    let thread = setup.process.gate.lock().thread;
    assert_eq!(thread, Some(receiver.recv().unwrap()));
}

#[test]
fn a_worker_goes_on_with_the_chain_and_lets_others_of_its_client_in_between() {
    const COUNT: u64 = 80;
    let setup = setup();
    let driver = &setup.whole.driver;
    for n in 0..COUNT {
        let (to, from) = (REMOTE + 0x20_0000 + n * 64, REMOTE + 0x10_0000 + n * 64);
        let copy = reporting(Descriptor::copy(to, from, 64)).with_next(REMOTE + (n + 1) * 64);
        setup.process.bytes.lock()[n as usize * 64..][..64].copy_from_slice(&copy.to_bytes());
    }
    driver.set_completion(REMOTE + 0x8000);
    driver.start(REMOTE, COUNT as u16);
    driver.wait_for(ChannelStatus::Done);
    let bytes = setup.process.bytes.lock();
    let len = COUNT as usize * 64;
    assert!(bytes[0x20_0000..][..len] == bytes[0x10_0000..][..len]);
    // 32, 32 and 16 of them in a row.
    assert_eq!(setup.thread.given.load(Ordering::Relaxed), 3);
}

#[test]
fn a_process_that_does_not_answer_delays_no_other_channel() {
    let setup = setup();
    let blocked = setup.block(40);
    for _ in 0..100 {
        let fills = [Descriptor::copy(DST, SRC, 0x1_0000); 4];
        assert_eq!(setup.whole.run(&fills).into_bits(), 0);
    }
    assert!(blocked.status().is(ChannelStatus::Active));
    assert_eq!(setup.whole.area.word(WORD + 64).into_bits(), 0);
    setup.process.set(|gate| gate.shut = false);
    blocked.wait_for(ChannelStatus::Done);
    assert_eq!(blocked.errors().into_bits(), 0);
}

#[test]
fn a_reset_shows_until_the_blocked_copy_has_ended_and_nothing_is_written_then() {
    let setup = setup();
    let blocked = setup.block(40);
    blocked.command(RESET);
    assert_eq!(blocked.read::<1>(reg::CHANCMD), u64::from(RESET));
    // Its doorbell has no effect meanwhile, and what blocks completes nothing any more.
    blocked.start(CHAIN, 1);
    setup.process.set(|gate| gate.shut = false);
    eventually("the reset", || blocked.read::<1>(reg::CHANCMD) == 0);
    assert_eq!(blocked.status().into_bits(), 3);
    let before = setup.whole.area.read(WORD, 0x40_0000);
    std::thread::yield_now();
    assert!(setup.whole.area.read(WORD, 0x40_0000) == before);
}

#[test]
fn a_suspend_waits_for_the_blocked_descriptor() {
    let setup = setup();
    let blocked = setup.block(40);
    blocked.command(SUSPEND);
    assert!(blocked.status().is(ChannelStatus::Active));
    setup.process.set(|gate| gate.shut = false);
    blocked.wait_for(ChannelStatus::Suspended);
    assert_eq!(blocked.status().completed_address(), CHAIN + 0x1000);
}

#[test]
fn a_process_that_ends_halts_its_channel() {
    let setup = setup();
    let blocked = setup.block(1);
    setup.process.set(|gate| gate.dead = true);
    blocked.wait_for(ChannelStatus::Halted);
    assert_eq!(blocked.errors(), ChanErr::new().with_read_data(true));
}

#[test]
fn a_worker_that_is_gone_halts_its_channel_without_a_trace() {
    let setup = setup();
    drop(setup.thread.jobs.lock().take());
    let errors = setup
        .whole
        .run(&[reporting(Descriptor::copy(DST, REMOTE, 64))]);
    assert_eq!(errors, ChanErr::new().with_read_data(true));
    assert_eq!(setup.whole.area.word(WORD).into_bits(), 0);
    assert_eq!(setup.whole.run(&[Descriptor::null()]).into_bits(), 0);
}

#[test]
fn a_dropped_device_frees_itself_once_the_blocked_copy_ends() {
    let setup = setup();
    let blocked = setup.block(40);
    let Setup { whole, process, .. } = setup;
    let device: Weak<_> = Arc::downgrade(whole.ioat.device());
    let Whole { ioat, driver, .. } = whole;
    drop((ioat, driver, blocked));
    process.set(|gate| gate.shut = false);
    eventually("the last job to go", || process.gate.lock().waiting == 0);
    // What is left are the machine's own references, not the job's.
    eventually("the device's own references", || device.strong_count() <= 2);
}

#[test]
fn clearing_bus_master_waits_for_the_copy_that_blocks_and_holds_the_rest() {
    let setup = setup();
    let blocked = setup.block(40);
    let (whole, process) = (&setup.whole, &setup.process);
    let function = whole.ioat.function();
    std::thread::scope(|scope| {
        let clear = scope.spawn(|| function.write_config(4, &[2]).unwrap());
        eventually("the bit to be cleared", || !function.bus_master());
        process.set(|gate| gate.shut = false);
        let _ = clear.join().unwrap();
    });
    assert_eq!(process.gate.lock().waiting, 0, "what blocked has ended");
    let before = whole.area.read(WORD, 0x40_0000);
    process.set(|gate| gate.thread = None);
    std::thread::yield_now();
    assert!(whole.area.read(WORD, 0x40_0000) == before);
    assert!(process.gate.lock().thread.is_none(), "no thread has come");
    // A suspend does not wait for the descriptor, which goes on after a resume.
    assert!(blocked.status().is(ChannelStatus::Active));
    blocked.command(SUSPEND);
    // Once the worker has given the descriptor back.
    blocked.wait_for(ChannelStatus::Suspended);
    let _ = function.write_config(4, &[6]).unwrap();
    assert!(blocked.status().is(ChannelStatus::Suspended));
    blocked.command(common::RESUME);
    blocked.wait_for(ChannelStatus::Done);
    assert_eq!(blocked.errors().into_bits(), 0);
    // A new chain in the place of one that was suspended in the middle of a descriptor.
    let blocked = setup.block(1);
    std::thread::scope(|scope| {
        let clear = scope.spawn(|| function.write_config(4, &[2]).unwrap());
        eventually("the bit to be cleared", || !function.bus_master());
        process.set(|gate| gate.shut = false);
        let _ = clear.join().unwrap();
    });
    blocked.command(SUSPEND);
    // In the middle: with bus mastering the worker would end the descriptor.
    blocked.wait_for(ChannelStatus::Suspended);
    let _ = function.write_config(4, &[6]).unwrap();
    let chain = [reporting(Descriptor::fill(DST, 7, 64))];
    whole.area.write_chain(CHAIN + 0x2000, &chain);
    blocked.start(CHAIN + 0x2000, 1);
    blocked.wait_for(ChannelStatus::Done);
    assert_eq!(blocked.status().completed_address(), CHAIN + 0x2000);
}
