use std::path::Path;

use serde_json::{Value, json};

use super::Line;

fn document() -> Value {
    let schema = schemars::schema_for!(Line);
    let mut schema = serde_json::to_value(schema).expect("a schema is JSON");
    let title = "One line of a trace of ioasid, schema 1. The first line is a header.";
    schema["title"] = title.into();
    schema
}

/// With `IOASID_WRITE_SCHEMA` in the environment the document is written instead.
#[test]
fn the_schema_document_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/trace.schema.json");
    let text = format!("{:#}\n", document());
    if std::env::var_os("IOASID_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, &text).expect("the document can be written");
    }
    let written = std::fs::read_to_string(&path).expect("the document is there");
    assert!(written == text, "write it with IOASID_WRITE_SCHEMA=1");
}

#[test]
fn a_line_that_the_schema_does_not_know_is_refused_by_the_document_too() {
    let validator = jsonschema::validator_for(&document()).expect("a schema");
    let good = json!({
        "kind": "map", "t": 5, "domain": 1, "iova": "0x1000", "last": "0x1fff", "prot": "rw",
    });
    assert!(validator.is_valid(&good));
    for (field, value) in [
        ("kind", json!("mapping")),
        ("iova", json!(4096)),
        ("iova", json!("4096")),
        ("last", json!("0x1FFF")),
        ("domain", json!("1")),
        ("t", json!(-1)),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        assert!(!validator.is_valid(&bad), "{bad}");
    }
}

#[test]
fn the_words_for_kinds_are_those_that_are_written() {
    let document = document();
    let variants = document["oneOf"].as_array().expect("kinds");
    let written: Vec<_> = variants
        .iter()
        .filter_map(|kind| kind["properties"]["kind"]["const"].as_str())
        .collect();
    assert_eq!(written, Line::KINDS);
}
