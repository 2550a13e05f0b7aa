//! Memory that may block: descriptors that need it run on their client's worker, and only that
//! client waits.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::{Arc, Weak, mpsc};

use common::*;
use ioasid_core::{
    Prot,
    host::{Job, Worker, WorkerStopped},
    memory::{Backing, InnerCopy, Memory, MemoryGone, RemoteMemory, RemotePlace},
    spa::SpaRange,
    sync::{Condvar, Mutex},
};
use ioasid_dsa::spec::{Command, CompletionRecord, Descriptor, Opcode, Status, registers as reg};
use ioasid_vfio::DeviceModel;

const SIZE: u64 = 4 << 20;
/// Where the other process's memory is mapped.
const REMOTE: u64 = 0x1_0000_0000;
const SRC: u64 = Area::BASE + 0x10_0000;
const DST: u64 = Area::BASE + 0x40_0000;

/// A thread that runs jobs until it is stopped.
#[derive(Debug)]
struct Thread {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
}

impl Thread {
    fn start() -> Arc<Self> {
        let (sender, receiver) = mpsc::channel::<Job>();
        std::thread::spawn(move || receiver.into_iter().for_each(|job| job()));
        Arc::new(Thread {
            jobs: Mutex::new(Some(sender)),
        })
    }

    fn stop(&self) {
        drop(self.jobs.lock().take());
    }
}

impl Worker for Thread {
    fn submit(&self, job: Job) -> Result<(), WorkerStopped> {
        let jobs = self.jobs.lock();
        let sender = jobs.as_ref().ok_or(WorkerStopped)?;
        sender.send(job).map_err(|_| WorkerStopped)
    }
}

/// Another process's memory: reads and writes wait while it does not answer.
#[derive(Debug)]
struct Process {
    worker: Arc<dyn Worker>,
    state: Mutex<ProcessState>,
    changed: Condvar,
}

#[derive(Debug)]
struct ProcessState {
    bytes: Vec<u8>,
    answers: bool,
    alive: bool,
    waiting: usize,
    served_by: Option<std::thread::ThreadId>,
    /// How many copies were made at once, each time, where something makes them in place.
    in_place: Option<Vec<usize>>,
    /// Copies in place end here.
    end: usize,
}

impl Process {
    fn access(&self, access: impl FnOnce(&mut [u8])) -> Result<(), MemoryGone> {
        let mut state = self.state.lock();
        state.served_by = Some(std::thread::current().id());
        state.waiting += 1;
        while !state.answers && state.alive {
            state = self.changed.wait(state);
        }
        state.waiting -= 1;
        if !state.alive {
            return Err(MemoryGone { done: 0 });
        }
        access(&mut state.bytes);
        Ok(())
    }

    fn set(&self, set: impl FnOnce(&mut ProcessState)) {
        set(&mut self.state.lock());
        self.changed.notify_all();
    }
}

impl RemoteMemory for Process {
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let at = offset as usize;
        self.access(|bytes| dst.copy_from_slice(&bytes[at..at + dst.len()]))
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let at = offset as usize;
        self.access(|bytes| bytes[at..at + src.len()].copy_from_slice(src))
    }

    fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }

    fn place(&self, offset: u64) -> Option<RemotePlace> {
        Some(RemotePlace {
            space: 1,
            address: offset,
        })
    }

    fn copy_inside(&self, copies: &mut [InnerCopy]) -> bool {
        let mut state = self.state.lock();
        let ProcessState {
            bytes,
            in_place,
            end,
            ..
        } = &mut *state;
        let Some(in_place) = in_place else {
            return false;
        };
        in_place.push(copies.len());
        for copy in copies {
            let (dst, src) = (copy.dst as usize, copy.src as usize);
            let len = (copy.len as usize).min(end.saturating_sub(dst));
            bytes.copy_within(src..src + len, dst);
            copy.done = len as u64;
            if copy.done != copy.len {
                break;
            }
        }
        true
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
    range: SpaRange,
}

