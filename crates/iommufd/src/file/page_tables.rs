//! Making page table objects, and taking away those that nothing is attached to
//! (drivers/iommu/iommufd/hw_pagetable.c).

use std::sync::Arc;

use ioasid_core::failpoint;
use ioasid_iommu::{Domain, DomainConfig, DomainKind, Iommu};

use super::{
    object::Object,
    table::{Objects, ReservedId},
};
use crate::{
    base::{
        error::{AllocError, Error},
        flags::HwptFlags,
        id::{ObjectId, Use},
        queue::Queue,
        user::UserData,
    },
    hardware::{
        device::DeviceObject,
        fault::FaultHandler,
        hw::NestedOps,
        hwpt::{Hwpt, HwptAlloc, Kind, NestedTable},
        paging::PagingTable,
        viommu::Viommu,
    },
    space::{domains::Attributes, ioas::Ioas},
};

/// What page table objects are made of, and where they are kept. Used with the lock of attachments
/// held.
#[derive(Clone, Copy)]
pub(crate) struct PageTables<'a> {
    pub(crate) objects: &'a Arc<Objects>,
    pub(crate) iommu: &'a Arc<Iommu>,
}

impl PageTables<'_> {
    /// A page table object that a program asks for.
    pub(crate) fn alloc(
        &self,
        args: HwptAlloc,
        data: Option<&UserData<'_>>,
    ) -> Result<ObjectId, Error> {
        let data = data.filter(|data| !data.is_empty());
        let device = self.objects.device(args.device)?;
        let parent = self.objects.lock().object(args.parent);
        let new = match parent {
            Some(Object::Ioas(ioas)) => {
                args.flags.check_paging(device.ops().supports_dirty())?;
                self.new_paging(&ioas, &device, args.flags, false, data)?
            }
            Some(Object::Hwpt(parent)) if parent.paging().is_some() => {
                self.nest_on_hwpt(&parent, &device, args.flags, data)?
            }
            Some(Object::Viommu(viommu)) => {
                if viommu.instance() != device.ops().instance() {
                    return Err(AllocError::OtherIommu {
                        device: device.id(),
                        viommu: viommu.id(),
                    }
                    .into());
                }
                self.nest_on_viommu(&viommu, args.flags, data)?
            }
            _ => return Err(AllocError::NotAParent(args.parent).into()),
        };
        if args.flags.contains(HwptFlags::FAULT_ID_VALID) {
            self.send_faults(new, ObjectId::from_raw(args.fault_id))
        } else {
            Ok(new.install().id())
        }
    }

    /// A page table on `ioas` that an attach to the IOAS itself needs.
    pub(crate) fn make_automatic(
        &self,
        ioas: &Arc<Ioas>,
        device: &DeviceObject,
    ) -> Result<Arc<Hwpt>, Error> {
        let new = self.new_paging(ioas, device, HwptFlags::NONE, true, None)?;
        Ok(new.install())
    }

    /// The automatic page tables of an IOAS.
    pub(crate) fn automatic_of(&self, ioas: &Ioas) -> Vec<Arc<Hwpt>> {
        let hwpts = self.objects.all().into_iter();
        let hwpts = hwpts.filter_map(|object| match object {
            Object::Hwpt(hwpt) => Some(hwpt),
            _ => None,
        });
        hwpts
            .filter(|hwpt| hwpt.is_automatic() && hwpt.ioas().id() == ioas.id())
            .collect()
    }

    /// An attachment of `hwpt` is over: an automatic page table goes with the last.
    pub(crate) fn discard_if_unused(&self, hwpt: &Hwpt) {
        if hwpt.is_automatic() && !self.objects.lock().is_used(hwpt.id()) {
            self.objects.forget(hwpt.id());
            hwpt.release();
        }
    }

    fn new_paging(
        &self,
        ioas: &Arc<Ioas>,
        device: &DeviceObject,
        flags: HwptFlags,
        automatic: bool,
        data: Option<&UserData<'_>>,
    ) -> Result<NewHwpt, Error> {
        let id = self.objects.reserve()?;
        let ops = device.ops();
        let paging = ops.alloc_paging(flags.without(HwptFlags::FAULT_ID_VALID), data)?;
        let attributes = Attributes::new(id.id(), &paging, ops.supports_dirty(), flags);
        let used = self.objects.use_of(ioas.id())?;
        let domain = ioas.domain(attributes, |config| self.alloc_domain(config))?;
        let table = PagingTable::new(
            id.id(),
            flags,
            Arc::clone(ioas),
            domain,
            automatic,
            ops.enforces_coherency(),
        );
        let hwpt = Hwpt::new(id.id(), flags, ops.instance(), Kind::Paging(table));
        Ok(NewHwpt::new(id, hwpt, used))
    }

    fn alloc_domain(&self, config: DomainConfig) -> Result<Arc<Domain>, Error> {
        Ok(self.iommu.alloc_domain(config)?)
    }

    fn nest_on_hwpt(
        &self,
        parent: &Arc<Hwpt>,
        device: &DeviceObject,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<NewHwpt, Error> {
        flags.check_nested()?;
        let data = data.ok_or(AllocError::NoData)?;
        let ops = device.ops();
        if !ops.knows_nesting() {
            return Err(AllocError::NoNesting(device.device().format()).into());
        }
        let table = parent.nest_parent();
        let table = table.filter(|_| parent.instance() == ops.instance());
        let table = table.ok_or(AllocError::NotAParent(parent.id()))?;
        let flags_of_driver = flags.without(HwptFlags::FAULT_ID_VALID);
        let id = self.objects.reserve()?;
        let nested = ops.alloc_nested(table.domain().domain(), flags_of_driver, data)?;
        let target = self.nested_target(table, &*nested)?;
        let nested = NestedTable::new(Arc::clone(table), None, nested, target);
        let used = self.objects.use_of(parent.id())?;
        let hwpt = Hwpt::new(id.id(), flags, parent.instance(), Kind::Nested(nested));
        Ok(NewHwpt::new(id, hwpt, used))
    }

    fn nest_on_viommu(
        &self,
        viommu: &Arc<Viommu>,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<NewHwpt, Error> {
        flags.check_nested()?;
        let data = data.ok_or(AllocError::NoData)?;
        let flags_of_driver = flags.without(HwptFlags::FAULT_ID_VALID);
        let table = viommu.parent();
        let id = self.objects.reserve()?;
        let nested: Arc<dyn NestedOps> = viommu.ops().alloc_nested(flags_of_driver, data)?;
        let target = self.nested_target(table, &*nested)?;
        let nested = NestedTable::new(Arc::clone(table), Some(viommu.clone()), nested, target);
        let used = self.objects.use_of(viommu.id())?;
        let hwpt = Hwpt::new(id.id(), flags, viommu.instance(), Kind::Nested(nested));
        Ok(NewHwpt::new(id, hwpt, used))
    }

    /// The domain for `nested` on `parent`: its own, or one that blocks if its back end does the DMA.
    fn nested_target(
        &self,
        parent: &PagingTable,
        nested: &dyn NestedOps,
    ) -> Result<Arc<Domain>, Error> {
        if let Some(domain) = nested.domain() {
            return Ok(Arc::clone(domain));
        }
        self.alloc_domain(DomainConfig {
            kind: DomainKind::Blocked,
            dirty_tracking: false,
            ..*parent.domain().domain().config()
        })
    }

    /// Installs a page table whose page requests go to the fault queue `queue`.
    fn send_faults(&self, mut new: NewHwpt, queue: ObjectId) -> Result<ObjectId, Error> {
        let queue = self.objects.fault_queue(queue)?;
        failpoint::allocation()?;
        new.uses.push(self.objects.use_of(queue.id())?);
        new.hwpt.send_faults(FaultHandler::new(self.iommu, &queue));
        Ok(new.install().id())
    }
}

/// A page table object that is not in the table yet: if it never comes there, its part of the
/// domain is given back.
struct NewHwpt {
    hwpt: Arc<Hwpt>,
    uses: Vec<Use>,
    /// Taken by [`NewHwpt::install`].
    id: Option<ReservedId>,
}

impl NewHwpt {
    fn new(id: ReservedId, hwpt: Arc<Hwpt>, used: Use) -> Self {
        NewHwpt {
            hwpt,
            uses: vec![used],
            id: Some(id),
        }
    }

    fn install(mut self) -> Arc<Hwpt> {
        let hwpt = Arc::clone(&self.hwpt);
        if let Some(id) = self.id.take() {
            let uses = std::mem::take(&mut self.uses);
            id.name(Object::Hwpt(Arc::clone(&hwpt)), uses);
        }
        hwpt
    }
}

impl Drop for NewHwpt {
    fn drop(&mut self) {
        if self.id.is_some() {
            self.hwpt.release();
        }
    }
}
