//! Attaching devices to page tables: drivers/iommu/iommufd/device.c in short.
//!
//! Attachments are kept by group and PASID, because all devices of a group stand on one page table;
//! a default-PASID child is a group of its own. The lock over them is held through a whole attach,
//! detach or destroy, barrier included, and never taken by MAP, UNMAP or inspection.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ioasid_core::{Pasid, failpoint};
use ioasid_iommu::{OnAnswer, PageResponse};

use super::{object::Object, page_tables::PageTables, table::Objects};
use crate::{
    base::{
        error::{AttachError, Error, Mismatch},
        flags::HwptFlags,
        id::{ObjectId, Use},
    },
    hardware::{
        attach_point::{AttachPoint, Slot},
        device::{DeviceObject, GroupKey},
        fault::{Handle, PageFault, Reported},
        hw::{Target, TargetKind},
        hwpt::Hwpt,
    },
    space::ioas::Ioas,
};

/// What an attach does with what is attached already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// There must be nothing.
    Attach,
    /// There must be something.
    Replace,
    /// Whichever fits: what VFIO makes of the two.
    AttachOrReplace,
}

/// What one group (or child) is attached to at one PASID (or none).
#[derive(Debug)]
struct Attachment {
    hwpt: Arc<Hwpt>,
    /// The page table cannot be destroyed.
    _used: Use,
    handle: Handle,
    /// The device that attached the group: page requests are reported as this one's.
    reporter: ObjectId,
    devices: BTreeSet<ObjectId>,
}

/// Every attachment of a context.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    slots: BTreeMap<Slot, Attachment>,
    last_handle: u64,
}

impl Attachments {
    /// The rule that keeps PASIDs that a program chose and page tables that were not made for them
    /// apart. A child is not concerned: no program chose its PASID.
    fn check_pasids(&self, at: AttachPoint<'_>, hwpt: HwptFlags) -> Result<(), AttachError> {
        let (group, pasid) = at.slot();
        if matches!(group, GroupKey::Child(_)) {
            return Ok(());
        }
        let suits = hwpt.contains(HwptFlags::PASID);
        let fits = match pasid {
            None => {
                let mut slots = self.slots.keys();
                suits || !slots.any(|(other, pasid)| *other == group && pasid.is_some())
            }
            Some(_) => {
                let primary = self.slots.get(&(group, None));
                suits && primary.is_none_or(|at| at.hwpt.flags().contains(HwptFlags::PASID))
            }
        };
        if fits {
            Ok(())
        } else {
            let device = at.device().id();
            Err(AttachError::NotForPasids { device })
        }
    }

    /// The checks of a page table for one point: by the rules of all IOMMUs, then by the device's.
    fn check(&self, at: AttachPoint<'_>, hwpt: &Hwpt, target: &Target) -> Result<(), Error> {
        let device = at.device();
        let asks = device.device().supports_page_requests();
        // iommufd_hwpt_compatible_device, drivers/iommu/iommufd/device.c.
        if hwpt.faults().is_some() && device.device().is_virtual_function() && asks {
            return Err(AttachError::from(Mismatch::SharedPageRequests).into());
        }
        self.check_pasids(at, hwpt.flags())?;
        if let Some(pasid) = at.pasid()
            && pasid.get() >= device.device().max_pasids()
        {
            return Err(device.no_such_pasid(pasid.get()).into());
        }
        if let Some(mismatch) = mismatch(hwpt, device) {
            return Err(AttachError::from(mismatch).into());
        }
        if hwpt.faults().is_some() && !asks {
            return Err(AttachError::NoPageRequests(device.id()).into());
        }
        device.ops().check_attach(at.pasid(), target)
    }

    /// A handle for a new attachment, known to what takes its page requests.
    fn new_handle(&mut self, at: AttachPoint<'_>, hwpt: &Hwpt) -> Handle {
        self.last_handle += 1;
        let handle = Handle(self.last_handle);
        if let Some(faults) = hwpt.faults() {
            let reported = Reported {
                handle,
                device: at.device().id(),
                pasid: at.pasid(),
            };
            let source = at.source();
            for member in source.device.group().devices() {
                faults.enter(member.address(), source.pasid, reported);
            }
        }
        handle
    }
}

