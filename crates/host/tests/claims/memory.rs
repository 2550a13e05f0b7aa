use ioasid_core::{
    access::Prot,
    grace::Grace,
    host::{Caller, FdError},
    inspect::{Inspect, Value},
    memory::{Extent, MemoryGone, PinBatch, PinError},
    spa::{Resolved, SpaSpace, WINDOW_SIZE},
};
use ioasid_host::{Client, Limits};

use crate::{child::Child, dma::Fixture};

const PAGE: u64 = 4096;
const LEN: u64 = 1 << 20;

#[test]
fn dma_reaches_private_memory_of_another_process_in_both_directions() {
    let mut f = Fixture::new();
    let address = f.child.ask(&format!("anon {LEN}"));
    f.child.tell(&format!("fill {address} {LEN} 17"));
    let pages = f.pin(address, LEN, Prot::RW).unwrap();
    assert!(!f.is_direct(&pages));
    assert_eq!(
        pages[0].spa % WINDOW_SIZE,
        address % WINDOW_SIZE,
        "large leaves are possible"
    );
    assert_eq!(f.read(&pages, LEN as usize).unwrap(), [17; LEN as usize]);
    f.write(&pages, &[18; 5000]).unwrap();
    assert_eq!(f.child.ask(&format!("count {address} {LEN} 18")), 5000);
    assert_eq!(f.child.ask(&format!("count {address} 5000 18")), 5000);
}

/// Copies `len` bytes between private memory (at `far`) and shared memory (at `near`), into `near` or
/// from it.
fn copy_straight(f: &Fixture, near: u64, far: u64, len: u64, into: bool) -> Result<(), MemoryGone> {
    let mut slot = f.space.grace().slot();
    let guard = slot.enter();
    let Some(Resolved::Direct(bytes)) = f.space.resolve(&guard, near, len) else {
        panic!("shared memory is addressable")
    };
    let Some(Resolved::Remote { memory, offset, .. }) = f.space.resolve(&guard, far, len) else {
        panic!("private memory is not")
    };
    if into {
        memory.read_into(offset, bytes, &mut [0; 1 << 14])
    } else {
        memory.write_from(offset, bytes, &mut [0; 1 << 14])
    }
}

#[test]
fn a_copy_between_private_and_shared_memory_ends_exactly_where_either_is_gone() {
    let mut f = Fixture::new();
    let private = f.child.ask(&format!("anon {LEN}"));
    let fd = f.child.ask(&format!("memfd {LEN}"));
    let shared = f.child.ask(&format!("map {fd} {LEN} rw"));
    let far = f.pin(private, LEN, Prot::RW).unwrap();
    let near = f.pin(shared, LEN, Prot::RW).unwrap();
    f.child.tell(&format!("fill {private} {LEN} 17"));
    let copy = |f: &Fixture, at: u64, len, into| {
        copy_straight(f, near[0].spa + at, far[0].spa + at + 1, len, into)
    };
    assert_eq!(copy(&f, 5, LEN - 6, true), Ok(()));
    assert_eq!(f.child.ask(&format!("count {shared} {LEN} 17")), LEN - 6);
    f.child.tell(&format!("fill {shared} {LEN} 18"));
    assert_eq!(copy(&f, 5, LEN - 6, false), Ok(()));
    assert_eq!(f.child.ask(&format!("count {private} {LEN} 18")), LEN - 6);

    // The last pages of the private memory go: 17 is what is there of 100 pages from 83 on.
    f.child.tell(&format!("fill {private} {LEN} 17"));
    let (start, len) = (LEN - 100 * PAGE - 5, 100 * PAGE);
    let end = private + LEN - 17 * PAGE;
    f.child.tell(&format!("munmap {end} {}", 17 * PAGE));
    let done = (end - private - start - 1) as usize;
    for into in [true, false] {
        assert_eq!(copy(&f, start, len, into), Err(MemoryGone { done }));
    }
    let arrived = shared + start;
    assert_eq!(
        f.child.ask(&format!("count {arrived} {len} 17")),
        done as u64
    );
    assert_eq!(
        f.child.ask(&format!("count {arrived} {done} 17")),
        done as u64
    );

    // More of the file goes.
    let kept = LEN - 40 * PAGE;
    f.child.tell(&format!("fill {private} {} 19", kept + 1));
    f.child.tell(&format!("truncate {fd} {kept}"));
    let done = (kept - start) as usize;
    for into in [true, false] {
        assert_eq!(copy(&f, start, len, into), Err(MemoryGone { done }));
    }
    assert_eq!(
        f.child.ask(&format!("count {arrived} {done} 19")),
        done as u64
    );
    f.child.kill();
    for into in [true, false] {
        assert_eq!(copy(&f, 0, PAGE, into), Err(MemoryGone { done: 0 }));
    }
}

