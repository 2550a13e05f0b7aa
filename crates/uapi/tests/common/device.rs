//! The devices of a test machine: a model that remembers stores, and a child with a fixed PASID.

use std::sync::Arc;

use ioasid_core::{Pasid, sync::Mutex};
use ioasid_iommu::Device;
use ioasid_vfio::{
    DefaultPasid, DeviceModel, Migrate, StateError, error::BindError, pci::Function,
};

/// A device without registers. Perhaps it can be migrated.
#[derive(Debug)]
pub(crate) struct Model {
    function: Function,
    /// Stores that it has seen: BAR, offset, bytes.
    pub(crate) stores: Mutex<Vec<(u8, u64, Vec<u8>)>>,
    moves: bool,
}

impl Model {
    pub(crate) fn new(function: Function) -> Self {
        Model {
            function,
            stores: Mutex::default(),
            moves: false,
        }
    }

    /// The same, which can be migrated.
    pub(crate) fn that_moves(self) -> Self {
        Model {
            moves: true,
            ..self
        }
    }
}

impl DeviceModel for Model {
    fn function(&self) -> &Function {
        &self.function
    }

    fn read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0x5a);
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.stores.lock().push((bar, offset, data.to_vec()));
        assert!(matches!(data.len(), 1 | 2 | 4 | 8 | 64));
        assert!(offset.is_multiple_of(data.len() as u64));
    }

    fn reset(&self) {}

    fn migration(&self) -> Option<&dyn Migrate> {
        self.moves.then_some(self)
    }
}

/// Without a state of its own.
impl Migrate for Model {
    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        match state {
            [] => Ok(()),
            _ => Err(StateError),
        }
    }
}

/// A child of a device, with PASID 5.
#[derive(Debug)]
pub(crate) struct Child(pub(crate) Arc<Device>);

impl DefaultPasid for Child {
    fn bind(&self) -> Result<(Arc<Device>, Pasid), BindError> {
        let pasid = Pasid::new(5).expect("it is not 0");
        Ok((Arc::clone(&self.0), pasid))
    }

    fn quiesce(&self) {}

    fn unbind(&self) {}
}
