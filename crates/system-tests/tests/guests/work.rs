//! Guests whose drivers keep their devices at work.
//!
//! The work is a RAID-5 on disks in memory: the kernel lets its DMA engines copy what is written to an
//! array, and compute and check the parity.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ioasid_system_tests::{
    guests::{Board, Given, Host, Memory, Mode, Report, Viommu},
    served::{Holdings, Served, list},
};
use ioasid_testing::PATIENCE;
use serde_json::Value as Json;

use super::{
    checks::{
        FIRST, PDEV, SECOND, domains, eventually, good_as, machine, no_faults, parent_jobs, routes,
        three_domains,
    },
    sockets::held_by_all,
};

/// An IOAT whose XOR and P+Q the driver uses, which it does not with the model's own id; without them
/// it keeps its channels from the RAID.
pub(super) const RAID_ID: Option<u16> = Some(0x0c50);
pub(super) const SHOWN_AS: &[Option<u16>] = &[RAID_ID; 2];
pub(super) const SHOWN_IDS: &str = "0x8086 0x0c50";

/// Bytes that the mediated devices' channels have moved, and all those of the whole device.
fn moved(tree: &Json) -> Vec<u64> {
    let mut moved = Vec::new();
    for (index, device) in list(&tree["devices"]).enumerate() {
        let channels = list(&device["ioat"]["channels"]);
        let bytes = channels.map(|channel| channel["bytes"].as_u64().unwrap_or(0));
        if index == 0 {
            moved.extend(bytes.skip(1));
        } else {
            moved.push(bytes.sum());
        }
    }
    moved
}

/// That every array of a guest has worked and all data was right: how many MiB were checked.
pub(super) fn all_right(report: &Report, arrays: usize) -> Result<u64> {
    ensure!(
        report.errors.is_empty(),
        "the guest says: {}",
        report.errors.join(" / ")
    );
    ensure!(
        report.work.len() == arrays,
        "the guest has worked on {:?}",
        report.work
    );
    for work in &report.work {
        ensure!(
            work.rounds > 0 && work.wrong == 0 && work.mismatches == 0,
            "an array has worked like this: {work:?}"
        );
    }
    Ok(report.work.iter().map(|work| work.rounds * 4).sum())
}

