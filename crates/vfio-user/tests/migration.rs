//! A device with a running queue moves from one server to another.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{os::fd::OwnedFd, sync::LazyLock};

use common::{migration::*, *};
use ioasid_dsa::spec::{Descriptor, Opcode, descriptor::DESCRIPTOR_SIZE, registers as reg};
use ioasid_uapi::spec::vfio::Feature;
use ioasid_vfio_user::spec::command;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const RAM: u64 = 32 * MIB;

/// A client of the mediated device with memory, and an eventfd on the vector of completions.
fn client(fixture: &Fixture) -> (Vmm, OwnedFd, OwnedFd) {
    let mut vmm = fixture.connect(MDEV1);
    let ram = memfd(RAM);
    vmm.map(Some(&ram), 0, 0, RAM).unwrap();
    let irq = listen_to(&mut vmm, 1);
    (vmm, ram, irq)
}

const SOURCE: u64 = MIB;
const TARGET: u64 = 4 * MIB;
const LIST: u64 = 0x1_0000;
const IN_BATCH: u64 = 16;
const SINGLE: u64 = 24;

fn record(n: u64) -> u64 {
    0x40 * (n + 1)
}

/// A batch and single copies, each with a record and an interrupt.
fn submit(vmm: &mut Vmm, ram: &OwnedFd) {
    poke(ram, SOURCE, &pattern(MIB as usize, 3));
    let copy = |n: u64| {
        let to = TARGET + n * (MIB / 2);
        Descriptor::memory_move(to, SOURCE + 64 * n, 500_000, record(n)).with_interrupt(1)
    };
    for n in 0..IN_BATCH {
        poke(ram, LIST + DESCRIPTOR_SIZE as u64 * n, &copy(n).to_bytes());
    }
    let batch = Descriptor::batch(LIST, IN_BATCH as u32, record(IN_BATCH + SINGLE));
    vmm.submit(batch.with_interrupt(1));
    for n in IN_BATCH..IN_BATCH + SINGLE {
        vmm.submit(copy(n));
    }
}

#[test]
fn a_running_queue_moves_between_two_servers_and_every_descriptor_completes_once() {
    let (here, there) = (Fixture::new(), Fixture::new());
    let mut moved = 0;
    // From the queue as it is filled to the queue as it is nearly empty.
    for round in 0..12_u64 {
        let (mut source, ram, _irq) = client(&here);
        source.bring_up_child();
        if round == 0 {
            // Stopped, a queue takes descriptors and does nothing.
            go(&mut source, STOP).unwrap();
        }
        submit(&mut source, &ram);
        if round > 0 {
            wait_record(&ram, record(round * 3 - 3));
        }
        go(&mut source, STOP_COPY).unwrap();
        let left = size(&mut source);
        let saved = read_all(&mut source);
        assert_eq!(saved.len() as u64, left);
        assert_eq!(size(&mut source), 0);

        let (mut target, copied, irq) = client(&there);
        poke(&copied, 0, &peek(&ram, 0, RAM as usize));
        let total = IN_BATCH + SINGLE + 1;
        // What has completed here must not do so there: its record stays as it is.
        let done: Vec<u64> = (0..total)
            .filter(|n| peek(&ram, record(*n), 1) != [0])
            .collect();
        for n in &done {
            poke(&copied, record(*n), &[0; 32]);
        }
        restore(&mut target, &saved).unwrap();
        assert_eq!(state(&mut target), STOP);
        assert_eq!(interrupts(&irq), 0);
        go(&mut target, RUNNING).unwrap();
        for n in (0..total).filter(|n| !done.contains(n)) {
            assert_eq!(wait_record(&copied, record(n)).status, 1, "{round}: {n}");
        }
        if (done.len() as u64) < total {
            moved += 1;
            eventually("an interrupt", || interrupts(&irq) > 0);
        }
        // Whatever would come twice has had its time: a drain is behind it.
        let mut last = Descriptor::new(Opcode::Drain, 0x8000);
        last.flags.set_request_record(true);
        target.submit(last);
        wait_record(&copied, 0x8000);
        for n in done {
            assert_eq!(peek(&copied, record(n), 1), [0], "{round}: {n}");
        }
        let data = peek(&copied, SOURCE, MIB as usize);
        for n in 0..IN_BATCH + SINGLE {
            let to = TARGET + n * (MIB / 2);
            let from = 64 * n as usize;
            assert!(peek(&copied, to, 500_000) == data[from..from + 500_000]);
        }
        // What stays behind does nothing more.
        let before = peek(&ram, 0, RAM as usize);
        drop(source);
        here.released(MDEV1);
        assert!(before == peek(&ram, 0, RAM as usize));
        drop(target);
        there.released(MDEV1);
    }
    assert!(moved > 0, "every queue was done before it moved");
}

