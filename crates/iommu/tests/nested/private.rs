//! Guests' tables in another process's memory, where to read an entry may block for ever.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use ioasid_core::{AddrRange, Pasid, memory::MemoryGone, sync::Condvar};
use ioasid_iommu::{
    Device, DeviceTlb, DmaSource, Domain, DomainConfig, FaultReason, FirstStage, FirstStageFault,
    Invalidate, Iommu, NestedFault, Stop, Transfer,
};

use crate::{
    common::{
        guest::{A, D, Guest, Hook, P, Place, Private, RW, US},
        *,
    },
    rights::IOVA,
};

const LEN: u64 = 4096;

/// A guest in another process, a device behind its table, and two pages: the first is mapped at [`IOVA`].
struct Scene {
    iommu: Arc<Iommu>,
    device: Arc<Device>,
    guest: Guest,
    table: FirstStage,
    nested: Arc<Domain>,
    private: Arc<Private>,
    pages: [u64; 2],
    /// From the top down.
    entries: Vec<u64>,
    route: DmaSource,
}

fn scene() -> Scene {
    let iommu = machine();
    let device = device(&iommu, 1);
    let config = DomainConfig::unmanaged(FORMAT);
    let mut guest = Guest::with(&iommu, 128 * LEN, Place::Private, config);
    let table = guest.table(4);
    let pages = [guest.page(), guest.page()];
    guest.map(table, IOVA, pages[0], 0, RW | US);
    let entries = guest.entries(table, IOVA, 0);
    let nested = guest.parent.nest(table).unwrap();
    let route = source(&device, 3);
    route.attach(&nested, &sink()).unwrap();
    let private = Arc::clone(guest.private.as_ref().unwrap());
    Scene {
        iommu,
        device,
        guest,
        table,
        nested,
        private,
        pages,
        entries,
        route,
    }
}

impl Scene {
    /// One write under a guard that may block.
    fn write(&self, iova: u64, bytes: &[u8]) -> Transfer {
        let mut port = self.device.port();
        port.enter_blocking(self.route.pasid).write(iova, bytes)
    }

    fn write_all(&self, iova: u64, bytes: &[u8]) -> Result<(), FaultReason> {
        let transfer = self.write(iova, bytes);
        match transfer.stop {
            None => Ok(()),
            Some(Stop::Fault(fault)) => Err(fault.reason),
            Some(other) => panic!("{other:?}"),
        }
    }

    /// Blocks the next access to the page of memory of `gpa` until the gate is opened.
    fn gate(&self, gpa: u64, writes: bool) -> Arc<Gate> {
        let gate = Arc::<Gate>::default();
        let page = self.guest.offset(gpa) / LEN;
        let hook: Hook = {
            let gate = Arc::clone(&gate);
            Arc::new(move |offset, write| {
                if offset / LEN == page && write == writes {
                    gate.wait();
                }
                Ok(())
            })
        };
        self.private.set_hook(Some(hook));
        gate
    }
}

/// Where an access waits.
#[derive(Default)]
struct Gate {
    state: ioasid_core::sync::Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn wait(&self) {
        let mut state = self.state.lock();
        state.0 = true;
        self.changed.notify_all();
        while !state.1 {
            state = self.changed.wait(state);
        }
    }

    /// Returns when an access waits.
    fn wait_until_asked(&self) {
        let mut state = self.state.lock();
        while !state.0 {
            state = self.changed.wait(state);
        }
    }

    fn open(&self) {
        self.state.lock().1 = true;
        self.changed.notify_all();
    }
}

/// Opens it also when an assertion ends the test.
struct OpenOnDrop<'a>(&'a Gate);

impl Drop for OpenOnDrop<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