/// What the page table is made for that the device's IOMMU cannot do, if anything.
fn mismatch(hwpt: &Hwpt, device: &DeviceObject) -> Option<Mismatch> {
    if hwpt.needs_dirty_tracking() && !device.ops().supports_dirty() {
        return Some(Mismatch::DirtyTracking);
    }
    let nested = hwpt.nested()?;
    // The device's IOMMU walks the parent's table too.
    let walked = nested.ops().domain().is_none_or(|domain| {
        let table = domain.config().format;
        table.is_walked_with(device.device().format())
    });
    (hwpt.instance() != device.ops().instance() || !walked).then_some(Mismatch::OtherIommu)
}

fn already_attached(at: AttachPoint<'_>) -> Error {
    AttachError::Attached {
        device: at.device().id(),
        pasid: at.pasid().map(Pasid::get),
    }
    .into()
}

fn nothing_to_replace(at: AttachPoint<'_>) -> Error {
    AttachError::NothingToReplace {
        device: at.device().id(),
        pasid: at.pasid().map(Pasid::get),
    }
    .into()
}

/// The attachment is over, or never came to be.
fn leave_faults(hwpt: &Hwpt, handle: Handle) {
    if let Some(faults) = hwpt.faults() {
        faults.leave(handle);
    }
}

/// A page table, as a device's IOMMU sees it.
fn target(hwpt: &Hwpt, device: &DeviceObject) -> Target {
    let kind = match hwpt.nested() {
        None => TargetKind::Paging(Arc::clone(hwpt.target())),
        Some(nested) => TargetKind::Nested {
            nested: Arc::clone(nested.ops()),
            viommu: nested.viommu().cloned(),
            virt_id: nested.viommu().and_then(|viommu| {
                let virt_id = device.virt_id()?;
                (virt_id.viommu == viommu.id()).then_some(virt_id.number)
            }),
        },
    };
    Target {
        hwpt: hwpt.id(),
        flags: hwpt.flags(),
        kind,
    }
}

impl Attachments {
    /// Attaches a device, or a PASID of it, to the IOAS or page table `pt_id`; returns the page
    /// table.
    pub(crate) fn attach(
        &mut self,
        tables: &PageTables<'_>,
        at: AttachPoint<'_>,
        pt_id: ObjectId,
        change: Change,
    ) -> Result<ObjectId, Error> {
        match attachable(tables.objects, pt_id)? {
            Object::Hwpt(hwpt) => {
                self.attach_hwpt(tables, at, &hwpt, change)?;
                Ok(hwpt.id())
            }
            Object::Ioas(ioas) => self.attach_ioas(tables, at, &ioas, change),
            _ => Err(AttachError::NotAttachable(pt_id).into()),
        }
    }

    /// Attaches to the first automatic page table of the IOAS that suits, or to a new one.
    fn attach_ioas(
        &mut self,
        tables: &PageTables<'_>,
        at: AttachPoint<'_>,
        ioas: &Arc<Ioas>,
        change: Change,
    ) -> Result<ObjectId, Error> {
        for hwpt in tables.automatic_of(ioas) {
            match self.attach_hwpt(tables, at, &hwpt, change) {
                Ok(()) => return Ok(hwpt.id()),
                Err(error) if error.is_mismatch() => {}
                Err(error) => return Err(error),
            }
        }
        let device = at.device().id();
        let old = self.slots.get(&at.slot());
        let old = old.filter(|old| old.devices.contains(&device));
        let stays = old.is_some_and(|old| old.hwpt.ioas().id() == ioas.id());
        match change {
            Change::Attach if old.is_some() => return Err(already_attached(at)),
            Change::Replace if old.is_none() => return Err(nothing_to_replace(at)),
            _ => {}
        }
        // The reserved ranges come before the pages: a map in their way is the first error seen.
        let reserved = at.reserved();
        let reserves = !reserved.is_empty() && !stays;
        if reserves {
            ioas.reserve(device, reserved)?;
        }
        let attached = self.attach_new(tables, at, ioas, change);
        if attached.is_err() && reserves {
            ioas.unreserve(device);
        }
        attached
    }

