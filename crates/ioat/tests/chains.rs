//! Chains of descriptors: what each operation does, how one follows the other, and how they fail.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use ioasid_core::Prot;
use ioasid_ioat::spec::{ChanErr, ChanSts, ChannelStatus, Descriptor, registers as reg};

/// The XOR of buffers of one length.
fn xor(buffers: &[Vec<u8>]) -> Vec<u8> {
    let mut sum = vec![0; buffers[0].len()];
    for buffer in buffers {
        sum.iter_mut()
            .zip(buffer)
            .for_each(|(to, byte)| *to ^= byte);
    }
    sum
}

/// The sum of buffers, each times 2 to the power of its position, by Horner's rule.
fn q_of(buffers: &[Vec<u8>]) -> Vec<u8> {
    let mut sum = vec![0_u8; buffers[0].len()];
    for buffer in buffers.iter().rev() {
        for (to, byte) in sum.iter_mut().zip(buffer) {
            let carry = if *to & 0x80 == 0 { 0 } else { 0x1d };
            *to = *to << 1 ^ carry ^ byte;
        }
    }
    sum
}

#[test]
fn a_copy_moves_exactly_its_bytes() {
    let whole = Whole::new();
    for (size, offset) in [(1, 0), (64, 3), (4097, 4095), (1 << 18, 0), (222_222, 1)] {
        let bytes = pattern(size, size as u64);
        whole.area.write(SRC + offset, &bytes);
        whole.area.write(DST, &vec![0xee; size + 2]);
        let copy = Descriptor::copy(DST + 1, SRC + offset, size as u32);
        assert_eq!(whole.run(&[copy]).into_bits(), 0);
        let found = whole.area.read(DST, size + 2);
        assert!(found[1..=size] == bytes);
        assert_eq!((found[0], found[size + 1]), (0xee, 0xee));
    }
}

#[test]
fn a_fill_repeats_its_pattern_from_the_first_byte() {
    let whole = Whole::new();
    let pattern: u64 = 0x0807_0605_0403_0201;
    for size in [1, 7, 4099, 1 << 18] {
        whole.area.write(DST, &vec![0; size + 8]);
        let fill = Descriptor::fill(DST + 5, pattern, size as u32);
        assert_eq!(whole.run(&[fill]).into_bits(), 0);
        let found = whole.area.read(DST + 5, size);
        let expected = pattern.to_le_bytes().into_iter().cycle().take(size);
        assert!(found.iter().copied().eq(expected));
        assert_eq!(whole.area.read(DST + 5 + size as u64, 1), [0]);
    }
}

#[test]
fn the_descriptors_of_a_chain_are_done_one_after_the_other() {
    let whole = Whole::new();
    let bytes = pattern(4096, 1);
    whole.area.write(SRC, &bytes);
    // Each copies what the one before has written.
    let at = |step: u64| SRC + step * 0x1000;
    let chain: Vec<_> = (0..200)
        .map(|step| Descriptor::copy(at(step + 1), at(step), 4096))
        .collect();
    assert_eq!(whole.run(&chain).into_bits(), 0);
    assert!(whole.area.read(at(200), 4096) == bytes);
}

#[test]
fn descriptors_that_are_appended_to_a_running_chain_are_done() {
    let whole = Whole::new();
    let driver = &whole.driver;
    let chain: Vec<_> = (0..1000)
        .map(|n| Descriptor::fill(DST + n * 8, n, 8))
        .collect();
    whole.area.write_chain(CHAIN, &chain);
    driver.start(CHAIN, 1);
    for count in 2..=1000 {
        driver.count(count);
    }
    driver.wait_for(ChannelStatus::Done);
    assert_eq!(driver.status().completed_address(), CHAIN + 999 * 64);
    for n in 0..1000_u64 {
        assert_eq!(whole.area.read(DST + n * 8, 8), n.to_le_bytes());
    }
}

