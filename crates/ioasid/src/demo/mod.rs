//! `ioasid demo`: one parent device with three queues, two VMs, three address spaces.
//!
//! The machine lives in this process; each VM is a process of its own that joined it through
//! `ioasid run --join` and uses the ABI alone. Domains and routes are read from the IOMMU
//! itself; every claim is checked, and says what was done.

mod claims;
mod guest;
mod order;
mod output;
pub(crate) mod parent;
mod snapshot;
pub(crate) mod vm;

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ioasid_core::{PciAddress, host::StdSpawner};
use ioasid_iommu::{Domain, Iommu};
use ioasid_machine::{Machine, MachineFile, models::dsa};
use ioasid_supervisor::ControlServer;

use crate::{
    cli::DemoArgs,
    trace::{self, Subject, Tracing},
    view,
};
use guest::Guest;
use order::{Order, Which};
use output::{Outcome, Output};
use parent::Parent;
use snapshot::Snapshots;

/// IOVA of each VM's memory.
const MEMORY: u64 = 4 << 30;
/// Bytes of each VM's memory: the source of a copy is its first half.
const MEMORY_LEN: usize = 32 << 20;
/// IOVA of each VM's completion records.
const RECORDS: u64 = 1 << 20;
/// Bytes of an area of completion records.
const RECORDS_LEN: usize = 8192;
/// Where the pdev's records start in that area; the mdev's start at 0.
const PDEV_RECORDS: u64 = 4096;

/// `ioasid demo`: 0 if every claim holds.
pub(crate) fn run(args: &DemoArgs) -> Result<u8> {
    let start = Instant::now();
    let mut output = Output::new(args.json);
    output.title(
        "ioasid demo: one parent device, three queues, two VMs",
        &[
            "No IOMMU, no accelerator, no kernel module: the machine is in this process,",
            "each VM is a process that uses /dev/iommu and /dev/vfio as on real hardware.",
        ],
    );
    let mut demo = Demo::set_up(args.trace.as_deref(), &mut output)?;
    let tracing = demo.tracing.take();
    claims::check(&mut demo, &mut output)?;
    demo.take_down(&mut output)?;
    tracing.map_or(Ok(()), Tracing::finish)?;
    Ok(u8::from(output.finish(start.elapsed().as_secs_f64())? > 0))
}

/// The running machine and what uses it.
struct Demo {
    machine: Arc<Machine>,
    tracing: Option<Tracing>,
    server: ControlServer,
    snapshots: Snapshots,
    parent: Parent,
    vm1: Guest,
    vm2: Option<Guest>,
    parent_address: PciAddress,
    pdev_address: PciAddress,
    /// Paging domains after each step, and what each attach reported.
    history: History,
}

/// What the set-up measured for the claims.
#[derive(Debug, Default)]
struct History {
    domains: Vec<usize>,
    vm1_page_tables: [u64; 2],
    /// Table pages of VM1's domain with one and with two devices.
    vm1_table_pages: [u64; 2],
}

impl Demo {
    fn set_up(trace: Option<&Path>, output: &mut Output) -> Result<Self> {
        let machine = Machine::build("demo", &MachineFile::default_machine(), &StdSpawner)?;
        let socket = std::env::temp_dir().join(format!("ioasid-demo-{}.sock", std::process::id()));
        let subject = Subject {
            program: &[],
            machine: trace::source(None, &[])?,
            selftest: false,
            enforce_memlock: false,
        };
        let tracing = Tracing::start(trace, false, &machine, subject)?;
        let server = ControlServer::start(view::traced(&machine, tracing.as_ref()), socket)?;
        let mut snapshots = Snapshots::new(machine.iommu().clone());
        let mut history = History::default();

        let (parent_address, host) = machine
            .host_drivers::<dsa::Host>()
            .next()
            .context("the machine has no parent driver")?;
        let queue = host.queues().first();
        let queue = queue.context("the parent driver has no queue")?;
        let parent = Parent::start(Arc::clone(queue))?;
        let exports = machine.exports();
        let mut of_vm1 = exports
            .iter()
            .filter(|one| one.vm.as_deref() == Some("vm1"));
        let pdev_address = of_vm1
            .find_map(|one| one.name.parse().ok())
            .context("VM1 has no whole device")?;
        history.domains.push(machine.iommu().paging_domains());
        output.step(
            "The parent's driver works on queue 0, through the DMA API",
            &snapshots.take(),
        );

        let mut vm1 = Guest::start(server.path(), "vm1").context("starting VM1")?;
        vm1.request(&Order::Open).context(
            "VM1 cannot use /dev/iommu. `ioasid run` needs user and mount namespaces (or root) \
             and seccomp notification; see docs/limits.md",
        )?;
        vm1.request(&Order::Map {
            iova: MEMORY,
            len: MEMORY_LEN,
        })?;
        vm1.request(&Order::Map {
            iova: RECORDS,
            len: RECORDS_LEN,
        })?;
        history.vm1_page_tables[0] = vm1.number(&Order::Attach(Which::Mdev))?;
        history.domains.push(machine.iommu().paging_domains());
        history.vm1_table_pages[0] = newest(machine.iommu())?.table_pages();
        output.step(
            "VM1 attaches its mediated device: queue 1 of the parent",
            &snapshots.take(),
        );

        history.vm1_page_tables[1] = vm1.number(&Order::Attach(Which::Pdev))?;
        history.domains.push(machine.iommu().paging_domains());
        history.vm1_table_pages[1] = newest(machine.iommu())?.table_pages();
        output.step(
            "VM1 attaches a whole device to the same address space",
            &snapshots.take(),
        );

        let mut vm2 = Guest::start(server.path(), "vm2").context("starting VM2")?;
        set_up_vm2(&mut vm2)?;
        history.domains.push(machine.iommu().paging_domains());
        output.step(
            "VM2 attaches its mediated device: queue 2 of the parent",
            &snapshots.take(),
        );

        for (which, first) in [(Which::Mdev, 0), (Which::Pdev, PDEV_RECORDS)] {
            vm1.request(&Order::BringUp {
                which,
                records: RECORDS,
                first,
            })?;
        }
        Ok(Demo {
            machine,
            tracing,
            server,
            snapshots,
            parent,
            vm1,
            vm2: Some(vm2),
            parent_address,
            pdev_address,
            history,
        })
    }

