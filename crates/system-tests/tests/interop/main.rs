//! Programs that others have written for devices like ours, unmodified, under
//! `ioasid run`.
//!
//! DPDK has drivers of its own for DSA and IOAT, which map the registers through a legacy VFIO
//! container and poll. Its test of DMA devices (`app/test/test_dmadev.c`) copies with one descriptor
//! and with many, fills queues to their end, makes mistakes on purpose where a device reports them, and
//! compares every byte.
//!
//! The crate `pci-driver` is a library for user-space drivers; `crates/client/examples/pci_driver.rs` is one.
#![allow(clippy::print_stdout, reason = "tests for a terminal")]

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Parser};
use ioasid_system_tests::{
    installation::Installation,
    process::succeed,
    runner::{self, Test},
};
use libtest_mimic::Arguments;
use xtask::{
    fetch::{Cache, Origin, bundle, dpdk},
    workspace::{cargo, ioasid, root, run as run_shown, target_directory},
};

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    arguments: Arguments,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
    /// Use this `ioasid` instead of building one, optimised.
    #[arg(long, value_name = "PROGRAM")]
    ioasid: Option<PathBuf>,
    #[command(flatten)]
    origin: Origin,
}

const TESTS: &[(&str, Test<Installation>)] = &[
    (
        "DPDK's test passes on two whole DSAs, each queue a DMA device",
        |installation| dmadev(installation, "vfio-dsa", &[], 8),
    ),
    ("DPDK's test passes on two whole IOATs", |installation| {
        dmadev(installation, "vfio-ioat", &[], 2)
    }),
    (
        "DPDK's test passes on a mediated queue of a DSA",
        |installation| dmadev(installation, "vfio-mdev", &[], 1),
    ),
    (
        "DPDK's test passes on a mediated channel of an IOAT",
        |installation| dmadev(installation, "vfio-mdev-ioat", &[], 1),
    ),
    (
        "DPDK's test passes on a mediated channel without the library for registers",
        |installation| dmadev(installation, "vfio-mdev-ioat", &["--mmio=ptrace"], 1),
    ),
    (
        "a driver on the crate pci-driver passes on a whole IOAT and on a mediated channel",
        pci_driver,
    ),
];

/// A driver on the crate `pci-driver`.
const PCI_DRIVER: &str = "pci_driver";
/// Where programs keep what is theirs while they run (`XDG_RUNTIME_DIR`).
const RUNTIME: &str = "runtime";

fn main() -> ExitCode {
    let CommandLine { arguments, options } = CommandLine::parse();
    runner::run(arguments, TESTS, move || set_up(&options))
}

/// `ioasid`, DPDK and the example where every user can run them.
fn set_up(options: &Options) -> Result<Installation> {
    let cache = Cache::with(dpdk::is_there)?;
    let (folder, version) = dpdk::fetch(&cache, &options.origin, false)?;
    drop(cache);
    let ioasid = ioasid(options.ioasid.as_deref())?;
    run_shown(
        cargo()
            .args(["build", "--release", "--package", "passthrough-client"])
            .args(["--example", PCI_DRIVER]),
    )?;
    let installation = Installation::bare(&ioasid)?;
    let example = target_directory().join("release/examples").join(PCI_DRIVER);
    installation.add(&example, PCI_DRIVER)?;
    bundle::copy(&folder, &installation.path("dpdk"))?;
    println!("interop: DPDK, ABI {version}");
    installation.folder_of(installation.weakest_user(), RUNTIME)?;
    Ok(installation)
}

/// `ioasid run` on the machine of a kind of device, by the least privileged user.
fn on_machine(installation: &Installation, machine: &str, options: &[&str]) -> Result<Command> {
    let file = root().join(format!("conformance/machines/{machine}.toml"));
    let copy = installation.path("machine.toml");
    fs::copy(&file, &copy).with_context(|| format!("copying {}", file.display()))?;
    let mut command = installation.ioasid(installation.weakest_user());
    command
        .env("XDG_RUNTIME_DIR", installation.path(RUNTIME))
        .arg("run")
        .args(options)
        .arg("--machine")
        .arg(copy)
        .arg("--");
    Ok(command)
}

/// The example of a driver on `pci-driver`, which checks what it copies itself.
fn pci_driver(installation: &Installation) -> Result<String> {
    let mut said = Vec::new();
    for (machine, address) in [
        ("vfio-ioat", "0000:6b:01.0"),
        ("vfio-mdev-ioat", "0000:70:00.0"),
    ] {
        let mut command = on_machine(installation, machine, &[])?;
        command.arg(installation.path(PCI_DRIVER)).arg(address);
        said.push(succeed(&mut command)?.trim().to_owned());
    }
    Ok(said.join("; "))
}

/// The test of DMA devices on a machine. It waits for a device by a fixed number of polls, which a busy
/// host makes too few: so it may fail twice.
fn dmadev(
    installation: &Installation,
    machine: &str,
    options: &[&str],
    devices: usize,
) -> Result<String> {
    for _ in 0..2 {
        match dmadev_once(installation, machine, options, devices) {
            Ok(said) => return Ok(said),
            Err(error) => println!("once more, after: {error:#}"),
        }
    }
    dmadev_once(installation, machine, options, devices)
}

fn dmadev_once(
    installation: &Installation,
    machine: &str,
    options: &[&str],
    devices: usize,
) -> Result<String> {
    let mut command = on_machine(installation, machine, options)?;
    command
        .args(["env", "DPDK_TEST=dmadev_autotest"])
        .arg(installation.path("dpdk").join(dpdk::TEST))
        // One thread, ordinary pages, and no file that another instance could attach to.
        .args([
            "-l",
            "0",
            "--no-huge",
            "-m",
            "128",
            "--no-shconf",
            "--no-telemetry",
        ]);
    let said = heard(&mut command)?;
    let tested = said.matches("### Test dmadev instance").count();
    ensure!(
        tested == devices,
        "{tested} DMA devices were tested, not {devices}:\n{}",
        tail(&said)
    );
    // A line for each round of each test, overwritten on a terminal: `Ops submitted: N\tOps
    // completed: N\tErrors: N`.
    let mut jobs = 0;
    for test in said.split('\n') {
        let Some(last) = test
            .rsplit("Ops submitted: ")
            .next()
            .filter(|_| test.contains("Ops completed"))
        else {
            continue;
        };
        let count = last.split_whitespace().next().unwrap_or_default();
        jobs += count
            .parse::<u64>()
            .with_context(|| format!("no number of jobs in `{last}`"))?;
    }
    ensure!(jobs > 0, "no job was counted:\n{}", tail(&said));
    Ok(format!("{devices} DMA devices, {jobs} jobs"))
}

/// What `command` says, which has to succeed.
fn heard(command: &mut Command) -> Result<String> {
    let output = command.output().context("`ioasid` could not be run")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || !said.contains("Test OK") {
        bail!("the test failed ({}):\n{}", output.status, tail(&said));
    }
    Ok(said)
}

/// The end of what was said, as it would stand on a terminal.
fn tail(said: &str) -> String {
    let shown = |line: &str| line.rsplit('\r').next().unwrap_or_default().to_owned();
    let lines: Vec<_> = said.lines().map(shown).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
