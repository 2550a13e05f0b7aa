//! The sysfs of functions, mediated devices, groups and IOMMUs, name by name.
//!
//! `sysfs/facts.txt` lists what Linux shows for such devices, with permissions and kinds, and what of it
//! is left out on purpose. Each section is one directory of a machine; what is in it must be
//! what the list says, no more and no less.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use ioasid_core::host::StdSpawner;
use ioasid_machine::{
    AttributeError, LiveFile, Machine, MachineFile,
    sysfs::{SysfsEntry, SysfsKind},
};
use ioasid_vfio::pci::FunctionWatch;

const FACTS: &str = include_str!("sysfs/facts.txt");
const LIMITS: &str = include_str!("../../../docs/limits.md");

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

/// A physical function with one virtual one, and a device of the host's with a child.
fn machine() -> Arc<Machine> {
    let text = format!(
        "[[device]]\nmodel = \"dsa\"\naddress = \"0000:6a:01.0\"\ndriver = \"vfio\"\nvfs = 2\n\
         [[device]]\nmodel = \"dsa\"\naddress = \"0000:6b:01.0\"\ndriver = \"host\"\n\
         [[device.queue]]\nowner = \"mdev\"\nuuid = \"{UUID}\"\n\
         [[emulated]]\nmodel = \"edu\"\n"
    );
    let file: MachineFile = text.parse().unwrap();
    let machine = Machine::build("test", &file, &StdSpawner).unwrap();
    machine.set_processors("0-3,6\n", "0-7\n");
    let count = "devices/pci0000:6a/0000:6a:01.0/sriov_numvfs";
    machine.write_attribute(None, count, b"1").unwrap();
    machine
}

/// What is below `directory`, as the list writes it.
fn found(entries: &[SysfsEntry], directory: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in entries {
        let Some(name) = entry.path.strip_prefix(&format!("{directory}/")) else {
            continue;
        };
        let fact = match &entry.kind {
            SysfsKind::Dir => "dir".to_owned(),
            SysfsKind::File(file) => format!("{:04o}", file.mode),
            SysfsKind::Link(target) => format!("-> {target}"),
        };
        found.insert(name.to_owned(), fact);
        let parents = name.match_indices('/').map(|(at, _)| &name[..at]);
        for parent in parents {
            let parent = found.entry(parent.to_owned());
            parent.or_insert_with(|| "dir".to_owned());
        }
    }
    found
}

/// The sections: the directory, what it has, and what it lacks.
type Section = (String, BTreeMap<String, String>, Vec<String>);

fn sections() -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in FACTS.lines() {
        let line = line.split('#').next().unwrap().trim();
        if line.is_empty() {
            continue;
        }
        if let Some(directory) = line.strip_prefix('[') {
            let directory = directory.strip_suffix(']').unwrap().to_owned();
            sections.push((directory, BTreeMap::new(), Vec::new()));
            continue;
        }
        let (_, has, lacks) = sections.last_mut().unwrap();
        let (name, fact) = line.split_once(' ').unwrap();
        match fact.trim() {
            "omitted" => lacks.push(name.to_owned()),
            fact => assert_eq!(has.insert(name.to_owned(), fact.to_owned()), None, "{name}"),
        }
    }
    sections
}

#[test]
fn sysfs_is_what_the_list_of_facts_says() {
    let entries = machine().sysfs(None);
    let sections = sections();
    for (directory, has, lacks) in &sections {
        let mut found = found(&entries, directory);
        // What is in a directory with a section of its own is listed there.
        for (other, ..) in &sections {
            if let Some(inner) = other.strip_prefix(&format!("{directory}/")) {
                found.retain(|name, _| name != inner && !name.starts_with(&format!("{inner}/")));
            }
        }
        let text = |facts: &BTreeMap<String, String>| {
            let lines = facts.iter().map(|(name, fact)| format!("{name} {fact}\n"));
            lines.collect::<String>()
        };
        assert_eq!(text(&found), text(has), "{directory}");
        for name in lacks {
            assert!(!found.contains_key(name), "{directory} has {name}");
            let last = name.rsplit('/').next().unwrap();
            let quoted = format!("`{last}`");
            assert!(
                LIMITS.contains(&quoted),
                "docs/limits.md does not name {name}"
            );
        }
    }
}

const PHYSICAL: &str = "devices/pci0000:6a/0000:6a:01.0";
const VIRTUAL: &str = "devices/pci0000:6a/0000:6a:01.1";

fn text(entries: &[SysfsEntry], path: &str) -> String {
    let entry = entries.iter().find(|entry| entry.path == path);
    match &entry.unwrap_or_else(|| panic!("no {path}")).kind {
        SysfsKind::File(file) => String::from_utf8(file.bytes.clone()).unwrap(),
        other => panic!("{path} is {other:?}"),
    }
}

