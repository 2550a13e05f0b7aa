//! Memory without a descriptor: DMA goes by messages, and nobody waits for whom he should not.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic")]

mod common;

use std::os::fd::OwnedFd;

use common::*;
use ioasid_dsa::spec::{Descriptor, registers as reg};
use ioasid_vfio_user::spec::{DmaAccess, DmaMap, DmaUnmap, Header, command};
use zerocopy::IntoBytes;

const MIB: u64 = 1 << 20;

/// A client with `len` bytes of private memory that the device can reach.
fn private(fixture: &Fixture, len: usize) -> Vmm {
    let mut vmm = fixture.connect(MDEV1);
    vmm.ram = pattern(len, 9);
    vmm.map(None, 0, 0, len as u64).unwrap();
    vmm.bring_up_child();
    vmm
}

/// Serves the server until the record at `at` is there.
fn status(vmm: &mut Vmm, at: usize) -> u8 {
    while vmm.ram[at] == 0 {
        let message = vmm.receive().expect("the server has hung up");
        assert_eq!(message.header.is_reply(), Some(false));
        vmm.answer(&message);
    }
    vmm.ram[at]
}

#[test]
fn dma_to_private_memory_goes_by_messages() {
    let fixture = Fixture::new();
    let mut vmm = private(&fixture, 4 << 20);
    vmm.ram[0x40..0x60].fill(0);
    let expected = vmm.ram[0x1000..0x1000 + (1 << 20) + 77].to_vec();
    let size = expected.len() as u32;
    vmm.submit(Descriptor::memory_move(2 * MIB, 0x1000, size, 0x40));
    assert_eq!(status(&mut vmm, 0x40), 1);
    assert_eq!(vmm.ram[2 << 20..][..expected.len()], expected);
}

#[test]
fn registers_are_read_while_a_dma_message_is_open() {
    let fixture = Fixture::new();
    let mut vmm = private(&fixture, 4 << 20);
    vmm.ram[0x40..0x60].fill(0);
    vmm.answers = false;
    vmm.submit(Descriptor::memory_move(2 * MIB, 0x1000, 4096, 0x40));
    while vmm.asked.is_empty() {
        assert_eq!(vmm.read32(reg::VERSION), 0x100);
    }
    for _ in 0..100 {
        assert_eq!(
            vmm.read32(reg::VERSION),
            0x100,
            "nobody waits for the answer"
        );
    }
    while let Some(message) = vmm.asked.pop_front() {
        vmm.answer(&message);
    }
    assert_eq!(status(&mut vmm, 0x40), 1);
}

#[test]
fn an_unmap_does_not_wait_for_a_client_that_waits_for_it() {
    let fixture = Fixture::new();
    let mut vmm = private(&fixture, 4 << 20);
    vmm.answers = false;
    vmm.submit(Descriptor::memory_move(2 * MIB, 0x1000, 4096, 0x40));
    while vmm.asked.is_empty() {
        assert_eq!(vmm.read32(reg::VERSION), 0x100);
    }
    vmm.unmap(0, 4 * MIB).unwrap();
    // The late answer is taken, and is for nobody.
    while let Some(message) = vmm.asked.pop_front() {
        vmm.answer(&message);
    }
    assert_eq!(vmm.read32(reg::VERSION), 0x100);
    vmm.map(None, 0, 0, 4 * MIB).unwrap();
}

#[test]
fn a_reset_does_not_wait_for_a_client_that_waits_for_it() {
    let fixture = Fixture::new();
    let mut vmm = private(&fixture, 4 << 20);
    vmm.answers = false;
    for slot in 1..10 {
        vmm.submit(Descriptor::memory_move(2 * MIB, 0x1000, 4096, 0x40 * slot));
    }
    while vmm.asked.is_empty() {
        assert_eq!(vmm.read32(reg::VERSION), 0x100);
    }
    let reset = vmm.start(command::DEVICE_RESET, &[], &[]);
    assert!(vmm.reply(reset).is_ok());
    vmm.answers = true;
    vmm.bring_up_child();
}

