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

use crate::{
    context::Context,
    device::DeviceObject,
    error::Error,
    fault::{Handle, PageFault, Reported},
    hw::{Target, TargetKind},
    hwpt::{Hwpt, HwptFlags},
    ioas::Ioas,
    object::{Object, ObjectId},
};

/// Whose attachments: those of a group, or of one default-PASID child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holder {
    Group(u32),
    Child(ObjectId),
}

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

type Seat = (Holder, Option<Pasid>);

/// What one group (or child) is attached to at one PASID (or none).
#[derive(Debug)]
struct Attachment {
    hwpt: Arc<Hwpt>,
    handle: Handle,
    /// The device that attached the group: page requests are told as this one's.
    attacher: ObjectId,
    devices: BTreeSet<ObjectId>,
}

/// Every attachment of a context.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    seats: BTreeMap<Seat, Attachment>,
    last_handle: u64,
}

impl Attachments {
    /// The rule that keeps PASIDs that a program chose and page tables that were not made for them
    /// apart. A child is not concerned: nobody chose its PASID.
    fn check_pasids(&self, seat: Seat, hwpt: HwptFlags) -> Result<(), Error> {
        let (holder, pasid) = seat;
        if matches!(holder, Holder::Child(_)) {
            return Ok(());
        }
        let suits = hwpt.contains(HwptFlags::PASID);
        let fits = match pasid {
            None => {
                let mut seats = self.seats.keys();
                suits || !seats.any(|(other, pasid)| *other == holder && pasid.is_some())
            }
            Some(_) => {
                let primary = self.seats.get(&(holder, None));
                suits && primary.is_none_or(|at| at.hwpt.flags().contains(HwptFlags::PASID))
            }
        };
        if fits {
            Ok(())
        } else {
            Err(Error::NotForPasids)
        }
    }

    /// The checks of a page table for one seat: by the rules of all IOMMUs, then by the device's.
    fn check(
        &self,
        seat: Seat,
        device: &DeviceObject,
        hwpt: &Hwpt,
        target: &Target,
    ) -> Result<(), Error> {
        self.check_pasids(seat, hwpt.flags())?;
        if hwpt.flags().contains(HwptFlags::DIRTY_TRACKING) && !device.ops().supports_dirty() {
            return Err(Error::Incompatible);
        }
        if hwpt.nested().is_some() && hwpt.instance() != device.ops().instance() {
            return Err(Error::Incompatible);
        }
        if hwpt.faults().is_some() && !device.device().supports_page_requests() {
            return Err(Error::Incompatible);
        }
        if let Some(pasid) = seat.1
            && pasid.get() >= device.device().max_pasids()
        {
            return Err(Error::NoSuchPasid);
        }
        device.ops().check_attach(seat.1, target)
    }

    /// A handle for a new attachment, known to whoever takes its page requests.
    fn enter(&mut self, pasid: Option<Pasid>, device: &DeviceObject, hwpt: &Hwpt) -> Handle {
        self.last_handle += 1;
        let handle = Handle(self.last_handle);
        if let Some(faults) = hwpt.faults() {
            let reported = Reported {
                handle,
                device: device.id(),
                pasid,
            };
            for member in device.device().group().devices() {
                faults.enter(member.address(), device.route(pasid), reported);
            }
        }
        handle
    }
}

/// The attachment is over, or never came to be.
fn leave_faults(hwpt: &Hwpt, handle: Handle) {
    if let Some(faults) = hwpt.faults() {
        faults.leave(handle);
    }
}

/// What a device's IOMMU is told of a page table.
fn target(hwpt: &Hwpt, device: &DeviceObject) -> Target {
    let kind = match hwpt.nested() {
        None => TargetKind::Paging(Arc::clone(hwpt.target())),
        Some(nested) => TargetKind::Nested {
            nested: Arc::clone(nested.ops()),
            viommu: nested.viommu().cloned(),
            virt_id: nested.viommu().and_then(|viommu| {
                let vdevice = device.vdevice()?;
                Arc::ptr_eq(vdevice.viommu(), viommu).then(|| vdevice.virt_id())
            }),
        },
    };
    Target {
        hwpt: hwpt.id(),
        flags: hwpt.flags(),
        kind,
    }
}

