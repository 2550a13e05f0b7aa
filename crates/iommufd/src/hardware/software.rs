//! The IOMMU in front of a plain software device: page tables are domains of the machine.
//!
//! Devices with second-stage VT-d tables nest: a guest's first-stage table is a nested domain on that of its
//! parent. Unlike the hardware that Linux 7.2 drives, this IOMMU has no trouble with read-only pages of a
//! parent (erratum 772415, which Linux tells programs of every VT-d): they are allowed, and GET_HW_INFO does
//! not tell of it. There is no virtual IOMMU of any type, as with VT-d in Linux 7.2.

use std::{any::Any, sync::Arc};

use ioasid_core::Pasid;
use ioasid_iommu::{Device, Domain, TableFormat};

use super::{
    hw::{HwOps, Invalidated, NestedOps, Target, TargetKind},
    hw_info::HwData,
    vtd::{Invalidation, StageOne, VtdRegisters},
};
use crate::{
    base::{
        error::{AllocError, AttachError, Error, Mismatch, UserDataError},
        flags::HwptFlags,
        user::{UserArray, UserData},
    },
    space::domains::PagingConfig,
};

/// A plain software device of the machine: page tables are domains of the machine.
#[derive(Debug)]
pub struct SoftwareIommu {
    device: Arc<Device>,
}

impl SoftwareIommu {
    /// The IOMMU of `device`.
    pub fn new(device: &Arc<Device>) -> Arc<Self> {
        Arc::new(SoftwareIommu {
            device: Arc::clone(device),
        })
    }

    /// Only second-stage tables can be nested on.
    fn check_nests(&self) -> Result<(), AllocError> {
        match self.device.format() {
            TableFormat::VtdSecondStage => Ok(()),
            format => Err(AllocError::NoNesting(format)),
        }
    }
}

impl HwOps for SoftwareIommu {
    fn info(&self) -> HwData {
        VtdRegisters::new(&self.device).map_or(HwData::None, HwData::Vtd)
    }

    fn supports_dirty(&self) -> bool {
        self.device.supports_dirty()
    }

    fn alloc_paging(
        &self,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<PagingConfig, Error> {
        if let Some(data) = data {
            return Err(AllocError::TypeNotSupported(data.kind()).into());
        }
        if flags.contains(HwptFlags::NEST_PARENT) {
            self.check_nests()?;
        }
        Ok(PagingConfig {
            format: self.device.format(),
            shared: true,
        })
    }

    fn knows_nesting(&self) -> bool {
        // Whatever its tables, a VT-d belongs to the driver that knows.
        VtdRegisters::new(&self.device).is_some()
    }

    fn alloc_nested(
        &self,
        parent: &Arc<Domain>,
        _: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedOps>, Error> {
        self.check_nests()?;
        if data.kind() != StageOne::KIND {
            return Err(AllocError::TypeNotSupported(data.kind()).into());
        }
        let stage_one = StageOne::read(data)?;
        let domain = parent.nest(stage_one.table())?;
        Ok(Arc::new(FirstStageTable { stage_one, domain }))
    }

    fn check_attach(&self, _: Option<Pasid>, target: &Target) -> Result<(), Error> {
        let TargetKind::Nested { nested, .. } = &target.kind else {
            return Ok(());
        };
        let nested: &dyn Any = nested.as_ref();
        let table = nested.downcast_ref::<FirstStageTable>();
        let checked = match (table, VtdRegisters::new(&self.device)) {
            (Some(table), Some(registers)) => table.stage_one.check(registers),
            _ => Err(Mismatch::OtherIommu),
        };
        Ok(checked.map_err(AttachError::from)?)
    }
}

/// A guest's first-stage table on the domain of its parent.
#[derive(Debug)]
struct FirstStageTable {
    stage_one: StageOne,
    domain: Arc<Domain>,
}

impl NestedOps for FirstStageTable {
    fn domain(&self) -> Option<&Arc<Domain>> {
        Some(&self.domain)
    }

    fn invalidate(&self, entries: &UserArray<'_>) -> Invalidated {
        if entries.kind() != Invalidation::KIND {
            let error = UserDataError::WrongType {
                kind: entries.kind(),
                wanted: Invalidation::KIND,
            };
            return Invalidated::stopped(0, error.into());
        }
        for index in 0..entries.len() {
            match Invalidation::read(entries, index) {
                Ok(entry) => self.domain.invalidate(entry.range, entry.what),
                Err(error) => return Invalidated::stopped(index, error),
            }
        }
        Invalidated {
            done: entries.len(),
            result: Ok(()),
        }
    }
}
