//! Memory that a device reaches.

use ioasid_core::{Prot, memory::OwnPages};
use ioasid_iommu::{Domain, Iommu};

/// Pages of this process that can be mapped in domains from the address [`Area::BASE`] on.
#[derive(Clone, Debug)]
pub struct Area {
    /// The pages.
    pub pages: OwnPages,
}

impl Area {
    /// The IOVA of the first byte.
    pub const BASE: u64 = 0x10_0000;

    /// `len` bytes, mapped nowhere yet.
    pub fn new(iommu: &Iommu, len: usize) -> Self {
        let pages = OwnPages::new(iommu.space(), len).unwrap();
        Area { pages }
    }

    /// `len` bytes that are mapped in `domain`, readable and writable.
    pub fn mapped(iommu: &Iommu, domain: &Domain, len: usize) -> Self {
        let area = Area::new(iommu, len);
        area.map(domain, len as u64);
        area
    }

    /// Maps the first `len` bytes in `domain`, readable and writable.
    pub fn map(&self, domain: &Domain, len: u64) {
        domain
            .map(Area::BASE, self.pages.spa(), len, Prot::RW)
            .unwrap();
    }

    /// The `len` bytes at `iova`.
    pub fn read(&self, iova: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let offset = (iova - Area::BASE) as usize;
        self.pages.memory().read(offset, &mut bytes);
        bytes
    }

    /// Writes `bytes` at `iova`.
    pub fn write(&self, iova: u64, bytes: &[u8]) {
        let offset = (iova - Area::BASE) as usize;
        self.pages.memory().write(offset, bytes);
    }
}
