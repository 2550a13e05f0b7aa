//! A guest that drives its devices by hand, as no driver would: what it reaches is its own.
//!
//! Two VMs have one queue of the same DSA and one channel of the same I/OAT each; the parents' own
//! drivers are at work on the first ones all the while. VM 1 does its worst. Each claim ends in the same
//! way: the memory, the registers and the configuration of VM 2 are as they were, its interrupts have
//! not fired, its devices work, and the parents' drivers have met no error and no fault.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

use common::*;
use ioasid_dsa::spec::{Descriptor, Opcode, Status, registers as reg};
use ioasid_ioat::spec::{Descriptor as Link, registers as chan};
use ioasid_machine::models::{dsa, ioat};
use ioasid_testing::{MDEVS, parent};
use ioasid_uapi::spec::vfio::{IrqSet, RegionInfo};
use ioasid_vfio_user::spec::command;
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::{FromBytes, IntoBytes};

const CHANNEL1: &str = MDEVS[2];
const CHANNEL2: &str = MDEVS[3];

fn machine() -> String {
    let queues = [(MDEV1, "vm1"), (MDEV2, "vm2")];
    let channels = [(CHANNEL1, "vm1"), (CHANNEL2, "vm2")];
    parent("dsa", None, &queues) + &parent("ioat", None, &channels)
}

const CONFIG: u32 = 7;
const PORTALS: u32 = 2;
/// Memory of VM 1, and of VM 2, both from address 0 on. What is above VM 1's is VM 2's alone.
const OWN: u64 = 1 << 20;
const OTHERS: u64 = 4 << 20;
/// VM 2 works below this; what is above must stay as it is.
const WORK: u64 = 0x1_0000;
/// A place of VM 1 for completion records.
const RECORD: u64 = 0x40;

/// VM 2, and the parents' drivers.
struct Bystanders {
    fixture: Fixture,
    ram: OwnedFd,
    memory: Vec<u8>,
    queue: Vmm,
    channel: Vmm,
    event: OwnedFd,
    registers: Vec<Vec<u8>>,
    stop: Arc<AtomicBool>,
    jobs: Arc<AtomicU64>,
    parents: Vec<JoinHandle<()>>,
}