/// A device whose queue 1 is enabled too, and whose domain maps another process's memory.
fn setup() -> Setup {
    let whole = Whole::new(64);
    assert_eq!(whole.driver.command(Command::EnableWq, 1), 0);
    let thread = Thread::start();
    let process = Arc::new(Process {
        worker: thread.clone(),
        state: Mutex::new(ProcessState {
            bytes: pattern(SIZE as usize, 9),
            answers: true,
            alive: true,
            waiting: 0,
            served_by: None,
            in_place: None,
            end: SIZE as usize,
        }),
        changed: Condvar::new(),
    });
    let range = whole.iommu.space().register(process.clone(), 0).unwrap();
    whole
        .domain
        .map(REMOTE, range.start(), SIZE, Prot::RW)
        .unwrap();
    Setup {
        whole,
        process,
        thread,
        range,
    }
}

fn success() -> CompletionRecord {
    CompletionRecord {
        status: Status::Success as u8,
        ..CompletionRecord::default()
    }
}

#[test]
fn remote_memory_is_copied_exactly_and_by_its_clients_worker() {
    let Setup {
        whole,
        process,
        range: _range,
        ..
    } = setup();
    let size = 1_000_003;
    let bytes = process.state.lock().bytes[7..7 + size].to_vec();
    assert_eq!(
        whole.run(Descriptor::memory_move(DST, REMOTE + 7, size as u32, 0)),
        success()
    );
    assert!(whole.area.read(DST, size) == bytes);
    whole.area.write(SRC, &pattern(size, 5));
    assert_eq!(
        whole.run(Descriptor::memory_move(REMOTE + 100, SRC, size as u32, 0)),
        success()
    );
    assert!(process.state.lock().bytes[100..100 + size] == pattern(size, 5));
    let served_by = process.state.lock().served_by;
    let (sender, receiver) = mpsc::channel();
    let job = move || sender.send(std::thread::current().id()).unwrap();
    process.worker.submit(Box::new(job)).unwrap();
    assert_eq!(served_by, Some(receiver.recv().unwrap()));
}

#[test]
fn a_process_that_does_not_answer_delays_nobody_else() {
    let Setup {
        whole,
        process,
        range: _range,
        ..
    } = setup();
    process.set(|state| state.answers = false);
    let at = Area::BASE + 0x40;
    whole.area.write(at, &[0; 32]);
    for _ in 0..40 {
        whole
            .driver
            .submit(1, Descriptor::memory_move(DST, REMOTE, 4096, at));
    }
    eventually("its worker to block", || process.state.lock().waiting == 1);
    // Both engines serve the other queue all the same.
    for _ in 0..200 {
        assert_eq!(
            whole.run(Descriptor::memory_move(DST, SRC, 0x1_0000, 0)),
            success()
        );
    }
    assert_eq!(whole.area.record(at).status, 0);
    process.set(|state| state.answers = true);
    assert_eq!(whole.driver.command(Command::DrainAll, 0), 0);
    assert_eq!(whole.area.record(at), success());
}

#[test]
fn an_abort_waits_for_the_copy_that_blocks_and_drops_the_rest() {
    let Setup {
        whole,
        process,
        range: _range,
        ..
    } = setup();
    process.set(|state| state.answers = false);
    for _ in 0..40 {
        whole.driver.submit(
            1,
            Descriptor::memory_move(DST, REMOTE, 1 << 20, Area::BASE + 0x40),
        );
    }
    eventually("its worker to block", || process.state.lock().waiting == 1);
    whole.driver.start(Command::AbortWq, 2);
    assert!(whole.driver.command_status().active());
    assert_eq!(whole.run(Descriptor::new(Opcode::Noop, 0)), success());
    process.set(|state| state.answers = true);
    eventually("the abort", || !whole.driver.command_status().active());
    let before = whole.area.read(Area::BASE, Whole::SIZE as usize);
    assert_eq!(whole.driver.command(Command::DrainAll, 0), 0);
    assert!(whole.area.read(Area::BASE, Whole::SIZE as usize) == before);
}

