//! The barrier on real threads: when a translation has been taken away, nothing is written through
//! it any more. `IOASID_RACES` sets the number of races (100 000 by default).
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use std::{
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use common::{
    race::{IOVA, LEN, StopOnDrop, races},
    *,
};
use ioasid_core::{AddrRange, Pasid, Prot, memory::OwnPages};
use ioasid_iommu::{Device, DmaSource, Domain, DomainConfig, Iommu, OwnerId, Stop, Transfer};

/// The race of an engine that keeps no translations.
fn race(
    iommu: &Arc<Iommu>,
    device: &Arc<Device>,
    pasid: Option<Pasid>,
    races: u64,
    memory: &OwnPages,
    begin: impl Fn(),
    end: impl Fn(),
) {
    common::race::race(iommu, || device.port(), pasid, races, memory, begin, end);
}

#[test]
fn no_byte_is_written_after_unmap_returned() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, memory) = (domain(&iommu), pages(&iommu, LEN));
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    race(
        &iommu,
        &device,
        None,
        races() / 2,
        &memory,
        || {
            domain
                .map(IOVA, memory.spa(), LEN as u64, Prot::RW)
                .unwrap()
        },
        || assert_eq!(domain.unmap(range(IOVA, LEN as u64)), LEN as u64),
    );
}

#[test]
fn no_byte_is_written_after_detach_returned() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, memory) = mapped(&iommu, IOVA, LEN);
    for pasid in [None, pasid(77)] {
        let route = DmaSource::new(&device, pasid);
        race(
            &iommu,
            &device,
            pasid,
            races() / 8,
            &memory,
            || route.attach(&domain, &sink()).unwrap(),
            || route.detach(),
        );
    }
}

#[test]
fn no_byte_is_written_to_the_old_domain_after_replace_returned() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, memory) = mapped(&iommu, IOVA, LEN);
    let (other, _other_memory) = mapped(&iommu, IOVA, LEN);
    let route = DmaSource::new(&device, pasid(3));
    route.attach(&other, &sink()).unwrap();
    race(
        &iommu,
        &device,
        pasid(3),
        races() / 8,
        &memory,
        || route.replace(&domain, &sink()).unwrap(),
        || route.replace(&other, &sink()).unwrap(),
    );
}

#[test]
fn no_byte_is_written_after_ownership_is_given_back() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, memory) = mapped(&iommu, IOVA, LEN);
    let claim = Mutex::new(None);
    race(
        &iommu,
        &device,
        None,
        races() / 8,
        &memory,
        || {
            let owned = device.group().claim_dma_owner(OwnerId::new()).unwrap();
            *claim.lock().unwrap() = Some(owned);
            DmaSource::new(&device, None)
                .attach(&domain, &sink())
                .unwrap();
        },
        || drop(claim.lock().unwrap().take()),
    );
}

#[test]
fn a_page_written_after_its_dirty_bit_was_cleared_is_dirty_again() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let config = DomainConfig {
        dirty_tracking: true,
        ..DomainConfig::unmanaged(FORMAT)
    };
    let domain = iommu.alloc_domain(config).unwrap();
    let memory = pages(&iommu, LEN);
    domain
        .map(IOVA, memory.spa(), LEN as u64, Prot::RW)
        .unwrap();
    domain.set_dirty_tracking(true);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut port = device.port();
            let mut random = Random(5);
            while !stop.load(Ordering::Acquire) {
                let number = random.next();
                let offset = (number >> 8) % LEN as u64;
                write(&mut port, None, IOVA + offset, &[number as u8]).unwrap();
            }
        });
        let _stop = StopOnDrop(&stop);
        let all = range(IOVA, LEN as u64);
        let mut changes = 0_u64;
        for round in 0..races() / 8 {
            domain.read_dirty(all, true, &mut |_| {});
            let clean = contents(&memory, LEN);
            if round % 2 == 0 {
                thread::yield_now();
            }
            let later = contents(&memory, LEN);
            let mut dirty: Vec<AddrRange> = Vec::new();
            domain.read_dirty(all, false, &mut |range| dirty.push(range));
            for offset in (0..LEN).filter(|offset| clean[*offset] != later[*offset]) {
                changes += 1;
                let iova = IOVA + offset as u64;
                assert!(
                    dirty.iter().any(|range| range.contains(iova)),
                    "round {round}: {iova:#x} changed and is not dirty"
                );
            }
        }
        assert!(changes > 0);
    });
}

/// Attaches new memory at a PASID of `device`.
fn attached(iommu: &Arc<Iommu>, device: &Arc<Device>, number: u32) -> (Arc<Domain>, OwnPages) {
    let (domain, memory) = mapped(iommu, IOVA, LEN);
    source(device, number).attach(&domain, &sink()).unwrap();
    (domain, memory)
}

#[test]
fn an_unmap_waits_for_guards_of_its_own_domain_and_for_no_others() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (a, _memory_a) = attached(&iommu, &device, 1);
    let (b, _memory_b) = attached(&iommu, &device, 2);
    let mut port = device.port();
    let guard = port.enter(pasid(1));
    // On this very thread: it would never return if it waited for the guard.
    assert_eq!(b.unmap(range(IOVA, LEN as u64)), LEN as u64);
    iommu.grace().wait(b.id());
    let (send, returned) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| send.send(a.unmap(range(IOVA, LEN as u64))).unwrap());
        // Never before the guard is gone, however long we look.
        assert!(returned.recv_timeout(Duration::from_millis(50)).is_err());
        drop(guard);
        assert_eq!(returned.recv(), Ok(LEN as u64));
    });
}

