//! What the two stages allow, each alone and together; the bits that an access leaves in the guest's table.

use ioasid_core::{Access, Prot};
use ioasid_iommu::{
    DmaPort, DmaSource, Fault, FaultReason, FirstStage, FirstStageFault, NestedFault,
};

use crate::common::{
    guest::{A, D, EA, Guest, P, RW, US},
    *,
};

pub(crate) const IOVA: u64 = 0x7f12_3456_7000;
pub(crate) const BITS: u64 = A | D | EA;
const ACCESSES: [Access; 2] = [Access::Read, Access::Write];

/// One access of 8 bytes, and why it was refused.
pub(crate) fn try_access(
    port: &mut DmaPort,
    pasid: Option<ioasid_core::Pasid>,
    iova: u64,
    access: Access,
) -> Result<(), FaultReason> {
    let transfer = match access {
        Access::Read => port.enter(pasid).read(iova, &mut [0; 8]),
        Access::Write => port.enter(pasid).write(iova, &[0x5a; 8]),
    };
    assert_eq!(transfer.done, if transfer.is_complete() { 8 } else { 0 });
    match transfer.fault() {
        None => Ok(()),
        Some(Fault { reason, .. }) => Err(*reason),
    }
}

/// What the access sets in each of the entries, from the top down.
pub(crate) fn set_by(access: Access, entries: usize, used: u64) -> Vec<u64> {
    let mut set = vec![used; entries];
    if access == Access::Write {
        set[entries - 1] |= D;
    }
    set
}

#[test]
fn both_stages_must_allow_an_access() {
    let first_stage = [None, Some(US), Some(RW | US), Some(RW)];
    let none = Prot {
        read: false,
        write: false,
    };
    for bits in first_stage {
        for parent in [none, Prot::READ, Prot::WRITE, Prot::RW] {
            for access in ACCESSES {
                let iommu = machine();
                let device = device(&iommu, 1);
                let mut guest = Guest::new(&iommu, 16 << 12);
                let table = guest.table(4);
                let page = guest.page();
                let entries = guest.entries(table, IOVA, 0);
                if let Some(bits) = bits {
                    guest.map(table, IOVA, page, 0, bits);
                }
                guest.parent.unmap(range(page, 4096));
                if parent != none {
                    guest.map_parent(page, parent);
                }
                let nested = guest.parent.nest(table).unwrap();
                DmaSource::new(&device, None)
                    .attach(&nested, &sink())
                    .unwrap();
                let write = access == Access::Write;
                let expected = match (bits, parent) {
                    (None, _) => Err(NestedFault::FirstStage(FirstStageFault::NotPresent)),
                    (Some(RW), _) => Err(NestedFault::FirstStage(FirstStageFault::User)),
                    (Some(US), _) if write => Err(NestedFault::FirstStage(FirstStageFault::Write)),
                    (Some(_), parent) if parent == none => Err(NestedFault::NotMapped),
                    (Some(_), Prot::READ) if write => Err(NestedFault::Write),
                    (Some(_), Prot::WRITE) if !write => Err(NestedFault::Read),
                    _ => Ok(()),
                };
                let found = try_access(&mut device.port(), None, IOVA, access);
                let case = format!("{bits:?} {parent:?} {access:?}");
                assert_eq!(found, expected.map_err(FaultReason::Nested), "{case}");
                let moved = guest.bytes(page, 8) == [0x5a; 8];
                assert_eq!(moved, write && found.is_ok(), "{case}");
                let set: Vec<u64> = entries.iter().map(|at| guest.read(*at) & BITS).collect();
                match found {
                    Ok(()) => assert_eq!(set, set_by(access, 4, A), "{case}"),
                    Err(_) => assert_eq!(set, [0; 4], "{case}: a trace of a refused access"),
                }
            }
        }
    }
}

