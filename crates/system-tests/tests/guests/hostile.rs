//! A guest that drives its devices by hand, as no driver would, beside one at work.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ioasid_system_tests::{
    guests::{Board, Guest, Host, Report},
    process::succeed,
    served::{Served, list},
};
use ioasid_testing::{MDEVS, parent};
use serde_json::{Value as Json, json};

use super::{
    checks::{FIRST, SECOND, eventually, jobs_of},
    work::{RAID_ID, all_right, pristine, settled_holdings},
};

const FIRST_CHANNEL: &str = MDEVS[2];
const SECOND_CHANNEL: &str = MDEVS[3];

/// The same for a DSA and an I/OAT: a queue of the parent's own driver, one of each VM.
fn machine() -> String {
    let queues = [(FIRST, "vm1"), (SECOND, "vm2")];
    let channels = [(FIRST_CHANNEL, "vm1"), (SECOND_CHANNEL, "vm2")];
    parent("dsa", Some("0000:6a:01.0"), &queues) + &parent("ioat", Some("0000:6b:01.0"), &channels)
}

/// Claims of the hostile program, each of which must have been tried.
const CLAIMS: usize = 17;
/// How often the machine is looked at meanwhile.
const INTERVAL: Duration = Duration::from_millis(100);

/// The first guest does its worst, twice: while the second works, and while the second stands still and
/// each byte of its memory can be compared.
pub(super) fn isolation(host: &Host) -> Result<String> {
    let served = host.serve_sockets(&machine())?;
    let begin = || host.guest_at_sockets("vm1", Board::default(), &[FIRST, FIRST_CHANNEL]);
    let larger = Board {
        // Where the first has nothing, the second has memory.
        megabytes: 384,
        words: "setcpuid=movdir64b iomem=relaxed",
        shown_as: &[None, RAID_ID],
        ..Board::default()
    };
    let mut first = begin()?;
    let mut second = host.guest_at_sockets("vm2", larger, &[SECOND, SECOND_CHANNEL])?;
    tested(&first.next_report()?)?;
    tested(&second.next_report()?)?;
    let enabled = second.order("idxd user user")?.queue;
    ensure!(
        enabled.is_some_and(|queue| queue.state == "enabled"),
        "the other guest's DSA queue is not enabled"
    );
    second.order("raid 1")?;
    let kept = second.order("keep")?.kept.context("nothing is kept")?;
    let before = Before::look(&served.inspect(host.installation())?)?;
    let holdings = settled_holdings(&served)?;

    second.begin_order(&format!("work {}", host.work.as_secs()))?;
    // The last round goes on for a few seconds more.
    let order = format!("hostile {}", host.work.as_secs().saturating_sub(4));
    let mut attempts = attack(host, &served, &before, &mut first, &order)?;
    let worked = all_right(&second.next_report()?, 1)?;
    let report = second.order("keep")?;
    ensure!(
        report.kept.as_ref() == Some(&kept),
        "the file that the other guest keeps in memory has changed"
    );
    let fired = tested(&report)?;

    second.pause()?;
    let memory = second.memory()?;
    let hash = sha256(&memory)?;
    let idle = second_queues(&served.inspect(host.installation())?);
    attempts += attack(host, &served, &before, &mut first, "hostile 0")?;
    let now = second_queues(&served.inspect(host.installation())?);
    ensure!(
        now == idle,
        "queue and channel of a guest that stands still were {idle}, and are {now}"
    );
    ensure!(
        sha256(&memory)? == hash,
        "the memory of the other guest has changed"
    );
    second.resume()?;
    let report = second.order("report")?;
    ensure!(
        tested(&report)? == fired,
        "the other guest got an interrupt of its channel, which did nothing"
    );
    ensure!(
        report.errors.is_empty(),
        "the other guest says: {}",
        report.errors.join(" / ")
    );
    let tree = served.inspect(host.installation())?;
    let faults = before.own_faults(&tree)?;

    first.quit()?;
    eventually(host, &served, left)?;
    let mut next = begin()?;
    tested(&next.next_report()?)?;
    served
        .wait_until_it_holds(|now| {
            now.descriptors <= holdings.descriptors && now.threads <= holdings.threads
        })
        .with_context(|| format!("with the guest before it held {holdings:?}"))?;
    held(&next.order("hostile use")?, 2)?;
    next.quit()?;
    second.quit()?;
    served.wait_until_released(host.installation())?;
    eventually(host, &served, pristine)?;
    let [first_jobs, second_jobs] = before.jobs_since(&tree)?;
    Ok(format!(
        "{attempts} attempts at {CLAIMS} claims; {faults} faults, all of the hostile guest's own channel; \
         {worked} MiB of RAID-5 in the other guest, 0 wrong, its {} MiB of memory the same; {first_jobs} and \
         {second_jobs} jobs of the parents, 0 errors; the next guest works",
        larger.megabytes,
    ))
}

