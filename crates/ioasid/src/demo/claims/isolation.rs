//! What a hostile VM tries, with nothing but the ABI and its device's registers.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ioasid_core::Pasid;
use ioasid_dsa::DsaDevice;
use ioasid_vfio::DeviceModel as _;

use super::Check;
use crate::demo::{
    Demo, MEMORY, MEMORY_LEN,
    guest::Guest,
    order::{Order, Which},
    set_up_vm2, verdict, wait_for,
};

/// These claims, in order.
pub(crate) const CLAIMS: &[(&str, Check)] = &[
    (
        "DMA to an address of the other VM faults, and no byte moves",
        other_address,
    ),
    (
        "A PASID forged into a descriptor has no effect",
        forged_pasid,
    ),
    (
        "Writes to other queues' registers change nothing outside",
        registers,
    ),
    (
        "A VM's reset, abort and drain touch its own queue alone",
        commands,
    ),
    (
        "A write into the interrupt window with a PASID is no interrupt",
        interrupt_window,
    ),
    (
        "The parent's own DMA never uses a VM's domain; unknown PASIDs are blocked",
        untagged,
    ),
    (
        "A VM killed amid its DMA: nothing is written after the release",
        killed,
    ),
];

/// Where the claims of this file map extra memory.
const EXTRA: u64 = 32 << 30;
/// Second half of a VM's memory.
const TARGET: u64 = MEMORY + MEMORY_LEN as u64 / 2;
/// First address of the interrupt window (Intel SDM volume 3, 11.11).
const INTERRUPT_WINDOW: u64 = 0xfee0_0000;
/// Page fault on a write, in a completion record.
const FAULT_ON_WRITE: u8 = 0x83;

fn other_address(demo: &mut Demo) -> Result<Result<String, String>> {
    let vm2 = demo.vm2()?;
    vm2.request(&Order::Map {
        iova: EXTRA,
        len: 4096,
    })?;
    vm2.request(&Order::Pattern {
        iova: EXTRA,
        len: 4096,
        seed: 55,
    })?;
    let mut jobs = Vec::new();
    for which in [Which::Mdev, Which::Pdev] {
        jobs.push(demo.vm1.job(which, EXTRA, MEMORY, 4096)?);
    }
    let vm2 = demo.vm2()?;
    let untouched = vm2.holds(EXTRA, 4096, 55)?;
    vm2.request(&Order::Unmap {
        iova: EXTRA,
        len: 4096,
    })?;
    let faulted = jobs.iter().all(|job| *job == (FAULT_ON_WRITE, 0, EXTRA));
    Ok(verdict(
        faulted && untouched,
        format!(
            "VM1's two devices aimed at {EXTRA:#x}: status {:#04x}, 0 bytes moved",
            jobs[0].0
        ),
    ))
}

fn forged_pasid(demo: &mut Demo) -> Result<Result<String, String>> {
    let victim = demo.vm2_domain()?;
    let pasid = victim
        .attachments()
        .into_iter()
        .find_map(|(_, pasid)| pasid);
    let pasid = pasid.context("VM2 has no PASID")?.get();
    for (seed, vm1) in [(11, true), (22, false)] {
        let vm = if vm1 { &mut demo.vm1 } else { demo.vm2()? };
        vm.request(&Order::Pattern {
            iova: MEMORY,
            len: 4096,
            seed,
        })?;
        vm.request(&Order::Pattern {
            iova: TARGET,
            len: 4096,
            seed: seed + 1,
        })?;
    }
    let job = demo
        .vm1
        .forged_job(Which::Mdev, TARGET, MEMORY, 4096, pasid)?;
    let own = demo.vm1.holds(TARGET, 4096, 11)?;
    let other = demo.vm2()?.holds(TARGET, 4096, 23)?;
    Ok(verdict(
        job.0 == 1 && own && other,
        format!("VM1 put VM2's PASID {pasid} into a descriptor: the bytes landed in VM1"),
    ))
}