#[test]
fn a_right_that_any_level_takes_away_is_gone() {
    for levels in [4, 5] {
        for level in 0..levels {
            for (missing, reason) in [
                (RW, FirstStageFault::Write),
                (US, FirstStageFault::User),
                (P, FirstStageFault::NotPresent),
            ] {
                let iommu = machine();
                let device = device(&iommu, 1);
                let mut guest = Guest::new(&iommu, 16 << 12);
                let table = guest.table(levels);
                let page = guest.page();
                guest.map(table, IOVA, page, 0, RW | US);
                let entry = guest.entry(table, IOVA, level);
                let nested = guest.parent.nest(table).unwrap();
                DmaSource::new(&device, None)
                    .attach(&nested, &sink())
                    .unwrap();
                guest.write(entry, guest.read(entry) & !missing);
                let mut port = device.port();
                let refused = Err(FaultReason::Nested(NestedFault::FirstStage(reason)));
                for _ in 0..2 {
                    let found = try_access(&mut port, None, IOVA, Access::Write);
                    assert_eq!(found, refused, "{levels} {level}");
                    let read = try_access(&mut port, None, IOVA, Access::Read);
                    assert_eq!(read.is_ok(), missing == RW);
                }
                // A right that is given needs no invalidation.
                guest.write(entry, guest.read(entry) | missing);
                let found = try_access(&mut port, None, IOVA, Access::Write);
                assert_eq!(found, Ok(()), "{levels} {level} {missing:#x}");
                let entries = guest.entries(table, IOVA, 0);
                let set: Vec<u64> = entries.iter().map(|at| guest.read(*at) & BITS).collect();
                assert_eq!(set, set_by(Access::Write, levels as usize, A));
            }
        }
    }
}

#[test]
fn supervisor_requests_are_what_the_options_of_the_table_make_of_them() {
    for case in 0..1 << 6 {
        let option = |n: u32| case >> n & 1 == 1;
        let (supervisor, write_protect) = (option(0), option(1));
        let bits = if option(2) { US } else { 0 } | if option(3) { RW } else { 0 };
        let (privileged, access) = (option(4), ACCESSES[usize::from(option(5))]);
        for with_pasid in [false, true] {
            let iommu = machine();
            let device = device(&iommu, 1);
            let mut guest = Guest::new(&iommu, 16 << 12);
            let table = FirstStage {
                supervisor,
                write_protect,
                ..guest.table(4)
            };
            let page = guest.page();
            let entry = guest.map(table, IOVA, page, 0, bits);
            let nested = guest.parent.nest(table).unwrap();
            let pasid = pasid(9).filter(|_| with_pasid);
            DmaSource::new(&device, pasid)
                .attach(&nested, &sink())
                .unwrap();
            let mut port = device.port();
            port.set_privileged(privileged);
            let read_only_write = access == Access::Write && !option(3);
            let expected = if privileged && with_pasid {
                match (supervisor, read_only_write && write_protect) {
                    (false, _) => Err(FirstStageFault::SupervisorRequest),
                    (true, true) => Err(FirstStageFault::Write),
                    (true, false) => Ok(()),
                }
            } else if !option(2) {
                Err(FirstStageFault::User)
            } else if read_only_write {
                Err(FirstStageFault::Write)
            } else {
                Ok(())
            };
            let wrap = |fault| FaultReason::Nested(NestedFault::FirstStage(fault));
            let found = try_access(&mut port, pasid, IOVA, access);
            assert_eq!(found, expected.map_err(wrap), "{case:#b} {with_pasid}");
            let moved = guest.bytes(page, 8) == [0x5a; 8];
            assert_eq!(moved, access == Access::Write && found.is_ok());
            assert_eq!(guest.read(entry) & BITS != 0, found.is_ok(), "{case:#b}");
            // What is kept for one kind of requests says nothing about the other.
            port.set_privileged(!privileged);
            let other = try_access(&mut port, pasid, IOVA, access);
            port.set_privileged(privileged);
            assert_eq!(try_access(&mut port, pasid, IOVA, access), found);
            let mut fresh = device.port();
            fresh.set_privileged(!privileged);
            assert_eq!(try_access(&mut fresh, pasid, IOVA, access), other);
        }
    }
}

