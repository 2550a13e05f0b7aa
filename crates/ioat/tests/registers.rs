//! The registers: what they show, what a store does to them, and interrupts.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use ioasid_ioat::spec::{
    ChanErr, ChannelStatus, Descriptor, DmaCap,
    registers::{self as reg},
};
use ioasid_vfio::DeviceModel;

#[test]
fn a_fresh_device_says_what_it_is() {
    let whole = Whole::new();
    let driver = &whole.driver;
    assert_eq!(driver.get::<1>(reg::CHANCNT), 4);
    assert_eq!(driver.get::<1>(reg::XFERCAP), 18);
    assert_eq!(driver.get::<1>(reg::CBVER), 0x33);
    let capabilities = DmaCap::from_bits(driver.get::<4>(reg::DMACAPABILITY) as u32);
    assert!(capabilities.fill_block() && capabilities.xor() && capabilities.pq());
    assert!(!capabilities.dca() && !capabilities.dwbes() && !capabilities.raid16ss());
    let function = whole.ioat.function();
    let mut ids = [0; 4];
    function.read_config(0, &mut ids).unwrap();
    assert_eq!(ids, [0x86, 0x80, 0x21, 0x20]);
    assert_eq!(function.bar(0).unwrap().size, 0x4000);
    assert_eq!(function.vectors().count(), 4);
    let msix = function.msix().unwrap();
    assert_eq!((msix.bar, msix.table, msix.pending), (0, 0x2000, 0x3000));
}

#[test]
fn the_error_registers_of_configuration_space_are_there_and_zero() {
    let whole = Whole::new();
    for offset in [0x148, 0x180] {
        let mut value = [0xff; 4];
        whole
            .ioat
            .function()
            .read_config(offset, &mut value)
            .unwrap();
        assert_eq!(value, [0; 4], "{offset:#x}");
        let write = whole.ioat.function().write_config(offset, &value);
        let _ = write.unwrap();
    }
}

#[test]
fn every_channel_is_halted_with_nothing_set() {
    let whole = Whole::new();
    for channel in 1..4 {
        let driver = whole.driver.with_channel(channel);
        assert_eq!(driver.status().into_bits(), 3);
        assert_eq!(driver.errors().into_bits(), 0);
        assert_eq!(driver.read::<8>(reg::CHAINADDR), 0);
        assert_eq!(driver.read::<2>(reg::CHANCTRL), 0);
    }
}

#[test]
fn there_is_nothing_behind_the_last_channel_and_before_the_table() {
    let whole = Whole::new();
    for offset in (0x280..0x2000).step_by(8) {
        whole.ioat.write(0, offset, &[0xff; 8]);
        assert_eq!(whole.driver.get::<8>(offset), 0, "{offset:#x}");
    }
}

#[test]
fn an_access_may_be_as_wide_as_it_likes() {
    let whole = Whole::new();
    let driver = &whole.driver;
    // As two halves, as bytes, as a whole.
    driver.write(reg::CHANCMP, &0x8765_4321_u32.to_le_bytes());
    driver.write(reg::CHANCMP + 4, &0x12_u32.to_le_bytes());
    assert_eq!(driver.read::<8>(reg::CHANCMP), 0x12_8765_4321);
    driver.write(reg::CHANCMP + 3, &[0xaa]);
    assert_eq!(driver.read::<8>(reg::CHANCMP), 0x12_aa65_4321);
    assert_eq!(driver.read::<2>(reg::CHANCMP + 2), 0xaa65);
    driver.write(reg::CHANCMP, &7_u64.to_le_bytes());
    assert_eq!(driver.read::<4>(reg::CHANCMP), 7);
}

#[test]
fn a_chain_address_arms_a_channel_and_a_count_starts_it() {
    let whole = Whole::new();
    let driver = &whole.driver;
    whole.area.write_chain(CHAIN, &[Descriptor::null(); 3]);
    driver.write(reg::CHAINADDR, &(CHAIN as u32).to_le_bytes());
    driver.write(reg::CHAINADDR + 4, &0_u32.to_le_bytes());
    assert!(driver.status().is(ChannelStatus::Armed));
    driver.count(0);
    assert!(driver.status().is(ChannelStatus::Armed));
    driver.count(2);
    driver.wait_for(ChannelStatus::Done);
    assert_eq!(driver.status().completed_address(), CHAIN + 64);
    // The same count again asks for nothing, one more for one more.
    driver.count(2);
    assert!(driver.status().is(ChannelStatus::Done));
    driver.count(3);
    eventually("the third", || {
        driver.status().completed_address() == CHAIN + 128
    });
    // A channel that is done takes no other chain.
    driver.write(reg::CHAINADDR, &0x1000_u64.to_le_bytes());
    assert_eq!(driver.read::<8>(reg::CHAINADDR), CHAIN);
}

