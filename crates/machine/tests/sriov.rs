//! Virtual functions, and the attributes of sysfs that programs write.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use ioasid_core::host::StdSpawner;
use ioasid_machine::{
    AttributeError, Machine, MachineFile, models,
    sysfs::{SysfsEntry, SysfsKind},
};

const PF: &str = "devices/pci0000:6a/0000:6a:01.0";
const VF: &str = "devices/pci0000:6a/0000:6a:01.1";

fn machine(devices: &[&str]) -> Arc<Machine> {
    let file = MachineFile::from_device_strings(devices, &models::standard()).unwrap();
    Machine::build("test", &file, &StdSpawner).unwrap()
}

/// An error and its sources.
fn sentence(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    let sources: Vec<_> = sources.map(ToString::to_string).collect();
    sources.join(": ")
}

fn default_machine() -> Arc<Machine> {
    Machine::build("test", &MachineFile::default_machine(), &StdSpawner).unwrap()
}

fn set(machine: &Machine, attribute: &str, text: &str) -> Result<(), AttributeError> {
    machine.write_attribute(None, attribute, text.as_bytes())
}

fn find<'a>(entries: &'a [SysfsEntry], path: &str) -> Option<&'a SysfsKind> {
    let mut found = entries.iter().filter(|entry| entry.path == path);
    found.next().map(|entry| &entry.kind)
}

fn text(machine: &Machine, path: &str) -> Option<String> {
    match find(&machine.sysfs(None), path)? {
        SysfsKind::File(file) => Some(String::from_utf8(file.bytes.clone()).unwrap()),
        other => panic!("{path} is {other:?}"),
    }
}

#[test]
fn virtual_functions_come_and_go_with_their_entries_and_nodes() {
    let machine = machine(&["dsa,vfs=3"]);
    let numvfs = format!("{PF}/sriov_numvfs");
    assert_eq!(text(&machine, &numvfs).as_deref(), Some("0\n"));
    assert_eq!(
        text(&machine, &format!("{PF}/sriov_totalvfs")).as_deref(),
        Some("3\n")
    );
    let before = (machine.generation(), machine.nodes(None).len());
    set(&machine, &numvfs, "2\n").unwrap();
    assert!(machine.generation() > before.0);
    assert_eq!(machine.nodes(None).len(), before.1 + 2);
    assert_eq!(text(&machine, &numvfs).as_deref(), Some("2\n"));
    let entries = machine.sysfs(None);
    let link = |target: &str| Some(SysfsKind::Link(target.to_owned()));
    assert_eq!(
        find(&entries, &format!("{PF}/virtfn1")).cloned(),
        link("../0000:6a:01.2")
    );
    assert_eq!(
        find(&entries, &format!("{VF}/physfn")).cloned(),
        link("../0000:6a:01.0")
    );
    assert_eq!(
        find(&entries, &format!("{VF}/driver")).cloned(),
        link("../../../bus/pci/drivers/vfio-pci")
    );
    assert_eq!(
        text(&machine, &format!("{VF}/device")).as_deref(),
        Some("0x0b25\n"),
        "its ids are those that it works as"
    );
    match find(&entries, &format!("{VF}/config")) {
        Some(SysfsKind::File(config)) => assert_eq!(config.bytes[..4], [0xff; 4], "and has none"),
        other => panic!("{other:?}"),
    }
    set(&machine, &numvfs, "0").unwrap();
    assert_eq!(machine.nodes(None).len(), before.1);
    assert!(find(&machine.sysfs(None), &format!("{VF}/vendor")).is_none());
}

#[test]
fn the_number_of_virtual_functions_is_set_as_linux_sets_it() {
    let machine = machine(&["dsa,vfs=3", "dsa"]);
    let set = |text: &str| set(&machine, &format!("{PF}/sriov_numvfs"), text);
    for bad in ["", "x", "-1", "1 2", "65536", "99999999999999999999"] {
        assert_eq!(set(bad), Err(AttributeError::Invalid), "{bad:?}");
    }
    for large in ["4", "65535"] {
        assert_eq!(set(large), Err(AttributeError::OutOfRange), "{large:?}");
    }
    assert_eq!(set("0"), Ok(()));
    assert_eq!(set("1"), Ok(()));
    assert_eq!(set("1"), Ok(()), "that many already");
    assert_eq!(set("2"), Err(AttributeError::Busy), "0 comes between");
    let other = "devices/pci0000:6b/0000:6b:01.0/sriov_numvfs";
    let none = machine.write_attribute(None, other, b"1");
    assert_eq!(
        none,
        Err(AttributeError::NotWritable),
        "no physical function"
    );
}