#[test]
fn every_entry_on_the_way_is_marked_once_and_exactly() {
    for levels in [4, 5] {
        for level in 0..3 {
            for extended_accessed in [false, true] {
                for access in ACCESSES {
                    let iommu = machine();
                    let device = device(&iommu, 1);
                    let mut guest = Guest::new(&iommu, 16 << 12);
                    let table = FirstStage {
                        extended_accessed,
                        ..guest.table(levels)
                    };
                    let leaf = IOVA & !((4096 << (9 * level)) - 1);
                    let page = guest.page();
                    let in_leaf = (page - guest::BASE) % (4096 << (9 * level));
                    guest.map(table, leaf, page - in_leaf, level, RW | US);
                    let entries = guest.entries(table, IOVA, level);
                    let before: Vec<u64> = entries.iter().map(|at| guest.read(*at)).collect();
                    let nested = guest.parent.nest(table).unwrap();
                    DmaSource::new(&device, None)
                        .attach(&nested, &sink())
                        .unwrap();
                    let used = if extended_accessed { A | EA } else { A };
                    let mut port = device.port();
                    let iova = leaf + in_leaf;
                    for _ in 0..3 {
                        try_access(&mut port, None, iova, access).unwrap();
                        let after = entries.iter().map(|at| guest.read(*at));
                        let set: Vec<u64> =
                            after.zip(&before).map(|(now, old)| now ^ old).collect();
                        assert_eq!(set, set_by(access, entries.len(), used));
                    }
                }
            }
        }
    }
}

#[test]
fn entries_above_are_marked_though_an_earlier_walk_through_them_was_refused() {
    for refused_first in [Access::Read, Access::Write] {
        let iommu = machine();
        let device = device(&iommu, 1);
        let mut guest = Guest::new(&iommu, 16 << 12);
        let table = guest.table(4);
        let page = guest.page();
        let entries = guest.entries(table, IOVA, 0);
        if refused_first == Access::Write {
            guest.map(table, IOVA, page, 0, US);
        }
        let nested = guest.parent.nest(table).unwrap();
        DmaSource::new(&device, None)
            .attach(&nested, &sink())
            .unwrap();
        let mut port = device.port();
        for _ in 0..2 {
            try_access(&mut port, None, IOVA, refused_first).unwrap_err();
        }
        guest.map(table, IOVA, page, 0, US);
        try_access(&mut port, None, IOVA, Access::Read).unwrap();
        let set: Vec<u64> = entries.iter().map(|at| guest.read(*at) & BITS).collect();
        assert_eq!(set, set_by(Access::Read, 4, A));
    }
}

#[test]
fn a_bit_that_the_guest_cleared_is_set_again_after_its_invalidation() {
    use ioasid_iommu::Invalidate;
    let iommu = machine();
    let device = device(&iommu, 1);
    let mut guest = Guest::new(&iommu, 16 << 12);
    let table = guest.table(4);
    let page = guest.page();
    let entry = guest.map(table, IOVA, page, 0, RW | US);
    let entries = guest.entries(table, IOVA, 0);
    let nested = guest.parent.nest(table).unwrap();
    DmaSource::new(&device, None)
        .attach(&nested, &sink())
        .unwrap();
    let mut port = device.port();
    for what in [Invalidate::Leaves, Invalidate::Tables] {
        try_access(&mut port, None, IOVA, Access::Write).unwrap();
        let cleared = match what {
            Invalidate::Leaves => vec![entry],
            Invalidate::Tables => entries.clone(),
        };
        for at in &cleared {
            guest.write(*at, guest.read(*at) & !BITS);
        }
        nested.invalidate(range(IOVA, 4096), what);
        try_access(&mut port, None, IOVA, Access::Write).unwrap();
        let set: Vec<u64> = entries.iter().map(|at| guest.read(*at) & BITS).collect();
        assert_eq!(set, set_by(Access::Write, 4, A));
    }
}
