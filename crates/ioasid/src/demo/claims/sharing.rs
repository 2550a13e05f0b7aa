//! What the demo is for: one parent on several domains at once, one domain for both devices of a
//! VM.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::Check;
use crate::demo::{
    Demo, MEMORY, MEMORY_LEN,
    order::{Answer, Order, Which},
    output::bytes,
    verdict,
};

/// These claims, in order.
pub(crate) const CLAIMS: &[(&str, Check)] = &[
    (
        "One parent stands on three domains at once: one primary, two by PASID",
        three_domains,
    ),
    (
        "VM1's whole device and its mediated device share one domain",
        one_domain,
    ),
    (
        "An attachment is a device, or a device with a PASID: that alone decides",
        routes,
    ),
    (
        "The same IOVA means three different memories in the three domains",
        same_iova,
    ),
    (
        "The parent's driver uses the kernel's way, the DMA API, beside the VMs",
        dma_api,
    ),
    (
        "All three queues copy at once, and no byte goes astray",
        together,
    ),
    (
        "A domain that is attached only by PASID is a domain like any other",
        normal_domain,
    ),
    (
        "One map serves both devices of VM1; one unmap stops both, then returns",
        one_unmap,
    ),
    (
        "Detaching one device leaves the others as they were",
        detach,
    ),
];

/// Half of a VM's memory: the source below, the target above.
const HALF: u64 = MEMORY_LEN as u64 / 2;
/// Where the claims of this file map extra memory.
const EXTRA: u64 = 16 << 30;

fn three_domains(demo: &mut Demo) -> Result<Result<String, String>> {
    let mut routes = Vec::new();
    for domain in demo.machine.iommu().domains() {
        for (device, pasid) in domain.attachments() {
            if device == demo.parent_address {
                routes.push((domain.id(), pasid.is_some()));
            }
        }
    }
    routes.sort();
    routes.dedup();
    let with_pasid = routes.iter().filter(|(_, with_pasid)| *with_pasid).count();
    Ok(verdict(
        routes.len() == 3 && with_pasid == 2,
        format!(
            "{} routes of {}, {with_pasid} of them with a PASID",
            routes.len(),
            demo.parent_address
        ),
    ))
}

fn one_domain(demo: &mut Demo) -> Result<Result<String, String>> {
    let [first, second] = demo.history.vm1_page_tables;
    let [alone, both] = demo.history.vm1_table_pages;
    let domain = demo.vm1_domain()?;
    let routes = domain.attachments();
    let expected = routes.len() == 2
        && routes.contains(&(demo.pdev_address, None))
        && routes
            .iter()
            .any(|(device, pasid)| *device == demo.parent_address && pasid.is_some());
    Ok(verdict(
        first == second && alone == both && expected,
        format!(
            "both attach ioctls report page table {first}/{second}; {alone} table pages with one \
             device, {both} with two"
        ),
    ))
}

fn routes(demo: &mut Demo) -> Result<Result<String, String>> {
    let mut text = Vec::new();
    let mut wrong = 0;
    for domain in [demo.vm1_domain()?, demo.vm2_domain()?] {
        for (device, pasid) in domain.attachments() {
            // A whole device without a number is the RID; a child is its parent's RID with one.
            wrong += usize::from(pasid.is_some() != (device == demo.parent_address));
            text.push(match pasid {
                Some(pasid) => format!("({device}, PASID {pasid})"),
                None => format!("({device}, -)"),
            });
        }
    }
    Ok(verdict(
        wrong == 0 && text.len() == 3,
        format!("what the IOMMU knows: {}", text.join(" ")),
    ))
}

