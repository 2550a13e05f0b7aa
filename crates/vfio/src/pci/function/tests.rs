use proptest::prelude::*;

use super::*;
use crate::pci::FunctionBuilder;

const PASID_AT: u64 = 0x150;

/// The looks of an Intel DSA.
fn function() -> Function {
    FunctionBuilder::new(0x8086, 0x0b25)
        .class(0x08_8000, 0)
        .subsystem(0x8086, 0)
        .bar(0, Bar::memory64(0x1_0000))
        .bar(2, Bar::memory64(0x2_0000).with_wide_stores())
        .express()
        .msix(MsixLayout::new(0, 0x2000, 0x3000, 9))
        .power_management()
        .advanced_error_reporting()
        .address_translation()
        .pasid(20, 6)
        .page_requests(512)
        .build()
        .unwrap()
}

fn read<const N: usize>(function: &Function, offset: u64) -> [u8; N] {
    let mut bytes = [0; N];
    function.read_config(offset, &mut bytes).unwrap();
    bytes
}

fn read32(function: &Function, offset: u64) -> u32 {
    u32::from_le_bytes(read(function, offset))
}

fn write(function: &Function, offset: u64, bytes: &[u8]) -> ConfigEffect {
    function.write_config(offset, bytes).unwrap()
}

fn standard(function: &Function) -> Vec<(u8, u8)> {
    let mut at = read::<1>(function, 0x34)[0];
    let mut found = Vec::new();
    while at != 0 {
        let [id, next] = read(function, at.into());
        found.push((id, at));
        at = next;
    }
    found
}

fn extended(config: &[u8]) -> Vec<u32> {
    let mut at = 0x100;
    let mut found = Vec::new();
    while at != 0 {
        let header = u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
        found.push(header & 0xffff);
        at = (header >> 20) as usize;
    }
    found
}

#[test]
fn the_header_and_the_capabilities_read_as_described() {
    let function = function();
    assert_eq!(read32(&function, 0), 0x0b25_8086);
    assert_eq!(read32(&function, 8) >> 8, 0x08_8000);
    assert_eq!(read::<2>(&function, 6), [0x10, 0]);
    let ids: Vec<u8> = standard(&function).iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [0x10, 0x11, 0x01]);
    let (_, express) = standard(&function)[0];
    assert!(
        read32(&function, u64::from(express) + 4) & 1 << 28 != 0,
        "FLR"
    );
    let (_, msix) = standard(&function)[1];
    assert_eq!(read::<2>(&function, u64::from(msix) + 2), [8, 0]);
    assert_eq!(read32(&function, u64::from(msix) + 4), 0x2000);
}

#[test]
fn programs_do_not_see_the_pasid_capability_and_the_host_does() {
    let function = function();
    let mut seen = vec![0; 4096];
    function.read_config(0, &mut seen).unwrap();
    assert_eq!(extended(&seen), [0x01, 0x0f, 0x13]);
    assert_eq!(extended(&function.host_config()), [0x01, 0x0f, 0x1b, 0x13]);
}

#[test]
fn a_hidden_first_capability_keeps_its_place_with_id_0() {
    let function = FunctionBuilder::new(1, 2)
        .express()
        .pasid(8, 6)
        .page_requests(1);
    let function = function.build().unwrap();
    let mut seen = vec![0; 4096];
    function.read_config(0, &mut seen).unwrap();
    assert_eq!(extended(&seen), [0, 0x13]);
    assert_eq!(extended(&function.host_config()), [0x1b, 0x13]);
}

