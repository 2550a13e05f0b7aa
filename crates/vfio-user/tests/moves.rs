//! Channels and whole devices at work move from one server to another.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{cell::RefCell, os::fd::OwnedFd, sync::LazyLock, time::Instant};

use common::{migration::*, *};
use ioasid_dsa::spec::{
    Command, Descriptor, Opcode,
    descriptor::DESCRIPTOR_SIZE,
    registers::{self as reg, PORTAL_STRIDE},
    tables::{GRPCFG_SIZE, WQCFG_SIZE, WqLimits, WqUse},
};
use ioasid_ioat::spec::{
    ChanSts, ChannelStatus, Descriptor as Link,
    registers::{self as chan, CHANNEL_STRIDE},
};
use ioasid_vfio_user::spec::command;
use proptest::{collection::vec, prelude::*};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const RAM: u64 = 16 * MIB;

fn stages() -> [Fixture; 2] {
    [0, 1].map(|_| Fixture::of(&every_kind().parse().unwrap()))
}

/// A VM with a device, and an eventfd on each of its first vectors.
fn client(fixture: &Fixture, device: &str, vectors: u32) -> (Vmm, OwnedFd, Vec<OwnedFd>) {
    let mut vmm = fixture.connect(device);
    let ram = memfd(RAM);
    vmm.map(Some(&ram), 0, 0, RAM).unwrap();
    let irqs = (0..vectors).map(|vector| listen_to(&mut vmm, vector));
    let irqs = irqs.collect();
    (vmm, ram, irqs)
}

/// Takes the state of a device that is at work, whole and once.
fn save(vmm: &mut Vmm) -> Vec<u8> {
    go(vmm, STOP_COPY).unwrap();
    let left = size(vmm);
    let saved = read_all(vmm);
    assert_eq!(saved.len() as u64, left);
    assert_eq!(size(vmm), 0);
    saved
}

// Channels. Each has a part of memory, and a chain that moves its data on by its own results.

const PART: u64 = 4 * MIB;
const WORD: u64 = 0xf000;
const DATA: u64 = 0x1_0000;
const SPAN: u64 = 2 * MIB;
const LINKS: u64 = 48;

/// Link `n` of a chain: from, to, and how much, in the data.
fn step(n: u64) -> (u64, u64, u64) {
    let (low, high) = (n % 6 * 300 * KIB, n % 6 * 300 * KIB + 40 * (n % 4 + 1));
    match n % 2 {
        0 => (low, high, 250_000),
        _ => (high, low, 250_000),
    }
}

fn start_channel(vmm: &mut Vmm, write: impl Fn(u64, &[u8]), channel: u64) {
    let (block, part) = ((channel + 1) * CHANNEL_STRIDE, channel * PART);
    write(part + DATA, &pattern(SPAN as usize, channel));
    for n in 0..LINKS {
        let (from, to, len) = step(n);
        let link = Link::copy(part + DATA + to, part + DATA + from, len as u32);
        let link = link.with_next(part + 64 * (n + 1)).with_control(|control| {
            control.set_compl_write(true);
            control.set_int_en(n + 1 == LINKS);
        });
        write(part + 64 * n, &link.to_bytes());
    }
    vmm.write(0, chan::INTRCTRL, &[8]).unwrap();
    vmm.write(0, block + chan::CHANCTRL, &[0x1d, 0]).unwrap();
    let completion = (part + WORD).to_le_bytes();
    vmm.write(0, block + chan::CHANCMP, &completion).unwrap();
    vmm.write(0, block + chan::CHAINADDR, &part.to_le_bytes())
        .unwrap();
    vmm.post(0, block + chan::DMACOUNT, &(LINKS as u16).to_le_bytes());
}

/// A channel's data when its chain has ended.
fn moved(channel: u64) -> Vec<u8> {
    let mut data = pattern(SPAN as usize, channel);
    for n in 0..LINKS {
        let (from, to, len) = step(n);
        data.copy_within(from as usize..(from + len) as usize, to as usize);
    }
    data
}

fn word(bytes: &[u8]) -> ChanSts {
    ChanSts::from_bits(u64::from_le_bytes(bytes.try_into().unwrap()))
}

fn progress(ram: &OwnedFd, channel: u64) -> ChanSts {
    word(&peek(ram, channel * PART + WORD, 8))
}

