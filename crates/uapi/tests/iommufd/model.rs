//! The object layer against a reference: what every id stands for, who uses it, and what a command
//! must answer. The reference is a table with use counts and the rules of the kernel in the kernel's
//! order, and knows nothing of page tables, locks or memory.

use std::collections::BTreeMap;

use ioasid_uapi::Errno;

mod nesting;

/// Flags of HWPT_ALLOC.
pub(crate) const NEST_PARENT: u32 = 1 << 0;
pub(crate) const DIRTY: u32 = 1 << 1;
pub(crate) const FAULT: u32 = 1 << 2;
pub(crate) const PASID: u32 = 1 << 3;

/// What a device is attached to: by itself (`0`), or at a PASID.
type Seats = BTreeMap<u32, u32>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    /// Mappings by slot: pages, and locks of hardware queues.
    Ioas {
        areas: BTreeMap<u64, (u64, u32)>,
        large: bool,
    },
    Paging {
        ioas: u32,
        flags: u32,
        automatic: bool,
        tracks: bool,
        instance: u64,
        fault: Option<u32>,
    },
    Nested {
        base: u32,
        flags: u32,
        instance: u64,
        fault: Option<u32>,
    },
    Device {
        number: usize,
        vdevice: Option<u32>,
        seats: Seats,
    },
    Fault,
    Viommu {
        parent: u32,
    },
    Vdevice {
        viommu: u32,
        device: u32,
        virt: u64,
    },
    EventQueue {
        viommu: u32,
        kind: u32,
    },
    HwQueue {
        viommu: u32,
        access: u32,
        ioas: u32,
        slot: u64,
    },
    Access,
    /// An id that is never given again.
    Tombstone,
}

#[derive(Debug)]
struct Entry {
    object: Object,
    users: u32,
}

/// Devices: the plain one is behind IOMMU 0, those of the back end behind 1.
pub(crate) const PLAIN: usize = 0;

pub(crate) const fn instance(device: usize) -> u64 {
    if device == PLAIN { 0 } else { 1 }
}

/// What an attach does with what is attached already.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum How {
    Either,
    First,
    Replace,
}

type Answer<T = u32> = Result<T, Errno>;

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Model {
    entries: BTreeMap<u32, Entry>,
    vfio: Option<u32>,
}

impl Model {
    fn free(&self) -> u32 {
        (1..)
            .find(|id| !self.entries.contains_key(id))
            .expect("an id is free")
    }

    fn add(&mut self, object: Object, users: u32) -> u32 {
        let id = self.free();
        self.entries.insert(id, Entry { object, users });
        id
    }

    fn get(&self, id: u32) -> Option<&Object> {
        let object = &self.entries.get(&id)?.object;
        (*object != Object::Tombstone).then_some(object)
    }

    fn change(&mut self, id: u32) -> &mut Object {
        &mut self.entries.get_mut(&id).expect("it is there").object
    }

    fn hold(&mut self, id: u32) {
        self.entries.get_mut(&id).expect("it is there").users += 1;
    }

    fn put(&mut self, id: u32) {
        let entry = self.entries.get_mut(&id).expect("it is there");
        entry.users -= 1;
        let gone = matches!(
            entry.object,
            Object::Paging {
                automatic: true,
                ..
            }
        );
        if gone && entry.users == 0 {
            self.remove(id);
        }
    }

    /// Takes an object away with what it used.
    fn remove(&mut self, id: u32) {
        let entry = self.entries.remove(&id).expect("it is there");
        match entry.object {
            Object::Ioas { .. } if self.vfio == Some(id) => self.vfio = None,
            Object::Paging { ioas, fault, .. } => {
                self.put(ioas);
                fault.into_iter().for_each(|fault| self.put(fault));
            }
            Object::Nested { base, fault, .. } => {
                self.put(base);
                fault.into_iter().for_each(|fault| self.put(fault));
            }
            Object::Viommu { parent } => self.put(parent),
            Object::Vdevice { viommu, device, .. } => {
                self.put(viommu);
                if let Object::Device { vdevice, .. } = self.change(device) {
                    *vdevice = None;
                }
            }
            Object::EventQueue { viommu, .. } => self.put(viommu),
            Object::HwQueue {
                viommu,
                access,
                ioas,
                slot,
            } => {
                self.put(viommu);
                self.entries.remove(&access);
                self.put(ioas);
                if let Object::Ioas { areas, .. } = self.change(ioas)
                    && let Some((_, locks)) = areas.get_mut(&slot)
                {
                    *locks -= 1;
                }
            }
            _ => {}
        }
    }

