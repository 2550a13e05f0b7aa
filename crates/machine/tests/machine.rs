//! A machine is what its file says.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use ioasid_core::{
    host::StdSpawner,
    inspect::{Inspect as _, Node, Value},
};
use ioasid_dsa::DsaDevice;
use ioasid_ioat::IoatDevice;
use ioasid_machine::{
    Machine, MachineFile,
    models::ioat,
    sysfs::{SysfsFile, SysfsKind},
};

const FIRST: &str = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01";
const SECOND: &str = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a02";

fn build(text: &str) -> Arc<Machine> {
    let file: MachineFile = text.parse().unwrap();
    Machine::build("test", &file, &StdSpawner).unwrap()
}

fn default_machine() -> Arc<Machine> {
    Machine::build("test", &MachineFile::default_machine(), &StdSpawner).unwrap()
}

fn child_field(machine: &Machine, uuid: &str, field: &str) -> Option<Value> {
    let tree = machine.inspect();
    let Some(Value::List(mdevs)) = tree.field("mdevs") else {
        panic!("mdevs are listed")
    };
    mdevs.iter().find_map(|mdev| match mdev {
        Value::Node(mdev) if mdev.field("uuid") == Some(&uuid.into()) => {
            match mdev.field("queue") {
                Some(Value::Node(queue)) => queue.field(field).cloned(),
                _ => None,
            }
        }
        _ => None,
    })
}

#[test]
fn an_mdev_gets_the_queue_that_its_section_is_for() {
    // The free queue comes first: order alone would give it away.
    let machine = build(&format!(
        "[[device]]\nmodel = \"dsa\"\ndriver = \"host\"\n\
         [[device.queue]]\nowner = \"host\"\n\
         [[device.queue]]\nowner = \"mdev\"\n\
         [[device.queue]]\nowner = \"mdev\"\nuuid = \"{FIRST}\"\n\
         [[device.queue]]\nowner = \"mdev\"\nuuid = \"{SECOND}\"\n"
    ));
    assert_eq!(child_field(&machine, FIRST, "queue"), Some(Value::Count(2)));
    assert_eq!(
        child_field(&machine, SECOND, "queue"),
        Some(Value::Count(3))
    );
    let later = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2aff";
    machine
        .create_mdev("0000:6a:01.0", "dsa-1dwq", later, None)
        .unwrap();
    assert_eq!(child_field(&machine, later, "queue"), Some(Value::Count(1)));
    machine.remove_mdev(FIRST).unwrap();
    let taken = machine.create_mdev(
        "0000:6a:01.0",
        "dsa-1dwq",
        "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2afe",
        None,
    );
    assert!(
        taken.is_err(),
        "a queue that is kept for one child goes to no other"
    );
    machine
        .create_mdev("0000:6a:01.0", "dsa-1dwq", FIRST, None)
        .unwrap();
}

#[test]
fn a_vm_sees_what_it_owns_and_nothing_else() {
    let machine = default_machine();
    assert_eq!(machine.nodes(None).len(), 4);
    assert_eq!(machine.nodes(Some("vm1")).len(), 2);
    assert_eq!(machine.nodes(Some("vm2")).len(), 1);
    assert!(machine.nodes(Some("vm3")).is_empty() && !machine.has_vm("vm3"));
    let paths = |vm| -> Vec<String> {
        machine
            .sysfs(vm)
            .into_iter()
            .map(|entry| entry.path)
            .collect()
    };
    let vm2 = paths(Some("vm2"));
    assert!(
        vm2.iter()
            .any(|path| path.ends_with(&format!("bus/mdev/devices/{SECOND}")))
    );
    assert!(
        !vm2.iter()
            .any(|path| path.contains(FIRST) || path.contains("0000:6b:01.0"))
    );
    // The parent is there for its child to lie in, with the driver that has it.
    assert!(
        vm2.iter()
            .any(|path| path == "bus/pci/drivers/idxd/0000:6a:01.0")
    );
}

#[test]
fn every_sysfs_path_is_relative_and_every_link_leads_to_an_entry() {
    let machine = default_machine();
    let entries = machine.sysfs(None);
    for entry in &entries {
        assert!(
            !entry.path.starts_with('/') && !entry.path.contains(".."),
            "{}",
            entry.path
        );
        let SysfsKind::Link(target) = &entry.kind else {
            continue;
        };
        let mut path: Vec<_> = entry.path.split('/').collect();
        path.pop();
        for part in target.split('/') {
            if part == ".." {
                path.pop().unwrap();
            } else {
                path.push(part);
            }
        }
        let path = path.join("/");
        let known = entries
            .iter()
            .any(|entry| entry.path == path || entry.path.starts_with(&format!("{path}/")));
        let host = ["bus/pci", "bus/mdev", "class/vfio-dev"].contains(&path.as_str());
        assert!(
            known || host,
            "{} leads to {path}, which is nowhere",
            entry.path
        );
    }
}