#[test]
fn a_guard_that_may_not_block_touches_no_table_and_names_its_worker() {
    let scene = scene();
    for warm in [false, true] {
        if warm {
            scene.write_all(IOVA, b"warm").unwrap();
        }
        let before = scene.private.accesses();
        let mut port = scene.device.port();
        let mut guard = port.enter(scene.route.pasid);
        let stops = [
            guard.read(IOVA, &mut [0; 8]),
            guard.write(IOVA, &[0; 8]),
            guard.fill(IOVA, 1, 8),
            guard.copy(IOVA, IOVA + 64, 8),
            guard.copy(IOVA + 1, IOVA, 8),
            guard.compare(IOVA, IOVA + 64, 8).0,
        ];
        for Transfer { done, stop } in stops {
            assert_eq!(done, 0);
            assert!(matches!(stop, Some(Stop::Remote(_))), "{stop:?}");
        }
        assert_eq!(scene.private.accesses(), before);
    }
}

#[test]
fn entries_are_read_once_and_ahead() {
    let mut scene = scene();
    for page in 1..32 {
        let gpa = scene.guest.page();
        let iova = IOVA + page * LEN;
        scene.guest.map(scene.table, iova, gpa, 0, RW | US | A | D);
    }
    let mut port = scene.device.port();
    let mut bytes = vec![0; 32 * 4096];
    let mut read = |private: &Private| {
        let before = private.accesses();
        let mut guard = port.enter_blocking(scene.route.pasid);
        let mut done = 0;
        while (done as usize) < bytes.len() {
            let at = done as usize;
            let len = bytes.len().min(at + 0x8000);
            let transfer = guard.read(IOVA + done, &mut bytes[at..len]);
            if matches!(transfer.stop, Some(Stop::Budget)) {
                drop(guard);
                guard = port.enter_blocking(scene.route.pasid);
            }
            done += transfer.done;
        }
        private.accesses() - before
    };
    let cold = read(&scene.private);
    let warm = read(&scene.private);
    // Once for each page, since they are none beside one another.
    assert_eq!(warm, 32);
    assert!(cold <= warm + 30, "{cold} accesses for four tables");
    scene.nested.invalidate(AddrRange::ALL, Invalidate::Leaves);
    let leaves = read(&scene.private);
    assert!(
        warm < leaves && leaves <= warm + 8,
        "{leaves} after an invalidation of leaves"
    );
}

#[test]
fn a_walk_that_blocks_delays_its_own_parent_alone_and_holds_nothing() {
    for writes in [false, true] {
        for level in 0..4 {
            let scene = scene();
            let (other, _other_memory) = mapped(&scene.iommu, IOVA, 8192);
            source(&scene.device, 4).attach(&other, &sink()).unwrap();
            let gate = scene.gate(scene.entries[level], writes);
            let free = scene.pages[1];
            let (send, returned) = mpsc::channel();
            thread::scope(|scope| {
                let scene = &scene;
                let walk = scope.spawn(|| scene.write(IOVA, b"x"));
                let _open = OpenOnDrop(&gate);
                gate.wait_until_asked();
                for _ in 0..4 {
                    let (domain, memory) = mapped(&scene.iommu, IOVA, 8192);
                    let route = source(&scene.device, 5);
                    route.attach(&domain, &sink()).unwrap();
                    let bytes = Arc::clone(memory.memory());
                    write(&mut scene.device.port(), pasid(5), IOVA, b"x").unwrap();
                    domain.unmap(range(IOVA, 8192));
                    route.replace(&other, &sink()).unwrap();
                    route.detach();
                    drop((memory, domain));
                    assert_eq!(scene.iommu.grace().retired_items(), 0);
                    assert_eq!(Arc::strong_count(&bytes), 1);
                }
                // Its own changes wait, however long, in either stage.
                let unmap = send.clone();
                scope.spawn(move || {
                    scene.guest.parent.unmap(range(free, LEN));
                    unmap.send(()).unwrap();
                });
                scope.spawn(move || {
                    scene
                        .nested
                        .invalidate(range(IOVA, LEN), Invalidate::Leaves);
                    send.send(()).unwrap();
                });
                assert!(returned.recv_timeout(Duration::from_millis(30)).is_err());
                gate.open();
                returned.recv().unwrap();
                returned.recv().unwrap();
                let transfer = walk.join().unwrap();
                assert!(
                    matches!(transfer.stop, None | Some(Stop::Budget)),
                    "{:?}",
                    transfer.stop
                );
            });
            scene.private.set_hook(None);
            scene.write_all(IOVA, b"x").unwrap();
        }
    }
}