#[test]
fn a_ring_goes_round_more_often_than_the_count_has_numbers() {
    let whole = Whole::new();
    let driver = &whole.driver;
    let at = |n: u64| CHAIN + n % 16 * 64;
    for n in 0..16 {
        let linked = reporting(Descriptor::null()).with_next(at(n + 1));
        whole.area.write(at(n), &linked.to_bytes());
    }
    driver.start(CHAIN, 8);
    for n in (16..=100_000_u64).step_by(8) {
        eventually("eight more", || {
            whole.area.word(WORD).completed_address() == at(n - 9)
        });
        driver.count(n as u16);
    }
    driver.wait_for(ChannelStatus::Done);
    assert_eq!(driver.errors().into_bits(), 0);
}

#[test]
fn the_completion_word_names_the_last_descriptor_that_asked_for_it() {
    let whole = Whole::new();
    let quiet = Descriptor::null();
    assert_eq!(whole.run(&[quiet, quiet]).into_bits(), 0);
    assert_eq!(whole.area.word(WORD).into_bits(), 0);
    assert_eq!(whole.run(&[quiet, reporting(quiet), quiet]).into_bits(), 0);
    assert_eq!(
        whole.area.word(WORD),
        ChanSts::at(CHAIN + 64, ChannelStatus::Active)
    );
    assert_eq!(whole.run(&[quiet, reporting(quiet)]).into_bits(), 0);
    assert_eq!(
        whole.area.word(WORD),
        ChanSts::at(CHAIN + 64, ChannelStatus::Done)
    );
}

#[test]
fn whoever_sees_the_completion_word_sees_the_data() {
    let whole = Whole::new();
    let size = 0x2_0000;
    for round in 1..200_u8 {
        whole.driver.reset();
        whole.driver.set_completion(WORD);
        whole.area.write(WORD, &[0; 8]);
        let pattern = u64::from_le_bytes([round; 8]);
        whole
            .area
            .write_chain(CHAIN, &[reporting(Descriptor::fill(DST, pattern, size))]);
        whole.driver.start(CHAIN, 1);
        eventually("the word", || whole.area.word(WORD).into_bits() != 0);
        assert!(whole.area.read(DST, size as usize) == vec![round; size as usize]);
    }
}

#[test]
fn xor_adds_up_two_to_eight_sources() {
    let whole = Whole::new();
    let size = 10_000;
    for count in 2..=8_u64 {
        let buffers: Vec<_> = (0..count).map(|n| pattern(size, n + 1)).collect();
        let sources: Vec<_> = (0..count).map(|n| SRC + n * 0x8000 + n).collect();
        for (at, bytes) in sources.iter().zip(&buffers) {
            whole.area.write(*at, bytes);
        }
        let (base, extension) = Descriptor::xor(DST, &sources, size as u32, false);
        assert_eq!(extension.is_some(), count > 5);
        let mut chain = vec![base];
        chain.extend(extension);
        // What follows an extension is found by the extension's successor.
        chain.push(reporting(Descriptor::null()));
        assert_eq!(whole.run(&chain).into_bits(), 0, "{count}");
        assert!(whole.area.read(DST, size) == xor(&buffers), "{count}");
        let last = CHAIN + (chain.len() as u64 - 1) * 64;
        assert_eq!(
            whole.area.word(WORD),
            ChanSts::at(last, ChannelStatus::Done)
        );
    }
}

#[test]
fn p_and_q_are_those_of_raid_6() {
    let whole = Whole::new();
    let size = 5000;
    for count in 2..=8_u64 {
        let buffers: Vec<_> = (0..count).map(|n| pattern(size, n + 1)).collect();
        let sources: Vec<_> = (0..count).map(|n| (SRC + n * 0x8000, 1_u8 << n)).collect();
        for ((at, _), bytes) in sources.iter().zip(&buffers) {
            whole.area.write(*at, bytes);
        }
        let results = [DST, DST + 0x1_0000];
        for check in [false, true] {
            let (base, extension) = Descriptor::pq(results, &sources, size as u32, check);
            let chain: Vec<_> = [base].into_iter().chain(extension).collect();
            assert_eq!(whole.run(&chain).into_bits(), 0, "{count}");
        }
        assert!(whole.area.read(DST, size) == xor(&buffers), "{count}");
        assert!(
            whole.area.read(results[1], size) == q_of(&buffers),
            "{count}"
        );
    }
}

