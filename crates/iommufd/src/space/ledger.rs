//! How much memory each process and user has locked.
//!
//! What Linux counts in `user->locked_vm`, `mm->locked_vm` and `mm->pinned_vm`: memory counts once
//! per MAP however many address spaces show it, from its first use by a page table or an access to
//! the last. It is always counted; limits are enforced only where asked for, since the usual one
//! (8 MiB) is made for other programs than tests.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak},
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

#[derive(Debug, Default)]
struct Counters {
    users: BTreeMap<u32, u64>,
    locked: BTreeMap<u64, u64>,
    pinned: BTreeMap<u64, u64>,
    pages: BTreeMap<u64, Weak<Pages>>,
    last: u64,
}

fn add<K: Ord>(counters: &mut BTreeMap<K, u64>, key: K, bytes: u64) {
    let counter = counters.entry(key).or_default();
    *counter = counter.saturating_add(bytes);
}

fn subtract<K: Ord>(counters: &mut BTreeMap<K, u64>, key: K, bytes: u64) {
    if let Some(counter) = counters.get_mut(&key) {
        *counter = counter.saturating_sub(bytes);
        if *counter == 0 {
            counters.remove(&key);
        }
    }
}

/// The locked memory of a machine's programs.
#[derive(Default)]
pub struct MemoryLedger {
    limits: Limits,
    counters: Mutex<Counters>,
}

impl MemoryLedger {
    /// Nothing is locked.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(MemoryLedger {
            limits,
            counters: Mutex::default(),
        })
    }

    /// Bytes that a process has pinned, under whatever limit (VmPin of `/proc/PID/status`).
    pub fn pinned(&self, process: u64) -> u64 {
        let counters = self.counters.lock();
        counters.pinned.get(&process).copied().unwrap_or(0)
    }

    /// Bytes that count against a process's own limit (VmLck of `/proc/PID/status`).
    pub fn locked(&self, process: u64) -> u64 {
        let counters = self.counters.lock();
        counters.locked.get(&process).copied().unwrap_or(0)
    }

    /// Bytes that count against a user's limit.
    pub fn locked_by_user(&self, user: u32) -> u64 {
        let counters = self.counters.lock();
        counters.users.get(&user).copied().unwrap_or(0)
    }

    /// How many MAPs, however often copied, have pinned the system physical addresses `page`,
    /// wholly or in part: the pins that a page of a program has.
    pub fn pins(&self, page: AddrRange) -> usize {
        let pages: Vec<Arc<Pages>> = {
            let counters = self.counters.lock();
            counters.pages.values().filter_map(Weak::upgrade).collect()
        };
        pages.iter().filter(|pages| pages.holds(page)).count()
    }

    pub(crate) fn enter(&self, pages: Weak<Pages>) -> u64 {
        let mut counters = self.counters.lock();
        counters.last += 1;
        let number = counters.last;
        counters.pages.insert(number, pages);
        number
    }

    pub(crate) fn leave(&self, number: u64) {
        self.counters.lock().pages.remove(&number);
    }

    /// Counts `bytes` more.
    pub(crate) fn charge(&self, charge: Charge, bytes: u64) -> Result<(), PinError> {
        let Charge { account, mode } = charge;
        failpoint::allocation()?;
        let mut counters = self.counters.lock();
        let locked = match mode {
            Mode::Unlimited => None,
            Mode::User => counters.users.get(&account.user).copied().or(Some(0)),
            Mode::Process => counters.locked.get(&account.process).copied().or(Some(0)),
        };
        if self.limits == Limits::Enforced
            && let (Some(locked), Some(limit)) = (locked, account.limit)
            && locked.saturating_add(bytes) > limit
        {
            return Err(PinError::NoMemory);
        }
        match mode {
            Mode::Unlimited => {}
            Mode::User => add(&mut counters.users, account.user, bytes),
            Mode::Process => add(&mut counters.locked, account.process, bytes),
        }
        add(&mut counters.pinned, account.process, bytes);
        Ok(())
    }

    /// Counts `bytes` less.
    pub(crate) fn uncharge(&self, charge: Charge, bytes: u64) {
        let Charge { account, mode } = charge;
        let mut counters = self.counters.lock();
        match mode {
            Mode::Unlimited => {}
            Mode::User => subtract(&mut counters.users, account.user, bytes),
            Mode::Process => subtract(&mut counters.locked, account.process, bytes),
        }
        subtract(&mut counters.pinned, account.process, bytes);
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
        let user = |process| Charge::new(account(process), false);
        ledger.charge(user(1), 8192).unwrap();
        assert_eq!(ledger.charge(user(2), 4096), Err(PinError::NoMemory));
        let own = |process| Charge::new(account(process), true);
        ledger.charge(own(2), 8192).unwrap();
        assert_eq!(ledger.charge(own(2), 1), Err(PinError::NoMemory));
        assert_eq!((ledger.locked(1), ledger.locked(2)), (0, 8192));
        assert_eq!((ledger.pinned(1), ledger.pinned(2)), (8192, 8192));
        ledger.uncharge(user(1), 8192);
        assert_eq!(ledger.locked_by_user(1000), 0);
        ledger.charge(user(2), 4096).unwrap();
    }

    #[test]
    fn without_enforcement_everything_is_counted_and_nothing_refused() {
        let ledger = MemoryLedger::new(Limits::Counted);
        let charge = Charge::new(account(1), false);
        ledger.charge(charge, 1 << 40).unwrap();
        assert_eq!(ledger.locked_by_user(1000), 1 << 40);
    }

    #[test]
    fn who_has_the_capability_is_counted_as_pinned_only() {
        let ledger = MemoryLedger::new(Limits::Enforced);
        let root = Account {
            unlimited: true,
            ..account(1)
        };
        ledger.charge(Charge::new(root, true), 1 << 40).unwrap();
        assert_eq!((ledger.pinned(1), ledger.locked(1)), (1 << 40, 0));
        assert_eq!(ledger.locked_by_user(1000), 0);
    }
}