#[test]
fn a_route_that_changed_hands_while_a_walk_blocked_ends_the_guard() {
    for writes in [false, true] {
        for level in 0..4 {
            let scene = scene();
            let gate = scene.gate(scene.entries[level], writes);
            // What the parent has at the same address is somebody else's.
            let (parent, memory) = (&scene.guest.parent, pages(&scene.iommu, 4096));
            parent
                .map(IOVA, memory.spa(), LEN, ioasid_core::Prot::RW)
                .unwrap();
            let transfer = thread::scope(|scope| {
                let scene = &scene;
                let walk = scope.spawn(|| scene.write(IOVA, b"old"));
                let _open = OpenOnDrop(&gate);
                gate.wait_until_asked();
                let replace = scope.spawn(|| scene.route.replace(parent, &sink()).unwrap());
                let leads_to = |domain: &Arc<Domain>| {
                    let attached = scene.device.attachments();
                    attached.iter().any(|(_, now)| Arc::ptr_eq(now, domain))
                };
                while !leads_to(parent) {
                    thread::yield_now();
                }
                assert!(!replace.is_finished());
                gate.open();
                walk.join().unwrap()
            });
            assert_eq!(transfer.done, 0);
            assert!(matches!(transfer.stop, Some(Stop::Budget)));
            assert_eq!(scene.guest.bytes(scene.pages[0], 3), [0; 3]);
            assert_eq!(contents(&memory, 3), [0; 3]);
            assert_eq!(Arc::strong_count(&scene.nested), 1);
        }
    }
}

/// Counts the invalidations of a device: they have been counted by the domain when they come here.
#[derive(Debug, Default)]
struct Counted(AtomicU64);