/// Three channels of one parent and a whole device, all at work: by two guests and the parent's driver.
pub(super) fn sustained(host: &Host) -> Result<String> {
    let served = host.serve_sockets(&machine(host))?;
    ensure!(
        served.inspect(host.installation())?["iommu"]["paging_domains"] == 1,
        "there are domains before there is a guest"
    );
    let alone = Board {
        shown_as: SHOWN_AS,
        ..Board::default()
    };
    let board = Board {
        processors: 2,
        ..alone
    };
    let mut first = host.guest_at_sockets("vm1", board, &[FIRST, PDEV])?;
    let mut second = host.guest_at_sockets("vm2", alone, &[SECOND])?;
    let report = first.next_report()?;
    for index in [0, 1] {
        good_as(host, &report, index, SHOWN_IDS)?;
    }
    good_as(host, &second.next_report()?, 0, SHOWN_IDS)?;
    first.begin_order("raid 2")?;
    second.order("raid 1")?;
    first.next_report()?;
    let tree = served.inspect(host.installation())?;
    let before = (moved(&tree), parent_jobs(&tree)?);

    let order = format!("work {}", host.work.as_secs());
    first.begin_order(&order)?;
    second.begin_order(&order)?;
    let end = Instant::now() + host.work;
    while Instant::now() < end {
        let tree = served.inspect(host.installation())?;
        three_domains(&tree)?;
        held_by_all(&tree, "vm1", 2, "file")?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let checked = [
        all_right(&first.next_report()?, 2)?,
        all_right(&second.next_report()?, 1)?,
    ];
    let tree = served.inspect(host.installation())?;
    no_faults(&tree)?;
    let jobs = parent_jobs(&tree)? - before.1;
    ensure!(jobs > 0, "the parent's driver did nothing meanwhile");
    let moved: Vec<_> = moved(&tree)
        .into_iter()
        .zip(before.0)
        .map(|(after, before)| after.saturating_sub(before) >> 20)
        .collect();
    ensure!(
        moved.len() == 3 && moved.iter().all(|count| *count > 0),
        "the guests' channels have moved {moved:?} MiB"
    );

    first.quit()?;
    eventually(host, &served, |tree| {
        let left: Vec<_> = domains(tree).into_iter().map(routes).collect();
        ensure!(left == [1], "routes of the domains that are left: {left:?}");
        Ok(())
    })?;
    second.quit()?;
    served.wait_until_released(host.installation())?;
    Ok(format!(
        "{} s: RAID-5 in both guests, {} and {} MiB written, read and compared, 0 wrong; moved by DMA: \
         {} and {} MiB on the parent, {} MiB on the whole device; {jobs} jobs of the parent, 0 faults",
        host.work.as_secs(),
        checked[0],
        checked[1],
        moved[0],
        moved[1],
        moved[2],
    ))
}

/// A guest whose kernel gives a device addresses of its own choice, and maps them only while they are
/// used: QEMU makes a MAP and an UNMAP of each.
pub(super) fn behind_viommu(host: &Host) -> Result<String> {
    let served = host.serve(&machine(host))?;
    let board = Board {
        memory: Memory::Private,
        shown_as: SHOWN_AS,
        viommu: Viommu::Shadowed,
        ..Board::default()
    };
    let mut guest = host.guest_on(
        "vm1",
        board,
        &mut served.join(host.installation(), "vm1"),
        Mode::Iommufd,
        &[Given::Function(PDEV)],
    )?;
    good_as(host, &guest.next_report()?, 0, SHOWN_IDS)?;
    guest.order("raid 1")?;
    let before = domain(&served.inspect(host.installation())?)?;
    let report = guest.order(&format!("work {}", host.work.as_secs()))?;
    let checked = all_right(&report, 1)?;
    let tree = served.inspect(host.installation())?;
    no_faults(&tree)?;
    let after = domain(&tree)?;
    ensure!(
        after.mapped < 64 << 20,
        "{} bytes are mapped, as if the guest had no IOMMU",
        after.mapped
    );
    let written = after.entries - before.entries;
    ensure!(written > 0, "nothing was mapped for the work");
    let bytes = after.bytes - before.bytes;
    ensure!(bytes > 1 << 20, "only {bytes} bytes were moved by DMA");
    guest.quit()?;
    served.wait_until_released(host.installation())?;
    Ok(format!(
        "{checked} MiB written, read and compared, 0 wrong; {} MiB moved by DMA, {written} page-table \
         entries written for it, {} KiB mapped at the end, 0 faults",
        bytes >> 20,
        after.mapped >> 10
    ))
}

/// What the only domain of a guest has to do.
struct Counts {
    mapped: u64,
    entries: u64,
    bytes: u64,
}

fn domain(tree: &Json) -> Result<Counts> {
    let domains = domains(tree);
    let [domain] = domains[..] else {
        bail!("{} domains of guests, not one", domains.len());
    };
    let count = |key: &str| {
        let count = domain[key].as_u64();
        count.with_context(|| format!("the domain has no {key}: {domain}"))
    };
    Ok(Counts {
        mapped: count("mapped_bytes")?,
        entries: count("pte_writes")?,
        bytes: count("dma_bytes")?,
    })
}

/// A guest that is killed while its devices work, again and again; the next one finds them as new.
pub(super) fn killed(host: &Host) -> Result<String> {
    let served = host.serve_sockets(&machine(host))?;
    let board = Board {
        processors: 2,
        shown_as: SHOWN_AS,
        ..Board::default()
    };
    let mut before = None;
    let mut under_way = 0;
    for _ in 0..host.kills {
        let mut guest = host.guest_at_sockets("vm1", board, &[FIRST, PDEV])?;
        let report = guest.next_report()?;
        for index in [0, 1] {
            good_as(host, &report, index, SHOWN_IDS)?;
        }
        let report = guest.order("raid 2")?;
        ensure!(
            report.errors.is_empty(),
            "the guest says: {}",
            report.errors.join(" / ")
        );
        let start = moved(&served.inspect(host.installation())?);
        guest.begin_order("work 600")?;
        // Until both devices are in the midst of it.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tree = served.inspect(host.installation())?;
            no_faults(&tree)?;
            let now = moved(&tree);
            let gone = |index: usize| now[index].saturating_sub(start[index]);
            if gone(0) > 1 << 20 && gone(2) > 1 << 20 {
                under_way += gone(0) + gone(2);
                break;
            }
            ensure!(Instant::now() < deadline, "the guest's devices do not work");
            std::thread::sleep(Duration::from_millis(10));
        }
        // With SIGKILL: QEMU and whatever it has started.
        drop(guest);
        served.wait_until_released(host.installation())?;
        eventually(host, &served, pristine)?;
        // The first one finds a server that has not served anybody yet.
        let Some(first) = before else {
            before = Some(settled_holdings(&served)?);
            continue;
        };
        served
            .wait_until_it_holds(|held| {
                held.descriptors <= first.descriptors
                    && held.threads <= first.threads
                    && held.mapped_files <= first.mapped_files
                    && held.mappings <= first.mappings + of_the_allocator()
            })
            .with_context(|| format!("after the first guest it held {first:?}"))?;
    }
    let mut guest = host.guest_at_sockets("vm1", board, &[FIRST, PDEV])?;
    let report = guest.next_report()?;
    for index in [0, 1] {
        good_as(host, &report, index, SHOWN_IDS)?;
    }
    guest.order("raid 2")?;
    all_right(&guest.order("work 1")?, 2)?;
    guest.quit()?;
    served.wait_until_released(host.installation())?;
    Ok(format!(
        "{} guests killed at work, {} MiB into it each; each queue pristine, the next guest works, the \
         server holds {}",
        host.kills,
        (under_way >> 20) / u64::from(host.kills.max(1)),
        before.map_or_else(String::new, |held| format!(
            "{} descriptors, {} threads and {} mappings after the first and the last",
            held.descriptors, held.threads, held.mappings
        )),
    ))
}

/// Mappings without a file that the C library's allocator may add at any time: it has up to eight arenas
/// a processor (mallopt(3), `M_ARENA_MAX`), each of one mapping that it splits in two as it grows. What is
/// leaked for each guest passes that in the long form.
fn of_the_allocator() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) * 8 * 2
}

/// That every channel which a guest can have is as at the start.
pub(super) fn pristine(tree: &Json) -> Result<()> {
    for device in list(&tree["devices"]) {
        for channel in list(&device["ioat"]["channels"]) {
            let idle = channel["owner"] == "kernel"
                || (channel["status"] == "halted"
                    && channel["depth"] == 0
                    && channel["pasid"].is_null());
            ensure!(idle, "a channel is left as {channel}");
        }
    }
    ensure!(
        list(&tree["vfio_user"]["vms"])
            .all(|vm| vm["connections"] == 0
                && vm["mappings"].as_array().is_none_or(Vec::is_empty)),
        "something is left of a VM: {}",
        tree["vfio_user"]["vms"]
    );
    Ok(())
}

/// What the server holds once that is the same twice: threads end a moment after their work.
pub(super) fn settled_holdings(served: &Served) -> Result<Holdings> {
    let mut last = served.holdings()?;
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        let now = served.holdings()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}
