//! Descriptors that hang: a client sends files whose server never answers, wherever descriptors can come,
//! and nobody waits for them.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic")]

mod common;

use std::{
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use common::{hanging::Hanging, *};
use ioasid_dsa::spec::Descriptor;
use ioasid_uapi::spec::vfio::{Feature, IrqSet, RegionInfo};
use ioasid_vfio_user::{
    MAX_FDS,
    spec::{
        DmaAccess, DmaMap, DmaUnmap, Header, MigData, RegionAccess, SmallWrite, Version, command,
    },
};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::{FromZeros, IntoBytes};

const MIB: u64 = 1 << 20;
/// Most threads that close what one socket's clients have sent.
const CLOSERS: usize = 4;

#[test]
fn server_of_the_hanging_file() {
    hanging::serve();
}

/// A VM beside the one that sends such files.
struct Neighbour {
    vmm: Vmm,
    ram: OwnedFd,
}

impl Neighbour {
    fn new(fixture: &Fixture, device: &str) -> Self {
        let (mut vmm, ram) = (fixture.connect(device), memfd(MIB));
        vmm.map(Some(&ram), 0, 0, MIB).unwrap();
        vmm.bring_up_child();
        Neighbour { vmm, ram }
    }

    fn works(&mut self) {
        poke(&self.ram, 0x40, &[0; 32]);
        self.vmm.submit(Descriptor::fill(0x1000, 7, 4096, 0x40));
        assert_eq!(wait_record(&self.ram, 0x40).status, 1);
    }
}

/// A payload that the command can be carried out with.
fn payload(number: u16, fds: usize) -> Vec<u8> {
    let access = RegionAccess {
        offset: 0,
        region: 7,
        count: 4,
    };
    let words = [32_u32, 0, 0, 0, 0, 0, 0, 0];
    match number {
        command::VERSION => Version::new_zeroed().as_bytes().to_vec(),
        command::DMA_MAP => {
            let mut request = DmaMap::new_zeroed();
            (request.argsz, request.flags, request.size) = (32, 3, MIB);
            request.as_bytes().to_vec()
        }
        command::DMA_UNMAP => {
            let mut request = DmaUnmap::new_zeroed();
            (request.argsz, request.flags) = (24, DmaUnmap::ALL);
            request.as_bytes().to_vec()
        }
        command::DEVICE_GET_REGION_INFO => RegionInfo {
            argsz: 32,
            ..RegionInfo::default()
        }
        .as_bytes()
        .to_vec(),
        command::DEVICE_SET_IRQS => {
            let flags = IrqSet::DATA_EVENTFD | IrqSet::ACTION_TRIGGER;
            [20, flags, 2, 0, fds as u32].as_bytes().to_vec()
        }
        command::REGION_READ => access.as_bytes().to_vec(),
        command::REGION_WRITE => [access.as_bytes(), &[0; 4]].concat(),
        command::REGION_WRITE_MULTI => {
            let data = [0; 8];
            let write = SmallWrite { access, data };
            [1_u64.as_bytes(), write.as_bytes()].concat()
        }
        command::DEVICE_RESET => Vec::new(),
        command::DEVICE_FEATURE => [8, Feature::PROBE | Feature::GET | 1].as_bytes().to_vec(),
        command::MIG_DATA_READ | command::MIG_DATA_WRITE => {
            MigData { argsz: 8, size: 0 }.as_bytes().to_vec()
        }
        command::DMA_READ | command::DMA_WRITE => DmaAccess::new_zeroed().as_bytes().to_vec(),
        _ => words.as_bytes()[..16].to_vec(),
    }
}

/// Threads of this process that close descriptors of `device`'s clients.
fn closers(device: &str) -> usize {
    // As much of a name as the kernel keeps.
    let name = format!("close {device}")[..15].to_owned();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|found| found.trim_end() == name).count()
}

/// Ways to spoil a row of good descriptors: the one that hangs alone, first, in the middle,
/// last, and all of them, among more than a message may bring too.
fn rows<'a>(good: &'a [OwnedFd; 2], bad: &'a OwnedFd) -> Vec<Vec<BorrowedFd<'a>>> {
    let mut rows = vec![vec![bad.as_fd()], vec![bad.as_fd(); 2]];
    for good in good {
        for (count, position) in [(2, 0), (2, 1), (MAX_FDS, 7), (MAX_FDS, MAX_FDS - 1)] {
            let mut row = vec![good.as_fd(); count];
            row[position] = bad.as_fd();
            rows.push(row);
        }
        for position in [0, MAX_FDS] {
            let mut row = vec![good.as_fd(); MAX_FDS + 1];
            row[position] = bad.as_fd();
            rows.push(row);
        }
    }
    rows
}

// One test, since no process can be started while such a file is open.
#[test]
fn descriptors_that_hang_delay_nobody_and_are_bounded() {
    let Some(mut hanging) = Hanging::open("server_of_the_hanging_file") else {
        eprintln!("skipped: this host has no FUSE in a mount namespace");
        return;
    };
    // Its last close comes after the end of its server.
    let bad = Arc::clone(&hanging.fd);
    in_whatever_message(&mut hanging, &bad);
    in_a_flood(hanging, bad);
}

