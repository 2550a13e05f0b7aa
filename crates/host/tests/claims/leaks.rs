//! Runs in a process of its own, where no other test opens and closes things.

use std::time::Duration;

use ioasid_core::{access::Prot, grace::Grace, host::Caller, spa::SpaSpace};
use ioasid_host::Client;

use crate::child::{Child, this_test};

const ALONE: &str = "IOASID_HOST_TEST_ALONE";
const CYCLES: usize = 1000;

#[test]
fn a_thousand_clients_leave_no_descriptor_mapping_or_thread() {
    let run = this_test("leaks::alone").env(ALONE, "1").output().unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

#[test]
fn alone() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let threads = counts()[2];
    let space = SpaSpace::new(Grace::new());
    let mut child = Child::start();
    let address = child.ask("anon 65536");
    let fd = child.ask("memfd 65536");
    let shared = child.ask(&format!("map {fd} 65536 rw"));
    let eventfd = child.ask("eventfd 0") as i32;
    let cycle = || {
        let client = Client::new("brief", space.clone()).unwrap();
        let process = client.process(child.pid()).unwrap();
        let sink = process.eventfd(eventfd).unwrap();
        let mut held = Vec::new();
        for address in [address, shared] {
            let pages = process.pages(address, 65536).unwrap();
            held.push(pages.pin(0, 65536, Prot::RW).unwrap());
        }
        let file = process.file_pages(fd as i32, 0, 4096).unwrap();
        file.write(0, &[1; 64]).unwrap();
        sink.signal();
        client.stop();
    };
    for _ in 0..10 {
        cycle(); // what is made once
    }
    let before = settled_counts(threads);
    for _ in 0..CYCLES {
        cycle();
    }
    let after = settled_counts(threads);
    assert_eq!(after[0], before[0], "file descriptors");
    assert_eq!((before[2], after[2]), (threads, threads), "threads");
    // The allocator keeps some arenas and stacks; a leak of one per cycle would be a thousand.
    assert!(
        after[1] < before[1] + CYCLES / 10,
        "mappings: {} before, {} after",
        before[1],
        after[1]
    );
    assert_eq!(space.used_windows(), 0);
}

/// Descriptors, mappings, threads.
fn counts() -> [usize; 3] {
    let count = |name: &str| {
        std::fs::read_dir(format!("/proc/self/{name}"))
            .unwrap()
            .count()
    };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    [count("fd"), maps.lines().count(), count("task")]
}

/// The same once there are no more than `threads`: one that is ending may still hold something.
fn settled_counts(threads: usize) -> [usize; 3] {
    for _ in 0..1000 {
        if counts()[2] <= threads {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    counts()
}
