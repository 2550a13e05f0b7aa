//! What a device writes is logged for a client that asks for it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;

use common::*;
use ioasid_dsa::spec::{Command, Descriptor};
use ioasid_uapi::spec::vfio::{DmaLoggingRange, Feature};
use ioasid_vfio_user::spec::{LoggingControl, LoggingReport, command};
use zerocopy::{FromBytes, IntoBytes};

const MIB: u64 = 1 << 20;
const RAM: u64 = 16 * MIB;
const PAGE: u64 = 4096;

const START: u32 = Feature::DMA_LOGGING_START;
const STOP: u32 = Feature::DMA_LOGGING_STOP;
const REPORT: u32 = Feature::DMA_LOGGING_REPORT;

const E2BIG: u32 = 7;
const EOVERFLOW: u32 = 75;

fn feature(vmm: &mut Vmm, flags: u32, argsz: u32, data: &[u8]) -> Result<Vec<u8>, u32> {
    let request = Feature { argsz, flags };
    let payload = [request.as_bytes(), data].concat();
    let reply = vmm.call(command::DEVICE_FEATURE, &payload)?;
    let (head, data) = Feature::read_from_prefix(&reply).unwrap();
    assert_eq!(head.flags, flags);
    Ok(data.to_vec())
}

/// Starts a log; the size of its pages.
fn start(vmm: &mut Vmm, page_size: u64, ranges: &[(u64, u64)]) -> Result<u64, u32> {
    let control = LoggingControl {
        page_size,
        num_ranges: ranges.len() as u32,
        reserved: 0,
    };
    let mut data = control.as_bytes().to_vec();
    for (iova, length) in ranges {
        let range = DmaLoggingRange {
            iova: *iova,
            length: *length,
        };
        data.extend(range.as_bytes());
    }
    let argsz = (Feature::MIN + data.len()) as u32;
    let reply = feature(vmm, START | Feature::SET, argsz, &data)?;
    let (control, rest) = LoggingControl::read_from_prefix(&reply).unwrap();
    assert_eq!(rest, &data[16..], "the ranges come back");
    Ok(control.page_size)
}

fn stop(vmm: &mut Vmm) -> Result<(), u32> {
    feature(vmm, STOP | Feature::SET, 8, &[]).map(drop)
}

/// The pages of a report, by their addresses.
fn report(vmm: &mut Vmm, iova: u64, length: u64, page_size: u64) -> Result<BTreeSet<u64>, u32> {
    let wanted = LoggingReport {
        iova,
        length,
        page_size,
    };
    let words = (length / page_size.max(1)).div_ceil(64);
    let argsz = (Feature::MIN + 24) as u64 + words * 8;
    let reply = feature(
        vmm,
        REPORT | Feature::GET,
        argsz.min(u64::from(u32::MAX)) as u32,
        wanted.as_bytes(),
    )?;
    let (head, bitmap) = LoggingReport::read_from_prefix(&reply).unwrap();
    assert_eq!(head, wanted);
    assert_eq!(bitmap.len() as u64, words * 8);
    let bit = |n: u64| bitmap[n as usize / 8] >> (n % 8) & 1 == 1;
    let set = (0..words * 64).filter(|n| bit(*n));
    Ok(set.map(|n| iova + n * page_size).collect())
}

fn pages(ranges: &[(u64, u64)]) -> BTreeSet<u64> {
    let of = |(start, len): &(u64, u64)| {
        let first = start / PAGE;
        let last = (start + len - 1) / PAGE;
        (first..=last).map(|page| page * PAGE)
    };
    ranges.iter().flat_map(of).collect()
}

/// A copy, its record waited for; what it has written.
fn copy(
    vmm: &mut Vmm,
    ram: &std::os::fd::OwnedFd,
    to: u64,
    len: u32,
    record: u64,
) -> [(u64, u64); 2] {
    poke(ram, record, &[0]);
    vmm.submit(Descriptor::memory_move(to, 8 * MIB, len, record));
    assert_eq!(wait_record(ram, record).status, 1);
    [(to, len.into()), (record, 32)]
}