fn in_whatever_message(hanging: &mut Hanging, bad: &OwnedFd) {
    let fixture = Fixture::new();
    let mut neighbour = Neighbour::new(&fixture, MDEV2);
    let good = [
        memfd(MIB),
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
    ];
    let rows = rows(&good, bad);
    for number in (0..=19).chain([u16::MAX]) {
        let mut vmm = fixture.connect(MDEV1);
        for row in &rows {
            // Whatever the answer is, the next one comes.
            let _ = vmm.call_with(number, &payload(number, row.len()), row);
            vmm.start_with(number, Header::NO_REPLY, &payload(number, row.len()), row);
            vmm.read(7, 0, 4).unwrap();
        }
        drop(vmm);
        fixture.released(MDEV1);
        neighbour.works();
        let_go(hanging, MDEV1);
    }
    for row in &rows {
        outside_of_commands(&fixture, row);
        fixture.released(MDEV1);
        neighbour.works();
        let_go(hanging, MDEV1);
    }
    unread(&fixture, &[bad.as_fd()]);
    Neighbour::new(&fixture, MDEV1).works();
    let_go(hanging, MDEV1);
}

/// Few threads wait for the file, but some do. Then they need not any more, since what waits is bounded.
fn let_go(hanging: &mut Hanging, device: &str) {
    eventually("a close that hangs", || hanging.waiting() > 0);
    // One that is about to end may still be seen.
    eventually("few threads", || closers(device) <= CLOSERS);
    hanging.set_answering(true);
    eventually("nothing to close", || closers(device) == 0);
    hanging.set_answering(false);
}

/// Where a message is none that can be carried out: each connection but the last ends by it.
fn outside_of_commands(fixture: &Fixture, row: &[BorrowedFd<'_>]) {
    let header = |size, flags| Header {
        id: 7,
        command: command::DEVICE_GET_INFO,
        size,
        flags,
        error: 0,
    };
    // Instead of VERSION, with it, and never: in the middle of a header, and of a message.
    let mut vmm = Vmm::new(fixture.stream(MDEV1));
    vmm.start(command::DEVICE_GET_INFO, &[0; 16], row);
    assert!(vmm.receive().is_some() && vmm.is_over());
    let mut vmm = Vmm::new(fixture.stream(MDEV1));
    assert!(vmm.call_with(command::VERSION, &[0; 4], row).is_ok());
    drop(vmm);
    for size in [40, 4 << 20] {
        let mut vmm = fixture.connect(MDEV1);
        vmm.send(header(size, 0), &[], row);
        drop(vmm);
    }
    // An answer to nothing.
    let mut vmm = fixture.connect(MDEV1);
    vmm.send(header(16, Header::REPLY), &[], row);
    assert!(vmm.is_over());
    // Too long, too short, and of no type; with a part of the next one.
    let mut vmm = fixture.connect(MDEV1);
    vmm.send(header(4 << 20, 0), &[], row);
    vmm.stream.write_all(&vec![0; (4 << 20) - 16]).unwrap();
    assert_eq!(vmm.reply(7), Err(EMSGSIZE));
    for (size, flags) in [(0, 0), (16, 9)] {
        vmm.send(header(size, flags), &[], row);
        assert_eq!(vmm.reply(7), Err(EINVAL));
    }
    vmm.read(7, 0, 4).unwrap();
}

/// What waits for a command that waits for the client, and what is never read at all.
fn unread(fixture: &Fixture, row: &[BorrowedFd<'_>]) {
    let mut vmm = fixture.connect(MDEV1);
    vmm.ram = vec![0; 1 << 20];
    vmm.map(None, 0, 0, MIB).unwrap();
    vmm.bring_up_child();
    vmm.submit(Descriptor::memory_move(0x8000, 0x1000, 4096, 0x40));
    let asked = vmm.receive().unwrap();
    assert_eq!(
        asked.header.is_reply(),
        Some(false),
        "the device wants memory"
    );
    vmm.start(command::DEVICE_RESET, &[], row);
    for _ in 0..20 {
        vmm.start_with(command::DEVICE_GET_INFO, Header::NO_REPLY, &[16; 16], row);
    }
    drop(vmm);
    fixture.released(MDEV1);
}

/// Far more than a client could need, until its server wants no more of them.
fn in_a_flood(hanging: Hanging, bad: Arc<OwnedFd>) {
    let fixture = Fixture::new();
    let mut neighbour = Neighbour::new(&fixture, MDEV1);
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    // The longest rows that can be sent.
    let row = vec![bad.as_fd(); 253];
    let mut vmm = fixture.connect(MDEV2);
    let mut sent = 0;
    loop {
        vmm.start(command::DEVICE_GET_INFO, &[16; 16], &row);
        neighbour.works();
        if vmm.receive().is_none() {
            break;
        }
        sent += 1;
        assert!(sent < 50, "there is no end to it");
    }
    assert!(open() < before + 2048, "what waits to be closed is bounded");
    eventually("few threads", || closers(MDEV2) <= CLOSERS);
    // The next client of that socket waits, and no other.
    let mut next = Vmm::new(fixture.stream(MDEV2));
    neighbour.works();
    drop(hanging);
    next.version();
    drop(next);
    Neighbour::new(&fixture, MDEV2).works();
}