#[test]
fn private_memory_of_one_gib_of_addresses_is_one_registration() {
    let mut f = Fixture::new();
    let address = f.child.ask(&format!("anon {LEN}"));
    let one = f.pin(address, PAGE, Prot::RW).unwrap();
    let two = f.pin(address + 7 * PAGE, PAGE, Prot::READ).unwrap();
    assert_eq!(two[0].spa - one[0].spa, 7 * PAGE);
    drop((one, two));
    f.space.grace().collect();
    assert_eq!(f.space.used_windows(), 0);
}

#[test]
fn pins_of_a_batch_are_as_if_made_at_its_beginning() {
    let mut f = Fixture::new();
    let plain = f.child.ask(&format!("anon {LEN}"));
    let read_only = f.child.ask(&format!("anon-ro {LEN}"));
    let nothing = f.child.ask(&format!("anon-none {LEN}"));
    let file = f.child.ask(&format!("memfd {LEN}"));
    let shared = f.child.ask(&format!("map {file} {LEN} rw"));
    let facts = |pinned: Result<Vec<Extent>, PinError>| {
        let facts = |extent: &Extent| (extent.spa, extent.len);
        pinned.map(|extents| extents.iter().map(facts).collect::<Vec<_>>())
    };
    let mut batch = PinBatch::new();
    let mut next = |address, prot| {
        let pages = f.process.pages(address, PAGE).unwrap();
        facts(pages.pin_next(&mut batch, 0, PAGE, prot))
    };
    // What keeps the registrations, so that both ways find the same.
    let kept = [plain, shared].map(|address| f.pin(address, LEN, Prot::RW).unwrap());
    for address in [
        plain,
        plain + PAGE,
        read_only,
        plain,
        nothing,
        shared,
        shared + PAGE,
        plain,
    ] {
        for prot in [Prot::RW, Prot::READ] {
            let alone = facts(f.pin(address, PAGE, prot));
            assert_eq!(next(address, prot), alone, "{address:#x}");
        }
    }
    f.child.tell(&format!("munmap {plain} {LEN}"));
    let seen = next(plain + 2 * PAGE, Prot::RW);
    assert!(seen.is_ok(), "nothing is looked up again");
    assert_eq!(
        facts(f.pin(plain + 2 * PAGE, PAGE, Prot::RW)),
        Err(PinError::Fault)
    );
    drop(kept);
}

#[test]
fn unmapped_private_memory_is_gone_for_dma() {
    let mut f = Fixture::new();
    let address = f.child.ask(&format!("anon {LEN}"));
    let pages = f.pin(address, LEN, Prot::RW).unwrap();
    f.child
        .tell(&format!("munmap {} {}", address + PAGE, LEN - PAGE));
    let done = PAGE as usize;
    assert_eq!(
        f.write(&pages, &[1; LEN as usize]),
        Err(MemoryGone { done })
    );
    assert_eq!(f.read(&pages, LEN as usize), Err(MemoryGone { done }));
    f.child.kill();
    assert_eq!(f.read(&pages, 1), Err(MemoryGone { done: 0 }));
}

