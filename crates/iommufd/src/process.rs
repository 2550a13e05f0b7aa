//! Handing mappings over to another process (IOAS_CHANGE_PROCESS).

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::host::Account;

use crate::{context::Context, error::Error, ledger::Charge, object::Object, pages::Pages};

impl Context {
    /// IOAS_CHANGE_PROCESS: every mapping belongs to the calling process from now on, and counts as
    /// its locked memory. Nothing moves: only pages of files can change hands.
    ///
    /// # Errors
    /// [`Error::NotFileBacked`] if any mapping of any IOAS comes from a process or a device;
    /// [`Error::Pin`] if the caller may not lock so much. Nothing has changed then.
    pub fn change_process(&self, account: Account) -> Result<(), Error> {
        let objects = self.objects.lock().objects();
        let spaces: Vec<_> = objects
            .iter()
            .filter_map(|object| match object {
                Object::Ioas(ioas) => Some(ioas),
                _ => None,
            })
            .collect();
        // In the order of ids, as nobody else takes more than one of them.
        let _changes: Vec<_> = spaces.iter().map(|ioas| ioas.change.lock()).collect();
        let mut all: BTreeMap<*const Pages, Arc<Pages>> = BTreeMap::new();
        for ioas in &spaces {
            for (_, area) in ioas.state.lock().space.areas() {
                let source = area.pages.source();
                if !source.is_file() || source.is_device() {
                    return Err(Error::NotFileBacked);
                }
                all.insert(Arc::as_ptr(&area.pages), Arc::clone(&area.pages));
            }
        }
        let mut charged: Vec<(Charge, u64)> = Vec::new();
        for pages in all.values() {
            let (charge, bytes) = pages.charged();
            let charge = charge.moved_to(account);
            if let Err(error) = self.ledger().charge(charge, bytes) {
                for (charge, bytes) in charged {
                    self.ledger().uncharge(charge, bytes);
                }
                return Err(error.into());
            }
            charged.push((charge, bytes));
        }
        for pages in all.values() {
            pages.hand_over(account);
        }
        Ok(())
    }
}
