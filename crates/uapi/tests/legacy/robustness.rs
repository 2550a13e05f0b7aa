//! Whatever a program sends, it gets an answer.

use ioasid_uapi::spec::container::{SET_IOMMU, TYPE1V2_IOMMU};
use proptest::prelude::*;

use super::{common::BASE, machine::Machine};

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(
        calls in prop::collection::vec(
            (any::<bool>(), 100..122u32, prop::collection::vec(odd_word(), 12), 0..3u32),
            1..40,
        ),
    ) {
        let machine = Machine::new();
        for (group, nr, words, set) in calls {
            if set == 0 {
                // So that most calls get beyond the first check.
                let _ = machine.set_container(3);
                let _ = machine.container_at(SET_IOMMU, TYPE1V2_IOMMU);
            }
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let cmd = 0x3b << 8 | nr;
            let _ = if group {
                machine.group(cmd, &bytes)
            } else {
                machine.container(cmd, &bytes)
            };
            let _ = machine.container_at(cmd, BASE + 0x7ff8);
        }
    }
}

/// Numbers that are likely to mean something.
fn odd_word() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..10u32,
        2 => (0..16u32).prop_map(|shift| 1 << shift),
        2 => (0..16u32).prop_map(|page| page << 12),
        2 => (0..8u32).prop_map(|page| BASE as u32 + (page << 12)),
        2 => 16..64u32,
        1 => Just(u32::MAX),
        1 => any::<u32>(),
    ]
}