impl DeviceTlb for Counted {
    fn invalidate(&self, _pasid: Option<Pasid>, _range: AddrRange) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn what_was_read_before_an_invalidation_is_not_used_after_it() {
    for (level, writes, what) in [
        (3, false, Invalidate::Leaves),
        (3, false, Invalidate::Tables),
        (2, false, Invalidate::Tables),
        (2, true, Invalidate::Tables),
        (0, true, Invalidate::Tables),
    ] {
        let mut scene = scene();
        let counted = Arc::<Counted>::default();
        scene.device.enable_ats(counted.clone());
        // Another table in the place of the one that the entry leads to, or another page.
        let changed = scene.entries[level.min(2) + usize::from(level == 3)];
        let new = match level {
            3 => scene.pages[1],
            _ => {
                let mut other = scene.guest.table(4);
                other.levels = 3 - level as u32;
                scene.guest.map(other, IOVA, scene.pages[1], 0, RW | US);
                other.root
            }
        };
        // Lower entries are read later: the change falls between.
        let gate = scene.gate(scene.entries[3], writes);
        thread::scope(|scope| {
            let scene = &scene;
            let walk = scope.spawn(|| scene.write(IOVA, b"first"));
            let _open = OpenOnDrop(&gate);
            gate.wait_until_asked();
            scene.guest.write(changed, new | P | RW | US);
            let invalidate = scope.spawn(|| scene.nested.invalidate(range(IOVA, LEN), what));
            while counted.0.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            assert!(!invalidate.is_finished());
            gate.open();
            let _ = walk.join().unwrap();
        });
        scene.private.set_hook(None);
        let old = scene.guest.bytes(scene.pages[0], 5);
        scene.write_all(IOVA, b"again").unwrap();
        let case = format!("{level} {writes} {what:?}");
        assert_eq!(scene.guest.bytes(scene.pages[0], 5), old, "{case}");
        assert_eq!(scene.guest.bytes(scene.pages[1], 5), b"again", "{case}");
    }
}

#[test]
fn what_the_guest_gives_needs_no_invalidation() {
    let scene = scene();
    let first_stage = |fault| Err(FaultReason::Nested(NestedFault::FirstStage(fault)));
    for level in 0..4 {
        let at = scene.entries[level];
        let good = scene.guest.read(at);
        let bad = [
            (0, FirstStageFault::NotPresent),
            (good & !RW, FirstStageFault::Write),
            (good & !US, FirstStageFault::User),
        ];
        for (bad, reason) in bad {
            scene.guest.write(at, bad);
            scene.nested.invalidate(AddrRange::ALL, Invalidate::Tables);
            for _ in 0..2 {
                let found = scene.write_all(IOVA, b"x");
                assert_eq!(found, first_stage(reason), "{level}");
            }
            scene.guest.write(at, good);
            scene.write_all(IOVA, b"x").unwrap();
        }
    }
    // A neighbour in a line that is kept.
    let next = scene.entries[3] + 8;
    assert_eq!(
        scene.write_all(IOVA + LEN, b"y"),
        first_stage(FirstStageFault::NotPresent)
    );
    scene.guest.write(next, scene.pages[1] | P | RW | US);
    scene.write_all(IOVA + LEN, b"y").unwrap();
    assert_eq!(scene.guest.bytes(scene.pages[1], 1), b"y");
}

#[test]
fn tables_whose_process_is_gone_are_faults() {
    for level in 0..4 {
        for writes in [false, true] {
            let scene = scene();
            let page = scene.guest.offset(scene.entries[level]) / LEN;
            let hook: Hook =
                Arc::new(
                    move |offset, write| match offset / LEN == page && write == writes {
                        true => Err(MemoryGone { done: 0 }),
                        false => Ok(()),
                    },
                );
            scene.private.set_hook(Some(hook));
            let wanted = match (writes, level) {
                (true, _) => NestedFault::MarkFailed,
                (false, 0) => NestedFault::RootGone,
                (false, _) => NestedFault::TableGone,
            };
            let found = scene.write_all(IOVA, b"x");
            assert_eq!(found, Err(FaultReason::Nested(wanted)));
            scene.private.set_hook(None);
            scene.write_all(IOVA, b"x").unwrap();
        }
    }
}

#[test]
fn a_guest_that_changes_its_entries_all_the_time_ends_no_later() {
    for changes in 0..3 {
        let scene = scene();
        let counted = Arc::<Counted>::default();
        scene.device.enable_ats(counted.clone());
        let threads = Mutex::new(Vec::new());
        let before = scene.private.accesses();
        let transfer = {
            let (memory, nested) = (Arc::clone(&scene.guest.memory), Arc::clone(&scene.nested));
            let offsets: Vec<usize> = scene
                .entries
                .iter()
                .map(|at| scene.guest.offset(*at) as usize)
                .collect();
            let (send, ended) = mpsc::channel();
            let send = Mutex::new(send);
            let hook: Hook = Arc::new(move |_, _| {
                // Bits of the guest's own, and the accessed bits taken away again.
                if changes != 1 {
                    for offset in &offsets {
                        let mut word = [0; 8];
                        memory.read(*offset, &mut word);
                        let word = u64::from_le_bytes(word);
                        let word = (word ^ 1 << 9) & !(A | D);
                        memory.write(*offset, &word.to_le_bytes());
                    }
                }
                if changes > 0 {
                    let seen = counted.0.load(Ordering::SeqCst);
                    let nested = Arc::clone(&nested);
                    let invalidation = thread::spawn(move || {
                        nested.invalidate(AddrRange::ALL, Invalidate::Tables)
                    });
                    send.lock().unwrap().send(invalidation).unwrap();
                    while counted.0.load(Ordering::SeqCst) == seen {
                        thread::yield_now();
                    }
                }
                Ok(())
            });
            scene.private.set_hook(Some(hook));
            let transfer = scene.write(IOVA, b"x");
            scene.private.set_hook(None);
            threads.lock().unwrap().extend(ended.try_iter());
            transfer
        };
        let accesses = scene.private.accesses() - before;
        assert!(accesses <= 100, "{accesses} accesses, {changes}");
        assert!(
            matches!(transfer.stop, None | Some(Stop::Budget | Stop::Fault(_))),
            "{:?}",
            transfer.stop
        );
        for thread in threads.into_inner().unwrap() {
            thread.join().unwrap();
        }
        scene.write_all(IOVA, b"y").unwrap();
    }
}
