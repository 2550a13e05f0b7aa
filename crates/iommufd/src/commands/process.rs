//! Handing mappings over to another process (IOAS_CHANGE_PROCESS).

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::host::Account;

use crate::{
    base::error::{Error, MapError},
    file::{object::Object, table::Objects},
    space::{
        ledger::{MemoryLedger, Payer},
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
            let source = area.pages().source();
            if !source.is_file() || source.is_device() {
                return Err(MapError::NotFileBacked { ioas: ioas.id() }.into());
            }
            all.insert(Arc::as_ptr(area.pages()), Arc::clone(area.pages()));
        }
    }
    let mut counted: Vec<(Arc<Payer>, u64)> = Vec::new();
    for pages in all.values() {
        let (payer, bytes) = pages.counted();
        let payer = ledger.payer(payer.charge().moved_to(account));
        if let Err(error) = payer.count(bytes) {
            for (payer, bytes) in counted {
                payer.uncount(bytes);
            }
            return Err(error.into());
        }
        counted.push((payer, bytes));
    }
    for (pages, (payer, bytes)) in all.values().zip(counted) {
        pages.hand_over(payer, bytes);
    }
    Ok(())
}
