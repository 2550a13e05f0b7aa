//! `cargo xtask vm`: stock guests under a stock QEMU under `ioasid run`.
//!
//! QEMU and the guests' kernel are Debian packages ([`crate::fetch`]). Guests run on an emulated
//! processor (`-accel tcg`), so neither KVM nor a privilege is needed; their kernel's own IOAT driver
//! probes the devices that they are given, which is DMA and an interrupt of each.

mod control;
mod guest;
mod host;
mod hostile;
mod initramfs;
mod scenes;
mod sockets;
mod work;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{fetch::Origin, play::play};
use host::Host;

/// Arguments of `cargo xtask vm`.
#[derive(Args, Debug)]
pub(crate) struct Vm {
    /// Only scenes whose names contain TEXT.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// What the guests are given. There is no driver for a DSA in a guest on an emulated processor:
    /// the scenes then show only that the guests see their devices.
    #[arg(long, value_name = "MODEL", default_value = "ioat")]
    model: Model,
    /// How long guests keep their devices at work where they do.
    #[arg(long, value_name = "N", default_value_t = 5)]
    seconds: u64,
    /// How often a guest is killed at work.
    #[arg(long, value_name = "N", default_value_t = 2)]
    kills: u32,
    /// Print what guests and their QEMUs say.
    #[arg(long, short)]
    verbose: bool,
    /// Use this `ioasid` instead of building one, optimised.
    #[arg(long, value_name = "PROGRAM")]
    ioasid: Option<PathBuf>,
    #[command(flatten)]
    origin: Origin,
}

/// Device models that a guest can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Model {
    /// Intel QuickData, for which the kernel's driver is `ioatdma`.
    Ioat,
    /// Intel DSA.
    Dsa,
}

/// Plays every scene.
///
/// # Errors
/// What kept the scenes from being played, or that one failed.
pub(crate) fn run(arguments: &Vm) -> Result<()> {
    let host = Host::new(arguments)?;
    let only = arguments.only.as_deref();
    play("scenes with guests", scenes::SCENES, only, &host)
}
