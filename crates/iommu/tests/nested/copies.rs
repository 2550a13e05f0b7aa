//! Bytes go where both stages say, in whatever pieces.

use ioasid_iommu::{DmaSource, FirstStage};

use crate::common::{
    guest::{BASE, Guest, RW, US},
    *,
};

/// Pages of the guest: more than a large page of 2 MiB.
const PAGES: u64 = 1024;
/// Tables lie before it, in the first pages.
const DATA: u64 = BASE + (64 << 12);
const DATA_LEN: u64 = (PAGES - 64) << 12;

/// A guest whose memory is mapped by leaves of one level from `iova` (of a multiple of 1 GiB) on.
fn mapped_by_leaves(
    iommu: &std::sync::Arc<ioasid_iommu::Iommu>,
    levels: u32,
    level: u32,
    iova: u64,
) -> (Guest, FirstStage) {
    let mut guest = Guest::new(iommu, PAGES << 12);
    let table = guest.table(levels);
    let size = 4096 << (9 * level);
    for start in (0..PAGES << 12).step_by(size) {
        guest.map(table, iova + start, BASE + start, level, RW | US);
    }
    (guest, table)
}

fn data_of(guest: &Guest) -> Vec<u8> {
    let pages = (DATA..DATA + DATA_LEN).step_by(4096);
    pages.flat_map(|gpa| guest.bytes(gpa, 4096)).collect()
}

#[test]
fn copies_of_any_length_and_overlap_go_through_leaves_of_every_size() {
    let mut random = Random(7);
    for (levels, iova) in [
        (4, 0x12_4000_0000),
        (4, 0xffff_8000_4000_0000),
        (5, 0x7f_1234_4000_0000),
        (5, 0xff00_0000_4000_0000),
    ] {
        for level in 0..3 {
            let iommu = machine();
            let device = device(&iommu, 1);
            let (guest, table) = mapped_by_leaves(&iommu, levels, level, iova);
            for page in (DATA..DATA + DATA_LEN).step_by(4096) {
                let bytes: Vec<u8> = (0..4096).map(|_| random.next() as u8).collect();
                guest.memory.write(guest.offset(page) as usize, &bytes);
            }
            let nested = guest.parent.nest(table).unwrap();
            DmaSource::new(&device, None)
                .attach(&nested, &sink())
                .unwrap();
            let mut port = device.port();
            let mut model = data_of(&guest);
            for round in 0..24 {
                let len = random.below(if round % 4 == 0 { 400 << 10 } else { 9000 }) + 1;
                let src = random.below(DATA_LEN - len);
                let dst = match round % 3 {
                    // Overlapping, before and behind.
                    0 => (src + random.below(len)).min(DATA_LEN - len),
                    1 => src.saturating_sub(random.below(len)),
                    _ => random.below(DATA_LEN - len),
                };
                let at = iova + (DATA - BASE);
                copy(&mut port, None, at + dst, at + src, len).unwrap();
                let (src, dst, len) = (src as usize, dst as usize, len as usize);
                model.copy_within(src..src + len, dst);
                let found = data_of(&guest);
                let first = (0..model.len()).find(|at| model[*at] != found[*at]);
                assert_eq!(
                    first, None,
                    "{levels} levels, leaves {level}, round {round}"
                );
            }
            assert_eq!(nested.faults(), 0);
        }
    }
}

#[test]
fn an_access_goes_on_behind_the_end_of_a_page_and_stops_at_the_first_that_is_missing() {
    const IOVA: u64 = 0x7000_0000;
    let iommu = machine();
    let device = device(&iommu, 1);
    let mut guest = Guest::new(&iommu, 32 << 12);
    let table = guest.table(4);
    let [first, second] = [guest.page(), guest.page()];
    // In another order than in the guest's memory, and then a hole.
    guest.map(table, IOVA, second, 0, RW | US);
    guest.map(table, IOVA + 4096, first, 0, RW | US);
    let nested = guest.parent.nest(table).unwrap();
    DmaSource::new(&device, None)
        .attach(&nested, &sink())
        .unwrap();
    let mut port = device.port();
    write(&mut port, None, IOVA + 4094, b"abcd").unwrap();
    assert_eq!(guest.bytes(second + 4094, 2), b"ab");
    assert_eq!(guest.bytes(first, 2), b"cd");
    let transfer = port.enter(None).write(IOVA + 8190, b"wxyz");
    assert_eq!(transfer.done, 2);
    assert_eq!(transfer.fault().unwrap().iova, IOVA + 8192);
    assert_eq!(guest.bytes(first + 4094, 2), b"wx");
    // Backward: the last bytes come first, so nothing is moved.
    let fault = copy(&mut port, None, IOVA + 4096, IOVA, 8192).unwrap_err();
    assert_eq!(fault.iova, IOVA + 8192);
    assert_eq!(guest.bytes(first, 2), b"cd");
}

#[test]
fn no_access_leaves_the_canonical_addresses() {
    let iommu = machine();
    let device = device(&iommu, 1);
    for (number, levels) in [(1, 4), (2, 5)] {
        let end = 1_u64 << (9 * levels + 11);
        let mut guest = Guest::new(&iommu, 64 << 12);
        let table = guest.table(levels);
        let [below, above] = [guest.page(), guest.page()];
        guest.map(table, end - 4096, below, 0, RW | US);
        // Where an address of `end` would be looked up.
        guest.map(table, end.wrapping_neg(), above, 0, RW | US);
        let nested = guest.parent.nest(table).unwrap();
        source(&device, number).attach(&nested, &sink()).unwrap();
        let mut port = device.port();
        let transfer = port.enter(pasid(number)).write(end - 2, b"1234");
        assert_eq!(transfer.done, 2);
        let fault = transfer.fault().unwrap();
        assert_eq!(fault.iova, end);
        assert!(fault.reason.to_string().contains("canonical"), "{fault}");
        assert_eq!(guest.bytes(above, 4), [0; 4]);
        write(&mut port, pasid(number), end.wrapping_neg(), b"high").unwrap();
        assert_eq!(guest.bytes(above, 4), b"high");
    }
}
