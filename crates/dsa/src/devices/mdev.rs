//! The parent of mediated devices: queues that were set aside become children of the type
//! `dsa-1dwq`.

use std::sync::Arc;

use ioasid_vfio::mdev::{MdevType, SlotError, SlotParent, Slots};

use crate::{
    config::{Error, QueueType},
    devices::child::DsaChild,
    devices::device::DsaDevice,
};

/// The type of a child with one dedicated work queue.
pub const TYPE_1DWQ: &str = "dsa-1dwq";

/// A device whose queues can be given away. Its children keep the device alive.
pub type DsaParent = SlotParent<DsaDevice>;

impl Slots for DsaDevice {
    type Child = DsaChild;

    fn name(&self) -> String {
        self.device().address().to_string()
    }

    fn mdev_type(&self) -> MdevType {
        MdevType {
            id: TYPE_1DWQ.to_owned(),
            name: "1dwq".to_owned(),
            description: Some("one dedicated work queue of a DSA device".to_owned()),
        }
    }

    fn free_slots(&self) -> Vec<usize> {
        let state = self.pool.lock();
        let queues = self.queues().iter().zip(&state.queues).enumerate();
        queues
            .filter(|(_, (made, queue))| made.mdev && queue.claim.is_none())
            .map(|(index, _)| index)
            .collect()
    }

    fn make(self: &Arc<Self>, slot: usize) -> Result<Arc<DsaChild>, SlotError> {
        DsaChild::new(self, slot).map_err(|error| match error {
            Error::QueueBusy {
                owner: QueueType::Mdev,
                ..
            } => SlotError::Taken,
            error => SlotError::refused(error),
        })
    }

    fn retire(&self, child: &DsaChild) {
        child.retire();
    }
}
