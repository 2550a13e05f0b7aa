//! Every cause of a refusal explains itself: one sentence, its own, with the values of its rule. The
//! causes are those of the errno tables; `docs/errors.md` shows each of them.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod iommufd;
mod request;
mod sample;
mod vfio;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use sample::Sample;

fn samples() -> Vec<Sample> {
    let mut all = request::samples();
    all.extend(iommufd::samples());
    all.extend(vfio::samples());
    all
}

/// What the errno tables call an enum of another crate.
const ALIASES: &[(&str, &str, &str)] = &[
    ("TableError", "pgtable", "MapError"),
    ("DomainError", "iommu", "AttachError"),
];

/// Enums of which every variant holds another error, which speaks for itself.
const WRAPPERS: &[(&str, &str)] = &[
    ("request", "CallError"),
    ("iommufd", "Error"),
    ("vfio", "Error"),
];

/// The causes in one errno table, as crate, enum and variant.
fn causes(table: &str, text: &str) -> BTreeSet<(String, String, String)> {
    let mut found = BTreeSet::new();
    let code = text.lines().map(|line| line.split("//").next().unwrap());
    for word in code.flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || c == ':'))) {
        let Some((name, variant)) = word.split_once("::") else {
            continue;
        };
        if matches!(name, "Errno" | "Operation" | "") || variant.is_empty() {
            continue;
        }
        let is_type = name.ends_with("Error") || name == "Refusal";
        if !is_type || WRAPPERS.contains(&(table, name)) || variant == "from" {
            continue;
        }
        let alias = ALIASES.iter().find(|(alias, ..)| *alias == name);
        let home = match table {
            "request" => "uapi",
            table => table,
        };
        let (home, name) = alias.map_or((home, name), |(_, home, name)| (*home, *name));
        found.insert((home.to_owned(), name.to_owned(), variant.to_owned()));
    }
    found
}

fn crate_path(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

#[test]
fn every_cause_of_the_errno_tables_has_a_sample_here() {
    let mut wanted = BTreeSet::new();
    for table in ["core", "iommufd", "request", "vfio"] {
        let path = crate_path(&format!("src/errno/{table}.rs"));
        wanted.extend(causes(table, &std::fs::read_to_string(path).unwrap()));
    }
    let have: BTreeSet<_> = samples().iter().map(Sample::key).collect();
    let missing: Vec<_> = wanted.difference(&have).collect();
    assert!(missing.is_empty(), "no sample of {missing:#?}");
    assert!(wanted.len() > 150, "the tables were read: {}", wanted.len());
}

#[test]
fn every_explanation_is_one_sentence_of_its_own() {
    let mut seen: BTreeMap<(String, String), String> = BTreeMap::new();
    for sample in samples() {
        let text = &sample.text;
        assert!(text.trim() == text && text.len() > 10, "{sample:?}");
        assert!(!text.contains('\n') && !text.ends_with('.'), "{sample:?}");
        let (home, name, variant) = sample.key();
        let before = seen.insert((format!("{home}::{name}"), text.clone()), variant.clone());
        let same = before.as_ref().is_none_or(|before| *before == variant);
        assert!(same, "{variant} says what {before:?} says: {text}");
    }
}

/// Values that an explanation need not repeat, since the call itself shows them, or since another value
/// says the same.
const SAID_OTHERWISE: &[(&str, &str, &str)] = &[
    // The range is that of the call; the device is said by its address.
    ("iommufd", "MapError", "Reserved"),
    ("iommufd", "RangeError", "Mapped"),
    ("iommufd", "RangeError", "Allowed"),
    // The number of a descriptor, not what it stands for.
    ("uapi", "RequestError", "FeatureWay"),
    // The last PASID is one less than how many there are.
    ("iommufd", "AttachError", "NoSuchPasid"),
    // How much was copied before is no part of the rule.
    ("iommufd", "AccessError", "MemoryGone"),
    // In milliseconds.
    ("vfio", "RegionError", "NoAnswer"),
];

#[test]
fn every_explanation_has_the_values_of_its_rule() {
    for sample in samples() {
        let (home, name, variant) = sample.key();
        if SAID_OTHERWISE.contains(&(&home, &name, &variant)) {
            continue;
        }
        for value in sample.values() {
            let (decimal, hex) = (value.to_string(), format!("{value:#x}"));
            let said = sample.text.contains(&decimal) || sample.text.contains(&hex);
            assert!(
                said,
                "{home}::{name}::{variant} does not say {decimal}: {sample:?}"
            );
        }
    }
}

/// The document, as the samples make it.
fn document() -> String {
    let mut by_errno: BTreeMap<(i32, String), BTreeMap<(String, String), String>> = BTreeMap::new();
    for sample in samples() {
        let (home, name, variant) = sample.key();
        let errno = (sample.errno.get(), sample.errno.to_string());
        let cause = format!("`{home}` {name}::{variant}");
        let causes = by_errno.entry(errno).or_default();
        causes.insert((cause, sample.text.clone()), sample.text);
    }
    let mut text = HEAD.to_owned();
    for ((number, name), causes) in by_errno {
        writeln!(text, "\n## {name} ({number})\n").unwrap();
        writeln!(text, "| explanation | cause |\n|---|---|").unwrap();
        for ((cause, _), sentence) in causes {
            let sentence = sentence.replace('|', "\\|");
            writeln!(text, "| {sentence} | {cause} |").unwrap();
        }
    }
    text
}

const HEAD: &str = "\
# Why a call is refused

Every cause of a refusal that `ioasid run --explain` can name, by errno, with example values. The
sentences are the errors' own: `cargo test -p ioasid-uapi --test explanations` fails if a cause has none,
or if this page is not what the errors say; with `IOASID_WRITE_DOCS=1` in its environment it writes the
page anew. The cause is the crate, the error and its variant, to look for in the source. What to do about a
refusal: [why a call failed](how-to/why-a-call-failed.md).
";

#[test]
fn the_document_shows_every_explanation() {
    let path = crate_path("../../docs/errors.md");
    let text = document();
    if std::env::var_os("IOASID_WRITE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    for (found, wanted) in found.lines().zip(text.lines()) {
        assert_eq!(found, wanted, "IOASID_WRITE_DOCS=1 writes it anew");
    }
    assert_eq!(found.lines().count(), text.lines().count());
}

#[test]
fn a_cause_without_a_sample_is_found() {
    let table =
        "impl From<NewError> for Errno { match error { NewError::Odd { .. } => Errno::EIO } }";
    let found = causes("vfio", table);
    let key = ["vfio", "NewError", "Odd"].map(str::to_owned);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [key.into()]);
}
