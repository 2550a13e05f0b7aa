//! The rule of errors that are said once: the `Display` of an error says its cause, or `source()` returns
//! it, never both. Whoever prints a chain (`{:#}` of anyhow) would print the cause twice.
//!
//! Errors are written with thiserror, so the rule is about the format of a variant and its fields.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use syn::{
    Attribute, Field, Fields,
    visit::{self, Visit},
};

use crate::workspace::read_dir;

/// Every variant below `folder` that says its cause twice, one sentence each. What cargo builds, and what
/// is hidden, does not count.
///
/// # Errors
/// If a file cannot be read or is no Rust.
pub fn said_twice(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in read_dir(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !name.starts_with('.') && !name.starts_with("target") {
                found.extend(said_twice(&path)?);
            }
        } else if name.ends_with(".rs") {
            let place = path.display();
            let text = fs::read_to_string(&path).with_context(|| format!("reading {place}"))?;
            let breaches = breaches(&text).with_context(|| format!("reading {place}"))?;
            let breaches = breaches.into_iter();
            found.extend(breaches.map(|name| format!("{place}: {name} says its source twice")));
        }
    }
    found.sort();
    Ok(found)
}

/// The names of variants in `text` that show the field that is their source.
fn breaches(text: &str) -> Result<Vec<String>> {
    let mut errors = Errors::default();
    errors.visit_file(&syn::parse_file(text)?);
    Ok(errors.found)
}

#[derive(Default)]
struct Errors {
    found: Vec<String>,
}

impl Errors {
    fn look(&mut self, name: &syn::Ident, attributes: &[Attribute], fields: &Fields) {
        let Some(format) = attributes.iter().find(|a| a.path().is_ident("error")) else {
            return;
        };
        let Ok(format) = format.meta.require_list() else {
            return;
        };
        let format = format.tokens.to_string();
        for (index, field) in fields.iter().enumerate() {
            let shown = match &field.ident {
                Some(ident) => ident.to_string(),
                None => index.to_string(),
            };
            if is_source(field) && shows(&format, &shown) {
                self.found.push(name.to_string());
            }
        }
    }
}

impl<'ast> Visit<'ast> for Errors {
    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.look(&variant.ident, &variant.attrs, &variant.fields);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.look(&item.ident, &item.attrs, &item.fields);
        visit::visit_item_struct(self, item);
    }
}

/// Whether thiserror returns the field from `source()`.
fn is_source(field: &Field) -> bool {
    let marked = |name| field.attrs.iter().any(|a| a.path().is_ident(name));
    marked("source") || marked("from") || field.ident.as_ref().is_some_and(|i| i == "source")
}

/// Whether a format of thiserror, with its arguments, shows `field`: as `{field}` or `{field:?}` in the
/// text, or as `.field` in an argument.
fn shows(format: &str, field: &str) -> bool {
    let ends = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
    ["{", "."].iter().any(|before| {
        let found = format.match_indices(before);
        let mut after = found.map(|(at, _)| format[at + 1..].trim_start());
        after.any(|rest| rest.strip_prefix(field).is_some_and(ends))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_that_shows_its_source_is_found_however_it_does_it() {
        let found = breaches(
            r#"
            enum Error {
                #[error("in the text: {0}")]
                Numbered(#[from] io::Error),
                #[error("in the text: {error:?}")]
                Named { path: PathBuf, #[source] error: io::Error },
                #[error("in an argument: {}", sentence(.0))]
                Argument(#[source] io::Error),
                #[error("by its name: {source}")]
                ByName { source: io::Error },
            }
            #[error("a struct: {0}")]
            struct Outer(#[source] Inner);
            "#,
        );
        let found = found.unwrap();
        assert_eq!(found, ["Numbered", "Named", "Argument", "ByName", "Outer"]);
    }

    #[test]
    fn a_variant_that_does_one_of_the_two_is_right() {
        let found = breaches(
            r#"
            enum Error {
                #[error(transparent)]
                Passed(#[from] io::Error),
                #[error("the source is another field than {0}")]
                Other(String, #[source] io::Error),
                #[error("the text alone: {0}")]
                Text(io::Error),
                #[error("number {10} is not 1")]
                Tenth(u8, #[source] io::Error),
                #[error("{errors} of them")]
                Count { errors: u8, #[source] error: io::Error },
            }
            "#,
        );
        assert_eq!(found.unwrap(), Vec::<String>::new());
    }
}
