//! The kernel's own self-tests, unmodified, under `ioasid run`.
//!
//! The sources come from the Debian package of the kernel's source and are built in a cache folder;
//! nothing of the kernel is committed. What a test does other than pass is written down, with its
//! reason, in `conformance/SUITE-KERNEL.toml`; a run that differs from that, either way, fails.
//!
//! One run: [`xtask::fetch`] brings the sources, [`headers`] and [`build`] make the programs, [`hugepages`]
//! lends them memory, [`installation`] puts them where an unprivileged user can run them, [`launch`] runs
//! one, [`tap`] reads what it says, [`expect`] compares and [`report`] prints. [`replay`] does a run again.

mod arguments;
mod build;
mod device;
mod expect;
mod headers;
mod hugepages;
mod installation;
mod launch;
mod listing;
mod replay;
mod report;
mod tap;
mod vfio;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

pub(crate) use arguments::{Conformance, Suite};
use expect::{Expectations, Host};
use hugepages::Hugepages;
use installation::Installation;
use launch::{Limits, Outcome, Signals};
use tap::Run;
use xtask::{
    fetch::{Cache, source},
    workspace::{ioasid, root},
};

/// `cargo xtask conformance`: whether every test did what is expected of it.
///
/// Its last line on stdout is `N passed, N failed, N skipped`, the sum of all runs.
///
/// # Errors
/// What kept the tests from being run.
pub(crate) fn run(arguments: &Conformance) -> Result<bool> {
    let suite = arguments.suite;
    if matches!(suite, Suite::Vfio) {
        return vfio::run(arguments);
    }
    let oracle = arguments
        .compare_oracle
        .as_deref()
        .map(read_tap)
        .transpose()?;
    let cache = Cache::open()?;
    let source = source::fetch(&cache, &arguments.origin, false)?;
    let programs = build::selftest(
        &cache,
        &arguments.origin,
        &source,
        "iommu",
        arguments.static_link,
    )?;
    let program = programs.join(suite.name());
    let expectations =
        Expectations::find(&root().join("conformance"), suite.name(), &source.version)?;
    let all = listing::of(&program)?;
    let chosen = listing::choose(&all, &arguments.filter)?;
    let ioasid = ioasid(arguments.ioasid.as_deref())?;
    let selftest = has_selftest(&ioasid)?;
    if !selftest {
        println!(
            "conformance: this ioasid has no `run --selftest`: whatever needs the mock device fails"
        );
    }

    let installed = Installation::new(&[&ioasid, &program])?;
    println!(
        "conformance: {} of Linux {}, {} of {} tests, {} build, as {}",
        suite.name(),
        source.version,
        chosen.len(),
        all.len(),
        if arguments.static_link {
            "static"
        } else {
            "dynamic"
        },
        installed.user(),
    );

    let signals = Signals::watch()?;
    let hugepages = Hugepages::lend(&cache, !arguments.no_hugepages)?;
    println!("conformance: {hugepages}");
    let expected = expectations.of(&all, Host::look(&hugepages))?;
    let limits = Limits {
        time: Duration::from_secs(arguments.timeout),
        signals: &signals,
    };
    let mut options: Vec<&str> = arguments.run_option.iter().map(String::as_str).collect();
    options.extend(selftest.then_some("--selftest"));
    options.extend(arguments.replay.then_some(replay::OPTION));

    let mut totals = tap::Counts::default();
    let mut as_expected = true;
    for number in 1..=arguments.runs {
        if arguments.runs > 1 {
            println!("\n-- run {number} of {}", arguments.runs);
        }
        let mut command = installed.command(&ioasid, &options, &program);
        if chosen.len() < all.len() {
            command.args(chosen.iter().flat_map(|name| ["-r", name]));
        }
        let ended = launch::run(command, &limits)?;
        let log = keep_log(
            &cache,
            suite,
            &source.version,
            hugepages.enough(),
            &ended.output,
        )?;
        let run = Run::parse(&ended.output);
        let results = run.results_of(&chosen);
        let counts = tap::Counts::of(&results);
        let surprises = expect::surprises(&expected, &results);
        report::fixtures(&results, &expected);
        report::surprises(&surprises, &run);
        if let Some(oracle) = &oracle {
            report::against(oracle, &results);
        }
        let plain = report::outcome(&ended, &counts, surprises.len(), &log);
        totals += counts;
        as_expected &= surprises.is_empty() && plain;
        if let Outcome::Interrupted(signal) = ended.outcome {
            drop(hugepages);
            bail!("stopped by signal {signal}; the huge pages are as they were");
        }
        if arguments.replay {
            as_expected &= replay::run(&installed, &ioasid, &limits)?;
        }
    }
    drop(hugepages);
    println!("{totals}");
    Ok(as_expected)
}

fn read_tap(path: &Path) -> Result<Run> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let run = Run::parse(&text);
    if run.is_empty() {
        bail!(
            "{} holds no line `ok N NAME`: is it a TAP file?",
            path.display()
        );
    }
    Ok(run)
}

/// Whether `ioasid run` knows `--selftest`.
fn has_selftest(ioasid: &Path) -> Result<bool> {
    let output = Command::new(ioasid)
        .args(["run", "--help"])
        .output()
        .with_context(|| format!("running {}", ioasid.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).contains("--selftest"))
}

/// Keeps all that the last run of this kind said.
fn keep_log(
    cache: &Cache,
    suite: Suite,
    version: &str,
    hugepages: bool,
    output: &str,
) -> Result<PathBuf> {
    let kind = if hugepages {
        "hugepages"
    } else {
        "no-hugepages"
    };
    let path = cache
        .folder("runs")?
        .join(format!("{}-{version}-{kind}.tap", suite.name()));
    fs::write(&path, output).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