fn is_done(word: ChanSts, channel: u64) -> bool {
    let last = channel * PART + 64 * (LINKS - 1);
    word.is(ChannelStatus::Done) && word.completed_address() == last
}

fn channels_move(device: &str, channels: u64) {
    let [here, there] = stages();
    let mut under_way = 0;
    for round in 0..8_u64 {
        let (mut source, ram, irqs) = client(&here, device, channels as u32);
        source.switch_on();
        if round == 0 {
            // Stopped, a channel hears its doorbell and does nothing.
            go(&mut source, STOP).unwrap();
        }
        for channel in 0..channels {
            start_channel(&mut source, |at, bytes| poke(&ram, at, bytes), channel);
        }
        eventually("some of the first chain", || {
            progress(&ram, 0).completed_address() >= 64 * (round * 5).saturating_sub(1)
        });
        let saved = save(&mut source);
        let memory = peek(&ram, 0, RAM as usize);
        let all = (0..channels).all(|channel| is_done(progress(&ram, channel), channel));
        under_way += u32::from(!all);

        let (mut target, copied, further) = client(&there, device, channels as u32);
        poke(&copied, 0, &memory);
        restore(&mut target, &saved).unwrap();
        assert!(peek(&copied, 0, RAM as usize) == memory, "it is stopped");
        go(&mut target, RUNNING).unwrap();
        for channel in 0..channels {
            eventually("the end of a chain", || {
                is_done(progress(&copied, channel), channel)
            });
            let block = (channel + 1) * CHANNEL_STRIDE;
            let status = target.read(0, block + chan::CHANSTS, 8).unwrap();
            assert!(is_done(word(&status), channel));
            assert_eq!(target.read32(block + chan::CHANERR), 0);
            let data = peek(&copied, channel * PART + DATA, SPAN as usize);
            assert!(data == moved(channel), "{round}: channel {channel}");
            let irqs = [&irqs, &further].map(|irqs| &irqs[channel as usize]);
            let mut count = 0;
            eventually("an interrupt", || {
                count += irqs.iter().map(|irq| interrupts(irq)).sum::<u64>();
                count > 0
            });
            assert_eq!(count, 1, "{round}: channel {channel}");
        }
        drop(source);
        here.released(device);
        assert!(memory == peek(&ram, 0, RAM as usize), "it stays stopped");
        drop(target);
        there.released(device);
    }
    assert!(under_way > 0, "every channel was done before it moved");
}

#[test]
fn a_running_channel_moves_between_two_servers_and_every_descriptor_is_done_once() {
    channels_move(CHANNEL, 1);
}

#[test]
fn a_whole_ioat_at_work_moves_with_all_of_its_channels() {
    channels_move(CHANNELS, 3);
}

// A whole DSA: two queues, and records that show what was done where.

const IN_BATCH: u64 = 12;
const SINGLE: u64 = 20;
/// Descriptors of one queue, with its batch.
const EACH: u64 = IN_BATCH + SINGLE + 1;
const LISTS: u64 = 0x1_0000;
const SOURCE: u64 = MIB;
const TARGET: u64 = 2 * MIB;
const LEN: u64 = 180_000;

fn record(queue: u64, n: u64) -> u64 {
    0x40 * (queue * EACH + n + 1)
}

fn bring_up(vmm: &mut Vmm) {
    vmm.switch_on();
    assert_eq!(vmm.command(Command::ResetDevice, 0), 0);
    for (offset, bits) in [(0, 3_u64), (GRPCFG_SIZE / 2, 3)] {
        vmm.write(0, reg::GRPCFG + offset, &bits.to_le_bytes())
            .unwrap();
    }
    let limits = WqLimits::new()
        .with_max_xfer_shift(18)
        .with_max_batch_shift(5);
    for queue in 0..2 {
        let usage = WqUse::new().with_dedicated(true);
        let usage = usage.with_priority(5 + queue as u8).into_bits();
        for (offset, value) in [(0, 32), (8, usage), (12, limits.into_bits())] {
            let at = reg::WQCFG + queue * WQCFG_SIZE + offset;
            vmm.write(0, at, &u32::to_le_bytes(value)).unwrap();
        }
    }
    for (command, operand) in [
        (Command::EnableDevice, 0),
        (Command::EnableWq, 0),
        (Command::EnableWq, 1),
    ] {
        assert_eq!(vmm.command(command, operand), 0, "{command:?}");
    }
}

