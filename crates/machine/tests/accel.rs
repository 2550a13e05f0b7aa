//! Queues and engines from a file of accel-config's.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{error::Error, fs, path::PathBuf, sync::Arc};

use ioasid_core::host::StdSpawner;
use ioasid_dsa::{
    DsaDevice,
    spec::{
        registers::{GRPCFG, WQCFG},
        tables::{GRPCFG_SIZE, WQCFG_SIZE, WqLimits, WqUse},
    },
};
use ioasid_machine::{Machine, MachineFile, models};
use ioasid_vfio::DeviceModel as _;
use serde_json::{Value, json};

fn example() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/accel/two_groups.json")
}

fn machine(path: &str, keys: &str) -> Result<MachineFile, String> {
    let string = format!("dsa,config={path}{keys}");
    let file = MachineFile::from_device_strings(&[string], &models::standard());
    file.map_err(|error| sentence(&error))
}

/// An error and its sources.
fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The example with changes.
fn changed(change: impl FnOnce(&mut Value)) -> (tempfile::NamedTempFile, String) {
    let mut value: Value = serde_json::from_slice(&fs::read(example()).unwrap()).unwrap();
    change(&mut value);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, value.to_string()).unwrap();
    let path = file.path().display().to_string();
    (file, path)
}

/// The first queue of the example.
fn queue(value: &mut Value) -> &mut Value {
    &mut value[0]["groups"][0]["grouped_workqueues"][0]
}

fn read32(dsa: &DsaDevice, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    dsa.read(0, offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// What a file says of queues and engines, from the registers that the host's driver has written.
fn from_registers(dsa: &DsaDevice) -> Vec<Value> {
    let members = |entry: u64| {
        let bits = read32(dsa, entry);
        (0..32_u64).filter(move |index| bits >> index & 1 == 1)
    };
    (0..dsa.engines() as u64)
        .map(|group| {
            let entry = GRPCFG + group * GRPCFG_SIZE;
            let queues = members(entry).map(|index| {
                let entry = WQCFG + index * WQCFG_SIZE;
                let usage = WqUse::from_bits(read32(dsa, entry + 8));
                let limits = WqLimits::from_bits(read32(dsa, entry + 12));
                json!({
                    "dev": format!("wq0.{index}"),
                    "mode": if usage.dedicated() { "dedicated" } else { "shared" },
                    "size": read32(dsa, entry) & 0xffff,
                    "group_id": group,
                    "priority": usage.priority(),
                    "max_batch_size": 1_u32 << limits.max_batch_shift(),
                    "max_transfer_size": 1_u32 << limits.max_xfer_shift(),
                    "threshold": read32(dsa, entry + 4) & 0xffff,
                })
            });
            let engines = members(entry + GRPCFG_SIZE / 2);
            let engines = engines.map(|index| json!(format!("engine0.{index}")));
            json!([queues.collect::<Vec<_>>(), engines.collect::<Vec<_>>()])
        })
        .collect()
}

/// The same of the file itself.
fn from_file() -> Vec<Value> {
    let value: Value = serde_json::from_slice(&fs::read(example()).unwrap()).unwrap();
    let groups = value[0]["groups"].as_array().unwrap();
    let list = |group: &Value, name: &str| group[name].as_array().cloned().unwrap_or_default();
    groups
        .iter()
        .map(|group| {
            let mut queues = list(group, "grouped_workqueues");
            for queue in &mut queues {
                let queue = queue.as_object_mut().unwrap();
                // What the device has no register for.
                for name in ["type", "name", "driver_name", "block_on_fault"] {
                    queue.remove(name);
                }
            }
            let engines = list(group, "grouped_engines").into_iter();
            let engines: Vec<Value> = engines.map(|engine| engine["dev"].clone()).collect();
            json!([queues, engines])
        })
        .collect()
}

#[test]
fn the_device_has_the_queues_groups_and_engines_of_the_file() {
    let file = machine(&example().display().to_string(), ",driver=host").unwrap();
    let address = file.device[0].address.unwrap();
    let machine = Machine::build("accel", &file, &StdSpawner).unwrap();
    let dsa: Arc<DsaDevice> = machine.device(address).unwrap();
    assert_eq!(from_registers(&dsa), from_file());
    let types = machine.mdev_types_of(&address.to_string());
    assert_eq!(types, ["dsa-1dwq"]);
    assert_eq!(machine.outline()[0].free, 1);
    assert_eq!(
        machine.outline()[0].contents,
        "3 engines, 3 queues, 1 of them for mediated devices"
    );
}

#[test]
fn a_program_that_has_the_whole_device_finds_the_queues_and_sets_the_rest() {
    let (_file, path) = changed(|value| {
        for group in value[0]["groups"].as_array_mut().unwrap() {
            let queues = group.get_mut("grouped_workqueues");
            let queues = queues.and_then(Value::as_array_mut);
            for queue in queues.into_iter().flatten() {
                queue["type"] = json!("user");
            }
        }
        let queue = queue(value);
        queue["mode"] = json!("shared");
        queue["threshold"] = json!(8);
    });
    let file = machine(&path, "").unwrap();
    let machine = Machine::build("accel", &file, &StdSpawner).unwrap();
    assert_eq!(machine.outline()[0].contents, "3 engines, 3 queues");
}

#[test]
fn what_cannot_be_had_is_one_clear_sentence() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 9] = [
        (
            |value| queue(value)["mode"] = json!("shared"),
            "wq 0: mode shared",
        ),
        (
            |value| queue(value)["type"] = json!("user"),
            "there is no /dev/dsa",
        ),
        (
            |value| queue(value)["size"] = json!(500),
            "wq0.0: size must be 1 to 128, not 500",
        ),
        (
            |value| queue(value)["priority"] = json!(0),
            "priority must be 1 to 15",
        ),
        (
            |value| queue(value)["max_transfer_size"] = json!(1_u64 << 31),
            "a power of two up to 2097152, not 2147483648",
        ),
        (
            |value| queue(value)["block_on_fault"] = json!(1),
            "does not wait for pages",
        ),
        (
            |value| queue(value)["threshold"] = json!(4),
            "threshold is for shared queues",
        ),
        (
            |value| queue(value)["dev"] = json!("wq0.7"),
            "wqs are numbered from 0, each once, and wq0 is not there",
        ),
        (
            |value| value[0]["groups"][1]["grouped_engines"] = json!([]),
            "group0.1: it has queues and no engine",
        ),
    ];
    for (change, sentence) in cases {
        let (_file, path) = changed(change);
        let said = machine(&path, ",driver=host").unwrap_err();
        assert!(said.contains(sentence), "{sentence}: {said}");
    }
    let path = example().display().to_string();
    for (path, keys, sentence) in [
        ("/nowhere.json", "", "cannot read /nowhere.json"),
        (&*path, ",queues=4", "config says what queues says"),
        (
            &*format!("{path}#dsa3"),
            "",
            "it has the devices dsa0: name one",
        ),
        (env!("CARGO_MANIFEST_DIR"), "", "cannot read"),
    ] {
        let said = machine(path, keys).unwrap_err();
        assert!(said.contains(sentence), "{sentence}: {said}");
    }
    assert!(machine(&format!("{path}#dsa0"), ",driver=host").is_ok());
}
