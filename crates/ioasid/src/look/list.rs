//! What `ioasid ls` prints: a device a line, words in columns. Nothing has a blank in it, and `-` stands
//! for nothing, so that `awk` sees the same columns everywhere.

use std::fmt::Write as _;

use super::seen::{Seen, Vfio};

/// The heads of the columns.
const COLUMNS: [&str; 9] = [
    "DEVICE", "MODEL", "DRIVER", "VM", "GROUP", "PATH", "STATE", "PID", "PROGRAM",
];

/// Where a device of this name is opened.
const NODES: &str = "/dev/vfio/devices/";

/// The devices that a program may open, and those that it may not because the host drives them.
pub(crate) fn list(seen: &Seen) -> String {
    let mut rows = vec![COLUMNS.map(ToOwned::to_owned)];
    for device in &seen.devices {
        let names = [&device.address, &device.model, &device.driver];
        let opened = device.node.as_deref().zip(device.vfio.as_ref());
        rows.push(row(seen, names, device.vm.as_deref(), opened));
    }
    for mdev in &seen.mdevs {
        let driver = "vfio_mdev".to_owned();
        let names = [&mdev.uuid, &mdev.type_name, &driver];
        let opened = Some((mdev.node.as_str(), &mdev.vfio));
        rows.push(row(seen, names, mdev.vm.as_deref(), opened));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (word, width) in row.iter().zip(widths) {
            let _ = write!(line, "{word:width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn row(
    seen: &Seen,
    names: [&String; 3],
    vm: Option<&str>,
    opened: Option<(&str, &Vfio)>,
) -> [String; COLUMNS.len()] {
    let user = opened.and_then(|(node, _)| seen.user(node));
    let state = match opened {
        None => "host",
        Some((_, vfio)) if user.is_some() || vfio.open_files > 0 => "used",
        Some(_) => "free",
    };
    let [device, model, driver] = names.map(|name| word(name));
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
    [
        device,
        model,
        driver,
        vm.map_or("-".to_owned(), word),
        number(opened.map(|(_, vfio)| vfio.group)),
        opened.map_or("-".to_owned(), |(node, _)| format!("{NODES}{node}")),
        state.to_owned(),
        number(user.as_ref().and_then(|user| user.pid)),
        user.map_or("-".to_owned(), |user| word(&user.program)),
    ]
}

/// `text` as one word.
fn word(text: &str) -> String {
    match text {
        "" => "-".to_owned(),
        _ => text.replace(char::is_whitespace, "_"),
    }
}