/// The parent's group and queue tables, as its own driver sees them.
fn parent_tables(demo: &Demo) -> Result<Vec<u8>> {
    let dsa = demo
        .machine
        .device::<DsaDevice>(demo.parent_address)
        .context("the parent is gone")?;
    let mut offsets = [0; 8];
    dsa.read(0, 0x60, &mut offsets);
    let field = |at: usize| u64::from(u16::from_le_bytes([offsets[at], offsets[at + 1]])) * 0x100;
    let (groups, queues) = (field(0), field(2));
    let mut tables = Vec::new();
    for offset in [0x80, 0x88]
        .into_iter()
        .chain((groups..groups + 64).step_by(4))
    {
        let mut word = [0; 4];
        dsa.read(0, offset, &mut word);
        tables.extend(word);
    }
    for offset in (queues..queues + 4 * 32).step_by(4) {
        let mut word = [0; 4];
        dsa.read(0, offset, &mut word);
        if (offset - queues) % 32 == 24 {
            // How many descriptors wait changes all the time; the rest of the status must not.
            word[..2].fill(0);
        }
        tables.extend(word);
    }
    Ok(tables)
}

fn registers(demo: &mut Demo) -> Result<Result<String, String>> {
    let before = parent_tables(demo)?;
    let vm1 = &mut demo.vm1;
    let which = Which::Mdev;
    let offsets = vm1.number(&Order::ReadRegister {
        which,
        offset: 0x60,
    })?;
    let (groups, queues) = ((offsets & 0xffff) * 0x100, (offsets >> 16 & 0xffff) * 0x100);
    let mut writes = 0;
    let general = [0x80, 0x88].into_iter();
    let offsets = general
        .chain((groups..groups + 128).step_by(4))
        .chain((queues..queues + 256).step_by(4));
    for offset in offsets {
        vm1.request(&Order::WriteRegister {
            which,
            offset,
            value: 0xffff_ffff,
        })?;
        writes += 1;
    }
    let after = parent_tables(demo)?;
    let vm1 = demo.vm1.job(Which::Mdev, TARGET, MEMORY, 4096)?;
    let vm2 = demo.vm2()?.job(Which::Mdev, TARGET, MEMORY, 4096)?;
    Ok(verdict(
        before == after && vm1.0 == 1 && vm2.0 == 1,
        format!(
            "VM1 wrote ones to {writes} registers, its own PASID and other queues' among them; the \
             parent's tables are as before, every queue works"
        ),
    ))
}

fn commands(demo: &mut Demo) -> Result<Result<String, String>> {
    const DRAIN_ALL: u8 = 3;
    const ABORT_ALL: u8 = 4;
    const RESET_DEVICE: u8 = 5;
    let before = demo.parent.work();
    let which = Which::Mdev;
    for command in [DRAIN_ALL, ABORT_ALL, RESET_DEVICE] {
        let code = demo.vm1.number(&Order::Command {
            which,
            command,
            operand: 0,
        })?;
        ensure!(code == 0, "command {command} ended with error {code:#04x}");
        // Neither the other VM nor the pdev was touched: no bring-up is needed.
        let vm2 = demo.vm2()?.job(Which::Mdev, TARGET, MEMORY, 4096)?;
        let pdev = demo.vm1.job(Which::Pdev, TARGET, MEMORY, 4096)?;
        if (vm2.0, pdev.0) != (1, 1) {
            return Ok(Err(format!("command {command} stopped somebody else")));
        }
    }
    let busy = demo.parent.work();
    demo.vm1.request(&Order::BringUpAgain(which))?;
    let again = demo.vm1.job(which, TARGET, MEMORY, 4096)?;
    wait_for("the parent driver to go on", || {
        demo.parent.work().jobs > busy.jobs
    })?;
    let after = demo.parent.work();
    Ok(verdict(
        again.0 == 1 && after.errors == before.errors,
        format!(
            "VM1 drained, aborted and reset \"the device\"; VM2 and the parent went on ({} jobs, 0 \
             errors)",
            after.jobs - before.jobs
        ),
    ))
}

fn interrupt_window(demo: &mut Demo) -> Result<Result<String, String>> {
    let (iova, len) = (INTERRUPT_WINDOW, 4096);
    let vm2 = demo.vm2()?;
    let unmapped = vm2.job(Which::Mdev, iova, MEMORY, 64)?;
    vm2.request(&Order::Map { iova, len })?;
    vm2.request(&Order::Pattern {
        iova: MEMORY,
        len: 4096,
        seed: 9,
    })?;
    let mapped = vm2.job(Which::Mdev, iova, MEMORY, 4096)?;
    let landed = vm2.holds(iova, 4096, 9)?;
    vm2.request(&Order::Unmap { iova, len: 4096 })?;
    Ok(verdict(
        unmapped == (FAULT_ON_WRITE, 0, iova) && mapped.0 == 1 && landed,
        format!(
            "at {iova:#x}: a fault where nothing is mapped, plain memory where VM2 mapped some"
        ),
    ))
}

