//! A guest that is driven at random, and what each access is expected to do by the walker beside it.
#![allow(dead_code)] // Each program uses its part.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ioasid_core::{Access, AddrRange, Pasid, Prot};
use ioasid_iommu::{
    Device, DmaPort, DmaSource, Domain, DomainConfig, FaultReason, FirstStage, Invalidate, Iommu,
    Stop, Tlb, Transfer,
};

use crate::{
    common::{
        guest::{A, BASE, D, EA, Guest, P, PS, Place, RW, US},
        *,
    },
    walker::{Asked, Found, Stages},
};

/// Pages that are tables, and all pages.
pub(crate) const TABLES: u64 = 8;
pub(crate) const PAGES: u64 = 20;
pub(crate) const PAGE: u64 = 4096;
/// The longest access.
const LONGEST: u64 = 9000;
const WINDOW: u64 = 0xfee0_0000;

/// What moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Caching,
    /// The guest's memory blocks.
    Private,
}

pub(crate) struct Run {
    kind: Kind,
    pub(crate) guest: Guest,
    pub(crate) nested: Arc<Domain>,
    _device: Arc<Device>,
    pub(crate) iommu: Arc<Iommu>,
    pub(crate) port: DmaPort,
    pub(crate) pasid: Option<Pasid>,
    pub(crate) random: Random,
    /// Accesses that moved a byte, and those that were refused.
    pub(crate) moved: u64,
    pub(crate) refused: u64,
}

/// What one access is expected to leave behind.
#[derive(Debug, Default)]
struct Expected {
    done: u64,
    fault: Option<(u64, Access, u8)>,
    /// Bits that may be set too: a source is looked up further than it is copied.
    may: Vec<(u64, u64)>,
    /// Pages of the guest that are written, for the parent's dirty bits.
    dirty: BTreeSet<u64>,
    may_dirty: BTreeSet<u64>,
}

impl Run {
    pub(crate) fn new(kind: Kind, seed: u64) -> Self {
        let mut random = Random(seed | 1);
        let iommu = machine();
        let device = device(&iommu, 1);
        let config = DomainConfig {
            dirty_tracking: true,
            ..DomainConfig::unmanaged(FORMAT)
        };
        let place = match kind {
            Kind::Private => Place::Private,
            _ => Place::Own,
        };
        let guest = Guest::with(&iommu, PAGES * PAGE, place, config);
        let option = |n: u32| seed >> (32 + n) & 1 == 1;
        let table = FirstStage {
            levels: if option(0) { 5 } else { 4 },
            supervisor: option(1),
            write_protect: option(2),
            extended_accessed: option(3),
            ..FirstStage::new(BASE)
        };
        guest.parent.set_dirty_tracking(true);
        let nested = guest.parent.nest(table).unwrap();
        let pasid = pasid(5).filter(|_| option(4));
        let port = match kind {
            Kind::Caching => {
                let tlb = Tlb::new();
                device.enable_ats(tlb.clone());
                device.port_with_tlb(&tlb)
            }
            _ => device.port(),
        };
        DmaSource::new(&device, pasid)
            .attach(&nested, &sink())
            .unwrap();
        // Each table leads to the next with its first entries, so that many walks come to their end.
        for table in 0..TABLES {
            for index in 0..2 {
                let next = (table + 1) % TABLES;
                let entry = match random.below(4) {
                    0 => random_entry(&mut random),
                    _ => (BASE + next * PAGE) | P | RW | US,
                };
                guest.write(BASE + table * PAGE + 8 * index, entry);
            }
        }
        let mut run = Run {
            kind,
            guest,
            nested,
            _device: device,
            iommu,
            port,
            pasid,
            random,
            moved: 0,
            refused: 0,
        };
        run.dirty();
        run
    }

    /// The guest writes any word at a place in one of its tables, before its first access.
    pub(crate) fn put(&self, table: u8, index: u8, entry: u64) {
        let at = BASE + u64::from(table) % TABLES * PAGE + 8 * u64::from(index);
        self.guest.write(at, entry);
    }

    pub(crate) fn step(&mut self, seed: u64) {
        self.random = Random(seed | 1);
        match self.random.below(16) {
            0..=4 => self.change_entry(),
            5 => self.change_parent(),
            6 => {
                let what = match self.random.below(2) {
                    0 => Invalidate::Leaves,
                    _ => Invalidate::Tables,
                };
                self.nested.invalidate(AddrRange::ALL, what);
            }
            _ => self.access(),
        }
    }

