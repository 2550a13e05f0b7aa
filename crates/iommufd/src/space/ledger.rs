//! How much memory each process and user has locked.
//!
//! What Linux counts in `user->locked_vm`, `mm->locked_vm` and `mm->pinned_vm`: memory counts once
//! per MAP however many address spaces show it, from its first use by a page table or an access to
//! the last. It is always counted; limits are enforced only where asked for, since the usual one
//! (8 MiB) is made for other programs than tests.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use ioasid_core::{AddrRange, failpoint, host::Account, memory::PinError, sync::Mutex};

use super::pages::Pages;

/// Which of a program's counters its memory goes to (`enum iopt_pages_account_mode` in the kernel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// No limit applies.
    Unlimited,
    /// That of the user.
    User,
    /// That of the process.
    Process,
}

/// Whether limits are enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limits {
    /// Memory is only counted.
    #[default]
    Counted,
    /// Locking more than a program may is refused.
    Enforced,
}

/// Bytes that a user or a process has locked. Nobody keeps a counter but whose memory is counted.
type Counter = AtomicU64;

#[derive(Debug, Default)]
struct Counters {
    users: BTreeMap<u32, Weak<Counter>>,
    locked: BTreeMap<u64, Weak<Counter>>,
    pinned: BTreeMap<u64, Weak<Counter>>,
    payers: Vec<Weak<Payer>>,
}

fn counter<K: Ord>(counters: &mut BTreeMap<K, Weak<Counter>>, key: K) -> Arc<Counter> {
    if let Some(counter) = counters.get(&key).and_then(Weak::upgrade) {
        return counter;
    }
    counters.retain(|_, counter| counter.strong_count() > 0);
    let counter = Arc::default();
    counters.insert(key, Arc::downgrade(&counter));
    counter
}

fn counted<K: Ord>(counters: &BTreeMap<K, Weak<Counter>>, key: K) -> u64 {
    let counter = counters.get(&key).and_then(Weak::upgrade);
    counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
}

/// What has address spaces: an open file.
pub(crate) trait HasAreas: Send + Sync {
    /// The pages behind areas that have pinned an address of `page`, each once or more often.
    fn pinning(&self, page: AddrRange) -> Vec<Arc<Pages>>;
}

/// The locked memory of a machine's programs.
#[derive(Default)]
pub struct MemoryLedger {
    limits: Limits,
    counters: Mutex<Counters>,
    files: Mutex<Vec<Weak<dyn HasAreas>>>,
}

impl MemoryLedger {
    /// Nothing is locked.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(MemoryLedger {
            limits,
            ..MemoryLedger::default()
        })
    }

    /// Bytes that a process has pinned, under whatever limit (VmPin of `/proc/PID/status`).
    pub fn pinned(&self, process: u64) -> u64 {
        counted(&self.counters.lock().pinned, process)
    }

    /// Bytes that count against a process's own limit (VmLck of `/proc/PID/status`).
    pub fn locked(&self, process: u64) -> u64 {
        counted(&self.counters.lock().locked, process)
    }

    /// Bytes that count against a user's limit.
    pub fn locked_by_user(&self, user: u32) -> u64 {
        counted(&self.counters.lock().users, user)
    }

    /// How many MAPs, however often copied, have pinned the system physical addresses `page`,
    /// wholly or in part: the pins that a page of a program has. Looks at every mapping there is.
    pub fn pins(&self, page: AddrRange) -> usize {
        let files: Vec<_> = {
            let files = self.files.lock();
            files.iter().filter_map(Weak::upgrade).collect()
        };
        let mut pages: Vec<_> = files.iter().flat_map(|file| file.pinning(page)).collect();
        pages.sort_unstable_by_key(Arc::as_ptr);
        pages.dedup_by_key(|pages| Arc::as_ptr(pages));
        pages.len()
    }

    /// About how many MAPs there are, each counted once however often copied: a few too many at
    /// most.
    pub fn mappings(&self) -> usize {
        // Each keeps its payer.
        let counters = self.counters.lock();
        counters.payers.iter().map(Weak::strong_count).sum()
    }

    /// A file whose memory counts here.
    pub(crate) fn enter(&self, file: Weak<dyn HasAreas>) {
        let mut files = self.files.lock();
        files.retain(|file| file.strong_count() > 0);
        files.push(file);
    }

    /// The counters that `charge` is about.
    pub(crate) fn payer(&self, charge: Charge) -> Arc<Payer> {
        let Charge { account, mode } = charge;
        let mut counters = self.counters.lock();
        let limited = match mode {
            Mode::Unlimited => None,
            Mode::User => Some(counter(&mut counters.users, account.user)),
            Mode::Process => Some(counter(&mut counters.locked, account.process)),
        };
        let payer = Arc::new(Payer {
            charge,
            limit: match self.limits {
                Limits::Enforced => account.limit,
                Limits::Counted => None,
            },
            limited,
            pinned: counter(&mut counters.pinned, account.process),
        });
        counters.payers.retain(|payer| payer.strong_count() > 0);
        counters.payers.push(Arc::downgrade(&payer));
        payer
    }
}