impl Context {
    /// The object, if a device can be attached to such.
    pub(crate) fn attachable(&self, id: ObjectId) -> Result<Object, Error> {
        match self.objects.lock().object(id) {
            None => Err(Error::NoObject(id)),
            Some(object @ (Object::Ioas(_) | Object::Hwpt(_))) => Ok(object),
            Some(_) => Err(Error::NotAttachable(id)),
        }
    }

    pub(crate) fn attach(
        &self,
        device: &Arc<DeviceObject>,
        pasid: Option<Pasid>,
        pt_id: ObjectId,
        change: Change,
    ) -> Result<ObjectId, Error> {
        let mut seats = self.attachments.lock();
        match self.attachable(pt_id)? {
            Object::Hwpt(hwpt) => {
                self.attach_hwpt(&mut seats, device, pasid, &hwpt, change)?;
                Ok(hwpt.id())
            }
            Object::Ioas(ioas) => self.attach_ioas(&mut seats, device, pasid, &ioas, change),
            _ => Err(Error::NotAttachable(pt_id)),
        }
    }

    /// Attaches to the first automatic page table of the IOAS that suits, or to a new one.
    fn attach_ioas(
        &self,
        seats: &mut Attachments,
        device: &Arc<DeviceObject>,
        pasid: Option<Pasid>,
        ioas: &Arc<Ioas>,
        change: Change,
    ) -> Result<ObjectId, Error> {
        for hwpt in self.automatic_hwpts(ioas) {
            match self.attach_hwpt(seats, device, pasid, &hwpt, change) {
                Ok(()) => return Ok(hwpt.id()),
                Err(error) if error.is_mismatch() => {}
                Err(error) => return Err(error),
            }
        }
        let seat = (device.holder(), pasid);
        let reserved = device.reserved(pasid);
        let at = seats.seats.get(&seat);
        let attached = at.is_some_and(|at| at.devices.contains(&device.id()));
        let stays = attached && at.is_some_and(|at| at.hwpt.ioas().id() == ioas.id());
        match change {
            Change::Attach if attached => return Err(Error::DeviceBusy),
            Change::Replace if !attached => return Err(Error::NothingToReplace),
            _ => {}
        }
        // The reserved ranges come before the pages: a map in their way is the first error seen.
        let reserves = !reserved.is_empty() && !stays;
        if reserves {
            ioas.reserve(device.id(), reserved)?;
        }
        let attach = |seats: &mut Attachments| {
            seats.check_pasids(seat, HwptFlags::NONE)?;
            let hwpt = self.make_hwpt(ioas, device, HwptFlags::NONE, true, None)?;
            let attached = self.attach_hwpt(seats, device, pasid, &hwpt, change);
            if attached.is_err() {
                self.discard(&hwpt);
            }
            attached.map(|()| hwpt.id())
        };
        let attached = attach(seats);
        if attached.is_err() && reserves {
            ioas.unreserve(device.id());
        }
        attached
    }

    /// Attaches to this page table, or replaces what is attached.
    fn attach_hwpt(
        &self,
        seats: &mut Attachments,
        device: &Arc<DeviceObject>,
        pasid: Option<Pasid>,
        hwpt: &Arc<Hwpt>,
        change: Change,
    ) -> Result<(), Error> {
        let seat = (device.holder(), pasid);
        let id = device.id();
        match seats.seats.get(&seat) {
            Some(at) if at.devices.contains(&id) => match change {
                Change::Attach => Err(Error::DeviceBusy),
                _ => self.replace(seats, seat, device, hwpt),
            },
            _ if change == Change::Replace => Err(Error::NothingToReplace),
            Some(at) if at.hwpt.id() != hwpt.id() => Err(Error::GroupElsewhere),
            Some(_) => {
                // The group is there already: only the device's own reserved ranges are new.
                failpoint::allocation()?;
                hwpt.ioas().reserve(id, device.reserved(pasid))?;
                if let Some(at) = seats.seats.get_mut(&seat) {
                    at.devices.insert(id);
                }
                self.objects.lock().hold(hwpt.id());
                Ok(())
            }
            None => self.attach_group(seats, seat, device, hwpt),
        }
    }

