//! `model = "edu"`: QEMU's educational device of `ioasid_edu`, 1234:11e8, a whole one in a
//! `[[device]]` section and an emulated one in an `[[emulated]]` section.

use std::sync::Arc;

use ioasid_core::{host::StdSpawner, inspect::Node};
use ioasid_edu::{EduParent, spec::DMA_MASK};
use ioasid_vfio::mdev::Uuid;
use serde::Deserialize;

use crate::model::{Built, Driver, Key, Model, ModelError, Parent, Site, Table};

/// The whole device.
#[derive(Debug)]
pub struct Edu;

/// The keys of a whole device.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The address bits that the device drives: 2^n - 1 for a device of n bits.
    #[serde(default = "dma_mask")]
    pub dma_mask: u64,
}

fn dma_mask() -> u64 {
    DMA_MASK
}

/// What is wrong with a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SectionError {
    /// The mask has a gap, or less than a page.
    #[error("dma_mask must be 2^n - 1 and at least 0xfff, such as 0xfffffff, not {0:#x}")]
    DmaMask(u64),
}

impl Model for Edu {
    const NAME: &'static str = "edu";
    const SUMMARY: &'static str =
        "QEMU's educational device, 1234:11e8: factorial, interrupts, DMA";
    const KEYS: &'static [Key] = &[Key {
        name: "dma_mask",
        values: "2^n - 1",
        default: "0xfffffff",
        meaning: "address bits that the device drives",
    }];
    type Section = Section;

    fn check(section: &Section, _driver: Driver) -> Result<(), ModelError> {
        let mask = section.dma_mask;
        let is_mask = mask >= 0xfff && mask & mask.wrapping_add(1) == 0;
        match is_mask {
            true => Ok(()),
            false => Err(SectionError::DmaMask(mask).into()),
        }
    }

    fn build(section: &Section, site: &Site<'_>) -> Result<Built, ModelError> {
        let device = site.add_device(|config| {
            // It sends no PASIDs and cannot wait for a page.
            config.pasid_bits = 0;
            config.page_requests = false;
        })?;
        let edu = ioasid_edu::Edu::whole(&device, section.dma_mask, site.spawner())?;
        Ok(Built::function(edu, device))
    }
}

/// The emulated device.
#[derive(Debug)]
pub struct Emulated;

/// It has no keys of its own.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct EmulatedSection {}

impl Model for Emulated {
    const NAME: &'static str = "edu";
    const SUMMARY: &'static str = "the same device as software alone: no DMA, no domain";
    const TABLE: Table = Table::Emulated;
    type Section = EmulatedSection;

    fn build(_section: &EmulatedSection, _site: &Site<'_>) -> Result<Built, ModelError> {
        Ok(Built::parent(EduParent::new(
            Self::NAME,
            Arc::new(StdSpawner),
        )))
    }
}

impl Parent for EduParent {
    fn inspect_child(&self, uuid: Uuid) -> Option<Node> {
        EduParent::inspect_child(self, uuid)
    }
}