impl Bystanders {
    fn new() -> Self {
        let fixture = Fixture::of(&machine().parse().unwrap());
        let ram = memfd(OTHERS);
        poke(&ram, 0, &pattern(OTHERS as usize, 77));
        let (mut queue, mut channel) = (fixture.connect(MDEV2), fixture.connect(CHANNEL2));
        for vmm in [&mut queue, &mut channel] {
            vmm.map(Some(&ram), 0, 0, OTHERS).unwrap();
        }
        queue.bring_up_child();
        start_channel(&mut channel);
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        for vmm in [&mut queue, &mut channel] {
            connect(vmm, 0, &event);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let jobs = Arc::new(AtomicU64::new(0));
        let mut bystanders = Bystanders {
            memory: Vec::new(),
            registers: Vec::new(),
            parents: parents(&fixture, &stop, &jobs),
            fixture,
            ram,
            queue,
            channel,
            event,
            stop,
            jobs,
        };
        bystanders.works();
        bystanders.memory = peek(&bystanders.ram, WORK, (OTHERS - WORK) as usize);
        bystanders.registers = bystanders.look();
        bystanders
    }

    /// VM 1, with its queue ready for work.
    fn hostile(&self) -> (Vmm, OwnedFd) {
        let ram = memfd(OWN);
        let mut vmm = self.fixture.connect(MDEV1);
        vmm.map(Some(&ram), 0, 0, OWN).unwrap();
        vmm.bring_up_child();
        (vmm, ram)
    }

    /// What VM 2 sees of its devices.
    fn look(&mut self) -> Vec<Vec<u8>> {
        let mut seen = Vec::new();
        for vmm in [&mut self.queue, &mut self.channel] {
            seen.push(vmm.read(CONFIG, 0, 256).unwrap());
        }
        seen.push(self.queue.read(0, 0, 0x2000).unwrap());
        seen.push(self.channel.read(0, 0, 0x80).unwrap());
        // Not CHANSTS and what counts, which move with its own work.
        seen.push(self.channel.read(0, 0x80 + chan::CHANERR, 4).unwrap());
        seen
    }

    /// A job of each of VM 2's devices.
    fn works(&mut self) {
        poke(&self.ram, RECORD, &[0; 32]);
        self.queue
            .submit(Descriptor::memory_move(0x8000, WORK, 4096, RECORD));
        assert_eq!(wait_record(&self.ram, RECORD).status, 1);
        assert_eq!(peek(&self.ram, 0x8000, 4096), peek(&self.ram, WORK, 4096));
        poke(&self.ram, 0x9000, &[0; 4096]);
        run_link(&mut self.channel, &self.ram, Link::copy(0x9000, WORK, 4096));
        eventually("a copy of the other VM's channel", || {
            peek(&self.ram, 0x9000, 4096) == peek(&self.ram, WORK, 4096)
        });
    }

    /// Nobody but VM 1 has noticed anything.
    fn unharmed(mut self) {
        let seen = self.look();
        assert!(seen == self.registers, "registers of VM 2");
        let memory = peek(&self.ram, WORK, (OTHERS - WORK) as usize);
        assert!(memory == self.memory, "memory of VM 2");
        let mut fired = [0; 8];
        assert!(
            rustix::io::read(&self.event, &mut fired).is_err(),
            "an interrupt of VM 2"
        );
        self.works();
        let before = self.jobs.load(Ordering::Acquire);
        eventually("more work of the parents", || {
            self.jobs.load(Ordering::Acquire) > before + 10
        });
        self.stop.store(true, Ordering::Release);
        for parent in self.parents.drain(..) {
            parent.join().expect("the parent's work");
        }
        for (_, host) in self.fixture.machine.host_drivers::<dsa::Host>() {
            for queue in host.queues() {
                let counts = queue.counts();
                assert_eq!((counts.errors, counts.faults), (0, 0));
            }
        }
        for (_, host) in self.fixture.machine.host_drivers::<ioat::Host>() {
            for channel in host.channels() {
                assert_eq!(channel.counts().errors, 0);
            }
        }
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// The parents' own drivers at work, each copy checked.
fn parents(
    fixture: &Fixture,
    stop: &Arc<AtomicBool>,
    jobs: &Arc<AtomicU64>,
) -> Vec<JoinHandle<()>> {
    let (_, dsa) = fixture.machine.host_drivers::<dsa::Host>().next().unwrap();
    let (_, ioat) = fixture.machine.host_drivers::<ioat::Host>().next().unwrap();
    let (queue, channel) = (
        Arc::clone(&dsa.queues()[0]),
        Arc::clone(&ioat.channels()[0]),
    );
    let (stop, jobs) = (Arc::clone(stop), Arc::clone(jobs));
    vec![std::thread::spawn(move || {
        let own = queue.driver().dma().alloc_coherent(8192).unwrap();
        let others = channel.driver().dma().alloc_coherent(8192).unwrap();
        let mut pattern = 0_u64;
        while !stop.load(Ordering::Acquire) {
            pattern += 0x0101;
            let (from, to) = (own.iova(), own.iova() + 4096);
            queue.fill(from, pattern, 4096).unwrap();
            queue.memory_move(to, from, 4096).unwrap();
            assert_eq!(queue.compare(to, from, 4096).unwrap(), None);
            let (from, to) = (others.iova(), others.iova() + 4096);
            channel.copy(to, from, 4096).unwrap();
            jobs.fetch_add(1, Ordering::AcqRel);
            std::thread::yield_now();
        }
    })]
}

/// Connects MSI-X vector `vector`.
fn connect(vmm: &mut Vmm, vector: u32, event: &OwnedFd) {
    let flags = IrqSet::DATA_EVENTFD | 1 << 5;
    let request = [20, flags, 2, vector, 1];
    let fds = [event.as_fd()];
    vmm.call_with(command::DEVICE_SET_IRQS, request.as_bytes(), &fds)
        .unwrap();
}

/// Resets a channel and makes it ready.
fn start_channel(vmm: &mut Vmm) {
    vmm.switch_on();
    let errors = u32::MAX.to_le_bytes();
    vmm.write(0, 0x80 + chan::CHANERR, &errors).unwrap();
    vmm.write(0, 0x80 + chan::CHANCMD, &[0x20]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while vmm.read(0, 0x80 + chan::CHANCMD, 1).unwrap()[0] & 0x20 != 0 {
        assert!(Instant::now() < deadline, "a reset never ends");
    }
    vmm.write(0, 0x80 + chan::CHANCTRL, &[0x1d, 0]).unwrap();
    vmm.write(0, 0x80 + chan::CHANCMP, &0x100_u64.to_le_bytes())
        .unwrap();
}

/// Has a channel run one descriptor, which is put at 0x400.
fn run_link(vmm: &mut Vmm, ram: &OwnedFd, link: Link) {
    start_channel(vmm);
    poke(ram, 0x400, &link.with_next(0x440).to_bytes());
    run_chain(vmm, 0x400);
}

fn run_chain(vmm: &mut Vmm, at: u64) {
    vmm.write(0, 0x80 + chan::CHAINADDR, &at.to_le_bytes())
        .unwrap();
    vmm.write(0, 0x80 + chan::DMACOUNT, &[1, 0]).unwrap();
}

/// The status of a descriptor whose completion record is at [`RECORD`].
fn run(vmm: &mut Vmm, ram: &OwnedFd, descriptor: Descriptor) -> u8 {
    poke(ram, RECORD, &[0; 32]);
    vmm.submit(descriptor);
    wait_record(ram, RECORD).status & 0x7f
}

/// Addresses that VM 1 has nothing at: where VM 2's memory is, past its end, and where it wraps.
fn elsewhere() -> impl Iterator<Item = u64> {
    let others = (OWN..OTHERS).step_by(0x7_f000).map(|at| at & !0xfff);
    others.chain([OTHERS, 1 << 32, 0xfee0_0000, 1 << 46, 1 << 56, !0xfff])
}

#[test]
fn a_forged_pasid_leads_to_the_own_memory() {
    let bystanders = Bystanders::new();
    let (mut vmm, ram) = bystanders.hostile();
    for pasid in (0..32).chain([0xf_fffe, 0xf_ffff]) {
        for privileged in [false, true] {
            let forged = |descriptor| Descriptor {
                pasid,
                privileged,
                ..descriptor
            };
            let inside = forged(Descriptor::fill(0x2000, pasid.into(), 64, RECORD));
            if run(&mut vmm, &ram, inside) == Status::Success as u8 {
                assert_eq!(peek(&ram, 0x2000, 4), pasid.to_le_bytes());
            }
            let outside = forged(Descriptor::fill(2 * OWN, 0x66, 4096, RECORD));
            assert_ne!(run(&mut vmm, &ram, outside), Status::Success as u8);
        }
    }
    bystanders.unharmed();
}

#[test]
fn addresses_outside_the_own_memory_are_page_faults_of_the_own_descriptor() {
    let bystanders = Bystanders::new();
    let (mut vmm, ram) = bystanders.hostile();
    for at in elsewhere() {
        let fault = Status::PageFault as u8;
        let fill = Descriptor::fill(at, 0x66, 4096, RECORD);
        assert_eq!(run(&mut vmm, &ram, fill), fault, "{at:#x}");
        let take = Descriptor::memory_move(0x4000, at, 4096, RECORD);
        assert_eq!(run(&mut vmm, &ram, take), fault, "{at:#x}");
        let spy = Descriptor::compare(0x4000, at, 4096, RECORD);
        assert_eq!(run(&mut vmm, &ram, spy), fault, "{at:#x}");
    }
    // It begins in the own memory and runs out of it.
    let across = Descriptor::fill(OWN - 4096, 0x66, 8192, RECORD);
    assert_eq!(run(&mut vmm, &ram, across), Status::PageFault as u8);
    assert_eq!(peek(&ram, 0x4000, 4096), [0; 4096], "nothing was read");
    bystanders.unharmed();
}

#[test]
fn lists_and_completion_records_outside_are_errors_of_the_own_queue() {
    let bystanders = Bystanders::new();
    let (mut vmm, ram) = bystanders.hostile();
    for at in elsewhere() {
        let batch = Descriptor::batch(at, 4, RECORD);
        let status = run(&mut vmm, &ram, batch);
        assert_eq!(status, Status::BatchPageFault as u8, "{at:#x}");
    }
    // A list of one's own that is full of others' addresses.
    for (index, at) in elsewhere().take(4).enumerate() {
        let inner = Descriptor::fill(at, 0x66, 4096, at);
        poke(&ram, 0x8000 + 64 * index as u64, &inner.to_bytes());
    }
    let batch = Descriptor::batch(0x8000, 4, RECORD);
    assert_ne!(run(&mut vmm, &ram, batch), Status::Success as u8);
    for at in elsewhere() {
        vmm.bring_up_child();
        vmm.submit(Descriptor::new(Opcode::Noop, at));
        eventually("an error without a record", || {
            vmm.read32(reg::SWERR) & 1 == 1
        });
        vmm.write(0, reg::SWERR, &3_u64.to_le_bytes()).unwrap();
    }
    bystanders.unharmed();
}

#[test]
fn a_forged_interrupt_handle_fires_nobody_elses_interrupt() {
    let bystanders = Bystanders::new();
    let (mut vmm, ram) = bystanders.hostile();
    for handle in (0..64).chain([0x7fff, 0x8000, 0xffff]) {
        let mut descriptor = Descriptor::new(Opcode::Noop, RECORD);
        descriptor.flags.set_request_interrupt(true);
        descriptor.int_handle = handle;
        let status = run(&mut vmm, &ram, descriptor);
        let refused = Status::InterruptHandle as u8;
        assert!(status == refused || handle < 9, "{handle}: {status:#x}");
    }
    bystanders.unharmed();
}

#[test]
fn nothing_behind_the_own_bars_is_reached() {
    let bystanders = Bystanders::new();
    let (mut vmm, _ram) = bystanders.hostile();
    for region in 0..12 {
        let request = RegionInfo {
            argsz: 32,
            index: region,
            ..RegionInfo::default()
        };
        let reply = vmm.call(command::DEVICE_GET_REGION_INFO, request.as_bytes());
        let size = reply.map_or(0, |reply| RegionInfo::read_from_bytes(&reply).unwrap().size);
        for beyond in [
            0,
            1,
            0x800,
            0x4000,
            0x1_0000,
            1 << 30,
            1 << 40,
            u64::MAX - size,
        ] {
            assert!(vmm.write(region, size + beyond, &[0xff; 64]).is_err());
            assert!(vmm.read(region, size + beyond, 8).is_err());
        }
    }
    // Every place within them, the portals and the tables of queues that it has not.
    let junk = Descriptor::fill(2 * OWN, 0x66, 4096, RECORD).to_bytes();
    for page in 0..16 {
        let _ = vmm.write(PORTALS, page * reg::PORTAL_PAGE, &junk);
    }
    for offset in (reg::GRPCFG..reg::BAR0_SIZE).step_by(8) {
        vmm.post(0, offset, &u64::MAX.to_le_bytes());
    }
    vmm.read32(0);
    bystanders.unharmed();
}

#[test]
fn commands_reach_the_own_queue_alone() {
    let bystanders = Bystanders::new();
    let (mut vmm, ram) = bystanders.hostile();
    for code in 0..32_u32 {
        for operand in [0, 1, 2, 3, 7, 0x1_0000, 0x1_0002, 0xf_ffff] {
            vmm.submit(Descriptor::memory_move(
                0x4_0000, 0x8_0000, 0x4_0000, RECORD,
            ));
            let value = code << 20 | operand;
            vmm.write(0, reg::CMD, &value.to_le_bytes()).unwrap();
            let deadline = Instant::now() + PATIENCE;
            while vmm.read32(reg::CMDSTS) & 1 << 31 != 0 {
                assert!(Instant::now() < deadline, "command {value:#x} never ends");
            }
        }
    }
    for _ in 0..50 {
        vmm.call(command::DEVICE_RESET, &[]).unwrap();
    }
    vmm.bring_up_child();
    let fill = Descriptor::fill(0x2000, 1, 64, RECORD);
    assert_eq!(run(&mut vmm, &ram, fill), Status::Success as u8);
    bystanders.unharmed();
}

#[test]
fn nonsense_in_configuration_and_interrupts_is_the_own_loss() {
    let bystanders = Bystanders::new();
    let (mut vmm, ram) = bystanders.hostile();
    for (seed, offset) in (0..4096).step_by(2).enumerate() {
        let bytes = pattern(4, seed as u64);
        let _ = vmm.write(CONFIG, offset, bytes.get(..1 + seed % 4).unwrap());
    }
    let wanted = [0, 1, 2, 4, 5, 8, u32::MAX];
    for flags in 0..64_u32 {
        for index in wanted {
            for (start, count) in [(0, 0), (0, 1), (8, 2), (1, u32::MAX), (u32::MAX, u32::MAX)] {
                let request = [20, flags, index, start, count];
                let fds = vec![ram.as_fd(); (flags % 3) as usize];
                let _ = vmm.call_with(command::DEVICE_SET_IRQS, request.as_bytes(), &fds);
            }
        }
    }
    vmm.call(command::DEVICE_RESET, &[]).unwrap();
    vmm.bring_up_child();
    let fill = Descriptor::fill(0x2000, 1, 64, RECORD);
    assert_eq!(run(&mut vmm, &ram, fill), Status::Success as u8);
    bystanders.unharmed();
}

#[test]
fn a_flood_holds_up_nobody_else() {
    let mut bystanders = Bystanders::new();
    let (mut vmm, ram) = bystanders.hostile();
    for round in 0..4000_u64 {
        let large = Descriptor::memory_move(0x8_0000, 0x1000, 0x4_0000, RECORD);
        let astray = Descriptor::fill(2 * OWN, 0x66, 4096, RECORD);
        vmm.submit(if round % 2 == 0 { large } else { astray });
        if round % 500 == 0 {
            bystanders.works();
        }
    }
    vmm.bring_up_child();
    let fill = Descriptor::fill(0x2000, 1, 64, RECORD);
    assert_eq!(run(&mut vmm, &ram, fill), Status::Success as u8);
    bystanders.unharmed();
}

#[test]
fn a_channel_reaches_the_own_memory_alone() {
    let bystanders = Bystanders::new();
    let ram = memfd(OWN);
    let mut vmm = bystanders.fixture.connect(CHANNEL1);
    vmm.map(Some(&ram), 0, 0, OWN).unwrap();
    let failed = |vmm: &mut Vmm| {
        let mut error = Vec::new();
        eventually("an error of the own channel", || {
            error = vmm.read(0, 0x80 + chan::CHANERR, 4).unwrap();
            error != [0; 4]
        });
    };
    for at in elsewhere() {
        run_link(&mut vmm, &ram, Link::copy(at, 0x1000, 4096));
        failed(&mut vmm);
        run_link(&mut vmm, &ram, Link::copy(0x1000, at, 4096));
        failed(&mut vmm);
        run_link(&mut vmm, &ram, Link::fill(at, 0x66, 4096));
        failed(&mut vmm);
        // The chain itself, and where its completion goes.
        start_channel(&mut vmm);
        run_chain(&mut vmm, at);
        failed(&mut vmm);
    }
    // The registers of channels that it has not.
    for offset in (0x100..0x2000).step_by(4) {
        vmm.post(0, offset, &[0xff; 4]);
    }
    run_link(&mut vmm, &ram, Link::fill(0x1000, 0x55, 4096));
    eventually("work of its own", || peek(&ram, 0x1000, 1) == [0x55]);
    bystanders.unharmed();
}