#[test]
fn a_reader_that_blocks_for_ever_delays_only_its_own_domain() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (stuck, _memory) = attached(&iommu, &device, 1);
    let mut port = device.port();
    let guard = port.enter_blocking(pasid(1));
    let started = Barrier::new(2);
    let (send, returned) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            started.wait();
            source(&device, 1).detach();
            send.send(()).unwrap();
        });
        started.wait();
        assert!(returned.recv_timeout(Duration::from_millis(50)).is_err());
        // The same device and group, other domains: everything goes on, on this thread.
        for number in 2..50 {
            let (domain, _memory) = attached(&iommu, &device, number);
            let mut other = device.port();
            write(&mut other, pasid(number), IOVA, b"x").unwrap();
            domain.unmap(range(IOVA, LEN as u64));
            source(&device, number).detach();
        }
        assert_eq!(iommu.paging_domains(), 1, "only the stuck one is left");
        drop(guard);
        returned.recv().unwrap();
    });
    assert!(stuck.attachments().is_empty());
}

/// Says "answer" also when an assertion ends the test.
struct AnswerOnDrop<'a>(&'a Stuck);

impl Drop for AnswerOnDrop<'_> {
    fn drop(&mut self) {
        self.0.answer();
    }
}

#[test]
fn a_client_that_never_answers_keeps_nothing_of_the_others() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (hostile, _memory) = attached(&iommu, &device, 1);
    let far = IOVA + LEN as u64;
    let (stuck, _range) = Stuck::map(&iommu, &hostile, far);
    let (send, returned) = mpsc::channel();
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut port = device.port();
            port.enter_blocking(pasid(1)).copy(IOVA, far, 64)
        });
        let _answer = AnswerOnDrop(&stuck);
        stuck.wait_until_asked();
        for number in 2..20 {
            let (domain, memory) = attached(&iommu, &device, number);
            let bytes = Arc::clone(memory.memory());
            let mut port = device.port();
            write(&mut port, pasid(number), IOVA, b"x").unwrap();
            domain.unmap(range(IOVA, LEN as u64));
            source(&device, number).detach();
            drop(memory);
            assert_eq!(iommu.grace().retired_items(), 0);
            assert_eq!(Arc::strong_count(&bytes), 1, "its registration is gone");
        }
        // Its own changes wait, however long.
        let hostile = &hostile;
        scope.spawn(move || send.send(hostile.unmap(range(far, 4096))).unwrap());
        assert!(returned.recv_timeout(Duration::from_millis(50)).is_err());
        stuck.answer();
        assert_eq!(returned.recv(), Ok(4096));
        let transfer = worker.join().unwrap();
        assert!(transfer.is_complete(), "{:?}", transfer.stop);
    });
}

/// What `guard.copy(target, far, 64)` and a write after it came to, when the route got another
/// attachment while the memory at `far` did not answer; and that `replace` waited for it.
fn replaced_while_blocked(
    iommu: &Arc<Iommu>,
    device: &Arc<Device>,
    old: &Arc<Domain>,
    stuck: &Stuck,
    (target, far): (u64, u64),
) -> (Transfer, Transfer) {
    let (new, memory) = mapped(iommu, IOVA, LEN);
    stuck.memory.write(0, &[7; 64]);
    let route = DmaSource::new(device, pasid(1));
    let results = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut port = device.port();
            let mut guard = port.enter_blocking(pasid(1));
            let transfer = guard.copy(target, far, 64);
            let after = guard.write(IOVA, b"after");
            assert_eq!(guard.domain(), Some(old.id()), "faults go to the old owner");
            (transfer, after)
        });
        let _answer = AnswerOnDrop(stuck);
        stuck.wait_until_asked();
        let replace = scope.spawn(|| route.replace(&new, &sink()).unwrap());
        while device
            .attachments()
            .iter()
            .any(|(_, domain)| Arc::ptr_eq(domain, old))
        {
            thread::yield_now();
        }
        assert!(!replace.is_finished());
        stuck.answer();
        worker.join().unwrap()
    });
    assert!(contents(&memory, LEN).iter().all(|byte| *byte == 0));
    results
}

#[test]
fn a_route_that_changed_hands_while_a_copy_blocked_ends_the_guard() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (old, memory) = attached(&iommu, &device, 1);
    let (far, farther) = (IOVA + LEN as u64, IOVA + 2 * LEN as u64);
    let (stuck, _range) = Stuck::map(&iommu, &old, far);
    let (untouched, _other) = Stuck::map(&iommu, &old, farther);
    let (transfer, after) = replaced_while_blocked(&iommu, &device, &old, &stuck, (farther, far));
    for transfer in [transfer, after] {
        assert_eq!(transfer.done, 0);
        assert!(matches!(transfer.stop, Some(Stop::Budget)));
    }
    let mut found = [1; 64];
    untouched.memory.read(0, &mut found);
    assert_eq!(found, [0; 64]);
    assert!(contents(&memory, LEN).iter().all(|byte| *byte == 0));
}

#[test]
fn a_copy_to_addressable_memory_that_blocked_is_waited_for_and_ends_the_guard() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (old, memory) = attached(&iommu, &device, 1);
    let far = IOVA + LEN as u64;
    let (stuck, _range) = Stuck::map(&iommu, &old, far);
    let (transfer, after) = replaced_while_blocked(&iommu, &device, &old, &stuck, (IOVA, far));
    assert!(transfer.is_complete(), "{:?}", transfer.stop);
    assert_eq!(after.done, 0);
    assert!(matches!(after.stop, Some(Stop::Budget)));
    let found = contents(&memory, LEN);
    assert_eq!(found[..64], [7; 64]);
    assert!(found[64..].iter().all(|byte| *byte == 0));
}
