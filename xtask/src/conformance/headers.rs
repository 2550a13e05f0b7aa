//! The kernel's user-space headers that are newer than the machine's, as programs see them.
//!
//! Only `linux/*.h` that a test asks for and what those include; the rest of the machine's headers
//! stay in use. `make headers_install` does the same for all of them, but wants the whole source.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Written into installed headers' lines: words that mean something to the kernel's compiler only.
const DROPPED: [&str; 4] = ["__user", "__force", "__iomem", "__attribute_const__"];

/// Installs `wanted` (such as `linux/iommufd.h`) of `uapi` and what they include below `target`.
pub(crate) fn install(uapi: &Path, wanted: &[&str], target: &Path) -> Result<()> {
    let mut waiting: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    let mut done = BTreeSet::new();
    while let Some(name) = waiting.pop() {
        if !done.insert(name.clone()) {
            continue;
        }
        let path = uapi.join(&name);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let present =
            |include: &String| include.starts_with("linux/") && uapi.join(include).exists();
        waiting.extend(includes(&text).filter(present));
        let place = target.join(&name);
        let parent = place.parent().map_or_else(PathBuf::new, Path::to_owned);
        fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
        fs::write(&place, exported(&text))
            .with_context(|| format!("writing {}", place.display()))?;
    }
    Ok(())
}

/// The files that `text` includes by `<...>`.
fn includes(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| {
        let rest = line.trim().strip_prefix("#include <")?;
        Some(rest.split_once('>')?.0.to_owned())
    })
}

/// `text` as a program may include it.
fn exported(text: &str) -> String {
    let mut exported = String::with_capacity(text.len());
    for line in text.lines() {
        if line.starts_with("#include <linux/compiler") || line.starts_with("#warning") {
            continue;
        }
        for (word, is_name) in pieces(line) {
            match word {
                _ if !is_name => exported.push_str(word),
                "__packed" => exported.push_str("__attribute__((packed))"),
                _ if DROPPED.contains(&word) && !line.starts_with('#') => {}
                _ => exported.push_str(word),
            }
        }
        exported.push('\n');
    }
    exported
}

/// `line` in pieces: names and what stands between them.
fn pieces(line: &str) -> impl Iterator<Item = (&str, bool)> {
    let in_name = |character: char| character == '_' || character.is_ascii_alphanumeric();
    let mut rest = line;
    std::iter::from_fn(move || {
        let is_name = in_name(rest.chars().next()?);
        let end = rest.find(|character| in_name(character) != is_name);
        let (piece, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        Some((piece, is_name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_for_the_kernel_are_dropped() {
        let text = "#include <linux/compiler.h>\n#include <linux/types.h>\n#define __user\nstruct s { void __user *p; } __packed;\n";
        assert_eq!(
            exported(text),
            "#include <linux/types.h>\n#define __user\nstruct s { void  *p; } __attribute__((packed));\n"
        );
    }

    #[test]
    fn includes_are_followed() {
        let text = "#include <linux/types.h>\n# not this <a.h>\n#include <asm/b.h>\n";
        assert_eq!(
            includes(text).collect::<Vec<_>>(),
            ["linux/types.h", "asm/b.h"]
        );
    }
}
