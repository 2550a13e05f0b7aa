//! Every operation against a software reference, and every way in which one can end.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use ioasid_core::{AddrRange, Prot};
use ioasid_dsa::spec::{
    CompletionRecord, Descriptor, Opcode, Status,
    completion::FAULT_ON_WRITE,
    descriptor::{CRC_BYPASS_INVERSION, CRC_READ_SEED},
};
use ioasid_iommu::PageResponse;

const SRC: u64 = Area::BASE + 0x10_0000;
const DST: u64 = Area::BASE + 0x40_0000;
const OTHER: u64 = Area::BASE + 0x70_0000;
/// The first address that is not mapped.
const END: u64 = Area::BASE + Whole::SIZE;

fn with_noise() -> Whole {
    let whole = Whole::new(32);
    let rest = Whole::SIZE as usize - 0x1000;
    whole.area.write(Area::BASE + 0x1000, &pattern(rest, 1));
    whole
}

fn operation(opcode: Opcode, source: u64, destination: u64, size: u32) -> Descriptor {
    Descriptor {
        source,
        destination,
        size,
        ..Descriptor::new(opcode, 0)
    }
}

fn success() -> CompletionRecord {
    CompletionRecord {
        status: Status::Success as u8,
        ..CompletionRecord::default()
    }
}

/// Sizes around every boundary that a copy has: bytes, pages, guards, the limit of a transfer.
const SIZES: [u32; 9] = [
    1,
    7,
    4095,
    4097,
    65_536,
    131_072,
    131_073,
    1_000_003,
    1 << 21,
];

#[test]
fn memory_move_copies_every_byte_and_no_other() {
    let whole = with_noise();
    for size in SIZES {
        let (from, to) = (SRC + 5, DST + 11);
        let before = whole.area.read(to - 16, size as usize + 32);
        let mut expected = before.clone();
        expected[16..16 + size as usize].copy_from_slice(&whole.area.read(from, size as usize));
        let record = whole.run(Descriptor::memory_move(to, from, size, 0));
        assert_eq!(record, success(), "{size}");
        assert!(
            whole.area.read(to - 16, size as usize + 32) == expected,
            "{size}"
        );
    }
}

#[test]
fn overlapping_moves_are_memmove_in_both_directions() {
    let whole = with_noise();
    for size in [100, 5000, 300_000_u32] {
        for distance in [1, 64, 4096, 100_000_u64] {
            for (from, to) in [(SRC, SRC + distance), (SRC + distance, SRC)] {
                let source = whole.area.read(from, size as usize);
                let record = whole.run(Descriptor::memory_move(to, from, size, 0));
                assert_eq!(record, success());
                assert!(
                    whole.area.read(to, size as usize) == source,
                    "{size} by {distance}"
                );
            }
        }
    }
}

#[test]
fn fill_repeats_its_pattern_from_the_first_byte() {
    let whole = with_noise();
    let pattern = 0x8877_6655_4433_2211_u64;
    for size in SIZES {
        let to = DST + 3;
        let expected: Vec<u8> = pattern
            .to_le_bytes()
            .into_iter()
            .cycle()
            .take(size as usize)
            .collect();
        let after = whole.area.read(to + u64::from(size), 16);
        assert_eq!(whole.run(Descriptor::fill(to, pattern, size, 0)), success());
        assert!(whole.area.read(to, size as usize) == expected, "{size}");
        assert_eq!(whole.area.read(to + u64::from(size), 16), after);
    }
}

#[test]
fn compare_finds_the_first_difference() {
    let whole = with_noise();
    let size = 1 << 20;
    whole.area.write(DST, &whole.area.read(SRC, size as usize));
    assert_eq!(whole.run(Descriptor::compare(SRC, DST, size, 0)), success());
    for at in [0, 4096, 200_001, size - 1_u32] {
        let byte = whole.area.read(DST + u64::from(at), 1)[0];
        whole.area.write(DST + u64::from(at), &[!byte]);
        let record = whole.run(Descriptor::compare(SRC, DST, size, 0));
        let expected = CompletionRecord {
            result: 1,
            completed: at,
            ..success()
        };
        assert_eq!(record, expected);
        whole.area.write(DST + u64::from(at), &[byte]);
    }
}

