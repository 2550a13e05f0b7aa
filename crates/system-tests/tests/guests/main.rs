//! Stock guests under a stock QEMU, whose devices they have by `ioasid run` or by vfio-user.

mod assigned;
mod checks;
mod control;
mod hostile;
mod nested;
mod sockets;
mod work;

use std::process::ExitCode;

use clap::Parser;
use ioasid_system_tests::{
    guests::{Host, Options},
    runner::{self, Test},
};
use libtest_mimic::Arguments;

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    arguments: Arguments,
    #[command(flatten)]
    options: Options,
}

const TESTS: &[(&str, Test<Host>)] = &[
    (
        "one guest, a pdev and an mdev in one address space; the pdev is unplugged first",
        |host| assigned::shared(host, 0),
    ),
    (
        "one guest, a pdev and an mdev in one address space; the mdev is unplugged first",
        |host| assigned::shared(host, 1),
    ),
    ("one guest, a pdev in a container", assigned::container),
    (
        "one guest at work behind a virtual IOMMU, which maps page by page",
        work::behind_viommu,
    ),
    (
        "nested: two pdevs at work on the guest's own page tables; reset, then unplugged",
        nested::at_work,
    ),
    (
        "nested: a guest with private memory and lazy invalidation",
        nested::private_memory,
    ),
    (
        "nested: a pdev and an mdev of a guest that passes addresses through",
        nested::passed_through,
    ),
    (
        "nested: a DSA by its RID and by a PASID of the guest's driver",
        nested::pasids,
    ),
    (
        "nested: the commands of the page do what it says",
        nested::page,
    ),
    (
        "two guests and the parent's own driver on one parent; one guest is killed",
        assigned::two_guests,
    ),
    (
        "guests by vfio-user: two on one parent at work; one is killed and comes back",
        sockets::two_guests,
    ),
    (
        "guests by vfio-user: one whose memory is its own, and one whose is a file on a disk",
        sockets::private_memory,
    ),
    (
        "guests by vfio-user: sustained work on three channels of one parent and a whole device",
        work::sustained,
    ),
    (
        "guests by vfio-user: one that is killed at work, again and again",
        work::killed,
    ),
    (
        "a guest by vfio-user: its driver and tools enable a DSA queue",
        control::control_path,
    ),
    (
        "guests by vfio-user: a hostile one that drives its devices by hand, beside one at work",
        hostile::isolation,
    ),
];

fn main() -> ExitCode {
    let CommandLine { arguments, options } = CommandLine::parse();
    runner::run(arguments, TESTS, move || Host::new(&options))
}
