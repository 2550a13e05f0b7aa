//! A guest whose own driver and tools set up a DSA queue that is a part of another device.

use anyhow::{Context as _, Result, ensure};
use ioasid_system_tests::guests::{Board, Host};
use ioasid_testing::two_vms;
use serde_json::Value as Json;

use super::checks::{FIRST, eventually, no_faults};

/// The PASID that the parent's WQCFG holds for the queue of the first mediated device.
fn pasid_of_queue(tree: &Json) -> Option<u64> {
    let queue = &tree["devices"][0]["dsa"]["queues"][1];
    (queue["pasid_enabled"] == true)
        .then(|| queue["pasid"].as_u64())
        .flatten()
}

/// Debian's `accel-config` enables the device and its queue, for programs and then for the kernel. An
/// emulated processor has no MOVDIR64B, so the kernel is told that it has: nothing is submitted here.
pub(super) fn control_path(host: &Host) -> Result<String> {
    let served = host.serve_sockets(&two_vms("dsa"))?;
    let board = Board {
        words: "setcpuid=movdir64b iomem=relaxed",
        ..Board::default()
    };
    let mut guest = host.guest_at_sockets("vm1", board, &[FIRST])?;
    guest.next_report()?;
    let tree = served.inspect(host.installation())?;
    ensure!(
        pasid_of_queue(&tree).is_none(),
        "the queue has a PASID before the guest enables it"
    );

    let mut pasid = 0;
    for (kind, driver) in [("user", "user"), ("kernel", "dmaengine")] {
        let report = guest.order(&format!("idxd {kind} {driver}"))?;
        let said = report.log.join(" / ");
        let queue = report
            .queue
            .with_context(|| format!("the guest has no queue; it says: {said}"))?;
        ensure!(
            queue.state == "enabled",
            "the guest's queue is {queue:?}; the guest says: {said}"
        );
        // What the stock driver makes of a queue: a file for programs, or a DMA channel.
        let (node, channels) = match kind {
            "user" => ("/dev/dsa/wq0.0", 0),
            _ => ("none", 1),
        };
        ensure!(
            queue.node == node,
            "the guest's queue of type {kind} has the file {}; it says: {said}",
            queue.node
        );
        let function = report.functions.get("0000:01:00.0");
        ensure!(
            function.is_some_and(|function| {
                function.driver == "idxd" && function.channels == channels
            }),
            "the guest's driver should have {channels} DMA channels: {function:?}; it says: {said}"
        );
        // The fields PASID and PASID enable.
        ensure!(
            queue.usage & 0x4fff_ff00 == 0,
            "the guest reads {:#010x} in its WQCFG",
            queue.usage
        );
        let tree = served.inspect(host.installation())?;
        pasid = pasid_of_queue(&tree).context("no PASID is in the parent's WQCFG")?;
        ensure!(pasid > 0, "the queue has the PASID 0");
        ensure!(
            tree["devices"][0]["dsa"]["queues"][1]["state"] == "enabled",
            "the parent's queue is not enabled"
        );
        no_faults(&tree)?;
    }

    guest.quit()?;
    eventually(host, &served, |tree| {
        ensure!(pasid_of_queue(tree).is_none(), "the queue keeps its PASID");
        Ok(())
    })?;
    served.wait_until_released(host.installation())?;
    Ok(format!(
        "idxd is bound, accel-config enables the device and its queue: /dev/dsa/wq0.0 for programs, then a \
         DMA channel; PASID {pasid} is in the parent's WQCFG and hidden from the guest"
    ))
}
