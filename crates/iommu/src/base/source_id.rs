//! The name of a source of DMA, for lists, logs and errors.

use std::fmt;

use ioasid_core::{Pasid, PciAddress};

/// A device's address, and the PASID of the requests that are meant; `None` for those without one.
/// Written `0000:6a:01.0` or `0000:6a:01.0 pasid 5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId {
    /// The device.
    pub device: PciAddress,
    /// The PASID.
    pub pasid: Option<Pasid>,
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.device)?;
        match self.pasid {
            Some(pasid) => write!(f, " pasid {pasid}"),
            None => Ok(()),
        }
    }
}
