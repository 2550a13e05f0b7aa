//! Making page tables (drivers/iommu/iommufd/hw_pagetable.c), and fault queues for them.

use std::sync::Arc;

use ioasid_core::failpoint;
use ioasid_iommu::{Domain, DomainConfig, DomainError, DomainKind};

use crate::{
    context::Context,
    device::DeviceObject,
    domains::Attributes,
    error::Error,
    event::EventFile,
    fault::{FaultHandler, FaultQueue},
    hw::NestedOps,
    hwpt::{Hwpt, HwptAlloc, HwptFlags, Kind, NestedTable, PagingTable},
    ioas::Ioas,
    object::{Object, ObjectId},
    queue_file::{Queue, QueueFile},
    user::UserData,
    viommu::Viommu,
};

impl Context {
    /// HWPT_ALLOC without data: a page table for a device, to be attached by its own id. On an IOAS
    /// it shares its domain with the other page tables whose attributes agree.
    ///
    /// # Errors
    /// Those of [`Context::hwpt_alloc_with`].
    pub fn hwpt_alloc(&self, args: HwptAlloc) -> Result<ObjectId, Error> {
        self.hwpt_alloc_with(args, None)
    }

    /// HWPT_ALLOC.
    ///
    /// # Errors
    /// In the kernel's order: [`Error::NoObject`] for the device; [`Error::NotAParent`] if there is
    /// nothing that can be built on; [`Error::FlagsNotSupported`] for the flags, and for a nested page
    /// table without data; [`Error::NotAParent`]; [`Error::NoIds`]; those of the back end;
    /// [`Error::AddressInUse`], [`Error::Pin`]; [`Error::NoObject`] for the fault queue.
    pub fn hwpt_alloc_with(
        &self,
        args: HwptAlloc,
        data: Option<&UserData<'_>>,
    ) -> Result<ObjectId, Error> {
        let data = data.filter(|data| !data.is_empty());
        let _attachments = self.attachments.lock();
        let device = self.device(args.device)?;
        let parent = self.objects.lock().object(args.parent);
        let hwpt = match parent {
            Some(Object::Ioas(ioas)) => {
                args.flags.check_paging(device.ops().supports_dirty())?;
                self.make_hwpt(&ioas, &device, args.flags, false, data)?
            }
            Some(Object::Hwpt(parent)) if parent.paging().is_some() => {
                self.nest_on_hwpt(&parent, &device, args.flags, data)?
            }
            Some(Object::Viommu(viommu)) => {
                if viommu.instance() != device.ops().instance() {
                    return Err(Error::OtherIommu);
                }
                self.nest_on_viommu(&viommu, args.flags, data)?
            }
            _ => return Err(Error::NotAParent(args.parent)),
        };
        if args.flags.contains(HwptFlags::FAULT_ID_VALID) {
            let queue = self.fault_queue(ObjectId::from_raw(args.fault_id));
            let sent = queue.and_then(|queue| self.send_faults(&hwpt, &queue));
            if let Err(error) = sent {
                self.discard(&hwpt);
                return Err(error);
            }
        }
        Ok(hwpt.id())
    }

    /// A new page table object on `ioas`, for `device`.
    pub(crate) fn make_hwpt(
        &self,
        ioas: &Arc<Ioas>,
        device: &DeviceObject,
        flags: HwptFlags,
        automatic: bool,
        data: Option<&UserData<'_>>,
    ) -> Result<Arc<Hwpt>, Error> {
        let id = self.objects.lock().reserve()?;
        let ops = device.ops();
        let paging = ops.alloc_paging(flags.without(HwptFlags::FAULT_ID_VALID), data);
        let domain = paging.and_then(|paging| {
            let attributes = Attributes::new(id, &paging, ops.supports_dirty(), flags);
            ioas.domain(attributes, |config| self.alloc_domain(config))
        });
        let mut objects = self.objects.lock();
        let domain = match domain {
            Ok(domain) => domain,
            Err(error) => {
                objects.forget(id);
                return Err(error);
            }
        };
        let table = PagingTable::new(
            Arc::clone(ioas),
            domain,
            automatic,
            ops.enforces_coherency(),
        );
        let hwpt = Hwpt::new(id, flags, ops.instance(), Kind::Paging(table));
        objects.install(id, Object::Hwpt(Arc::clone(&hwpt)));
        objects.hold(ioas.id());
        Ok(hwpt)
    }

    fn alloc_domain(&self, config: DomainConfig) -> Result<Arc<Domain>, Error> {
        let domain = self.iommu().alloc_domain(config);
        domain.map_err(|error| match error {
            DomainError::NoMemory(_) => Error::NoMemory,
            DomainError::Exhausted => Error::NoIds,
        })
    }

