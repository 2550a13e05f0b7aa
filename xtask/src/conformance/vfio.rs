//! The kernel's VFIO self-tests over devices: seven programs, with drivers of their own for DSA and
//! IOAT, on each kind of device that a machine can offer.
//!
//! A machine file per kind is in `conformance/machines`, the expectations are in
//! `conformance/vfio-KIND-KERNEL.toml`. Names of tests are those of fixture, variant and test; no two
//! programs share a fixture.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;

use super::{
    arguments::Conformance,
    build,
    device::{Device, PROGRAMS, SRIOV},
    expect::{self, Expectations, Host},
    hugepages::Hugepages,
    installation::Installation,
    launch::{self, Ended, Limits, Outcome, Signals},
    listing, report,
    tap::{Counts, Run},
};
use xtask::{
    fetch::{Cache, source},
    workspace::{ioasid, root},
};

/// A device with its programs and what is expected of them.
struct Kind {
    device: Device,
    machine: PathBuf,
    expectations: Expectations,
}

/// Runs the tests: whether every one did what is expected of it.
///
/// # Errors
/// What kept the tests from being run.
pub(super) fn run(arguments: &Conformance) -> Result<bool> {
    if arguments.compare_oracle.is_some() {
        bail!("--compare-oracle is for suites of one program");
    }
    let cache = Cache::open()?;
    let source = source::fetch(&cache, &arguments.origin, false)?;
    let programs = build::selftest(
        &cache,
        &arguments.origin,
        &source,
        "vfio",
        arguments.static_link,
    )?;
    let ioasid = ioasid(arguments.ioasid.as_deref())?;
    let folder = root().join("conformance");
    let mut kinds = Vec::new();
    for &device in Device::value_variants() {
        if arguments.device.is_empty() || arguments.device.contains(&device) {
            let suite = format!("vfio-{}", device.name());
            kinds.push(Kind {
                device,
                machine: folder.join(format!("machines/{suite}.toml")),
                expectations: Expectations::find(&folder, &suite, &source.version)?,
            });
        }
    }

    let mut files: Vec<&Path> = vec![&ioasid];
    files.extend(kinds.iter().map(|kind| kind.machine.as_path()));
    let paths: Vec<_> = PROGRAMS
        .iter()
        .chain([&SRIOV])
        .map(|name| programs.join(name))
        .collect();
    files.extend(paths.iter().map(PathBuf::as_path));
    let installed = Installation::new(&files)?;
    println!(
        "conformance: vfio of Linux {}, as {}",
        source.version,
        installed.user()
    );
    let signals = Signals::watch()?;
    let hugepages = Hugepages::lend(&cache, !arguments.no_hugepages)?;
    println!("conformance: {hugepages}");
    let host = Host::look(&hugepages);

    let mut runner = Runner {
        arguments,
        installed: &installed,
        ioasid: &ioasid,
        limits: Limits {
            time: Duration::from_secs(arguments.timeout),
            signals: &signals,
        },
        programs: &programs,
        host,
        logs: cache.folder("runs")?,
        as_expected: true,
        totals: Counts::default(),
    };
    let mut stopped = None;
    'runs: for number in 1..=arguments.runs {
        for kind in &kinds {
            if arguments.runs > 1 {
                println!(
                    "\n-- run {number} of {}, {}",
                    arguments.runs,
                    kind.device.name()
                );
            } else {
                println!("\n-- {}", kind.device.name());
            }
            stopped = runner.kind(kind)?;
            if stopped.is_some() {
                break 'runs;
            }
        }
    }
    drop(hugepages);
    if let Some(signal) = stopped {
        bail!("stopped by signal {signal}; the huge pages are as they were");
    }
    let Runner {
        totals,
        as_expected,
        ..
    } = runner;
    if totals == Counts::default() {
        bail!(
            "no test's name contains `{}`",
            arguments.filter.join("` or `")
        );
    }
    println!("\n{totals}");
    Ok(as_expected)
}

struct Runner<'a> {
    arguments: &'a Conformance,
    installed: &'a Installation,
    ioasid: &'a Path,
    /// The folder with the programs.
    programs: &'a Path,
    host: Host,
    limits: Limits<'a>,
    logs: PathBuf,
    as_expected: bool,
    totals: Counts,
}