#[test]
fn values_are_written_as_linux_writes_them() {
    let entries = machine().sysfs(None);
    let child = format!("devices/pci0000:6b/0000:6b:01.0/{UUID}");
    let alias = "pci:v00008086d00000B25sv00008086sd00000000bc08sc80i00";
    let uevent = format!(
        "DRIVER=vfio-pci\nPCI_CLASS=88000\nPCI_ID=8086:0B25\nPCI_SUBSYS_ID=8086:0000\n\
         PCI_SLOT_NAME=0000:6a:01.0\nMODALIAS={alias}\n"
    );
    let of_physical = [
        ("vendor", "0x8086\n"),
        ("device", "0x0b25\n"),
        ("class", "0x088000\n"),
        ("revision", "0x00\n"),
        ("subsystem_vendor", "0x8086\n"),
        ("uevent", &uevent),
        ("modalias", &format!("{alias}\n")),
        ("numa_node", "-1\n"),
        ("local_cpulist", "0-3,6\n"),
        ("local_cpus", "4f\n"),
        ("driver_override", "(null)\n"),
        ("power_state", "D0\n"),
        ("enable", "0\n"),
        ("reset_method", "flr\n"),
        ("max_link_width", "255\n"),
        ("current_link_speed", "Unknown\n"),
        ("power/control", "auto\n"),
        ("vfio-dev/vfio0/dev", "511:0\n"),
        (
            "vfio-dev/vfio0/uevent",
            "MAJOR=511\nMINOR=0\nDEVNAME=vfio/devices/vfio0\n",
        ),
        ("sriov_vf_device", "b25\n"),
    ];
    for (name, value) in of_physical {
        assert_eq!(
            text(&entries, &format!("{PHYSICAL}/{name}")),
            value,
            "{name}"
        );
    }
    for (path, value) in [
        ("devices/pci0000:6b/0000:6b:01.0/enable", "1\n"),
        ("devices/pci0000:6b/0000:6b:01.0/power/control", "on\n"),
        (
            "devices/virtual/misc/iommu/uevent",
            "MAJOR=10\nMINOR=126\nDEVNAME=iommu\nDEVMODE=0660\n",
        ),
        ("kernel/iommu_groups/0/type", "DMA-FQ\n"),
        (
            "kernel/iommu_groups/0/reserved_regions",
            "0x00000000fee00000 0x00000000feefffff msi\n",
        ),
        ("kernel/iommu_groups/2/type", "unknown\n"),
        ("kernel/iommu_groups/2/name", "vfio-noiommu\n"),
        ("kernel/iommu_groups/2/reserved_regions", ""),
        (
            "devices/virtual/iommu/dmar0/intel-iommu/domains_supported",
            "65536\n",
        ),
        (&format!("{child}/uevent"), "DRIVER=vfio_mdev\n"),
        (&format!("{child}/vfio-dev/vfio1/dev"), "511:1\n"),
    ] {
        assert_eq!(text(&entries, path), value, "{path}");
    }
}

#[test]
fn a_virtual_function_lies_where_the_physical_one_says() {
    let entries = machine().sysfs(None);
    let resources = |path: &str| -> Vec<[u64; 3]> {
        let text = text(&entries, &format!("{path}/resource"));
        let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x").unwrap(), 16);
        let words = |line: &str| line.split(' ').map(|word| number(word).unwrap()).collect();
        let lines = text.lines().map(|line| -> Vec<u64> { words(line) });
        lines.map(|line| line.try_into().unwrap()).collect()
    };
    let (physical, virtual_function) = (resources(PHYSICAL), resources(VIRTUAL));
    assert_eq!((physical.len(), virtual_function.len()), (13, 13));
    for bar in [0, 2] {
        let [start, last, flags] = virtual_function[bar];
        let [first, end, all] = physical[7 + bar];
        let size = last - start + 1;
        assert_eq!((start, flags), (first, 0x14_220c), "the first of two");
        assert_eq!((end - first + 1, all), (2 * size, flags));
        assert!(first > physical[2][1], "none lies over another");
    }
    let [start, last, _] = physical[0];
    let config = machine();
    let files = config.live_files(None);
    let bytes = files
        .iter()
        .find(|file| file.path() == format!("{PHYSICAL}/config"));
    let bytes = bytes.unwrap().read();
    let bar = u64::from_le_bytes(bytes[0x10..0x18].try_into().unwrap());
    assert_eq!(bar & !0xf, start, "in configuration space as well");
    assert_eq!(last - start, 0xffff);
}

/// Counts its notifications.
#[derive(Debug, Default)]
struct Notified(AtomicUsize);

