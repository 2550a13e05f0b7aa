//! Files of sysfs that follow the registers of a function, and whether it is in use.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use ioasid_vfio::{
    AttributeError, DeviceModel, VfioDevice,
    pci::{ConfigEffect, FunctionWatch},
};

use crate::sysfs::SysfsFile;

/// A file of sysfs whose bytes change without anybody writing to it.
#[derive(Clone)]
pub struct LiveFile {
    path: String,
    what: What,
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// `config`: all of configuration space.
    Config,
    /// `power_state`.
    Power,
    /// `enable`: how often the function is enabled.
    Enable,
}

/// What the bytes come from: a function.
#[derive(Clone)]
pub(super) enum Source {
    /// A function that programs can open.
    Node(Arc<VfioDevice>),
    /// A function that the host's driver uses.
    Host(Arc<dyn DeviceModel>),
}

impl Source {
    pub(super) fn model(&self) -> &Arc<dyn DeviceModel> {
        match self {
            Source::Node(node) => node.model(),
            Source::Host(model) => model,
        }
    }
}

impl LiveFile {
    /// `config` of a device, at `path` below `/sys`.
    pub fn config(path: impl Into<String>, device: &Arc<VfioDevice>) -> Self {
        LiveFile {
            path: path.into(),
            what: What::Config,
            source: Source::Node(Arc::clone(device)),
        }
    }

    /// All files of the function in the directory `directory`.
    pub(super) fn of(directory: &str, source: &Source) -> [Self; 3] {
        let file = |name: &str, what| LiveFile {
            path: format!("{directory}/{name}"),
            what,
            source: source.clone(),
        };
        [
            file("config", What::Config),
            file("power_state", What::Power),
            file("enable", What::Enable),
        ]
    }

    /// Where it is, below `/sys`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its name in the directory of its function, and the file as it is now.
    pub(super) fn entry(&self) -> (String, SysfsFile) {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        let file = match self.what {
            What::Config | What::Enable => SysfsFile::writable(self.read()),
            What::Power => SysfsFile::read_only(self.read()),
        };
        (name.to_owned(), file)
    }

    /// What is in it now.
    pub fn read(&self) -> Vec<u8> {
        let function = self.source.model().function();
        match self.what {
            What::Config => function.host_config(),
            What::Power if function.is_awake() => b"D0\n".to_vec(),
            What::Power => b"D3hot\n".to_vec(),
            What::Enable => match &self.source {
                // vfio-pci enables it while it is open.
                Source::Node(node) if !node.is_bound() => b"0\n".to_vec(),
                Source::Node(_) | Source::Host(_) => b"1\n".to_vec(),
            },
        }
    }

    /// Whether it is of a function that the host's driver has.
    pub(super) fn is_host(&self) -> bool {
        matches!(self.source, Source::Host(_))
    }

    /// Whether what is written is for a place in it, and not all of it.
    pub fn has_places(&self) -> bool {
        matches!(self.what, What::Config)
    }

    /// Writes `data` at `offset`; returns how many bytes lie in the file (`pci_write_config`,
    /// drivers/pci/pci-sysfs.c).
    ///
    /// # Errors
    /// [`AttributeError::NotWritable`] if the file has no places.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<usize, AttributeError> {
        if !self.has_places() {
            return Err(AttributeError::NotWritable);
        }
        let function = self.source.model().function();
        let rest = function.config_size().saturating_sub(offset);
        let len = data.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        let data = data.get(..len).unwrap_or_default();
        if data.is_empty() {
            return Ok(0);
        }
        match &self.source {
            Source::Node(node) => node.write_config_by_host(offset, data)?,
            Source::Host(model) => {
                if function.write_config(offset, data)? == ConfigEffect::Reset {
                    model.reset();
                }
            }
        }
        Ok(len)
    }

    /// Lets `watcher` know when there may be something else in it, as long as it lives.
    pub fn watch(&self, watcher: Weak<dyn FunctionWatch>) {
        self.source.model().function().watch(watcher);
    }
}

impl fmt::Debug for LiveFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveFile")
            .field("path", &self.path)
            .field("what", &self.what)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Node(node) => node.fmt(f),
            Source::Host(model) => model.fmt(f),
        }
    }
}
