//! Claims of channels.

use ioasid_engine::{Claim, ClaimError, Claimable};

use crate::{
    config::{ChannelOwner, Error},
    device::{IoatDevice, own_client},
};

/// A channel that one owner has for itself. Dropping it stops the channel: nothing of it is under
/// way and it is free when that returns.
pub type ChannelClaim = Claim<IoatDevice>;

impl Claimable for IoatDevice {
    type Owner = ChannelOwner;

    fn with_owner<R>(
        &self,
        channel: usize,
        op: impl FnOnce(&mut Option<ChannelOwner>) -> R,
    ) -> Option<R> {
        let mut state = self.pool.lock();
        let channel = state.channels.get_mut(channel);
        channel.map(|channel| op(&mut channel.claim))
    }

    fn release(&self, channel: usize) {
        self.reset_channel(channel);
        if let Some(entry) = self.pool.lock().channels.get_mut(channel) {
            entry.client = Some(own_client(&self.endpoint, channel));
            entry.claim = None;
        }
    }
}

impl From<ClaimError<ChannelOwner>> for Error {
    fn from(error: ClaimError<ChannelOwner>) -> Self {
        match error {
            ClaimError::NoUnit(channel) => Error::NoChannel(channel),
            ClaimError::Busy { unit: index, owner } => Error::ChannelBusy { index, owner },
        }
    }
}
