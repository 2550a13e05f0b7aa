//! Guests whose devices their QEMU opens itself, under `ioasid run`.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use ioasid_system_tests::{
    guests::{Given, Guest, Host, Mode},
    process::succeed,
};
use serde_json::Value as Json;

use super::checks::{
    FIRST, PDEV, SECOND, address, both_good, domains, eventually, good, machine, no_faults,
    parent_jobs, probe_again, routes, second_goes_on, shown,
};

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

pub(super) fn shared(host: &Host, first: usize) -> Result<String> {
    let served = host.serve(&machine(host))?;
    let mut guest = host.guest(
        "vm1",
        served.join(host.installation(), "vm1"),
        Mode::Iommufd,
        &[Given::Function(PDEV), Given::Mdev(FIRST)],
    )?;
    let report = guest.next_report()?;
    for index in [0, 1] {
        good(host, &report, index)?;
    }
    let tree = served.inspect(host.installation())?;
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
    served.wait_until_released(host.installation())?;
    Ok(format!(
        "one IOAS, one domain with two routes, {} MiB mapped once; {}",
        mapped >> 20,
        shown(host)
    ))
}

pub(super) fn container(host: &Host) -> Result<String> {
    let mut guest = host.guest(
        "alone",
        host.run(&machine(host))?,
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

pub(super) fn two_guests(host: &Host) -> Result<String> {
    let served = host.serve_busy(&machine(host))?;
    let mut guests = [
        host.guest(
            "vm1",
            served.join(host.installation(), "vm1"),
            Mode::Iommufd,
            &[Given::Mdev(FIRST), Given::Function(PDEV)],
        )?,
        host.guest(
            "vm2",
            served.join(host.installation(), "vm2"),
            Mode::Iommufd,
            &[Given::Mdev(SECOND)],
        )?,
    ];
    let [first, second] = &mut guests;
    let tree = both_good(host, &served, first, second)?;
    let before = parent_jobs(&tree)?;

    kill_program(first)?;
    second_goes_on(host, &served, second)?;
    let tree = served.inspect(host.installation())?;
    no_faults(&tree)?;
    let after = parent_jobs(&tree)?;
    ensure!(after > before, "the parent's driver did nothing meanwhile");
    let [first, second] = guests;
    drop(first);
    second.quit()?;
    served.wait_until_released(host.installation())?;
    Ok(format!(
        "three domains; {}; {after} jobs of the parent, 0 faults",
        shown(host)
    ))
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
