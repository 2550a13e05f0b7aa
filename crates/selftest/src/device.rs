//! Mock devices: bound to a file and attached, with no model behind them.

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};

use ioasid_core::{Pasid, PciAddress, Rid, failpoint};
use ioasid_iommu::{Device, DeviceConfig, DeviceError, FaultLog, Iommu, TableFormat};
use ioasid_iommufd::{BoundDevice, Context, Error, ForeignObject, ObjectError, ObjectId};
use ioasid_uapi::Errno;

use crate::{hardware::MockIommu, spec, table};

/// The PCI segment of mock devices: no machine file can name it.
const SEGMENT: u16 = u16::MAX;

/// Tries to find a free address.
const TRIES: u32 = 1 << 16;

/// A device of the machine's IOMMU that goes with this.
#[derive(Debug)]
struct Plugged {
    iommu: Arc<Iommu>,
    device: Arc<Device>,
}

impl Plugged {
    fn new(iommu: &Arc<Iommu>, pasid_bits: u8, tracks_dirty: bool) -> Result<Self, Errno> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        for _ in 0..TRIES {
            let rid = Rid(NEXT.fetch_add(1, Ordering::Relaxed));
            let address = PciAddress {
                segment: SEGMENT,
                rid,
            };
            let made = iommu.add_device(DeviceConfig {
                pasid_bits,
                format: TableFormat::Custom(&table::DEFAULT),
                dirty: tracks_dirty,
                page_requests: true,
                reserved: Vec::new(),
                ..DeviceConfig::new(address)
            });
            match made {
                Ok(device) => {
                    return Ok(Plugged {
                        iommu: Arc::clone(iommu),
                        device,
                    });
                }
                Err(DeviceError::Exists(_)) => {}
                Err(_) => return Err(Errno::ENOMEM),
            }
        }
        Err(Errno::ENOMEM)
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        // Unbound before, so nothing is in the way.
        let _ = self.iommu.remove_device(&self.device);
    }
}

/// A mock device as an object of a file.
#[derive(Debug)]
pub(crate) struct MockDevice {
    bound: BoundDevice,
    /// Goes after the binding.
    _plugged: Plugged,
}

impl ForeignObject for MockDevice {}

/// The ids of a new mock device.
pub(crate) struct Made {
    pub(crate) stdev: ObjectId,
    pub(crate) idev: ObjectId,
    pub(crate) hwpt: ObjectId,
}

impl MockDevice {
    /// Makes a device, binds it and attaches it to `pt`. The device's own id is the first that is
    /// taken, then that of the binding, then that of the page table, if one is made.
    pub(crate) fn attach_new(
        context: &Arc<Context>,
        flags: u32,
        pt: ObjectId,
    ) -> Result<Made, Errno> {
        let id = context.reserve_id()?;
        if flags & !(spec::device_flag::NO_DIRTY | spec::device_flag::PASID) != 0 {
            return Err(Errno::EINVAL);
        }
        let tracks_dirty = flags & spec::device_flag::NO_DIRTY == 0;
        let pasid_bits = match flags & spec::device_flag::PASID {
            0 => 0,
            _ => spec::PASID_WIDTH,
        };
        failpoint::allocation()?;
        let plugged = Plugged::new(context.iommu(), pasid_bits, tracks_dirty)?;
        let hardware = MockIommu::new(tracks_dirty);
        let faults = FaultLog::new(1);
        let bound = context.bind_device_with(&plugged.device, faults, hardware)?;
        let device = Arc::new(MockDevice {
            bound,
            _plugged: plugged,
        });
        let hwpt = device.bound.attach(pt)?;
        Ok(Made {
            idev: device.bound.id(),
            hwpt,
            stdev: id.install(device),
        })
    }

    /// The mock device `id`, and what keeps it.
    pub(crate) fn find(context: &Context, id: ObjectId) -> Result<Arc<MockDevice>, Error> {
        let object: Arc<dyn std::any::Any + Send + Sync> = context.foreign(id)?;
        let mock = object.downcast();
        mock.map_err(|_| ObjectError::Missing(id).into())
    }

    /// Moves the device itself to `pt`.
    pub(crate) fn replace(&self, pt: ObjectId) -> Result<ObjectId, Error> {
        self.bound.replace(pt, 0)
    }

    /// Attaches a PASID, which must be free; 0 is the device itself.
    pub(crate) fn attach_pasid(&self, pasid: u32, pt: ObjectId) -> Result<ObjectId, Error> {
        self.bound.attach_first(pt, pasid)
    }

    /// Moves a PASID that is attached.
    pub(crate) fn replace_pasid(&self, pasid: u32, pt: ObjectId) -> Result<ObjectId, Error> {
        self.bound.replace(pt, pasid)
    }

    pub(crate) fn detach_pasid(&self, pasid: u32) {
        match pasid {
            0 => self.bound.detach(),
            _ => self.bound.detach_pasid(pasid),
        }
    }

    /// The page table that a PASID is attached to.
    pub(crate) fn attached(&self, pasid: u32) -> Option<ObjectId> {
        match pasid {
            0 => self.bound.attached(None),
            _ => self.bound.attached(Some(Pasid::new(pasid)?)),
        }
    }
}