impl FunctionWatch for Notified {
    fn changed(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn live(machine: &Machine, path: &str) -> LiveFile {
    let mut files = machine.live_files(None).into_iter();
    files.find(|file| file.path() == path).unwrap()
}

#[test]
fn configuration_space_is_written_and_its_watcher_is_notified() {
    let machine = machine();
    for path in [PHYSICAL, "devices/pci0000:6b/0000:6b:01.0"] {
        let config = live(&machine, &format!("{path}/config"));
        let notified = Arc::new(Notified::default());
        let watcher: Weak<Notified> = Arc::downgrade(&notified);
        config.watch(watcher);
        assert_eq!(config.write_at(4, &[0x46, 0]), Ok(2));
        assert_eq!(config.read()[4..6], [0x46, 0]);
        assert_eq!(notified.0.load(Ordering::Relaxed), 1);
        assert_eq!(config.write_at(4095, &[1, 2]), Ok(1), "clipped at the end");
        assert_eq!(config.write_at(4096, &[1]), Ok(0));
        assert_eq!(config.write_at(0, &[1]), Ok(1));
        assert_eq!(config.read()[0], 0x86, "what cannot be written is not");
    }
    let power = live(&machine, &format!("{PHYSICAL}/power_state"));
    assert_eq!(power.write_at(0, b"D0"), Err(AttributeError::NotWritable));
}

#[test]
fn what_an_attribute_does_is_done_or_refused() {
    let machine = machine();
    let set = |path: &str, text: &str| machine.write_attribute(None, path, text.as_bytes());
    let physical = |name: &str| format!("{PHYSICAL}/{name}");
    use AttributeError::{Busy, Invalid, NotBuilt, NotWritable};
    for (name, text, answer) in [
        ("enable", "1\n", Err(Busy)),
        ("enable", "x", Err(Invalid)),
        ("numa_node", "-1\n", Ok(())),
        ("numa_node", "0", Err(NotBuilt)),
        ("numa_node", "", Err(Invalid)),
        ("rescan", "1\n", Ok(())),
        ("rescan", "-1\n", Err(Invalid)),
        ("reset", "1", Ok(())),
        ("reset", "2", Err(Invalid)),
        ("reset_method", "flr\n", Ok(())),
        ("reset_method", "default", Ok(())),
        ("reset_method", "bus", Err(Invalid)),
        ("reset_method", "\n", Err(NotBuilt)),
        ("sriov_drivers_autoprobe", "1", Ok(())),
        ("sriov_drivers_autoprobe", "0", Err(NotBuilt)),
        ("sriov_drivers_autoprobe", "", Err(Invalid)),
        ("power/control", "off", Err(Invalid)),
        ("vendor", "1", Err(NotWritable)),
        ("uevent", "add", Err(NotWritable)),
    ] {
        assert_eq!(set(&physical(name), text), answer, "{name} {text:?}");
    }
    for (name, text, shown) in [
        ("broken_parity_status", "7", "1\n"),
        ("d3cold_allowed", "0", "0\n"),
        ("power/control", "on\n", "on\n"),
        ("driver_override", "vfio-pci\nmore", "vfio-pci\n"),
        ("driver_override", "\n", "(null)\n"),
    ] {
        assert_eq!(set(&physical(name), text), Ok(()), "{name} {text:?}");
        let entries = machine.sysfs(None);
        assert_eq!(
            self::text(&entries, &physical(name)),
            shown,
            "{name} {text:?}"
        );
    }
    let vectors = format!("{VIRTUAL}/sriov_vf_msix_count");
    assert_eq!(set(&vectors, "-1"), Err(Invalid));
    assert_eq!(set(&vectors, "4"), Err(NotBuilt));
    for (group, text, answer) in [
        (0, "DMA-FQ\n", Ok(())),
        (0, "identity", Err(NotBuilt)),
        (0, "x", Err(Invalid)),
        (2, "DMA-FQ", Err(Invalid)),
    ] {
        let path = format!("kernel/iommu_groups/{group}/type");
        assert_eq!(set(&path, text), answer, "{group} {text:?}");
    }
}

#[test]
fn a_new_virtual_function_keeps_nothing_of_the_old_one() {
    let machine = machine();
    let set = |path: String, text: &str| machine.write_attribute(None, &path, text.as_bytes());
    let flag = format!("{VIRTUAL}/broken_parity_status");
    set(flag.clone(), "1").unwrap();
    set(format!("{PHYSICAL}/broken_parity_status"), "1").unwrap();
    for count in ["0", "1"] {
        set(format!("{PHYSICAL}/sriov_numvfs"), count).unwrap();
    }
    let entries = machine.sysfs(None);
    assert_eq!(text(&entries, &flag), "0\n");
    assert_eq!(
        text(&entries, &format!("{PHYSICAL}/broken_parity_status")),
        "1\n"
    );
}
