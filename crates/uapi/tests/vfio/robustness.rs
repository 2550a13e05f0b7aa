//! Nothing that a program sends makes us panic.

use ioasid_uapi::vfio::{pread, pwrite};
use proptest::prelude::*;

use crate::{
    ALL,
    common::{BASE, SIZE},
    machine::Machine,
};

/// Words that reach far into the checks, and any others.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..64_u32,
        2 => prop::sample::select(vec![33, 34, 36, 40, 1 << 16, 1 << 18, u32::MAX, u32::MAX - 1]),
        1 => any::<u32>(),
    ]
}

fn command() -> impl Strategy<Value = u32> {
    prop_oneof![
        8 => prop::sample::select(ALL.to_vec()),
        1 => 0x3b00..0x3c00_u32,
        1 => any::<u32>(),
    ]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => Just(BASE),
        1 => (BASE + SIZE as u64 - 64)..(BASE + SIZE as u64 + 8),
        1 => any::<u64>(),
    ]
}

fn offset() -> impl Strategy<Value = u64> {
    let near = prop_oneof![0..0x4100_u64, 0x1fc0..0x20c0_u64, Just((1 << 40) - 1)];
    prop_oneof![
        8 => (0..10_u64, near).prop_map(|(index, offset)| index << 40 | offset),
        1 => any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_command_panics(
        whole in any::<bool>(),
        calls in prop::collection::vec(
            (command(), address(), prop::collection::vec(word(), 12)), 1..20,
        ),
    ) {
        let machine = if whole { Machine::whole() } else { Machine::child() };
        let machine = machine.bound();
        let _ = machine.program.context.ioas_alloc();
        for (cmd, address, words) in calls {
            machine.program.put(BASE, &words);
            let _ = machine.at(cmd, address);
        }
        machine.file.close();
        prop_assert!(!machine.file.device().is_bound());
    }

    #[test]
    fn no_access_panics_or_moves_more_than_asked(
        accesses in prop::collection::vec((any::<bool>(), offset(), 0..300_usize), 1..40),
    ) {
        let machine = Machine::whole().bound();
        for (write, offset, len) in accesses {
            let mut data = vec![0xa5; len];
            let moved = if write {
                pwrite(&machine.file, offset, &data)
            } else {
                pread(&machine.file, offset, &mut data)
            };
            prop_assert!(moved.is_err() || moved.is_ok_and(|moved| moved <= len));
        }
    }
}
