//! Guests whose own page tables are walked: behind QEMU's `intel-iommu` with `fsts=on`.
//!
//! QEMU gives each device an address space with all of the guest's memory, the nest parent, and makes a nested
//! page table of each entry that the guest writes into its scalable-mode tables. It goes on after every call that
//! fails, and a guest can pass its self-test all the same: so what it says on standard error counts.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use ioasid_system_tests::{
    guests::{Board, Given, Guest, Host, Memory, Mode, Model, Report, Viommu},
    pages,
    served::{Served, list},
};
use ioasid_testing::{parent, whole};
use serde_json::Value as Json;

use super::{
    checks::{FIRST, PDEV, address, domains, eventually, good_at, no_faults, routes},
    work::{SHOWN_AS, SHOWN_IDS, all_right},
};

const PDEVS: [&str; 2] = [PDEV, "0000:6b:02.0"];
const VIOMMU: Viommu = Viommu::Nested { pasid_bits: None };

/// What QEMU says of each device, nesting or not: it would have other devices reach a device's registers, and
/// KVM know of a device that is unplugged.
const EXPECTED: [&str; 3] = [
    "warning: VFIO dma-buf not supported in kernel",
    "Bad address",
    "KVM VFIO device isn't created yet",
];

/// Sources of DMA and the domain that each leads to.
type Routes = BTreeMap<(String, Option<u64>), u64>;

fn begin(host: &Host, served: &Served, board: Board, devices: &[Given]) -> Result<Guest> {
    let mut command = served.join(host.installation(), "vm1");
    host.guest_on("vm1", board, &mut command, Mode::Iommufd, devices)
}

/// Ends the guest, whose QEMU must not have complained of anything.
fn quit(host: &Host, served: &Served, guest: Guest) -> Result<()> {
    let said = guest.quit()?;
    let is_expected = |line: &&str| EXPECTED.iter().any(|expected| line.contains(expected));
    let mut others = said.lines().filter(|line| !is_expected(line));
    let bad = others.find(|line| line.contains("qemu-system") || line.contains("HWPT"));
    ensure!(bad.is_none(), "QEMU said: {bad:?}");
    served.wait_until_released(host.installation())
}

/// That no DMA has met a fault, whoever it was reported to.
fn faultless(tree: &Json) -> Result<()> {
    no_faults(tree)?;
    let devices = list(&tree["iommu"]["devices"]).map(|device| &device["own_faults"]);
    let vfio = list(&tree["devices"]).filter_map(|device| device["vfio"].get("dma_faults"));
    for log in devices.chain(vfio) {
        ensure!(log["faults"] == 0, "faults of a device: {log}");
    }
    Ok(())
}

/// That each of `devices` has a domain with all of the guest's memory to itself, and `tables` in the guest's
/// memory nested on it, each with one route: these.
fn nested_each(tree: &Json, devices: &[&str], tables: usize) -> Result<Routes> {
    let parents: BTreeSet<_> = domains(tree)
        .into_iter()
        .map(|domain| domain["id"].as_u64())
        .collect();
    ensure!(
        parents.len() == devices.len(),
        "{} domains of guests' memory for {} devices",
        parents.len(),
        devices.len()
    );
    for parent in domains(tree) {
        let mapped = parent["mapped_bytes"].as_u64().unwrap_or(0);
        ensure!(
            routes(parent) == 0 && mapped >= 256 << 20,
            "a parent with routes or without the guest's memory: {parent}"
        );
    }
    let mut found = Routes::new();
    let mut children = BTreeMap::<_, BTreeSet<_>>::new();
    for domain in list(&tree["iommu"]["domains"]).filter(|domain| domain["kind"] == "nested") {
        ensure!(
            parents.contains(&domain["parent"].as_u64()),
            "nested on nothing: {domain}"
        );
        ensure!(
            domain["first_stage"]["address_bits"] == 48,
            "no table of 48 bits: {domain}"
        );
        ensure!(routes(domain) == 1, "not one route: {domain}");
        let route = &domain["routes"][0];
        let device = route["device"].as_str().unwrap_or_default().to_owned();
        let children = children.entry(domain["parent"].as_u64()).or_default();
        children.insert(device.clone());
        let id = domain["id"].as_u64().context("a domain without an id")?;
        found.insert((device, route["pasid"].as_u64()), id);
    }
    ensure!(
        found.len() == tables * devices.len(),
        "routes to nested domains: {found:?}"
    );
    for device in devices {
        ensure!(
            children.values().filter(|on| on.contains(*device)).count() == 1,
            "{device} is not on one parent: {children:?}"
        );
    }
    ensure!(
        children.values().all(|on| on.len() == 1),
        "devices share a parent: {children:?}"
    );
    let hwpts = list(&tree["iommufds"]).flat_map(|file| list(&file["hwpts"]));
    let (nested, others): (Vec<_>, Vec<_>) = hwpts.partition(|hwpt| hwpt["nested"] == true);
    ensure!(
        nested.len() == found.len() && others.iter().all(|hwpt| hwpt["nest_parent"] == true),
        "page tables: {nested:?} and {others:?}"
    );
    faultless(tree)?;
    Ok(found)
}

