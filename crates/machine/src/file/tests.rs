//! Machine files and device strings, and how wrong ones are answered.

use super::*;
use crate::models::{dsa, edu, ioat};

/// The sentence: an error and its sources.
fn sentence(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    let sources: Vec<_> = sources.map(ToString::to_string).collect();
    sources.join(": ")
}

fn error(text: &str) -> String {
    sentence(&text.parse::<MachineFile>().unwrap_err())
}

fn from_strings(strings: &[&str]) -> Result<MachineFile, MachineFileError> {
    MachineFile::from_device_strings(strings, &models::standard())
}

fn queues(device: &DeviceSection) -> usize {
    let dsa = device
        .section()
        .map(|section: &dsa::Section| section.queues());
    let ioat = device
        .section()
        .map(|section: &ioat::Section| section.channels());
    dsa.or(ioat).unwrap().len()
}

#[test]
fn the_default_machine_is_the_scene_and_one_device_to_begin_with() {
    let file = MachineFile::default_machine();
    assert_eq!(file.device.len(), 3);
    // The first address is one that a program may open.
    assert!(file.device.is_sorted_by_key(|device| device.address));
    assert_eq!(file.device[0].driver, Driver::Vfio);
    assert_eq!(file.vms().into_iter().collect::<Vec<_>>(), ["vm1", "vm2"]);
    assert_eq!(file.device[1].driver, Driver::Host);
    assert!(queues(&file.device[1]) >= 3);
    assert_eq!(file.device[2].vm.as_deref(), Some("vm1"));
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    let text = error("[[device]]\nmodel = \"dsa\"\nengnies = 2\n");
    assert!(
        text.contains("line 3") && text.contains("did you mean `engines`?"),
        "{text}"
    );
    let text = error("[[device]]\nmodel = \"dsb\"\n");
    assert!(text.contains("did you mean `dsa`?"), "{text}");
}

#[test]
fn what_cannot_be_built_is_refused_with_a_cause() {
    let device = "[[device]]\nmodel = \"dsa\"\n";
    for (text, cause) in [
        (String::new(), "no device"),
        (format!("{device}engines = 0\n"), "engines must be 1"),
        (format!("{device}max_transfer = 4097\n"), "a power of two"),
        (format!("{device}queues = 99\n"), "queues must be 1"),
        (
            format!("{device}address = \"6a:1.0\"\n"),
            "not a PCI address",
        ),
        (
            format!("{device}driver = \"host\"\nvm = \"a\"\n"),
            "needs driver",
        ),
        (
            format!("{device}[[device.queue]]\nowner = \"mdev\"\n"),
            "use driver = \"host\"",
        ),
        (
            format!(
                "{0}address = \"0000:6a:01.0\"\n{0}address = \"0000:6a:01.0\"\n",
                device
            ),
            "two devices",
        ),
        (
            format!(
                "{device}driver = \"host\"\n[[device.queue]]\nowner = \"mdev\"\n\
                 present_as = \"0000:70:00.0\"\n"
            ),
            "present_as but no uuid",
        ),
    ] {
        let found = error(&text);
        assert!(found.contains(cause), "{text:?} gave {found:?}");
    }
}

#[test]
fn the_queues_of_an_ioat_are_channels_by_either_name() {
    let device = "[[device]]\nmodel = \"ioat\"\ndriver = \"host\"\n";
    let with = |key| {
        let section = format!("[[device.{key}]]\nowner = \"mdev\"\n");
        format!("{device}{section}").parse::<MachineFile>().unwrap()
    };
    let (queue, channel) = (with("queue"), with("channel"));
    let own = queue.device[0].section::<ioat::Section>();
    assert!(own.is_some() && own == channel.device[0].section());
    assert_eq!(queue.device[0].model, "ioat");
    let file = from_strings(&["ioat,channels=3,driver=vfio"]).unwrap();
    assert_eq!(queues(&file.device[0]), 3);
    let sized = format!("{device}[[device.channel]]\nowner = \"host\"\nsize = 8\n");
    assert!(error(&sized).contains("channel 0 has no size"));
}