impl Runner<'_> {
    /// Runs every program on one device; a signal that stopped it.
    fn kind(&mut self, kind: &Kind) -> Result<Option<usize>> {
        let (mut all, mut results, mut said) = (Vec::new(), Vec::new(), Run::default());
        let mut log = String::new();
        let (mut plain, mut listed_all) = (true, true);
        let mut time = Duration::ZERO;
        let mut stopped = None;
        for program in kind.device.programs() {
            // Some look at the device before they list anything.
            let listed = self.program(kind, program, &["-l"])?;
            let of_program = listing::parse(&listed.output);
            if of_program.is_empty() {
                println!("{program} lists no test:");
                end_of(&listed);
                listed_all = false;
                continue;
            }
            let for_device = of_program.iter().filter(|test| kind.device.has(test));
            all.extend(for_device.clone().cloned());
            let asked = for_device.filter(|test| self.is_asked(test));
            let chosen: Vec<_> = asked.cloned().collect();
            if chosen.is_empty() {
                continue;
            }
            let mut options = Vec::new();
            if chosen.len() < of_program.len() {
                options.extend(chosen.iter().flat_map(|name| ["-r", name]));
            }
            let ended = self.program(kind, program, &options)?;
            log += &format!("==== {program}\n{}\n", ended.output);
            let run = Run::parse(&ended.output);
            results.extend(run.results_of(&chosen));
            plain &= in_good_order(program, &ended);
            time += ended.time;
            said.extend(run);
            if let Outcome::Interrupted(signal) = ended.outcome {
                stopped = Some(signal);
                break;
            }
        }
        let mut counts = Counts::of(&results);
        let missing = kind.expectations.count().saturating_sub(all.len());
        if !listed_all && missing > 0 {
            println!("{missing} tests are not there, which counts as failed");
            counts.failed = counts.failed.saturating_add(missing);
            plain = false;
        }
        let expected = kind.expectations.of_some(&all, self.host)?;
        report::fixtures(&results, &expected);
        let surprises = expect::surprises(&expected, &results);
        report::surprises(&surprises, &said);
        report::reasons(&results, &expected);
        let path = self.keep(kind, &log)?;
        println!(
            "\n{}: {counts} in {:.1} s; surprises: {}; all they said: {}",
            kind.device.name(),
            time.as_secs_f64(),
            surprises.len(),
            path.display()
        );
        self.totals += counts;
        self.as_expected &= surprises.is_empty() && plain;
        Ok(stopped)
    }

    fn is_asked(&self, test: &str) -> bool {
        let filter = &self.arguments.filter;
        filter.is_empty() || filter.iter().any(|text| test.contains(text.as_str()))
    }

    /// Runs `program` with `options` on the device.
    fn program(&self, kind: &Kind, program: &str, options: &[&str]) -> Result<Ended> {
        let machine = self.installed.place_of(&kind.machine);
        let machine = machine
            .to_str()
            .context("the temporary folder's name is not UTF-8")?;
        let mut run = vec!["--machine", machine];
        run.extend(self.arguments.run_option.iter().map(String::as_str));
        let path = self.programs.join(program);
        let mut command = self.installed.command(self.ioasid, &run, &path);
        // The test of many devices takes as many as there are.
        let addresses = kind.device.addresses();
        let count = match program.contains("init_perf") {
            true => addresses.len(),
            false => 1,
        };
        command.args(options).args(addresses.iter().take(count));
        launch::run(command, &self.limits)
    }

    /// Keeps all that the last run on this device said.
    fn keep(&self, kind: &Kind, log: &str) -> Result<PathBuf> {
        let path = self.logs.join(format!("vfio-{}.tap", kind.device.name()));
        fs::write(&path, log).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Prints the last lines of what a program said.
fn end_of(ended: &Ended) {
    let last: Vec<_> = ended.output.lines().rev().take(6).collect();
    for line in last.into_iter().rev() {
        println!("      {line}");
    }
}

/// Whether the program ended by itself and left nothing behind.
fn in_good_order(program: &str, ended: &Ended) -> bool {
    let mut plain = true;
    match ended.outcome {
        // The harness ends with 0, or with 1 if a test failed.
        Outcome::Ended(status) if matches!(status.code(), Some(0 | 1)) => {}
        outcome => {
            println!("{program} did not end by itself: {outcome}");
            end_of(ended);
            plain = false;
        }
    }
    if ended.left != 0 {
        println!("{program} left {} processes behind, ended now", ended.left);
        plain = false;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_a_machine_and_expectations() {
        let folder = root().join("conformance");
        for device in Device::value_variants() {
            let suite = format!("vfio-{}", device.name());
            Expectations::find(&folder, &suite, "7.2.13").unwrap();
            assert!(folder.join(format!("machines/{suite}.toml")).exists());
        }
    }

    #[test]
    fn a_mediated_device_is_tried_in_the_mode_that_assigns_one() {
        let has = |test| Device::Mdev.has(test);
        assert!(has("vfio_pci_driver_test.iommufd.memcpy_storm"));
        assert!(has("vfio_cdev.bind"));
        assert!(has("vfio_dma_mapping_test.iommufd_anonymous.dma_map_unmap"));
        assert!(!has("vfio_pci_driver_test.vfio_type1_iommu.send_msi"));
        assert!(!has(
            "vfio_dma_map_limit_test.iommufd_compat_type1v2.overflow"
        ));
    }
}
