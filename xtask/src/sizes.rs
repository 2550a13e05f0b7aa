//! The rule of short files: none of Rust is longer than [`LONGEST`]. Clippy watches over functions.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::workspace::read_dir;

/// Lines that a file may have.
pub const LONGEST: usize = 600;

/// Every file of Rust below `folder` that is longer, one sentence each. What cargo builds, and what is
/// hidden, does not count.
///
/// # Errors
/// If a file cannot be read.
pub fn too_long(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in read_dir(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !name.starts_with('.') && !name.starts_with("target") {
                found.extend(too_long(&path)?);
            }
        } else if name.ends_with(".rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let lines = text.lines().count();
            if lines > LONGEST {
                found.push(format!("{} has {lines} lines", path.display()));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_found_wherever_it_is_and_what_is_built_is_not() {
        let folder = tempfile::tempdir().unwrap();
        for (path, lines) in [
            ("src/long.rs", LONGEST + 1),
            ("src/short.rs", LONGEST),
            ("target/built.rs", LONGEST + 1),
            ("notes.txt", LONGEST + 1),
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "//\n".repeat(lines)).unwrap();
        }
        let found = too_long(folder.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].ends_with("src/long.rs has 601 lines"), "{found:?}");
    }
}
