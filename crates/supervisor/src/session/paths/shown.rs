//! What a program tree has been shown of the machine.

use std::collections::{BTreeSet, HashMap};

use crate::{
    session::machine::Machine,
    view::{SysfsEntry, SysfsKind},
    wire::Description,
};

/// What a program has been shown.
#[derive(Debug)]
pub(crate) struct Shown {
    generation: u64,
    description: Description,
    /// The permissions of files below `/sys`, and whether a write to them does something. By the
    /// last name, so that nearly every path is known not to be one of them.
    files: HashMap<Vec<u8>, Vec<ShownFile>>,
}

/// A file that a program finds in `/sys`.
#[derive(Clone, Debug)]
pub(crate) struct ShownFile {
    /// Below `/sys`.
    pub(crate) path: String,
    /// Permissions.
    pub(crate) mode: u16,
    /// A write is carried out.
    pub(crate) is_built: bool,
}

impl Shown {
    /// What a program of `vm` finds when it starts.
    pub(crate) fn new(machine: &Machine) -> Self {
        // A change meanwhile is brought in once more.
        let generation = machine.view.generation();
        let description = machine.describe();
        let built: BTreeSet<_> = machine.attributes().into_iter().collect();
        let mut files: HashMap<_, Vec<_>> = HashMap::new();
        for entry in &description.sysfs {
            if let SysfsKind::File(file) = &entry.kind {
                let name = entry.path.rsplit('/').next().unwrap_or_default();
                let shown = ShownFile {
                    path: entry.path.clone(),
                    mode: file.mode,
                    is_built: built.contains(&entry.path),
                };
                files.entry(name.into()).or_default().push(shown);
            }
        }
        Shown {
            generation,
            description,
            files,
        }
    }

    /// The machine's generation that it was made from.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    /// What is added to `/sys`.
    pub(crate) fn sysfs(&self) -> &[SysfsEntry] {
        &self.description.sysfs
    }

    /// The machine's files below `/sys` whose last name is that of `path`.
    pub(crate) fn files_named_as(&self, path: &[u8]) -> &[ShownFile] {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        self.files.get(name).map_or(&[], Vec::as_slice)
    }
}
