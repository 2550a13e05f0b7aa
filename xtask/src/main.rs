//! Development tasks: `cargo xtask VERB`.
//!
//! Each verb runs a few cargo commands, prints them, and stops at the first that fails.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for a terminal"
)]

mod conformance;
mod fuzz;
mod how_to;

use std::{
    collections::BTreeSet,
    env,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use xtask::{
    errors, fetch,
    floors::House,
    sizes,
    workspace::{cargo, package_name, read_dir, root, run},
};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of the workspace")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Format, lints and unit tests of the crates that differ from the last commit.
    Quick,
    /// Format, clippy and rustdoc of the whole workspace without a warning, and the floor rule.
    Check,
    /// The floor rule, and the rule of short files.
    Floors,
    /// Concurrency claims under shuttle's randomised scheduler.
    Shuttle {
        /// Passed to the tests.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// The benchmarks, optimised.
    Bench {
        /// Passed to the benchmark program (`--short` for a few seconds).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Every test, concurrency claim and end-to-end run in its long form: an hour or more.
    Long {
        /// Passed to `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Licences, bans, sources and advisories, if cargo-deny is installed.
    Deny,
    /// Real programs, end to end: `ioasid run`, `serve`, `inspect`, `demo` and an ordinary client.
    E2e(SystemTest),
    /// Bytes that nobody would send, against everything that takes bytes from a program.
    Fuzz(fuzz::Fuzz),
    /// The kernel's own self-tests, unmodified, under `ioasid run`.
    Conformance(conformance::Conformance),
    /// Fetches what other tasks build from, into the cache folder.
    Fetch(fetch::Fetch),
    /// Types docs/how-to/write-a-device.md into a fresh project outside the workspace, and runs it.
    HowTo,
    /// Programs that others have written for devices like ours, unmodified, under `ioasid run`.
    Interop(SystemTest),
    /// A small client in namespaces, below other tools, built with sanitizers, under `ioasid run`.
    Places(SystemTest),
    /// Stock guests under a stock QEMU under `ioasid run`.
    Vm(SystemTest),
    /// What continuous integration runs.
    Ci,
}

/// A test program of `ioasid-system-tests`.
#[derive(Args)]
struct SystemTest {
    /// Passed to it: part of a test's name, or options; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.verb {
        Verb::Quick => quick(),
        Verb::Check => check(),
        Verb::Floors => floors(),
        Verb::Shuttle { rest } => shuttle(&rest, &[]),
        Verb::Bench { rest } => bench(&rest),
        Verb::Long { rest } => long(&rest),
        Verb::Deny => deny(),
        Verb::E2e(arguments) => system_test("end_to_end", &arguments.rest),
        Verb::Fuzz(arguments) => fuzz::run_targets(&arguments),
        Verb::Conformance(arguments) => match conformance::run(&arguments) {
            Ok(true) => Ok(()),
            // Its last line has said how many; nothing may follow it.
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Verb::Fetch(arguments) => fetch::run(&arguments),
        Verb::HowTo => how_to::run(),
        Verb::Interop(arguments) => system_test("interop", &arguments.rest),
        Verb::Places(arguments) => system_test("places", &arguments.rest),
        Verb::Vm(arguments) => system_test("guests", &arguments.rest),
        Verb::Ci => run(&mut Command::new(root().join(".ci/run"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo()
        .args(["clippy", "--workspace", "--all-targets"])
        .args(["--", "-D", "warnings"]))?;
    run(cargo()
        .args([
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    floors()
}

fn floors() -> Result<()> {
    let output = cargo()
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .output()
        .context("cargo metadata")?;
    let house = House::from_metadata(&String::from_utf8_lossy(&output.stdout))?;
    let (inside, cycles) = house.inside()?;
    println!("floors: longest cycles of imports: {}", cycles.join("; "));
    let mut breaches = house.breaches();
    breaches.extend(inside);
    breaches.extend(sizes::too_long(&root())?);
    breaches.extend(errors::said_twice(&root())?);
    if breaches.is_empty() {
        println!(
            "floors: {} crates, every arrow points down",
            house.on_floors()
        );
        Ok(())
    } else {
        bail!(
            "the rules of the house are broken:\n  {}",
            breaches.join("\n  ")
        )
    }
}

fn shuttle(rest: &[String], variables: &[(&str, &str)]) -> Result<()> {
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    let targets = shuttle_targets()?;
    if targets.is_empty() {
        bail!("no test calls shuttle: they moved, or this task looks in the wrong place");
    }
    for (package, test) in targets {
        run(cargo()
            .args(["test", "--package", &package, "--test", &test])
            .args(["--target-dir", "target-shuttle"])
            .args(if rest.is_empty() { &[][..] } else { &["--"] })
            .args(rest)
            .envs(variables.iter().copied())
            .env("RUSTFLAGS", format!("{flags} --cfg ioasid_shuttle")))?;
    }
    Ok(())
}

/// The test targets that call shuttle, as (package, target). No other test can run with its
/// replacements for threads and locks.
fn shuttle_targets() -> Result<BTreeSet<(String, String)>> {
    let mut targets = BTreeSet::new();
    for crate_dir in read_dir(&root().join("crates"))? {
        let Ok(tests) = read_dir(&crate_dir.join("tests")) else {
            continue;
        };
        for path in tests {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if let (true, Some(package), Some(test)) = (
                text.contains("shuttle::check"),
                package_name(&crate_dir),
                path.file_stem(),
            ) {
                targets.insert((package, test.to_string_lossy().into_owned()));
            }
        }
    }
    Ok(targets)
}

/// Runs a test program of `ioasid-system-tests`, all of whose tests count as ignored.
fn system_test(name: &str, rest: &[String]) -> Result<()> {
    run(cargo()
        .args(["test", "--quiet", "--package", "ioasid-system-tests"])
        .args(["--test", name, "--", "--include-ignored"])
        .args(rest))
}

fn bench(rest: &[String]) -> Result<()> {
    let words = ["run", "--release", "--package", "ioasid-bench", "--"];
    run(cargo().args(words).args(rest))
}

/// What makes the tests run their long form; each variable may be set by hand as well.
const LONG: [(&str, &str); 5] = [
    ("IOASID_LONG", "1"),
    ("IOASID_RACES", "1000000"),
    ("IOASID_SHUTTLE", "5000"),
    ("IOASID_STORM", "60000"),
    ("PROPTEST_CASES", "20000"),
];

fn long(rest: &[String]) -> Result<()> {
    let set = LONG.iter().filter(|(name, _)| env::var_os(name).is_none());
    let set: Vec<_> = set.copied().collect();
    run(cargo()
        .args(["test", "--release", "--workspace"])
        .args(rest)
        .envs(set.clone()))?;
    shuttle(&[], &set)?;
    for words in [
        &["e2e", "--long"][..],
        &["conformance", "iommufd", "--runs", "10"],
        &["conformance", "iommufd", "--static"],
        &["conformance", "iommufd_fail_nth"],
        &["conformance", "iommufd", "--run-option=--no-namespaces"],
        &["conformance", "vfio", "--runs", "10"],
        &["vm", "--seconds", "60", "--kills", "50"],
        &["fuzz", "--runs", "10000000"],
    ] {
        run(cargo().arg("xtask").args(words))?;
    }
    Ok(())
}

fn deny() -> Result<()> {
    let there = cargo().args(["deny", "--version"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!("deny: skipped, cargo-deny is not installed (cargo install cargo-deny --locked)");
        return Ok(());
    }
    let check = || {
        let mut command = cargo();
        command.args(["deny", "check", "--hide-inclusion-graph"]);
        command
    };
    run(check().args(["licenses", "bans", "sources"]))?;
    // The advisory database comes over the network, which need not be there.
    if run(cargo().args(["deny", "fetch", "db"])).is_ok() {
        run(check().arg("advisories"))
    } else {
        println!("deny: advisories skipped, their database cannot be reached");
        Ok(())
    }
}

/// The inner loop: only what differs from the last commit.
fn quick() -> Result<()> {
    let packages = changed_packages()?;
    run(cargo().args(["fmt", "--all", "--check"]))?;
    if packages.is_empty() {
        println!("quick: no crate differs from the last commit");
        return Ok(());
    }
    let selected = || {
        packages
            .iter()
            .flat_map(|name| ["--package", name.as_str()])
    };
    run(cargo()
        .arg("clippy")
        .args(selected())
        .args(["--all-targets", "--", "-D", "warnings"]))?;
    run(cargo().arg("test").args(selected()))
}

/// Names of the packages that hold a file which differs from the last commit, or is new.
fn changed_packages() -> Result<BTreeSet<String>> {
    let output = Command::new("git")
        .current_dir(root())
        .args(["status", "--porcelain", "--untracked-files=all"])
        .output()
        .context("git status")?;
    let mut packages = BTreeSet::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let path = line.get(3..).unwrap_or_default();
        let path = path.rsplit(" -> ").next().unwrap_or(path);
        let directory = match path.split('/').collect::<Vec<_>>()[..] {
            ["crates", name, ..] => root().join("crates").join(name),
            ["xtask", ..] => root().join("xtask"),
            _ => continue,
        };
        packages.extend(package_name(&directory));
    }
    Ok(packages)
}