    /// Every VM leaves; the parent's domain is what remains.
    fn take_down(mut self, output: &mut Output) -> Result<()> {
        self.vm1.exit()?;
        if let Some(vm2) = self.vm2.take() {
            vm2.exit()?;
        }
        let iommu = self.machine.iommu().clone();
        wait_for("the domains of both VMs to go", || {
            iommu.paging_domains() == 1
        })?;
        output.step("Both VMs have left", &self.snapshots.take());
        output.heading("Afterwards");
        let mut counts = self.history.domains.clone();
        counts.push(iommu.paging_domains());
        let shown: Vec<_> = counts.iter().map(usize::to_string).collect();
        output.claim(Outcome {
            claim: "A domain comes with the first attach that needs it, goes with the last",
            result: verdict(
                counts == [1, 2, 2, 3, 1],
                format!(
                    "domains that hold a page table, step by step: {}",
                    shown.join(", ")
                ),
            ),
        });
        let work = self.parent.stop();
        output.claim(Outcome {
            claim: "The parent's own driver worked through all of it, without a single fault",
            result: verdict(
                work.jobs > 0 && work.errors == 0 && work.faults == 0,
                format!(
                    "{} jobs on queue 0, {} errors, {} faults",
                    work.jobs, work.errors, work.faults
                ),
            ),
        });
        drop(self.server);
        Ok(())
    }

    fn vm2(&mut self) -> Result<&mut Guest> {
        self.vm2.as_mut().context("VM2 is not running")
    }

    /// The domain with a route of `device` and, as `with_pasid` says, with or without a PASID.
    fn domain_of(&self, device: PciAddress, with_pasid: bool, skip: usize) -> Result<Arc<Domain>> {
        let mut domains = self.machine.iommu().domains();
        domains.retain(|domain| {
            domain.kind().is_paging()
                && domain
                    .attachments()
                    .iter()
                    .any(|(found, pasid)| *found == device && pasid.is_some() == with_pasid)
        });
        domains.sort_by_key(|domain| domain.id());
        domains
            .into_iter()
            .nth(skip)
            .with_context(|| format!("no domain of {device}"))
    }

    fn vm1_domain(&self) -> Result<Arc<Domain>> {
        self.domain_of(self.pdev_address, false, 0)
    }

    fn vm2_domain(&self) -> Result<Arc<Domain>> {
        let vm1 = self.vm1_domain()?.id();
        let first = self.domain_of(self.parent_address, true, 0)?;
        if first.id() == vm1 {
            self.domain_of(self.parent_address, true, 1)
        } else {
            Ok(first)
        }
    }
}

/// VM2 from nothing to ready: memory, records, its mediated device.
fn set_up_vm2(vm2: &mut Guest) -> Result<()> {
    vm2.request(&Order::Open)?;
    vm2.request(&Order::Map {
        iova: MEMORY,
        len: MEMORY_LEN,
    })?;
    vm2.request(&Order::Map {
        iova: RECORDS,
        len: RECORDS_LEN,
    })?;
    vm2.request(&Order::Attach(Which::Mdev))?;
    vm2.request(&Order::BringUp {
        which: Which::Mdev,
        records: RECORDS,
        first: 0,
    })?;
    Ok(())
}

fn newest(iommu: &Arc<Iommu>) -> Result<Arc<Domain>> {
    let domains = iommu
        .domains()
        .into_iter()
        .filter(|domain| domain.kind().is_paging());
    domains
        .max_by_key(|domain| domain.id())
        .context("there is no domain")
}

/// A claim's result: the same words whether it holds or not.
fn verdict(holds: bool, text: String) -> Result<String, String> {
    if holds { Ok(text) } else { Err(text) }
}

/// Waits for something that another process or thread brings about.
fn wait_for(what: impl fmt::Display, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        ensure!(Instant::now() < deadline, "waited 60 s for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
