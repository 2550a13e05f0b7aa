//! The token that a physical function of SR-IOV shares with the users of its virtual functions
//! (`vfio_pci_core_match_token_uuid`, `drivers/vfio/pci/vfio_pci_core.c`).
//!
//! Who has the physical function can harm whoever has a virtual one, so both must know the same 16
//! bytes. The token outlives the files: it is the physical function's as long as that exists.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::{Arc, OnceLock, Weak},
};

use ioasid_core::sync::Mutex;

use super::VfioDevice;
use crate::error::{Error, Result};

/// The 16 bytes of a token, in the order of a UUID's text.
pub type Token = [u8; 16];

/// What a device has to do with SR-IOV.
#[derive(Debug)]
pub(super) struct Sriov {
    /// The token of a physical function; none if the device is not one.
    token: Option<Mutex<Shared>>,
    /// The physical function of a virtual one, if a program can have that too.
    physical: OnceLock<Weak<VfioDevice>>,
}

#[derive(Debug)]
struct Shared {
    token: Token,
    /// Virtual functions that are open.
    users: usize,
}

impl Sriov {
    pub(super) fn new(is_physical: bool) -> Self {
        let shared = || Shared {
            token: unknown_token(),
            users: 0,
        };
        Sriov {
            token: is_physical.then(|| Mutex::new(shared())),
            physical: OnceLock::new(),
        }
    }
}

/// A token that nobody knows: there is one before anybody has set one.
fn unknown_token() -> Token {
    let half = || RandomState::new().build_hasher().finish().to_ne_bytes();
    let mut token = [0; 16];
    token[..8].copy_from_slice(&half());
    token[8..].copy_from_slice(&half());
    token
}

impl VfioDevice {
    /// Says that `physical` is the physical function of this virtual one, and is offered to programs:
    /// from now on a token is needed. Only the first call counts.
    pub fn set_physical(&self, physical: &Arc<VfioDevice>) {
        let _ = self.sriov.physical.set(Arc::downgrade(physical));
    }

    /// Whether the device is offered whole, so that a token means something to it.
    pub fn knows_tokens(&self) -> bool {
        !self.is_child()
    }

    /// Checks the token that comes with a bind or open; sets that of a physical function whose virtual
    /// functions nobody uses.
    ///
    /// # Errors
    /// [`Error::WrongToken`] if a token is needed and this is not it; [`Error::UnneededToken`] for one
    /// that is given to a device without virtual or physical function.
    pub fn check_token(&self, token: Option<&Token>) -> Result<()> {
        if self.model.function().is_virtual() {
            let physical = self.sriov.physical.get().and_then(Weak::upgrade);
            let Some(physical) = physical else {
                return token.map_or(Ok(()), |_| Err(Error::UnneededToken));
            };
            let right = physical
                .sriov
                .token
                .as_ref()
                .map(|shared| shared.lock().token);
            return match (token, right) {
                (Some(given), Some(right)) if *given == right => Ok(()),
                _ => Err(Error::WrongToken),
            };
        }
        let Some(shared) = &self.sriov.token else {
            return token.map_or(Ok(()), |_| Err(Error::UnneededToken));
        };
        let mut shared = shared.lock();
        match token {
            Some(given) if shared.users == 0 => shared.token = *given,
            None if shared.users == 0 => {}
            Some(given) if *given == shared.token => {}
            _ => return Err(Error::WrongToken),
        }
        Ok(())
    }

    /// Whether it has a token that can be set.
    pub(super) fn has_token(&self) -> bool {
        self.sriov.token.is_some()
    }

    /// Sets the token.
    pub(super) fn set_token(&self, token: Token) -> Result<()> {
        let shared = self.sriov.token.as_ref().ok_or(Error::NoFeature)?;
        shared.lock().token = token;
        Ok(())
    }

    /// A virtual function was opened or closed.
    pub(super) fn count_token_user(&self, opened: bool) {
        let physical = self.sriov.physical.get().and_then(Weak::upgrade);
        if let Some(physical) = physical
            && let Some(shared) = &physical.sriov.token
        {
            let mut shared = shared.lock();
            shared.users = match opened {
                true => shared.users + 1,
                false => shared.users.saturating_sub(1),
            };
        }
    }
}
