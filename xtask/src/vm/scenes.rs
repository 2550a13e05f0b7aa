//! The scenes, each a claim about guests and what it counted.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value as Json;

use super::{
    Model, control,
    guest::{Guest, Report},
    host::{Given, Host, Mode},
    hostile, sockets, work,
};
use crate::{
    e2e::stage::{Served, list, succeed},
    play::Claim,
};

/// Every scene, in the order in which they are played.
pub(super) const SCENES: &[(&str, Claim<Host>)] = &[
    (
        "one guest, a pdev and an mdev in one address space; the pdev is unplugged first",
        |host| shared(host, 0),
    ),
    (
        "one guest, a pdev and an mdev in one address space; the mdev is unplugged first",
        |host| shared(host, 1),
    ),
    ("one guest, a pdev in a container", container),
    (
        "one guest at work behind a virtual IOMMU, which maps page by page",
        work::behind_viommu,
    ),
    (
        "two guests and the parent's own driver on one parent; one guest is killed",
        two_guests,
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

pub(super) const PDEV: &str = "0000:6b:01.0";
pub(super) const FIRST: &str = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01";
pub(super) const SECOND: &str = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a02";

/// A parent with a queue of its own and one for each VM, and a whole device for the first.
pub(super) const MACHINE: &str = r#"
[[device]]
model = "MODEL"
address = "0000:6a:01.0"
driver = "host"

  [[device.queue]]
  owner = "host"

  [[device.queue]]
  owner = "mdev"
  uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01"
  vm = "vm1"

  [[device.queue]]
  owner = "mdev"
  uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a02"
  vm = "vm2"

[[device]]
model = "MODEL"
address = "0000:6b:01.0"
driver = "vfio"
vm = "vm1"
"#;

/// Where the guest finds the device with this index: behind its own port.
fn address(index: usize) -> String {
    format!("0000:{:02x}:00.0", index.saturating_add(1))
}

/// That the driver of the guest's kernel has tested the device `index` and found it good.
pub(super) fn good(host: &Host, report: &Report, index: usize) -> Result<()> {
    let ids = match host.model {
        Model::Ioat => "0x8086 0x2021",
        Model::Dsa => "0x8086 0x0b25",
    };
    good_as(host, report, index, ids)
}

/// As [`good`], of a device with these ids.
pub(super) fn good_as(host: &Host, report: &Report, index: usize, ids: &str) -> Result<()> {
    let address = address(index);
    let function = report
        .functions
        .get(&address)
        .with_context(|| format!("the guest has no function {address}"))?;
    let driver = match host.model {
        Model::Ioat => "ioatdma",
        Model::Dsa => "none",
    };
    ensure!(function.ids == ids, "{address} is {}", function.ids);
    ensure!(
        function.driver == driver,
        "the driver of {address} is {}; the guest says: {}",
        function.driver,
        report.log.join(" / ")
    );
    if host.model == Model::Ioat {
        ensure!(function.channels > 0, "{address} has no DMA channel");
        ensure!(
            function.interrupts > 0,
            "the driver of {address} got no interrupt by MSI-X"
        );
        let failed = report.log.iter().find(|line| line.contains("elf-test"));
        ensure!(failed.is_none(), "the guest says: {failed:?}");
    }
    Ok(())
}

/// What the guests' drivers have shown, in words.
pub(super) fn shown(host: &Host) -> &'static str {
    match host.model {
        Model::Ioat => "the driver's self-test passes on each, with interrupts by MSI-X",
        Model::Dsa => "the guest sees them; it has no driver for them",
    }
}

/// The domains that programs' address spaces stand on: for each, its routes.
pub(super) fn domains(tree: &Json) -> Vec<&Json> {
    let domains = list(&tree["iommu"]["domains"]);
    domains
        .filter(|domain| domain["kind"] == "unmanaged")
        .collect()
}

pub(super) fn routes(domain: &Json) -> usize {
    domain["routes"].as_array().map_or(0, Vec::len)
}

pub(super) fn no_faults(tree: &Json) -> Result<()> {
    for domain in list(&tree["iommu"]["domains"]) {
        ensure!(domain["faults"] == 0, "faults in {domain}");
    }
    Ok(())
}

/// That there are the parent's own domain and one of each of two guests, the first with two devices, and
/// that no DMA has met a fault.
pub(super) fn three_domains(tree: &Json) -> Result<()> {
    let mut found: Vec<_> = domains(tree).into_iter().map(routes).collect();
    found.sort_unstable();
    ensure!(found == [1, 2], "routes of the guests' domains: {found:?}");
    ensure!(
        tree["iommu"]["paging_domains"] == 3,
        "{} domains, not three",
        tree["iommu"]["paging_domains"]
    );
    no_faults(tree)
}

/// That there is one IOAS with all of the guest's memory and one domain under it with `count` routes.
fn one_space(tree: &Json, count: usize) -> Result<u64> {
    let files = tree["iommufds"].as_array().map_or(0, Vec::len);
    ensure!(files == 1, "{files} files of /dev/iommu are open");
    let spaces = tree["iommufds"][0]["ioas"].as_array();
    let [space] = spaces.map_or(&[][..], Vec::as_slice) else {
        anyhow::bail!("there is not one IOAS: {}", tree["iommufds"][0]["ioas"]);
    };
    let domains = domains(tree);
    let [domain] = domains[..] else {
        anyhow::bail!("{} domains, not one", domains.len());
    };
    ensure!(
        routes(domain) == count,
        "the domain's routes are {}",
        domain["routes"]
    );
    let mapped = space["mapped_bytes"].as_u64().unwrap_or(0);
    ensure!(mapped >= 256 << 20, "only {mapped} bytes are mapped");
    ensure!(
        domain["mapped_bytes"] == mapped,
        "the domain maps {} bytes, the IOAS {mapped}",
        domain["mapped_bytes"]
    );
    no_faults(tree)?;
    Ok(mapped)
}

/// Waits until `check` accepts what `inspect` shows.
pub(super) fn eventually(
    host: &Host,
    served: &Served,
    check: impl Fn(&Json) -> Result<()>,
) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let result = check(&served.inspect(host.stage())?);
        if result.is_ok() || Instant::now() > deadline {
            return result;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn shared(host: &Host, first: usize) -> Result<String> {
    let served = host.serve(MACHINE)?;
    let mut guest = host.guest(
        "vm1",
        served.join(host.stage(), "vm1"),
        Mode::Iommufd,
        &[Given::Function(PDEV), Given::Mdev(FIRST)],
    )?;
    let report = guest.next_report()?;
    for index in [0, 1] {
        good(host, &report, index)?;
    }
    let tree = served.inspect(host.stage())?;
    let mapped = one_space(&tree, 2)?;

    let other = 1 - first;
    guest.unplug(&format!("dev{first}"))?;
    eventually(host, &served, |tree| one_space(tree, 1).map(drop))?;
    let report = guest.order("report")?;
    ensure!(
        !report.functions.contains_key(&address(first)),
        "the guest still has the function that was unplugged"
    );
    let report = probe_again(host, &mut guest, report, other)?;
    good(host, &report, other)?;
    guest.unplug(&format!("dev{other}"))?;
    eventually(host, &served, |tree| {
        ensure!(domains(tree).is_empty(), "a domain is left");
        no_faults(tree)
    })?;
    guest.quit()?;
    served.settle(host.stage())?;
    Ok(format!(
        "one IOAS, one domain with two routes, {} MiB mapped once; {}",
        mapped >> 20,
        shown(host)
    ))
}

/// Lets the guest's driver probe a device once more.
pub(super) fn probe_again(
    host: &Host,
    guest: &mut Guest,
    before: Report,
    index: usize,
) -> Result<Report> {
    match host.model {
        Model::Ioat => guest.order(&format!("probe {}", address(index))),
        Model::Dsa => Ok(before),
    }
}

fn container(host: &Host) -> Result<String> {
    let mut guest = host.guest(
        "alone",
        host.run(MACHINE)?,
        Mode::Container,
        &[Given::Function(PDEV)],
    )?;
    let report = guest.next_report()?;
    good(host, &report, 0)?;
    let report = probe_again(host, &mut guest, report, 0)?;
    good(host, &report, 0)?;
    guest.unplug("dev0")?;
    guest.quit()?;
    Ok(format!("{}; unplugged", shown(host)))
}

fn two_guests(host: &Host) -> Result<String> {
    let served = host.serve_busy(MACHINE)?;
    let mut guests = [
        host.guest(
            "vm1",
            served.join(host.stage(), "vm1"),
            Mode::Iommufd,
            &[Given::Mdev(FIRST), Given::Function(PDEV)],
        )?,
        host.guest(
            "vm2",
            served.join(host.stage(), "vm2"),
            Mode::Iommufd,
            &[Given::Mdev(SECOND)],
        )?,
    ];
    let [first, second] = &mut guests;
    let report = first.next_report()?;
    for index in [0, 1] {
        good(host, &report, index)?;
    }
    good(host, &second.next_report()?, 0)?;
    let tree = served.inspect(host.stage())?;
    three_domains(&tree)?;
    let before = parent_jobs(&tree)?;

    kill_program(first)?;
    eventually(host, &served, |tree| {
        let left: Vec<_> = domains(tree).into_iter().map(routes).collect();
        ensure!(left == [1], "routes of the domains that are left: {left:?}");
        no_faults(tree)
    })?;
    let report = second.order("report")?;
    let report = probe_again(host, second, report, 0)?;
    good(host, &report, 0)?;
    let tree = served.inspect(host.stage())?;
    no_faults(&tree)?;
    let after = parent_jobs(&tree)?;
    ensure!(after > before, "the parent's driver did nothing meanwhile");
    let [first, second] = guests;
    drop(first);
    second.quit()?;
    served.settle(host.stage())?;
    Ok(format!(
        "three domains; {}; {after} jobs of the parent, 0 faults",
        shown(host)
    ))
}

/// Jobs that the parents' own drivers have done, none of which may have failed.
pub(super) fn parent_jobs(tree: &Json) -> Result<u64> {
    list(&tree["devices"]).map(jobs_of).sum()
}

/// The same of one device.
pub(super) fn jobs_of(device: &Json) -> Result<u64> {
    let mut jobs = 0;
    for queue in list(&device["host_queues"]).chain(list(&device["host_channels"])) {
        ensure!(queue["errors"] == 0, "the parent's driver failed: {queue}");
        jobs += queue["jobs"].as_u64().unwrap_or(0);
    }
    Ok(jobs)
}

/// Kills the program inside `run`, its only child.
fn kill_program(guest: &mut Guest) -> Result<()> {
    let run = guest.id();
    let children = std::fs::read_to_string(format!("/proc/{run}/task/{run}/children"))?;
    let program = children
        .split_whitespace()
        .next()
        .context("`run` has no program")?;
    succeed(Command::new("kill").args(["-KILL", program])).map(drop)
}