#[test]
fn shared_memory_is_reached_directly_and_stays_after_munmap_like_a_pin() {
    let mut f = Fixture::new();
    let fd = f.child.ask(&format!("memfd {LEN}"));
    let address = f.child.ask(&format!("map {fd} {LEN} rw"));
    f.child.tell(&format!("fill {address} {LEN} 3"));
    let pages = f.pin(address + PAGE, LEN - PAGE, Prot::RW).unwrap();
    assert!(f.is_direct(&pages));
    f.write(&pages, b"from the device").unwrap();
    assert_eq!(f.child.ask(&format!("count {} 15 3", address + PAGE)), 0);
    assert_eq!(f.child.ask(&format!("count {address} {LEN} 3")), LEN - 15);
    f.child.tell(&format!("munmap {address} {LEN}"));
    assert_eq!(f.read(&pages, 15).unwrap(), b"from the device");
    f.child.kill();
    assert_eq!(f.read(&pages, 15).unwrap(), b"from the device");
}

#[test]
fn the_same_file_by_descriptor_and_by_address_is_the_same_memory() {
    let mut f = Fixture::new();
    let fd = f.child.ask(&format!("memfd {LEN}"));
    let address = f.child.ask(&format!("map {fd} {LEN} rw"));
    let by_address = f.pin(address, LEN, Prot::RW).unwrap();
    let source = f.process.file_pages(fd as i32, PAGE, LEN - PAGE).unwrap();
    assert!(source.is_file());
    let by_fd = source.pin(0, PAGE, Prot::RW).unwrap();
    assert_eq!(by_fd[0].spa, by_address[0].spa + PAGE);
    source.write(5, b"once").unwrap();
    assert_eq!(&f.read(&by_fd, 9).unwrap()[5..], b"once");
    assert_eq!(f.space.used_windows(), 1);
}

#[test]
fn a_file_is_looked_for_once_as_long_as_something_of_it_is_mapped() {
    let mut f = Fixture::new();
    let searches = |f: &Fixture| {
        let node = f.client.inspect();
        ["file_searches", "descriptor_listings"].map(|name| match node.field(name) {
            Some(&Value::Count(count)) => count,
            other => panic!("{name}: {other:?}"),
        })
    };
    let fd = f.child.ask(&format!("memfd {LEN}"));
    let address = f.child.ask(&format!("map {fd} {LEN} rw"));
    assert_eq!(searches(&f), [0, 0]);
    let first = f.pin(address, PAGE, Prot::RW).unwrap();
    let [1, listings @ 0..=1] = searches(&f) else {
        panic!("{:?}", searches(&f))
    };
    // By another mapping as well, that only reads.
    let again = f.child.ask(&format!("map {fd} {LEN} r"));
    let more = [
        f.pin(address, LEN, Prot::RW).unwrap(),
        f.pin(again, LEN, Prot::READ).unwrap(),
    ];
    assert!(more.iter().all(|pages| f.is_direct(pages)));
    assert_eq!(more[1][0].spa, first[0].spa);
    assert_eq!(searches(&f), [1, listings]);
    // Also with the only descriptor closed, and the first mapping gone.
    f.child.tell(&format!("close {fd}"));
    drop(first);
    let page = f.pin(address + PAGE, PAGE, Prot::RW).unwrap();
    assert_eq!(searches(&f), [1, listings]);
    drop((more, page));
    f.space.grace().collect();
    assert_eq!(f.space.used_windows(), 0);
    // Nothing keeps it any more.
    let pages = f.pin(address, PAGE, Prot::RW).unwrap();
    assert_eq!(searches(&f)[0], 2);
    drop(pages);
}

#[test]
fn a_mapping_whose_descriptors_are_all_closed_still_works() {
    let mut f = Fixture::new();
    let fd = f.child.ask(&format!("memfd {LEN}"));
    let address = f.child.ask(&format!("map {fd} {LEN} rw"));
    f.child.tell(&format!("close {fd}"));
    let pages = f.pin(address, LEN, Prot::RW).unwrap();
    f.write(&pages, &[9; 100]).unwrap();
    assert_eq!(f.child.ask(&format!("count {address} {LEN} 9")), 100);
}

