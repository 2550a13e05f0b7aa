use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::{
    fs::MemfdFlags,
    mm::{MapFlags, ProtFlags},
};

use super::*;

const PAGE: usize = 4096;
const PAGES: usize = 6;
const LEN: usize = PAGES * PAGE;

fn pattern() -> Vec<u8> {
    pattern_at(0, LEN)
}

fn pattern_at(start: usize, len: usize) -> Vec<u8> {
    (start..start + len)
        .map(|at| (at * 31 + at / 251) as u8)
        .collect()
}

/// A shared mapping of a file that can be cut short.
struct Mapped {
    file: OwnedFd,
    base: *mut u8,
}

impl Mapped {
    fn new() -> Self {
        let file = rustix::fs::memfd_create(c"copy", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, &pattern()).unwrap();
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping.
        let base =
            unsafe { rustix::mm::mmap(ptr::null_mut(), LEN, prot, flags, &file, 0) }.unwrap();
        Mapped {
            file,
            base: base.cast(),
        }
    }

    fn keep(&self, pages: usize) -> Vec<u8> {
        rustix::fs::ftruncate(&self.file, (pages * PAGE) as u64).unwrap();
        pattern()[..pages * PAGE].to_vec()
    }

    fn content(&self) -> Vec<u8> {
        let size = rustix::fs::fstat(&self.file).unwrap().st_size as usize;
        let mut content = vec![0; size];
        assert_eq!(rustix::io::pread(&self.file, &mut content, 0), Ok(size));
        content
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`.
        unsafe { rustix::mm::munmap(self.base.cast(), LEN) }.unwrap();
    }
}

/// Copiers that copy everything in one way, for each way that this processor has.
fn ways() -> Vec<RecoveringCopy> {
    // The handler.
    let copier = RecoveringCopy::get().unwrap();
    let mut ways = vec![Forward::Bytes, Forward::Sse2];
    ways.extend((Forward::vectors() == Forward::Avx2).then_some(Forward::Avx2));
    let all = |way| RecoveringCopy {
        short: way,
        long: way,
        close: way,
    };
    let mut all: Vec<_> = ways.into_iter().map(all).collect();
    all.push(RecoveringCopy { ..*copier });
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn it_is_memmove(src in 0..LEN, dst in 0..LEN, len in 0..=LEN) {
        let len = len.min(LEN - src).min(LEN - dst);
        let mut model = pattern();
        model.copy_within(src..src + len, dst);
        for copier in ways() {
            let mut bytes = pattern();
            let base = bytes.as_mut_ptr();
            // SAFETY: both ranges lie in `bytes`.
            let done = unsafe { copier.copy(base.add(dst), base.add(src), len) };
            prop_assert_eq!(done, len);
            prop_assert!(bytes == model, "{:?}", copier);
        }
    }

    #[test]
    fn a_lost_page_ends_it_with_an_exact_count_and_nothing_else_touched(
        src in 0..LEN, dst in 0..LEN, len in 0..=LEN, pages in 0..=PAGES,
    ) {
        let len = len.min(LEN - src).min(LEN - dst);
        for copier in ways() {
            let mapped = Mapped::new();
            let mut model = mapped.keep(pages);
            let reach = |start: usize| model.len().saturating_sub(start);
            let expected = len.min(reach(src)).min(reach(dst));
            // SAFETY: both ranges lie in the mapping, whose pages may be gone.
            let done = unsafe { copier.copy(mapped.base.add(dst), mapped.base.add(src), len) };
            prop_assert_eq!(done, expected);
            if expected > 0 {
                model.copy_within(src..src + expected, dst);
            }
            prop_assert!(mapped.content() == model, "{:?}", copier);
        }
    }
}

#[test]
fn every_short_overlap_is_memmove() {
    const AT: usize = 300;
    for copier in ways() {
        for len in 0..=290 {
            for shift in 1..=70 {
                let mut bytes = pattern();
                let mut model = bytes.clone();
                let base = bytes.as_mut_ptr();
                // SAFETY: both ranges lie in `bytes`.
                let done = unsafe { copier.copy(base.add(AT - shift), base.add(AT), len) };
                model.copy_within(AT..AT + len, AT - shift);
                assert_eq!(done, len);
                assert!(bytes == model, "{copier:?}: {len} bytes down by {shift}");
            }
        }
    }
}

/// Every distance from a lost page at which a loop is in one of its states, on each side, with every
/// remainder modulo the width of a vector between the two.
#[test]
fn a_page_lost_at_any_place_of_a_loop_ends_it_exactly_there() {
    const SPAN: usize = 700;
    let (source, target) = (Mapped::new(), Mapped::new());
    let lost = [source.keep(1).len(), target.keep(1).len()];
    assert_eq!(lost, [PAGE, PAGE]);
    for copier in ways() {
        for before in 0..=300 {
            for shift in 0..=33 {
                for (from, to) in [(before, before + shift), (before + shift, before)] {
                    // So many bytes before the end of the only page, on either side.
                    let (src, dst) = (PAGE - from, PAGE - to);
                    let clean = [0xa5; SPAN];
                    let start = PAGE - SPAN;
                    // SAFETY: the first page of the target is there, and nobody else uses it.
                    let page = unsafe { std::slice::from_raw_parts_mut(target.base, PAGE) };
                    page[start..].copy_from_slice(&clean);
                    let len = before + shift + 40;
                    // SAFETY: both ranges lie in mappings, whose pages may be gone.
                    let done =
                        unsafe { copier.copy(target.base.add(dst), source.base.add(src), len) };
                    assert_eq!(done, before, "{copier:?}: {from} {to}");
                    // SAFETY: as above; the other slice is not used any more.
                    let page = unsafe { std::slice::from_raw_parts(target.base, PAGE) };
                    let mut model = clean;
                    model[dst - start..][..done].copy_from_slice(&pattern_at(src, done));
                    assert!(page[start..] == model, "{copier:?}: {from} {to}");
                }
            }
        }
    }
}

#[test]
fn a_page_without_write_permission_ends_it_as_well() {
    let mapped = Mapped::new();
    // SAFETY: the second page of a mapping that nobody else uses.
    unsafe {
        rustix::mm::mprotect(
            mapped.base.add(PAGE).cast(),
            PAGE,
            rustix::mm::MprotectFlags::READ,
        )
    }
    .unwrap();
    let source = [7; 2 * PAGE];
    for copier in ways() {
        // SAFETY: the destination lies in the mapping.
        let done = unsafe { copier.copy(mapped.base, source.as_ptr(), source.len()) };
        assert_eq!(done, PAGE);
        assert!(mapped.content()[..PAGE] == source[..PAGE]);
        assert!(mapped.content()[PAGE..] == pattern()[PAGE..]);
    }
}

/// The bytes that a block has stored must not be copied again: the source has lost what they were.
#[test]
fn an_overlapping_copy_that_a_store_ends_is_exact_as_well() {
    let mapped = Mapped::new();
    // SAFETY: the second page of a mapping that nobody else uses.
    unsafe {
        rustix::mm::mprotect(
            mapped.base.add(PAGE).cast(),
            PAGE,
            rustix::mm::MprotectFlags::READ,
        )
    }
    .unwrap();
    for copier in ways() {
        for before in 0..=300 {
            for shift in 1..=33 {
                let start = PAGE - before;
                let clean = pattern_at(start, before);
                // SAFETY: bytes of the first page, which nobody else uses.
                unsafe { mapped.base.add(start).copy_from(clean.as_ptr(), before) };
                let (dst, src) = (mapped.base.wrapping_add(start), start + shift);
                // SAFETY: both ranges lie in the mapping.
                let done = unsafe { copier.copy(dst, mapped.base.add(src), before + 140) };
                assert_eq!(done, before, "{copier:?}: down by {shift}");
                // SAFETY: as above, and the copy is done.
                let copied = unsafe { std::slice::from_raw_parts(dst, before) };
                assert!(
                    copied == pattern_at(src, before),
                    "{copier:?}: {before} bytes down by {shift}"
                );
            }
        }
    }
    assert!(mapped.content()[PAGE..] == pattern()[PAGE..]);
}

#[test]
fn a_word_is_exchanged_or_not_or_gone() {
    let mapped = Mapped::new();
    let copier = RecoveringCopy::get().unwrap();
    let word = mapped.base.wrapping_add(PAGE).cast::<u64>();
    // SAFETY: an aligned word of the mapping.
    let exchange = |seen, new| unsafe { copier.exchange(word, seen, new) };
    let at = |content: &[u8]| u64::from_le_bytes(content[PAGE..PAGE + 8].try_into().unwrap());
    let before = at(&pattern());
    assert_eq!(exchange(before ^ 1, 7), Exchange::Changed);
    assert_eq!(at(&mapped.content()), before);
    assert_eq!(exchange(before, 7), Exchange::Done);
    assert_eq!(at(&mapped.content()), 7);
    mapped.keep(1);
    assert_eq!(exchange(7, 8), Exchange::Gone);
    mapped.keep(2);
    assert_eq!(exchange(0, 8), Exchange::Done);
}
