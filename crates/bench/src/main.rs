//! Benchmarks, as ratios within one run.
//!
//! Absolute times on a shared machine move by a factor of two within a minute; ratios between
//! contenders that take turns do not. So every figure here stands beside a peer that was measured in
//! the same slots (a flat array, a `memset`, `memcpy`, vm-memory's `Iotlb`, the round trip between two
//! cores), and what counts is the median of the ratios per round and their quartiles. docs/benchmarks.md
//! tells more.
//!
//! * [`clock`]: thread CPU time, and the pinning of threads.
//! * [`measure`]: contenders, rounds, medians, paired ratios.
//! * [`report`]: the tables as JSON.
//! * [`opaque`]: keeps the optimiser from seeing through a result.
//! * [`host`]: what this machine can do at most: copies, cache misses, two cores talking.
//! * [`translate`], [`mapping`], [`mappings`], [`barrier`], [`dma`], [`offsets`], [`interception`],
//!   [`programs`], [`program_memory`], [`registers`], [`messages`]: the tables.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for a terminal"
)]

mod barrier;
mod clock;
mod dma;
mod host;
mod interception;
mod mapping;
mod mappings;
mod measure;
mod messages;
mod nested;
mod offsets;
mod opaque;
mod program_memory;
mod programs;
mod registers;
mod report;
mod translate;

use std::io::Write;
use std::process::ExitCode;

use ioasid_core::heap::CountedHeap;

use measure::{Effort, Table};
use report::Report;

/// So that a table can say what something costs in bytes.
#[global_allocator]
static HEAP: CountedHeap = CountedHeap;

const USAGE: &str = "\
usage: ioasid-bench [--short] [--json FILE] [NAME...]

Prints one table per benchmark. NAME selects those whose title contains it.

  --short    a few seconds in all, with wider spread
  --json FILE
             also write the tables as JSON; `-` is standard output, then in place of the text
  --help     print this

A ratio is paired: both contenders ran in turn within each round. [a .. b] are its quartiles. A goal is
met when the median is within it, missed when even the better quartile is not, and close between.
";

type Benchmark = (&'static str, fn(Effort) -> Vec<Table>);

const BENCHMARKS: [Benchmark; 13] = [
    ("translate", translate::tables),
    ("map and unmap", mapping::tables),
    ("mappings of an address space", mappings::tables),
    ("unmap against a running reader", barrier::tables),
    ("dma against memcpy", dma::tables),
    ("two stages", nested::tables),
    ("dma at any offset", offsets::tables),
    ("interception", interception::tables),
    ("programs", programs::tables),
    ("map of a program's memory", program_memory::maps),
    ("dma of a program's memory", program_memory::copies),
    ("registers", registers::tables),
    ("messages of vfio-user", messages::tables),
];

fn main() -> ExitCode {
    // A launcher has one thread: nothing may have been started.
    if let Some(code) = programs::part().or_else(interception::part) {
        return code;
    }
    let (mut short, mut json, mut names) = (false, None, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--short" => short = true,
            "--json" => match arguments.next() {
                Some(file) => json = Some(file),
                None => {
                    eprintln!("ioasid-bench: --json needs a file");
                    return ExitCode::from(2);
                }
            },
            "-h" | "--help" => {
                print!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            option if option.starts_with('-') => {
                eprintln!("ioasid-bench: unknown option `{option}`");
                return ExitCode::from(2);
            }
            name => names.push(name.to_owned()),
        }
    }
    if cfg!(debug_assertions) {
        eprintln!("ioasid-bench: not optimised; the figures mean nothing (use --release)");
    }
    let report = run(short, &names, json.as_deref() != Some("-"));
    if let Some(file) = json
        && let Err(error) = write_json(&report, &file)
    {
        eprintln!("ioasid-bench: cannot write {file}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Runs the benchmarks that `names` selects, and prints their tables when `text` is set.
fn run(short: bool, names: &[String], text: bool) -> Report {
    let effort = if short { Effort::SHORT } else { Effort::FULL };
    let host = host::line(effort);
    if text {
        println!("{host}");
    }
    let (mut met, mut close, mut missed) = (0, 0, 0);
    let mut reports = Vec::new();
    for (name, tables) in BENCHMARKS {
        if !names.is_empty() && !names.iter().any(|wanted| name.contains(wanted.as_str())) {
            continue;
        }
        for table in tables(effort) {
            if text {
                print!("\n{table}");
            }
            for verdict in table.verdicts() {
                match verdict {
                    measure::Verdict::Met => met += 1,
                    measure::Verdict::Close => close += 1,
                    measure::Verdict::Missed => missed += 1,
                }
            }
            reports.push(table.report(name));
        }
    }
    if text {
        println!("\ngoals: {met} met, {close} close, {missed} missed");
        for line in report::missed(&reports) {
            println!("  missed: {line}");
        }
    }
    Report {
        version: report::VERSION,
        optimised: !cfg!(debug_assertions),
        short,
        host: host.to_string(),
        tables: reports,
    }
}

/// Writes the report to `file`, or to standard output when that is `-`.
fn write_json(report: &Report, file: &str) -> std::io::Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    match file {
        "-" => std::io::stdout().write_all(text.as_bytes()),
        file => std::fs::write(file, text),
    }
}
