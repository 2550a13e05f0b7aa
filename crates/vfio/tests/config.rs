//! Configuration space as programs see it, beyond what every device has.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use ioasid_core::host::{CountingIrq, IrqSink};
use ioasid_vfio::{
    Eventfd, IrqAction, IrqData, IrqIndex, RegionIndex, SetIrqs,
    irq::Interrupts,
    pci::{Bar, Function, FunctionBuilder, MsixLayout, SriovLayout, spec},
};

fn read<const N: usize>(function: &Function, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    function.read_config(at, &mut bytes).unwrap();
    bytes
}

fn write(function: &Function, at: u64, bytes: &[u8]) {
    let _ = function.write_config(at, bytes).unwrap();
}

fn capability(function: &Function, id: u8) -> u64 {
    let mut at = read::<1>(function, 0x34)[0];
    while at != 0 {
        let [found, next] = read(function, at.into());
        if found == id {
            return at.into();
        }
        at = next;
    }
    panic!("no capability {id:#x}");
}

fn extended(function: &Function, id: u16) -> u64 {
    let mut at = 0x100;
    while at != 0 {
        let header = u32::from_le_bytes(read(function, at));
        if header & 0xffff == u32::from(id) {
            return at;
        }
        at = u64::from(header >> 20);
    }
    panic!("no extended capability {id:#x}");
}

fn layout() -> SriovLayout {
    let mut bars = [None; 6];
    bars[0] = Some(Bar::memory64(0x1000));
    SriovLayout {
        total: 3,
        offset: 4,
        stride: 2,
        device: 0x1234,
        bars,
    }
}

fn enable_msi(function: &Function, irqs: &Interrupts, sinks: &[Arc<CountingIrq>]) {
    let fds = sinks.iter().map(|sink| {
        let sink: Arc<dyn IrqSink> = sink.clone();
        Eventfd::Sink(sink)
    });
    let request = SetIrqs {
        index: IrqIndex::Msi,
        action: IrqAction::Trigger,
        start: 0,
        count: sinks.len() as u32,
        data: IrqData::Eventfds(fds.collect()),
    };
    irqs.set(function, &request).unwrap();
}

#[test]
fn msi_is_enabled_by_its_ioctl_and_its_registers_are_the_programs() {
    let function = FunctionBuilder::new(1, 2).msi(2).build().unwrap();
    let msi = capability(&function, spec::CAP_MSI);
    write(&function, msi + 4, &[0x11; 12]);
    assert_eq!(read::<8>(&function, msi + 4), [0x11; 8], "the address");
    assert_eq!(
        read::<4>(&function, msi + 12),
        [0x11, 0x11, 0, 0],
        "the data"
    );
    write(&function, msi + 2, &[0x25, 0xff]);
    assert_eq!(
        read::<2>(&function, msi + 2),
        [0x04, 0x01],
        "not enabled yet"
    );
    let irqs = Interrupts::default();
    let sinks = [CountingIrq::new(), CountingIrq::new()];
    enable_msi(&function, &irqs, &sinks);
    write(&function, msi + 2, &[0x25]);
    assert_eq!(
        read::<1>(&function, msi + 2),
        [0x15],
        "as many as it was given"
    );
    irqs.clear(&function);
    write(&function, msi + 2, &[0x15]);
    assert_eq!(read::<1>(&function, msi + 2), [0x14]);
}

#[test]
fn a_masked_msi_vector_is_pending_until_it_is_unmasked() {
    let function = FunctionBuilder::new(1, 2).msi(1).build().unwrap();
    let msi = capability(&function, spec::CAP_MSI);
    let irqs = Interrupts::default();
    let sinks = [CountingIrq::new(), CountingIrq::new()];
    enable_msi(&function, &irqs, &sinks);
    write(&function, 4, &[4, 0]);
    write(&function, msi + 16, &[2, 0, 0, 0]);
    function.vectors().signal(0);
    function.vectors().signal(1);
    function.vectors().signal(1);
    assert_eq!((sinks[0].count(), sinks[1].count()), (1, 0));
    assert_eq!(read::<4>(&function, msi + 20), [2, 0, 0, 0]);
    write(&function, msi + 16, &[0]);
    assert_eq!(sinks[1].count(), 1);
    assert_eq!(read::<4>(&function, msi + 20), [0; 4]);
}

#[test]
fn a_hidden_capability_is_in_no_list_and_its_bytes_are_there() {
    let function = FunctionBuilder::new(1, 2)
        .express()
        .advanced_error_reporting()
        .pasid(20, 6)
        .address_translation()
        .build()
        .unwrap();
    let after_aer = u32::from_le_bytes(read(&function, 0x100)) >> 20;
    let ats = extended(&function, spec::EXT_ATS);
    assert_eq!(u64::from(after_aer), ats, "nothing between");
    let pasid = ats - 8;
    let header = u32::from_le_bytes(read(&function, pasid));
    assert_eq!(header & 0xffff, u32::from(spec::EXT_PASID));
    assert_eq!(u64::from(header >> 20), ats);
    write(&function, pasid + 6, &[0xff, 0xff]);
    assert_eq!(
        read::<2>(&function, pasid + 6),
        [7, 0],
        "as hardware takes it"
    );
    write(&function, pasid, &[0xff; 4]);
    assert_eq!(u32::from_le_bytes(read(&function, pasid)), header);
}

