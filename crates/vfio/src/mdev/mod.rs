//! Mediated devices: children of a parent that come and go by UUID
//! (`drivers/vfio/mdev/mdev_{core,sysfs}.c`).

mod registry;
mod slots;

pub use registry::{Mdev, MdevChild, MdevParent, MdevRegistry, MdevType};
pub use slots::{PasidSlot, SlotError, SlotParent, Slots};

pub use crate::base::uuid::Uuid;