#[test]
fn a_copy_marks_the_pages_of_its_destination_and_record_and_nothing_else() {
    let fixture = Fixture::new();
    for whole in [false, true] {
        let mut vmm = fixture.connect(if whole { PDEV } else { MDEV1 });
        let ram = memfd(RAM);
        vmm.map(Some(&ram), 0, 0, RAM).unwrap();
        match whole {
            true => vmm.bring_up_whole(),
            false => vmm.bring_up_child(),
        }
        copy(&mut vmm, &ram, 6 * MIB, 4096, 0x100);
        assert_eq!(start(&mut vmm, PAGE, &[(0, RAM)]), Ok(PAGE));
        assert_eq!(
            report(&mut vmm, 0, RAM, PAGE),
            Ok(BTreeSet::new()),
            "before"
        );
        // As soon as a record can be seen its page is in the report.
        for round in 0..200 {
            let to = MIB + round * 0x5_1234;
            let wrote = copy(
                &mut vmm,
                &ram,
                to % (7 * MIB),
                10_000 + round as u32,
                0x40 * (round + 1),
            );
            assert_eq!(report(&mut vmm, 0, RAM, PAGE), Ok(pages(&wrote)), "{round}");
            assert_eq!(
                report(&mut vmm, 0, RAM, PAGE),
                Ok(BTreeSet::new()),
                "{round}"
            );
        }
        // In parts: what is not asked for stays.
        copy(&mut vmm, &ram, MIB, 3 * PAGE as u32, 0x40);
        assert_eq!(report(&mut vmm, 0, MIB, PAGE), Ok(BTreeSet::from([0])));
        let rest = pages(&[(MIB, 3 * PAGE)]);
        assert_eq!(report(&mut vmm, MIB, MIB, PAGE), Ok(rest));
        // A larger page of a report has a bit for any of its pages.
        copy(&mut vmm, &ram, 5 * MIB - 1, 2, 0x40);
        let large = BTreeSet::from([0, 4 * MIB]);
        assert_eq!(report(&mut vmm, 0, RAM, 2 * MIB), Ok(large));
        // A reset does not end it, and the device's end does.
        vmm.call(command::DEVICE_RESET, &[]).unwrap();
        assert_eq!(report(&mut vmm, 0, RAM, PAGE), Ok(BTreeSet::new()));
        drop(vmm);
        fixture.released(if whole { PDEV } else { MDEV1 });
        let mut vmm = fixture.connect(if whole { PDEV } else { MDEV1 });
        assert_eq!(report(&mut vmm, 0, RAM, PAGE), Err(EINVAL));
    }
}

#[test]
fn writes_by_messages_are_logged_too() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(MDEV1);
    vmm.ram = pattern(MIB as usize, 5);
    vmm.ram[0x40] = 0;
    vmm.map(None, 0, 0, MIB).unwrap();
    vmm.bring_up_child();
    assert_eq!(start(&mut vmm, PAGE, &[]), Ok(PAGE), "all of it");
    vmm.submit(Descriptor::memory_move(0x2_0800, 0x8_0000, 0x1000, 0x40));
    // The device is served while the client waits for replies.
    while vmm.ram[0x40] == 0 {
        vmm.read32(0);
    }
    let written = pages(&[(0x2_0800, 0x1000), (0x40, 32)]);
    assert_eq!(report(&mut vmm, 0, MIB, PAGE), Ok(written));
    assert_eq!(report(&mut vmm, 0, MIB, PAGE), Ok(BTreeSet::new()));
}

#[test]
fn the_log_of_one_device_is_not_that_of_its_neighbour() {
    let fixture = Fixture::new();
    let ram = memfd(RAM);
    let mut clients = [MDEV1, PDEV, MDEV2].map(|name| {
        let mut vmm = fixture.connect(name);
        vmm.map(Some(&ram), 0, 0, RAM).unwrap();
        match name {
            PDEV => vmm.bring_up_whole(),
            _ => vmm.bring_up_child(),
        }
        assert_eq!(start(&mut vmm, PAGE, &[(0, RAM)]), Ok(PAGE));
        vmm
    });
    for (n, vmm) in (1..).zip(&mut clients) {
        copy(vmm, &ram, n * MIB, 8192, n * 0x1_0000);
    }
    for (n, vmm) in (1..).zip(&mut clients) {
        let own = pages(&[(n * MIB, 8192), (n * 0x1_0000, 32)]);
        assert_eq!(report(vmm, 0, RAM, PAGE), Ok(own), "{n}");
    }
}