/// That the guest's driver has tested the channel, with an interrupt: how many there were until now.
fn tested(report: &Report) -> Result<u64> {
    let channel = report.functions.get("0000:02:00.0");
    ensure!(
        channel
            .is_some_and(|one| one.driver == "ioatdma" && one.channels == 1 && one.interrupts > 0),
        "the guest's channel is {channel:?}; it says: {}",
        report.log.join(" / ")
    );
    Ok(channel.map_or(0, |one| one.interrupts))
}

/// That this many claims of the hostile program hold: how many attempts there were.
fn held(report: &Report, claims: usize) -> Result<u64> {
    for claim in &report.claims {
        ensure!(claim.attempts.is_some(), "in the guest: {}", claim.said);
    }
    ensure!(
        report.claims.len() == claims,
        "the hostile program has shown {} claims of {claims}",
        report.claims.len()
    );
    Ok(report
        .claims
        .iter()
        .filter_map(|claim| claim.attempts)
        .sum())
}

/// Lets the hostile guest carry out `order`, and looks at what must not change all the while.
fn attack(
    host: &Host,
    served: &Served,
    before: &Before,
    guest: &mut Guest,
    order: &str,
) -> Result<u64> {
    let start = served.inspect(host.installation())?;
    guest.begin_order(order)?;
    while !guest.has_report() {
        before.still(&served.inspect(host.installation())?)?;
        std::thread::sleep(INTERVAL);
    }
    let attempts = held(&guest.next_report()?, CLAIMS)?;
    let end = served.inspect(host.installation())?;
    before.still(&end)?;
    for (parent, (end, start)) in jobs(&end)?.into_iter().zip(jobs(&start)?).enumerate() {
        ensure!(
            end > start,
            "the driver of parent {parent} did nothing meanwhile"
        );
    }
    Ok(attempts)
}

/// What an attack must not change.
struct Before {
    others: Json,
    /// The PASIDs of the hostile guest's queue and channel.
    pasids: [u64; 2],
    jobs: [u64; 2],
}

impl Before {
    fn look(tree: &Json) -> Result<Self> {
        Ok(Self {
            others: others(tree),
            pasids: [pasid(tree, FIRST)?, pasid(tree, FIRST_CHANNEL)?],
            jobs: jobs(tree)?,
        })
    }

    /// That all that is not the hostile guest's is the same, that its queue has its own PASID or none, and
    /// that the parents' own drivers have met no error.
    fn still(&self, tree: &Json) -> Result<()> {
        let now = others(tree);
        for (name, before) in self.others.as_object().into_iter().flatten() {
            ensure!(
                now[name] == *before,
                "{name} have changed, from {before} to {}",
                now[name]
            );
        }
        let queue = &tree["devices"][0]["dsa"]["queues"][1];
        ensure!(
            queue["pasid_enabled"] == false || queue["pasid"] == self.pasids[0],
            "the hostile guest's queue is {queue}"
        );
        ensure!(
            queue["accepted"] == 0,
            "the hostile guest's queue has got a descriptor: {queue}"
        );
        let channel = &tree["devices"][1]["ioat"]["channels"][1];
        ensure!(
            channel["pasid"] == self.pasids[1],
            "the hostile guest's channel is {channel}"
        );
        for index in [0, 2] {
            let channel = &tree["devices"][1]["ioat"]["channels"][index];
            ensure!(
                channel["status"] != "halted" && channel["status"] != "suspended",
                "channel {index} was stopped: {channel}"
            );
        }
        jobs(tree).map(drop)
    }

    fn jobs_since(&self, tree: &Json) -> Result<[u64; 2]> {
        let [first, second] = jobs(tree)?;
        let [first_before, second_before] = self.jobs;
        Ok([
            first.saturating_sub(first_before),
            second.saturating_sub(second_before),
        ])
    }

    /// Faults of the hostile guest's channel: every one that its domain has counted.
    fn own_faults(&self, tree: &Json) -> Result<u64> {
        let mdev = mdev(tree, FIRST_CHANNEL)?;
        let told = mdev["vfio"]["dma_faults"]["faults"].as_u64().unwrap_or(0);
        let counted = &tree["devices"][1]["ioat"]["channels"][1]["faults"];
        ensure!(
            told > 0 && *counted == told,
            "{told} faults were told of, {counted} met"
        );
        for domain in list(&tree["iommu"]["domains"]) {
            let own = is_own(tree, domain);
            ensure!(
                domain["faults"] == if own { told } else { 0 },
                "faults of {domain}"
            );
        }
        Ok(told)
    }
}

