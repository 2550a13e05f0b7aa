//! A machine that `ioasid_machine` has built, as programs see it.

use std::{fmt, fs, sync::Arc};

use ioasid_core::{
    inspect::{Inspect, Node},
    spa::SpaSpace,
};
use ioasid_iommu::DmaWatcher;
use ioasid_iommufd::Context;
use ioasid_machine::{Machine, MachineError};
use ioasid_trace::Recorder;
use ioasid_uapi::iommufd::Extension;
use ioasid_vfio::AttributeError;

use crate::view::{
    InjectRequest, LiveFile, MachineView, MdevRequest, SysfsEntry, SysfsFile, SysfsKind, VfioNode,
};

/// A machine, with what a program of ours adds to it.
pub struct BuiltMachine {
    machine: Arc<Machine>,
    /// What offers it to virtual machines, for the tree that `inspect` shows.
    vfio_user: Option<Arc<dyn Inspect + Send + Sync>>,
    harness: Option<Harness>,
    recorder: Option<Arc<Recorder>>,
}

/// What a test of the kernel's own needs beside a machine.
pub struct Harness {
    /// The command that it adds to those of `/dev/iommu`.
    pub extension: Arc<dyn Extension>,
    /// A folder below `/sys`, and the files in it that the test sets: what each has, with a newline.
    /// It stays what it is, and nothing else can be written.
    pub files: (&'static str, &'static [(&'static str, &'static str)]),
}

impl BuiltMachine {
    /// `machine` alone. The processors of this host are near its devices.
    pub fn new(machine: &Arc<Machine>) -> Self {
        let list = |name: &str| fs::read_to_string(format!("/sys/devices/system/cpu/{name}"));
        if let (Ok(online), Ok(possible)) = (list("online"), list("possible")) {
            machine.set_processors(&online, &possible);
        }
        BuiltMachine {
            machine: Arc::clone(machine),
            vfio_user: None,
            harness: None,
            recorder: None,
        }
    }

    /// A device for a VM that nothing else belongs to would be one that no program can reach.
    fn known_vm(&self, vm: &str) -> Result<(), String> {
        if self.machine.has_vm(vm) {
            return Ok(());
        }
        let known = self.machine.vms();
        Err(match &known[..] {
            [] => format!("the machine has no vm `{vm}`: nothing in it belongs to a vm"),
            _ => format!("the machine has no vm `{vm}`; it has {}", known.join(", ")),
        })
    }

    /// Shows `server`, which offers the machine to virtual machines, in its tree.
    #[must_use]
    pub fn with_vfio_user(mut self, server: Arc<dyn Inspect + Send + Sync>) -> Self {
        self.vfio_user = Some(server);
        self
    }

    /// Tells `recorder` the calls of programs.
    #[must_use]
    pub fn with_recorder(mut self, recorder: Option<Arc<Recorder>>) -> Self {
        self.recorder = recorder;
        self
    }

    /// Adds what a test of the kernel's own needs.
    #[must_use]
    pub fn with_harness(mut self, harness: Harness) -> Self {
        self.harness = Some(harness);
        self
    }
}

impl Harness {
    /// Its files with what they hold, by their paths below `/sys`.
    fn paths(&self) -> impl Iterator<Item = (String, &'static str)> {
        let (folder, files) = self.files;
        files
            .iter()
            .map(move |(name, value)| (format!("{folder}/{name}"), *value))
    }

    /// Writes to `path`, if it is in the folder.
    fn write(&self, path: &str, data: &[u8]) -> Option<Result<(), AttributeError>> {
        path.strip_prefix(self.files.0)?.strip_prefix('/')?;
        let known = self.paths().find(|(known, _)| known == path);
        let same = |value: &str| value.trim_end().as_bytes() == data.trim_ascii_end();
        Some(match known {
            Some((_, value)) if same(value) => Ok(()),
            Some(_) => Err(AttributeError::NotBuilt),
            None => Err(AttributeError::NotWritable),
        })
    }
}

impl MachineView for BuiltMachine {
    fn name(&self) -> &str {
        self.machine.name()
    }

