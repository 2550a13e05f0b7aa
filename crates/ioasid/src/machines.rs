//! The machine that a command line asks for.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use ioasid_core::host::StdSpawner;
use ioasid_machine::{Machine, MachineFile, Models};

/// What a file describes, or device strings; the default machine without either.
pub(crate) fn file(
    path: Option<&Path>,
    devices: &[String],
    models: &Models,
) -> Result<MachineFile> {
    Ok(match path {
        Some(path) => MachineFile::load(path, models)?,
        None if !devices.is_empty() => MachineFile::from_device_strings(devices, models)?,
        None => MachineFile::default_machine(),
    })
}

/// Builds it.
pub(crate) fn build(name: &str, file: &MachineFile) -> Result<Arc<Machine>> {
    Machine::build(name, file, &StdSpawner).context("building the machine")
}