#[test]
fn a_suspended_channel_takes_a_new_chain_and_counts_from_zero() {
    let whole = Whole::new();
    let driver = &whole.driver;
    whole.area.write_chain(CHAIN, &[Descriptor::null(); 8]);
    driver.start(CHAIN, 5);
    driver.wait_for(ChannelStatus::Done);
    driver.command(SUSPEND);
    assert!(driver.status().is(ChannelStatus::Suspended));
    driver.start(CHAIN + 64, 2);
    driver.wait_for(ChannelStatus::Done);
    assert_eq!(driver.status().completed_address(), CHAIN + 128);
}

#[test]
fn commands_that_do_not_exist_halt_the_channel_with_an_error() {
    let whole = Whole::new();
    for command in [0x01, 0x02, 0x08, RESET | SUSPEND, 0x40] {
        whole.driver.reset();
        whole.driver.command(command);
        assert_eq!(whole.driver.errors(), ChanErr::new().with_chancmd(true));
        assert!(whole.driver.status().is(ChannelStatus::Halted));
    }
    whole.driver.reset();
    whole.driver.command(0);
    assert_eq!(whole.driver.errors().into_bits(), 0);
}

#[test]
fn an_error_is_cleared_by_writing_one_and_a_chain_waits_for_that() {
    let whole = Whole::new();
    let driver = &whole.driver;
    whole.area.write_chain(CHAIN, &[Descriptor::null()]);
    driver.start(0x1000, 1);
    assert_ne!(driver.wait_for_end().into_bits(), 0);
    driver.start(CHAIN, 1);
    assert!(driver.status().is(ChannelStatus::Halted));
    driver.write(reg::CHANERR, &0_u32.to_le_bytes());
    assert_ne!(driver.errors().into_bits(), 0);
    let errors = driver.errors().into_bits();
    driver.write(reg::CHANERR, &errors.to_le_bytes());
    assert_eq!(driver.errors().into_bits(), 0);
    driver.start(CHAIN, 1);
    driver.wait_for(ChannelStatus::Done);
}

#[test]
fn a_descriptor_interrupts_if_it_asks_for_it_and_on_its_channels_vector() {
    let whole = Whole::new();
    let irqs: Vec<_> = (0..4).map(|vector| whole.driver.listen(vector)).collect();
    let driver = whole.driver.with_channel(2);
    driver.set_completion(WORD);
    driver.control(RUN);
    whole
        .area
        .write_chain(CHAIN, &[Descriptor::null(), reporting(Descriptor::null())]);
    driver.start(CHAIN, 1);
    driver.wait_for(ChannelStatus::Done);
    driver.count(2);
    eventually("the interrupt", || irqs[2].count() == 1);
    assert_eq!(driver.get::<4>(reg::ATTNSTATUS), 1 << 2);
    driver.control(RUN);
    assert_eq!(driver.get::<4>(reg::ATTNSTATUS), 0);
    let counts: Vec<u64> = irqs.iter().map(|irq| irq.count()).collect();
    assert_eq!(counts, [0, 0, 1, 0]);
}

#[test]
fn between_an_interrupt_and_its_rearming_there_is_no_other_and_none_is_lost() {
    let whole = Whole::new();
    let driver = &whole.driver;
    let irq = driver.listen(0);
    whole
        .area
        .write_chain(CHAIN, &[reporting(Descriptor::null()); 100]);
    driver.start(CHAIN, 99);
    driver.wait_for(ChannelStatus::Done);
    eventually("the interrupt", || irq.count() == 1);
    assert_eq!(driver.read::<2>(reg::CHANCTRL) & 1, 1);
    driver.control(RUN);
    assert_eq!(irq.count(), 2, "98 have come meanwhile");
    driver.control(RUN);
    assert_eq!(irq.count(), 2);
    driver.count(100);
    eventually("another", || irq.count() == 3);
}

