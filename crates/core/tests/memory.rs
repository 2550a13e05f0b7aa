//! Raw bytes stay inside their range, whatever a caller asks for.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use ioasid_core::{
    Prot,
    grace::Grace,
    memory::{OwnMemory, OwnPages, PageSource, PinError},
    spa::SpaSpace,
};
use proptest::prelude::*;

const SIZE: usize = 3 * 4096;

proptest! {
    #[test]
    fn copies_between_raw_bytes_are_memmove(
        dst in 0..SIZE, src in 0..SIZE, len in 0..SIZE, seed in any::<u8>(),
    ) {
        let memory = OwnMemory::new(SIZE);
        let mut model: Vec<u8> = (0..SIZE).map(|i| (i as u8).wrapping_mul(7) ^ seed).collect();
        memory.write(0, &model);
        let bytes = memory.bytes();
        let (to, from) = (bytes.slice(dst, len), bytes.slice(src, len));
        prop_assert_eq!(to.is_some(), dst + len <= SIZE);
        prop_assert_eq!(from.is_some(), src + len <= SIZE);
        if let (Some(to), Some(from)) = (to, from) {
            to.copy_from(from).unwrap();
            model.copy_within(src..src + len, dst);
        }
        let mut found = vec![0; SIZE];
        memory.read(0, &mut found);
        prop_assert_eq!(found, model);
    }

    #[test]
    fn own_pages_pin_what_they_have_and_nothing_else(offset in any::<u64>(), len in any::<u64>()) {
        let space = SpaSpace::new(Grace::new());
        let pages = OwnPages::new(&space, SIZE).unwrap();
        for (offset, len) in [(offset, len), (offset % 20_000, len % 20_000)] {
            let inside = len > 0 && offset.checked_add(len).is_some_and(|end| end <= SIZE as u64);
            match pages.pin(offset, len, Prot::RW) {
                Ok(extents) => {
                    prop_assert!(inside);
                    prop_assert_eq!(extents[0].spa, pages.spa() + offset);
                    prop_assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), len);
                }
                Err(error) => prop_assert!(!inside && error == PinError::OutOfRange),
            }
        }
    }
}

#[test]
fn page_sources_refuse_reads_outside_without_touching_the_buffer() {
    let space = SpaSpace::new(Grace::new());
    let pages: Arc<dyn PageSource> = Arc::new(OwnPages::new(&space, SIZE).unwrap());
    let mut buffer = [7; 8];
    for offset in [SIZE as u64, SIZE as u64 - 7, u64::MAX, u64::MAX - 7] {
        assert_eq!(pages.read(offset, &mut buffer).unwrap_err().done, 0);
        assert!(pages.write(offset, &[1; 8]).is_err());
    }
    assert_eq!(buffer, [7; 8]);
}

#[test]
fn a_reader_that_polls_sees_what_another_thread_writes() {
    // Optimised, a copy that the compiler could move out of the loop would never see the byte.
    let memory = OwnMemory::new(SIZE);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut byte = [0];
            while byte == [0] {
                memory.read(SIZE - 1, &mut byte);
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(5));
        memory.write(SIZE - 1, &[1]);
    });
}