#[test]
fn shared_memory_without_a_descriptor_is_one_memory_in_all_processes_and_outlives_its_giver() {
    let mut f = Fixture::new();
    let address = f.child.ask(&format!("share {LEN}"));
    let forked = f.child.ask("fork") as i32;
    let by_parent = f.pin(address, LEN, Prot::RW).unwrap();
    let process = f.client.process(forked).unwrap();
    let pages = process.pages(address + PAGE, PAGE).unwrap();
    let by_forked = pages.pin(0, PAGE, Prot::RW).unwrap();
    assert_eq!(by_forked[0].spa, by_parent[0].spa + PAGE);
    drop(by_parent);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(forked).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    while process.still_same() {
        std::thread::yield_now();
    }
    assert!(
        pages.pin(0, PAGE, Prot::RW).is_err(),
        "a new pin needs its giver"
    );
    f.write(&by_forked, &[5; 10]).unwrap();
    assert_eq!(f.child.ask(&format!("count {address} {LEN} 5")), 10);
}

#[test]
fn a_file_that_is_truncated_under_dma_costs_only_the_bytes_that_are_gone() {
    let mut f = Fixture::new();
    let fd = f.child.ask(&format!("memfd {LEN}"));
    let source = f.process.file_pages(fd as i32, 0, LEN).unwrap();
    let pages = source.pin(0, LEN, Prot::RW).unwrap();
    f.write(&pages, &[1; LEN as usize]).unwrap();
    f.child.tell(&format!("truncate {fd} {}", 3 * PAGE));
    let done = 3 * PAGE as usize;
    assert_eq!(f.read(&pages, LEN as usize), Err(MemoryGone { done }));
    assert_eq!(
        f.write(&pages, &[2; LEN as usize]),
        Err(MemoryGone { done })
    );
    assert_eq!(
        source.read(0, &mut [0; LEN as usize]),
        Err(MemoryGone { done })
    );
    assert_eq!(f.read(&pages, done).unwrap(), vec![2; done]);
    assert_eq!(
        source.pin(0, LEN, Prot::RW).unwrap_err(),
        PinError::OutOfRange
    );
    let address = f.child.ask(&format!("map {fd} {LEN} rw"));
    assert_eq!(f.pin(address, LEN, Prot::RW).unwrap_err(), PinError::Fault);
}

#[test]
fn a_file_that_grows_is_reached_up_to_its_new_end() {
    let mut f = Fixture::new();
    let fd = f.child.ask(&format!("memfd {PAGE}"));
    let first = f.process.file_pages(fd as i32, 0, PAGE).unwrap();
    let first = first.pin(0, PAGE, Prot::RW).unwrap();
    f.child.tell(&format!("truncate {fd} {LEN}"));
    let rest = f.process.file_pages(fd as i32, PAGE, LEN - PAGE).unwrap();
    let rest = rest.pin(0, LEN - PAGE, Prot::RW).unwrap();
    assert_eq!(rest[0].spa, first[0].spa + PAGE, "one mapping serves both");
    f.write(&rest, &[4; (LEN - PAGE) as usize]).unwrap();
}

#[test]
fn read_only_memory_refuses_to_be_pinned_for_writing() {
    let mut f = Fixture::new();
    let private = f.child.ask(&format!("anon-ro {LEN}"));
    let fd = f.child.ask(&format!("memfd {LEN}"));
    let shared = f.child.ask(&format!("map {fd} {LEN} r"));
    for address in [private, shared] {
        for prot in [Prot::RW, Prot::WRITE] {
            assert_eq!(f.pin(address, PAGE, prot).unwrap_err(), PinError::Fault);
        }
        let pages = f.pin(address, PAGE, Prot::READ).unwrap();
        assert_eq!(f.read(&pages, 8).unwrap(), [0; 8]);
        assert_eq!(f.process.write(address, &[1]), Err(MemoryGone { done: 0 }));
        let source = f.process.pages(address, PAGE).unwrap();
        assert_eq!(source.write(0, &[1]), Err(MemoryGone { done: 0 }));
    }
}

/// As what copies for an emulated device does.
#[test]
fn memory_that_the_process_cannot_read_is_not_read_for_it() {
    let mut f = Fixture::new();
    let address = f.child.ask(&format!("anon-none {LEN}"));
    let source = f.process.pages(address, LEN).unwrap();
    let gone = Err(MemoryGone { done: 0 });
    assert_eq!(source.read(0, &mut [0; 8]), gone);
    assert_eq!(source.write(0, &[0; 8]), gone);
}