#[test]
fn without_vectors_of_their_own_all_channels_use_the_first_until_it_is_read() {
    let whole = Whole::new();
    let irqs = [whole.driver.listen(0), whole.driver.listen(1)];
    whole.ioat.write(0, reg::INTRCTRL, &[1]);
    whole
        .area
        .write_chain(CHAIN, &[reporting(Descriptor::null()); 4]);
    let driver = whole.driver.with_channel(1);
    driver.set_completion(WORD);
    driver.control(RUN);
    driver.start(CHAIN, 1);
    eventually("the interrupt", || irqs[0].count() == 1);
    assert_eq!(driver.get::<1>(reg::INTRCTRL), 0b111);
    assert_eq!(
        driver.get::<1>(reg::INTRCTRL),
        0b010,
        "reading has disabled it"
    );
    driver.control(RUN);
    driver.count(2);
    eventually("attention", || driver.get::<4>(reg::ATTNSTATUS) == 2);
    assert_eq!(irqs[0].count(), 1);
    whole.ioat.write(0, reg::INTRCTRL, &[1]);
    assert_eq!((irqs[0].count(), irqs[1].count()), (2, 0));
}

#[test]
fn a_suspend_lets_the_descriptor_end_and_a_resume_goes_on_behind_it() {
    let whole = Whole::new();
    let driver = &whole.driver;
    let bytes = pattern(1 << 18, 3);
    whole.area.write(SRC, &bytes);
    // Two more than the first count, in case that all of them are done before the suspend.
    let copies = vec![Descriptor::copy(DST, SRC, 1 << 18); 202];
    whole.area.write_chain(CHAIN, &copies);
    for _ in 0..20 {
        driver.start(CHAIN, 200);
        driver.command(SUSPEND);
        driver.wait_for(ChannelStatus::Suspended);
        let at = driver.status().completed_address();
        whole.area.write(DST, &[0; 64]);
        std::thread::yield_now();
        assert_eq!(driver.status().completed_address(), at);
        assert_eq!(whole.area.read(DST, 64), [0; 64]);
        let done = at.checked_sub(CHAIN).map_or(0, |bytes| bytes / 64 + 1);
        // Two more than have been done, whatever the first count was.
        driver.count(done as u16 + 2);
        assert!(driver.status().is(ChannelStatus::Suspended));
        driver.command(RESUME);
        driver.wait_for(ChannelStatus::Done);
        assert_eq!(driver.status().completed_address(), CHAIN + (done + 1) * 64);
        assert!(whole.area.read(DST, 1 << 18) == bytes);
        driver.command(SUSPEND);
    }
}

#[test]
fn a_function_reset_stops_every_channel_and_forgets_everything() {
    let whole = Whole::new();
    whole
        .area
        .write_chain(CHAIN, &vec![Descriptor::copy(DST, SRC, 1 << 18); 1000]);
    for channel in 0..4 {
        whole.driver.with_channel(channel).start(CHAIN, 1000);
    }
    whole.ioat.write(0, reg::INTRDELAY, &[5, 0]);
    whole.ioat.reset();
    whole.area.write(DST, &[0x77; 1 << 18]);
    for channel in 0..4 {
        let driver = whole.driver.with_channel(channel);
        assert_eq!(driver.status().into_bits(), 3);
        assert_eq!(driver.read::<8>(reg::CHAINADDR), 0);
        assert_eq!(driver.read::<2>(reg::DMACOUNT), 0);
        assert_eq!(driver.read::<8>(reg::CHANCMP), 0);
        assert_eq!(driver.read::<2>(reg::CHANCTRL), 0);
    }
    assert_eq!(whole.driver.get::<2>(reg::INTRDELAY), 0);
    std::thread::yield_now();
    assert!(whole.area.read(DST, 1 << 18) == vec![0x77; 1 << 18]);
    // And it works again.
    whole.driver.model.write(0, reg::INTRCTRL, &[8]);
    assert_eq!(whole.run(&[Descriptor::fill(DST, 0, 4096)]).into_bits(), 0);
}