#[test]
fn an_interrupt_pin_is_read_only_and_the_line_is_the_programs() {
    let function = FunctionBuilder::new(1, 2).intx().build().unwrap();
    write(&function, 0x3c, &[0x0b, 0x04]);
    assert_eq!(read::<2>(&function, 0x3c), [0x0b, 1]);
    assert_eq!(IrqIndex::Intx.count(&function), 1);
}

#[test]
fn sriov_is_read_only_and_says_what_the_host_has_done() {
    let function = FunctionBuilder::new(1, 2)
        .express()
        .power_management()
        .sriov(layout())
        .build()
        .unwrap();
    let sriov = extended(&function, spec::EXT_SRIOV);
    let before: [u8; 64] = read(&function, sriov);
    write(&function, sriov, &[0xff; 64]);
    assert_eq!(read::<64>(&function, sriov), before);
    assert_eq!(read::<4>(&function, sriov + 12), [3, 0, 3, 0]);
    assert_eq!(read::<4>(&function, sriov + 20), [4, 0, 2, 0]);
    assert_eq!(read::<2>(&function, sriov + 26), [0x34, 0x12]);
    function.show_virtual_functions(2);
    assert_eq!(read::<2>(&function, sriov + 8), [9, 0]);
    assert_eq!(read::<2>(&function, sriov + 16), [2, 0]);
    let power = capability(&function, spec::CAP_PM) + 4;
    write(&function, power, &[3]);
    assert_eq!(read::<1>(&function, power)[0] & 3, 0, "it stays awake");
    function.show_virtual_functions(0);
    assert_eq!(read::<2>(&function, sriov + 8), [0, 0]);
    write(&function, power, &[3]);
    assert!(!function.is_awake());
}

#[test]
fn a_virtual_function_shows_programs_its_ids_and_the_host_none() {
    let function = FunctionBuilder::new(0x8086, 0x0b25)
        .intx()
        .bar(0, Bar::memory64(0x1000))
        .virtual_function()
        .build()
        .unwrap();
    assert_eq!(read::<4>(&function, 0), [0x86, 0x80, 0x25, 0x0b]);
    assert_eq!(
        read::<1>(&function, 4)[0] & 2,
        2,
        "the memory seems enabled"
    );
    assert_eq!(read::<1>(&function, 0x3d), [0], "no wire");
    write(&function, 4, &[0, 0]);
    assert!(
        function.memory_enabled(),
        "its memory has no switch of its own"
    );
    let host = function.host_config();
    assert_eq!(host[..4], [0xff; 4]);
    assert_eq!(host[4] & 2, 0);
}

#[test]
fn io_ports_are_sized_and_not_mapped() {
    let function = FunctionBuilder::new(1, 2)
        .bar(0, Bar::io(0x20))
        .bar(1, Bar::memory32(0x1000))
        .bar(2, Bar::memory32(0x80))
        .bar(3, Bar::memory32(0x100))
        .build()
        .unwrap();
    write(&function, 0x10, &[0xff; 12]);
    assert_eq!(u32::from_le_bytes(read(&function, 0x10)), 0xffff_ffe1);
    assert_eq!(u32::from_le_bytes(read(&function, 0x14)), 0xffff_f000);
    assert_eq!(u32::from_le_bytes(read(&function, 0x18)), 0xffff_ff80);
    function.assign_bars(0x8000_0000);
    let mapped = |bar| RegionIndex::Bar(bar).info(&function, true).unwrap().mmap;
    assert_eq!([mapped(0), mapped(1)], [false, true]);
    assert_eq!([mapped(2), mapped(3)], [false; 2], "they share a page");
    let alone = FunctionBuilder::new(1, 2)
        .bar(0, Bar::memory32(0x80))
        .build()
        .unwrap();
    alone.assign_bars(0x8000_0000);
    let region = RegionIndex::Bar(0).info(&alone, true).unwrap();
    assert!(region.mmap, "a page of its own");
    assert_eq!(region.size, 0x80);
}

#[test]
fn msix_lies_on_the_bar_that_a_layout_names() {
    let function = FunctionBuilder::new(1, 2)
        .bar(4, Bar::memory64(0x2000))
        .msix(MsixLayout::new(4, 0, 0x1000, 3))
        .build()
        .unwrap();
    let region = |bar| RegionIndex::Bar(bar).info(&function, true).unwrap();
    assert!(region(4).msix_mappable);
    assert!(!region(0).msix_mappable);
    assert_eq!(IrqIndex::Msix.count(&function), 3);
}