#[test]
fn an_unexpected_comparison_is_success_with_a_false_predicate() {
    let whole = with_noise();
    let mut descriptor = Descriptor::compare(SRC, SRC, 4096, 0);
    descriptor.flags.set_check_result(true);
    assert_eq!(whole.run(descriptor), success());
    descriptor.specific0 = 1;
    let record = whole.run(descriptor);
    assert_eq!(record.status, Status::SuccessFalsePredicate as u8);
}

#[test]
fn compare_pattern_finds_the_first_difference() {
    let whole = with_noise();
    let pattern = 0x0102_0304_0506_0708;
    let size = 100_003;
    whole.run(Descriptor::fill(DST, pattern, size, 0));
    let descriptor = operation(Opcode::ComparePattern, DST, pattern, size);
    assert_eq!(whole.run(descriptor), success());
    whole.area.write(DST + 77_777, &[0]);
    let record = whole.run(descriptor);
    assert_eq!((record.result, record.completed), (1, 77_777));
}

#[test]
fn dualcast_writes_both_destinations() {
    let whole = with_noise();
    let size = 300_001;
    let descriptor = Descriptor {
        specific0: OTHER,
        ..operation(Opcode::Dualcast, SRC, DST, size)
    };
    assert_eq!(whole.run(descriptor), success());
    let source = whole.area.read(SRC, size as usize);
    assert!(whole.area.read(DST, size as usize) == source);
    assert!(whole.area.read(OTHER, size as usize) == source);
    for (second, status) in [
        (OTHER + 1, Status::DualcastAlignment),
        (DST + 0x1000, Status::Overlap),
    ] {
        let descriptor = Descriptor {
            specific0: second,
            ..descriptor
        };
        assert_eq!(whole.run(descriptor).status, status as u8);
    }
}

