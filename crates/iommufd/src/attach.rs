//! Attaching devices to page tables: drivers/iommu/iommufd/device.c in short.
//!
//! Attachments are kept by group and PASID, because all devices of a group stand on one page table;
//! a default-PASID child is a group of its own. The lock over them is held through a whole attach,
//! detach or destroy, barrier included, and never taken by MAP, UNMAP or inspection.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ioasid_core::Pasid;

use crate::{
    context::Context,
    device::DeviceObject,
    domains::Attributes,
    error::Error,
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

type Seat = (Holder, Option<Pasid>);

/// What one group (or child) is attached to at one PASID (or none).
#[derive(Debug)]
struct Attachment {
    hwpt: Arc<Hwpt>,
    devices: BTreeSet<ObjectId>,
}

/// Every attachment of a context.
#[derive(Debug, Default)]
pub(crate) struct Attachments(BTreeMap<Seat, Attachment>);

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
                let mut seats = self.0.keys();
                suits || !seats.any(|(other, pasid)| *other == holder && pasid.is_some())
            }
            Some(_) => {
                let primary = self.0.get(&(holder, None));
                suits && primary.is_none_or(|at| at.hwpt.flags().contains(HwptFlags::PASID))
            }
        };
        if fits {
            Ok(())
        } else {
            Err(Error::NotForPasids)
        }
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
    ) -> Result<ObjectId, Error> {
        let mut seats = self.attachments.lock();
        match self.attachable(pt_id)? {
            Object::Hwpt(hwpt) => {
                self.attach_hwpt(&mut seats, device, pasid, &hwpt)?;
                Ok(hwpt.id())
            }
            Object::Ioas(ioas) => self.attach_ioas(&mut seats, device, pasid, &ioas),
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
    ) -> Result<ObjectId, Error> {
        for hwpt in self.automatic_hwpts(ioas) {
            match self.attach_hwpt(seats, device, pasid, &hwpt) {
                Ok(()) => return Ok(hwpt.id()),
                Err(error) if error.is_mismatch() => {}
                Err(error) => return Err(error),
            }
        }
        let seat = (device.holder(), pasid);
        let reserved = device.reserved(pasid);
        let stays = seats.0.get(&seat).is_some_and(|at| {
            at.devices.contains(&device.id()) && at.hwpt.ioas().id() == ioas.id()
        });
        // The reserved ranges come before the pages: a map in their way is the first error seen.
        let reserves = !reserved.is_empty() && !stays;
        if reserves {
            ioas.reserve(device.id(), reserved)?;
        }
        let attach = |seats: &mut Attachments| {
            seats.check_pasids(seat, HwptFlags::NONE)?;
            let hwpt = self.make_hwpt(ioas, device, HwptFlags::NONE, true)?;
            let attached = self.attach_hwpt(seats, device, pasid, &hwpt);
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
    ) -> Result<(), Error> {
        let seat = (device.holder(), pasid);
        let id = device.id();
        let fits =
            !hwpt.flags().contains(HwptFlags::DIRTY_TRACKING) || device.device().supports_dirty();
        match seats.0.get(&seat) {
            Some(at) if at.devices.contains(&id) => {
                self.replace(seats, seat, device, hwpt, fits)?;
            }
            Some(at) if at.hwpt.id() != hwpt.id() => return Err(Error::GroupElsewhere),
            Some(_) => {
                // The group is there already: only the device's own reserved ranges are new.
                hwpt.ioas().reserve(id, device.reserved(pasid))?;
                if let Some(at) = seats.0.get_mut(&seat) {
                    at.devices.insert(id);
                }
                self.objects.lock().hold(hwpt.id());
            }
            None => {
                hwpt.ioas().reserve(id, device.reserved(pasid))?;
                let checked = seats.check_pasids(seat, hwpt.flags());
                let checked = checked.and(if fits {
                    Ok(())
                } else {
                    Err(Error::Incompatible)
                });
                let domain = hwpt.domain().domain();
                if let Err(error) = checked.and_then(|()| device.point(pasid, domain)) {
                    if device.reserves(pasid) {
                        hwpt.ioas().unreserve(id);
                    }
                    return Err(error);
                }
                let at = Attachment {
                    hwpt: Arc::clone(hwpt),
                    devices: BTreeSet::from([id]),
                };
                seats.0.insert(seat, at);
                self.objects.lock().hold(hwpt.id());
            }
        }
        Ok(())
    }

    /// Moves a whole group from its page table to another, in one step; all or nothing.
    fn replace(
        &self,
        seats: &mut Attachments,
        seat: Seat,
        device: &Arc<DeviceObject>,
        hwpt: &Arc<Hwpt>,
        fits: bool,
    ) -> Result<(), Error> {
        let Some(at) = seats.0.get(&seat) else {
            return Ok(());
        };
        let (old, devices) = (Arc::clone(&at.hwpt), at.devices.clone());
        if old.id() == hwpt.id() {
            return Ok(());
        }
        let pasid = seat.1;
        let moves = device.reserves(pasid) && old.ioas().id() != hwpt.ioas().id();
        let unreserve = |ioas: &Ioas| devices.iter().for_each(|id| ioas.unreserve(*id));
        let change = || {
            if moves {
                for id in &devices {
                    let object = self.objects.lock().object(*id);
                    if let Some(Object::Device(device)) = object {
                        hwpt.ioas().reserve(*id, device.reserved(pasid))?;
                    }
                }
            }
            seats.check_pasids(seat, hwpt.flags())?;
            if !fits {
                return Err(Error::Incompatible);
            }
            if Arc::ptr_eq(old.domain(), hwpt.domain()) {
                // Two page tables on one domain: nothing changes for the device.
                return Ok(());
            }
            device.repoint(pasid, hwpt.domain().domain())
        };
        if let Err(error) = change() {
            if moves {
                unreserve(hwpt.ioas());
            }
            return Err(error);
        }
        if moves {
            unreserve(old.ioas());
        }
        if let Some(at) = seats.0.get_mut(&seat) {
            at.hwpt = Arc::clone(hwpt);
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
        let Some(at) = seats.0.get_mut(&seat) else {
            return;
        };
        if !at.devices.remove(&device.id()) {
            return;
        }
        let hwpt = Arc::clone(&at.hwpt);
        if at.devices.is_empty() {
            seats.0.remove(&seat);
            device.unpoint(seat.1);
        }
        if device.reserves(seat.1) {
            hwpt.ioas().unreserve(device.id());
        }
        self.put_hwpt(&hwpt);
    }

    /// Detaches a device from everything and takes its object away.
    pub(crate) fn unbind(&self, device: &Arc<DeviceObject>) {
        let mut seats = self.attachments.lock();
        let holder = device.holder();
        let its: Vec<Seat> = seats
            .0
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
        let at = seats.0.get(&(device.holder(), pasid))?;
        at.devices.contains(&device.id()).then(|| at.hwpt.id())
    }

    /// A new page table object on `ioas`, for `device`.
    pub(crate) fn make_hwpt(
        &self,
        ioas: &Arc<Ioas>,
        device: &DeviceObject,
        flags: HwptFlags,
        automatic: bool,
    ) -> Result<Arc<Hwpt>, Error> {
        let id = self.objects.lock().reserve()?;
        let attributes = Attributes::new(device.device(), flags);
        let domain = ioas.domain(attributes, |config| {
            let domain = self.iommu().alloc_domain(config);
            domain.map_err(|_| Error::NoIds)
        });
        let mut objects = self.objects.lock();
        let domain = match domain {
            Ok(domain) => domain,
            Err(error) => {
                objects.forget(id);
                return Err(error);
            }
        };
        let hwpt = Hwpt::new(id, Arc::clone(ioas), domain, flags, automatic);
        objects.install(id, Object::Hwpt(Arc::clone(&hwpt)));
        objects.hold(ioas.id());
        Ok(hwpt)
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
            objects.put(hwpt.ioas().id());
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