/// Bytes that were moved through each nested domain.
fn moved(tree: &Json) -> BTreeMap<u64, u64> {
    let nested = list(&tree["iommu"]["domains"]).filter(|domain| domain["kind"] == "nested");
    let number = |domain: &Json, key| domain[key].as_u64().unwrap_or(0);
    nested
        .map(|domain| (number(domain, "id"), number(domain, "dma_bytes")))
        .collect()
}

/// The guest's RAID on its devices, one array each, for as long as `host` says: MiB that were checked, and
/// those that went through each of the guest's tables.
fn work(host: &Host, served: &Served, guest: &mut Guest, arrays: usize) -> Result<(u64, Vec<u64>)> {
    guest.order(&format!("raid {arrays}"))?;
    let before = moved(&served.inspect(host.installation())?);
    let report = guest.order(&format!("work {}", host.work.as_secs()))?;
    let checked = all_right(&report, arrays)?;
    let after = moved(&served.inspect(host.installation())?);
    let moved: Vec<_> = before
        .iter()
        .map(|(id, before)| after.get(id).map_or(0, |after| (after - before) >> 20))
        .collect();
    ensure!(
        moved.len() == arrays && moved.iter().all(|count| *count > 0),
        "the guest's devices have moved {moved:?} MiB"
    );
    Ok((checked, moved))
}

/// Two whole devices, each with an array at work and every mapping invalidated when it ends; then the guest is
/// started anew, and loses one device after the other.
pub(super) fn at_work(host: &Host) -> Result<String> {
    // The guest's kernel gives each of its processors a channel, the first of those that are left.
    let machine = PDEVS.map(|address| whole("ioat", address, "vm1") + "channels = 1\n");
    let machine = machine.concat();
    let served = host.serve(&machine)?;
    let board = Board {
        processors: 2,
        shown_as: SHOWN_AS,
        viommu: VIOMMU,
        words: "iommu.strict=1",
        ..Board::default()
    };
    let mut guest = begin(host, &served, board, &PDEVS.map(Given::Function))?;
    let both_good = |report: &Report| {
        for index in [0, 1] {
            good_at(Model::Ioat, report, &address(index), SHOWN_IDS)?;
        }
        nested_each(&served.inspect(host.installation())?, &PDEVS, 1)
    };
    let before = both_good(&guest.next_report()?)?;
    let (checked, moved) = work(host, &served, &mut guest, 2)?;
    let after = nested_each(&served.inspect(host.installation())?, &PDEVS, 1)?;
    ensure!(
        before == after,
        "domains came and went meanwhile: {before:?} and {after:?}"
    );

    guest.reset()?;
    let anew = both_good(&guest.next_report()?)?;
    ensure!(
        anew.iter()
            .all(|(source, domain)| before[source] != *domain),
        "domains outlived the guest's reset: {before:?} and {anew:?}"
    );

    guest.unplug("dev0")?;
    eventually(host, &served, |tree| {
        nested_each(tree, &PDEVS[1..], 1).map(drop)
    })?;
    let report = guest.order(&format!("probe {}", address(1)))?;
    ensure!(
        !report.functions.contains_key(&address(0)),
        "the guest still has the function that was unplugged"
    );
    good_at(Model::Ioat, &report, &address(1), SHOWN_IDS)?;
    guest.unplug("dev1")?;
    eventually(host, &served, |tree| nested_each(tree, &[], 1).map(drop))?;
    quit(host, &served, guest)?;
    Ok(format!(
        "{} s: {checked} MiB written, read and compared, 0 wrong; {moved:?} MiB moved by DMA through two nested \
         domains, 0 faults; reset; unplugged",
        host.work.as_secs(),
    ))
}