/// What Linux does after a fault of DMA: `ioat_eh`, `ioat_reset_hw`, `ioat_restart_channel`
/// (`drivers/dma/ioat/dma.c`).
#[test]
fn after_a_channel_reset_a_new_chain_is_enough() {
    let whole = Whole::new();
    let driver = &whole.driver;
    let irq = driver.listen(0);
    driver.write(reg::CHANERRMSK, &0x40_u32.to_le_bytes());
    for round in 1..=3 {
        let faulty = Descriptor::copy(common::END, SRC, 4096);
        whole.area.write_chain(CHAIN, &[reporting(faulty)]);
        driver.start(CHAIN, 1);
        driver.wait_for(ChannelStatus::Halted);
        eventually("the interrupt of the error", || {
            irq.count() == 2 * round - 1
        });
        driver.reset();
        assert_eq!(driver.read::<8>(reg::CHAINADDR), 0);
        assert_eq!(driver.read::<2>(reg::DMACOUNT), 0);
        assert_eq!(driver.errors().into_bits(), 0);
        assert_eq!(driver.read::<8>(reg::CHANCMP), WORD);
        assert_eq!(driver.read::<4>(reg::CHANERRMSK), 0x40);

        let good = Descriptor::copy(DST, SRC, 4096);
        whole.area.write_chain(CHAIN, &[reporting(good)]);
        driver.start(CHAIN, 1);
        driver.wait_for(ChannelStatus::Done);
        eventually("the interrupt", || irq.count() == 2 * round);
        let word = whole.area.word(WORD);
        assert!(word.is(ChannelStatus::Done));
        assert_eq!(word.completed_address(), CHAIN);
        driver.reset();
    }
}

#[test]
fn a_channel_reset_in_flight_is_the_end_of_its_writes() {
    let whole = Whole::new();
    let driver = &whole.driver;
    let fills = vec![reporting(Descriptor::fill(DST, 0, 1 << 18)); 64];
    for round in 0..50 {
        driver.set_completion(WORD);
        whole.area.write_chain(CHAIN, &fills);
        driver.start(CHAIN, 64);
        for _ in 0..round * 20 {
            std::hint::spin_loop();
        }
        driver.reset();
        whole.area.write(DST, &[0x5a; 1 << 18]);
        whole.area.write(WORD, &[0x5a; 8]);
        std::thread::yield_now();
        assert!(
            whole.area.read(DST, 1 << 18) == vec![0x5a; 1 << 18],
            "{round}"
        );
        assert_eq!(whole.area.read(WORD, 8), [0x5a; 8]);
    }
}

/// What `tools/testing/selftests/vfio/lib/drivers/ioat` does to the registers.
#[test]
fn the_kernels_selftest_driver_finds_what_it_expects() {
    let whole = Whole::new();
    let driver = &whole.driver;
    let irq = driver.listen(0);
    let wait = |driver: &Driver| {
        driver.wait_for(ChannelStatus::Done);
        driver.command(SUSPEND);
        driver.wait_for(ChannelStatus::Suspended);
    };
    let start = |source, destination, size, count, interrupt| {
        // One descriptor that is followed by itself.
        let descriptor = Descriptor::copy(destination, source, size)
            .with_next(CHAIN)
            .with_control(|control| control.set_int_en(interrupt));
        whole.area.write(CHAIN, &descriptor.to_bytes());
        driver.write(reg::CHAINADDR, &CHAIN.to_le_bytes());
        driver.control(0x09);
        driver.count(count);
    };
    driver.reset();
    whole.ioat.write(0, reg::INTRCTRL, &[0x08]);
    let bytes = pattern(1 << 18, 1);
    whole.area.write(SRC, &bytes);
    for (size, count) in [(64, 1), (1 << 18, 1), (4096, u16::MAX), (1 << 18, 50)] {
        whole.area.write(DST, &vec![0; 1 << 18]);
        start(SRC, DST, size, count, false);
        wait(driver);
        assert!(whole.area.read(DST, size as usize) == bytes[..size as usize]);
        assert_eq!(irq.count(), 0);
    }
    for round in 1..=100 {
        start(SRC, DST, 8, 1, true);
        wait(driver);
        eventually("the interrupt", || irq.count() == round);
    }
    // Unmapped: an error, no interrupt, and a device that works again.
    for (source, destination) in [(common::END, DST), (SRC, common::END)] {
        start(source, destination, 4096, 1, false);
        driver.wait_for(ChannelStatus::Halted);
        driver.reset();
    }
    start(SRC, DST, 8, 1, true);
    wait(driver);
    eventually("the interrupt", || irq.count() == 101);
}