#[test]
fn an_mdev_that_is_presented_is_a_pci_function_too() {
    let text = format!(
        "[[device]]\nmodel = \"dsa\"\ndriver = \"host\"\n[[device.queue]]\nowner = \"mdev\"\n\
         uuid = \"{FIRST}\"\npresent_as = \"0000:70:00.0\"\n"
    );
    let machine = build(&text);
    let entries = machine.sysfs(None);
    let kind = |path: &str| {
        let found = entries.iter().find(|entry| entry.path == path);
        found.map(|entry| entry.kind.clone())
    };
    let link = |path: &str| match kind(path) {
        Some(SysfsKind::Link(target)) => target.rsplit('/').next().unwrap().to_owned(),
        other => panic!("{path} is {other:?}"),
    };
    let function = "devices/pci0000:70/0000:70:00.0";
    assert_eq!(link("bus/pci/devices/0000:70:00.0"), "0000:70:00.0");
    assert_eq!(link(&format!("{function}/driver")), "vfio-pci");
    let group = link(&format!("{function}/iommu_group"));
    let child = format!("devices/pci0000:6a/0000:6a:01.0/{FIRST}");
    assert_eq!(link(&format!("{child}/iommu_group")), group);
    let node = kind(&format!("{function}/vfio-dev/vfio0/dev"));
    assert!(node.is_some() && node == kind(&format!("{child}/vfio-dev/vfio0/dev")));
}

#[test]
fn only_the_parents_domain_is_there_before_a_program_comes() {
    let machine = default_machine();
    assert_eq!(machine.iommu().paging_domains(), 1);
    let context = machine.new_context();
    assert_eq!(count(&machine.inspect(), "iommufds"), 1);
    drop(context);
    assert_eq!(count(&machine.inspect(), "iommufds"), 0);
}

fn count(tree: &Node, list: &str) -> usize {
    match tree.field(list) {
        Some(Value::List(values)) => values.len(),
        other => panic!("{list} is {other:?}"),
    }
}

#[test]
fn an_emulated_device_is_a_mediated_one_of_a_parent_without_a_bus() {
    let machine = build(&format!(
        "[[emulated]]\nmodel = \"edu\"\n\
         [[emulated]]\nmodel = \"edu\"\nuuid = \"{FIRST}\"\nvm = \"vm1\"\n"
    ));
    assert!(machine.has_vm("vm1"));
    let entries = machine.sysfs(Some("vm1"));
    let find = |path: &str| entries.iter().find(|entry| entry.path == path);
    let parent = "devices/virtual/edu/edu";
    for path in [
        format!("{parent}/{FIRST}/iommu_group"),
        format!("{parent}/mdev_supported_types/edu-1/create"),
        format!("bus/mdev/devices/{FIRST}"),
        "class/mdev_bus/edu".to_owned(),
    ] {
        assert!(find(&path).is_some(), "no {path}");
    }
    let available = find(&format!(
        "{parent}/mdev_supported_types/edu-1/available_instances"
    ));
    assert_eq!(
        available.unwrap().kind,
        SysfsKind::File(SysfsFile::read_only("15\n"))
    );
    // Programs can make more of them, by the type's file.
    let create = format!("{parent}/mdev_supported_types/edu-1/create");
    machine
        .write_attribute(None, &create, SECOND.as_bytes())
        .unwrap();
    assert_eq!(machine.mdevs(None).len(), 2);
    machine.remove_mdev(FIRST).unwrap();
    machine.remove_mdev(SECOND).unwrap();
    assert!(machine.iommu().domains().is_empty());
}

#[test]
fn an_emulated_device_needs_a_uuid_of_its_own() {
    let refused = |text: &str| text.parse::<MachineFile>().unwrap_err().to_string();
    let twice = format!("[[emulated]]\nmodel = \"edu\"\nuuid = \"{FIRST}\"\n").repeat(2);
    assert!(refused(&twice).contains("used twice"));
    let nameless = "[[emulated]]\nmodel = \"edu\"\nvm = \"vm1\"\n";
    assert!(refused(nameless).contains("need a uuid"));
}

