//! Every command: what it answers, what it refuses, and that the next message is understood.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{io::Write, os::fd::AsFd};

use common::*;
use ioasid_uapi::spec::vfio::{DeviceInfo, Feature, IrqInfo, IrqSet, RegionInfo};
use ioasid_vfio_user::{
    MAX_FDS,
    spec::{DmaMap, DmaUnmap, Header, RegionAccess, RegionIoFds, SmallWrite, Version, command},
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use zerocopy::{FromBytes, IntoBytes};

const PORTAL: u32 = 2;
const CONFIG: u32 = 7;
const MSIX: u32 = 2;

fn region(index: u32) -> RegionInfo {
    RegionInfo {
        argsz: 32,
        index,
        ..RegionInfo::default()
    }
}

#[test]
fn a_version_is_0_0_with_capabilities_and_not_longer_than_the_request() {
    let fixture = Fixture::new();
    let mut vmm = Vmm::new(fixture.stream(PDEV));
    let text = vmm.version();
    assert!(text.starts_with("{\"capabilities\":{"), "{text}");
    assert!(text.contains("\"write_multiple\":true"), "{text}");
    assert!(fixture.is_bound(PDEV), "VERSION takes the device");
    assert_eq!(vmm.try_version(), Err(EINVAL), "only the first message");
}

#[test]
fn a_bare_version_gets_a_bare_answer() {
    let fixture = Fixture::new();
    let mut vmm = Vmm::new(fixture.stream(PDEV));
    let version = Version { major: 0, minor: 0 };
    let reply = vmm.call(command::VERSION, version.as_bytes()).unwrap();
    assert_eq!(reply, version.as_bytes());
}

#[test]
fn whoever_does_not_begin_with_a_version_is_told_so_and_loses_the_connection() {
    let fixture = Fixture::new();
    let openings: [(u16, &[u8]); 4] = [
        (command::DEVICE_RESET, &[]),
        (command::VERSION, &[]),
        (command::VERSION, &[1, 0, 0, 0]),
        (command::VERSION, &[0, 0, 0, 0, b'x', 0]),
    ];
    for (opening, payload) in openings {
        let mut vmm = Vmm::new(fixture.stream(PDEV));
        assert_eq!(vmm.call(opening, payload), Err(EINVAL));
        assert!(vmm.is_over());
    }
    let mut vmm = fixture.connect(PDEV);
    assert!(
        vmm.call(command::DEVICE_RESET, &[]).is_ok(),
        "the next one is served"
    );
}

#[test]
fn the_device_its_regions_and_its_interrupts_are_described() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let request = [32_u32, 0, 0, 0];
    let reply = vmm.call(command::DEVICE_GET_INFO, request.as_bytes());
    let [argsz, flags, regions, irqs] = <[u32; 4]>::read_from_bytes(&reply.unwrap()).unwrap();
    assert_eq!((argsz, regions, irqs), (16, 9, 5));
    assert_eq!(flags, DeviceInfo::PCI | DeviceInfo::RESET);
    let mut sizes = Vec::new();
    for index in 0..regions {
        let reply = vmm.call(command::DEVICE_GET_REGION_INFO, region(index).as_bytes());
        let info = RegionInfo::read_from_bytes(&reply.unwrap()).unwrap();
        assert_eq!((info.index, info.argsz), (index, 32));
        assert_eq!(
            info.flags & (RegionInfo::MMAP | RegionInfo::CAPS),
            0,
            "registers"
        );
        sizes.push(info.size);
    }
    assert_eq!(sizes[0], 0x1_0000);
    assert_eq!(sizes[7], 4096);
    assert_eq!(sizes[8], 0, "VGA");
    let reply = vmm.call(command::DEVICE_GET_REGION_INFO, region(9).as_bytes());
    assert_eq!(reply, Err(EINVAL));
    let short = RegionInfo {
        argsz: 31,
        ..region(0)
    };
    let reply = vmm.call(command::DEVICE_GET_REGION_INFO, short.as_bytes());
    assert_eq!(reply, Err(EINVAL));
    for (index, count) in [(MSIX, 9), (3, 1), (4, 1)] {
        let request = IrqInfo {
            argsz: 16,
            index,
            ..IrqInfo::default()
        };
        let reply = vmm.call(command::DEVICE_GET_IRQ_INFO, request.as_bytes());
        let info = IrqInfo::read_from_bytes(&reply.unwrap()).unwrap();
        assert_eq!((info.argsz, info.index), (16, index));
        assert!(info.count >= count.min(1), "{index}");
    }
    let request = IrqInfo {
        argsz: 16,
        index: 5,
        ..IrqInfo::default()
    };
    let reply = vmm.call(command::DEVICE_GET_IRQ_INFO, request.as_bytes());
    assert_eq!(reply, Err(EINVAL));
}

