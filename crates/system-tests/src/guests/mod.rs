//! Stock guests under a stock QEMU.
//!
//! QEMU and the guests' kernel are Debian packages ([`xtask::fetch`]). Guests run on an emulated
//! processor (`-accel tcg`), so neither KVM nor a privilege is needed; their kernel's own IOAT driver
//! probes the devices that they are given, which is DMA and an interrupt of each.

mod guest;
mod host;
mod initramfs;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use xtask::fetch::Origin;

pub use guest::{Claim, Function, Guest, Queue, Report, Work};
pub use host::{Board, Given, Host, Memory, Mode, Viommu};

/// How the tests with guests run.
#[derive(Args, Debug)]
pub struct Options {
    /// What the guests are given. There is no driver for a DSA in a guest on an emulated processor:
    /// the tests then show only that the guests see their devices.
    #[arg(long, value_name = "MODEL", default_value = "ioat")]
    pub model: Model,
    /// How long guests keep their devices at work where they do.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub seconds: u64,
    /// How often a guest is killed at work.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub kills: u32,
    /// Print what guests and their QEMUs write.
    #[arg(long, short)]
    pub verbose: bool,
    /// Use this `ioasid` instead of building one, optimised.
    #[arg(long, value_name = "PROGRAM")]
    pub ioasid: Option<PathBuf>,
    /// Where packages come from.
    #[command(flatten)]
    pub origin: Origin,
}

/// Device models that a guest can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Model {
    /// Intel QuickData, for which the kernel's driver is `ioatdma`.
    Ioat,
    /// Intel DSA.
    Dsa,
}

impl Model {
    /// Its name in a machine file.
    pub fn name(self) -> &'static str {
        match self {
            Model::Ioat => "ioat",
            Model::Dsa => "dsa",
        }
    }
}