fn untagged(demo: &mut Demo) -> Result<Result<String, String>> {
    demo.vm1.request(&Order::Pattern {
        iova: TARGET,
        len: 4096,
        seed: 71,
    })?;
    let source = demo.parent.buffer(4096)?;
    let parent = demo.parent.queue().memory_move(TARGET, source.iova(), 4096);
    demo.parent.forgive(1);
    let untouched = demo.vm1.holds(TARGET, 4096, 71)?;
    let device = demo
        .machine
        .iommu()
        .device(demo.parent_address)
        .context("the parent is gone")?;
    let unused = Pasid::new(device.max_pasids() - 1).context("the parent has no PASIDs")?;
    let mut port = device.port();
    let transfer = port.enter(Some(unused)).write(TARGET, &[0; 64]);
    let blocked = transfer.done == 0 && transfer.stop.is_some();
    Ok(verdict(
        parent.is_err() && untouched && blocked,
        format!(
            "queue 0 aimed at VM1's {TARGET:#x}: page fault; PASID {}: blocked",
            unused.get()
        ),
    ))
}

/// The memory of a VM, opened from outside by its file: it stays readable when the VM is gone.
fn memory_of(vm: &Guest) -> Result<File> {
    let fds = format!("/proc/{}/fd", vm.program()?);
    for entry in std::fs::read_dir(&fds).with_context(|| format!("reading {fds}"))? {
        let path = entry?.path();
        let is_memory = std::fs::read_link(&path)
            .is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"));
        let file = File::options().read(true).write(true).open(&path);
        if is_memory
            && let Ok(file) = file
            && file.metadata()?.len() == MEMORY_LEN as u64
        {
            return Ok(file);
        }
    }
    anyhow::bail!("no memory file of the VM in {fds}")
}

fn killed(demo: &mut Demo) -> Result<Result<String, String>> {
    const COPY: u32 = 1 << 20;
    let iommu = demo.machine.iommu().clone();
    let before = demo.parent.work();
    let mut vm2 = demo.vm2.take().context("VM2 is not running")?;
    let old = demo
        .vm2_domain()?
        .attachments()
        .into_iter()
        .find_map(|(_, pasid)| pasid);
    let memory = memory_of(&vm2)?;
    vm2.request(&Order::Pattern {
        iova: MEMORY,
        len: COPY.into(),
        seed: 13,
    })?;
    vm2.request(&Order::Flood {
        which: Which::Mdev,
        to: TARGET,
        from: MEMORY,
        len: COPY,
    })?;
    let domains = iommu.paging_domains();
    let start = Instant::now();
    let status = vm2.kill()?;
    wait_for("VM2's domain to go", || {
        iommu.paging_domains() == domains - 1
    })?;
    let released = start.elapsed();
    // Zeros over what the copies left: whatever is written from now on would show.
    let (half, len) = (MEMORY_LEN as u64 / 2, COPY as usize);
    memory
        .write_all_at(&vec![0; len], half)
        .context("writing the dead VM's memory")?;
    std::thread::sleep(Duration::from_millis(50));
    let mut found = vec![1; len];
    memory.read_exact_at(&mut found, half)?;
    let quiet = found.iter().all(|byte| *byte == 0);
    // The queue is pristine: the next VM finds it as the first one did.
    let mut next = Guest::start(demo.server.path(), "vm2")?;
    set_up_vm2(&mut next)?;
    let job = next.job(Which::Mdev, TARGET, MEMORY, 4096)?;
    demo.vm2 = Some(next);
    let new = demo
        .vm2_domain()?
        .attachments()
        .into_iter()
        .find_map(|(_, pasid)| pasid);
    let after = demo.parent.work();
    let number = |pasid: Option<Pasid>| pasid.map_or(0, Pasid::get);
    Ok(verdict(
        quiet && job.0 == 1 && after.errors == before.errors && !status.success(),
        format!(
            "SIGKILL among 1 MiB copies; released in {} ms, silence afterwards; the next VM took \
             the queue (PASID {} then, {} now)",
            released.as_millis(),
            number(old),
            number(new),
        ),
    ))
}
