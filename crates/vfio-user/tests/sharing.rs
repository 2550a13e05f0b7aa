//! Devices of one VM stand on one address space; VMs do not see each other; clients come and go.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::time::Duration;

use common::*;
use ioasid_core::inspect::{Inspect, Node, Value};
use ioasid_dsa::spec::Descriptor;
use ioasid_vfio_user::spec::command;

const MIB: u64 = 1 << 20;

fn node<'a>(node: &'a Node, name: &str) -> &'a Value {
    node.field(name)
        .unwrap_or_else(|| panic!("no {name} in {node:?}"))
}

/// Connections and mappings of each VM that is there.
fn vms(fixture: &Fixture) -> Vec<(String, u64, usize)> {
    let tree = fixture.server.inspect();
    let Value::List(vms) = node(&tree, "vms") else {
        panic!("a list")
    };
    vms.iter()
        .map(|vm| {
            let Value::Node(vm) = vm else {
                panic!("a node")
            };
            let Value::Text(name) = node(vm, "name") else {
                panic!("a name")
            };
            let Value::Count(connections) = node(vm, "connections") else {
                panic!("a number")
            };
            let Value::List(mappings) = node(vm, "mappings") else {
                panic!("a list")
            };
            (name.to_string(), *connections, mappings.len())
        })
        .collect()
}

fn pinned(fixture: &Fixture) -> u64 {
    fixture.machine.ledger().pinned(0)
}

#[test]
fn two_devices_of_a_vm_share_one_mapping_and_one_domain() {
    let fixture = Fixture::new();
    let domains = fixture.machine.iommu().domains().len();
    let ram = memfd(4 * MIB);
    let mut mdev = fixture.connect(MDEV1);
    let mut pdev = fixture.connect(PDEV);
    assert_eq!(
        fixture.machine.iommu().domains().len(),
        domains + 1,
        "one for both"
    );
    for vmm in [&mut mdev, &mut pdev] {
        vmm.map(Some(&ram), 0, 0, 4 * MIB).unwrap();
    }
    assert_eq!(vms(&fixture), [("vm1".to_owned(), 2, 1)]);
    assert_eq!(pinned(&fixture), 4 * MIB, "pinned once");
    let bytes = pattern(5000, 3);
    poke(&ram, 0x1000, &bytes);
    mdev.bring_up_child();
    pdev.bring_up_whole();
    mdev.submit(Descriptor::memory_move(0x10_0000, 0x1000, 5000, 0x40));
    assert_eq!(wait_record(&ram, 0x40).status, 1);
    pdev.submit(Descriptor::memory_move(0x20_0000, 0x10_0000, 5000, 0x80));
    assert_eq!(wait_record(&ram, 0x80).status, 1);
    assert_eq!(
        peek(&ram, 0x20_0000, 5000),
        bytes,
        "one reads what the other wrote"
    );
    // It stays until the last one lets go of it.
    mdev.unmap(0, 4 * MIB).unwrap();
    assert_eq!(pinned(&fixture), 4 * MIB);
    pdev.unmap(0, 4 * MIB).unwrap();
    assert_eq!(pinned(&fixture), 0);
    drop((mdev, pdev));
    eventually("the end of the VM", || vms(&fixture).is_empty());
    eventually("the end of its domain", || {
        fixture.machine.iommu().domains().len() == domains
    });
}

#[test]
fn what_another_device_of_the_vm_has_mapped_differently_is_refused() {
    let fixture = Fixture::new();
    let (ram, other) = (memfd(4 * MIB), memfd(4 * MIB));
    let mut mdev = fixture.connect(MDEV1);
    let mut pdev = fixture.connect(PDEV);
    mdev.map(Some(&ram), 0, 0, 2 * MIB).unwrap();
    assert_eq!(pdev.map(Some(&other), 0, 0, 2 * MIB), Err(EEXIST));
    assert_eq!(pdev.map(Some(&ram), MIB, 0, 2 * MIB), Err(EEXIST));
    assert_eq!(pdev.map(Some(&ram), 0, 0, MIB), Err(EEXIST));
    assert_eq!(pdev.map(None, 0, 0, 2 * MIB), Err(EEXIST));
    pdev.map(Some(&ram), 0, 0, 2 * MIB).unwrap();
    assert_eq!(vms(&fixture), [("vm1".to_owned(), 2, 1)]);
}

#[test]
fn a_change_that_reaches_the_devices_one_after_the_other_succeeds() {
    let fixture = Fixture::new();
    let ram = memfd(4 * MIB);
    let mut mdev = fixture.connect(MDEV1);
    let mut pdev = fixture.connect(PDEV);
    mdev.map(Some(&ram), 0, 0, 2 * MIB).unwrap();
    pdev.map(Some(&ram), 0, 0, 2 * MIB).unwrap();
    let changer = std::thread::spawn(move || {
        let ram = ram;
        mdev.unmap(0, 2 * MIB).unwrap();
        mdev.map(Some(&ram), 0, 0, MIB).unwrap();
        (mdev, ram)
    });
    std::thread::sleep(Duration::from_millis(50));
    pdev.unmap(0, 2 * MIB).unwrap();
    let (_mdev, ram) = changer.join().unwrap();
    pdev.map(Some(&ram), 0, 0, MIB).unwrap();
    assert_eq!(vms(&fixture), [("vm1".to_owned(), 2, 1)]);
}