/// CRC-32C one bit at a time, written for this test.
fn reference_crc(seed: u32, data: &[u8]) -> u32 {
    let mut crc = !seed;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

#[test]
fn crc_agrees_with_a_bitwise_reference_and_copy_crc_copies_too() {
    let whole = with_noise();
    for size in [1, 9, 16_384, 16_385, 200_001_u32] {
        let data = whole.area.read(SRC, size as usize);
        let descriptor = Descriptor {
            specific0: 0x1234_5678,
            ..operation(Opcode::CrcGen, SRC, 0, size)
        };
        let expected = u64::from(reference_crc(0x1234_5678, &data));
        assert_eq!(whole.run(descriptor).specific, expected, "{size}");
        let copy = Descriptor {
            opcode: Opcode::CopyCrc as u8,
            destination: DST,
            ..descriptor
        };
        assert_eq!(whole.run(copy).specific, expected, "{size}");
        assert!(whole.area.read(DST, size as usize) == data, "{size}");
    }
}

#[test]
fn crc_takes_its_seed_from_memory_when_asked() {
    let whole = with_noise();
    whole.area.write(OTHER, &0xdead_beef_u32.to_le_bytes());
    let mut descriptor = Descriptor {
        specific1: OTHER,
        ..operation(Opcode::CrcGen, SRC, 0, 999)
    };
    descriptor.flags.set_specific(CRC_READ_SEED);
    let data = whole.area.read(SRC, 999);
    let expected = u64::from(reference_crc(0xdead_beef, &data));
    assert_eq!(whole.run(descriptor).specific, expected);
    descriptor
        .flags
        .set_specific(CRC_READ_SEED | CRC_BYPASS_INVERSION);
    assert_ne!(whole.run(descriptor).specific, expected);
}

#[test]
fn noop_drain_and_cache_flush_succeed_and_change_nothing() {
    let whole = with_noise();
    let before = whole.area.read(SRC, 0x10_0000);
    for descriptor in [
        Descriptor::new(Opcode::Noop, 0),
        Descriptor::new(Opcode::Drain, 0),
        operation(Opcode::CacheFlush, 0, SRC + 1, 0x8000),
    ] {
        assert_eq!(whole.run(descriptor), success());
    }
    assert!(whole.area.read(SRC, 0x10_0000) == before);
    let record = whole.run(operation(Opcode::CacheFlush, 0, END - 0x1000, 0x2000));
    assert_eq!(
        (record.status, record.completed),
        (Status::PageFault as u8, 0x1000)
    );
}

#[test]
fn wrong_descriptors_end_with_the_status_that_names_their_fault() {
    let whole = with_noise();
    let mut cases = Vec::new();
    let unknown = Descriptor {
        opcode: 0x7f,
        ..Descriptor::default()
    };
    cases.push((unknown, Status::BadOpcode));
    let mut flags = Descriptor::memory_move(DST, SRC, 1, 0);
    flags.flags.set_specific(1);
    cases.push((flags, Status::InvalidFlags));
    let mut flags = Descriptor::memory_move(DST, SRC, 1, 0);
    flags.flags.set_check_result(true);
    cases.push((flags, Status::InvalidFlags));
    cases.push((
        Descriptor::memory_move(DST, SRC, 0, 0),
        Status::TransferSize,
    ));
    let large = Descriptor::memory_move(DST, SRC, (1 << 21) + 1, 0);
    cases.push((large, Status::TransferSize));
    cases.push((Descriptor::batch(SRC, 1, 0), Status::DescriptorCount));
    cases.push((Descriptor::batch(SRC, 1025, 0), Status::DescriptorCount));
    cases.push((Descriptor::batch(SRC + 32, 2, 0), Status::ListAlignment));
    let vectors = whole.dsa.queues().len() as u16 + 1;
    let handle = Descriptor::new(Opcode::Noop, 0).with_interrupt(vectors);
    cases.push((handle, Status::InterruptHandle));
    for (mut descriptor, status) in cases {
        descriptor.flags.set_record_valid(true);
        assert_eq!(whole.run(descriptor).status, status as u8, "{descriptor:?}");
    }
    assert_eq!(whole.driver.software_error(), None, "each had a record");
}

#[test]
fn invalid_flags_are_named_in_the_record() {
    let whole = with_noise();
    let mut descriptor = Descriptor::memory_move(DST, SRC, 1, 0);
    descriptor.flags.set_specific(0x81);
    assert_eq!(whole.run(descriptor).specific, 0x81_0000);
}

#[test]
fn a_fault_completes_partially_and_says_where_and_which_way() {
    let whole = with_noise();
    let size = 0x4000;
    // Reading runs off the end of the mapping.
    let record = whole.run(Descriptor::memory_move(DST, END - 0x1800, size, 0));
    let expected = CompletionRecord {
        status: Status::PageFault as u8,
        completed: 0x1800,
        fault_addr: END,
        ..CompletionRecord::default()
    };
    assert_eq!(record, expected);
    assert!(whole.area.read(DST, 0x1800) == whole.area.read(END - 0x1800, 0x1800));
    // Writing does.
    let record = whole.run(Descriptor::fill(END - 0x800, 0, size, 0));
    let expected = CompletionRecord {
        status: Status::PageFault as u8 | FAULT_ON_WRITE,
        completed: 0x800,
        fault_addr: END,
        ..CompletionRecord::default()
    };
    assert_eq!(record, expected);
    assert_eq!(whole.faults.total(), 2, "each fault is reported once");
    // The device goes on.
    assert_eq!(
        whole.run(Descriptor::memory_move(DST, SRC, size, 0)),
        success()
    );
}

#[test]
fn a_fault_in_a_backward_move_counts_from_the_end() {
    let whole = with_noise();
    // The lowest page of the destination is not mapped; the move starts at the top.
    let hole = AddrRange::from_len(DST + 0x1000, 0x1000).unwrap();
    whole.domain.unmap(hole);
    let record = whole.run(Descriptor::memory_move(DST + 0x1000, DST, 0x4000, 0));
    // The source has the same hole, and meets it first: bytes 0x1000..0x2000 of it.
    assert_eq!(record.status & !FAULT_ON_WRITE, Status::PageFault as u8);
    assert_eq!((record.result, record.completed), (1, 0x2000));
}

#[test]
fn source_address_zero_faults_when_it_is_not_mapped() {
    let whole = with_noise();
    let record = whole.run(Descriptor::memory_move(DST, 0, 64, 0));
    assert_eq!(
        (record.status, record.fault_addr),
        (Status::PageFault as u8, 0)
    );
}

#[test]
fn a_transfer_that_passes_the_end_of_the_address_space_faults() {
    let whole = with_noise();
    let record = whole.run(Descriptor::memory_move(u64::MAX - 10, SRC, 64, 0));
    assert_eq!(record.status, Status::PageFault as u8 | FAULT_ON_WRITE);
    let record = whole.run(operation(Opcode::CacheFlush, 0, u64::MAX - 10, 64));
    assert_eq!(record.status, Status::PageFault as u8);
}

#[test]
fn without_a_requested_record_success_is_silent_and_failure_is_not() {
    let whole = with_noise();
    let at = Area::BASE + 0x40;
    whole.area.write(at, &[0; 32]);
    let mut quiet = Descriptor::memory_move(DST, SRC, 4096, at);
    quiet.flags.set_request_record(false);
    whole.driver.submit(0, quiet);
    assert_eq!(whole.run(Descriptor::new(Opcode::Drain, 0)), success());
    assert_eq!(whole.area.read(at, 32), [0; 32]);
    quiet.source = END;
    whole.driver.submit(0, quiet);
    assert_eq!(whole.area.wait(at).status, Status::PageFault as u8);
}

#[test]
fn a_fault_on_the_record_goes_to_the_error_register_and_raises_no_interrupt() {
    let whole = with_noise();
    let done = whole.driver.listen(1);
    let misc = whole.driver.listen(0);
    whole.driver.write32(0x88, 1);
    let lost = Descriptor::memory_move(DST, SRC, 4096, END).with_interrupt(1);
    whole.driver.submit(0, lost);
    assert_eq!(whole.run(Descriptor::new(Opcode::Drain, 0)), success());
    assert_eq!(
        whole.driver.software_error(),
        Some(Status::RecordFault as u8)
    );
    assert_eq!(whole.driver.read64(0xd0), END, "the address that faulted");
    assert_eq!((done.count(), misc.count()), (0, 1));
    // A second error is an overflow; writing ones clears both.
    whole.driver.submit(0, lost);
    assert_eq!(whole.run(Descriptor::new(Opcode::Drain, 0)), success());
    assert_eq!(whole.driver.read64(0xc0) & 3, 3);
    whole.driver.write64(0xc0, 3);
    assert_eq!(whole.driver.read64(0xc0), 0);
    assert_eq!(whole.driver.read32(0x98) & 1, 1);
    whole.driver.write32(0x98, 1);
    assert_eq!(whole.driver.read32(0x98), 0);
}

#[test]
fn an_interrupt_comes_after_the_record() {
    let whole = with_noise();
    let irq = whole.driver.listen(3);
    let at = Area::BASE + 0x40;
    for round in 1..200 {
        whole.area.write(at, &[0; 32]);
        let descriptor = Descriptor::memory_move(DST, SRC, 64, at).with_interrupt(3);
        whole.driver.submit(0, descriptor);
        eventually("an interrupt", || irq.count() == round);
        assert_eq!(whole.area.record(at), success());
    }
}

fn write_list(whole: &Whole, at: u64, list: &[Descriptor]) {
    for (index, descriptor) in (0..).zip(list) {
        whole.area.write(at + 64 * index, &descriptor.to_bytes());
    }
}

#[test]
fn a_batch_runs_its_list_and_counts_it() {
    let whole = with_noise();
    let (list, records) = (OTHER, Area::BASE + 0x8000);
    let descriptors: Vec<_> = (0..1000)
        .map(|i| Descriptor::memory_move(DST + i * 1024, SRC + i * 1024, 1024, records + i * 32))
        .collect();
    write_list(&whole, list, &descriptors);
    whole.area.write(records, &vec![0; 32_000]);
    let record = whole.run(Descriptor::batch(list, 1000, 0));
    assert_eq!(
        (record.status, record.completed),
        (Status::Success as u8, 1000)
    );
    assert!(whole.area.read(DST, 1_024_000) == whole.area.read(SRC, 1_024_000));
    for i in 0..1000 {
        assert_eq!(whole.area.record(records + i * 32), success(), "{i}");
    }
}

#[test]
fn a_failed_descriptor_fails_its_batch_and_a_fence_stops_it() {
    let whole = with_noise();
    let (list, records) = (OTHER, Area::BASE + 0x8000);
    let record = |i: u64| records + i * 32;
    let bad = Descriptor::memory_move(DST, END, 64, record(0));
    let good = Descriptor::fill(DST, u64::MAX, 64, record(1));
    for (second, completed, filled) in [(good, 2, true), (good.with_fence(), 1, false)] {
        whole.area.write(records, &[0; 64]);
        whole.area.write(DST, &[0; 64]);
        write_list(&whole, list, &[bad, second]);
        let outcome = whole.run(Descriptor::batch(list, 2, 0));
        assert_eq!(
            (outcome.status, outcome.completed),
            (Status::BatchFail as u8, completed)
        );
        assert_eq!(whole.area.record(record(0)).status, Status::PageFault as u8);
        assert_eq!(whole.area.read(DST, 1)[0] == 0xff, filled);
        assert_eq!(whole.area.record(record(1)).status != 0, filled);
    }
    // A fence after success stops nothing.
    write_list(&whole, list, &[good, good.with_fence()]);
    assert_eq!(whole.run(Descriptor::batch(list, 2, 0)).completed, 2);
}

#[test]
fn batches_do_not_nest_and_do_not_drain() {
    let whole = with_noise();
    let (list, records) = (OTHER, Area::BASE + 0x8000);
    whole.area.write(records, &[0; 64]);
    let inner = Descriptor::batch(list, 2, records);
    write_list(
        &whole,
        list,
        &[inner, Descriptor::new(Opcode::Drain, records + 32)],
    );
    let outcome = whole.run(Descriptor::batch(list, 2, 0));
    assert_eq!(outcome.status, Status::BatchFail as u8);
    for at in [records, records + 32] {
        assert_eq!(whole.area.record(at).status, Status::BadOpcode as u8);
    }
}

#[test]
fn a_list_that_cannot_be_read_ends_the_batch_after_what_could() {
    let whole = with_noise();
    let list = END - 128;
    let descriptors = [Descriptor::new(Opcode::Noop, Area::BASE + 0x40); 2];
    write_list(&whole, list, &descriptors);
    let record = whole.run(Descriptor::batch(list, 4, 0));
    let expected = CompletionRecord {
        status: Status::BatchPageFault as u8,
        completed: 2,
        fault_addr: END,
        ..CompletionRecord::default()
    };
    assert_eq!(record, expected);
}

#[test]
fn a_page_that_is_mapped_on_request_lets_the_descriptor_go_on() {
    let whole = with_noise();
    let requests = Requests::install(&whole.domain);
    let more = Area::new(&whole.iommu, 0x4000);
    let at = Area::BASE + 0x40;
    whole.area.write(at, &[0; 32]);
    let waiting = Descriptor::memory_move(END - 0x1000, SRC, 0x3000, at).with_block_on_fault();
    whole.driver.submit(0, waiting);
    let request = requests.next();
    assert_eq!(request.iova, END);
    // The engine goes on while the descriptor waits.
    assert_eq!(
        whole.run(Descriptor::memory_move(DST, SRC, 4096, 0)),
        success()
    );
    assert_eq!(whole.area.record(at).status, 0);
    // Each of the two missing pages is asked for.
    for page in 0..2 {
        let request = if page == 0 { request } else { requests.next() };
        let spa = more.pages.spa() + page * 0x1000;
        whole
            .domain
            .map(END + page * 0x1000, spa, 0x1000, Prot::RW)
            .unwrap();
        whole
            .iommu
            .page_response(request.id, PageResponse::Success)
            .unwrap();
    }
    assert_eq!(whole.area.wait(at), success());
    assert!(more.read(Area::BASE, 0x2000) == whole.area.read(SRC + 0x1000, 0x2000));
    assert_eq!(whole.faults.total(), 0, "a mended fault is not reported");
}

#[test]
fn a_refused_page_request_ends_the_descriptor_with_the_fault() {
    let whole = with_noise();
    let requests = Requests::install(&whole.domain);
    let at = Area::BASE + 0x40;
    whole.area.write(at, &[0; 32]);
    whole.driver.submit(
        0,
        Descriptor::fill(END - 0x1000, 0, 0x2000, at).with_block_on_fault(),
    );
    let request = requests.next();
    whole
        .iommu
        .page_response(request.id, PageResponse::Invalid)
        .unwrap();
    let record = whole.area.wait(at);
    assert_eq!(record.status, Status::PageFault as u8 | FAULT_ON_WRITE);
    assert_eq!((record.completed, record.fault_addr), (0x1000, END));
    assert_eq!(whole.faults.total(), 1);
    assert!(requests.is_empty(), "asked once");
}

#[test]
fn block_on_fault_without_a_handler_is_a_plain_fault() {
    let whole = with_noise();
    let record = whole.run(Descriptor::memory_move(DST, END, 64, 0).with_block_on_fault());
    assert_eq!(
        (record.status, record.fault_addr),
        (Status::PageFault as u8, END)
    );
}

#[test]
fn a_batch_resumes_where_its_list_or_its_data_was_missing() {
    let whole = with_noise();
    let requests = Requests::install(&whole.domain);
    let more = Area::new(&whole.iommu, 0x2000);
    let (list, at) = (END, Area::BASE + 0x40);
    let records = Area::BASE + 0x8000;
    let fill = |i: u64| Descriptor::fill(END + 0x1000 + i * 64, i + 1, 64, records + i * 32);
    let descriptors: Vec<_> = (0..20).map(|i| fill(i).with_block_on_fault()).collect();
    for (index, descriptor) in descriptors.iter().enumerate() {
        more.write(Area::BASE + index as u64 * 64, &descriptor.to_bytes());
    }
    whole.area.write(at, &[0; 32]);
    whole
        .driver
        .submit(0, Descriptor::batch(list, 20, at).with_block_on_fault());
    for page in [0, 0x1000] {
        let request = requests.next();
        assert_eq!(request.iova, END + page);
        whole
            .domain
            .map(END + page, more.pages.spa() + page, 0x1000, Prot::RW)
            .unwrap();
        whole
            .iommu
            .page_response(request.id, PageResponse::Success)
            .unwrap();
    }
    let record = whole.area.wait(at);
    assert_eq!(
        (record.status, record.completed),
        (Status::Success as u8, 20)
    );
    assert_eq!(more.read(Area::BASE + 0x1000 + 19 * 64, 1), [20]);
}