fn same_iova(demo: &mut Demo) -> Result<Result<String, String>> {
    // The DMA API chooses the address; the VMs map theirs at the same one.
    let source = demo.parent.buffer(4096)?;
    let buffer = demo.parent.buffer(4096)?;
    let iova = buffer.iova();
    source.memory().write(0, &[0xd0; 4096]);
    let mut found = Vec::new();
    for (seed, vm1) in [(101, true), (202, false)] {
        let vm = if vm1 { &mut demo.vm1 } else { demo.vm2()? };
        vm.request(&Order::Map { iova, len: 4096 })?;
        vm.request(&Order::Pattern {
            iova: MEMORY,
            len: 4096,
            seed,
        })?;
        let job = vm.job(Which::Mdev, iova, MEMORY, 4096)?;
        ensure!(
            job.0 == 1,
            "a copy to {iova:#x} ended with status {:#04x}",
            job.0
        );
    }
    demo.parent.queue().memory_move(iova, source.iova(), 4096)?;
    for (seed, vm1) in [(101, true), (202, false)] {
        let vm = if vm1 { &mut demo.vm1 } else { demo.vm2()? };
        found.push(vm.holds(iova, 4096, seed)?);
        vm.request(&Order::Unmap { iova, len: 4096 })?;
    }
    let mut parent = [0; 4096];
    buffer.memory().read(0, &mut parent);
    found.push(parent == [0xd0; 4096]);
    Ok(verdict(
        found.iter().all(|right| *right),
        format!("three queues wrote to {iova:#x}; each of three memories holds what its own wrote"),
    ))
}

fn dma_api(demo: &mut Demo) -> Result<Result<String, String>> {
    let source = demo.parent.buffer(64 << 10)?;
    source.memory().write(0, &[0x3c; 64 << 10]);
    let target = demo.parent.buffer(64 << 10)?;
    let (from, to) = (source.iova(), target.iova());
    demo.parent.queue().memory_move(to, from, 64 << 10)?;
    let mut found = vec![0; 64 << 10];
    target.memory().read(0, &mut found);
    let copied = found.iter().all(|byte| *byte == 0x3c);
    // Unmapped, the same address is nothing any more.
    drop(target);
    let stale = demo.parent.queue().memory_move(to, from, 4096);
    demo.parent.forgive(1);
    Ok(verdict(
        copied && stale.is_err(),
        format!("a job at IOVA {to:#x} of its own allocator; after the unmap the same job faults"),
    ))
}

fn together(demo: &mut Demo) -> Result<Result<String, String>> {
    const LEN: u64 = 16 << 20;
    let before = demo.parent.work();
    let start = Instant::now();
    demo.vm1.request(&Order::Pattern {
        iova: MEMORY,
        len: LEN,
        seed: 1,
    })?;
    demo.vm2()?.request(&Order::Pattern {
        iova: MEMORY,
        len: LEN,
        seed: 2,
    })?;
    let copy = |which| Order::Copy {
        which,
        to: MEMORY + HALF,
        from: MEMORY,
        len: LEN,
    };
    demo.vm2()?.send(&copy(Which::Mdev))?;
    let mut copies = Vec::new();
    for which in [Which::Mdev, Which::Pdev] {
        copies.push(demo.vm1.request(&copy(which))?);
    }
    copies.push(demo.vm2()?.receive()?);
    let mut descriptors = 0;
    for answer in copies {
        match answer {
            Answer::Copied {
                descriptors: count,
                interrupts,
                ..
            } if interrupts > 0 => {
                descriptors += count;
            }
            other => return Ok(Err(format!("a copy gave {other:?}"))),
        }
    }
    let whole =
        demo.vm1.holds(MEMORY + HALF, LEN, 1)? && demo.vm2()?.holds(MEMORY + HALF, LEN, 2)?;
    let after = demo.parent.work();
    let jobs = after.jobs - before.jobs;
    Ok(verdict(
        whole && jobs > 0 && after.errors == before.errors,
        format!(
            "{} in {descriptors} descriptors through three devices in {} ms, {jobs} parent jobs \
             meanwhile; every byte checked",
            bytes(3 * LEN),
            start.elapsed().as_millis(),
        ),
    ))
}