fn copy(queue: u64, n: u64) -> Descriptor {
    let to = TARGET + (queue * EACH + n) * 192 * KIB;
    Descriptor::memory_move(to, SOURCE + 64 * n, LEN as u32, record(queue, n)).with_interrupt(1)
}

fn submit(vmm: &mut Vmm, ram: &OwnedFd) {
    poke(ram, SOURCE, &pattern(MIB as usize, 3));
    for queue in 0..2 {
        let list = LISTS + queue * 0x1000;
        for n in 0..IN_BATCH {
            let at = list + DESCRIPTOR_SIZE as u64 * n;
            poke(ram, at, &copy(queue, n).to_bytes());
        }
        let batch = Descriptor::batch(list, IN_BATCH as u32, record(queue, EACH - 1));
        let batch = batch.with_interrupt(1);
        let singles = (IN_BATCH..IN_BATCH + SINGLE).map(|n| copy(queue, n));
        for descriptor in [batch].into_iter().chain(singles) {
            vmm.post(2, queue * PORTAL_STRIDE, &descriptor.to_bytes());
        }
    }
}

#[test]
fn a_whole_dsa_at_work_moves_and_every_record_is_written_once() {
    let [here, there] = stages();
    let places = || (0..2).flat_map(|queue| (0..EACH).map(move |n| (queue, n)));
    let mut moved = 0;
    for round in 0..8_u64 {
        let (mut source, ram, mut irqs) = client(&here, PDEV, 2);
        bring_up(&mut source);
        if round == 0 {
            // Stopped, a queue takes descriptors and does nothing.
            go(&mut source, STOP).unwrap();
        }
        submit(&mut source, &ram);
        if round > 0 {
            wait_record(&ram, record(round % 2, round * 3));
        }
        let saved = save(&mut source);
        let memory = peek(&ram, 0, RAM as usize);
        let done = |(queue, n)| memory[record(queue, n) as usize] != 0;

        let (mut target, copied, further) = client(&there, PDEV, 2);
        poke(&copied, 0, &memory);
        // What has completed here must not do so there: its record stays as it is.
        for (queue, n) in places().filter(|place| done(*place)) {
            poke(&copied, record(queue, n), &[0; 32]);
        }
        restore(&mut target, &saved).unwrap();
        assert_eq!(interrupts(&further[1]), 0);
        go(&mut target, RUNNING).unwrap();
        for (queue, n) in places().filter(|place| !done(*place)) {
            let status = wait_record(&copied, record(queue, n)).status;
            assert_eq!(status, 1, "{round}: {n} of {queue}");
            moved += 1;
        }
        // Whatever would come twice has had its time: a drain is behind it.
        for queue in 0..2 {
            let mut last = Descriptor::new(Opcode::Drain, 0x8000 + 0x40 * queue);
            last.flags.set_request_record(true);
            target.post(2, queue * PORTAL_STRIDE, &last.to_bytes());
            wait_record(&copied, 0x8000 + 0x40 * queue);
        }
        for (queue, n) in places().filter(|place| done(*place)) {
            assert_eq!(peek(&copied, record(queue, n), 1), [0], "{n} of {queue}");
        }
        for (queue, n) in places().filter(|(_, n)| *n < EACH - 1) {
            let (to, from) = (copy(queue, n).destination, copy(queue, n).source);
            let same = peek(&copied, to, LEN as usize) == peek(&copied, from, LEN as usize);
            assert!(same, "{round}: {n} of {queue}");
        }
        irqs.extend(further);
        let mut count = 0;
        eventually("the interrupts", || {
            count += irqs.iter().map(interrupts).sum::<u64>();
            count >= 2 * EACH
        });
        assert_eq!(count, 2 * EACH);
        drop(source);
        here.released(PDEV);
        assert!(memory == peek(&ram, 0, RAM as usize), "it stays stopped");
        drop(target);
        there.released(PDEV);
    }
    assert!(moved > 0, "every queue was done before it moved");
}

