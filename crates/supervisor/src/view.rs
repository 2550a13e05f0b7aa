//! What the supervisor needs of a machine. [`BuiltMachine`](crate::BuiltMachine) is one; a test implements
//! it with a handful of objects.

use std::{fmt, sync::Arc};

use ioasid_core::{inspect, spa::SpaSpace};
use ioasid_iommu::DmaWatcher;
use ioasid_iommufd::Context;
use ioasid_trace::Recorder;
use ioasid_uapi::iommufd::Extension;
use ioasid_vfio::AttributeError;
use serde::{Deserialize, Serialize};

pub use ioasid_machine::{
    LiveFile, VfioNode,
    file::inject::{Action, At, InjectSection},
    sysfs::{SysfsEntry, SysfsFile, SysfsKind},
};

/// A request about mediated devices, from `ioasid mdev` by way of the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MdevRequest {
    /// Makes one.
    Create {
        /// PCI address of the parent.
        parent: String,
        /// The mdev type, `dsa-1dwq` for instance; without one the only type of the parent.
        #[serde(default)]
        kind: Option<String>,
        /// Its UUID.
        uuid: String,
        /// The `vm` that owns it, if any.
        vm: Option<String>,
    },
    /// Removes the one with this UUID.
    Remove {
        /// Its UUID.
        uuid: String,
    },
    /// Lists them.
    List,
}

/// A failure that a test asks for, from `ioasid inject` by way of the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InjectRequest {
    /// When something is done the nth time, or with a chance.
    Later(InjectSection),
    /// At once: a reset or a removal.
    Now {
        /// The device: its PCI address or its UUID.
        device: String,
        /// What happens to it.
        action: Action,
    },
}

/// A running machine, as far as programs that use it are concerned.
///
/// Every method may be called from any thread and must not wait for a program.
pub trait MachineView: Send + Sync + fmt::Debug {
    /// Its name.
    fn name(&self) -> &str {
        "(no name)"
    }

    /// A new open file of `/dev/iommu`.
    fn new_context(&self) -> Arc<Context>;

    /// A command that a back end adds to those of `/dev/iommu`; none by default.
    fn extension(&self) -> Option<&dyn Extension> {
        None
    }

    /// Where calls of programs are told; by default nowhere.
    fn recorder(&self) -> Option<Arc<Recorder>> {
        None
    }

    /// Whether `/proc/PID/status` shows a program what it has locked here. Opening files costs it
    /// more then.
    fn shows_locked_memory(&self) -> bool {
        self.extension().is_some()
    }

    /// Whether programs can make allocations fail, by `fail-nth` of their threads; not by default.
    fn injects_faults(&self) -> bool {
        false
    }

    /// The device nodes that a program of `vm` sees; all of them for `None`.
    fn nodes(&self, vm: Option<&str>) -> Vec<VfioNode>;

    /// What is added to the `/sys` of such a program.
    fn sysfs(&self, vm: Option<&str>) -> Vec<SysfsEntry>;

    /// Where memory of programs is registered.
    fn space(&self) -> Arc<SpaSpace>;

    /// Tells `watcher` of all DMA of the machine that is refused, as long as it lives. By default none is.
    fn watch_refused_dma(&self, watcher: &Arc<dyn DmaWatcher>) {
        let _ = watcher;
    }

    /// The state of the machine.
    fn inspect(&self) -> inspect::Node;

    /// Whether something of the machine belongs to `vm`.
    fn has_vm(&self, vm: &str) -> bool;

    /// A number that grows when nodes or entries of sysfs come, go or change.
    fn generation(&self) -> u64 {
        0
    }

    /// The entries of sysfs whose bytes change without being written.
    fn live_files(&self, vm: Option<&str>) -> Vec<LiveFile> {
        let _ = vm;
        Vec::new()
    }

    /// The entries of sysfs that a program of `vm` can write, below `/sys`: those of which that
    /// does something.
    fn attributes(&self, vm: Option<&str>) -> Vec<String> {
        let _ = vm;
        Vec::new()
    }

    /// Writes `data` to one of them that has no places.
    ///
    /// # Errors
    /// What the kernel would answer. By default there are none.
    fn write_attribute(
        &self,
        vm: Option<&str>,
        path: &str,
        data: &[u8],
    ) -> Result<(), AttributeError> {
        let _ = (vm, path, data);
        Err(AttributeError::NotWritable)
    }

    /// Creates, removes or lists mediated devices. The answer to a creation has the new `uuid`; the others
    /// are answered by what there is then.
    ///
    /// # Errors
    /// One sentence for the user. The default knows no mediated devices.
    fn mdev(&self, request: &MdevRequest) -> Result<inspect::Node, String> {
        let _ = request;
        Err("this machine cannot change its mediated devices while it runs".to_owned())
    }

    /// Makes something fail.
    ///
    /// # Errors
    /// One sentence for the user. By default nothing can be made to fail.
    fn inject(&self, request: &InjectRequest) -> Result<(), String> {
        let _ = request;
        Err("nothing of this machine can be made to fail".to_owned())
    }
}