fn normal_domain(demo: &mut Demo) -> Result<Result<String, String>> {
    const LEN: usize = 1 << 20;
    let domain = demo.vm2_domain()?;
    let before = domain.mapped_bytes();
    let len = LEN as u64;
    let vm2 = demo.vm2()?;
    vm2.request(&Order::Map {
        iova: EXTRA,
        len: LEN,
    })?;
    // The same pages at a second address, by IOAS_COPY.
    vm2.request(&Order::CopyMapping {
        from: EXTRA,
        to: EXTRA + len,
        len,
    })?;
    vm2.request(&Order::Pattern {
        iova: MEMORY,
        len,
        seed: 7,
    })?;
    let job = vm2.job(Which::Mdev, EXTRA + len, MEMORY, LEN as u32)?;
    let through_copy = job.0 == 1 && vm2.holds(EXTRA, len, 7)?;
    let taken = vm2.ask(&Order::Map {
        iova: EXTRA,
        len: 4096,
    })?;
    let exists = matches!(
        taken,
        Answer::Failed {
            errno: Some(17),
            ..
        }
    );
    let hole = vm2.ask(&Order::Unmap {
        iova: EXTRA + 4096,
        len: 4096,
    })?;
    let whole_areas = matches!(hole, Answer::Failed { errno: Some(2), .. });
    let unmapped = vm2.number(&Order::Unmap { iova: EXTRA, len })?
        + vm2.number(&Order::Unmap {
            iova: EXTRA + len,
            len,
        })?;
    let after = domain.mapped_bytes();
    Ok(verdict(
        through_copy && exists && whole_areas && unmapped == 2 * len && before == after,
        "VM2 maps, copies the mapping, overlaps (EEXIST), cuts (ENOENT) and unmaps as on any IOAS; \
         DMA follows each"
            .to_owned(),
    ))
}

fn one_unmap(demo: &mut Demo) -> Result<Result<String, String>> {
    let domain = demo.vm1_domain()?;
    let before = domain.pte_writes();
    demo.vm1.request(&Order::Map {
        iova: EXTRA,
        len: 4096,
    })?;
    let writes = domain.pte_writes() - before;
    let mut statuses = Vec::new();
    for which in [Which::Mdev, Which::Pdev] {
        statuses.push(demo.vm1.job(which, EXTRA, MEMORY, 4096)?);
    }
    demo.vm1.request(&Order::Unmap {
        iova: EXTRA,
        len: 4096,
    })?;
    for which in [Which::Mdev, Which::Pdev] {
        statuses.push(demo.vm1.job(which, EXTRA, MEMORY, 4096)?);
    }
    let fault =
        |(status, done, address): (u8, u32, u64)| status == 0x83 && done == 0 && address == EXTRA;
    let [first, second, third, fourth] = statuses[..] else {
        return Ok(Err("a job is missing".to_owned()));
    };
    let held = first.0 == 1 && second.0 == 1 && fault(third) && fault(fourth);
    Ok(verdict(
        held,
        format!(
            "{writes} page-table writes for one map; then both copies end with status {:#04x} at \
             {:#x}",
            third.0, third.2,
        ),
    ))
}

fn detach(demo: &mut Demo) -> Result<Result<String, String>> {
    const ROUNDS: usize = 5;
    let before = demo.parent.work();
    let domain = demo.vm1_domain()?;
    for _ in 0..ROUNDS {
        demo.vm1.request(&Order::Detach(Which::Pdev))?;
        let job = demo.vm1.job(Which::Mdev, MEMORY + HALF, MEMORY, 4096)?;
        ensure!(
            job.0 == 1,
            "the mediated device stopped with the whole one: {:#04x}",
            job.0
        );
        demo.vm1.request(&Order::Attach(Which::Pdev))?;
        demo.vm1.request(&Order::BringUp {
            which: Which::Pdev,
            records: crate::demo::RECORDS,
            first: crate::demo::PDEV_RECORDS,
        })?;
        let job = demo.vm1.job(Which::Pdev, MEMORY + HALF, MEMORY, 4096)?;
        ensure!(
            job.0 == 1,
            "the whole device did not come back: {:#04x}",
            job.0
        );
    }
    let same = demo.vm1_domain()?.id() == domain.id();
    let vm2 = demo.vm2()?.job(Which::Mdev, MEMORY + HALF, MEMORY, 4096)?;
    let after = demo.parent.work();
    // The DMA domain still maps what the driver uses.
    let dma = demo.machine.iommu().domains().into_iter();
    let dma = dma
        .filter(|d| d.attachments().contains(&(demo.parent_address, None)))
        .count();
    Ok(verdict(
        same && vm2.0 == 1 && dma == 1 && after.errors == before.errors,
        format!(
            "{ROUNDS} times VM1's pdev left and came back to the same domain; {} parent jobs \
             meanwhile, 0 errors",
            after.jobs - before.jobs
        ),
    ))
}
