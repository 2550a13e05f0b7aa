//! What the protocol says of every message: its header, the room for its answer, its flags.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::os::fd::AsFd;

use common::*;
use ioasid_dsa::spec::Descriptor;
use ioasid_uapi::spec::vfio::{IrqSet, RegionInfo};
use ioasid_vfio_user::spec::{DmaMap, DmaUnmap, Header, command};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::IntoBytes;

#[test]
fn a_header_that_makes_no_sense_is_refused_and_the_next_message_follows_it() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let mut wrong = |header: Header| {
        vmm.send(header, &[], &[]);
        assert_eq!(vmm.reply(header.id), Err(EINVAL), "{header:?}");
        assert!(vmm.call(command::DEVICE_RESET, &[]).is_ok());
    };
    for size in [0, 1, 15] {
        wrong(Header {
            id: 500,
            command: command::DEVICE_RESET,
            size,
            ..Header::default()
        });
    }
    for kind in 2..16 {
        wrong(Header {
            id: 501,
            size: 16,
            flags: kind,
            ..Header::default()
        });
    }
    drop(vmm);
    for size in [15, 16] {
        let mut vmm = fixture.connect(PDEV);
        let header = Header {
            size,
            flags: Header::REPLY,
            command: 11,
            ..Header::default()
        };
        vmm.send(header, &[], &[]);
        assert!(vmm.is_over(), "an answer to nothing");
    }
    fixture.connect(PDEV);
}

#[test]
fn the_interrupt_window_is_no_devices_memory() {
    let fixture = Fixture::new();
    for device in [PDEV, MDEV1, MDEV2] {
        let mut vmm = fixture.connect(device);
        let ram = memfd(4 << 20);
        for (address, size) in [
            (0xfee0_0000, 0x1000),
            (0xfee0_0000, 0x10_0000),
            (0xfeef_f000, 0x1000),
            (0xfedf_f000, 0x2000),
            (0xfeef_f000, 0x2000),
            (0xfed0_0000, 0x30_0000),
        ] {
            for fd in [Some(&ram), None] {
                assert_eq!(vmm.map(fd, 0, address, size), Err(EINVAL), "{address:#x}");
            }
        }
        vmm.map(Some(&ram), 0, 0xfed0_0000, 0x10_0000).unwrap();
        vmm.map(Some(&ram), 0, 0xfef0_0000, 0x10_0000).unwrap();
    }
}

#[test]
fn a_file_may_be_said_to_be_one_that_can_be_mapped() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(MDEV1);
    vmm.bring_up_child();
    let ram = memfd(1 << 20);
    for (place, way) in [(1, DmaMap::MMAP), (2, DmaMap::FILE_IO)] {
        let request = DmaMap {
            argsz: 32,
            flags: DmaMap::READ | DmaMap::WRITE | way,
            offset: 0,
            address: place << 20,
            size: 1 << 20,
        };
        vmm.call_with(command::DMA_MAP, request.as_bytes(), &[ram.as_fd()])
            .unwrap();
        let at = place << 20;
        poke(&ram, 0x40, &[0; 32]);
        vmm.submit(Descriptor::fill(at + 0x1000, place, 64, at + 0x40));
        assert_eq!(wait_record(&ram, 0x40).status, 1);
        assert_eq!(peek(&ram, 0x1000, 8), place.to_le_bytes());
    }
}

#[test]
fn room_that_is_too_small_for_the_answer_is_refused_before_anything_is_done() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let ram = memfd(1 << 20);
    vmm.map(Some(&ram), 0, 0, 1 << 20).unwrap();
    let unmap = DmaUnmap {
        argsz: 24,
        flags: 0,
        address: 0,
        size: 1 << 20,
    };
    // One vector of MSI-X.
    let set = [20, IrqSet::DATA_EVENTFD | IrqSet::ACTION_TRIGGER, 2, 0, 1];
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let region = RegionInfo {
        argsz: 32,
        ..RegionInfo::default()
    };
    let io_fds = [16_u32, 0, 0, 0];
    // The struct, and the bytes that it and its answer have.
    let commands: [(u16, &[u8], u32); 6] = [
        (command::DMA_UNMAP, unmap.as_bytes(), 24),
        (command::DEVICE_GET_INFO, io_fds.as_bytes(), 16),
        (command::DEVICE_GET_REGION_INFO, region.as_bytes(), 32),
        (command::DEVICE_GET_REGION_IO_FDS, io_fds.as_bytes(), 16),
        (command::DEVICE_GET_IRQ_INFO, io_fds.as_bytes(), 16),
        (command::DEVICE_SET_IRQS, set.as_bytes(), 20),
    ];
    for (number, payload, size) in commands {
        let fds = match number {
            command::DEVICE_SET_IRQS => vec![event.as_fd()],
            _ => Vec::new(),
        };
        let mut call = |payload: &[u8]| vmm.call_with(number, payload, &fds);
        for argsz in [0, 4, size - 1] {
            let mut small = payload.to_vec();
            small[..4].copy_from_slice(&argsz.to_ne_bytes());
            assert_eq!(call(&small), Err(EINVAL), "{number}: {argsz}");
        }
        let mut large = payload.to_vec();
        large[..4].copy_from_slice(&(size + 100).to_ne_bytes());
        assert_eq!(call(&large[..large.len() - 1]), Err(EINVAL));
        if number != command::DMA_UNMAP {
            let reply = call(&large).unwrap();
            let stated = reply
                .first_chunk()
                .map_or(size, |bytes| u32::from_ne_bytes(*bytes));
            assert_eq!(stated, size, "{number}");
        }
    }
    assert_eq!(
        vmm.map(Some(&ram), 0, 0, 1 << 20),
        Err(EEXIST),
        "still there"
    );
    vmm.unmap(0, 1 << 20).unwrap();
}
