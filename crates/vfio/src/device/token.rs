//! The token that a physical function of SR-IOV shares with the users of its virtual functions
//! (`vfio_pci_core_match_token_uuid`, `drivers/vfio/pci/vfio_pci_core.c`).
//!
//! The user of the physical function can harm those of the virtual ones, so all must know the same 16
//! bytes. The token outlives the files: it is the physical function's as long as that exists.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::{Arc, OnceLock, Weak},
};

use ioasid_core::sync::Mutex;

use crate::base::{
    abi::Feature,
    error::{FeatureError, TokenError},
};

/// The 16 bytes of a token, in the order of a UUID's text.
pub type Token = [u8; 16];

/// What a device has to do with SR-IOV.
#[derive(Debug)]
pub(crate) struct Sriov {
    /// The token of a physical function; none if the device is not one.
    token: Option<Arc<Mutex<Shared>>>,
    /// It is a virtual function.
    is_virtual: bool,
    /// The token of its physical function, if a program can open that too.
    physical: OnceLock<Weak<Mutex<Shared>>>,
}

#[derive(Debug)]
struct Shared {
    token: Token,
    /// Virtual functions that are open.
    users: usize,
}

impl Sriov {
    pub(crate) fn new(is_physical: bool, is_virtual: bool) -> Self {
        let shared = || Shared {
            token: unknown_token(),
            users: 0,
        };
        Sriov {
            token: is_physical.then(|| Arc::new(Mutex::new(shared()))),
            is_virtual,
            physical: OnceLock::new(),
        }
    }

    /// The device is a virtual function of `physical`'s: from now on a token is needed. Only the first
    /// call counts.
    pub(crate) fn set_physical(&self, physical: &Sriov) {
        let token = physical
            .token
            .as_ref()
            .map_or_else(Weak::new, Arc::downgrade);
        let _ = self.physical.set(token);
    }

    fn physical_token(&self) -> Option<Arc<Mutex<Shared>>> {
        self.physical.get().and_then(Weak::upgrade)
    }

    /// Checks the token that comes with a bind or open; sets that of a physical function whose virtual
    /// functions are not in use.
    ///
    /// # Errors
    /// [`TokenError`].
    pub(crate) fn check(&self, token: Option<&Token>) -> Result<(), TokenError> {
        if self.is_virtual {
            let Some(physical) = self.physical_token() else {
                return token.map_or(Ok(()), |_| Err(TokenError::Unneeded));
            };
            return match token {
                Some(given) if *given == physical.lock().token => Ok(()),
                Some(_) => Err(TokenError::Wrong),
                None => Err(TokenError::Missing),
            };
        }
        let Some(shared) = &self.token else {
            return token.map_or(Ok(()), |_| Err(TokenError::Unneeded));
        };
        let mut shared = shared.lock();
        match token {
            Some(given) if shared.users == 0 => shared.token = *given,
            None if shared.users == 0 => {}
            Some(given) if *given == shared.token => {}
            Some(_) => return Err(TokenError::Wrong),
            None => return Err(TokenError::Missing),
        }
        Ok(())
    }

    /// Whether it has a token that can be set.
    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Sets the token.
    ///
    /// # Errors
    /// [`FeatureError::Absent`].
    pub(crate) fn set_token(&self, token: Token) -> Result<(), FeatureError> {
        let shared = self.token.as_ref();
        let shared = shared.ok_or(FeatureError::Absent(Feature::Token))?;
        shared.lock().token = token;
        Ok(())
    }

    /// The device, perhaps a virtual function, was bound or released.
    pub(crate) fn count_user(&self, bound: bool) {
        if let Some(physical) = self.physical_token() {
            let mut shared = physical.lock();
            shared.users = match bound {
                true => shared.users + 1,
                false => shared.users.saturating_sub(1),
            };
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
