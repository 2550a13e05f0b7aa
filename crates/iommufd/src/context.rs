//! One open `/dev/iommu` file.

use std::sync::Arc;

use ioasid_core::{Pasid, memory::PageSource, AddrRange};
use ioasid_iommu::{Device, FaultSink, Iommu};

use crate::{
    device::BoundDevice,
    dirty::DirtyRequest,
    error::Error,
    hw_info::HwInfo,
    hwpt::HwptAlloc,
    ioas::{CopyArgs, IovaRanges, MapArgs},
    object::ObjectId,
};

/// One open `/dev/iommu` file: an object table and the commands on it.
#[derive(Debug)]
pub struct Context {
    iommu: Arc<Iommu>,
}

#[allow(unused_variables, missing_docs)]
impl Context {
    pub fn new(iommu: &Arc<Iommu>) -> Arc<Self> { todo!() }
    pub fn iommu(&self) -> &Arc<Iommu> { &self.iommu }
    pub fn bind_device(self: &Arc<Self>, device: &Arc<Device>, faults: Arc<dyn FaultSink>) -> Result<BoundDevice, Error> { todo!() }
    pub fn bind_pasid(self: &Arc<Self>, device: &Arc<Device>, pasid: Pasid, faults: Arc<dyn FaultSink>) -> Result<BoundDevice, Error> { todo!() }
    pub fn ioas_alloc(&self) -> Result<ObjectId, Error> { todo!() }
    pub fn ioas_iova_ranges(&self, ioas: ObjectId) -> Result<IovaRanges, Error> { todo!() }
    pub fn ioas_allow_iovas(&self, ioas: ObjectId, ranges: &[AddrRange]) -> Result<(), Error> { todo!() }
    pub fn ioas_map(&self, ioas: ObjectId, pages: Arc<dyn PageSource>, args: MapArgs) -> Result<u64, Error> { todo!() }
    pub fn ioas_copy(&self, args: CopyArgs) -> Result<u64, Error> { todo!() }
    pub fn ioas_unmap(&self, ioas: ObjectId, iova: u64, len: u64) -> Result<u64, Error> { todo!() }
    pub fn ioas_unmap_all(&self, ioas: ObjectId) -> Result<u64, Error> { todo!() }
    pub fn hwpt_alloc(&self, args: HwptAlloc) -> Result<ObjectId, Error> { todo!() }
    pub fn hw_info(&self, device: ObjectId) -> Result<HwInfo, Error> { todo!() }
    pub fn hwpt_set_dirty_tracking(&self, hwpt: ObjectId, on: bool) -> Result<(), Error> { todo!() }
    pub fn hwpt_get_dirty(&self, request: DirtyRequest, report: &mut dyn FnMut(AddrRange)) -> Result<(), Error> { todo!() }
    pub fn destroy(&self, id: ObjectId) -> Result<(), Error> { todo!() }
    pub fn close(&self) { todo!() }
}
