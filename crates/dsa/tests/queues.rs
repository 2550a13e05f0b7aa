//! Queues and commands: what is accepted, what is dropped, and what a command may leave behind.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_core::{
    Pasid,
    inspect::{Inspect, Value},
};
use ioasid_dsa::spec::{
    Command, Descriptor, Opcode, Status,
    command::queue_operand,
    registers::{self as reg, PORTAL_PAGE, WqCap},
};
use ioasid_iommu::{DmaSource, FaultLog, FaultSink, PageResponse};

const SRC: u64 = Area::BASE + 0x10_0000;
const DST: u64 = Area::BASE + 0x40_0000;
const END: u64 = Area::BASE + Whole::SIZE;
const RECORDS: u64 = Area::BASE + 0x8000;

/// Where the record of descriptor `index` goes.
fn record(index: u64) -> u64 {
    RECORDS + index * 32
}

/// Keeps queue 0 from executing anything that is submitted from now on: a descriptor that waits for
/// a page, and a Drain that waits for it. Takes one entry of the queue.
fn block(whole: &Whole) -> Arc<Requests> {
    let requests = Requests::install(&whole.domain);
    let waiting = Descriptor::memory_move(DST, END, 64, Area::BASE + 0x40).with_block_on_fault();
    whole.driver.submit(0, waiting);
    eventually("the page request", || !requests.is_empty());
    whole
        .driver
        .submit(0, Descriptor::new(Opcode::Drain, Area::BASE + 0x60));
    requests
}

fn unblock(whole: &Whole, requests: &Requests) {
    let request = requests.next();
    whole
        .iommu
        .page_response(request.id, PageResponse::Invalid)
        .unwrap();
}

#[test]
fn a_queue_takes_its_size_without_loss_and_silently_drops_one_more() {
    let whole = Whole::new(16);
    let requests = block(&whole);
    whole.area.write(RECORDS, &[0; 4096]);
    for index in 0..16 {
        whole
            .driver
            .submit(0, Descriptor::new(Opcode::Noop, record(index)));
    }
    assert_eq!(queue_field(&*whole.dsa, 0, "dropped"), Value::Count(1));
    unblock(&whole, &requests);
    for index in 0..15 {
        assert_eq!(whole.area.wait(record(index)).status, Status::Success as u8);
    }
    assert_eq!(whole.driver.command(Command::DrainWq, 1), 0);
    assert_eq!(whole.area.record(record(15)).status, 0, "dropped");
    assert_eq!(whole.driver.software_error(), None, "silently");
}

#[test]
fn descriptors_are_not_executed_inside_the_portal_store() {
    let whole = Whole::new(16);
    let requests = block(&whole);
    let at = record(0);
    whole.area.write(at, &[0; 32]);
    whole.driver.submit(0, Descriptor::new(Opcode::Noop, at));
    assert_eq!(whole.area.record(at).status, 0);
    unblock(&whole, &requests);
    whole.area.wait(at);
}

#[test]
fn an_abort_with_64_queued_leaves_memory_alone() {
    let whole = Whole::new(128);
    whole
        .area
        .write(Area::BASE, &pattern(Whole::SIZE as usize, 3));
    let requests = block(&whole);
    for index in 0..64 {
        let to = DST + index * 0x1000;
        whole.driver.submit(
            0,
            Descriptor::memory_move(to, SRC, 0x1000, record(index)).with_interrupt(1),
        );
    }
    let irq = whole.driver.listen(1);
    let before = whole.area.read(Area::BASE, Whole::SIZE as usize);
    assert_eq!(whole.driver.command(Command::AbortWq, queue_operand(0)), 0);
    // The answer to the page request of a descriptor that is gone changes nothing.
    unblock(&whole, &requests);
    assert_eq!(whole.driver.command(Command::DrainAll, 0), 0);
    assert!(whole.area.read(Area::BASE, Whole::SIZE as usize) == before);
    assert_eq!(irq.count(), 0);
    assert_eq!(queue_field(&*whole.dsa, 0, "aborted"), Value::Count(66));
    // The queue is enabled still, and works.
    assert_eq!(whole.run(Descriptor::new(Opcode::Noop, 0)).status, 1);
}

