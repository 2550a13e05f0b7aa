use std::{
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, channel},
    },
    time::Duration,
};

use ioasid_core::{
    access::Prot,
    host::{Caller, FdError, Worker, WorkerStopped},
    memory::{MemoryGone, PinError},
};
use ioasid_host::ClientWorker;

use crate::dma::{Fixture, write};

#[test]
fn jobs_run_in_order_and_the_queued_ones_before_the_end() {
    let worker = ClientWorker::new("test").unwrap();
    let (send, receive) = channel();
    let (go, wait) = channel::<()>();
    worker
        .submit(Box::new(move || wait.recv().unwrap()))
        .unwrap();
    for number in 0..100 {
        let send = send.clone();
        let job = move || send.send(number).unwrap();
        worker.submit(Box::new(job)).unwrap();
    }
    drop(send);
    worker.stop();
    assert_eq!(
        worker.submit(Box::new(|| unreachable!())),
        Err(WorkerStopped)
    );
    assert!(!worker.has_ended(), "the first job is still waiting");
    go.send(()).unwrap();
    assert_eq!(
        receive.iter().collect::<Vec<_>>(),
        (0..100).collect::<Vec<_>>()
    );
    while !worker.has_ended() {
        std::thread::yield_now();
    }
}

#[test]
fn a_job_that_panics_does_not_end_the_worker() {
    let worker = ClientWorker::new("test").unwrap();
    worker.submit(Box::new(|| panic!("as expected"))).unwrap();
    let (send, receive) = channel();
    worker
        .submit(Box::new(move || send.send(()).unwrap()))
        .unwrap();
    receive.recv().unwrap();
}

#[test]
fn memory_that_never_answers_holds_up_nobody_but_its_owner() {
    let mut hostile = Fixture::new();
    let mut other = Fixture::in_space(&hostile.space);
    let Some((fd, _target)) = silent_file(&mut hostile) else {
        return;
    };
    let address = hostile.child.ask(&format!("map-private {fd} 4096"));
    let pages = hostile.pin(address, 4096, Prot::RW).unwrap();
    let (send, receive) = channel();
    let (started, running) = channel();
    let space = Arc::clone(&hostile.space);
    hostile
        .client
        .worker()
        .submit(Box::new(move || {
            started.send(()).unwrap();
            send.send(write(&space, &pages, &[1; 64])).unwrap();
        }))
        .unwrap();
    running.recv().unwrap();

    // The other client's worker and this thread, an engine say, go on meanwhile.
    let theirs = other.child.ask("anon 65536");
    let pages = other.pin(theirs, 65536, Prot::RW).unwrap();
    let (done, finished) = channel();
    let space = Arc::clone(&other.space);
    other
        .client
        .worker()
        .submit(Box::new(move || {
            done.send(write(&space, &pages, &[2; 65536])).unwrap();
        }))
        .unwrap();
    finished.recv().unwrap().unwrap();
    assert_eq!(other.child.ask(&format!("count {theirs} 65536 2")), 65536);
    let stuck = receive.recv_timeout(Duration::from_millis(1));
    assert_eq!(
        stuck,
        Err(RecvTimeoutError::Timeout),
        "nobody has answered the fault"
    );

    // Stopping the client does not wait either; its death lets the worker go.
    hostile.client.stop();
    assert!(!hostile.client.has_stopped());
    hostile.child.kill();
    let end = receive.recv().unwrap();
    assert!(matches!(end, Ok(()) | Err(MemoryGone { .. })));
    while !hostile.client.has_stopped() {
        std::thread::yield_now();
    }
}

/// A file of the child whose server answers nothing any more, and what it is mounted on.
fn silent_file(f: &mut Fixture) -> Option<(i32, tempfile::NamedTempFile)> {
    let target = tempfile::NamedTempFile::new().unwrap();
    let answer = f
        .child
        .tell(&format!("silent-file {}", target.path().display()));
    let Ok(fd) = answer[0].parse() else {
        eprintln!("skipped: a FUSE mount is {answer:?}");
        return None;
    };
    f.child.tell("fall-silent");
    Some((fd, target))
}

#[test]
fn a_file_whose_server_never_answers_is_refused_without_asking_it() {
    let mut f = Fixture::new();
    let Some((fd, _target)) = silent_file(&mut f) else {
        return;
    };
    assert_eq!(
        f.process.file_pages(fd, 0, 4096).unwrap_err(),
        FdError::WrongType
    );
    assert_eq!(f.process.eventfd(fd).unwrap_err(), FdError::WrongType);
    f.process.fd_identity(fd).unwrap();
    // A shared mapping of it is the client's own memory, never a mapping of ours; its server keeps track
    // of what is written.
    let address = f.child.ask(&format!("map {fd} 4096 rw"));
    assert_eq!(f.pin(address, 4096, Prot::RW).unwrap_err(), PinError::Fault);
    let pages = f.pin(address, 4096, Prot::READ).unwrap();
    assert!(!f.is_direct(&pages));
    // Nor does a look for other files among the descriptors of the process ask it.
    let memfd = f.child.ask("memfd 4096");
    let address = f.child.ask(&format!("map {memfd} 4096 rw"));
    let pages = f.pin(address, 4096, Prot::RW).unwrap();
    assert!(f.is_direct(&pages));
}

#[test]
fn a_page_that_its_owner_must_fault_in_is_gone_for_dma_until_it_does() {
    let mut f = Fixture::new();
    let answer = f.child.tell("userfault 8192");
    let Ok(address) = answer[0].parse() else {
        eprintln!("skipped: userfaultfd is {answer:?}");
        return;
    };
    let pages = f.pin(address, 4096, Prot::RW).unwrap();
    assert_eq!(f.write(&pages, &[1; 64]), Err(MemoryGone { done: 0 }));
}