#[test]
fn an_ioat_is_a_parent_of_channels_beside_a_dsa() {
    let machine = build(&format!(
        "[[device]]\nmodel = \"dsa\"\nvm = \"vm1\"\n\
         [[device]]\nmodel = \"ioat\"\ndriver = \"host\"\n\
         [[device.channel]]\nowner = \"host\"\n\
         [[device.channel]]\nowner = \"mdev\"\n\
         [[device.channel]]\nowner = \"mdev\"\nuuid = \"{FIRST}\"\nvm = \"vm1\"\n"
    ));
    assert_eq!(
        child_field(&machine, FIRST, "channel"),
        Some(Value::Count(2))
    );
    let parent = "0000:6b:01.0";
    let wrong = machine.create_mdev(parent, "dsa-1dwq", SECOND, None);
    assert!(wrong.is_err(), "a type of another model");
    machine
        .create_mdev(parent, "ioat-1chan", SECOND, None)
        .unwrap();
    assert_eq!(
        child_field(&machine, SECOND, "channel"),
        Some(Value::Count(1))
    );
    let hosts: Vec<_> = machine.host_drivers::<ioat::Host>().collect();
    let address = parent.parse().unwrap();
    assert_eq!((hosts.len(), hosts[0].0), (1, address));
    assert_eq!(hosts[0].1.channels().len(), 1);
    assert!(machine.device::<IoatDevice>(address).is_some());
    assert!(machine.device::<DsaDevice>(address).is_none());
    let driver = format!("bus/pci/drivers/ioatdma/{parent}");
    let entries = machine.sysfs(None);
    assert!(entries.iter().any(|entry| entry.path == driver));
    assert!(
        machine
            .sysfs(Some("vm2"))
            .iter()
            .all(|entry| entry.path != driver)
    );
}

/// The extended capability `id` of a function as the host sees it.
fn extended(config: &[u8], id: u16) -> Option<&[u8]> {
    let mut at = 0x100;
    while at != 0 {
        let header = u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
        if header as u16 == id {
            return Some(&config[at..]);
        }
        at = (header >> 20) as usize;
    }
    None
}

#[test]
fn what_iommufd_says_of_a_device_is_what_its_configuration_space_has() {
    const MACHINE: &str = r#"
        [[device]]
        model = "dsa"
        driver = "host"
        [[device.queue]]
        owner = "mdev"
        uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01"

        [[device]]
        model = "dsa"
        address = "0000:6b:01.0"
        driver = "vfio"

        [[device]]
        model = "ioat"
        driver = "host"
        [[device.channel]]
        owner = "mdev"
        uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a11"

        [[device]]
        model = "ioat"
        address = "0000:6c:01.0"
        driver = "vfio"
    "#;
    const ATS: u16 = 0x0f;
    const PASID: u16 = 0x1b;
    let machine = build(MACHINE);
    let mut seen = Vec::new();
    for export in machine.exports() {
        let file = export.device.open().unwrap();
        let context = machine.new_context();
        let info = context.hw_info(file.bind(&context).unwrap()).unwrap();
        let config = export.device.model().function().host_config();
        let ats = extended(&config, ATS);
        assert_eq!(info.ats, ats.is_some(), "{}", export.name);
        assert!(ats.is_none_or(|ats| ats[7] & 0x80 != 0), "enabled");
        assert!(info.dirty_tracking);
        let features = [info.pasid_execute, info.pasid_privileged];
        if export.device.is_child() {
            // The PASID of a child is not its user's.
            assert_eq!((info.max_pasid_log2, features), (0, [false; 2]));
        } else {
            let pasid = extended(&config, PASID).unwrap();
            assert_eq!(info.max_pasid_log2, pasid[5] & 0x1f);
            for control in [pasid[4], pasid[6]] {
                assert_eq!(features, [control & 2 != 0, control & 4 != 0]);
            }
            assert_eq!(pasid[6] & 1, 1, "enabled");
        }
        seen.push((export.name, info.ats, info.pasid_privileged));
    }
    seen.sort();
    let expected = [
        ("0000:6b:01.0", true, true),
        ("0000:6c:01.0", false, false),
        (FIRST, true, false),
        ("5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a11", false, false),
    ];
    assert_eq!(
        seen,
        expected.map(|(name, ats, privileged)| (name.to_owned(), ats, privileged))
    );
}
