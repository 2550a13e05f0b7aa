//! Where sysfs shows the devices that this client can drive.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// Vendor and device id of an Intel DSA.
const DSA_ID: (&str, &str) = ("0x8086", "0x0b25");

/// The first DSA (8086:0b25) whose driver is `vfio-pci`, in the order of its address.
///
/// # Errors
/// [`Error::Sysfs`] if the bus cannot be listed; a bus that is not there has no devices.
pub fn first_pdev() -> Result<Option<PathBuf>> {
    Ok(pdevs()?.into_iter().next())
}

/// Every DSA (8086:0b25) whose driver is `vfio-pci`, in the order of their addresses.
///
/// # Errors
/// As for [`first_pdev`].
pub fn pdevs() -> Result<Vec<PathBuf>> {
    let mut found = entries(Path::new("/sys/bus/pci/devices"))?;
    found.retain(|path| is_dsa_on_vfio_pci(path));
    Ok(found)
}

/// The first mediated device, in the order of the UUIDs.
///
/// # Errors
/// As for [`first_pdev`].
pub fn first_mdev() -> Result<Option<PathBuf>> {
    Ok(mdevs()?.into_iter().next())
}

/// Every mediated device, in the order of their UUIDs.
///
/// # Errors
/// As for [`first_pdev`].
pub fn mdevs() -> Result<Vec<PathBuf>> {
    entries(Path::new("/sys/bus/mdev/devices"))
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let wrap = |error| Error::Sysfs {
        path: dir.to_owned(),
        error,
    };
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrap(error)),
    };
    let mut paths = listing
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(wrap)?;
    paths.sort();
    Ok(paths)
}

fn is_dsa_on_vfio_pci(path: &Path) -> bool {
    let id = |name| fs::read_to_string(path.join(name)).unwrap_or_default();
    let driver = fs::read_link(path.join("driver")).unwrap_or_default();
    id("vendor").trim() == DSA_ID.0
        && id("device").trim() == DSA_ID.1
        && driver.file_name().is_some_and(|name| name == "vfio-pci")
}