#[test]
fn a_process_that_ends_faults_its_descriptors() {
    let Setup {
        whole,
        process,
        range: _range,
        ..
    } = setup();
    process.set(|state| state.alive = false);
    let record = whole.run(Descriptor::memory_move(DST, REMOTE + 0x1000, 4096, 0));
    assert_eq!(
        (record.status, record.fault_addr),
        (Status::PageFault as u8, REMOTE + 0x1000)
    );
}

#[test]
fn a_worker_that_is_gone_ends_its_descriptors_without_a_trace() {
    let Setup {
        whole,
        thread,
        range: _range,
        ..
    } = setup();
    thread.stop();
    let at = Area::BASE + 0x40;
    whole.area.write(at, &[0; 32]);
    for _ in 0..50 {
        whole
            .driver
            .submit(1, Descriptor::memory_move(DST, REMOTE, 4096, at));
    }
    assert_eq!(whole.driver.command(Command::DrainAll, 0), 0);
    assert_eq!(whole.area.record(at).status, 0);
    assert_eq!(whole.run(Descriptor::new(Opcode::Noop, 0)), success());
}

#[test]
fn a_batch_with_its_list_and_records_in_remote_memory_runs() {
    let Setup {
        whole,
        process,
        range: _range,
        ..
    } = setup();
    process.set(|state| {
        for index in 0..100_u64 {
            let record = REMOTE + 0x1_0000 + index * 32;
            let descriptor = Descriptor::fill(REMOTE + 0x2_0000 + index * 64, index, 64, record);
            let at = index as usize * 64;
            state.bytes[at..at + 64].copy_from_slice(&descriptor.to_bytes());
        }
        state.bytes[0x1_0000..0x1_0000 + 3200].fill(0);
    });
    let record = whole.run(Descriptor::batch(REMOTE, 100, 0));
    assert_eq!((record.status, record.completed), (1, 100));
    let state = process.state.lock();
    assert_eq!(state.bytes[0x2_0000 + 99 * 64], 99);
    assert!((0..100).all(|index| state.bytes[0x1_0000 + index * 32] == 1));
}

#[test]
fn a_batch_in_one_program_is_copied_many_at_a_time_up_to_a_fence_and_ends_one_by_one() {
    const COPIES: u64 = 80;
    const FENCED: u64 = 50;
    const LEN: u64 = 4096;
    let Setup {
        whole,
        process,
        range: _range,
        ..
    } = setup();
    let (from, to, records) = (1 << 20, 2 << 20, 3 << 20);
    // What is made in place ends in the middle of one copy; the other way goes on there.
    let end = to + 60 * LEN + 100;
    process.set(|state| {
        state.in_place = Some(Vec::new());
        state.end = end as usize;
        for number in 0..COPIES {
            let record = REMOTE + records + 32 * number;
            let (to, from) = (REMOTE + to + number * LEN, REMOTE + from + number * LEN);
            let mut copy = Descriptor::memory_move(to, from, LEN as u32, record);
            copy.flags.set_fence(number == FENCED);
            let at = number as usize * 64;
            state.bytes[at..at + 64].copy_from_slice(&copy.to_bytes());
        }
    });
    let before = process.state.lock().bytes.clone();
    let record = whole.run(Descriptor::batch(REMOTE, COPIES as u32, 0));
    assert_eq!(
        (record.status, u64::from(record.completed)),
        (Status::Success as u8, COPIES)
    );
    let state = process.state.lock();
    let len = (COPIES * LEN) as usize;
    let (from, to) = (from as usize, to as usize);
    assert!(state.bytes[to..to + len] == before[from..from + len]);
    for number in 0..COPIES as usize {
        let at = records as usize + 32 * number;
        assert_eq!(state.bytes[at], Status::Success as u8, "record {number}");
    }
    let in_place = state.in_place.as_deref().unwrap();
    let mut many: Vec<_> = in_place
        .iter()
        .copied()
        .filter(|copies| *copies > 1)
        .collect();
    many.truncate(3);
    // Windows of 32: the second one ends before the fence.
    assert_eq!(many, [32, 18, 14], "{in_place:?}");
}