#[test]
fn no_region_has_parts_behind_descriptors() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let request = RegionIoFds {
        argsz: 64,
        index: 0,
        ..RegionIoFds::default()
    };
    let reply = vmm.call(command::DEVICE_GET_REGION_IO_FDS, request.as_bytes());
    let reply = RegionIoFds::read_from_bytes(&reply.unwrap()).unwrap();
    assert_eq!((reply.argsz, reply.count), (16, 0));
    for wrong in [
        RegionIoFds {
            argsz: 15,
            ..request
        },
        RegionIoFds {
            flags: 1,
            ..request
        },
        RegionIoFds {
            index: 9,
            ..request
        },
    ] {
        let reply = vmm.call(command::DEVICE_GET_REGION_IO_FDS, wrong.as_bytes());
        assert_eq!(reply, Err(EINVAL));
    }
}

#[test]
fn regions_are_read_and_written_within_their_bounds() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    assert_eq!(vmm.read(CONFIG, 0, 4).unwrap(), [0x86, 0x80, 0x25, 0x0b]);
    vmm.write(CONFIG, 4, &[0, 0]).unwrap();
    assert_eq!(vmm.read(0, 0, 4), Err(EIO), "memory is off");
    vmm.switch_on();
    assert_eq!(vmm.read32(0), 0x100);
    assert!(vmm.read(0, 0, 0).unwrap().is_empty());
    for (region, offset, count) in [
        (0, 0x1_0000, 4),
        (0, 0xfffe, 4),
        (0, u64::MAX, 4),
        (0, 1 << 40, 4),
        (8, 0, 4),
        (9, 0, 4),
        (u32::MAX, 0, 4),
        (0, 0, (1 << 20) + 1),
        (0, 0, u32::MAX),
    ] {
        assert_eq!(
            vmm.read(region, offset, count),
            Err(EINVAL),
            "{region} {offset:#x} {count}"
        );
    }
    assert!(vmm.write(0, 0xffff, &[0; 2]).is_err());
    let short = RegionAccess {
        offset: 0,
        region: 0,
        count: 8,
    };
    assert_eq!(
        vmm.call(command::REGION_WRITE, short.as_bytes()),
        Err(EINVAL)
    );
    assert_eq!(vmm.call(command::REGION_WRITE, &[0; 15]), Err(EINVAL));
    assert_eq!(vmm.call(command::REGION_READ, &[0; 17]), Err(EINVAL));
    assert_eq!(vmm.read32(0), 0x100, "and the stream is where it was");
}

#[test]
fn posted_writes_keep_their_order_and_have_no_reply() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    vmm.switch_on();
    let gencfg = 0x80;
    for value in 0..100_u32 {
        vmm.post(0, gencfg, &(value & 0x1f).to_le_bytes());
    }
    vmm.post(0, gencfg, &7_u32.to_le_bytes());
    vmm.post(9, 0, &[0; 4]);
    assert_eq!(vmm.read32(gencfg) & 0x1f, 7);
}