#[test]
fn a_wrong_sum_halts_the_channel_unless_it_is_masked() {
    let whole = Whole::new();
    let sources = [SRC, SRC + 0x1000, SRC + 0x2000];
    sources
        .iter()
        .for_each(|at| whole.area.write(*at, &pattern(4096, *at)));
    let (make, _) = Descriptor::xor(DST, &sources, 4096, false);
    let (check, _) = Descriptor::xor(DST, &sources, 4096, true);
    assert_eq!(
        whole
            .run(&[make, reporting(Descriptor::null()), check])
            .into_bits(),
        0
    );
    let byte = whole.area.read(DST + 4095, 1)[0];
    whole.area.write(DST + 4095, &[!byte]);
    let wrong = ChanErr::new().with_xor_p_or_crc(true);
    let chain = [
        reporting(Descriptor::null()),
        check,
        reporting(Descriptor::null()),
    ];
    assert_eq!(whole.run(&chain), wrong);
    // The word names what was done before it.
    assert_eq!(
        whole.area.word(WORD),
        ChanSts::at(CHAIN, ChannelStatus::Halted)
    );
    assert_eq!(whole.faults.total(), 0);
    // Cleared, the chain goes on behind it.
    whole
        .driver
        .write(reg::CHANERR, &wrong.into_bits().to_le_bytes());
    whole.driver.start(CHAIN + 128, 1);
    whole.driver.wait_for(ChannelStatus::Done);
    // Masked, it goes on by itself; the error is there to be read.
    whole.driver.reset();
    whole
        .driver
        .write(reg::CHANERRMSK, &wrong.into_bits().to_le_bytes());
    whole.driver.set_completion(WORD);
    whole.driver.start(CHAIN, 3);
    assert_eq!(whole.driver.wait_for_end(), wrong);
    assert!(whole.driver.status().is(ChannelStatus::Done));
}

#[test]
fn a_fault_halts_the_channel_with_its_error_and_the_word_says_what_was_done() {
    let whole = Whole::new();
    let irq = whole.driver.listen(0);
    let read = ChanErr::new().with_read_data(true);
    let write = ChanErr::new().with_write_data(true);
    for (bad, error, iova) in [
        (Descriptor::copy(DST, END - 4096, 8192), read, END),
        (Descriptor::copy(END - 4096, SRC, 8192), write, END),
        (Descriptor::fill(END, 0, 64), write, END),
        (Descriptor::xor(DST, &[SRC, END], 64, false).0, read, END),
    ] {
        let before = irq.count();
        let chain = [
            reporting(Descriptor::null()),
            reporting(bad),
            Descriptor::fill(DST, 0, 8),
        ];
        whole.area.write(DST, &[0xff; 8]);
        assert_eq!(whole.run(&chain), error);
        assert!(whole.driver.status().is(ChannelStatus::Halted));
        assert_eq!(
            whole.area.word(WORD),
            ChanSts::at(CHAIN, ChannelStatus::Halted)
        );
        // One for the descriptor before; the error's own comes when that is rearmed.
        eventually("an interrupt", || irq.count() == before + 1);
        whole.driver.control(RUN);
        assert_eq!(irq.count(), before + 2);
        let faults = whole.faults.drain();
        assert_eq!(faults.len(), 1);
        assert_eq!((faults[0].iova, faults[0].pasid), (iova, None));
    }
}

#[test]
fn a_halted_channel_tells_only_if_it_was_asked_to() {
    let whole = Whole::new();
    let irq = whole.driver.listen(0);
    whole.driver.control(0x09);
    whole
        .area
        .write_chain(CHAIN, &[reporting(Descriptor::fill(END, 0, 8))]);
    whole.driver.start(CHAIN, 1);
    whole.driver.wait_for(ChannelStatus::Halted);
    assert_eq!(whole.area.word(WORD).into_bits(), 0);
    assert_eq!(irq.count(), 0);
}

