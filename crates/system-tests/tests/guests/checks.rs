//! The machine of most tests, and what they check of it and of a guest.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ioasid_system_tests::{
    guests::{Guest, Host, Model, Report},
    served::{Served, list},
};
use ioasid_testing::{MDEVS, PATIENCE, two_vms};
use serde_json::Value as Json;

pub(super) const PDEV: &str = "0000:6b:01.0";
pub(super) const FIRST: &str = MDEVS[0];
pub(super) const SECOND: &str = MDEVS[1];

/// A parent with a queue of its own and one for each VM, and a whole device for the first; all of the
/// model that the command line names.
pub(super) fn machine(host: &Host) -> String {
    two_vms(host.model.name())
}

/// Where the guest finds the device with this index: behind its own port.
pub(super) fn address(index: usize) -> String {
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
    good_at(host.model, report, &address(index), ids)
}

/// As [`good_as`], of a device of `model` at this address.
pub(super) fn good_at(model: Model, report: &Report, address: &str, ids: &str) -> Result<()> {
    let function = report
        .functions
        .get(address)
        .with_context(|| format!("the guest has no function {address}"))?;
    let driver = match model {
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
    if model == Model::Ioat {
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

/// Waits until `check` accepts what `inspect` shows.
pub(super) fn eventually(
    host: &Host,
    served: &Served,
    check: impl Fn(&Json) -> Result<()>,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let result = check(&served.inspect(host.installation())?);
        if result.is_ok() || Instant::now() > deadline {
            return result;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
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

/// That the drivers of two guests have found their devices good, two of the first and one of the second, and
/// that these stand on three domains with the parent's own: the machine's tree.
pub(super) fn both_good(
    host: &Host,
    served: &Served,
    first: &mut Guest,
    second: &mut Guest,
) -> Result<Json> {
    let report = first.next_report()?;
    for index in [0, 1] {
        good(host, &report, index)?;
    }
    good(host, &second.next_report()?, 0)?;
    let tree = served.inspect(host.installation())?;
    three_domains(&tree)?;
    Ok(tree)
}

/// That the first guest's domain goes, and the second one's device goes on to be good.
pub(super) fn second_goes_on(host: &Host, served: &Served, second: &mut Guest) -> Result<()> {
    eventually(host, served, |tree| {
        let left: Vec<_> = domains(tree).into_iter().map(routes).collect();
        ensure!(left == [1], "routes of the domains that are left: {left:?}");
        no_faults(tree)
    })?;
    let report = second.order("report")?;
    let report = probe_again(host, second, report, 0)?;
    good(host, &report, 0)
}