#[test]
fn after_an_abort_in_the_middle_of_work_nothing_is_written() {
    let whole = Whole::new(128);
    for round in 0..100_u64 {
        for index in 0..8 {
            let to = DST + index * 0x4_0000;
            whole
                .driver
                .submit(0, Descriptor::fill(to, round, 0x4_0000, record(index)));
        }
        assert_eq!(whole.driver.command(Command::AbortWq, 1), 0);
        let before = whole.area.read(Area::BASE, Whole::SIZE as usize);
        std::thread::yield_now();
        assert!(
            whole.area.read(Area::BASE, Whole::SIZE as usize) == before,
            "{round}"
        );
    }
}

#[test]
fn a_drain_command_waits_for_what_was_accepted_and_says_so() {
    let whole = Whole::new(16);
    let requests = block(&whole);
    whole.area.write(record(0), &[0; 32]);
    whole
        .driver
        .submit(0, Descriptor::new(Opcode::Noop, record(0)));
    let misc = whole.driver.listen(0);
    let cmd = 8_u32 << 20 | 1 << 31 | 1;
    whole.driver.write32(reg::CMD, cmd);
    assert!(whole.driver.command_status().active());
    // A command that is stored meanwhile is ignored.
    whole.driver.start(Command::DisableDevice, 0);
    unblock(&whole, &requests);
    eventually("the end of the drain", || {
        !whole.driver.command_status().active()
    });
    assert_eq!(whole.area.record(record(0)).status, Status::Success as u8);
    eventually("its interrupt", || misc.count() == 1);
    assert_eq!(whole.driver.read32(reg::INTCAUSE), 2);
    whole.driver.write32(reg::INTCAUSE, 2);
    assert_eq!(whole.driver.read32(reg::INTCAUSE), 0);
    assert_eq!(whole.driver.read32(reg::GENSTS) & 3, 1, "enabled as before");
}

#[test]
fn disable_drains_and_reset_aborts() {
    let whole = Whole::new(16);
    whole.area.write(RECORDS, &[0; 4096]);
    for index in 0..8 {
        whole.driver.submit(
            0,
            Descriptor::memory_move(DST, SRC, 0x10_0000, record(index)),
        );
    }
    assert_eq!(whole.driver.command(Command::DisableWq, 1), 0);
    for index in 0..8 {
        assert_eq!(
            whole.area.record(record(index)).status,
            1,
            "done before the result"
        );
    }
    assert_eq!(whole.driver.read32(reg::WQCFG + 24) >> 30, 0);
    // A store to a disabled queue is an error of its owner, and no work.
    whole
        .driver
        .submit(0, Descriptor::new(Opcode::Noop, record(9)));
    assert_eq!(whole.driver.software_error(), Some(0x52));
    assert_eq!(whole.driver.command(Command::ResetDevice, 0), 0);
    for offset in (reg::GRPCFG..reg::MSIX_TABLE).step_by(8) {
        assert_eq!(whole.driver.read64(offset), 0, "{offset:#x}");
    }
    assert_eq!(whole.driver.read32(reg::GENSTS) & 3, 0);
    assert_eq!(whole.driver.software_error(), None);
}

#[test]
fn other_queues_work_while_one_waits() {
    let whole = Whole::new(16);
    assert_eq!(whole.driver.command(Command::EnableWq, 1), 0);
    let requests = block(&whole);
    for index in 0..100 {
        let at = record(index % 4);
        whole.area.write(at, &[0; 32]);
        whole
            .driver
            .submit(1, Descriptor::memory_move(DST, SRC, 4096, at));
        assert_eq!(whole.area.wait(at).status, 1);
    }
    // And commands on them concern them alone.
    assert_eq!(whole.driver.command(Command::DrainWq, queue_operand(1)), 0);
    assert_eq!(
        whole.driver.command(Command::DisableWq, queue_operand(1)),
        0
    );
    assert_eq!(whole.area.record(Area::BASE + 0x60).status, 0);
    unblock(&whole, &requests);
    whole.area.wait(Area::BASE + 0x60);
}

#[test]
fn descriptors_that_wait_for_pages_are_bounded() {
    let whole = Whole::new(128);
    let requests = Requests::install(&whole.domain);
    for _ in 0..100 {
        let waiting = Descriptor::memory_move(DST, END, 64, Area::BASE + 0x40);
        whole.driver.submit(0, waiting.with_block_on_fault());
    }
    eventually("the limit", || {
        queue_field(&*whole.dsa, 0, "waiting_for_pages") == Value::Count(32)
    });
    assert!(whole.iommu.pending_page_requests() <= 32);
    for _ in 0..100 {
        unblock(&whole, &requests);
    }
    assert_eq!(whole.driver.command(Command::DrainWq, 1), 0);
    assert_eq!(queue_field(&*whole.dsa, 0, "faults"), Value::Count(100));
}

