//! What the two kinds of children have in common, whether a queue is theirs alone or shared.

use std::sync::Arc;

use crate::{
    config::{ConfigError, Error, MAX_BATCH_SHIFT, Role},
    devices::device::{DsaDevice, function},
    function::endpoint::Endpoint,
    spec::tables::WqLimits,
};

/// Vectors of a child: 0 for errors and commands, 1 for completions.
const VECTORS: usize = 2;

/// Whether queue `queue` of `parent` can be for children.
///
/// # Errors
/// [`Error::NoQueue`]; [`Error::Config`] if the queue was not set aside for mediated devices, or if the parent
/// cannot send PASIDs.
pub(super) fn check_queue(parent: &DsaDevice, queue: usize) -> Result<(), Error> {
    let config = parent.queues().get(queue).ok_or(Error::NoQueue(queue))?;
    if !config.mdev {
        return Err(ConfigError::NotForChildren(queue).into());
    }
    if parent.device().max_pasids() == 0 {
        return Err(ConfigError::NoPasids.into());
    }
    Ok(())
}

/// The endpoint of a new child, which looks like a device with one queue.
///
/// # Errors
/// [`Error::Config`] if its function cannot be laid out.
pub(super) fn endpoint(parent: &DsaDevice) -> Result<Arc<Endpoint>, Error> {
    let tlb = parent.pool.tlb().is_some();
    let function =
        function(1, VECTORS, parent.device(), tlb, Role::Alone).map_err(ConfigError::Layout)?;
    Ok(Arc::new(Endpoint::of_child(function)))
}

/// The limits of a child's queue: those of the device.
pub(super) fn limits(parent: &DsaDevice) -> WqLimits {
    WqLimits::new()
        .with_max_xfer_shift(parent.abilities().max_transfer_shift)
        .with_max_batch_shift(MAX_BATCH_SHIFT)
}