#[test]
fn a_vm_reaches_its_own_memory_alone() {
    let fixture = Fixture::new();
    let (own, other) = (memfd(4 * MIB), memfd(4 * MIB));
    poke(&own, 0, &pattern(4 << 20, 1));
    poke(&other, 0, &pattern(4 << 20, 2));
    let before = peek(&own, 0, 4 << 20);
    let mut vm1 = fixture.connect(MDEV1);
    let mut vm2 = fixture.connect(MDEV2);
    vm1.map(Some(&own), 0, 0, 4 * MIB).unwrap();
    vm2.map(Some(&other), 0, 0, MIB).unwrap();
    assert_eq!(vms(&fixture).len(), 2);
    vm2.bring_up_child();
    let mut record = 0x40;
    for beyond in [MIB, 2 * MIB, 1 << 40] {
        poke(&other, record, &[0; 32]);
        vm2.submit(Descriptor::fill(beyond, 0x55, 4096, record));
        assert_eq!(wait_record(&other, record).status & 0x7f, 3, "a page fault");
        record += 0x40;
    }
    assert_eq!(peek(&own, 0, 4 << 20), before);
}

#[test]
fn whoever_has_the_device_keeps_it_and_the_next_one_waits() {
    let fixture = Fixture::new();
    let first = fixture.connect(PDEV);
    let mut second = Vmm::new(fixture.stream(PDEV));
    let id = second.start(command::VERSION, &[0; 4], &[]);
    let wait = Some(Duration::from_millis(100));
    second.stream.set_read_timeout(wait).unwrap();
    let mut byte = [0];
    assert!(std::io::Read::read(&mut &second.stream, &mut byte).is_err());
    drop(first);
    second.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(second.reply(id).is_ok(), "as soon as the first has left");
}

#[test]
fn a_device_that_a_program_has_is_busy() {
    let fixture = Fixture::new();
    let exports = fixture.machine.exports();
    let device = &exports
        .iter()
        .find(|export| export.name == PDEV)
        .unwrap()
        .device;
    let file = device.open().unwrap();
    file.bind(&fixture.machine.new_context()).unwrap();
    let mut vmm = Vmm::new(fixture.stream(PDEV));
    assert!(vmm.try_version().is_err());
    assert!(vmm.is_over());
    file.close();
    fixture.connect(PDEV);
}

#[test]
fn a_client_that_dies_in_the_middle_of_dma_leaves_a_pristine_queue() {
    let fixture = Fixture::new();
    let ram = memfd(8 * MIB);
    let pristine = {
        let mut vmm = fixture.connect(MDEV1);
        vmm.switch_on();
        vmm.read(0, 0, 0x1000).unwrap()
    };
    for round in 0..20 {
        fixture.released(MDEV1);
        let mut vmm = fixture.connect(MDEV1);
        vmm.map(Some(&ram), 0, 0, 8 * MIB).unwrap();
        vmm.bring_up_child();
        for slot in 0..16 {
            let record = 0x40 * (slot + 1);
            vmm.submit(Descriptor::memory_move(4 * MIB, MIB, 2 << 20, record));
        }
        if round % 2 == 0 {
            drop(vmm);
        } else {
            // In the middle of a message.
            let stream = vmm.stream;
            std::io::Write::write_all(&mut &stream, &[9; 7]).unwrap();
        }
    }
    fixture.released(MDEV1);
    eventually("the end of the VM", || vms(&fixture).is_empty());
    assert_eq!(pinned(&fixture), 0);
    let mut vmm = fixture.connect(MDEV1);
    vmm.switch_on();
    assert_eq!(vmm.read(0, 0, 0x1000).unwrap(), pristine);
    let ram = memfd(MIB);
    vmm.map(Some(&ram), 0, 0, MIB).unwrap();
    vmm.bring_up_child();
    vmm.submit(Descriptor::fill(0x1000, 7, 64, 0x40));
    assert_eq!(wait_record(&ram, 0x40).status, 1, "the next client's work");
}

#[test]
fn a_thousand_mappings_of_one_file_need_one_descriptor() {
    let fixture = Fixture::new();
    let ram = memfd(64 * MIB);
    let mut vmm = fixture.connect(PDEV);
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for page in 0..1000 {
        vmm.map(Some(&ram), page << 12, page << 13, 4096).unwrap();
    }
    // Other tests of this process open files at the same time.
    assert!(open() < before + 200, "a descriptor came with each");
    vmm.unmap(0, 1 << 30).unwrap();
}

#[test]
fn a_server_that_stops_lets_go_of_every_device() {
    let fixture = Fixture::new();
    let mut vmm = fixture.connect(PDEV);
    let id = vmm.start(command::DEVICE_RESET, &[], &[]);
    let silent = fixture.stream(MDEV1);
    fixture.server.stop();
    assert!(!fixture.is_bound(PDEV));
    assert!(vmm.reply(id).is_ok(), "what was sent was carried out");
    assert!(vmm.is_over());
    drop(silent);
}

#[test]
fn memory_of_64_gib_is_mapped_by_its_windows() {
    let fixture = Fixture::new();
    let ram = memfd(64 << 30);
    let mut vmm = fixture.connect(PDEV);
    vmm.map(Some(&ram), 0, 1 << 32, 64 << 30).unwrap();
    assert_eq!(pinned(&fixture), 64 << 30);
    vmm.bring_up_whole();
    let last = (1_u64 << 32) + (64 << 30) - 4096;
    vmm.submit(Descriptor::fill(last, 0x11, 4096, last - 0x1000));
    assert_eq!(wait_record(&ram, (64 << 30) - 0x2000).status, 1);
    assert_eq!(peek(&ram, (64 << 30) - 4096, 8)[0], 0x11);
    vmm.unmap(1 << 32, 64 << 30).unwrap();
}