impl fmt::Debug for MemoryLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = self.counters.lock();
        f.debug_struct("MemoryLedger")
            .field("limits", &self.limits)
            .field("pinned", &counters.pinned)
            .finish_non_exhaustive()
    }
}

/// Whose memory some pages are: the counters that they go to, found once for all mappings of a
/// program.
#[derive(Debug)]
pub(crate) struct Payer {
    charge: Charge,
    /// Bytes that `limited` may come to, if that is enforced.
    limit: Option<u64>,
    limited: Option<Arc<Counter>>,
    pinned: Arc<Counter>,
}

impl Payer {
    /// What it was found by.
    pub(crate) fn charge(&self) -> Charge {
        self.charge
    }

    /// Counts `bytes` more.
    pub(crate) fn count(&self, bytes: u64) -> Result<(), PinError> {
        failpoint::allocation()?;
        if let Some(limited) = &self.limited {
            let limit = self.limit.unwrap_or(u64::MAX);
            let more = |locked: u64| {
                let sum = locked.saturating_add(bytes);
                (sum <= limit).then_some(sum)
            };
            let counted = limited.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
            counted.map_err(|_over| PinError::NoMemory)?;
        }
        let more = |pinned: u64| Some(pinned.saturating_add(bytes));
        let _ = self
            .pinned
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        Ok(())
    }

    /// Counts `bytes` less.
    pub(crate) fn uncount(&self, bytes: u64) {
        let less = |counted: u64| Some(counted.saturating_sub(bytes));
        for counter in self.limited.iter().chain([&self.pinned]) {
            let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }
}

/// Where the memory of some pages counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) account: Account,
    pub(crate) mode: Mode,
}

impl Charge {
    /// Where memory counts that `account` maps: whether limits go by process is the file's option.
    pub(crate) fn new(account: Account, per_process: bool) -> Self {
        let mode = match (account.unlimited, per_process) {
            (true, _) => Mode::Unlimited,
            (false, true) => Mode::Process,
            (false, false) => Mode::User,
        };
        Charge { account, mode }
    }

    /// The same counter of another program.
    pub(crate) fn moved_to(self, account: Account) -> Self {
        Charge {
            account,
            mode: self.mode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(process: u64) -> Account {
        Account {
            process,
            user: 1000,
            unlimited: false,
            limit: Some(8192),
        }
    }

    #[test]
    fn the_limit_is_that_of_the_user_or_of_the_process() {
        let ledger = MemoryLedger::new(Limits::Enforced);
        let user = |process| ledger.payer(Charge::new(account(process), false));
        let first = user(1);
        first.count(8192).unwrap();
        assert_eq!(user(2).count(4096), Err(PinError::NoMemory));
        let own = |process| ledger.payer(Charge::new(account(process), true));
        let second = own(2);
        second.count(8192).unwrap();
        assert_eq!(own(2).count(1), Err(PinError::NoMemory));
        assert_eq!((ledger.locked(1), ledger.locked(2)), (0, 8192));
        assert_eq!((ledger.pinned(1), ledger.pinned(2)), (8192, 8192));
        first.uncount(8192);
        assert_eq!(ledger.locked_by_user(1000), 0);
        user(2).count(4096).unwrap();
    }

    #[test]
    fn without_enforcement_everything_is_counted_and_nothing_refused() {
        let ledger = MemoryLedger::new(Limits::Counted);
        let payer = ledger.payer(Charge::new(account(1), false));
        payer.count(1 << 40).unwrap();
        assert_eq!(ledger.locked_by_user(1000), 1 << 40);
    }

    #[test]
    fn who_has_the_capability_is_counted_as_pinned_only() {
        let ledger = MemoryLedger::new(Limits::Enforced);
        let root = Account {
            unlimited: true,
            ..account(1)
        };
        let payer = ledger.payer(Charge::new(root, true));
        payer.count(1 << 40).unwrap();
        assert_eq!((ledger.pinned(1), ledger.locked(1)), (1 << 40, 0));
        assert_eq!(ledger.locked_by_user(1000), 0);
    }
}