    /// Attaches to a new automatic page table of the IOAS.
    fn attach_new(
        &mut self,
        tables: &PageTables<'_>,
        at: AttachPoint<'_>,
        ioas: &Arc<Ioas>,
        change: Change,
    ) -> Result<ObjectId, Error> {
        self.check_pasids(at, HwptFlags::NONE)?;
        let hwpt = tables.make_automatic(ioas, at.device())?;
        let attached = self.attach_hwpt(tables, at, &hwpt, change);
        tables.discard_if_unused(&hwpt);
        attached.map(|()| hwpt.id())
    }

    /// Attaches to this page table, or replaces what is attached.
    fn attach_hwpt(
        &mut self,
        tables: &PageTables<'_>,
        at: AttachPoint<'_>,
        hwpt: &Arc<Hwpt>,
        change: Change,
    ) -> Result<(), Error> {
        let id = at.device().id();
        match self.slots.get(&at.slot()) {
            Some(old) if old.devices.contains(&id) => match change {
                Change::Attach => Err(already_attached(at)),
                Change::Replace | Change::AttachOrReplace => self.replace(tables, at, hwpt),
            },
            _ if change == Change::Replace => Err(nothing_to_replace(at)),
            Some(old) if old.hwpt.id() != hwpt.id() => Err(AttachError::GroupElsewhere {
                attached: old.hwpt.id(),
                wanted: hwpt.id(),
            }
            .into()),
            Some(_) => {
                // The group is there already: only the device's own reserved ranges are new.
                failpoint::allocation()?;
                hwpt.ioas().reserve(id, at.reserved())?;
                if let Some(attachment) = self.slots.get_mut(&at.slot()) {
                    attachment.devices.insert(id);
                }
                Ok(())
            }
            None => self.attach_group(tables.objects, at, hwpt),
        }
    }

    /// Attaches a group, or a child, that is attached to nothing at this PASID.
    fn attach_group(
        &mut self,
        objects: &Objects,
        at: AttachPoint<'_>,
        hwpt: &Arc<Hwpt>,
    ) -> Result<(), Error> {
        let device = at.device();
        let used = objects.use_of(hwpt.id())?;
        hwpt.ioas().reserve(device.id(), at.reserved())?;
        let target = target(hwpt, device);
        let attached = self.attach_domain(at, hwpt, &target);
        let handle = attached.inspect_err(|_| {
            if at.reserves() {
                hwpt.ioas().unreserve(device.id());
            }
        })?;
        device.ops().attached(at.pasid(), Some(&target));
        let attachment = Attachment {
            hwpt: Arc::clone(hwpt),
            _used: used,
            handle,
            reporter: device.id(),
            devices: BTreeSet::from([device.id()]),
        };
        self.slots.insert(at.slot(), attachment);
        Ok(())
    }

    /// Attaches the domain of a page table; all or nothing.
    fn attach_domain(
        &mut self,
        at: AttachPoint<'_>,
        hwpt: &Hwpt,
        target: &Target,
    ) -> Result<Handle, Error> {
        self.check(at, hwpt, target)?;
        failpoint::allocation()?;
        let handle = self.new_handle(at, hwpt);
        let attached = at.attach(hwpt.target());
        attached.inspect_err(|_| leave_faults(hwpt, handle))?;
        Ok(handle)
    }

