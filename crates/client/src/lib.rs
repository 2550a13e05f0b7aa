//! An ordinary VFIO client: the kind of program that `ioasid` is made for, and one that knows
//! nothing of it. It depends on published crates alone (`vfio-ioctls`, `iommufd-ioctls`) and would
//! drive two real Intel DSA devices behind a real `/dev/iommu` in the same way.
//!
//! * [`run()`]: the whole scene of one VM: open a whole device (*pdev*) and a one-queue child
//!   (*mdev*), attach both to one IOAS, map two areas once, copy and check 64 MiB through each, unmap
//!   the data and see both devices fault. A [`Config`] says what varies, an [`Observer`] is told each
//!   step.
//! * [`Vm`], [`Device`], [`DsaQueue`]: the same in small steps, with every field of a descriptor and
//!   every register within reach, for those who want to try what a hostile guest would.
//! * [`dsa`]: registers, descriptors and completion records, as the device's specification has them.
//! * [`memory`]: memory that a device may write at any moment.
//! * [`discover`]: where sysfs shows the devices.
//!
//! Registers are reached by `pread` and `pwrite` only, never by mapping a BAR: the path that every
//! client of a region without the MMAP flag takes. A descriptor is one 64-byte `pwrite`.
//!
//! `unsafe` lives in [`memory`] (an `mmap`) and in the private module `ioctl` (system calls that the
//! published crates do not wrap, or wrap without giving back what the kernel answered).

mod bring_up;
mod config;
mod device;
pub mod discover;
pub mod dsa;
mod error;
mod ioctl;
pub mod memory;
pub mod plan;
mod queue;
mod role;
mod run;
mod vm;

pub use bring_up::Limits;
pub use config::{Choice, Config, Interface, Order, PageTables};
pub use device::Device;
pub use error::{Error, Result};
pub use memory::{DmaMemory, MemoryKind};
pub use queue::{Completed, DsaQueue, RecordSlot};
pub use role::Role;
pub use run::{DATA_IOVA, DeviceReport, NoObserver, Observer, RECORDS_IOVA, Report, Step, run};
pub use vm::{Area, Vm};