#[test]
fn a_descriptor_that_cannot_be_done_has_an_error_of_its_own() {
    let whole = Whole::new();
    let none = ChanErr::new();
    let copy = Descriptor::copy(DST, SRC, 64);
    let with_op = |op| copy.with_control(|control| control.set_op(op));
    let with_low = |low| copy.with_control(|control| control.set_low(low));
    let (long, _) = Descriptor::xor(DST, &[SRC; 6], 64, false);
    let nine = long.with_control(|control| control.set_low(7));
    for (descriptor, error) in [
        (Descriptor::copy(DST, SRC, 0), none.with_length(true)),
        (
            Descriptor::copy(DST, SRC, (1 << 18) + 1),
            none.with_length(true),
        ),
        (with_op(0x7f), none.with_control(true)),
        (with_low(2), none.with_control(true)),
        (with_low(4), none.with_control(true)),
        (
            copy.with_control(|control| control.set_bundle(true)),
            none.with_control(true),
        ),
        (nine, none.with_control(true)),
        (long, none.with_descriptor_count(true)),
    ] {
        assert_eq!(whole.run(&[descriptor]), error, "{descriptor:?}");
        assert!(whole.driver.status().is(ChannelStatus::Halted));
    }
}

#[test]
fn addresses_that_are_not_aligned_and_chains_that_are_not_mapped_are_errors() {
    let whole = Whole::new();
    let driver = &whole.driver;
    let none = ChanErr::new();
    driver.start(CHAIN + 8, 1);
    assert_eq!(driver.wait_for_end(), none.with_chain_addr(true));
    driver.reset();
    let lost = Descriptor::null().with_next(CHAIN + 72);
    whole.area.write(CHAIN, &lost.to_bytes());
    driver.start(CHAIN, 1);
    assert_eq!(driver.wait_for_end(), none, "it has not been followed yet");
    driver.count(2);
    assert_eq!(driver.wait_for_end(), none.with_next_addr(true));
    driver.reset();
    driver.start(END, 1);
    assert_eq!(driver.wait_for_end(), none.with_descriptor(true));
    driver.reset();
    whole
        .area
        .write_chain(CHAIN, &[reporting(Descriptor::null())]);
    driver.set_completion(WORD + 4);
    driver.start(CHAIN, 1);
    assert_eq!(driver.wait_for_end(), none.with_completion_addr(true));
    driver.reset();
    driver.set_completion(END);
    driver.start(CHAIN, 1);
    assert_eq!(driver.wait_for_end(), none.with_completion_addr(true));
    assert!(driver.status().is(ChannelStatus::Halted));
    assert_eq!(whole.faults.total(), 2);
}

#[test]
fn read_only_memory_is_read_and_not_written() {
    let whole = Whole::new();
    let at = 1 << 40;
    whole
        .domain
        .map(at, whole.area.pages.spa(), 1 << 18, Prot::READ)
        .unwrap();
    assert_eq!(whole.run(&[Descriptor::copy(DST, at, 4096)]).into_bits(), 0);
    let errors = whole.run(&[Descriptor::copy(at, DST, 4096)]);
    assert_eq!(errors, ChanErr::new().with_write_data(true));
}

#[test]
fn channels_work_side_by_side_each_on_its_own_chain() {
    let whole = Whole::new();
    std::thread::scope(|scope| {
        for channel in 0..4_u64 {
            let whole = &whole;
            scope.spawn(move || {
                let driver = whole.driver.with_channel(channel);
                let chain = CHAIN + channel * 0x8000;
                let (word, data) = (WORD + channel * 64, DST + channel * 0x8_0000);
                for round in 0..50_u64 {
                    driver.reset();
                    driver.set_completion(word);
                    driver.control(RUN);
                    let bytes = pattern(0x1_0000, round * 4 + channel);
                    whole.area.write(data, &bytes);
                    whole.area.write(word, &[0; 8]);
                    let copies: Vec<_> = (1..8)
                        .map(|n| {
                            let (to, from) = (data + n * 0x1_0000, data + (n - 1) * 0x1_0000);
                            reporting(Descriptor::copy(to, from, 0x1_0000))
                        })
                        .collect();
                    whole.area.write_chain(chain, &copies);
                    driver.start(chain, 7);
                    assert_eq!(driver.wait_for_end().into_bits(), 0);
                    assert!(whole.area.read(data + 7 * 0x1_0000, 0x1_0000) == bytes);
                    let last = ChanSts::at(chain + 6 * 64, ChannelStatus::Done);
                    assert_eq!(whole.area.word(word), last);
                }
            });
        }
    });
}