    /// The guest writes an entry, and invalidates what it must.
    fn change_entry(&mut self) {
        let table = self.random.below(TABLES);
        let index = match self.random.below(4) {
            0 => self.random.below(PAGES),
            _ => self.random.below(2),
        };
        let at = BASE + table * PAGE + 8 * index;
        let old = self.guest.read(at);
        let new = match self.random.below(4) {
            // A right given or taken, a bit cleared.
            0 => old ^ [RW, US, P, A, D, EA][self.random.below(6) as usize],
            _ => random_entry(&mut self.random),
        };
        let memory = self.memory();
        let place = self.guest.offset(at) / PAGE;
        let tables = self.stages(&memory).tables();
        self.guest.write(at, new);
        let given = old & P == 0 || (new & old == old && new & !old & !(P | RW | US) == 0);
        if given {
            return;
        }
        let is_leaf = |level: &u32| *level == 0 || old & PS != 0;
        let mut levels = tables.get(&place).into_iter().flatten();
        let what = match levels.all(is_leaf) {
            true => Invalidate::Leaves,
            false => Invalidate::Tables,
        };
        self.nested.invalidate(AddrRange::ALL, what);
    }

    /// A page of the parent is mapped anew, unmapped, or gets other rights or other memory.
    fn change_parent(&mut self) {
        let gpa = BASE + self.random.below(PAGES) * PAGE;
        self.guest.parent.unmap(range(gpa, PAGE));
        let prot = match self.random.below(8) {
            0 => return,
            1 => Prot::READ,
            2 => Prot::WRITE,
            _ => Prot::RW,
        };
        let memory = match self.random.below(6) {
            0 => BASE + self.random.below(PAGES) * PAGE,
            _ => gpa,
        };
        let spa = self.guest.spa + self.guest.offset(memory);
        self.guest.parent.map(gpa, spa, PAGE, prot).unwrap();
    }

