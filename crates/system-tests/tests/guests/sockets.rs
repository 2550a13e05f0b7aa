//! Guests that have their devices by vfio-user: no `ioasid run`, and a server that has confined
//! itself.

use anyhow::{Result, ensure};
use ioasid_system_tests::{
    guests::{Board, Host, Memory},
    served::list,
};
use serde_json::Value as Json;

use super::checks::{
    FIRST, PDEV, SECOND, both_good, good, machine, no_faults, parent_jobs, second_goes_on, shown,
};

/// Mappings of a VM of the kind `memory`; each of its mappings is held by all `devices`.
pub(super) fn held_by_all(tree: &Json, vm: &str, devices: usize, memory: &str) -> Result<usize> {
    let vms = list(&tree["vfio_user"]["vms"]);
    let found: Vec<_> = vms.filter(|found| found["name"] == vm).collect();
    let [found] = found[..] else {
        anyhow::bail!("{vm} is there {} times", found.len());
    };
    ensure!(
        found["connections"] == devices,
        "{vm} has {} connections",
        found["connections"]
    );
    let mappings = found["mappings"].as_array().map_or(&[][..], Vec::as_slice);
    for mapping in mappings {
        ensure!(
            mapping["holders"] == devices,
            "not every device of {vm} holds {mapping}"
        );
    }
    let kind = mappings.iter().filter(|one| one["memory"] == memory);
    let count = kind.count();
    ensure!(count > 0, "{vm} has no memory of the kind `{memory}`");
    Ok(count)
}

/// Two guests, three devices of one parent and beside it, the parent's own driver at work.
pub(super) fn two_guests(host: &Host) -> Result<String> {
    let served = host.serve_sockets(&machine(host))?;
    let begin = || host.guest_at_sockets("vm1", Board::default(), &[FIRST, PDEV]);
    let mut first = begin()?;
    let mut second = host.guest_at_sockets("vm2", Board::default(), &[SECOND])?;
    let tree = both_good(host, &served, &mut first, &mut second)?;
    let mappings = held_by_all(&tree, "vm1", 2, "file")?;
    held_by_all(&tree, "vm2", 1, "file")?;
    let before = parent_jobs(&tree)?;

    // With SIGKILL: QEMU and whatever it has started.
    drop(first);
    second_goes_on(host, &served, &mut second)?;
    let mut first = begin()?;
    let report = first.next_report()?;
    for index in [0, 1] {
        good(host, &report, index)?;
    }
    let tree = served.inspect(host.installation())?;
    no_faults(&tree)?;
    let after = parent_jobs(&tree)?;
    ensure!(after > before, "the parent's driver did nothing meanwhile");
    first.quit()?;
    second.quit()?;
    served.wait_until_released(host.installation())?;
    Ok(format!(
        "three domains, {mappings} mappings of the first guest held once by two devices; {}; {after} \
         jobs of the parent, 0 faults",
        shown(host)
    ))
}

/// A guest that shares no memory, with two devices, and one whose memory is a file on a disk.
pub(super) fn private_memory(host: &Host) -> Result<String> {
    let served = host.serve_sockets(&machine(host))?;
    let board = |memory| Board {
        memory,
        ..Board::default()
    };
    let mut first = host.guest_at_sockets("vm1", board(Memory::Private), &[FIRST, PDEV])?;
    let mut second = host.guest_at_sockets("vm2", board(Memory::Disk), &[SECOND])?;
    let report = first.next_report()?;
    for index in [0, 1] {
        good(host, &report, index)?;
    }
    good(host, &second.next_report()?, 0)?;
    let tree = served.inspect(host.installation())?;
    no_faults(&tree)?;
    held_by_all(&tree, "vm1", 2, "socket")?;
    let disk = match host.disk_is_memory()? {
        true => "file",
        false => "socket",
    };
    held_by_all(&tree, "vm2", 1, disk)?;
    first.quit()?;
    second.quit()?;
    served.wait_until_released(host.installation())?;
    Ok(format!("DMA by messages to QEMU; {}", shown(host)))
}