    /// Moves a whole group from its page table to another, in one step; all or nothing.
    fn replace(
        &mut self,
        tables: &PageTables<'_>,
        at: AttachPoint<'_>,
        hwpt: &Arc<Hwpt>,
    ) -> Result<(), Error> {
        let Some(before) = self.slots.get(&at.slot()) else {
            return Ok(());
        };
        let (old, old_handle) = (Arc::clone(&before.hwpt), before.handle);
        let devices = before.devices.clone();
        if old.id() == hwpt.id() {
            return Ok(());
        }
        let used = tables.objects.use_of(hwpt.id())?;
        let device = at.device();
        let moves = at.reserves() && old.ioas().id() != hwpt.ioas().id();
        let unreserve = |ioas: &Ioas| devices.iter().for_each(|id| ioas.unreserve(*id));
        let target = target(hwpt, device);
        let mut change = || {
            if moves {
                for id in &devices {
                    if let Ok(device) = tables.objects.device(*id) {
                        let reserved = AttachPoint::at(&device, at.pasid()).reserved();
                        hwpt.ioas().reserve(*id, reserved)?;
                    }
                }
            }
            self.check(at, hwpt, &target)?;
            failpoint::allocation()?;
            let handle = self.new_handle(at, hwpt);
            // Two page tables on one domain: nothing changes for the device.
            if !Arc::ptr_eq(old.target(), hwpt.target()) {
                let replaced = at.replace(hwpt.target());
                replaced.inspect_err(|_| leave_faults(hwpt, handle))?;
            }
            Ok(handle)
        };
        let handle = change().inspect_err(|_: &Error| {
            if moves {
                unreserve(hwpt.ioas());
            }
        })?;
        leave_faults(&old, old_handle);
        device.ops().attached(at.pasid(), Some(&target));
        if moves {
            unreserve(old.ioas());
        }
        if let Some(attachment) = self.slots.get_mut(&at.slot()) {
            attachment.hwpt = Arc::clone(hwpt);
            attachment._used = used;
            attachment.handle = handle;
            attachment.reporter = device.id();
        }
        tables.discard_if_unused(&old);
        Ok(())
    }

    /// Detaches what is attached, if anything; returns after the barrier.
    pub(crate) fn detach(&mut self, tables: &PageTables<'_>, at: AttachPoint<'_>) {
        let device = at.device();
        let Some(attachment) = self.slots.get_mut(&at.slot()) else {
            return;
        };
        if !attachment.devices.remove(&device.id()) {
            return;
        }
        let hwpt = Arc::clone(&attachment.hwpt);
        if attachment.devices.is_empty()
            && let Some(last) = self.slots.remove(&at.slot())
        {
            at.detach();
            leave_faults(&hwpt, last.handle);
            device.ops().attached(at.pasid(), None);
        }
        if at.reserves() {
            hwpt.ioas().unreserve(device.id());
        }
        tables.discard_if_unused(&hwpt);
    }

    /// Detaches a device, itself and at every PASID.
    pub(crate) fn detach_all(&mut self, tables: &PageTables<'_>, device: &DeviceObject) {
        let group = device.group_key();
        let slots = self.slots.keys().filter(|slot| slot.0 == group);
        let pasids: Vec<Option<Pasid>> = slots.map(|slot| slot.1).collect();
        for pasid in pasids {
            self.detach(tables, AttachPoint::at(device, pasid));
        }
    }

    /// The page table that is attached.
    pub(crate) fn attached(&self, at: AttachPoint<'_>) -> Option<ObjectId> {
        let attachment = self.slots.get(&at.slot())?;
        let attached = attachment.devices.contains(&at.device().id());
        attached.then(|| attachment.hwpt.id())
    }

    /// Reports a page request of a device whose DMA is a back end's own to the fault queue of what
    /// the device is attached to, or answers that it is invalid if there is none.
    pub(crate) fn report_page_fault(
        &self,
        device: &DeviceObject,
        fault: PageFault,
        on_answer: OnAnswer,
    ) {
        let group = device.group_key();
        let own = self.slots.get(&(group, None));
        let at = match fault.pasid {
            None => own,
            Some(pasid) => {
                let at = Pasid::new(pasid);
                let at = at.and_then(|pasid| self.slots.get(&(group, Some(pasid))));
                let nested = own.filter(|own| {
                    device.ops().has_user_pasid_table() && own.hwpt.nested().is_some()
                });
                at.or(nested)
            }
        };
        let faults = at.and_then(|at| Some((at.hwpt.faults()?, at)));
        match faults {
            Some((faults, at)) => {
                let reported = Reported {
                    handle: at.handle,
                    device: at.reporter,
                    pasid: None,
                };
                faults.report(reported, fault, on_answer);
            }
            None => on_answer(PageResponse::Invalid),
        }
    }
}

/// The object, if a device can be attached to such.
pub(crate) fn attachable(objects: &Objects, id: ObjectId) -> Result<Object, Error> {
    match objects.object(id)? {
        object @ (Object::Ioas(_) | Object::Hwpt(_)) => Ok(object),
        _ => Err(AttachError::NotAttachable(id).into()),
    }
}