#[test]
fn a_page_request_ended_by_the_detach_leaves_no_stuck_descriptor() {
    let whole = Whole::new(128);
    let _requests = Requests::install(&whole.domain);
    for _ in 0..20 {
        let waiting = Descriptor::memory_move(DST, END, 64, Area::BASE + 0x40);
        whole.driver.submit(0, waiting.with_block_on_fault());
    }
    eventually("all to wait", || whole.iommu.pending_page_requests() == 20);
    DmaSource::new(&whole.device, None).detach();
    assert_eq!(whole.driver.command(Command::DrainWq, 1), 0);
    assert_eq!(whole.iommu.pending_page_requests(), 0);
}

#[test]
fn a_dedicated_queue_uses_the_pasid_of_its_configuration_whatever_descriptors_claim() {
    let whole = Whole::new(16);
    let faults: Arc<dyn FaultSink> = FaultLog::new(8);
    let mut areas = Vec::new();
    for pasid in [5, 6] {
        let domain = new_domain(&whole.iommu, &whole.device);
        let area = Area::new(&whole.iommu, 0x4000);
        area.map(&domain, 0x4000);
        DmaSource::with_pasid(&whole.device, pasid)
            .unwrap()
            .attach(&domain, &faults)
            .unwrap();
        areas.push((area, domain));
    }
    let tagged = usage().with_pasid(5).with_pasid_en(true);
    whole.driver.configure_queue(1, 16, tagged);
    assert_eq!(whole.driver.command(Command::EnableWq, 1), 0);
    let (own, other) = (&areas[0].0, &areas[1].0);
    own.write(Area::BASE + 0x1000, b"secret of five..");
    let forged = Descriptor {
        pasid: 6,
        privileged: true,
        ..Descriptor::memory_move(Area::BASE + 0x2000, Area::BASE + 0x1000, 16, Area::BASE)
    };
    whole.driver.submit(1, forged);
    assert_eq!(own.wait(Area::BASE).status, 1);
    assert_eq!(own.read(Area::BASE + 0x2000, 16), b"secret of five..");
    assert_eq!(other.read(Area::BASE, 0x4000), vec![0; 0x4000]);
    // By PASID: only the queue that is tagged with it.
    assert_eq!(whole.driver.command(Command::DrainPasid, 5), 0);
    assert_eq!(whole.driver.command(Command::AbortPasid, 77), 0);
    // A PASID that leads nowhere moves nothing.
    assert_eq!(
        whole.driver.command(Command::DisableWq, queue_operand(1)),
        0
    );
    whole.driver.configure_queue(1, 16, tagged.with_pasid(7));
    assert_eq!(whole.driver.command(Command::EnableWq, 1), 0);
    whole.driver.submit(1, forged);
    assert_eq!(whole.driver.command(Command::DrainAll, 0), 0);
    assert_eq!(
        whole.driver.software_error(),
        Some(Status::RecordFault as u8)
    );
    assert!(Pasid::new(7).is_some_and(|p| {
        whole
            .device
            .fault_log()
            .faults()
            .iter()
            .all(|f| f.pasid == Some(p))
    }));
}

#[test]
fn a_submission_is_one_aligned_store_of_64_bytes_to_a_page_that_exists() {
    let whole = Whole::new(16);
    let descriptor = Descriptor::new(Opcode::Noop, record(0)).to_bytes();
    whole.driver.model.write(2, 0, &descriptor[..8]);
    whole.driver.model.write(2, 32, &descriptor);
    whole.driver.model.write(2, 2 * PORTAL_PAGE, &descriptor);
    assert_eq!(queue_field(&*whole.dsa, 0, "accepted"), Value::Count(0));
    whole.driver.model.write(2, 64, &descriptor);
    whole.driver.model.write(2, PORTAL_PAGE + 128, &descriptor);
    assert_eq!(queue_field(&*whole.dsa, 0, "accepted"), Value::Count(2));
}