#[test]
fn several_small_writes_are_one_message() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    vmm.switch_on();
    let write = |offset, count, value: u32| SmallWrite {
        access: RegionAccess {
            offset,
            region: 0,
            count,
        },
        data: u64::from(value).to_le_bytes(),
    };
    let message = |count: u64, writes: &[SmallWrite]| {
        let mut payload = count.to_ne_bytes().to_vec();
        payload.extend(writes.as_bytes());
        payload
    };
    let both = [write(0x80, 4, 1), write(0x80, 4, 5)];
    let reply = vmm.call(command::REGION_WRITE_MULTI, &message(2, &both));
    assert_eq!(reply.unwrap(), 2_u64.to_ne_bytes());
    assert_eq!(vmm.read32(0x80) & 0x1f, 5);
    let half = [write(0x80, 4, 3), write(1 << 30, 4, 5)];
    let reply = vmm.call(command::REGION_WRITE_MULTI, &message(2, &half));
    assert_eq!(reply.unwrap(), 1_u64.to_ne_bytes(), "as far as it came");
    for wrong in [
        message(3, &both),
        message(u64::MAX, &both),
        message(1, &[write(0x80, 9, 0)]),
        message(1, &[write(1 << 30, 4, 0)]),
        vec![0; 7],
        vec![1; 9],
    ] {
        let reply = vmm.call(command::REGION_WRITE_MULTI, &wrong);
        assert_eq!(reply, Err(EINVAL));
    }
}

fn irqs(index: u32, flags: u32, start: u32, count: u32) -> IrqSet {
    IrqSet {
        argsz: 20,
        flags,
        index,
        start,
        count,
    }
}

fn has_fired(fd: &impl AsFd) -> bool {
    let now = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&now)).unwrap() > 0
}

#[test]
fn interrupts_come_by_the_eventfds_that_came_along() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let trigger = IrqSet::DATA_EVENTFD | IrqSet::ACTION_TRIGGER;
    let events: Vec<_> = (0..2)
        .map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap())
        .collect();
    let fds: Vec<_> = events.iter().map(|fd| fd.as_fd()).collect();
    let set = |vmm: &mut Vmm, request: IrqSet, fds: &[_]| {
        vmm.call_with(command::DEVICE_SET_IRQS, request.as_bytes(), fds)
    };
    assert_eq!(
        set(&mut vmm, irqs(MSIX, trigger, 0, 2), &fds),
        Ok(Vec::new())
    );
    let fire = irqs(MSIX, IrqSet::DATA_NONE | IrqSet::ACTION_TRIGGER, 1, 1);
    set(&mut vmm, fire, &[]).unwrap();
    assert!(has_fired(&events[1]));
    let mut some = irqs(MSIX, IrqSet::DATA_BOOL | IrqSet::ACTION_TRIGGER, 0, 2)
        .as_bytes()
        .to_vec();
    some.extend([1, 0]);
    vmm.call(command::DEVICE_SET_IRQS, &some).unwrap();
    assert!(has_fired(&events[0]));
    // A run of none: disconnected. Then all of the index.
    assert_eq!(
        set(&mut vmm, irqs(MSIX, trigger, 0, 2), &[]),
        Ok(Vec::new())
    );
    let off = irqs(MSIX, IrqSet::DATA_NONE | IrqSet::ACTION_TRIGGER, 0, 0);
    assert_eq!(set(&mut vmm, off, &[]), Ok(Vec::new()));
}

#[test]
fn interrupt_requests_that_do_not_fit_are_refused() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let trigger = IrqSet::DATA_EVENTFD | IrqSet::ACTION_TRIGGER;
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let file = memfd(4096);
    let mut set = |request: IrqSet, fds: &[_]| {
        vmm.call_with(command::DEVICE_SET_IRQS, request.as_bytes(), fds)
    };
    let event = event.as_fd();
    assert_eq!(
        set(irqs(MSIX, trigger, 0, 2), &[event]),
        Err(EINVAL),
        "one short"
    );
    assert_eq!(
        set(irqs(MSIX, trigger, 0, 1), &[event, event]),
        Err(EINVAL),
        "one over"
    );
    assert_eq!(
        set(irqs(MSIX, trigger, 0, 1), &[file.as_fd()]),
        Err(EINVAL),
        "no eventfd"
    );
    assert_eq!(set(irqs(MSIX, trigger, 0, u32::MAX), &[]), Err(EINVAL));
    assert_eq!(
        set(irqs(MSIX, trigger, u32::MAX, u32::MAX), &[]),
        Err(EINVAL)
    );
    assert_eq!(set(irqs(MSIX, trigger, 0, 100_000), &[]), Err(EINVAL));
    assert_eq!(set(irqs(9, trigger, 0, 1), &[event]), Err(EINVAL));
    assert_eq!(set(irqs(MSIX, 0x3f, 0, 1), &[]), Err(EINVAL));
    let none = IrqSet::DATA_NONE | IrqSet::ACTION_TRIGGER;
    assert_eq!(set(irqs(MSIX, none, 0, 1), &[event]), Err(EINVAL));
    let bools = IrqSet::DATA_BOOL | IrqSet::ACTION_TRIGGER;
    assert_eq!(
        set(irqs(MSIX, bools, 0, 2), &[]),
        Err(EINVAL),
        "the bytes are missing"
    );
    assert_eq!(vmm.call(command::DEVICE_SET_IRQS, &[0; 19]), Err(EINVAL));
}

