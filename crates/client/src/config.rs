//! What varies between runs of the scene.

use std::{path::PathBuf, time::Duration};

use crate::{
    discover,
    error::{Error, Result},
    memory::MemoryKind,
    role::Role,
};

/// Which device of a role is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first one that sysfs shows, or none if it shows none.
    #[default]
    Any,
    /// The first one that sysfs shows; it is an error if it shows none.
    First,
    /// The one in this sysfs directory.
    Path(PathBuf),
    /// None, even if there is one.
    None,
}

impl Choice {
    pub(crate) fn resolve(&self, role: Role) -> Result<Option<PathBuf>> {
        let first = || match role {
            Role::Pdev => discover::first_pdev(),
            Role::Mdev => discover::first_mdev(),
        };
        match self {
            Choice::Any => first(),
            Choice::First => first()?.ok_or(Error::NoSuchRole(role)).map(Some),
            Choice::Path(path) => Ok(Some(path.clone())),
            Choice::None => Ok(None),
        }
    }
}

/// In which order the two devices are attached or detached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The whole device first.
    #[default]
    PdevFirst,
    /// The child first.
    MdevFirst,
}

impl Order {
    pub(crate) fn roles(self) -> [Role; 2] {
        match self {
            Order::PdevFirst => [Role::Pdev, Role::Mdev],
            Order::MdevFirst => [Role::Mdev, Role::Pdev],
        }
    }
}

/// Which page-table object each device is attached to. All of them belong to the same IOAS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageTables {
    /// Both to the IOAS.
    #[default]
    Ioas,
    /// The pdev to a HWPT made by hand, the mdev to the IOAS.
    ManualForPdev,
    /// The mdev to a HWPT made by hand, the pdev to the IOAS.
    ManualForMdev,
    /// Both to one HWPT made by hand.
    ManualForBoth,
}

impl PageTables {
    pub(crate) fn manual(self, role: Role) -> bool {
        match self {
            PageTables::Ioas => false,
            PageTables::ManualForPdev => role == Role::Pdev,
            PageTables::ManualForMdev => role == Role::Mdev,
            PageTables::ManualForBoth => true,
        }
    }

    /// Whether every device must report the same id.
    pub(crate) fn one_id(self) -> bool {
        matches!(self, PageTables::Ioas | PageTables::ManualForBoth)
    }
}

/// By which files of `/dev` the devices are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// `/dev/iommu` and `/dev/vfio/devices`.
    #[default]
    Iommufd,
    /// `/dev/vfio/vfio` and groups: every device in one container of type 1, version 2. There are no
    /// page tables to choose then, and memory is mapped by address, whatever its kind.
    Container,
}

/// What varies between runs.
#[derive(Clone, Debug)]
#[must_use]
pub struct Config {
    pub(crate) interface: Interface,
    pub(crate) pdev: Choice,
    pub(crate) mdev: Choice,
    pub(crate) attach: Order,
    pub(crate) detach: Order,
    pub(crate) page_tables: PageTables,
    pub(crate) data: MemoryKind,
    pub(crate) records: MemoryKind,
    pub(crate) bytes: u64,
    pub(crate) timeout: Duration,
    pub(crate) exact_interrupts: bool,
    pub(crate) migrate: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            interface: Interface::Iommufd,
            pdev: Choice::Any,
            mdev: Choice::Any,
            attach: Order::PdevFirst,
            detach: Order::PdevFirst,
            page_tables: PageTables::Ioas,
            data: MemoryKind::Private,
            records: MemoryKind::Private,
            bytes: 64 << 20,
            timeout: Duration::from_secs(30),
            exact_interrupts: false,
            migrate: false,
        }
    }
}

impl Config {
    /// The default: both devices if there, pdev first, one IOAS, private memory, 64 MiB.
    pub fn new() -> Config {
        Config::default()
    }

    /// By which files.
    pub fn interface(mut self, interface: Interface) -> Config {
        self.interface = interface;
        self
    }

    /// Which whole device.
    pub fn pdev(mut self, choice: Choice) -> Config {
        self.pdev = choice;
        self
    }

    /// Which child.
    pub fn mdev(mut self, choice: Choice) -> Config {
        self.mdev = choice;
        self
    }

    /// Order of attachment.
    pub fn attach(mut self, order: Order) -> Config {
        self.attach = order;
        self
    }

    /// Order of detachment.
    pub fn detach(mut self, order: Order) -> Config {
        self.detach = order;
        self
    }

    /// What the devices are attached to.
    pub fn page_tables(mut self, page_tables: PageTables) -> Config {
        self.page_tables = page_tables;
        self
    }

    /// Kind of the data memory.
    pub fn data(mut self, kind: MemoryKind) -> Config {
        self.data = kind;
        self
    }

    /// Kind of the memory of the completion records.
    pub fn records(mut self, kind: MemoryKind) -> Config {
        self.records = kind;
        self
    }

    /// Bytes to copy through each device; rounded up to pages, at least one.
    pub fn bytes(mut self, bytes: u64) -> Config {
        self.bytes = bytes.max(1).next_multiple_of(4096);
        self
    }

    /// Longest wait for anything that the device should do.
    pub fn timeout(mut self, timeout: Duration) -> Config {
        self.timeout = timeout;
        self
    }

    /// Fail unless every descriptor raised exactly one interrupt. Real hardware may merge two that
    /// come close together.
    pub fn exact_interrupts(mut self, exact: bool) -> Config {
        self.exact_interrupts = exact;
        self
    }

    /// Save and restore each device in the middle of its work, again and again.
    pub fn migrate(mut self, migrate: bool) -> Config {
        self.migrate = migrate;
        self
    }
}
