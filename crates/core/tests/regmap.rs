//! A register map against a naive model of it: an array of bytes.

use ioasid_core::regmap::{RegAccess, RegMap, Register};
use proptest::{collection::vec, prelude::*};

/// Past the last register of any table.
const END: usize = 160;

/// Tables of registers of any width, with gaps. The name of a register is its index.
fn tables() -> impl Strategy<Value = Vec<Register<usize>>> {
    let access = prop::sample::select(vec![
        RegAccess::ReadOnly,
        RegAccess::WriteOnly,
        RegAccess::ReadWrite,
    ]);
    vec((0_u64..4, 1_u64..=8, access), 0..12).prop_map(|made| {
        let mut offset = 0;
        let registers = made.into_iter().enumerate();
        registers
            .map(|(name, (gap, width, access))| {
                let register = Register {
                    name,
                    offset: offset + gap,
                    width,
                    access,
                };
                offset += gap + width;
                register
            })
            .collect()
    })
}

/// What the map is compared with: each byte of the file, and whether software reads and writes it.
struct Model {
    bytes: [u8; END],
    access: [Option<RegAccess>; END],
}

impl Model {
    fn new(table: &[Register<usize>], values: &[u64]) -> Self {
        let mut model = Model {
            bytes: [0; END],
            access: [None; END],
        };
        for (register, value) in table.iter().zip(values) {
            let bytes = value.to_le_bytes();
            for (at, byte) in (register.offset as usize..).zip(&bytes[..register.width as usize]) {
                model.bytes[at] = *byte;
                model.access[at] = Some(register.access);
            }
        }
        model
    }

    fn read(&self, at: usize) -> u8 {
        match self.access[at] {
            Some(RegAccess::ReadOnly | RegAccess::ReadWrite) => self.bytes[at],
            _ => 0,
        }
    }

    fn write(&mut self, at: usize, value: u8) {
        if matches!(
            self.access[at],
            Some(RegAccess::WriteOnly | RegAccess::ReadWrite)
        ) {
            self.bytes[at] = value;
        }
    }
}

proptest! {
    #[test]
    fn any_access_does_what_an_array_of_bytes_does(
        table in tables(),
        mut values in vec(any::<u64>(), 12),
        accesses in vec((any::<bool>(), 0..END - 40, vec(any::<u8>(), 0..=40)), 1..40),
    ) {
        let table: &'static [Register<usize>] = table.leak();
        let map = RegMap::new(table);
        let mut model = Model::new(table, &values);
        for (write, offset, mut data) in accesses {
            let mut last = None;
            let mut in_order = |name: usize| assert!(last.replace(name).is_none_or(|l| l < name));
            if write {
                map.write(offset as u64, &data, |name, value, mask| {
                    in_order(name);
                    assert_eq!((value & !mask, mask == 0), (0, false));
                    values[name] = values[name] & !mask | value;
                });
                let bytes = data.iter().enumerate();
                bytes.for_each(|(index, byte)| model.write(offset + index, *byte));
            } else {
                map.read(offset as u64, &mut data, |name| {
                    in_order(name);
                    values[name]
                });
                let expected: Vec<u8> =
                    (offset..offset + data.len()).map(|at| model.read(at)).collect();
                prop_assert_eq!(&data, &expected);
            }
        }
        let fresh = Model::new(table, &values);
        prop_assert!(fresh.bytes == model.bytes);
        for (at, access) in model.access.iter().enumerate() {
            let starts = map.starting_at(at as u64);
            let expected = table.iter().find(|register| register.offset == at as u64);
            prop_assert_eq!(starts.map(|found| found.name), expected.map(|found| found.name));
            prop_assert!(starts.is_none() || access.is_some());
        }
    }
}