#[test]
fn a_reset_clears_the_registers() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    vmm.switch_on();
    vmm.write(0, 0x80, &3_u32.to_le_bytes()).unwrap();
    assert_eq!(vmm.call(command::DEVICE_RESET, &[]), Ok(Vec::new()));
    assert_eq!(vmm.read32(0x80) & 0x1f, 0);
    assert_eq!(vmm.call(command::DEVICE_RESET, &[0; 4]), Err(EINVAL));
}

#[test]
fn features_that_there_are_not_are_enotty() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    for number in [0, 11, 77, 0xffff] {
        for action in [Feature::PROBE | Feature::GET, Feature::GET, Feature::SET] {
            let request = Feature {
                argsz: 64,
                flags: action | number,
            };
            let reply = vmm.call(command::DEVICE_FEATURE, request.as_bytes());
            assert_eq!(reply, Err(ENOTTY), "{number}");
        }
    }
    let request = Feature {
        argsz: 7,
        flags: Feature::GET,
    };
    assert_eq!(
        vmm.call(command::DEVICE_FEATURE, request.as_bytes()),
        Err(EINVAL)
    );
    assert_eq!(vmm.call(command::DEVICE_FEATURE, &[0; 7]), Err(EINVAL));
}

#[test]
fn commands_that_a_client_does_not_send_are_enotty() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    for number in [
        0,
        14,
        19,
        1000,
        u16::MAX,
        command::DMA_READ,
        command::DMA_WRITE,
    ] {
        let reply = vmm.call(number, &[0xaa; 100]);
        assert_eq!(reply, Err(ENOTTY), "{number}");
        let reply = vmm.call(command::DEVICE_RESET, &[]);
        assert!(reply.is_ok(), "the payload of {number} was read to its end");
    }
}

#[test]
fn a_message_longer_than_any_is_refused_and_read_to_its_end() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let id = vmm.start(command::REGION_WRITE, &vec![0; 4 << 20], &[]);
    assert_eq!(vmm.reply(id), Err(EMSGSIZE));
    assert!(vmm.call(command::DEVICE_RESET, &[]).is_ok());
}

#[test]
fn a_message_in_pieces_is_one_message() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let header = Header {
        id: 77,
        command: command::DEVICE_RESET,
        size: 16,
        ..Header::default()
    };
    for byte in header.as_bytes() {
        vmm.stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(vmm.reply(77), Ok(Vec::new()));
}

#[test]
fn more_descriptors_than_a_message_may_bring_are_refused_and_none_stays_open() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..50 {
        let many = vec![event.as_fd(); MAX_FDS + 10];
        let request = [16_u32, 0, 0, 0];
        let reply = vmm.call_with(command::DEVICE_GET_INFO, request.as_bytes(), &many);
        assert_eq!(reply, Err(EINVAL));
        let fine = vec![event.as_fd(); MAX_FDS];
        let reply = vmm.call_with(command::DEVICE_GET_INFO, request.as_bytes(), &fine);
        assert!(reply.is_ok(), "what nobody asked for is closed");
    }
    // Other tests of this process open and close files at the same time.
    assert!(open() < before + 200, "1300 descriptors came");
}