#[test]
fn commands_behind_a_slow_one_keep_their_order() {
    let fixture = Fixture::new();
    let mut vmm = private(&fixture, 4 << 20);
    vmm.answers = false;
    vmm.submit(Descriptor::memory_move(2 * MIB, 0x1000, 4096, 0x40));
    while vmm.asked.is_empty() {
        assert_eq!(vmm.read32(reg::VERSION), 0x100);
    }
    let unmap = DmaUnmap {
        argsz: 24,
        flags: 0,
        address: 0,
        size: 4 * MIB,
    };
    let map = DmaMap {
        argsz: 32,
        flags: 3,
        offset: 0,
        address: 0,
        size: 4 * MIB,
    };
    let mut ids = vec![vmm.start(command::DMA_UNMAP, unmap.as_bytes(), &[])];
    for _ in 0..100 {
        ids.push(vmm.start(command::DMA_MAP, map.as_bytes(), &[]));
        ids.push(vmm.start(command::DMA_UNMAP, unmap.as_bytes(), &[]));
    }
    for id in ids {
        assert!(vmm.reply(id).is_ok(), "{id}");
    }
}

#[test]
fn a_client_that_dies_without_an_answer_is_cleaned_up_after() {
    let fixture = Fixture::new();
    for _ in 0..10 {
        fixture.released(MDEV1);
        let mut vmm = private(&fixture, 4 << 20);
        vmm.answers = false;
        for slot in 1..10 {
            vmm.submit(Descriptor::memory_move(
                2 * MIB,
                0x1000,
                1 << 20,
                0x40 * slot,
            ));
        }
        while vmm.asked.is_empty() {
            assert_eq!(vmm.read32(reg::VERSION), 0x100);
        }
    }
    fixture.released(MDEV1);
    let mut vmm = private(&fixture, 1 << 20);
    vmm.ram[0x40..0x60].fill(0);
    vmm.submit(Descriptor::fill(0x1000, 7, 64, 0x40));
    assert_eq!(status(&mut vmm, 0x40), 1);
}

#[test]
fn answers_that_do_not_fit_end_the_connection_and_only_it() {
    let fixture = Fixture::new();
    let forgeries: [fn(&mut Header, &mut Vec<u8>); 5] = [
        |header, _| header.id ^= 1,
        |header, _| header.command = command::DMA_WRITE,
        |_, payload| payload.truncate(20),
        |_, payload| payload.push(0),
        |_, payload| payload[0] ^= 0xff,
    ];
    for forge in forgeries {
        fixture.released(MDEV1);
        let mut vmm = private(&fixture, 4 << 20);
        vmm.answers = false;
        vmm.submit(Descriptor::memory_move(2 * MIB, 0x1000, 4096, 0x40));
        while vmm.asked.is_empty() {
            assert_eq!(vmm.read32(reg::VERSION), 0x100);
        }
        let message = vmm.asked.pop_front().unwrap();
        assert_eq!(message.header.command, command::DMA_READ);
        let mut payload = message.payload[..size_of::<DmaAccess>()].to_vec();
        payload.extend(vec![0; 4096]);
        let mut header = Header {
            flags: Header::REPLY,
            ..message.header
        };
        forge(&mut header, &mut payload);
        header.size = (Header::SIZE + payload.len()) as u32;
        vmm.send(header, &payload, &[]);
        assert!(vmm.is_over());
    }
    private(&fixture, 1 << 20);
}

#[test]
fn an_error_is_a_fault_of_that_descriptor() {
    let fixture = Fixture::new();
    let mut vmm = private(&fixture, 4 << 20);
    let records = memfd(MIB);
    vmm.map(Some(&records), 0, 1 << 32, MIB).unwrap();
    vmm.answers = false;
    vmm.submit(Descriptor::memory_move(2 * MIB, 0x1000, 4096, 1 << 32));
    while vmm.asked.is_empty() {
        assert_eq!(vmm.read32(reg::VERSION), 0x100);
    }
    let message = vmm.asked.pop_front().unwrap();
    let header = Header {
        size: 16,
        flags: Header::REPLY | Header::ERROR,
        error: 14,
        ..message.header
    };
    vmm.send(header, &[], &[]);
    assert_ne!(wait_record(&records, 0).status, 1);
    assert_eq!(vmm.read32(reg::VERSION), 0x100);
}