    /// Attaches a group, or a child, that is attached to nothing at this PASID.
    fn attach_group(
        &self,
        seats: &mut Attachments,
        seat: Seat,
        device: &Arc<DeviceObject>,
        hwpt: &Arc<Hwpt>,
    ) -> Result<(), Error> {
        let pasid = seat.1;
        hwpt.ioas().reserve(device.id(), device.reserved(pasid))?;
        let target = target(hwpt, device);
        let attach = |seats: &mut Attachments| {
            seats.check(seat, device, hwpt, &target)?;
            failpoint::allocation()?;
            let handle = seats.enter(pasid, device, hwpt);
            let pointed = device.point(pasid, hwpt.target());
            if pointed.is_err() {
                leave_faults(hwpt, handle);
            }
            pointed.map(|()| handle)
        };
        let handle = match attach(seats) {
            Ok(handle) => handle,
            Err(error) => {
                if device.reserves(pasid) {
                    hwpt.ioas().unreserve(device.id());
                }
                return Err(error);
            }
        };
        device.ops().attached(pasid, Some(&target));
        let at = Attachment {
            hwpt: Arc::clone(hwpt),
            handle,
            attacher: device.id(),
            devices: BTreeSet::from([device.id()]),
        };
        seats.seats.insert(seat, at);
        self.objects.lock().hold(hwpt.id());
        Ok(())
    }

    /// Moves a whole group from its page table to another, in one step; all or nothing.
    fn replace(
        &self,
        seats: &mut Attachments,
        seat: Seat,
        device: &Arc<DeviceObject>,
        hwpt: &Arc<Hwpt>,
    ) -> Result<(), Error> {
        let Some(at) = seats.seats.get(&seat) else {
            return Ok(());
        };
        let (old, old_handle, devices) = (Arc::clone(&at.hwpt), at.handle, at.devices.clone());
        if old.id() == hwpt.id() {
            return Ok(());
        }
        let pasid = seat.1;
        let moves = device.reserves(pasid) && old.ioas().id() != hwpt.ioas().id();
        let unreserve = |ioas: &Ioas| devices.iter().for_each(|id| ioas.unreserve(*id));
        let target = target(hwpt, device);
        let mut change = || {
            if moves {
                for id in &devices {
                    let object = self.objects.lock().object(*id);
                    if let Some(Object::Device(device)) = object {
                        hwpt.ioas().reserve(*id, device.reserved(pasid))?;
                    }
                }
            }
            seats.check(seat, device, hwpt, &target)?;
            failpoint::allocation()?;
            let handle = seats.enter(pasid, device, hwpt);
            // Two page tables on one domain: nothing changes for the device.
            if !Arc::ptr_eq(old.target(), hwpt.target())
                && let Err(error) = device.repoint(pasid, hwpt.target())
            {
                leave_faults(hwpt, handle);
                return Err(error);
            }
            Ok(handle)
        };
        let handle = match change() {
            Ok(handle) => handle,
            Err(error) => {
                if moves {
                    unreserve(hwpt.ioas());
                }
                return Err(error);
            }
        };
        leave_faults(&old, old_handle);
        device.ops().attached(pasid, Some(&target));
        if moves {
            unreserve(old.ioas());
        }
        if let Some(at) = seats.seats.get_mut(&seat) {
            at.hwpt = Arc::clone(hwpt);
            at.handle = handle;
            at.attacher = device.id();
        }
        for _ in &devices {
            self.objects.lock().hold(hwpt.id());
        }
        for _ in &devices {
            self.put_hwpt(&old);
        }
        Ok(())
    }

    pub(crate) fn detach(&self, device: &Arc<DeviceObject>, pasid: Option<Pasid>) {
        let mut seats = self.attachments.lock();
        self.leave(&mut seats, device, (device.holder(), pasid));
    }

