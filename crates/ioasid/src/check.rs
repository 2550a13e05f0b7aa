//! `ioasid check`: what a machine will look like, and whether this host can run it.
//!
//! The host is asked by what `run` does: a program is started on the machine, this one, which prints
//! its version and ends. What it would meet later is looked up besides.

use std::{fmt::Write as _, fs, io::Read as _, process::Stdio, sync::Arc};

use anyhow::Result;
use clap::Args;
use ioasid_machine::{Machine, MachineFile};
use ioasid_supervisor::{RunOptions, control, launch, run};
use rustix::process::{Resource, getrlimit};

use crate::{catalog, cli::DeviceArgs, machines, stdio::print, view};

/// `check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// The machine file; without one and without --device the default machine.
    #[arg(value_name = "MACHINE.toml", conflicts_with = "device")]
    machine: Option<std::path::PathBuf>,
    /// The devices.
    #[command(flatten)]
    devices: DeviceArgs,
}

/// What was found out about the host.
struct Finding {
    verdict: Verdict,
    sentence: String,
    remedy: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// It works, with less.
    Note,
    /// The machine cannot be run.
    Obstacle,
}

impl Finding {
    fn fine(sentence: impl Into<String>) -> Self {
        Finding {
            verdict: Verdict::Fine,
            sentence: sentence.into(),
            remedy: None,
        }
    }

    fn note(sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding {
            verdict: Verdict::Note,
            sentence: sentence.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// `ioasid check`: 0 if the host can run the machine, 1 if not.
pub(crate) fn run_check(args: CheckArgs, models: &crate::Models) -> Result<u8> {
    if let Some(help) = catalog::help(&args.devices.device, models)? {
        print(&help)?;
        return Ok(0);
    }
    let file = machines::file(args.machine.as_deref(), &args.devices.device, models)?;
    let machine = machines::build("check", &file)?;
    let mut text = String::from("The machine\n");
    for line in machine.outline() {
        let indent = if line.parent.is_some() { "    " } else { "  " };
        let _ = writeln!(text, "{indent}{line}");
    }
    for section in &file.inject {
        let _ = writeln!(text, "  fails on purpose: {section}");
    }
    text.push_str("This host\n");
    let findings = host(&machine, &file)?;
    for finding in &findings {
        let verdict = match finding.verdict {
            Verdict::Fine => "ok  ",
            Verdict::Note => "note",
            Verdict::Obstacle => "no  ",
        };
        let _ = writeln!(text, "  {verdict}  {}", finding.sentence);
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "        {remedy}");
        }
    }
    let can = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::Obstacle);
    text.push_str(match can {
        true => "It can be run here.\n",
        false => "It cannot be run here.\n",
    });
    print(&text)?;
    Ok(u8::from(!can))
}

fn host(machine: &Arc<Machine>, file: &MachineFile) -> Result<Vec<Finding>> {
    let mut findings = programs(machine)?;
    findings.push(memory_access());
    findings.push(descriptors());
    findings.push(locked_memory(file));
    findings.push(wide_stores());
    findings.push(match control::directory() {
        Ok(path) => Finding::fine(format!("running machines are found in {}", path.display())),
        Err(error) => Finding::note(
            format!("running machines cannot be found: {error}"),
            "set XDG_RUNTIME_DIR to a folder of your own",
        ),
    });
    Ok(findings)
}

/// Starts a program on the machine, as `run` does.
fn programs(machine: &Arc<Machine>) -> Result<Vec<Finding>> {
    let mut options = RunOptions::new("/proc/self/exe", ["--version"]);
    options.stdin = Some(Stdio::null());
    options.stdout = Some(Stdio::null());
    options.stderr = Some(Stdio::piped());
    let mut running = run::start(view::of(machine), options)?;
    let trapped = running.trapped().map(str::to_owned);
    let mut said = String::new();
    if let Some(stderr) = &mut running.child().stderr.take() {
        // What was read before an error is still worth showing.
        let _ = stderr.read_to_string(&mut said);
    }
    let status = running.wait()?;
    if status != 0 {
        let (sentence, remedy) = split(&said);
        return Ok(vec![Finding {
            verdict: Verdict::Obstacle,
            sentence: match sentence.is_empty() {
                true => format!("a program ended with status {status}"),
                false => sentence,
            },
            remedy,
        }]);
    }
    let mut findings = vec![Finding::fine(
        "programs run: seccomp notification, and their memory can be reached",
    )];
    findings.push(match trapped {
        None => Finding::fine("each has a mount namespace with a /dev and a /sys of its own"),
        Some(reason) => Finding::note(
            format!("no namespace, every path is trapped, which is slower: {reason}"),
            launch::namespace_hint(),
        ),
    });
    Ok(findings)
}

/// What the launcher says of a failure: the sentence, and its hint.
fn split(said: &str) -> (String, Option<String>) {
    let mut lines = said.lines();
    let first = lines.next().unwrap_or_default();
    let hint = lines.find_map(|line| line.trim().strip_prefix("hint: "));
    let sentence = first.strip_prefix("ioasid: ").unwrap_or(first);
    (sentence.to_owned(), hint.map(str::to_owned))
}

/// Yama: whose memory may be reached beside that of descendants.
fn memory_access() -> Finding {
    let scope = run::ptrace_scope();
    match scope.as_deref() {
        None | Some("0") => Finding::fine("any program of this user can join a served machine"),
        Some("1") => Finding::note(
            "Yama's ptrace_scope is 1: `run --join` without a namespace needs more",
            "sysctl kernel.yama.ptrace_scope=0, or serve and join as root",
        ),
        Some(scope) => Finding::note(
            format!("Yama's ptrace_scope is {scope}: only root reaches programs that join"),
            "sysctl kernel.yama.ptrace_scope=1",
        ),
    }
}

fn descriptors() -> Finding {
    let limit = getrlimit(Resource::Nofile);
    let shown = limit
        .current
        .map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    match limit.current {
        Some(few) if few < 256 => Finding::note(
            format!("{shown} open files a process: a few dozen devices and eventfds"),
            "ulimit -n 1024",
        ),
        _ => Finding::fine(format!("{shown} open files a process")),
    }
}

fn locked_memory(file: &MachineFile) -> Finding {
    if !file.iommu.enforce_memlock {
        return Finding::fine("locked memory is counted and not limited");
    }
    match getrlimit(Resource::Memlock).current {
        None => Finding::fine("locked memory is enforced, and unlimited"),
        Some(bytes) => Finding::note(
            format!(
                "locked memory is enforced: {} KiB for each user",
                bytes >> 10
            ),
            "ulimit -l unlimited, or enforce_memlock = false",
        ),
    }
}

/// Stores of 64 bytes to a portal.
fn wide_stores() -> Finding {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    let has = flags.any(|line| line.split_whitespace().any(|flag| flag == "movdir64b"));
    match has {
        true => Finding::fine("the processor has MOVDIR64B"),
        false => Finding::fine(
            "no MOVDIR64B in the processor: on mapped registers it is carried out all the same",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_launcher_is_a_sentence_and_its_remedy() {
        let said = "ioasid: this host does not\n  hint: allow it\n";
        let expected = ("this host does not".to_owned(), Some("allow it".to_owned()));
        assert_eq!(split(said), expected);
        assert_eq!(split(""), (String::new(), None));
    }
}
