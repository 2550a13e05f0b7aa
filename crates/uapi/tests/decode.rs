//! Every ioctl says what it is about, and a field is what its bytes say.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeSet;

use ioasid_uapi::{
    decode::{self, Value, Way},
    ioctls,
    spec::{iommufd as iommu, vfio},
    table::{Argument, File, Row},
};
use zerocopy::IntoBytes;

/// Fields of a row's struct that count whatever the flags are.
fn fields(row: &Row) -> Vec<decode::Field> {
    match row.argument {
        Argument::Struct { fields, .. } => fields.to_vec(),
        Argument::None | Argument::Number(_) | Argument::Text => Vec::new(),
    }
}

#[test]
fn every_ioctl_decodes_to_its_name_and_its_fields() {
    for row in ioctls::all() {
        let call = decode::request(row.file, row.request, 0, &[0; 256]);
        assert_eq!(call.name, row.name);
        let text = call.to_string();
        assert!(text.starts_with(row.name), "{text}");
        if let Argument::Struct { size, fields, .. } = row.argument {
            assert!(size > 0 && !fields.is_empty(), "{row:?}");
            assert!(!call.fields.is_empty(), "{row:?}");
        }
    }
}

#[test]
fn the_fields_of_a_struct_are_apart_and_inside() {
    for row in ioctls::all() {
        let Argument::Struct { size, .. } = row.argument else {
            continue;
        };
        let mut bytes = BTreeSet::new();
        for field in fields(&row) {
            assert!(field.offset + field.width <= size, "{row:?} {field:?}");
            let place = (field.way != Way::Out, field.offset);
            // Some fields are one thing when they are asked for and another when they are answered.
            let half = field.name == "op" || field.name == "feature";
            assert!(
                bytes.insert((place, field.name)) || half,
                "{row:?} {field:?}"
            );
        }
    }
}

#[test]
fn what_is_written_into_a_field_is_read_from_it() {
    for row in ioctls::all() {
        let Argument::Struct { size, .. } = row.argument else {
            continue;
        };
        for field in fields(&row) {
            let mut bytes = vec![0; size];
            if let Some((flags, mask)) = field.when {
                let mask = u32::try_from(mask).unwrap();
                bytes[flags..flags + 4].copy_from_slice(&mask.to_le_bytes());
            }
            field.write(&mut bytes, 1);
            let call = match field.way {
                Way::Out => decode::reply(row.file, row.request, &bytes),
                Way::In | Way::Both => decode::request(row.file, row.request, 0, &bytes),
            };
            let value = call
                .get(field.name)
                .unwrap_or_else(|| panic!("{row:?} {field:?}"));
            // The operation of a feature shares its bytes with the number.
            let expected = if field.name == "op" && row.name == "FEATURE" {
                0
            } else {
                1
            };
            assert_eq!(value.number(), Some(expected), "{row:?} {field:?}");
        }
    }
}

#[test]
fn a_number_that_no_ioctl_has_is_shown() {
    let call = decode::request(File::Iommufd, 0x3bff, 0x1000, &[]);
    assert_eq!(call.to_string(), "ioctl(0x3bff) arg=0x1000");
}

#[test]
fn a_struct_that_cannot_be_read_leaves_its_address() {
    let call = decode::request(File::Iommufd, 0x3b80, 0x1000, &[]);
    assert_eq!(call.to_string(), "DESTROY arg=0x1000");
}

#[test]
fn the_usual_size_is_left_out_and_another_one_is_not() {
    let mut destroy = iommu::Destroy { size: 8, id: 3 };
    let text = |destroy: iommu::Destroy| {
        decode::request(File::Iommufd, 0x3b80, 0, destroy.as_bytes()).to_string()
    };
    assert_eq!(text(destroy), "DESTROY id=3");
    destroy.size = 4;
    assert_eq!(text(destroy), "DESTROY id=3 size=4");
}

#[test]
fn eventfds_of_interrupts_are_listed() {
    let mut bytes = vfio::IrqSet {
        argsz: 28,
        flags: vfio::IrqSet::DATA_EVENTFD | vfio::IrqSet::ACTION_TRIGGER,
        index: 2,
        start: 0,
        count: 2,
    }
    .as_bytes()
    .to_vec();
    bytes.extend([7i32, -1].iter().flat_map(|fd| fd.to_le_bytes()));
    let request = vfio::DEVICE_SET_IRQS;
    assert_eq!(decode::length(File::Device, request, &bytes), 28);
    let call = decode::request(File::Device, request, 0, &bytes);
    let fds = Value::List(vec![Value::Signed(7), Value::Signed(-1)]);
    assert_eq!(call.get("fds"), Some(&fds));
    assert!(
        call.to_string().contains("index=MSIX start=0 count=2 "),
        "{call}"
    );
}

#[test]
fn what_an_ioctl_answers_is_apart_from_what_it_was_asked() {
    let alloc = iommu::IoasAlloc {
        size: 12,
        flags: 0,
        out_ioas_id: 5,
    };
    let asked = decode::request(File::Iommufd, 0x3b81, 0, alloc.as_bytes());
    assert_eq!(asked.to_string(), "IOAS_ALLOC flags=0");
    let answered = decode::reply(File::Iommufd, 0x3b81, alloc.as_bytes());
    assert_eq!(answered.to_string(), "IOAS_ALLOC ioas=5");
}