#[test]
fn a_dropped_device_frees_itself_once_the_blocked_copy_ends() {
    let Setup {
        whole,
        process,
        range: _range,
        ..
    } = setup();
    process.set(|state| state.answers = false);
    whole.driver.submit(
        1,
        Descriptor::memory_move(DST, REMOTE, 4096, Area::BASE + 0x40),
    );
    eventually("its worker to block", || process.state.lock().waiting == 1);
    let Whole {
        dsa,
        driver,
        device,
        ..
    } = whole;
    let device: Weak<_> = Arc::downgrade(&device);
    drop((dsa, driver));
    process.set(|state| state.answers = true);
    eventually("the last job to go", || process.state.lock().waiting == 0);
    // What is left are the machine's own references, not the job's.
    drop(process);
    eventually("the device's own references", || device.strong_count() <= 2);
}

#[test]
fn an_event_log_in_remote_memory_is_written_by_the_clients_worker() {
    let Setup {
        whole,
        process,
        range: _range,
        ..
    } = setup();
    let driver = &whole.driver;
    assert_eq!(driver.command(Command::DisableDevice, 0), 0);
    driver.write64(reg::EVLCFG, REMOTE);
    driver.write64(reg::EVLCFG + 8, 64);
    driver.write32(reg::GENCFG, 1 << 13);
    assert_eq!(driver.command(Command::EnableDevice, 0), 0);
    assert_eq!(driver.command(Command::EnableWq, 0), 0);
    assert_eq!(driver.command(Command::EnableWq, 1), 0);
    let tail = || driver.read64(reg::EVLSTATUS) >> 32 & 0xffff;
    let lost = Descriptor::new(Opcode::Noop, Area::BASE + Whole::SIZE);
    driver.submit(0, lost);
    eventually("an entry", || tail() == 1);
    process.set(|state| assert_eq!(state.bytes[1], Status::RecordFault as u8));
    // A process that does not answer delays its own drain, and no other queue.
    process.set(|state| state.answers = false);
    driver.submit(0, lost);
    driver.start(Command::DrainWq, 1);
    let record = Area::BASE + 32;
    driver.submit(1, Descriptor::new(Opcode::Noop, record));
    assert_eq!(whole.area.wait(record).status, Status::Success as u8);
    assert!(driver.command_status().active());
    process.set(|state| state.answers = true);
    eventually("the drain", || !driver.command_status().active());
    assert_eq!(tail(), 2);
}

#[test]
fn clearing_bus_master_waits_for_the_copy_that_blocks_and_holds_the_rest() {
    let Setup {
        whole,
        process,
        range: _range,
        ..
    } = setup();
    let records = Area::BASE + 0x40;
    whole.area.write(records, &[0; 0x1000]);
    process.set(|state| state.answers = false);
    for n in 0..12 {
        let copy = Descriptor::memory_move(DST, REMOTE, 1 << 20, records + 64 * n);
        whole.driver.submit(1, copy);
    }
    eventually("its worker to block", || process.state.lock().waiting == 1);
    let function = whole.dsa.function();
    std::thread::scope(|scope| {
        let clear = scope.spawn(|| function.write_config(4, &[2]).unwrap());
        eventually("the bit to be cleared", || !function.bus_master());
        process.set(|state| state.answers = true);
        let _ = clear.join().unwrap();
    });
    assert_eq!(process.state.lock().waiting, 0, "what blocked has ended");
    let before = whole.area.read(Area::BASE, Whole::SIZE as usize);
    process.set(|state| state.served_by = None);
    std::thread::yield_now();
    assert!(whole.area.read(Area::BASE, Whole::SIZE as usize) == before);
    assert!(
        process.state.lock().served_by.is_none(),
        "no thread has come"
    );
    let _ = function.write_config(4, &[6]).unwrap();
    for n in 0..12 {
        assert_eq!(whole.area.wait(records + 64 * n), success());
    }
    let copied = whole.area.read(DST, 1 << 20);
    assert!(copied == process.state.lock().bytes[..1 << 20]);
}
