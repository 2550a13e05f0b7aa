//! `cargo xtask fetch`: what other tasks build from or run, as Debian packages in a cache folder.
//!
//! Nothing is installed, and nothing of it is committed. [`apt`] downloads, `packages` unpacks;
//! [`source`] is the kernel's source, [`kernel`] a stock kernel for guests, [`tools`] programs for
//! them; [`bundle`]s of a program with all that it needs are [`qemu`], a stock QEMU, and [`dpdk`],
//! the tests of DPDK.

pub mod apt;
pub mod bundle;
pub mod dpdk;
pub mod kernel;
mod packages;
pub mod qemu;
pub mod source;
pub mod tools;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use rustix::fs::{FlockOperation, flock};

pub use apt::{Apt, Origin};
pub use packages::{find, unpack};

/// Arguments of `cargo xtask fetch`.
#[derive(Args, Debug)]
pub struct Fetch {
    #[command(subcommand)]
    what: Option<What>,
}

/// How to fetch one thing.
#[derive(Args, Clone, Debug, Default)]
struct How {
    #[command(flatten)]
    origin: Origin,
    /// Look for a newer version even if there is one already.
    #[arg(long)]
    refresh: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The parts of the kernel's source that the self-tests are built from.
    KernelSource(How),
    /// A stock QEMU with every library that it needs, and a program that starts it.
    Qemu(How),
    /// A stock kernel with its modules, busybox and a few programs, for guests.
    Kernel(How),
    /// The test programs of DPDK with every library that they need.
    Dpdk(How),
    /// All of them (what is done without a word).
    All(How),
}

/// The cache: everything that is fetched, built or recorded.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    /// Held while the cache is changed, and during runs that share the host's huge pages.
    _lock: Option<File>,
}

impl Cache {
    /// `target/conformance`, made and locked; waits for another runner.
    pub fn open() -> Result<Self> {
        let folder = crate::workspace::root().join("target/conformance");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let path = folder.join("lock");
        let lock = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            println!(
                "xtask: waiting for another run to leave {}",
                folder.display()
            );
            flock(&lock, FlockOperation::LockExclusive).context("locking the cache")?;
        }
        Ok(Self {
            folder,
            _lock: Some(lock),
        })
    }

    /// The cache as it is, for what is there already and does not change.
    fn look() -> Self {
        Self {
            folder: crate::workspace::root().join("target/conformance"),
            _lock: None,
        }
    }

    /// As it is if `is_there` finds in it what is needed, locked otherwise.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn with(is_there: impl FnOnce(&Self) -> bool) -> Result<Self> {
        let cache = Self::look();
        match is_there(&cache) {
            true => Ok(cache),
            false => Self::open(),
        }
    }

    /// The cache's own folder.
    pub fn top(&self) -> &Path {
        &self.folder
    }

    /// The path of what is `inside` the cache.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.folder.join(inside)
    }

    /// As [`Self::path`], made if it is missing.
    pub fn folder(&self, inside: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.path(inside);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }
}

/// `cargo xtask fetch`.
///
/// # Errors
/// If a tool is missing, or a package cannot be had.
pub fn run(arguments: &Fetch) -> Result<()> {
    let all = What::All(How::default());
    let what = arguments.what.as_ref().unwrap_or(&all);
    let (What::KernelSource(how)
    | What::Qemu(how)
    | What::Kernel(how)
    | What::Dpdk(how)
    | What::All(how)) = what;
    let cache = Cache::open()?;
    if matches!(what, What::KernelSource(_) | What::All(_)) {
        let source = source::fetch(&cache, &how.origin, how.refresh)?;
        println!("Linux {} is in {}", source.version, source.folder.display());
    }
    if matches!(what, What::Qemu(_) | What::All(_)) {
        let qemu = qemu::fetch(&cache, &how.origin, how.refresh)?;
        println!("{} is {}", qemu.version, qemu.program.display());
    }
    if matches!(what, What::Kernel(_) | What::All(_)) {
        let kernel = kernel::fetch(&cache, &how.origin, how.refresh)?;
        println!("kernel {} is {}", kernel.version, kernel.image.display());
        tools::fetch(&cache, &how.origin, how.refresh)?;
    }
    if matches!(what, What::Dpdk(_) | What::All(_)) {
        let (folder, version) = dpdk::fetch(&cache, &how.origin, how.refresh)?;
        println!("DPDK {version} is in {}", folder.display());
    }
    Ok(())
}