#[test]
fn read_only_memory_is_not_written() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(MDEV1);
    vmm.ram = pattern(1 << 20, 1);
    let before = vmm.ram.clone();
    let rom = DmaMap {
        argsz: 32,
        flags: DmaMap::READ,
        offset: 0,
        address: 0,
        size: MIB,
    };
    vmm.call(command::DMA_MAP, rom.as_bytes()).unwrap();
    let records = memfd(MIB);
    vmm.map(Some(&records), 0, 1 << 32, MIB).unwrap();
    vmm.bring_up_child();
    vmm.submit(Descriptor::fill(0x1000, 7, 4096, 1 << 32));
    assert_eq!(wait_record(&records, 0).status & 0x7f, 3, "a page fault");
    assert_eq!(vmm.ram, before);
}

#[test]
fn both_devices_of_a_vm_reach_its_private_memory_even_when_one_is_gone() {
    let fixture = Fixture::new();
    let mut first = private(&fixture, 4 << 20);
    let mut second = fixture.connect(PDEV);
    second.ram = vec![3; 4 << 20];
    second.map(None, 0, 0, 4 * MIB).unwrap();
    first.unmap(0, 4 * MIB).unwrap();
    drop(first);
    second.bring_up_whole();
    second.ram[0x40..0x60].fill(0);
    second.submit(Descriptor::memory_move(2 * MIB, 0x1000, 5000, 0x40));
    assert_eq!(status(&mut second, 0x40), 1);
}

#[test]
fn a_client_that_refuses_for_one_device_may_answer_for_another() {
    let fixture = Fixture::new();
    let mut first = private(&fixture, 4 << 20);
    first.answers = false;
    let mut second = fixture.connect(PDEV);
    second.ram = pattern(4 << 20, 2);
    second.map(None, 0, 0, 4 * MIB).unwrap();
    second.bring_up_whole();
    second.ram[0x40..0x60].fill(0);
    second.submit(Descriptor::fill(0x1000, 7, 64, 0x40));
    // The guest has not switched the first device on: its connection has nothing to offer.
    let refusal = std::thread::spawn(move || {
        while let Some(message) = first.receive() {
            let header = Header {
                size: 16,
                flags: Header::REPLY | Header::ERROR,
                error: 14,
                ..message.header
            };
            first.send(header, &[], &[]);
        }
    });
    assert_eq!(status(&mut second, 0x40), 1);
    fixture.server.stop();
    refusal.join().unwrap();
}

#[test]
fn a_file_of_an_ordinary_file_system_is_memory_that_the_client_is_asked_for() {
    let fixture = Fixture::new();
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.set_len(4 << 20).unwrap();
    let file: OwnedFd = file.into();
    if rustix::fs::fcntl_get_seals(&file).is_ok() {
        eprintln!("skipped: the target directory is on tmpfs");
        return;
    }
    let mut vmm = fixture.connect(MDEV1);
    vmm.ram = pattern(4 << 20, 4);
    // Like QEMU, with an offset in the file, and once for each device.
    vmm.map(Some(&file), MIB, 0, 3 * MIB).unwrap();
    let mut other = fixture.connect(PDEV);
    other.map(Some(&file), MIB, 0, 3 * MIB).unwrap();
    vmm.bring_up_child();
    vmm.ram[0x40..0x60].fill(0);
    let expected = vmm.ram[0x1000..][..5000].to_vec();
    vmm.submit(Descriptor::memory_move(2 * MIB, 0x1000, 5000, 0x40));
    assert_eq!(status(&mut vmm, 0x40), 1);
    assert_eq!(vmm.ram[2 << 20..][..5000], expected);
    assert_eq!(
        peek(&file, 3 * MIB, 5000),
        [0; 5000],
        "the file was left alone"
    );
    vmm.unmap(0, 3 * MIB).unwrap();
}