#[test]
fn the_states_have_the_arcs_of_stop_copy_alone() {
    let fixture = Fixture::new();
    let (mut vmm, ..) = client(&fixture);
    let flags = feature(&mut vmm, Feature::MIGRATION, Feature::GET, &[]).unwrap();
    assert_eq!(flags, 1_u64.to_ne_bytes());
    for number in [1, 2, 9] {
        let probe = Feature::PROBE | Feature::GET;
        assert_eq!(feature(&mut vmm, number, probe, &[]), Ok(Vec::new()));
    }
    assert_eq!(feature(&mut vmm, 1, Feature::SET, &[0; 8]), Err(EINVAL));
    assert_eq!(feature(&mut vmm, 9, 0, &[]), Err(EINVAL));
    assert_eq!(state(&mut vmm), RUNNING);
    let states = [STOP, RUNNING, STOP_COPY, RESUMING];
    for from in states {
        for to in states {
            go(&mut vmm, from).unwrap();
            go(&mut vmm, to).unwrap();
            assert_eq!(state(&mut vmm), to, "from {from}");
            // P2P and PRE_COPY are not there, and nobody asks for an error.
            for bad in [ERROR, 5, 6, 7, 8, u32::MAX] {
                assert_eq!(go(&mut vmm, bad), Err(EINVAL), "{bad}");
                assert_eq!(state(&mut vmm), to);
            }
            assert_eq!(read_some(&mut vmm, 16).is_ok(), to == STOP_COPY);
            if to != RESUMING {
                assert_eq!(write_some(&mut vmm, &[1]), Err(EINVAL));
            }
        }
    }
    vmm.call(command::DEVICE_RESET, &[]).unwrap();
    assert_eq!(state(&mut vmm), RUNNING);
}

#[test]
fn a_truncated_altered_or_foreign_state_is_refused_and_a_reset_helps() {
    let fixture = Fixture::new();
    let (mut vmm, ram, _irq) = client(&fixture);
    vmm.bring_up_child();
    go(&mut vmm, STOP_COPY).unwrap();
    let good = read_all(&mut vmm);
    go(&mut vmm, STOP).unwrap();
    let mut bad = vec![
        vec![1],
        good[..good.len() - 1].to_vec(),
        vec![0; good.len()],
    ];
    for at in [0, 8, 12, 16, 20, 28, 40, good.len() - 100, good.len() - 1] {
        let mut altered = good.clone();
        altered[at] ^= 0x10;
        bad.push(altered);
    }
    for state_bytes in bad {
        assert_eq!(restore(&mut vmm, &state_bytes), Err(EINVAL));
        assert_eq!(state(&mut vmm), ERROR);
        assert_eq!(go(&mut vmm, RUNNING), Err(EINVAL));
        vmm.call(command::DEVICE_RESET, &[]).unwrap();
        assert_eq!(state(&mut vmm), RUNNING);
    }
    // Too much of it is refused at once.
    go(&mut vmm, RESUMING).unwrap();
    let mib = vec![0; MIB as usize];
    for _ in 0..8 {
        write_some(&mut vmm, &mib).unwrap();
    }
    assert_eq!(write_some(&mut vmm, &[0]), Err(28));
    vmm.call(command::DEVICE_RESET, &[]).unwrap();
    restore(&mut vmm, &good).unwrap();
    go(&mut vmm, RUNNING).unwrap();
    vmm.submit(Descriptor::fill(0x1000, 7, 64, 0x40));
    assert_eq!(wait_record(&ram, 0x40).status, 1);
    assert_eq!(vmm.read32(reg::CMDSTS), 0);
}

static STAGE: LazyLock<Fixture> = LazyLock::new(Fixture::new);

/// A state that was saved in the middle of work.
static SAVED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (mut vmm, ram, _irq) = client(&STAGE);
    vmm.bring_up_child();
    submit(&mut vmm, &ram);
    go(&mut vmm, STOP_COPY).unwrap();
    let saved = read_all(&mut vmm);
    drop(vmm);
    STAGE.released(MDEV1);
    saved
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_forged_state_reaches_no_more_than_its_own_device(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        // Of the model's state alone, most of the time.
        everywhere in prop::bool::weighted(0.1),
        tail in proptest::option::weighted(0.2, proptest::collection::vec(any::<u8>(), 0..300)),
    ) {
        let forged = forge(&SAVED, &changes, everywhere, tail.as_deref());
        let mut neighbour = STAGE.connect(MDEV2);
        let others = memfd(MIB);
        poke(&others, 0, &pattern(MIB as usize, 77));
        neighbour.map(Some(&others), 0, 0, MIB).unwrap();
        neighbour.bring_up_child();

        let (mut vmm, ..) = client(&STAGE);
        match restore(&mut vmm, &forged) {
            Ok(()) => go(&mut vmm, RUNNING).unwrap(),
            Err(errno) => {
                prop_assert_eq!(errno, EINVAL);
                prop_assert_eq!(state(&mut vmm), ERROR);
            }
        }
        prop_assert_eq!(peek(&others, 0, MIB as usize), pattern(MIB as usize, 77));
        poke(&others, 0x40, &[0; 32]);
        neighbour.submit(Descriptor::fill(0x1000, 7, 64, 0x40));
        prop_assert_eq!(wait_record(&others, 0x40).status, 1);

        vmm.call(command::DEVICE_RESET, &[]).unwrap();
        prop_assert_eq!(state(&mut vmm), RUNNING);
        drop(vmm);
        drop(neighbour);
        STAGE.released(MDEV1);
        STAGE.released(MDEV2);
    }
}
