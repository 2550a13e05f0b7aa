use std::{os::unix::process::ExitStatusExt, sync::Arc};

use ioasid_core::{
    access::Prot,
    host::{Caller, FdError},
    memory::MemoryGone,
};
use ioasid_host::ProcessError;

use crate::dma::Fixture;

#[test]
fn every_thread_leads_to_its_process() {
    let mut f = Fixture::new();
    let tid = f.child.ask("thread") as i32;
    for id in [tid, f.child.pid(), tid] {
        let found = f.client.process(id).unwrap();
        assert!(Arc::ptr_eq(&found, &f.process));
        assert_eq!(found.id(), f.child.pid());
    }
}

#[test]
fn structs_are_read_and_written_where_the_program_has_them() {
    let mut f = Fixture::new();
    let address = f.child.ask("anon 8192");
    f.process.write(address + 4090, b"across pages").unwrap();
    let mut found = [0; 12];
    f.process.read(address + 4090, &mut found).unwrap();
    assert_eq!(&found, b"across pages");
    f.child.tell(&format!("munmap {} 4096", address + 4096));
    assert_eq!(
        f.process.read(address + 4090, &mut found),
        Err(MemoryGone { done: 6 })
    );
    assert_eq!(
        f.process.write(address + 4090, &found),
        Err(MemoryGone { done: 0 })
    );
}

#[test]
fn after_exec_the_old_memory_is_gone_and_the_process_is_a_new_one() {
    let mut f = Fixture::new();
    let address = f.child.ask("anon 4096");
    let pages = f.pin(address, 4096, Prot::RW).unwrap();
    f.write(&pages, &[1; 16]).unwrap();
    assert!(f.process.still_same());
    assert_eq!(f.child.tell("exec"), ["ready"]);
    assert!(!f.process.still_same());
    assert_eq!(f.write(&pages, &[2; 16]), Err(MemoryGone { done: 0 }));
    let new = f.client.process(f.child.pid()).unwrap();
    assert!(!Arc::ptr_eq(&new, &f.process));
    let address = f.child.ask("anon 4096");
    new.write(address, &[3; 16]).unwrap();
    assert_eq!(f.child.ask(&format!("count {address} 4096 3")), 16);
}

#[test]
fn a_child_that_borrows_memory_is_looked_at_anew_each_time() {
    let mut f = Fixture::new();
    let address = f.child.ask("anon 4096");
    let borrower = f.child.ask("vfork") as i32;
    let first = f.client.process(borrower).unwrap();
    first.write(address, &[6; 8]).unwrap();
    assert_eq!(f.child.ask(&format!("count {address} 4096 6")), 8);
    let second = f.client.process(borrower).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    // The lender itself stays as it was.
    assert!(Arc::ptr_eq(
        &f.client.process(f.child.pid()).unwrap(),
        &f.process
    ));
    let borrower = rustix::process::Pid::from_raw(borrower).unwrap();
    rustix::process::kill_process(borrower, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_process_that_has_ended_is_gone() {
    let mut f = Fixture::new();
    f.child.kill();
    assert!(!f.process.still_same());
    assert_eq!(
        f.client.process(f.child.pid()).unwrap_err(),
        ProcessError::Gone
    );
    assert_eq!(f.client.process(-1).unwrap_err(), ProcessError::Gone);
    assert_eq!(f.process.get_fd(0).unwrap_err(), FdError::NotOpen);
}

#[test]
fn descriptors_are_known_by_device_and_inode_and_can_be_duplicated() {
    let mut f = Fixture::new();
    let fd = f.child.ask("memfd 4096");
    let told = f.child.tell(&format!("identity {fd}"));
    let (dev, ino) = f.process.fd_identity(fd as i32).unwrap();
    assert_eq!([dev.to_string(), ino.to_string()].to_vec(), told);
    let ours = rustix::fs::fstat(f.process.get_fd(fd as i32).unwrap()).unwrap();
    assert_eq!((ours.st_dev, ours.st_ino), (dev, ino));
    f.child.tell(&format!("close {fd}"));
    assert_eq!(f.process.fd_identity(fd as i32), Err(FdError::NotOpen));
    assert_eq!(f.process.get_fd(fd as i32).unwrap_err(), FdError::NotOpen);
}

#[test]
fn a_fault_that_no_copy_makes_still_ends_the_process() {
    let mut f = Fixture::new();
    f.child.send("crash");
    assert_eq!(f.child.wait().signal(), Some(libc::SIGSEGV));
}

#[test]
fn a_process_that_may_not_be_looked_into_is_refused_by_name() {
    if rustix::process::getuid().is_root() {
        eprintln!("skipped: root may look into every process");
        return;
    }
    let mut f = Fixture::new();
    f.child.tell("undumpable");
    f.client.stop(); // forgets the process it knows
    let refused = f.client.process(f.child.pid()).unwrap_err();
    assert!(matches!(refused, ProcessError::Denied(_)), "{refused}");
}