fn mdev<'tree>(tree: &'tree Json, uuid: &str) -> Result<&'tree Json> {
    list(&tree["mdevs"])
        .find(|mdev| mdev["uuid"] == uuid)
        .with_context(|| format!("{uuid} is not there"))
}

/// The PASID that a mediated device has while it is used.
fn pasid(tree: &Json, uuid: &str) -> Result<u64> {
    let pasid = mdev(tree, uuid)?["queue"]["default_pasid"].as_u64();
    pasid.with_context(|| format!("{uuid} has no PASID"))
}

/// Jobs of the own drivers of the two parents.
fn jobs(tree: &Json) -> Result<[u64; 2]> {
    let devices = &tree["devices"];
    Ok([jobs_of(&devices[0])?, jobs_of(&devices[1])?])
}

/// Whether a domain has the hostile guest's memory: its routes, none while its devices are reset, are the
/// guest's.
fn is_own(tree: &Json, domain: &Json) -> bool {
    let own = [(FIRST, "0000:6a:01.0"), (FIRST_CHANNEL, "0000:6b:01.0")];
    let own = own.map(|(uuid, device)| {
        let pasid = pasid(tree, uuid).unwrap_or(0);
        json!({"device": device, "pasid": pasid})
    });
    domain["kind"] == "unmanaged"
        && list(&domain["routes"]).all(|route| own.iter().any(|own| route == own))
}

/// All of the other guest's queue and channel.
fn second_queues(tree: &Json) -> Json {
    let devices = &tree["devices"];
    json!([
        devices[0]["dsa"]["queues"][2],
        devices[1]["ioat"]["channels"][2]
    ])
}

/// What is not the hostile guest's, without what moves with the work of others.
fn others(tree: &Json) -> Json {
    let without = |node: &Json, names: &[&str]| {
        let mut node = node.clone();
        if let Some(values) = node.as_object_mut() {
            values.retain(|name, _| !names.contains(&name.as_str()));
        }
        node
    };
    let parent = |index: usize, model: &str, queues: &str| -> Json {
        let device = &tree["devices"][index][model];
        let moving = [
            "status",
            "depth",
            "occupancy",
            "under_way",
            "accepted",
            "jobs",
            "bytes",
        ];
        let queue = |index: usize| without(&device[queues][index], &moving);
        let whole = without(device, &[queues, "tlb"]);
        json!([whole, queue(0), queue(2)])
    };
    let mdevs: Vec<_> = list(&tree["mdevs"])
        .filter(|mdev| mdev["vm"] != "vm1")
        .collect();
    let faults = list(&tree["iommu"]["devices"]).map(|device| &device["own_faults"]["faults"]);
    let faults: Vec<_> = faults.collect();
    let domains = list(&tree["iommu"]["domains"]).filter(|domain| !is_own(tree, domain));
    let domains = domains.map(|domain| json!([domain["id"], domain["routes"], domain["faults"]]));
    let domains: Vec<_> = domains.collect();
    let vms = list(&tree["vfio_user"]["vms"]).filter(|vm| vm["name"] != "vm1");
    let vms: Vec<_> = vms.collect();
    json!({
        "the other queues of the DSA": parent(0, "dsa", "queues"),
        "the other channels of the I/OAT": parent(1, "ioat", "channels"),
        "the other mediated devices": mdevs,
        "faults of the parents": faults,
        "the other domains": domains,
        "the other VMs": vms,
    })
}

/// That nothing is left of the hostile guest.
fn left(tree: &Json) -> Result<()> {
    let queue = &tree["devices"][0]["dsa"]["queues"][1];
    ensure!(
        queue["state"] == "locked" && queue["pasid_enabled"] == false && queue["under_way"] == 0,
        "the queue is left as {queue}"
    );
    let channel = &tree["devices"][1]["ioat"]["channels"][1];
    ensure!(
        channel["status"] == "halted" && channel["depth"] == 0 && channel["pasid"].is_null(),
        "the channel is left as {channel}"
    );
    for vm in list(&tree["vfio_user"]["vms"]).filter(|vm| vm["name"] == "vm1") {
        ensure!(vm["connections"] == 0, "the VM is left as {vm}");
        ensure!(
            list(&vm["mappings"]).next().is_none(),
            "memory is left: {vm}"
        );
    }
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    let said = succeed(Command::new("sha256sum").arg(file))?;
    let hash = said.split_whitespace().next();
    Ok(hash.context("`sha256sum` says nothing")?.to_owned())
}