    /// One of the objects that are `wanted`, so that commands often meet what they need; `number`
    /// itself if there is none.
    pub(crate) fn pick(&self, number: u32, wanted: impl Fn(&Object) -> bool) -> u32 {
        let there = self.entries.iter();
        let fits: Vec<u32> = there
            .filter(|(_, entry)| wanted(&entry.object))
            .map(|(id, _)| *id)
            .collect();
        let index = number as usize % fits.len().max(1);
        fits.get(index).copied().unwrap_or(number)
    }

    pub(crate) fn bind(&mut self, number: usize) -> u32 {
        let object = Object::Device {
            number,
            vdevice: None,
            seats: Seats::new(),
        };
        self.add(object, 1)
    }

    pub(crate) fn unbind(&mut self, id: u32) {
        let Object::Device { vdevice, seats, .. } = self.change(id).clone() else {
            panic!("a device");
        };
        if let Some(vdevice) = vdevice {
            let Some(Object::Vdevice { viommu, .. }) = self.get(vdevice) else {
                panic!("a virtual device");
            };
            self.put(*viommu);
            *self.change(vdevice) = Object::Tombstone;
        }
        for hwpt in seats.values() {
            self.put(*hwpt);
        }
        self.entries.remove(&id);
    }

    pub(crate) fn destroy(&mut self, id: u32) -> Answer<()> {
        self.get(id).ok_or(Errno::ENOENT)?;
        if self.entries[&id].users > 0 {
            return Err(Errno::EBUSY);
        }
        self.remove(id);
        Ok(())
    }

    pub(crate) fn ioas_alloc(&mut self) -> u32 {
        let object = Object::Ioas {
            areas: BTreeMap::new(),
            large: true,
        };
        self.add(object, 0)
    }