#[test]
fn a_chain_without_an_end_leaves_the_other_channels_their_turns() {
    let whole = Whole::new();
    let copy = Descriptor::copy(DST, SRC, 1 << 18).with_next(CHAIN);
    whole.area.write(CHAIN, &copy.to_bytes());
    for channel in 1..4 {
        whole.driver.with_channel(channel).start(CHAIN, u16::MAX);
    }
    let chain = CHAIN + 64;
    for _ in 0..50 {
        whole.driver.reset();
        whole
            .area
            .write_chain(chain, &[Descriptor::fill(WORD, 1, 8); 20]);
        whole.driver.start(chain, 20);
        assert_eq!(whole.driver.wait_for_end().into_bits(), 0);
    }
}

/// What Linux `drivers/dma/ioat` does at its start: `ioat_reset_hw`, `ioat_alloc_chan_resources`
/// and the self-tests, with a ring of 2^16 descriptors.
#[test]
fn the_stock_drivers_self_test_passes() {
    let whole = Whole::new();
    let driver = &whole.driver;
    let irq = driver.listen(0);
    whole.ioat_write(reg::INTRCTRL, 0x09);
    let mut count = 0;
    let ring = |n: u64| CHAIN + n * 64;
    let allocate = || {
        assert!(!driver.status().is(ChannelStatus::Active));
        driver.reset();
        driver.control(RUN);
        driver.set_completion(WORD);
        whole.area.write(WORD, &[0; 8]);
    };
    let issue = |at: u64, descriptors: &[Descriptor]| {
        whole.area.write_chain(ring(at), descriptors);
        driver.count((at + descriptors.len() as u64) as u16);
    };
    let mut complete = |address| {
        count += 1;
        eventually("the interrupt", || irq.count() == count);
        assert_eq!(whole.area.word(WORD).completed_address(), address);
        driver.control(RUN);
    };
    allocate();
    driver.write(reg::CHAINADDR, &(CHAIN as u32).to_le_bytes());
    driver.write(reg::CHAINADDR + 4, &((CHAIN >> 32) as u32).to_le_bytes());
    issue(0, &[reporting(Descriptor::null())]);
    complete(ring(0));
    // The copy of 2000 bytes.
    let bytes: Vec<u8> = (0..2000).map(|n| n as u8).collect();
    whole.area.write(SRC, &bytes);
    issue(1, &[reporting(Descriptor::copy(DST, SRC, 2000))]);
    complete(ring(1));
    assert!(whole.area.read(DST, 2000) == bytes);
    // XOR of six pages, then its check, then the check of a wrong one.
    let page = |n: u64| SRC + n * 4096;
    let sources: Vec<_> = (0..6).map(page).collect();
    for (n, at) in sources.iter().enumerate() {
        whole.area.write(*at, &[1 << n; 4096]);
    }
    let (xor, extension) = Descriptor::xor(DST, &sources, 4096, false);
    issue(2, &[xor, extension.unwrap(), reporting(Descriptor::null())]);
    complete(ring(4));
    assert!(whole.area.read(DST, 4096) == vec![0x3f; 4096]);
    let (check, extension) = Descriptor::xor(DST, &sources, 4096, true);
    let checks = [check, extension.unwrap(), reporting(Descriptor::null())];
    issue(5, &checks);
    complete(ring(7));
    whole.area.write(DST, &[0; 4096]);
    issue(8, &checks);
    complete(ring(7));
    assert!(whole.area.word(WORD).is(ChannelStatus::Halted));
    assert_eq!(driver.errors(), ChanErr::new().with_xor_p_or_crc(true));
    // `ioat_eh` clears it and starts the chain anew at what comes next.
    driver.write(reg::CHANERR, &driver.errors().into_bits().to_le_bytes());
    driver.start(ring(10), 1);
    complete(ring(10));
    // `ioat_free_chan_resources`.
    driver.command(common::SUSPEND);
    driver.wait_for(ChannelStatus::Suspended);
    driver.reset();
}

impl Whole {
    fn ioat_write(&self, offset: u64, value: u8) {
        self.driver.model.write(0, offset, &[value]);
    }
}
