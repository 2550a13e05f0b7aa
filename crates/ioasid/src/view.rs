//! A machine as the supervisor wants it, with what `run` and `serve` add to it.

use std::sync::Arc;

use ioasid_machine::Machine;
use ioasid_selftest::SelfTest;
use ioasid_supervisor::{BuiltMachine, Harness, MachineView};
use ioasid_vfio_user::Server;

use crate::trace::Tracing;

/// Where a test looks whether the kernel can make allocations fail, in the debug file system, and
/// what it sets there. Here they always may fail, and nothing is logged about it.
const FAULT_INJECTION: [(&str, &str); 5] = [
    ("failslab/ignore-gfp-wait", "N\n"),
    ("failslab/verbose", "0\n"),
    ("fail_page_alloc/ignore-gfp-wait", "N\n"),
    ("fail_page_alloc/ignore-gfp-highmem", "N\n"),
    ("fail_page_alloc/verbose", "0\n"),
];

/// `machine` alone.
pub(crate) fn of(machine: &Arc<Machine>) -> Arc<dyn MachineView> {
    traced(machine, None)
}

/// `machine`; calls of programs go to `tracing`, if there is one.
pub(crate) fn traced(machine: &Arc<Machine>, tracing: Option<&Tracing>) -> Arc<dyn MachineView> {
    Arc::new(built(machine, tracing))
}

fn built(machine: &Arc<Machine>, tracing: Option<&Tracing>) -> BuiltMachine {
    BuiltMachine::new(machine).with_recorder(tracing.map(Tracing::recorder))
}

/// `machine` with the kernel's self-test beside it.
pub(crate) fn with_selftest(
    machine: &Arc<Machine>,
    tracing: Option<&Tracing>,
) -> Arc<dyn MachineView> {
    let harness = Harness {
        extension: Arc::new(SelfTest),
        files: ("kernel/debug", &FAULT_INJECTION),
    };
    Arc::new(built(machine, tracing).with_harness(harness))
}

/// `machine`, whose devices `server` offers to virtual machines too.
pub(crate) fn serving(
    machine: &Arc<Machine>,
    tracing: Option<&Tracing>,
    server: &Arc<Server>,
) -> Arc<dyn MachineView> {
    let server = Arc::clone(server);
    Arc::new(built(machine, tracing).with_vfio_user(server))
}
