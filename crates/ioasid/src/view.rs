//! A machine, as the supervisor wants to see it.

use std::sync::Arc;

use ioasid_core::{
    inspect::{Inspect as _, Node},
    spa::SpaSpace,
};
use ioasid_iommufd::Context;
use ioasid_machine::Machine;
use ioasid_selftest::SelfTest;
use ioasid_supervisor::{
    LiveFile, MachineView, NodeInfo, SysfsEntry, SysfsFile, SysfsKind, view::MdevRequest,
};
use ioasid_uapi::{Errno, iommufd::Extension};
use ioasid_vfio_user::Server;

/// The debug file system, below `/sys`.
const DEBUG: &str = "kernel/debug";

/// Where a test looks whether the kernel can make allocations fail, and what it sets there. Ours
/// always may fail, and say nothing about it.
const FAULT_INJECTION: [(&str, &str); 5] = [
    ("failslab/ignore-gfp-wait", "N\n"),
    ("failslab/verbose", "0\n"),
    ("fail_page_alloc/ignore-gfp-wait", "N\n"),
    ("fail_page_alloc/ignore-gfp-highmem", "N\n"),
    ("fail_page_alloc/verbose", "0\n"),
];

/// The view of one machine.
#[derive(Debug)]
pub(crate) struct View(Arc<Machine>, Option<SelfTest>, Option<Arc<Server>>);

impl View {
    /// The view of `machine`.
    pub(crate) fn of(machine: &Arc<Machine>) -> Arc<dyn MachineView> {
        View::over(machine, None, None)
    }

    /// The view of `machine` with the kernel's self-test beside it.
    pub(crate) fn with_selftest(machine: &Arc<Machine>) -> Arc<dyn MachineView> {
        View::over(machine, Some(SelfTest), None)
    }

    /// The view of `machine`, whose devices `server` offers to virtual machines too.
    pub(crate) fn serving(machine: &Arc<Machine>, server: &Arc<Server>) -> Arc<dyn MachineView> {
        View::over(machine, None, Some(Arc::clone(server)))
    }

    fn over(
        machine: &Arc<Machine>,
        selftest: Option<SelfTest>,
        server: Option<Arc<Server>>,
    ) -> Arc<dyn MachineView> {
        let list = |name: &str| std::fs::read_to_string(format!("/sys/devices/system/cpu/{name}"));
        if let (Ok(online), Ok(possible)) = (list("online"), list("possible")) {
            machine.set_processors(&online, &possible);
        }
        Arc::new(View(Arc::clone(machine), selftest, server))
    }
}

impl MachineView for View {
    fn new_context(&self) -> Arc<Context> {
        self.0.new_context()
    }

    fn extension(&self) -> Option<&dyn Extension> {
        let selftest = self.1.as_ref()?;
        Some(selftest)
    }

    fn injects_faults(&self) -> bool {
        self.1.is_some()
    }

    fn nodes(&self, vm: Option<&str>) -> Vec<NodeInfo> {
        let nodes = self.0.nodes(vm).into_iter();
        let info = |node: ioasid_machine::VfioNode| NodeInfo {
            name: node.name,
            major: node.major,
            minor: node.minor,
            device: node.device,
        };
        nodes.map(info).collect()
    }

    fn sysfs(&self, vm: Option<&str>) -> Vec<SysfsEntry> {
        let mut entries = self.0.sysfs(vm);
        if self.1.is_some() {
            entries.extend(FAULT_INJECTION.map(|(path, value)| SysfsEntry {
                path: format!("{DEBUG}/{path}"),
                kind: SysfsKind::File(SysfsFile::writable(value)),
            }));
        }
        entries
    }

    fn space(&self) -> Arc<SpaSpace> {
        Arc::clone(self.0.iommu().space())
    }

    fn inspect(&self) -> Node {
        let mut node = self.0.inspect();
        if let Some(server) = &self.2 {
            node.set("vfio_user", server.inspect());
        }
        node
    }

    fn has_vm(&self, vm: &str) -> bool {
        self.0.has_vm(vm)
    }

    fn generation(&self) -> u64 {
        self.0.generation()
    }

    fn live_files(&self, vm: Option<&str>) -> Vec<LiveFile> {
        self.0.live_files(vm)
    }

    fn attributes(&self, vm: Option<&str>) -> Vec<String> {
        let mut attributes = self.0.writable_attributes(vm);
        if self.1.is_some() {
            attributes.extend(FAULT_INJECTION.map(|(path, _)| format!("{DEBUG}/{path}")));
        }
        attributes
    }

    fn write_attribute(&self, vm: Option<&str>, path: &str, data: &[u8]) -> Result<(), Errno> {
        if let (Some(_), Some(path)) = (&self.1, path.strip_prefix(DEBUG)) {
            let name = path.trim_start_matches('/');
            let known = FAULT_INJECTION.iter().find(|(known, _)| *known == name);
            // They are what the test sets them to, and nothing else.
            let same = |value: &str| value.trim_end().as_bytes() == data.trim_ascii_end();
            return match known {
                Some((_, value)) if same(value) => Ok(()),
                Some(_) => Err(Errno::EOPNOTSUPP),
                None => Err(Errno::EACCES),
            };
        }
        Ok(self.0.write_attribute(vm, path, data)?)
    }

    fn mdev(&self, request: &MdevRequest) -> Result<Node, String> {
        // The error with its sources.
        let sentence = |error| format!("{:#}", anyhow::Error::from(error));
        match request {
            MdevRequest::Create {
                parent,
                kind,
                uuid,
                vm,
            } => {
                let types = self.0.mdev_types_of(parent);
                let kind = match (kind, &types[..]) {
                    (Some(kind), _) | (None, [kind]) => kind,
                    (None, []) => return Err(format!("{parent} is no parent of such devices")),
                    (None, _) => return Err(format!("{parent} has several types: name one")),
                };
                self.0
                    .create_mdev(parent, kind, uuid, vm.clone())
                    .map_err(sentence)?;
            }
            MdevRequest::Remove { uuid } => self.0.remove_mdev(uuid).map_err(sentence)?,
            MdevRequest::List => {}
        }
        Ok(self.0.inspect_mdevs())
    }
}
