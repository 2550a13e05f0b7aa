//! What a machine adds to `/sys`, as a tree.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use crate::view::{SysfsEntry, SysfsFile, SysfsKind};

/// An entry whose path cannot be one below `/sys`, or that is there twice.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine describes a sysfs entry that cannot be: {0}")]
pub struct InvalidEntry(pub String);

/// Our entries as a tree.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tree {
    /// A directory. One that the host has too is merged with it.
    Dir(BTreeMap<String, Tree>),
    /// A file.
    File(SysfsFile),
    /// A symbolic link with this target.
    Link(String),
}

/// Makes the tree, parents included.
pub(crate) fn plant(entries: &[SysfsEntry]) -> Result<BTreeMap<String, Tree>, InvalidEntry> {
    let mut root = BTreeMap::new();
    for entry in entries {
        let refuse = || InvalidEntry(entry.path.clone());
        let mut parts: Vec<&str> = entry.path.split('/').collect();
        if parts
            .iter()
            .any(|p| p.is_empty() || *p == "." || *p == ".." || p.contains('\0'))
        {
            return Err(refuse());
        }
        let name = parts.pop().ok_or_else(refuse)?;
        let mut directory = &mut root;
        for part in parts {
            let child = directory
                .entry(part.to_owned())
                .or_insert_with(|| Tree::Dir(BTreeMap::new()));
            let Tree::Dir(children) = child else {
                return Err(refuse());
            };
            directory = children;
        }
        let new = match &entry.kind {
            SysfsKind::Dir => Tree::Dir(BTreeMap::new()),
            SysfsKind::File(file) => Tree::File(file.clone()),
            SysfsKind::Link(target) => Tree::Link(target.clone()),
        };
        match directory.get(name) {
            None => {
                directory.insert(name.to_owned(), new);
            }
            // Announced after its children, or twice: the same directory.
            Some(Tree::Dir(_)) if new == Tree::Dir(BTreeMap::new()) => {}
            Some(_) => return Err(refuse()),
        }
    }
    Ok(root)
}

/// Makes the file of an entry, with its permissions whatever the umask says.
pub(crate) fn write_file(path: &Path, entry: &SysfsFile) -> io::Result<()> {
    create_file(path, entry, 0o600)?.set_permissions(Permissions::from_mode(entry.mode.into()))
}

/// Makes the file of an entry with permissions of `mode` that the umask allows.
pub(crate) fn create_file(path: &Path, entry: &SysfsFile, mode: u16) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(mode.into());
    let mut file = options.open(path)?;
    if !entry.bytes.is_empty() {
        file.write_all(&entry.bytes)?;
    }
    if entry.size > entry.bytes.len() as u64 {
        file.set_len(entry.size)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> SysfsEntry {
        SysfsEntry {
            path: path.to_owned(),
            kind: SysfsKind::File(SysfsFile::read_only("x\n")),
        }
    }

    fn dir(path: &str) -> SysfsEntry {
        SysfsEntry {
            path: path.to_owned(),
            kind: SysfsKind::Dir,
        }
    }

    #[test]
    fn parents_come_by_themselves_in_any_order() {
        let a = plant(&[file("devices/a/vendor"), dir("devices/a"), dir("devices")]).unwrap();
        let b = plant(&[dir("devices"), dir("devices/a"), file("devices/a/vendor")]).unwrap();
        assert_eq!(a, b);
    }

    #[test]
    fn an_entry_outside_of_sys_or_twice_is_refused() {
        for entries in [
            vec![file("../etc/passwd")],
            vec![file("/etc/passwd")],
            vec![file("a//b")],
            vec![file("")],
            vec![file("a"), file("a")],
            vec![file("a"), file("a/b")],
            vec![file("a/b"), file("a")],
        ] {
            assert!(plant(&entries).is_err(), "{entries:?}");
        }
    }
}