    fn new_context(&self) -> Arc<Context> {
        self.machine.new_context()
    }

    fn extension(&self) -> Option<&dyn Extension> {
        Some(&*self.harness.as_ref()?.extension)
    }

    fn recorder(&self) -> Option<Arc<Recorder>> {
        self.recorder.clone()
    }

    fn injects_faults(&self) -> bool {
        self.harness.is_some()
    }

    fn nodes(&self, vm: Option<&str>) -> Vec<VfioNode> {
        self.machine.nodes(vm)
    }

    fn sysfs(&self, vm: Option<&str>) -> Vec<SysfsEntry> {
        let mut entries = self.machine.sysfs(vm);
        let files = self.harness.iter().flat_map(Harness::paths);
        entries.extend(files.map(|(path, value)| SysfsEntry {
            path,
            kind: SysfsKind::File(SysfsFile::writable(value)),
        }));
        entries
    }

    fn space(&self) -> Arc<SpaSpace> {
        Arc::clone(self.machine.iommu().space())
    }

    fn watch_refused_dma(&self, watcher: &Arc<dyn DmaWatcher>) {
        self.machine.iommu().watch_refused_dma(watcher);
    }

    fn inspect(&self) -> Node {
        let vfio_user = self.vfio_user.as_ref().map(|server| server.inspect());
        self.machine.inspect().with("vfio_user", vfio_user)
    }

    fn has_vm(&self, vm: &str) -> bool {
        self.machine.has_vm(vm)
    }

    fn generation(&self) -> u64 {
        self.machine.generation()
    }

    fn live_files(&self, vm: Option<&str>) -> Vec<LiveFile> {
        self.machine.live_files(vm)
    }

    fn attributes(&self, vm: Option<&str>) -> Vec<String> {
        let mut attributes = self.machine.writable_attributes(vm);
        let files = self.harness.iter().flat_map(Harness::paths);
        attributes.extend(files.map(|(path, _)| path));
        attributes
    }

    fn write_attribute(
        &self,
        vm: Option<&str>,
        path: &str,
        data: &[u8],
    ) -> Result<(), AttributeError> {
        let harness = self.harness.as_ref();
        if let Some(written) = harness.and_then(|harness| harness.write(path, data)) {
            return written;
        }
        self.machine.write_attribute(vm, path, data)
    }

    fn mdev(&self, request: &MdevRequest) -> Result<Node, String> {
        match request {
            MdevRequest::Create {
                parent,
                kind,
                uuid,
                vm,
            } => {
                let types = self.machine.mdev_types_of(parent);
                let kind = match (kind, &types[..]) {
                    (Some(kind), _) | (None, [kind]) => kind,
                    (None, []) => return Err(format!("{parent} is no parent of such devices")),
                    (None, _) => return Err(format!("{parent} has several types: name one")),
                };
                if let Some(vm) = vm {
                    self.known_vm(vm)?;
                }
                let created = self.machine.create_mdev(parent, kind, uuid, vm.clone());
                let created = created.map_err(|error| sentence(&error))?;
                return Ok(Node::new().with("uuid", created.uuid.to_string()));
            }
            MdevRequest::Remove { uuid } => {
                let removed = self.machine.remove_mdev(uuid);
                removed.map_err(|error| sentence(&error))?;
            }
            MdevRequest::List => {}
        }
        Ok(self.machine.inspect_mdevs())
    }

    fn inject(&self, request: &InjectRequest) -> Result<(), String> {
        match request {
            InjectRequest::Later(section) => {
                let asked = self.machine.inject(section);
                asked.map_err(|error| error.to_string())
            }
            InjectRequest::Now { device, action } => self.machine.act(device, *action),
        }
    }
}

/// An error with its sources.
fn sentence(error: &MachineError) -> String {
    let first: Option<&dyn std::error::Error> = Some(error);
    let sources = std::iter::successors(first, |error| error.source());
    let sources: Vec<_> = sources.map(ToString::to_string).collect();
    sources.join(": ")
}

impl fmt::Debug for BuiltMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuiltMachine")
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.extension.fmt(f)
    }
}