    /// Takes a device off its seat, if it has one; returns after the barrier.
    fn leave(&self, seats: &mut Attachments, device: &Arc<DeviceObject>, seat: Seat) {
        let Some(at) = seats.seats.get_mut(&seat) else {
            return;
        };
        if !at.devices.remove(&device.id()) {
            return;
        }
        let (hwpt, handle) = (Arc::clone(&at.hwpt), at.handle);
        if at.devices.is_empty() {
            seats.seats.remove(&seat);
            device.unpoint(seat.1);
            leave_faults(&hwpt, handle);
            device.ops().attached(seat.1, None);
        }
        if device.reserves(seat.1) {
            hwpt.ioas().unreserve(device.id());
        }
        self.put_hwpt(&hwpt);
    }

    /// Detaches a device from everything and takes its object away. Its number on a virtual IOMMU
    /// goes first; the id of that object stays taken.
    pub(crate) fn unbind(&self, device: &Arc<DeviceObject>) {
        let mut seats = self.attachments.lock();
        if let Some(vdevice) = device.vdevice() {
            vdevice.release();
            let mut objects = self.objects.lock();
            objects.bury(vdevice.id());
            objects.put(vdevice.viommu().id());
        }
        let holder = device.holder();
        let its: Vec<Seat> = seats
            .seats
            .keys()
            .copied()
            .filter(|seat| seat.0 == holder)
            .collect();
        for seat in its {
            self.leave(&mut seats, device, seat);
        }
        self.objects.lock().forget(device.id());
        device.release_ownership();
        drop(seats);
        self.finish_close();
    }

    pub(crate) fn attached(&self, device: &DeviceObject, pasid: Option<Pasid>) -> Option<ObjectId> {
        let seats = self.attachments.lock();
        let at = seats.seats.get(&(device.holder(), pasid))?;
        at.devices.contains(&device.id()).then(|| at.hwpt.id())
    }

    /// A page request of a device whose DMA is a back end's own: goes to the fault queue of what the
    /// device is attached to, or is answered invalid if there is none.
    ///
    /// # Errors
    /// [`Error::NoObject`] if there is no such device.
    pub fn report_page_fault(
        &self,
        device: ObjectId,
        fault: PageFault,
        on_answer: OnAnswer,
    ) -> Result<(), Error> {
        let device = self.device(device)?;
        let holder = device.holder();
        let seats = self.attachments.lock();
        let own = seats.seats.get(&(holder, None));
        let at = match fault.pasid {
            None => own,
            Some(pasid) => {
                let at = Pasid::new(pasid);
                let at = at.and_then(|pasid| seats.seats.get(&(holder, Some(pasid))));
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
                    device: at.attacher,
                    pasid: None,
                };
                faults.report(reported, fault, on_answer);
            }
            None => on_answer(PageResponse::Invalid),
        }
        Ok(())
    }

    /// Ends one attachment of a page table; an automatic one goes with the last.
    fn put_hwpt(&self, hwpt: &Arc<Hwpt>) {
        let users = self.objects.lock().put(hwpt.id());
        if users == 0 && hwpt.is_automatic() {
            self.discard(hwpt);
        }
    }

    /// Takes a page table object away that nothing is attached to.
    pub(crate) fn discard(&self, hwpt: &Hwpt) {
        {
            let mut objects = self.objects.lock();
            objects.forget(hwpt.id());
            for used in hwpt.holds() {
                objects.put(used);
            }
        }
        hwpt.release();
    }

    fn automatic_hwpts(&self, ioas: &Ioas) -> Vec<Arc<Hwpt>> {
        let objects = self.objects.lock().objects();
        let hwpts = objects.into_iter().filter_map(|object| match object {
            Object::Hwpt(hwpt) => Some(hwpt),
            _ => None,
        });
        hwpts
            .filter(|hwpt| hwpt.is_automatic() && hwpt.ioas().id() == ioas.id())
            .collect()
    }
}
