//! Floor 8: interception of an unmodified program.
//!
//! A program that is run here finds `/dev/iommu`, `/dev/vfio/devices/vfioN` and the sysfs entries
//! that lead to them, and uses them as it would on a machine that has the hardware. It lives in its
//! own user and mount namespace, and one seccomp filter hands the few system calls that concern
//! them to the machine.
//!
//! From the lowest floor:
//!
//! * [`view`]: what this crate needs of a machine, as a trait; [`BuiltMachine`] is one.
//! * `system`: system calls without a safe wrapper; [`listener`], the notification descriptor,
//!   typed.
//! * [`wire`]: the messages that launcher, `run` and a served machine exchange.
//! * `calls`: the table of intercepted system calls, and [`filter`], which is made from it.
//! * `entries`: the files that stand for the machine's entries of `/dev` and `/sys`.
//! * [`launch`]: the child side. Namespaces, `/dev`, `/sys`, the filter, then `execve`.
//! * [`session`]: one thread that answers one program tree.
//! * [`run`]: starts a program against a machine of this process, or against a served one.
//!   [`control`]: the socket of a served machine: inspect, join.
//!
//! What never lives here: an idea of what an ioctl means (that is `uapi`), or how a program's
//! memory is reached (that is `host`). Two invariants hold. A descriptor is known by the inode
//! behind it, never by its number or by a path, so it survives `dup`, `fork`, `exec` and
//! `SCM_RIGHTS`. And nothing that a program sends can harm more than its own session.
//!
//! This is an environment for tests and development, not a sandbox: a program that wants to escape
//! the filter can.

mod built;
mod calls;
mod entries;
pub mod launch;
mod service;
pub mod session;
mod system;
pub mod view;
pub mod wire;

pub use built::{BuiltMachine, Harness};
pub use calls::filter;
pub use service::{
    control::{self, ControlServer},
    run::{self, Ended, RunError, RunOptions},
};
pub use session::{Session, explain, observe};
pub use system::listener;
pub use view::{LiveFile, MachineView, SysfsEntry, SysfsFile, SysfsKind, VfioNode};
pub use wire::{Counts, Mmio, tree};