#[test]
fn a_descriptor_without_write_permission_gives_memory_without_it() {
    let mut f = Fixture::new();
    let fd = f.child.ask(&format!("memfd {LEN}"));
    let read_only = f.child.ask(&format!("reopen-ro {fd}"));
    let source = f.process.file_pages(read_only as i32, 0, LEN).unwrap();
    assert_eq!(source.pin(0, PAGE, Prot::RW).unwrap_err(), PinError::Fault);
    let pages = source.pin(0, PAGE, Prot::READ).unwrap();
    assert_eq!(f.read(&pages, 1).unwrap(), [0]);
    assert_eq!(f.write(&pages, &[1]), Err(MemoryGone { done: 0 }));
    assert_eq!(source.write(0, &[1]), Err(MemoryGone { done: 0 }));
}

#[test]
fn a_sealed_memfd_can_be_read_and_not_written() {
    let mut f = Fixture::new();
    let fd = f.child.ask(&format!("memfd {LEN}"));
    f.child.tell(&format!("seal {fd}"));
    let source = f.process.file_pages(fd as i32, 0, LEN).unwrap();
    assert_eq!(
        source.pin(0, PAGE, Prot::WRITE).unwrap_err(),
        PinError::Fault
    );
    let pages = source.pin(0, PAGE, Prot::READ).unwrap();
    assert_eq!(f.write(&pages, &[1]), Err(MemoryGone { done: 0 }));
}

#[test]
fn unmapped_addresses_refuse_to_be_pinned() {
    let mut f = Fixture::new();
    let address = f.child.ask(&format!("anon {LEN}"));
    f.child
        .tell(&format!("munmap {} {PAGE}", address + 3 * PAGE));
    assert_eq!(
        f.pin(address, LEN, Prot::READ).unwrap_err(),
        PinError::Fault
    );
    assert!(f.pin(address, 3 * PAGE, Prot::READ).is_ok());
    for wild in [0, u64::MAX - LEN, 1 << 47, 0xffff_8000_0000_0000] {
        assert_eq!(
            f.pin(wild, PAGE, Prot::READ).unwrap_err(),
            PinError::Fault,
            "{wild:#x}"
        );
        assert!(f.process.read(wild, &mut [0; 8]).is_err(), "{wild:#x}");
        assert!(f.process.write(wild, &[0; 8]).is_err(), "{wild:#x}");
    }
    let source = f.process.pages(address, PAGE).unwrap();
    assert_eq!(
        source.pin(0, 2 * PAGE, Prot::READ).unwrap_err(),
        PinError::OutOfRange
    );
    assert_eq!(
        source.pin(u64::MAX, PAGE, Prot::READ).unwrap_err(),
        PinError::OutOfRange
    );
}

#[test]
fn only_memory_files_are_taken_and_only_what_lies_in_them() {
    let mut f = Fixture::new();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    // Whoever runs the test, the child is the same user.
    let on_disk = f
        .child
        .ask(&format!("open {}", dir.path().join("file").display()));
    let device = f.child.ask("open /dev/null");
    let eventfd = f.child.ask("eventfd 0");
    for wrong in [on_disk, device, eventfd, 0] {
        let taken = f.process.file_pages(wrong as i32, 0, PAGE);
        assert_eq!(taken.unwrap_err(), FdError::WrongType, "{wrong}");
    }
    for closed in [-1, 500, i32::MAX, i32::MIN] {
        let taken = f.process.file_pages(closed, 0, PAGE);
        assert_eq!(taken.unwrap_err(), FdError::NotOpen, "{closed}");
    }
    let memfd = f.child.ask(&format!("memfd {LEN}")) as i32;
    for (start, len) in [
        (0, LEN + 1),
        (LEN, PAGE),
        (u64::MAX, PAGE),
        (PAGE, u64::MAX),
    ] {
        // The end of the file counts when its pages are needed: it may grow until then.
        let source = f.process.file_pages(memfd, start, len).unwrap();
        let pinned = source.pin(0, len, Prot::READ);
        assert_eq!(pinned.unwrap_err(), PinError::OutOfRange);
    }
}

