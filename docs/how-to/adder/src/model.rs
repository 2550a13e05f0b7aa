//! The model: what the machine file and the command line know of the device.

use std::sync::Arc;

use ioasid::{Built, Driver, Model, ModelError, Site, model::Key};
use serde::Deserialize;

use crate::adder::Adder;

/// `model = "adder"`.
pub struct AdderModel;

/// Its keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// What it adds.
    #[serde(default = "one")]
    step: u64,
}

fn one() -> u64 {
    1
}

impl Model for AdderModel {
    const NAME: &'static str = "adder";
    const SUMMARY: &'static str = "adds to memory";
    const KEYS: &'static [Key] = &[Key {
        name: "step",
        values: "not 0",
        default: "1",
        meaning: "what it adds",
    }];
    type Section = Keys;

    fn check(keys: &Keys, _driver: Driver) -> Result<(), ModelError> {
        match keys.step {
            0 => Err("step must not be 0".into()),
            _ => Ok(()),
        }
    }

    fn build(keys: &Keys, site: &Site<'_>) -> Result<Built, ModelError> {
        let device = site.add_device(|config| {
            // It sends no PASIDs and cannot wait for a page.
            config.pasid_bits = 0;
            config.page_requests = false;
        })?;
        let adder = Adder::new(&device, keys.step, site.spawner())?;
        Ok(Built::function(adder, Arc::clone(&device)))
    }
}