    fn ioas(&mut self, id: u32) -> Answer<&mut BTreeMap<u64, (u64, u32)>> {
        match self.get(id) {
            Some(Object::Ioas { .. }) => match self.change(id) {
                Object::Ioas { areas, .. } => Ok(areas),
                _ => unreachable!(),
            },
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn ioas_exists(&mut self, id: u32) -> Answer<()> {
        self.ioas(id).map(drop)
    }

    pub(crate) fn map(&mut self, ioas: u32, slot: u64, pages: u64) -> Answer<()> {
        let areas = self.ioas(ioas)?;
        if areas.contains_key(&slot) {
            return Err(Errno::EEXIST);
        }
        areas.insert(slot, (pages, 0));
        Ok(())
    }

    pub(crate) fn unmap(&mut self, ioas: u32, slot: u64, pages: u64) -> Answer<u64> {
        let areas = self.ioas(ioas)?;
        match areas.get(&slot) {
            Some((_, locks)) if *locks > 0 => Err(Errno::EBUSY),
            Some((len, _)) if *len <= pages => Ok(areas.remove(&slot).expect("it is there").0),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn unmap_all(&mut self, ioas: u32) -> Answer<u64> {
        let areas = self.ioas(ioas)?;
        let mut bytes = 0;
        while let Some((slot, (pages, locks))) = areas.pop_first() {
            if locks > 0 {
                areas.insert(slot, (pages, locks));
                return Err(Errno::EBUSY);
            }
            bytes += pages;
        }
        Ok(bytes)
    }

    pub(crate) fn copy(&mut self, src: (u32, u64), dst: (u32, u64)) -> Answer<()> {
        let areas = self.ioas(src.0)?;
        if !areas.contains_key(&src.1) {
            return Err(Errno::ENOENT);
        }
        self.map(dst.0, dst.1, 1)
    }

    fn device(&self, id: u32) -> Answer<(usize, Option<u32>, Seats)> {
        match self.get(id) {
            Some(Object::Device {
                number,
                vdevice,
                seats,
            }) => Ok((*number, *vdevice, seats.clone())),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn device_exists(&self, id: u32) -> Answer<()> {
        self.device(id).map(drop)
    }

    pub(crate) fn hwpt_alloc(
        &mut self,
        device: u32,
        pt: u32,
        flags: u32,
        data: bool,
        fault_id: u32,
    ) -> Answer {
        let unsupported = Err(Errno::EOPNOTSUPP);
        let (number, ..) = self.device(device)?;
        let nested_flags = flags & !(FAULT | PASID) == 0;
        let object = match self.get(pt).cloned() {
            Some(Object::Ioas { .. }) => {
                let both = FAULT | NEST_PARENT;
                let known = flags & !(NEST_PARENT | DIRTY | FAULT | PASID) == 0;
                if !known || flags & both == both || (data && number == PLAIN) {
                    return unsupported;
                }
                Object::Paging {
                    ioas: pt,
                    flags,
                    automatic: false,
                    tracks: false,
                    instance: instance(number),
                    fault: None,
                }
            }
            Some(Object::Paging {
                flags: parent,
                instance: of,
                ..
            }) => {
                if !nested_flags || !data {
                    return unsupported;
                }
                if parent & NEST_PARENT == 0 || of != instance(number) {
                    return Err(Errno::EINVAL);
                }
                if number == PLAIN {
                    return unsupported;
                }
                Object::Nested {
                    base: pt,
                    flags,
                    instance: of,
                    fault: None,
                }
            }
            Some(Object::Viommu { .. }) => {
                if number == PLAIN {
                    return Err(Errno::EINVAL);
                }
                if !nested_flags || !data {
                    return unsupported;
                }
                Object::Nested {
                    base: pt,
                    flags,
                    instance: instance(number),
                    fault: None,
                }
            }
            _ => return Err(Errno::EINVAL),
        };
        let queue = match (flags & FAULT != 0, self.get(fault_id)) {
            (false, _) => None,
            (true, Some(Object::Fault)) => Some(fault_id),
            (true, _) => return Err(Errno::ENOENT),
        };
        self.hold(pt);
        queue.into_iter().for_each(|queue| self.hold(queue));
        let id = self.add(object, 0);
        if let Object::Paging { fault, .. } | Object::Nested { fault, .. } = self.change(id) {
            *fault = queue;
        }
        Ok(id)
    }

    /// Attaches or replaces; the page table.
    pub(crate) fn attach(&mut self, device: u32, pt: u32, pasid: u32, how: How) -> Answer {
        let (number, _, seats) = self.device(device).expect("it is bound");
        let invalid = Err(Errno::EINVAL);
        let attached = seats.get(&pasid).copied();
        let target = self.get(pt).cloned().ok_or(Errno::ENOENT)?;
        if !matches!(
            target,
            Object::Ioas { .. } | Object::Paging { .. } | Object::Nested { .. }
        ) {
            return invalid;
        }
        match (how, attached) {
            (How::First, Some(_)) => return Err(Errno::EBUSY),
            (How::Replace, None) => return invalid,
            _ => {}
        }
        let is_auto = |entry: &Entry| matches!(&entry.object, Object::Paging { ioas, automatic: true, .. } if *ioas == pt);
        let hwpt = match target {
            Object::Ioas { .. } => self
                .entries
                .iter()
                .find(|(_, entry)| is_auto(entry))
                .map(|(id, _)| *id),
            _ => Some(pt),
        };
        if let Some(same) = hwpt.filter(|_| hwpt == attached) {
            return Ok(same);
        }
        let flags = match hwpt.and_then(|hwpt| self.get(hwpt)) {
            Some(Object::Paging { flags, .. }) => *flags,
            Some(Object::Nested {
                flags,
                instance: of,
                ..
            }) => {
                if *of != instance(number) {
                    return invalid;
                }
                *flags
            }
            _ => 0,
        };
        let suits = |id: u32| match self.get(id) {
            Some(Object::Paging { flags, .. } | Object::Nested { flags, .. }) => flags & PASID != 0,
            _ => false,
        };
        let fits = if pasid == 0 {
            flags & PASID != 0 || seats.keys().all(|pasid| *pasid == 0)
        } else {
            flags & PASID != 0 && seats.get(&0).is_none_or(|own| suits(*own))
        };
        if !fits {
            return invalid;
        }
        let hwpt = hwpt.unwrap_or_else(|| {
            self.hold(pt);
            let object = Object::Paging {
                ioas: pt,
                flags: 0,
                automatic: true,
                tracks: false,
                instance: instance(number),
                fault: None,
            };
            self.add(object, 0)
        });
        self.hold(hwpt);
        if let Some(old) = attached {
            self.put(old);
        }
        if let Object::Device { seats, .. } = self.change(device) {
            seats.insert(pasid, hwpt);
        }
        Ok(hwpt)
    }

    pub(crate) fn detach(&mut self, device: u32, pasid: u32) {
        let Object::Device { seats, .. } = self.change(device) else {
            panic!("a device");
        };
        if let Some(hwpt) = seats.remove(&pasid) {
            self.put(hwpt);
        }
    }

    pub(crate) fn fault_alloc(&mut self) -> u32 {
        self.add(Object::Fault, 1)
    }

    /// The descriptor of a queue is closed.
    pub(crate) fn close_file(&mut self, id: u32) {
        self.put(id);
    }

    pub(crate) fn set_dirty(&mut self, id: u32, on: bool) -> Answer<()> {
        match self.entries.get_mut(&id).map(|entry| &mut entry.object) {
            Some(Object::Paging { flags, tracks, .. }) => {
                if *flags & DIRTY == 0 {
                    return Err(Errno::EOPNOTSUPP);
                }
                *tracks = on;
                Ok(())
            }
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn get_dirty(&mut self, id: u32, slot: u64) -> Answer<()> {
        let Some(Object::Paging {
            ioas,
            flags,
            tracks,
            ..
        }) = self.get(id)
        else {
            return Err(Errno::ENOENT);
        };
        if flags & DIRTY == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let (ioas, tracks) = (*ioas, *tracks);
        let mapped = self.ioas(ioas)?.contains_key(&slot);
        if tracks && mapped {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }

    pub(crate) fn set_large(&mut self, id: u32, value: u64) -> Answer<()> {
        self.ioas(id)?;
        let of_this = |entry: &Entry| match &entry.object {
            Object::Paging { ioas, .. } => *ioas == id,
            _ => false,
        };
        let has_tables = self.entries.values().any(of_this);
        let Object::Ioas { areas, large } = self.change(id) else {
            panic!("an IOAS");
        };
        if value > 1 || (value == 0 && *large && has_tables && !areas.is_empty()) {
            return Err(Errno::EINVAL);
        }
        *large = value == 1;
        Ok(())
    }

    pub(crate) fn vfio_get(&self) -> Answer {
        self.vfio.ok_or(Errno::ENODEV)
    }

    pub(crate) fn vfio_set(&mut self, id: u32) -> Answer<()> {
        self.ioas(id)?;
        self.vfio = Some(id);
        Ok(())
    }

    pub(crate) fn vfio_clear(&mut self) {
        self.vfio = None;
    }

    /// All mappings of the test come from a process.
    pub(crate) fn change_process(&self) -> Answer<()> {
        let mapped = |entry: &Entry| matches!(&entry.object, Object::Ioas { areas, .. } if !areas.is_empty());
        if self.entries.values().any(mapped) {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }
}