#[test]
fn a_value_is_what_its_key_asks_for() {
    let file = from_strings(&["dsa,vm=true", "edu,vm=7,dma_mask=0xffffffff"]).unwrap();
    assert_eq!(file.device[0].vm.as_deref(), Some("true"));
    assert_eq!(file.device[1].vm.as_deref(), Some("7"));
    let edu: &edu::Section = file.device[1].section().unwrap();
    assert_eq!(edu.dma_mask, 0xffff_ffff);
}

#[test]
fn a_wrong_key_lists_the_right_ones_of_the_model_the_nearest_first() {
    let found = sentence(&from_strings(&["dsa,queus=4"]).unwrap_err());
    assert!(
        found.contains("expected one of `queues`, `engines`"),
        "{found}"
    );
    assert!(!found.contains("channel"), "{found}");
    let found = sentence(&from_strings(&["disk"]).unwrap_err());
    assert!(
        found.ends_with("expected one of `dsa`, `ioat`, `edu`"),
        "{found}"
    );
}

#[test]
fn an_injection_that_cannot_be_is_refused_with_a_cause() {
    let device = "[[device]]\nmodel = \"edu\"\n[[inject]]\n";
    let with = |keys: &str| format!("{device}{keys}").parse::<MachineFile>();
    for keys in [
        "at = \"map\"\naction = \"fault\"\nnth = 3\n",
        "device = \"0000:6a:01.0\"\nat = \"descriptor\"\naction = \"delay\"\nms = 5\n",
        "device = \"0000:6a:01.0\"\nat = \"interrupt\"\naction = \"lose\"\nchance = 10\nseed = 7\n",
    ] {
        assert_eq!(with(keys).unwrap().inject.len(), 1, "{keys}");
    }
    for (keys, cause) in [
        (
            "at = \"map\"\naction = \"lose\"\n",
            "takes action = \"fault\"",
        ),
        (
            "at = \"descriptor\"\naction = \"fault\"\n",
            "needs a device",
        ),
        (
            "at = \"map\"\naction = \"fault\"\nnth = 0\n",
            "counts from 1",
        ),
        (
            "at = \"map\"\naction = \"fault\"\nseed = 1\n",
            "seed needs chance",
        ),
        ("at = \"map\"\naction = \"fault\"\nms = 1\n", "ms goes with"),
        ("at = \"map\"\naction = \"faul\"\n", "did you mean `fault`?"),
    ] {
        let found = sentence(&with(keys).unwrap_err());
        assert!(found.contains(cause), "{keys}: {found}");
    }
}

#[test]
fn device_strings_take_the_keys_of_the_file() {
    let file = from_strings(&["dsa,queues=4,driver=vfio", "dsa,vm=vm1"]).unwrap();
    assert_eq!(queues(&file.device[0]), 4);
    assert_eq!(file.device[0].address.unwrap().to_string(), "0000:6a:01.0");
    assert_eq!(file.device[1].address.unwrap().to_string(), "0000:6b:01.0");
    for (bad, cause) in [
        ("dsa,queus=4", "did you mean `queues`?"),
        ("dsa,queues", "key=value"),
        ("dsa,queues=1,queues=2", "twice"),
        ("", "unknown model"),
        ("ioatt", "did you mean `ioat`?"),
        ("ioat,chanels=2", "did you mean `channels`?"),
        ("ioat,channels=9", "queues must be 1"),
        ("dsa,queue=1", "expected a sequence"),
        ("ioat,max_transfer=4096", "it is a key of `dsa`"),
        ("dsa,queues=many", "invalid type: string \"many\""),
        ("edu,dma_mask=5", "must be 2^n - 1"),
    ] {
        let found = sentence(&from_strings(&[bad]).unwrap_err());
        assert!(found.contains(cause), "{bad}: {found}");
    }
}