#[test]
fn an_engine_of_no_group_does_not_swallow_the_wake_up_of_another() {
    let whole = Whole::new(16);
    // The group keeps engine 0 alone, as small drivers configure it.
    whole.driver.command(Command::DisableDevice, 0);
    whole.driver.write64(reg::GRPCFG + 32, 1);
    assert_eq!(whole.driver.command(Command::EnableDevice, 0), 0);
    assert_eq!(whole.driver.command(Command::EnableWq, 0), 0);
    for _ in 0..500 {
        let done = whole.run(Descriptor::memory_move(DST, SRC, 64, record(0)));
        assert_eq!(done.status, Status::Success as u8);
    }
}

#[test]
fn a_dropped_device_leaves_no_engine_and_no_reader_behind() {
    let whole = Whole::new(64);
    let requests = block(&whole);
    for index in 0..16 {
        whole.driver.submit(
            0,
            Descriptor::memory_move(DST, SRC, 0x10_0000, record(index)),
        );
    }
    let Whole {
        iommu,
        dsa,
        driver,
        device,
        area,
        ..
    } = whole;
    let alive = Arc::downgrade(&dsa);
    drop(driver);
    drop(dsa);
    assert!(alive.upgrade().is_none());
    let before = area.read(Area::BASE, Whole::SIZE as usize);
    unblock_after_drop(&iommu, &requests);
    assert!(area.read(Area::BASE, Whole::SIZE as usize) == before);
    // No thread holds the device: only the test, the machine and its group do.
    DmaSource::new(&device, None).detach();
    assert!(iommu.remove_device(&device).is_ok());
    assert_eq!(Arc::strong_count(&device), 1);
}

fn unblock_after_drop(iommu: &ioasid_iommu::Iommu, requests: &Requests) {
    let _ = iommu.page_response(requests.next().id, PageResponse::Success);
}

/// A field of the device's cache of translations.
fn tlb_field(whole: &Whole, field: &str) -> Value {
    let node = whole.dsa.inspect();
    let Some(Value::Node(tlb)) = node.field("tlb") else {
        panic!("the engines keep translations")
    };
    tlb.field(field).unwrap().clone()
}

#[test]
fn a_queue_may_keep_its_translations_out_of_the_devices_tlb() {
    let whole = Whole::new(16);
    let capabilities = WqCap::from_bits(whole.driver.read64(reg::WQCAP));
    assert!(capabilities.wq_ats_support() && capabilities.wq_prs_support());
    assert_eq!(whole.driver.command(Command::DisableWq, 1), 0);
    let limits = whole.driver.read32(reg::WQCFG + 12);
    for (ats_disable, looks) in [(true, false), (false, true)] {
        let usage = usage().with_ats_disable(ats_disable);
        whole.driver.write32(reg::WQCFG + 8, usage.into_bits());
        whole.driver.write32(reg::WQCFG + 12, limits);
        assert_eq!(whole.driver.command(Command::EnableWq, 0), 0);
        for _ in 0..64 {
            let done = whole.run(Descriptor::memory_move(DST, SRC, 4096, record(0)));
            assert_eq!(done.status, 1);
        }
        assert_eq!(whole.driver.command(Command::DisableWq, 1), 0);
        // Engines count what they looked up when they next hear of an invalidation.
        whole.domain.barrier();
        assert_eq!(whole.driver.command(Command::EnableWq, 0), 0);
        let looked = || {
            whole.run(Descriptor::new(Opcode::Noop, record(0)));
            tlb_field(&whole, "misses") != Value::Count(0)
        };
        match looks {
            true => eventually("a count", looked),
            false => assert!((0..64).all(|_| !looked())),
        }
        assert_eq!(whole.driver.command(Command::DisableWq, 1), 0);
    }
}

#[test]
fn a_queue_without_page_requests_ends_a_descriptor_that_would_wait() {
    let whole = Whole::new(16);
    let requests = Requests::install(&whole.domain);
    assert_eq!(whole.driver.command(Command::DisableWq, 1), 0);
    let usage = usage().with_prs_disable(true);
    whole.driver.write32(reg::WQCFG + 8, usage.into_bits());
    assert_eq!(whole.driver.command(Command::EnableWq, 0), 0);
    let done = whole.run(Descriptor::memory_move(DST, END, 64, record(0)).with_block_on_fault());
    assert_eq!(done.status, Status::PageFault as u8);
    assert!(requests.is_empty());
}
