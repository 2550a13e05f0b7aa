//! The client of rust-vmm's crate `vfio_user`, as Cloud Hypervisor has it, on our server.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::os::fd::AsRawFd;

use common::*;
use ioasid_dsa::spec::{Cmd, Command, Descriptor, registers as reg};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vfio_user::Client;

const CONFIG: u32 = 7;
const MSIX: u32 = 2;
const MIB: u64 = 1 << 20;

fn command(client: &mut Client, command: Command) {
    let cmd = Cmd::new().with_code(command as u8);
    client
        .region_write(0, reg::CMD, &cmd.into_bits().to_le_bytes())
        .unwrap();
    eventually("the end of a command", || {
        let mut status = [0; 4];
        client.region_read(0, reg::CMDSTS, &mut status).unwrap();
        u32::from_le_bytes(status) & (1 << 31) == 0
    });
}

#[test]
fn the_client_of_the_crate_vfio_user_drives_a_device() {
    let fixture = Fixture::new();
    let mut client = Client::new(&fixture.path(MDEV1)).unwrap();
    assert_eq!(client.region(0).unwrap().size, reg::BAR0_SIZE);
    assert!(client.region(0).unwrap().sparse_areas.is_empty());
    let mut id = [0; 4];
    client.region_read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, [0x86, 0x80, 0x25, 0x0b]);
    client.region_write(CONFIG, 4, &[6, 0]).unwrap();

    let vectors = client.get_irq_info(MSIX).unwrap();
    assert!(vectors.count > 0);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    // Data: eventfds; action: trigger.
    let (connect, fire) = (1 << 2 | 1 << 5, 1 << 0 | 1 << 5);
    client
        .set_irqs(MSIX, connect, 0, 1, &[event.as_raw_fd()])
        .unwrap();
    client.set_irqs(MSIX, fire, 0, 1, &[]).unwrap();
    let patience = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(&event, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1);

    let ram = memfd(4 * MIB);
    client.dma_map(0, 0, 4 * MIB, ram.as_raw_fd()).unwrap();
    for step in [
        Command::ResetDevice,
        Command::EnableDevice,
        Command::EnableWq,
    ] {
        command(&mut client, step);
    }
    let bytes = pattern(9000, 5);
    poke(&ram, 0x1000, &bytes);
    let copy = Descriptor::memory_move(0x10_0000, 0x1000, 9000, 0x40);
    client.region_write(2, 0, &copy.to_bytes()).unwrap();
    assert_eq!(wait_record(&ram, 0x40).status, 1);
    assert_eq!(peek(&ram, 0x10_0000, 9000), bytes);

    client.dma_unmap(0, 4 * MIB).unwrap();
    client.reset().unwrap();
    client.shutdown().unwrap();
    fixture.released(MDEV1);
}

#[test]
fn it_comes_back_after_it_was_gone() {
    let fixture = Fixture::new();
    for _ in 0..20 {
        let client = Client::new(&fixture.path(PDEV)).unwrap();
        drop(client);
    }
}