    pub(crate) fn random_iova(&mut self) -> u64 {
        let levels = self.nested.first_stage().unwrap().levels;
        let random = &mut self.random;
        let mut iova = 0;
        for level in 0..levels {
            let index = match (level, random.below(4)) {
                (0, 0) => random.below(PAGES),
                _ => random.below(2),
            };
            iova |= index << (12 + 9 * level);
        }
        if random.below(24) == 0 {
            iova |= 1 << random.below(64);
        }
        let in_page = match random.below(3) {
            0 => PAGE - 1 - random.below(64),
            _ => random.below(PAGE),
        };
        (iova & !(PAGE - 1)) | in_page
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.guest.len as usize];
        self.guest.memory.read(0, &mut bytes);
        bytes
    }

    fn stages<'a>(&'a self, memory: &'a [u8]) -> Stages<'a> {
        Stages {
            table: self.nested.first_stage().unwrap(),
            parent: self.guest.parent.page_table().unwrap(),
            memory,
            spa: self.guest.spa,
        }
    }

    /// What is dirty in the parent since the last look.
    fn dirty(&mut self) -> BTreeSet<u64> {
        let mut dirty = BTreeSet::new();
        let all = range(BASE, self.guest.len);
        self.guest.parent.read_dirty(all, true, &mut |range| {
            dirty.extend((range.start()..=range.last()).step_by(PAGE as usize));
        });
        dirty
    }

    /// One access, and whether it did what the walker says.
    fn access(&mut self) {
        let (first, second) = (self.random_iova(), self.random_iova());
        let privileged = self.random.below(4) == 0;
        self.port.set_privileged(privileged);
        let supervisor = privileged && self.pasid.is_some();
        let which = self.random.below(3);
        let second = match self.random.below(4) {
            // Overlapping.
            0 => first
                .wrapping_add(self.random.below(2 * PAGE))
                .wrapping_sub(PAGE),
            _ => second,
        };
        let longest = u64::MAX - first.max(second);
        let mut len = (1 + self.random.below(LONGEST)).min(longest.max(1));
        // Where the access would change what it reads on the way, one piece at a time is all that is defined.
        let pairs: &[(u64, Access)] = match which {
            0 => &[(first, Access::Read)],
            1 => &[(first, Access::Write)],
            _ => &[(first, Access::Read), (second, Access::Write)],
        };
        if !self.is_plain(pairs, len, supervisor) {
            let rest = |iova: u64| PAGE - iova % PAGE;
            len = len.min(rest(first)).min(rest(second));
        }
        let mut model = self.memory();
        let old = model.clone();
        let bytes: Vec<u8> = (0..len).map(|_| self.random.next() as u8).collect();
        let mut buffer = vec![0; len as usize];
        let mut wanted = bytes.clone();
        let (expected, (done, stop)) = match which {
            0 => {
                let expected = self.expect(&mut model, pairs, len, supervisor, Some(&mut wanted));
                (
                    expected,
                    self.guards(|guard, done| {
                        let done = done as usize;
                        guard.read(first + done as u64, &mut buffer[done..])
                    }),
                )
            }
            1 => {
                let expected = self.expect(&mut model, pairs, len, supervisor, Some(&mut wanted));
                (
                    expected,
                    self.guards(|guard, done| guard.write(first + done, &bytes[done as usize..])),
                )
            }
            _ => {
                let expected = self.expect(&mut model, pairs, len, supervisor, None);
                (
                    expected,
                    self.guards(|guard, done| guard.copy_on(second, first, len, done)),
                )
            }
        };
        let case = format!(
            "{:?} access {which} of {len} at {first:#x} and {second:#x}, supervisor {supervisor}",
            self.kind
        );
        let backward = which == 2 && second > first && second - first < len;
        let fault = stop.map(|fault| {
            let FaultReason::Nested(reason) = fault.reason else {
                panic!("{case}: {fault}")
            };
            (fault.iova, fault.access, reason.code())
        });
        let page_of = |fault: Option<(u64, Access, u8)>| {
            fault.map(|(iova, access, code)| {
                let iova = if backward { iova & !(PAGE - 1) } else { iova };
                (iova, access, code)
            })
        };
        assert_eq!(page_of(fault), page_of(expected.fault), "{case}");
        assert_eq!(done, expected.done, "{case}");
        if which == 0 {
            let done = done as usize;
            assert!(buffer[..done] == wanted[..done], "{case}: other bytes");
        }
        self.check_memory(&case, &model, &expected);
        if old[..] != self.memory()[..] && which > 0 {
            // It may have written to a table.
            self.nested.invalidate(AddrRange::ALL, Invalidate::Tables);
        }
        self.moved += u64::from(done > 0);
        self.refused += u64::from(fault.is_some());
    }

    /// The memory is as expected, up to bits that may be set, and the parent's dirty bits say which.
    fn check_memory(&mut self, case: &str, model: &[u8], expected: &Expected) {
        let found = self.memory();
        let mut allowed = vec![0_u8; found.len()];
        for (offset, bits) in &expected.may {
            for (byte, bits) in allowed[*offset as usize..]
                .iter_mut()
                .zip(bits.to_le_bytes())
            {
                *byte |= bits;
            }
        }
        for (at, (found, wanted)) in found.iter().zip(model).enumerate() {
            let extra = found ^ wanted;
            assert!(
                extra & !allowed[at] == 0 && extra & found == extra,
                "{case}: {at:#x} is {found:#x}, not {wanted:#x}"
            );
        }
        let dirty = self.dirty();
        assert!(
            expected.dirty.is_subset(&dirty),
            "{case}: dirty {dirty:x?}, expected {expected:x?}"
        );
        let may = &expected.dirty | &expected.may_dirty;
        // What was read of another process's table may lack a bit that the guest has set itself since: the page
        // is taken for written before that is found out.
        assert!(
            self.kind == Kind::Private || dirty.is_subset(&may),
            "{case}: dirty {dirty:x?}, expected {expected:x?}"
        );
    }

    /// Whether a long access is defined as a whole: it writes to no table, and what it reads and writes has one
    /// address, so that the direction of a copy takes care of it.
    fn is_plain(&self, sides: &[(u64, Access)], len: u64, supervisor: bool) -> bool {
        let memory = self.memory();
        let stages = self.stages(&memory);
        let tables = stages.tables();
        let mut places: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (start, access) in sides {
            for iova in pages_of(*start, len) {
                let asked = Asked {
                    access: *access,
                    supervisor,
                };
                let Ok(found) = stages.walk(iova, asked) else {
                    continue;
                };
                let place = found.offset / PAGE;
                if *access == Access::Write && tables.contains_key(&place) {
                    return false;
                }
                places.entry(place).or_default().insert(iova / PAGE);
            }
        }
        sides.len() < 2 || places.values().all(|addresses| addresses.len() == 1)
    }

    /// Runs an operation over as many guards as it takes: bytes done, and the fault that stopped it.
    fn guards(
        &mut self,
        mut step: impl FnMut(&mut ioasid_iommu::DmaGuard<'_>, u64) -> Transfer,
    ) -> (u64, Option<ioasid_iommu::Fault>) {
        let mut all = 0;
        for _ in 0..64 {
            let mut guard = match self.kind {
                Kind::Private => self.port.enter_blocking(self.pasid),
                _ => self.port.enter(self.pasid),
            };
            let Transfer { done, stop } = step(&mut guard, all);
            all += done;
            match stop {
                None => return (all, None),
                Some(Stop::Fault(fault)) => return (all, Some(fault)),
                Some(Stop::Budget) => {}
                Some(other) => panic!("{other:?}"),
            }
        }
        panic!("no progress");
    }

    /// Makes the access in `model`, piece by piece: one side with the bytes of a buffer, or a copy.
    fn expect(
        &self,
        model: &mut [u8],
        sides: &[(u64, Access)],
        len: u64,
        supervisor: bool,
        mut buffer: Option<&mut [u8]>,
    ) -> Expected {
        let mut expected = Expected::default();
        let backward = match sides {
            [(src, _), (dst, _)] => *dst > *src && *dst - *src < len,
            _ => false,
        };
        self.expect_marks_ahead(model, sides, len, supervisor, &mut expected);
        let mut done = 0;
        'pieces: while done < len {
            let left = len - done;
            let piece = |start: u64| match backward {
                // Bytes up to the last one that is left, in its page.
                true => (start + left - 1) % PAGE + 1,
                false => PAGE - (start + done) % PAGE,
            };
            let size = sides
                .iter()
                .fold(left, |size, side| size.min(piece(side.0)));
            let mut places = [0; 2];
            for (place, (start, access)) in places.iter_mut().zip(sides) {
                let iova = match backward {
                    true => start + left - size,
                    false => start + done,
                };
                let asked = Asked {
                    access: *access,
                    supervisor,
                };
                let stages = self.stages(model);
                match stages.walk(iova, asked) {
                    Ok(Found { offset, gpa, marks }) => {
                        // One entry may be used twice, through two addresses: the second mark finds it marked.
                        let word =
                            |at: usize| u64::from_le_bytes(model[at..at + 8].try_into().unwrap());
                        let lacking = marks
                            .iter()
                            .filter(|mark| word(mark.offset as usize) & mark.bits != mark.bits);
                        expected
                            .may_dirty
                            .extend(lacking.map(|mark| mark.gpa & !(PAGE - 1)));
                        for mark in marks {
                            let at = mark.offset as usize;
                            let word = u64::from_le_bytes(model[at..at + 8].try_into().unwrap());
                            if word | mark.bits != word {
                                let marked = word | mark.bits;
                                model[at..at + 8].copy_from_slice(&marked.to_le_bytes());
                                expected.dirty.insert(mark.gpa & !(PAGE - 1));
                            }
                        }
                        if *access == Access::Write {
                            expected.dirty.insert(gpa & !(PAGE - 1));
                        }
                        *place = offset as usize;
                    }
                    Err(code) => {
                        expected.fault = Some((iova, *access, code));
                        break 'pieces;
                    }
                }
            }
            let size = size as usize;
            let at = done as usize;
            match (&mut buffer, sides) {
                (Some(buffer), [(_, Access::Read)]) => {
                    buffer[at..at + size].copy_from_slice(&model[places[0]..places[0] + size]);
                }
                (Some(buffer), _) => {
                    model[places[0]..places[0] + size].copy_from_slice(&buffer[at..at + size]);
                }
                (None, _) => model.copy_within(places[0]..places[0] + size, places[1]),
            }
            done += size as u64;
        }
        expected.done = done;
        expected
    }

    /// The bits that the source of a copy may get in pages that are not copied.
    fn expect_marks_ahead(
        &self,
        model: &[u8],
        sides: &[(u64, Access)],
        len: u64,
        supervisor: bool,
        expected: &mut Expected,
    ) {
        let [(src, Access::Read), _] = sides else {
            return;
        };
        let stages = self.stages(model);
        for iova in pages_of(*src, len) {
            let asked = Asked {
                access: Access::Read,
                supervisor,
            };
            for mark in stages
                .walk(iova, asked)
                .into_iter()
                .flat_map(|found| found.marks)
            {
                expected.may.push((mark.offset, mark.bits));
                expected.may_dirty.insert(mark.gpa & !(PAGE - 1));
            }
        }
    }
}

/// An address in each page of a range.
fn pages_of(start: u64, len: u64) -> impl Iterator<Item = u64> {
    let last = start + (len - 1);
    (start >> 12..=last >> 12).map(move |page| start.max(page << 12))
}

/// Whatever a guest may write as an entry, but often one that leads somewhere.
pub(crate) fn random_entry(random: &mut Random) -> u64 {
    let target = match random.below(24) {
        0..=9 => BASE + random.below(TABLES) * PAGE,
        10..=19 => BASE + random.below(PAGES) * PAGE,
        20 => BASE | PS,
        21 => BASE | PS | random.below(2) << 13 | random.below(2) << 12,
        22 => WINDOW,
        _ => random.next() & 0x000f_ffff_ffff_f000,
    };
    let mut entry = target;
    for (bit, odds) in [(P, 10), (RW, 5), (US, 8)] {
        if random.below(odds) != 0 {
            entry |= bit;
        }
    }
    for bit in [A, D, EA] {
        if random.below(3) == 0 {
            entry |= bit;
        }
    }
    // Bits that are the software's.
    entry | (random.below(2) << 9) | (random.below(2) << 52)
}