#[test]
fn a_range_that_cannot_all_be_pinned_leaves_nothing_pinned() {
    let mut f = Fixture::new();
    let fd = f.child.ask(&format!("memfd {PAGE}"));
    let gone = f.child.ask(&format!("memfd {PAGE}"));
    let base = f.child.ask(&format!("anon {LEN}"));
    // Private, a memfd, shared without a descriptor, private; then past the end of a file.
    f.child.tell(&format!("map-at {} {fd} {PAGE}", base + PAGE));
    f.child
        .tell(&format!("map-at {} {gone} {PAGE}", base + 2 * PAGE));
    f.child.tell(&format!("close {gone}"));
    f.child
        .tell(&format!("map-at {} {fd} {}", base + 5 * PAGE, 2 * PAGE));
    for prot in [Prot::READ, Prot::RW] {
        assert_eq!(f.pin(base, LEN, prot).unwrap_err(), PinError::Fault);
        assert_eq!(
            f.pin(base, 7 * PAGE, prot).unwrap_err(),
            PinError::Fault,
            "past the end"
        );
    }
    f.space.grace().collect();
    assert_eq!(f.space.used_windows(), 0);
    let pages = f.pin(base, 6 * PAGE, Prot::RW).unwrap();
    f.write(&pages, &[7; 6 * PAGE as usize]).unwrap();
    drop(pages);
    f.space.grace().collect();
    assert_eq!(f.space.used_windows(), 0);
}

#[test]
fn a_file_whose_faults_are_userfaultfds_is_not_taken_for_one_that_ends() {
    let mut f = Fixture::new();
    let fd = f.child.ask(&format!("memfd {LEN}"));
    let address = f.child.ask(&format!("map-private {fd} {LEN}"));
    let answer = f.child.tell(&format!("userfault-at {address} {LEN}"));
    if answer[0] != address.to_string() {
        eprintln!("skipped: no userfaultfd ({answer:?})");
        return;
    }
    let pages = f.pin(address, LEN, Prot::RW).unwrap();
    assert_eq!(f.read(&pages, 1), Err(MemoryGone { done: 0 }));
}

#[test]
fn a_file_on_tmpfs_is_a_memory_file() {
    let mut f = Fixture::new();
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("skipped: no /dev/shm to write to");
        return;
    };
    let fd = f
        .child
        .ask(&format!("open {}", dir.path().join("file").display()));
    let source = f.process.file_pages(fd as i32, 0, LEN).unwrap();
    let pages = source.pin(0, LEN, Prot::RW).unwrap();
    f.write(&pages, b"tmpfs").unwrap();
    let address = f.child.ask(&format!("map {fd} {LEN} rw"));
    let mut found = [0; 5];
    f.process.read(address, &mut found).unwrap();
    assert_eq!(&found, b"tmpfs");
}

#[test]
fn a_client_over_its_limit_of_windows_is_refused_and_gets_them_back() {
    let space = SpaSpace::new(Grace::new());
    let limits = Limits { windows: 2 };
    let client = Client::with_limits("small", space.clone(), limits).unwrap();
    let mut child = Child::start();
    let process = client.process(child.pid()).unwrap();
    let fds: Vec<_> = (0..3)
        .map(|_| child.ask(&format!("memfd {LEN}")) as i32)
        .collect();
    let source = |at: usize| process.file_pages(fds[at], 0, LEN).unwrap();
    let first = source(0).pin(0, LEN, Prot::RW).unwrap();
    let _second = source(1).pin(0, LEN, Prot::RW).unwrap();
    assert_eq!(
        source(2).pin(0, LEN, Prot::RW).unwrap_err(),
        PinError::NoMemory
    );
    assert!(
        source(0).pin(PAGE, PAGE, Prot::RW).is_ok(),
        "the window it has already"
    );
    drop(first);
    space.grace().collect();
    assert!(source(2).pin(0, LEN, Prot::RW).is_ok());
}
