//! What launcher, `run` and a served machine say to one another.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::view::{InjectRequest, MdevRequest, SysfsEntry};

/// Longest line that a client of the control socket may send: 64 KiB.
pub const REQUEST_BYTES: usize = 64 << 10;

/// Longest line that a server may send: 64 MiB, a description with a large sysfs tree.
pub const REPLY_BYTES: usize = 64 << 20;

/// What a program finds under `/dev` and `/sys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Names of the nodes under `/dev/vfio/devices`.
    pub nodes: Vec<String>,
    /// Numbers of the groups under `/dev/vfio`.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// What is added to `/sys`.
    pub sysfs: Vec<SysfsEntry>,
    /// The size of the largest region 0 of a device, in bytes.
    #[serde(default)]
    pub reach: u64,
    /// Whether `/proc/PID/status` is to show what a program has locked.
    #[serde(default)]
    pub status: bool,
    /// Whether entries of `/sys` can be written.
    #[serde(default)]
    pub attributes: bool,
}

/// A placeholder file, which stands for a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placeholder {
    /// Device number of the file system it lies on.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// The node it stands for.
    pub node: NodeName,
}

/// Which node is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeName {
    /// `/dev/iommu` and `/dev/ioasid`.
    Iommu,
    /// `/dev/vfio/vfio`.
    Container,
    /// `/dev/vfio/NUMBER`.
    Group(u32),
    /// `/dev/vfio/devices/NAME`.
    Device(String),
}

/// The launcher is ready: the listener comes beside this message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The lowest descriptor number that is ours.
    pub base: u32,
    /// How the program finds our nodes.
    pub mode: Mode,
    /// How accesses to mapped registers are caught.
    #[serde(default)]
    pub mmio: Mmio,
    /// The process that becomes the program, as it knows itself.
    #[serde(default)]
    pub pid: u32,
    /// Whether a second descriptor comes, in a message of its own: where to write why calls are
    /// refused.
    #[serde(default)]
    pub explain: bool,
}

/// The machine serves the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// What the machine calls it, for [`Request::Account`].
    pub session: u64,
}

/// What a machine counts of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Calls that were refused.
    pub refused: u64,
    /// Faults of DMA.
    pub faults: u64,
}

/// How accesses to mapped device registers are caught.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mmio {
    /// By the library in each process that has it, by ptrace in others.
    #[default]
    Auto,
    /// By the library alone.
    Preload,
    /// By ptrace alone: nothing is loaded into programs.
    Ptrace,
    /// Not at all: no region can be mapped.
    Off,
}

impl Mmio {
    /// All of them.
    pub const ALL: [Mmio; 4] = [Mmio::Auto, Mmio::Preload, Mmio::Ptrace, Mmio::Off];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Mmio::Auto => "auto",
            Mmio::Preload => "preload",
            Mmio::Ptrace => "ptrace",
            Mmio::Off => "off",
        }
    }

    /// What it means, for the help of the command line.
    pub const fn meaning(self) -> &'static str {
        match self {
            Mmio::Auto => "The library where it is loaded, ptrace elsewhere",
            Mmio::Preload => "The library alone",
            Mmio::Ptrace => "Ptrace alone: nothing is loaded into programs",
            Mmio::Off => "No region can be mapped",
        }
    }

    /// Whether programs are started with the library.
    pub fn preloads(self) -> bool {
        matches!(self, Mmio::Auto | Mmio::Preload)
    }
}

impl fmt::Display for Mmio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no way of catching accesses has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to catch accesses (auto, preload, ptrace, off)")]
pub struct UnknownMmio(pub String);

impl FromStr for Mmio {
    type Err = UnknownMmio;

    fn from_str(name: &str) -> Result<Self, UnknownMmio> {
        let mut all = Mmio::ALL.into_iter();
        let found = all.find(|mode| mode.name() == name);
        found.ok_or_else(|| UnknownMmio(name.to_owned()))
    }
}

/// The session serves the program: it may start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Where the library is that the program is started with.
    #[serde(default)]
    pub library: Library,
}

/// The library that catches accesses to mapped registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Library {
    /// The program does without.
    #[default]
    None,
    /// The launcher puts it into the program's own `/dev`.
    InDev,
    /// It is in this file.
    At(String),
}

/// How a program finds `/dev` and `/sys` with our entries in them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It has a mount namespace of its own.
    Namespaces {
        /// The files that stand for our nodes.
        placeholders: Vec<Placeholder>,
        /// Device number of the file system that our part of `/sys` lies on; `None` if `/sys` is
        /// the host's.
        sys: Option<u64>,
    },
    /// Every call that takes a path is trapped.
    Paths {
        /// Why it has no namespace, in one sentence.
        reason: String,
    },
}

impl NodeName {
    /// Where a program finds a node that has no name of its own.
    pub(crate) const FIXED: [(&'static str, NodeName); 3] = [
        ("iommu", NodeName::Iommu),
        ("ioasid", NodeName::Iommu),
        ("vfio/vfio", NodeName::Container),
    ];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Namespaces { .. } => f.write_str("a mount namespace of its own"),
            Mode::Paths { reason } => write!(f, "no namespace, every path is trapped: {reason}"),
        }
    }
}

/// What a client asks of a served machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Whether a machine is there.
    Ping,
    /// The tree of the machine.
    Inspect,
    /// A program wants in. Answered by a [`Description`]; then comes an [`Attach`] with the
    /// listener, then an acknowledgement.
    Join {
        /// Limits the program to what this VM owns.
        vm: Option<String>,
        /// The program's name, for messages.
        program: String,
    },
    /// What was counted of a program that has joined. What is to be written about it is written first.
    Account {
        /// As [`Joined`] says.
        session: u64,
    },
    /// About mediated devices.
    Mdev(MdevRequest),
    /// Something is to fail.
    Inject(InjectRequest),
}