#[test]
fn mappings_that_make_no_sense_are_refused() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let ram = memfd(1 << 20);
    let good = DmaMap {
        argsz: 32,
        flags: 3,
        offset: 0,
        address: 0,
        size: 1 << 20,
    };
    let mut map = |request: DmaMap, fds: &[_]| {
        vmm.call_with(command::DMA_MAP, request.as_bytes(), fds)
            .map(drop)
    };
    let fd = ram.as_fd();
    assert_eq!(map(DmaMap { flags: 0, ..good }, &[fd]), Err(EINVAL));
    for flags in [4, 8, 0xf, 0xc, 0x13, 1 << 31 | 3] {
        assert_eq!(
            map(DmaMap { flags, ..good }, &[fd]),
            Err(EINVAL),
            "{flags:#x}"
        );
    }
    for flags in [7, 0xb] {
        assert_eq!(map(DmaMap { flags, ..good }, &[]), Err(EINVAL), "no file");
    }
    assert_eq!(map(DmaMap { argsz: 31, ..good }, &[fd]), Err(EINVAL));
    assert_eq!(map(DmaMap { size: 0, ..good }, &[fd]), Err(EINVAL));
    assert_eq!(
        map(
            DmaMap {
                address: u64::MAX,
                ..good
            },
            &[fd]
        ),
        Err(EINVAL)
    );
    assert_eq!(
        map(
            DmaMap {
                size: 2 << 20,
                ..good
            },
            &[fd]
        ),
        Err(EINVAL),
        "past the end"
    );
    assert_eq!(
        map(
            DmaMap {
                offset: u64::MAX,
                ..good
            },
            &[fd]
        ),
        Err(EINVAL)
    );
    assert_eq!(map(good, &[fd, fd]), Err(EINVAL), "two descriptors");
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(map(good, &[event.as_fd()]), Err(EINVAL), "no memory");
    let pipe = std::io::pipe().unwrap().0;
    assert_eq!(map(good, &[pipe.as_fd()]), Err(EINVAL), "no file");
    let huge = DmaMap {
        size: 1 << 60,
        ..good
    };
    assert!(map(huge, &[]).is_err());
    assert_eq!(map(good, &[fd]), Ok(()));
    assert_eq!(map(good, &[fd]), Err(EEXIST));
    let inside = DmaMap {
        address: 4096,
        size: 4096,
        ..good
    };
    assert_eq!(map(inside, &[fd]), Err(EEXIST));
    assert_eq!(vmm.call(command::DMA_MAP, &[0; 31]), Err(EINVAL));
}

#[test]
fn an_unmap_takes_whole_mappings_and_may_find_none() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let ram = memfd(1 << 20);
    for at in 0..16 {
        vmm.map(Some(&ram), at << 16, at << 16, 1 << 16).unwrap();
    }
    assert_eq!(vmm.unmap(1 << 40, 1 << 40), Ok(()), "nothing there");
    assert_eq!(vmm.unmap(0x8000, 0x1_0000), Err(EINVAL), "two halves");
    assert_eq!(vmm.unmap(0, 0), Err(EINVAL));
    assert_eq!(vmm.unmap(0, 1 << 17), Ok(()), "two");
    let request = DmaUnmap {
        argsz: 24,
        flags: DmaUnmap::DIRTY,
        address: 0,
        size: 4096,
    };
    assert_eq!(
        vmm.call(command::DMA_UNMAP, request.as_bytes()),
        Err(EOPNOTSUPP)
    );
    let all = DmaUnmap {
        flags: DmaUnmap::ALL,
        size: 0,
        ..request
    };
    let wrong = DmaUnmap { size: 1, ..all };
    assert_eq!(vmm.call(command::DMA_UNMAP, wrong.as_bytes()), Err(EINVAL));
    assert!(vmm.call(command::DMA_UNMAP, all.as_bytes()).is_ok());
    vmm.map(Some(&ram), 0, 0, 1 << 20).unwrap();
}

#[test]
fn registers_of_a_portal_take_64_bytes_as_one_store() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(MDEV1);
    vmm.bring_up_child();
    let ram = memfd(1 << 20);
    vmm.map(Some(&ram), 0, 0, 1 << 20).unwrap();
    let bytes = pattern(5000, 1);
    poke(&ram, 0x1000, &bytes);
    let copy = ioasid_dsa::spec::Descriptor::memory_move(0x8000, 0x1000, 5000, 0x40);
    vmm.write(PORTAL, 0, &copy.to_bytes()).unwrap();
    assert_eq!(wait_record(&ram, 0x40).status, 1);
    assert_eq!(peek(&ram, 0x8000, 5000), bytes);
}