    fn nest_on_hwpt(
        &self,
        parent: &Arc<Hwpt>,
        device: &DeviceObject,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<Arc<Hwpt>, Error> {
        flags.check_nested()?;
        let data = data.ok_or(Error::FlagsNotSupported)?;
        let table = parent.nest_parent();
        let table = table.filter(|_| parent.instance() == device.ops().instance());
        let table = table.ok_or(Error::NotAParent(parent.id()))?;
        let flags_of_driver = flags.without(HwptFlags::FAULT_ID_VALID);
        self.make_nested(parent, None, flags, || {
            device
                .ops()
                .alloc_nested(table.domain().domain(), flags_of_driver, data)
        })
    }

    fn nest_on_viommu(
        &self,
        viommu: &Arc<Viommu>,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<Arc<Hwpt>, Error> {
        flags.check_nested()?;
        let data = data.ok_or(Error::FlagsNotSupported)?;
        let ops = viommu.ops();
        let flags_of_driver = flags.without(HwptFlags::FAULT_ID_VALID);
        self.make_nested(viommu.parent(), Some(viommu), flags, || {
            ops.alloc_nested(flags_of_driver, data)
        })
    }

    fn make_nested(
        &self,
        parent: &Arc<Hwpt>,
        viommu: Option<&Arc<Viommu>>,
        flags: HwptFlags,
        make: impl FnOnce() -> Result<Arc<dyn NestedOps>, Error>,
    ) -> Result<Arc<Hwpt>, Error> {
        let id = self.objects.lock().reserve()?;
        let made = make().and_then(|ops| {
            // No table of the program's is walked for DMA yet: routes that lead here are blocked.
            let config = DomainConfig {
                kind: DomainKind::Blocked,
                ..*parent.target().config()
            };
            let target = self.alloc_domain(DomainConfig {
                dirty_tracking: false,
                ..config
            })?;
            Ok((ops, target))
        });
        let mut objects = self.objects.lock();
        let (ops, target) = match made {
            Ok(made) => made,
            Err(error) => {
                objects.forget(id);
                return Err(error);
            }
        };
        let nested = NestedTable::new(Arc::clone(parent), viommu.cloned(), ops, target);
        objects.hold(nested.holds());
        let made_for = viommu.map_or(parent.instance(), |viommu| viommu.instance());
        let hwpt = Hwpt::new(id, flags, made_for, Kind::Nested(nested));
        objects.install(id, Object::Hwpt(Arc::clone(&hwpt)));
        Ok(hwpt)
    }

    fn fault_queue(&self, id: ObjectId) -> Result<Arc<FaultQueue>, Error> {
        match self.objects.lock().object(id) {
            Some(Object::FaultQueue(queue)) => Ok(queue),
            _ => Err(Error::NoObject(id)),
        }
    }

    /// Page requests of `hwpt` go to `queue` from now on.
    fn send_faults(&self, hwpt: &Hwpt, queue: &Arc<FaultQueue>) -> Result<(), Error> {
        failpoint::allocation()?;
        let handler = FaultHandler::new(self.iommu(), queue);
        hwpt.target()
            .set_page_request_handler(Some(handler.clone()));
        hwpt.set_faults(handler);
        self.objects.lock().hold(queue.id());
        Ok(())
    }

    /// FAULT_QUEUE_ALLOC: a fault queue and the file to read and answer it with. The queue cannot be
    /// destroyed while the file is open.
    ///
    /// # Errors
    /// [`Error::NoIds`], [`Error::Closed`].
    pub fn fault_queue_alloc(self: &Arc<Self>) -> Result<(ObjectId, Arc<dyn EventFile>), Error> {
        let mut objects = self.open_objects()?;
        let id = objects.reserve()?;
        let queue = FaultQueue::new(id);
        objects.install(id, Object::FaultQueue(Arc::clone(&queue)));
        objects.hold(id);
        Ok((id, QueueFile::new(self, queue)))
    }

    /// The domain behind a page table of an IOAS.
    ///
    /// # Errors
    /// [`Error::NoObject`], also for a nested page table.
    pub fn hwpt_domain(&self, id: ObjectId) -> Result<Arc<Domain>, Error> {
        let hwpt = self.hwpt(id)?;
        let table = hwpt.paging().ok_or(Error::NoObject(id))?;
        Ok(Arc::clone(table.domain().domain()))
    }

    /// The back end's part of a nested page table.
    ///
    /// # Errors
    /// [`Error::NoObject`], also for a page table of an IOAS.
    pub fn hwpt_nested(&self, id: ObjectId) -> Result<Arc<dyn NestedOps>, Error> {
        match self.objects.lock().object(id) {
            Some(Object::Hwpt(hwpt)) => {
                let nested = hwpt.nested().ok_or(Error::NoObject(id))?;
                Ok(Arc::clone(nested.ops()))
            }
            _ => Err(Error::NoObject(id)),
        }
    }
}