#[test]
fn a_virtual_function_in_use_stays() {
    let machine = machine(&["dsa,vfs=2"]);
    let set = |text: &str| set(&machine, &format!("{PF}/sriov_numvfs"), text);
    set("2").unwrap();
    let nodes = machine.nodes(None);
    let file = nodes[2].device.open().unwrap();
    assert_eq!(set("0"), Err(AttributeError::Busy));
    assert_eq!(machine.nodes(None).len(), 3);
    file.close();
    assert_eq!(set("0"), Ok(()));
}

#[test]
fn virtual_functions_need_addresses_and_a_driver_of_programs() {
    for (devices, cause) in [
        (vec!["dsa,vfs=32"], "vfs must be 0 to 31"),
        (vec!["dsa,vfs=1,driver=host"], "driver = \"vfio\""),
        (
            vec!["dsa,vfs=2,address=0000:6a:01.0", "dsa,address=0000:6a:01.2"],
            "no PCI address is left for virtual function 1",
        ),
        (vec!["dsa,vfs=2,address=0000:6a:1f.6"], "virtual function 1"),
    ] {
        let error = MachineFile::from_device_strings(&devices, &models::standard());
        let error = sentence(&error.unwrap_err());
        assert!(error.contains(cause), "{devices:?}: {error}");
    }
}

#[test]
fn a_vm_reaches_the_attributes_of_its_own_devices() {
    let machine = default_machine();
    let own = "devices/pci0000:6b/0000:6b:01.0/reset";
    let write = |vm, path: &str, data: &[u8]| machine.write_attribute(Some(vm), path, data);
    assert_eq!(write("vm1", own, b"1"), Ok(()));
    assert_eq!(write("vm1", own, b"2"), Err(AttributeError::Invalid));
    assert_eq!(write("vm2", own, b"1"), Err(AttributeError::NotWritable));
    let vendor = "devices/pci0000:6b/0000:6b:01.0/vendor";
    assert_eq!(write("vm1", vendor, b"1"), Err(AttributeError::NotWritable));
}

#[test]
fn a_driver_override_is_kept_until_it_is_cleared() {
    let machine = machine(&["dsa"]);
    let path = format!("{PF}/driver_override");
    assert_eq!(text(&machine, &path).as_deref(), Some("(null)\n"));
    set(&machine, &path, "vfio-pci\n").unwrap();
    assert_eq!(text(&machine, &path).as_deref(), Some("vfio-pci\n"));
    set(&machine, &path, "\n").unwrap();
    assert_eq!(text(&machine, &path).as_deref(), Some("(null)\n"));
}

#[test]
fn mediated_devices_are_created_and_removed_through_sysfs() {
    use ioasid_vfio::{
        Error,
        error::{BindError, MdevError, UuidError},
    };
    let machine = default_machine();
    let create = "devices/pci0000:6a/0000:6a:01.0/mdev_supported_types/dsa-1dwq/create";
    let uuid = machine.mdevs(None)[0].uuid.to_string();
    let vfio = |error: MdevError| Err(AttributeError::Vfio(Error::from(error)));
    let write = |path: &str, text: &str| set(&machine, path, text);
    assert_eq!(write(create, "nonsense"), vfio(UuidError::Length(8).into()));
    let exists = MdevError::Exists {
        uuid: machine.mdevs(None)[0].uuid,
    };
    assert_eq!(write(create, &uuid), vfio(exists));
    let remove = format!("devices/pci0000:6a/0000:6a:01.0/{uuid}/remove");
    assert_eq!(write(&remove, "x"), Err(AttributeError::Invalid));
    assert_eq!(write(&remove, "0"), Ok(()));
    assert_eq!(machine.mdevs(None).len(), 2, "0 removes nothing");
    let file = machine.mdevs(None)[0].node.device.open().unwrap();
    assert_eq!(
        write(&remove, "1"),
        vfio(BindError::StillOpen { open: 1 }.into())
    );
    file.close();
    assert_eq!(write(&remove, "1"), Ok(()));
    assert_eq!(machine.mdevs(None).len(), 1);
    let text = uuid.to_uppercase() + "\n";
    let made = machine.write_attribute(Some("vm1"), create, text.as_bytes());
    assert_eq!(
        made,
        Err(AttributeError::NotWritable),
        "it sees no child of it"
    );
    let made = machine.write_attribute(Some("vm2"), create, text.as_bytes());
    assert_eq!(made, Ok(()));
    assert_eq!(
        machine.mdevs(Some("vm2")).len(),
        2,
        "it belongs to the VM that made it"
    );
}
