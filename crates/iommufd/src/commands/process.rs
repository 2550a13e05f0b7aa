//! Handing mappings over to another process (IOAS_CHANGE_PROCESS).

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::host::Account;

use crate::{
    base::error::{Error, MapError},
    file::{object::Object, table::Objects},
    space::{
        ledger::{Charge, MemoryLedger},
        pages::Pages,
    },
};

/// Every mapping counts as locked memory of `account` from now on.
pub(super) fn change(
    objects: &Objects,
    ledger: &MemoryLedger,
    account: Account,
) -> Result<(), Error> {
    let objects = objects.all();
    let spaces: Vec<_> = objects
        .iter()
        .filter_map(|object| match object {
            Object::Ioas(ioas) => Some(ioas),
            _ => None,
        })
        .collect();
    // In the order of ids, as nothing else takes more than one of them.
    let _changes: Vec<_> = spaces.iter().map(|ioas| ioas.change.lock()).collect();
    let mut all: BTreeMap<*const Pages, Arc<Pages>> = BTreeMap::new();
    for ioas in &spaces {
        for (_, area) in ioas.state.lock().space.areas() {
            let source = area.pages.source();
            if !source.is_file() || source.is_device() {
                return Err(MapError::NotFileBacked { ioas: ioas.id() }.into());
            }
            all.insert(Arc::as_ptr(&area.pages), Arc::clone(&area.pages));
        }
    }
    let mut charged: Vec<(Charge, u64)> = Vec::new();
    for pages in all.values() {
        let (charge, bytes) = pages.charged();
        let charge = charge.moved_to(account);
        if let Err(error) = ledger.charge(charge, bytes) {
            for (charge, bytes) in charged {
                ledger.uncharge(charge, bytes);
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
