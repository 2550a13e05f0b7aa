//! The documents of the repository.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().expect("the workspace is there")
}

fn documents() -> Vec<PathBuf> {
    let listings = [root(), root().join("docs")].map(|dir| fs::read_dir(dir).expect("a directory"));
    let paths = listings
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok());
    let mut paths: Vec<_> = paths.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    paths
}

/// What stands in `](...)` of a Markdown text, outside of code blocks.
fn links(text: &str) -> Vec<String> {
    let outside = text.split("```").step_by(2);
    let after = outside.flat_map(|prose| prose.split("](").skip(1));
    let links = after.filter_map(|rest| rest.split_once(')'));
    links.map(|(link, _)| link.to_owned()).collect()
}

#[test]
fn every_link_to_a_file_leads_to_one() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a text");
        for link in links(&text) {
            let path = link.split('#').next().unwrap_or_default();
            let elsewhere = path.is_empty() || path.contains("://") || path.starts_with("mailto:");
            let from = document.parent().expect("a document lies in a directory");
            if !elsewhere && !from.join(path).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
}