#[test]
fn bars_can_be_sized_and_keep_their_flags() {
    let function = function();
    let end = function.assign_bars(0x2_0000_1000);
    assert_eq!(function.bar_address(0), 0x2_0001_0000);
    assert_eq!(function.bar_address(2), 0x2_0002_0000);
    assert_eq!(end, 0x2_0004_0000);
    assert_eq!(read32(&function, 0x10), 0x0001_000c);
    assert_eq!(read32(&function, 0x14), 2);
    let _ = write(&function, 0x18, &[0xff; 8]);
    assert_eq!(read32(&function, 0x18), 0xfffe_000c);
    assert_eq!(read32(&function, 0x1c), u32::MAX);
    let _ = write(&function, 0x24, &[0xff; 4]);
    assert_eq!(read32(&function, 0x24), 0, "an absent BAR stays 0");
    function.restore();
    assert_eq!(read32(&function, 0x18), 0x0002_000c);
}

#[test]
fn memory_answers_while_enabled_and_awake() {
    let function = function();
    assert!(function.memory_enabled() && !function.bus_master());
    let _ = write(&function, 4, &[0x04, 0x04]);
    assert!(!function.memory_enabled() && function.bus_master());
    let _ = write(&function, 4, &[0x06]);
    assert!(function.memory_enabled());
    let (_, power) = standard(&function)[2];
    let control = u64::from(power) + 4;
    let _ = write(&function, control, &[3]);
    assert!(!function.memory_enabled(), "asleep in D3");
    let _ = write(&function, control, &[1]);
    assert_eq!(read::<1>(&function, control)[0] & 3, 3, "there is no D1");
    let _ = write(&function, control, &[0]);
    assert!(function.memory_enabled());
    function.clear_bus_master();
    assert_eq!(read::<2>(&function, 4), [0x02, 0x04]);
}

#[test]
fn the_reset_bit_asks_for_a_reset_and_reads_0() {
    let function = function();
    let (_, express) = standard(&function)[0];
    let control = u64::from(express) + 8;
    let before = read::<2>(&function, control);
    assert_eq!(write(&function, control, &before), ConfigEffect::None);
    let with_flr = [before[0], before[1] | 0x80];
    assert_eq!(write(&function, control, &with_flr), ConfigEffect::Reset);
    assert_eq!(read::<2>(&function, control), before);
}

#[test]
fn read_only_capabilities_ignore_writes() {
    let function = function();
    let (_, msix) = standard(&function)[1];
    for offset in [u64::from(msix), u64::from(msix) + 2, 0x14c, 0x148] {
        let before = read32(&function, offset & !3);
        let _ = write(&function, offset & !3, &[0xff; 4]);
        assert_eq!(read32(&function, offset & !3), before, "{offset:#x}");
    }
    let _ = write(&function, PASID_AT + 4, &[0xff; 4]);
    assert_eq!(read32(&function, PASID_AT + 4), 0x0007_1406);
    function.show_msix(true);
    assert_eq!(read::<2>(&function, u64::from(msix) + 2), [8, 0x80]);
}

#[test]
fn without_express_there_are_256_bytes() {
    let function = FunctionBuilder::new(1, 2).build().unwrap();
    assert_eq!(function.config_size(), 256);
    assert_eq!(
        function.read_config(252, &mut [0; 5]),
        Err(RegionError::BeyondConfig {
            offset: 252,
            len: 5,
            size: 256,
        })
    );
    assert_eq!(read::<2>(&function, 6), [0, 0], "no capability list");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_write_panics_or_changes_an_identity(
        offset in prop_oneof![0..4100_u64, any::<u64>()],
        data in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let function = function();
        let written = function.write_config(offset, &data);
        let fits = offset.checked_add(data.len() as u64).is_some_and(|end| end <= 4096);
        prop_assert_eq!(written.is_ok(), fits);
        prop_assert_eq!(read32(&function, 0), 0x0b25_8086);
        prop_assert_eq!(standard(&function).len(), 3);
        let mut seen = vec![0; 4096];
        function.read_config(0, &mut seen).unwrap();
        prop_assert_eq!(extended(&seen), [0x01, 0x0f, 0x13]);
        function.restore();
        function.read_config(0, &mut seen).unwrap();
        let mut fresh = vec![0; 4096];
        self::function().read_config(0, &mut fresh).unwrap();
        prop_assert_eq!(seen, fresh);
    }
}
