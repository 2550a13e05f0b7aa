//! A device as a tree of named values.

use ioasid_core::{
    Pasid,
    inspect::{Inspect, Node, Value},
};

use crate::{
    config::{QueueConfig, QueueType},
    devices::device::DsaDevice,
    queues::queue::Queue,
    spec::WqState,
};

impl Inspect for DsaDevice {
    fn inspect(&self) -> Node {
        let state = self.state();
        let queues: Vec<Value> = state
            .queues
            .iter()
            .zip(self.queues())
            .map(|(queue, made)| inspect_queue(queue, made).into())
            .collect();
        let enabled = state.enabled;
        drop(state);
        Node::new()
            .with("model", "dsa")
            .with("address", self.device().address().to_string())
            .with("enabled", enabled)
            .with("engines", self.engines())
            .with("errors", self.endpoint.errors())
            .with("queues", Value::List(queues))
            .with("function", self.endpoint.function().inspect())
            .with("tlb", self.pool.tlb().map(|tlb| tlb.inspect()))
    }
}

/// One queue for the tree of named values.
fn inspect_queue(queue: &Queue, made: &QueueConfig) -> Node {
    let owner = match (queue.claim, made.mdev) {
        (Some(QueueType::Kernel), _) => "kernel",
        (Some(QueueType::User), _) => "user",
        (Some(QueueType::Mdev), _) => "mdev",
        (None, true) => "none (for mdevs)",
        (None, false) => "none",
    };
    let state = match (queue.state(), queue.claim) {
        (WqState::Enabled, _) => "enabled",
        (WqState::Disabled, Some(QueueType::Mdev)) => "locked",
        (WqState::Disabled, _) => "disabled",
    };
    let (waiting, under_way) = queue.depth();
    let stats = queue.stats;
    let pasid = queue.session.as_ref().and_then(|session| session.pasid);
    Node::new()
        .with("owner", owner)
        .with("state", state)
        .with("size", u64::from(made.size))
        .with("occupancy", waiting)
        .with("under_way", under_way)
        .with("waiting_for_pages", queue.parked())
        .with("pasid_enabled", pasid.is_some())
        .with("pasid", pasid.map(Pasid::get))
        .with("accepted", stats.accepted)
        .with("dropped", stats.dropped)
        .with("jobs", stats.ended)
        .with("failed", stats.failed)
        .with("aborted", stats.aborted)
        .with("bytes", stats.bytes)
        .with("faults", stats.faults)
}