#[test]
fn a_log_is_asked_for_in_the_kernels_way() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(MDEV1);
    let probe = Feature::PROBE;
    for (number, possible) in [
        (START, Feature::SET),
        (STOP, Feature::SET),
        (REPORT, Feature::GET),
    ] {
        let other = Feature::SET | Feature::GET ^ possible;
        assert_eq!(feature(&mut vmm, number | probe, 8, &[]), Ok(Vec::new()));
        let found = feature(&mut vmm, number | probe | possible, 8, &[]);
        assert_eq!(found, Ok(Vec::new()));
        for bad in [probe | other, other, 0] {
            let found = feature(&mut vmm, number | bad, 64, &[0; 56]);
            assert_eq!(found, Err(EINVAL), "{number} {bad:#x}");
        }
    }
    assert_eq!(report(&mut vmm, 0, MIB, PAGE), Err(EINVAL), "no log");
    stop(&mut vmm).unwrap();
    // Ranges.
    let many: Vec<_> = (0..257).map(|n| (n * MIB, PAGE)).collect();
    assert_eq!(start(&mut vmm, PAGE, &many), Err(E2BIG));
    assert_eq!(start(&mut vmm, PAGE, &[(1, PAGE)]), Err(EINVAL));
    assert_eq!(start(&mut vmm, 0x3000, &[(0, 0x3000)]), Err(EINVAL));
    assert_eq!(
        start(&mut vmm, PAGE, &[(0, 2 * PAGE), (PAGE, PAGE)]),
        Err(EINVAL)
    );
    let last = u64::MAX - (PAGE - 1);
    assert_eq!(start(&mut vmm, PAGE, &[(last, PAGE)]), Err(EOVERFLOW));
    let control = LoggingControl {
        page_size: PAGE,
        num_ranges: 2,
        reserved: 0,
    };
    let short = [control.as_bytes(), &[0; 16]].concat();
    assert_eq!(
        feature(&mut vmm, START | Feature::SET, 40, &short),
        Err(EINVAL)
    );
    // The page is what can be had.
    assert_eq!(start(&mut vmm, 512, &[(0, MIB)]), Ok(PAGE));
    assert_eq!(start(&mut vmm, PAGE, &[(0, MIB)]), Err(EINVAL), "twice");
    stop(&mut vmm).unwrap();
    assert_eq!(
        start(&mut vmm, 1 << 16, &[(0, MIB), (2 * MIB, MIB)]),
        Ok(1 << 16)
    );
    // Reports.
    for page_size in [0, 1, 2048, 0x3000] {
        assert_eq!(
            report(&mut vmm, 0, MIB, page_size),
            Err(EINVAL),
            "{page_size}"
        );
    }
    assert_eq!(report(&mut vmm, last, PAGE, PAGE), Err(EOVERFLOW));
    for (iova, length) in [
        (0, 0),
        (MIB, PAGE),
        (0, MIB + PAGE),
        (0, 3 * MIB),
        (MIB, 2 * MIB),
    ] {
        assert_eq!(
            report(&mut vmm, iova, length, PAGE),
            Err(EINVAL),
            "{iova:#x}"
        );
    }
    assert_eq!(report(&mut vmm, 2 * MIB, MIB, PAGE), Ok(BTreeSet::new()));
    stop(&mut vmm).unwrap();
    assert_eq!(start(&mut vmm, PAGE, &[]), Ok(PAGE));
    assert_eq!(
        report(&mut vmm, 0, 1 << 40, PAGE),
        Err(EINVAL),
        "a bitmap too large"
    );
}

#[test]
fn a_report_without_room_says_how_much_it_needs_and_keeps_the_log() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(MDEV1);
    let ram = memfd(RAM);
    vmm.map(Some(&ram), 0, 0, RAM).unwrap();
    vmm.bring_up_child();
    start(&mut vmm, PAGE, &[(0, RAM)]).unwrap();
    let wrote = copy(&mut vmm, &ram, MIB, 4096, 0x40);
    let wanted = LoggingReport {
        iova: 0,
        length: RAM,
        page_size: PAGE,
    };
    let full = (Feature::MIN + 24 + 512) as u32;
    let request = Feature {
        argsz: full - 1,
        flags: REPORT | Feature::GET,
    };
    let payload = [request.as_bytes(), wanted.as_bytes()].concat();
    let reply = vmm.call(command::DEVICE_FEATURE, &payload).unwrap();
    let expected = Feature {
        argsz: full,
        ..request
    };
    assert_eq!(reply, [expected.as_bytes(), wanted.as_bytes()].concat());
    assert_eq!(report(&mut vmm, 0, RAM, PAGE), Ok(pages(&wrote)));
}

/// A client that copies memory which a device writes: it has all of it in the end.
#[test]
fn what_is_copied_by_reports_is_what_is_there() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(MDEV1);
    let ram = memfd(RAM);
    vmm.map(Some(&ram), 0, 0, RAM).unwrap();
    vmm.bring_up_child();
    poke(&ram, 8 * MIB, &pattern(MIB as usize, 9));
    start(&mut vmm, PAGE, &[(0, RAM)]).unwrap();
    let mut copied = peek(&ram, 0, RAM as usize);
    for round in 0..400_u64 {
        let from = 8 * MIB + round * 1111;
        let to = MIB + round * 0x4_4567 % (6 * MIB);
        vmm.submit(Descriptor::memory_move(
            to,
            from,
            70_000,
            0x40 * (round % 16 + 1),
        ));
        if round % 3 == 0 {
            for page in report(&mut vmm, 0, RAM, PAGE).unwrap() {
                let bytes = peek(&ram, page, PAGE as usize);
                copied[page as usize..][..PAGE as usize].copy_from_slice(&bytes);
            }
        }
    }
    // What the last descriptors wrote. A command, since a full queue would drop a descriptor that drains.
    assert_eq!(vmm.command(Command::DrainAll, 0), 0);
    for page in report(&mut vmm, 0, RAM, PAGE).unwrap() {
        let bytes = peek(&ram, page, PAGE as usize);
        copied[page as usize..][..PAGE as usize].copy_from_slice(&bytes);
    }
    assert!(copied == peek(&ram, 0, RAM as usize), "a write was lost");
}
