//! Floor 8: interception of an unmodified program.
//!
//! A program that is run here finds `/dev/iommu`, `/dev/vfio/devices/vfioN` and the sysfs entries
//! that lead to them, and uses them as it would on a machine that has the hardware. It lives in its own user and mount namespace, and one seccomp filter hands the
//! few system calls that concern us to the machine.
//!
//! * [`view`]: what this crate needs of a machine, as a trait.
//! * `placeholder`: the files that stand for nodes, known by their inodes.
//! * [`launch`]: the child side. Namespaces, `/dev`, `/sys`, the filter, then `execve`.
//! * [`filter`]: the filter, about forty hand-written instructions.
//! * `preload`: the library that a program is started with, for the registers that it maps.
//! * [`listener`]: the notification descriptor, typed.
//! * [`session`]: one thread that answers one program tree.
//! * [`wire`]: the messages that launcher, `run` and a served machine exchange.
//! * [`control`]: the socket of a served machine: inspect, join. [`tree`]: its answers.
//! * [`run`]: starts a program against a machine of this process, or against a served one.
//!
//! What never lives here: an idea of what an ioctl means (that is `uapi`), or how a program's
//! memory is reached (that is `host`). Two invariants hold. A descriptor is known by the inode
//! behind it, never by its number or by a path, so it survives `dup`, `fork`, `exec` and
//! `SCM_RIGHTS`. And nothing that a program sends can harm more than its own session.
//!
//! This is an environment for tests and development, not a sandbox: a program that wants to escape
//! the filter can.

pub mod control;
mod entries;
pub mod filter;
pub mod launch;
pub mod listener;
mod placeholder;
mod preload;
mod ptrace;
pub mod run;
pub mod session;
mod shared_page;
mod sys;
pub mod tree;
pub mod view;
pub mod wire;

pub use control::ControlServer;
pub use run::{RunError, RunOptions};
pub use session::Session;
pub use view::{LiveFile, MachineView, NodeInfo, SysfsEntry, SysfsFile, SysfsKind};
pub use wire::Mmio;
