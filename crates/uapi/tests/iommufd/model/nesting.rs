//! Virtual IOMMUs and what belongs to one.

use super::*;

impl Model {
    pub(crate) fn viommu_alloc(&mut self, device: u32, hwpt: u32) -> Answer {
        let (number, ..) = self.device(device)?;
        if number == PLAIN {
            return Err(Errno::EOPNOTSUPP);
        }
        let Some(Object::Paging { flags, .. }) = self.get(hwpt) else {
            return Err(Errno::ENOENT);
        };
        if flags & NEST_PARENT == 0 {
            return Err(Errno::EINVAL);
        }
        self.hold(hwpt);
        Ok(self.add(Object::Viommu { parent: hwpt }, 0))
    }

    fn viommu(&self, id: u32) -> Answer {
        match self.get(id) {
            Some(Object::Viommu { parent }) => Ok(*parent),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn vdevice_alloc(&mut self, viommu: u32, device: u32, virt: u64) -> Answer {
        self.viommu(viommu)?;
        let (number, vdevice, _) = self.device(device)?;
        if number == PLAIN {
            return Err(Errno::EINVAL);
        }
        let taken = |entry: &Entry| match &entry.object {
            Object::Vdevice {
                viommu: on,
                virt: known,
                ..
            } => (*on, *known) == (viommu, virt),
            _ => false,
        };
        if vdevice.is_some() || self.entries.values().any(taken) {
            return Err(Errno::EEXIST);
        }
        self.hold(viommu);
        let id = self.add(
            Object::Vdevice {
                viommu,
                device,
                virt,
            },
            0,
        );
        if let Object::Device { vdevice, .. } = self.change(device) {
            *vdevice = Some(id);
        }
        Ok(id)
    }

    pub(crate) fn veventq_alloc(&mut self, viommu: u32, kind: u32, depth: u32) -> Answer {
        if depth == 0 {
            return Err(Errno::EINVAL);
        }
        self.viommu(viommu)?;
        let object = Object::EventQueue { viommu, kind };
        if self.entries.values().any(|entry| entry.object == object) {
            return Err(Errno::EEXIST);
        }
        self.hold(viommu);
        Ok(self.add(object, 1))
    }

    pub(crate) fn hw_queue_alloc(&mut self, viommu: u32, slot: u64) -> Answer {
        let parent = self.viommu(viommu)?;
        let Some(Object::Paging { ioas, .. }) = self.get(parent) else {
            panic!("a page table");
        };
        let ioas = *ioas;
        let (_, locks) = self.ioas(ioas)?.get_mut(&slot).ok_or(Errno::ENOENT)?;
        *locks += 1;
        self.hold(viommu);
        self.hold(ioas);
        let object = Object::HwQueue {
            viommu,
            access: 0,
            ioas,
            slot,
        };
        let id = self.add(object, 0);
        let its = self.add(Object::Access, 1);
        if let Object::HwQueue { access, .. } = self.change(id) {
            *access = its;
        }
        Ok(id)
    }

    pub(crate) fn invalidate(&self, id: u32) -> Answer<()> {
        match self.get(id).ok_or(Errno::ENOENT)? {
            Object::Nested { .. } | Object::Viommu { .. } => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }
}
