//! `ioasid run`, `serve`, `inspect` and `demo` with an ordinary client; as root also for an
//! unprivileged user.

mod explain;
mod injected;
mod mistakes;
mod nested;
mod programs;
mod trace;
mod tutorial;

use std::process::ExitCode;

use clap::Parser;
use ioasid_system_tests::{
    installation::Installation,
    pages,
    runner::{self, Test},
};
use libtest_mimic::Arguments;

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    arguments: Arguments,
    /// As often as the tests say, not a small sample.
    #[arg(long)]
    long: bool,
}

const TESTS: &[(&str, Test<Installation>)] = &[
    (
        "--explain says of each mistake what it was",
        explain::mistakes,
    ),
    (
        "--explain works on a machine that is served",
        explain::joined,
    ),
    (
        "--explain finds the mistake in a program on published crates",
        explain::published,
    ),
    (
        "--explain says which devices are free if the host's driver has the wanted one",
        explain::parent,
    ),
    (
        "--explain holds up nobody if it is not read",
        explain::unread,
    ),
    ("the demo passes for every user", programs::demo),
    (
        "a program keeps its uid, its exit status and its signals",
        programs::exit_status,
    ),
    (
        "bad input gets one clear sentence and the right status",
        programs::bad_input,
    ),
    (
        "one domain, whatever is attached and detached first, by whatever page table",
        programs::orders,
    ),
    (
        "the client passes for every user, linked dynamically and statically, with and without namespaces",
        programs::clients,
    ),
    (
        "a whole device and a mediated one share a container, whoever comes and goes first",
        programs::container,
    ),
    (
        "devices are saved and restored in the middle of their work",
        programs::migrated,
    ),
    ("two programs join one machine at once", programs::joined),
    (
        "a program that is stopped delays nobody else",
        programs::stopped,
    ),
    (
        "a program killed in the middle of its DMA leaves nothing behind",
        programs::killed,
    ),
    (
        "the limit of locked memory is enforced when that is asked for",
        programs::memlock,
    ),
    (
        "mediated devices come and go while the machine runs",
        programs::mdevs,
    ),
    (
        "an emulated device is an access object, and has no domain",
        programs::emulated,
    ),
    (
        "a transfer, an interrupt or a map fails as the machine file asks for",
        injected::transfers,
    ),
    (
        "what fails by chance follows from the seed",
        injected::seeds,
    ),
    (
        "a descriptor of an accelerator fails as the machine file asks for",
        injected::accelerators,
    ),
    (
        "a device of a running machine fails, is reset and is removed on purpose",
        injected::served,
    ),
    (
        "a check says what there will be, and what stands in the way",
        programs::check,
    ),
    (
        "a device has the queues of a file of accel-config's, and programs use them",
        programs::accel_config,
    ),
    (
        "nested: what a guest's tables lead to, and each reason for which they do not",
        nested::reasons,
    ),
    (
        "nested: no byte through what a guest, its host or a replacement has taken away",
        nested::changes,
    ),
    (
        "nested: a page table by hand and an IOAS are one domain, and a guest's tables stand on it",
        nested::one_domain,
    ),
    ("documented commands do what the pages say", pages::run),
    (
        "a first DMA takes twenty lines of Python, and a `main` of twenty lines of Rust",
        tutorial::first_dma,
    ),
    (
        "every line of a trace is what the schema says, and each verb tells what is in it",
        trace::told,
    ),
    (
        "traces of a client and of the demo replay without a difference",
        trace::replayed,
    ),
    (
        "a replay tells the first call that differs from its trace",
        trace::changed,
    ),
    (
        "a trace that is broken, and a disk that is full, are clear errors",
        trace::broken,
    ),
    (
        "-vv shows each call while the program runs",
        trace::shown_live,
    ),
];

fn main() -> ExitCode {
    let CommandLine { arguments, long } = CommandLine::parse();
    runner::run(arguments, TESTS, move || Installation::build(long))
}
