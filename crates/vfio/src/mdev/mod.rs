//! Mediated devices: children of a parent that come and go by UUID
//! (`drivers/vfio/mdev/mdev_{core,sysfs}.c`).

mod registry;
mod slots;
mod uuid;

pub use registry::{Mdev, MdevChild, MdevParent, MdevRegistry, MdevType};
pub use slots::{PasidSlot, SlotError, SlotParent, Slots};
pub use uuid::Uuid;