#[test]
fn devices_with_private_memory_move_in_the_middle_of_a_descriptor() {
    let [here, there] = stages();
    for device in [CHANNEL, CHANNELS] {
        let mut source = private(&here, device);
        source.switch_on();
        let writes = RefCell::new(Vec::new());
        let keep = |at: u64, bytes: &[u8]| writes.borrow_mut().push((at, bytes.to_vec()));
        // Nothing is asked before the doorbell, and nothing answered before the chain is there.
        start_channel(&mut source, keep, 0);
        for (at, bytes) in writes.into_inner() {
            source.ram[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        // Each look serves what the device has asked for.
        while word(&source.ram[WORD as usize..][..8]).completed_address() < 64 * 4 {
            source.read32(CHANNEL_STRIDE + chan::CHANERR);
        }
        let saved = save(&mut source);
        let mut target = private(&there, device);
        target.ram.clone_from(&source.ram);
        restore(&mut target, &saved).unwrap();
        assert!(target.ram == source.ram, "it is stopped");
        go(&mut target, RUNNING).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !is_done(word(&target.ram[WORD as usize..][..8]), 0) {
            assert!(Instant::now() < deadline, "never ends");
            target.read32(CHANNEL_STRIDE + chan::CHANERR);
        }
        assert!(target.ram[DATA as usize..][..SPAN as usize] == moved(0));
    }
}

/// A VM whose memory the server has to ask for.
fn private(fixture: &Fixture, device: &str) -> Vmm {
    let mut vmm = fixture.connect(device);
    vmm.ram = vec![0; PART as usize];
    vmm.map(None, 0, 0, PART).unwrap();
    vmm
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| Fixture::of(&every_kind().parse().unwrap()));

/// States that were saved in the middle of work.
static SAVED: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(|| {
    let saved = [(CHANNEL, 1), (CHANNELS, 3), (PDEV, 0)].map(|(device, channels)| {
        let (mut vmm, ram, _irqs) = client(&FIXTURE, device, 0);
        if device == PDEV {
            bring_up(&mut vmm);
            submit(&mut vmm, &ram);
        } else {
            vmm.switch_on();
        }
        for channel in 0..channels {
            start_channel(&mut vmm, |at, bytes| poke(&ram, at, bytes), channel);
        }
        let state = save(&mut vmm);
        drop(vmm);
        FIXTURE.released(device);
        (device, state)
    });
    saved.into()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 90, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_forged_state_reaches_no_more_than_its_own_device(
        which in 0..3_usize,
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        // Of the model's state alone, most of the time.
        everywhere in prop::bool::weighted(0.1),
        tail in prop::option::weighted(0.2, vec(any::<u8>(), 0..64)),
    ) {
        let (device, saved) = &SAVED[which];
        let forged = forge(saved, &changes, everywhere, tail.as_deref());
        let others = [MDEV1, NEIGHBOUR].map(|other| client(&FIXTURE, other, 0));
        let [(mut queue, queues, _), (mut channel, channels, _)] = others;
        queue.bring_up_child();
        channel.switch_on();
        for ram in [&queues, &channels] {
            poke(ram, 0, &pattern(MIB as usize, 77));
        }

        let (mut vmm, ..) = client(&FIXTURE, device, 0);
        match restore(&mut vmm, &forged) {
            Ok(()) => go(&mut vmm, RUNNING).unwrap(),
            Err(errno) => {
                prop_assert_eq!(errno, EINVAL);
                prop_assert_eq!(state(&mut vmm), ERROR);
            }
        }
        for ram in [&queues, &channels] {
            prop_assert!(peek(ram, 0, MIB as usize) == pattern(MIB as usize, 77));
        }
        // The others are as they were, and work.
        prop_assert_eq!(channel.read(0, CHANNEL_STRIDE, 16).unwrap(), IDLE);
        poke(&queues, 0x40, &[0; 32]);
        queue.submit(Descriptor::fill(0x1000, 7, 64, 0x40));
        prop_assert_eq!(wait_record(&queues, 0x40).status, 1);
        start_channel(&mut channel, |at, bytes| poke(&channels, at, bytes), 0);
        eventually("the end of a chain", || is_done(progress(&channels, 0), 0));

        vmm.call(command::DEVICE_RESET, &[]).unwrap();
        prop_assert_eq!(state(&mut vmm), RUNNING);
        drop((vmm, queue, channel));
        for device in [*device, MDEV1, NEIGHBOUR] {
            FIXTURE.released(device);
        }
    }
}

/// The first registers of a channel that nobody has used: halted.
const IDLE: [u8; 16] = [0, 0, 2, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
