//! The tables of `docs/ioctls.md` say what the dispatch tables do.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::{collections::BTreeMap, path::Path};

use ioasid_uapi::{ioctls, table::Row};

/// Heading, number and name of a row.
type Key = (String, u32, String);

/// Every row of a document's tables, and what it says of it.
fn rows(document: &str) -> BTreeMap<Key, String> {
    let mut rows = BTreeMap::new();
    let mut heading = "";
    for line in document.lines() {
        heading = line.strip_prefix("## ").unwrap_or(heading);
        if !line.starts_with("| 0x") {
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [number, name, works, _] = cells[..] else {
            panic!("four cells in {line:?}");
        };
        let number = u32::from_str_radix(number.trim_start_matches("0x"), 16).unwrap();
        let key = (heading.to_owned(), number, name.to_owned());
        let again = rows.insert(key, works.to_owned());
        assert_eq!(again, None, "{name} is there once");
    }
    rows
}

fn expected(row: &Row) -> (Key, String) {
    let name = format!("{}{}", row.file.prefix(), row.name);
    let key = (row.file.heading().to_owned(), row.request, name);
    (key, row.support.word().to_owned())
}

#[test]
fn the_document_has_every_ioctl_and_no_other() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/ioctls.md");
    let document = std::fs::read_to_string(path).unwrap();
    let dispatched: BTreeMap<_, _> = ioctls::all().iter().map(expected).collect();
    assert_eq!(rows(&document), dispatched);
}

#[test]
fn every_command_of_linux_is_dispatched_or_named_as_missing() {
    // include/uapi/linux/{iommufd,vfio}.h: 21 commands of /dev/iommu, 6 of a container on it, 7 of a
    // container, 4 of a group, and those of devices.
    let rows = ioctls::all();
    assert_eq!(rows.len(), 21 + 6 + 7 + 4 + 14);
}

#[test]
#[should_panic(expected = "is there once")]
fn a_row_that_is_there_twice_is_found() {
    rows("| 0x3b80 | A | yes | |\n| 0x3b80 | A | no | |");
}
