//! A small machine: devices, a file, memory.

use std::sync::Arc;

use ioasid_core::{Pasid, PciAddress, Prot, Rid, memory::OwnPages};
use ioasid_iommu::{
    Device, DeviceConfig, Domain, DomainKind, FaultLog, FaultSink, Iommu, IommuConfig,
};
use ioasid_iommufd::{BoundDevice, Context, MapArgs, ObjectId};

pub const PAGE: u64 = 4096;

/// An id that no test makes.
pub const NOBODY: ObjectId = ObjectId::from_raw(77);

pub struct Machine {
    pub iommu: Arc<Iommu>,
    pub context: Arc<Context>,
}

pub fn machine() -> Machine {
    let iommu = Iommu::new(IommuConfig::default());
    let context = Context::new(&iommu);
    Machine { iommu, context }
}

pub fn sink() -> Arc<dyn FaultSink> {
    FaultLog::new(8)
}

pub fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

pub fn config(number: u16) -> DeviceConfig {
    DeviceConfig::new(PciAddress {
        segment: 0,
        rid: Rid(number << 3),
    })
}

impl Machine {
    pub fn device(&self, number: u16) -> Arc<Device> {
        self.iommu.add_device(config(number)).unwrap()
    }

    /// A whole device, bound.
    pub fn pdev(&self, number: u16) -> BoundDevice {
        let device = self.device(number);
        self.context.bind_device(&device, sink()).unwrap()
    }

    /// A child of a new device, bound.
    pub fn mdev(&self, number: u16, default: u32) -> BoundDevice {
        let parent = self.device(number);
        self.context
            .bind_pasid(&parent, pasid(default), sink())
            .unwrap()
    }

    pub fn ioas(&self) -> ObjectId {
        self.context.ioas_alloc().unwrap()
    }

    pub fn pages(&self, len: u64) -> OwnPages {
        OwnPages::new(self.iommu.space(), len as usize).unwrap()
    }

    /// Maps new memory.
    pub fn map(&self, ioas: ObjectId, iova: u64, len: u64) -> OwnPages {
        let pages = self.pages(len);
        let args = MapArgs::fixed(iova, len, Prot::RW);
        let mapped = self.context.ioas_map(ioas, Arc::new(pages.clone()), args);
        assert_eq!(mapped, Ok(iova));
        pages
    }

    /// The domains of address spaces: those that programs made.
    pub fn domains(&self) -> Vec<Arc<Domain>> {
        let mut domains = self.iommu.domains();
        domains.retain(|domain| domain.kind() == DomainKind::Unmanaged);
        domains
    }

    /// Device and PASID of everything that stands on the one domain there is.
    pub fn routes(&self) -> Vec<(PciAddress, Option<Pasid>)> {
        let domains = self.domains();
        assert_eq!(domains.len(), 1, "one domain");
        let mut routes = domains[0].attachments();
        routes.sort();
        routes
    }
}

/// Writes one byte by DMA; whether it arrived.
pub fn dma_write(bound: &BoundDevice, pasid: Option<Pasid>, iova: u64, byte: u8) -> bool {
    let mut port = bound.device().port();
    let mut guard = port.enter(bound.default_pasid().or(pasid));
    let transfer = guard.write(iova, &[byte]);
    transfer.stop.is_none()
}

/// Whether the device reaches `iova`.
pub fn reaches(bound: &BoundDevice, iova: u64) -> bool {
    dma_write(bound, None, iova, 1)
}

pub fn byte(pages: &OwnPages, offset: usize) -> u8 {
    let mut byte = [0];
    pages.memory().read(offset, &mut byte);
    byte[0]
}
