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
mod offsets;
mod opaque;
mod program_memory;
mod programs;
mod registers;
mod translate;

use std::process::ExitCode;

use ioasid_core::heap::CountedHeap;

use measure::{Effort, Table};

/// So that a table can say what something costs in bytes.
#[global_allocator]
static HEAP: CountedHeap = CountedHeap;

const USAGE: &str = "\
usage: ioasid-bench [--short] [NAME...]

Prints one table per benchmark. NAME selects those whose title contains it.

  --short    a few seconds in all, with wider spread
  --help     print this

A ratio is paired: both contenders ran in turn within each round. [a .. b] are its quartiles. A goal is
met when the median is within it, missed when even the better quartile is not, and close between.
";

type Benchmark = (&'static str, fn(Effort) -> Vec<Table>);

const BENCHMARKS: [Benchmark; 12] = [
    ("translate", translate::tables),
    ("map and unmap", mapping::tables),
    ("mappings of an address space", mappings::tables),
    ("unmap against a running reader", barrier::tables),
    ("dma against memcpy", dma::tables),
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
    let mut effort = Effort::FULL;
    let mut names = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--short" => effort = Effort::SHORT,
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
    println!("{}", host::line(effort));
    let (mut met, mut close, mut missed) = (0, 0, 0);
    for (name, tables) in BENCHMARKS {
        if !names.is_empty() && !names.iter().any(|wanted| name.contains(wanted.as_str())) {
            continue;
        }
        for table in tables(effort) {
            print!("\n{table}");
            for verdict in table.verdicts() {
                match verdict {
                    measure::Verdict::Met => met += 1,
                    measure::Verdict::Close => close += 1,
                    measure::Verdict::Missed => missed += 1,
                }
            }
        }
    }
    println!("\ngoals: {met} met, {close} close, {missed} missed");
    ExitCode::SUCCESS
}