/// A guest whose memory, page tables and all, only its QEMU can read, and which invalidates mappings some time
/// after they end; its device is on the root bus.
pub(super) fn private_memory(host: &Host) -> Result<String> {
    let served = host.serve(&whole("ioat", PDEV, "vm1"))?;
    let board = Board {
        memory: Memory::Private,
        shown_as: SHOWN_AS,
        viommu: VIOMMU,
        on_root_bus: true,
        ..Board::default()
    };
    let mut guest = begin(host, &served, board, &[Given::Function(PDEV)])?;
    let place = format!("0000:00:{:02x}.0", Board::FIRST_SLOT);
    good_at(Model::Ioat, &guest.next_report()?, &place, SHOWN_IDS)?;
    nested_each(&served.inspect(host.installation())?, &[PDEV], 1)?;
    let (checked, moved) = work(host, &served, &mut guest, 1)?;
    let report = guest.order(&format!("probe {place}"))?;
    good_at(Model::Ioat, &report, &place, SHOWN_IDS)?;
    nested_each(&served.inspect(host.installation())?, &[PDEV], 1)?;
    quit(host, &served, guest)?;
    Ok(format!(
        "{} s: {checked} MiB written, read and compared, 0 wrong; {moved:?} MiB moved by DMA, 0 faults",
        host.work.as_secs()
    ))
}

/// A guest that has an IOMMU and lets its devices pass (`iommu=pt`): the parent is attached. A mediated device works
/// in such a guest alone, as QEMU tells the host of no first-stage table for it.
pub(super) fn passed_through(host: &Host) -> Result<String> {
    let machine = parent("ioat", None, &[(FIRST, "vm1")]) + &whole("ioat", PDEV, "vm1");
    let served = host.serve(&machine)?;
    let board = Board {
        viommu: VIOMMU,
        words: "iommu=pt",
        ..Board::default()
    };
    let devices = [Given::Function(PDEV), Given::Mdev(FIRST)];
    let mut guest = begin(host, &served, board, &devices)?;
    let report = guest.next_report()?;
    for index in [0, 1] {
        good_at(Model::Ioat, &report, &address(index), "0x8086 0x2021")?;
    }
    let tree = served.inspect(host.installation())?;
    let found: Vec<_> = domains(&tree).into_iter().map(routes).collect();
    ensure!(found == [1, 1], "routes of the guest's domains: {found:?}");
    ensure!(
        list(&tree["iommu"]["domains"]).all(|domain| domain["kind"] != "nested"),
        "a nested domain of a guest that has no table"
    );
    faultless(&tree)?;
    quit(host, &served, guest)?;
    Ok("the self-tests of a pdev and an mdev pass, no domain is nested, 0 faults".to_owned())
}

/// The commands of the page about it.
pub(super) fn page(host: &Host) -> Result<String> {
    let files = ["vmlinuz", "initramfs"];
    pages::follow(host.installation(), "docs/viommu.md", &files)
}

/// The guest's idxd attaches its DMA domain by a PASID too, which QEMU replays if it has PASIDs.
pub(super) fn pasids(host: &Host) -> Result<String> {
    let served = host.serve(&whole("dsa", PDEV, "vm1"))?;
    let source = |pasid| (PDEV.to_owned(), pasid);
    for pasid_bits in [20, 0] {
        let board = Board {
            viommu: Viommu::Nested {
                pasid_bits: Some(pasid_bits),
            },
            // An emulated processor has neither: the driver is told that it has, and nothing is submitted.
            words: "setcpuid=movdir64b,enqcmd",
            ..Board::default()
        };
        let mut guest = begin(host, &served, board, &[Given::Function(PDEV)])?;
        guest.next_report()?;
        let tree = served.inspect(host.installation())?;
        let alone = nested_each(&tree, &[PDEV], 1)?;
        ensure!(alone.contains_key(&source(None)), "routes: {alone:?}");

        let report = guest.order("whole")?;
        let said = report.log.join(" / ");
        let enabled = report.queue.is_some_and(|queue| queue.state == "enabled");
        ensure!(enabled, "the guest's queue is not enabled; it says: {said}");
        let tree = served.inspect(host.installation())?;
        if pasid_bits == 0 {
            ensure!(nested_each(&tree, &[PDEV], 1)? == alone);
        } else {
            let both = nested_each(&tree, &[PDEV], 2)?;
            let wanted = [source(None), source(Some(1))];
            ensure!(both.keys().eq(&wanted), "routes: {both:?}");
            let nested = list(&tree["iommu"]["domains"]).filter(|d| d["kind"] == "nested");
            let tables: BTreeSet<_> = nested.map(|d| d["first_stage"]["root"].as_u64()).collect();
            ensure!(tables.len() == 1, "not one table in two places: {tables:?}");
        }

        let report = guest.order("remove idxd")?;
        ensure!(
            report.errors.is_empty(),
            "the guest says: {}",
            report.errors.join(" / ")
        );
        let left = nested_each(&served.inspect(host.installation())?, &[PDEV], 1)?;
        ensure!(left.contains_key(&source(None)), "routes: {left:?}");
        quit(host, &served, guest)?;
    }
    Ok(
        "idxd and accel-config enable a queue: nested domains at the RID and at PASID 1, of one table of the \
         guest's; without the driver the RID's is left; without PASIDs there is no other"
            .to_owned(),
    )
}
