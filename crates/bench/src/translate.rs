//! Translation: one walk, against one load from a flat array (no table can be faster) and against
//! vm-memory's `Iotlb` (what a device back-end has today).

use ioasid_core::{Access, Prot};
use ioasid_pgtable::{PageTable, TableConfig, TableFormat};
use vm_memory::{GuestAddress, Iotlb, Permissions};

use crate::{
    measure::{Contender, Effort, Table, measure},
    opaque::opaque,
};

/// A translation under test: IOVA to physical address.
trait Translate {
    fn translate(&self, iova: u64) -> u64;
}

struct Flat {
    shift: u32,
    entries: Vec<u64>,
}

impl Translate for Flat {
    #[inline(always)]
    fn translate(&self, iova: u64) -> u64 {
        let index = (iova >> self.shift) as usize & (self.entries.len() - 1);
        self.entries[index] | (iova & ((1 << self.shift) - 1))
    }
}

impl Translate for PageTable {
    #[inline(always)]
    fn translate(&self, iova: u64) -> u64 {
        match PageTable::translate(self, iova, Access::Read) {
            Ok(translation) => translation.spa,
            Err(_) => 0,
        }
    }
}

impl Translate for Iotlb {
    #[inline(always)]
    fn translate(&self, iova: u64) -> u64 {
        let found = Iotlb::lookup(self, GuestAddress(iova), 8, Permissions::Read);
        match found.map(|mut ranges| ranges.next()) {
            Ok(Some(range)) => range.base.0,
            _ => 0,
        }
    }
}

/// How addresses follow each other.
#[derive(Clone, Copy)]
enum Pattern {
    /// Page after page.
    Sequential,
    /// At random; many walks overlap in the processor.
    Independent,
    /// At random, each address depending on the last result: the latency of a walk.
    Dependent,
}

/// A space of `1 << pages_shift` leaves of `1 << leaf_shift` bytes.
#[derive(Clone, Copy)]
struct Space {
    leaf_shift: u32,
    pages_shift: u32,
}

impl Space {
    fn pages(self) -> u64 {
        1 << self.pages_shift
    }

    /// The leaf that `number` names: spreads any sequence over all leaves.
    #[inline(always)]
    fn spread(self, number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - self.pages_shift)
    }

    /// Where leaf `page` is mapped to: leaves that are neighbours do not lie beside each other.
    fn target(self, page: u64) -> u64 {
        let other = page.wrapping_mul(0x6ac6_9069) & (self.pages() - 1);
        (other << self.leaf_shift) + (1 << 40)
    }
}

fn contender<'a>(
    name: impl Into<String>,
    space: Space,
    pattern: Pattern,
    table: &'a (impl Translate + ?Sized),
) -> Contender<'a> {
    let mut position = 0_u64;
    Contender::new(name, move |iterations| {
        let mut sum = 0_u64;
        match pattern {
            Pattern::Sequential => {
                for _ in 0..iterations {
                    position = (position + 1) & (space.pages() - 1);
                    sum ^= table.translate(position << space.leaf_shift);
                }
            }
            Pattern::Independent => {
                for _ in 0..iterations {
                    position = position.wrapping_add(1);
                    sum ^= table.translate(space.spread(position) << space.leaf_shift);
                }
            }
            Pattern::Dependent => {
                for _ in 0..iterations {
                    position = position.wrapping_add(1);
                    sum = opaque(table.translate(space.spread(position ^ sum) << space.leaf_shift));
                }
            }
        }
        opaque(sum);
    })
}

struct Tables {
    space: Space,
    flat: Flat,
    formats: Vec<PageTable>,
    iotlb: Iotlb,
}

impl Tables {
    fn new(space: Space) -> Tables {
        let pages = 0..space.pages();
        let flat = Flat {
            shift: space.leaf_shift,
            entries: pages.clone().map(|page| space.target(page)).collect(),
        };
        let formats = TableFormat::ALL.map(|format| {
            let table = PageTable::new(TableConfig::new(format));
            for page in pages.clone() {
                let (iova, len) = (page << space.leaf_shift, 1 << space.leaf_shift);
                let mapped = table.map(iova, space.target(page), len, Prot::RW);
                assert_eq!(mapped, Ok(()), "mapping {iova:#x}");
            }
            table
        });
        let mut iotlb = Iotlb::new();
        for page in pages {
            let (iova, len) = (page << space.leaf_shift, 1 << space.leaf_shift);
            let target = GuestAddress(space.target(page));
            let mapped = iotlb.set_mapping(GuestAddress(iova), target, len, Permissions::ReadWrite);
            assert!(mapped.is_ok(), "mapping {iova:#x}");
        }
        let tables = Tables {
            space,
            flat,
            formats: formats.into(),
            iotlb,
        };
        tables.check();
        tables
    }

    /// Every contender answers the same before it is timed.
    fn check(&self) {
        for number in 0..1000 {
            let iova = (self.space.spread(number) << self.space.leaf_shift) + 8;
            let expected = Translate::translate(&self.flat, iova);
            for table in &self.formats {
                assert_eq!(Translate::translate(table, iova), expected, "{table:?}");
            }
            assert_eq!(self.iotlb.translate(iova), expected, "Iotlb");
        }
    }

    /// `goals`: of each format, against the flat array and against the `Iotlb`.
    fn table(
        &self,
        title: &str,
        pattern: Pattern,
        effort: Effort,
        goals: &[(usize, f64)],
    ) -> Table {
        let mut contenders = vec![
            contender("flat array", self.space, pattern, &self.flat),
            contender("vm-memory Iotlb", self.space, pattern, &self.iotlb),
        ];
        for table in &self.formats {
            let mut ours = contender(table.format().name(), self.space, pattern, table);
            for &(anchor, at_most) in goals {
                ours = ours.goal(anchor, at_most);
            }
            contenders.push(ours);
        }
        measure(title, "ns", effort, contenders)
    }
}

/// The tables of this benchmark.
pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    let small = Tables::new(Space {
        leaf_shift: 12,
        pages_shift: 18,
    });
    let what = "translate, 1 GiB in 4 KiB leaves";
    let mut tables = vec![
        small.table(
            &format!("{what}, random, independent"),
            Pattern::Independent,
            effort,
            &[(0, 2.0), (1, 0.01)],
        ),
        small.table(
            &format!("{what}, random, each after the last"),
            Pattern::Dependent,
            effort,
            &[(0, 1.1)],
        ),
        small.table(
            &format!("{what}, page after page"),
            Pattern::Sequential,
            effort,
            &[],
        ),
    ];
    drop(small);
    let large = Tables::new(Space {
        leaf_shift: 21,
        pages_shift: 15,
    });
    let title = "translate, 64 GiB in 2 MiB leaves, random, independent";
    tables.push(large.table(title, Pattern::Independent, effort, &[]));
    tables
}
