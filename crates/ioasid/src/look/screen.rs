//! What `ioasid inspect` shows: a machine on one screen. Lists are bounded; each says how many more there
//! are, and the path that shows them.

use std::fmt::{self, Display, Write as _};

use super::seen::{Device, Domain, Mdev, Seen, User};

/// Columns of a line.
const WIDTH: usize = 80;

/// Elements of each list that are shown.
const SHOWN: usize = 8;

/// Ranges of a domain that are shown.
const RANGES: usize = 4;

/// The screen.
pub(crate) fn screen(seen: &Seen) -> String {
    let mut text = Text::default();
    let whole = plural(seen.devices.len(), "device");
    let children = plural(seen.mdevs.len(), "mediated device");
    let pid = seen
        .pid
        .map_or(String::new(), |pid| format!(" (pid {pid})"));
    text.line(format!(
        "machine {}{pid}: {whole}, {children}, {} page tables",
        seen.name, seen.iommu.format
    ));
    programs(&mut text, seen);
    devices(&mut text, seen);
    domains(&mut text, seen);
    jobs(&mut text, seen);
    faults(&mut text, seen);
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: impl Display) {
        let _ = writeln!(self.0, "{line}");
    }

    /// `first`, and as many of `items` beside it as a line takes; the others on lines of their own,
    /// below the first item.
    fn wrapped(&mut self, first: &str, items: impl IntoIterator<Item = String>) {
        let indent = first.chars().count();
        let mut line = first.to_owned();
        let mut empty = true;
        for item in items {
            if !empty && line.chars().count() + 1 + item.chars().count() > WIDTH {
                self.line(line.trim_end());
                line = " ".repeat(indent);
                empty = true;
            }
            if !empty {
                line.push(' ');
            }
            line.push_str(&item);
            empty = false;
        }
        self.line(line.trim_end());
    }

    /// The first of `items`, and how many more there are.
    fn list<T>(&mut self, items: &[T], path: &str, mut show: impl FnMut(&mut Text, &T)) {
        for item in items.iter().take(SHOWN) {
            show(self, item);
        }
        if let Some(more) = items.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            self.line(format!("  and {more} more: --path {path}"));
        }
    }
}

fn programs(text: &mut Text, seen: &Seen) {
    text.line("programs");
    if seen.programs.is_empty() && connected(seen).is_empty() {
        text.line("  none");
    }
    text.list(&seen.programs, "programs", |text, program| {
        let vm = in_vm(program.vm.as_deref());
        let devices = match program.devices.is_empty() {
            true => String::new(),
            false => format!(" with {}", program.devices.join(" ")),
        };
        text.line(format!(
            "  {} (pid {}){vm}{devices}: {} open, {}",
            program.program,
            program.pid,
            plural(program.open_files, "file"),
            plural(program.requests, "call"),
        ));
    });
    text.list(
        &connected(seen),
        "vfio_user/sockets",
        |text, (node, user)| {
            let vm = in_vm(user.vm.as_deref());
            text.line(format!("  {user}{vm} with {node}"));
        },
    );
}

/// Virtual machines that are connected to a device's socket.
fn connected(seen: &Seen) -> Vec<(&str, User)> {
    let sockets = seen.vfio_user.iter().flat_map(|server| &server.sockets);
    let sockets = sockets.filter(|socket| socket.connected);
    let users = sockets.filter_map(|socket| Some((&*socket.node, seen.user(&socket.node)?)));
    users.collect()
}

fn devices(text: &mut Text, seen: &Seen) {
    text.line("devices");
    text.list(&seen.devices, "devices", |text, device| {
        let Device {
            address,
            model,
            driver,
            vm,
            ..
        } = device;
        let mut line = format!("  {address}  {model}, driver {driver}");
        match device.queues().len() {
            0 => {}
            count => {
                let _ = write!(line, ", {}", plural(count, "queue"));
            }
        }
        if let Some(node) = &device.node {
            let _ = write!(
                line,
                ": {node}{}, {}",
                in_vm(vm.as_deref()),
                used(seen, node)
            );
        }
        for (name, free) in seen
            .free_instances(address)
            .iter()
            .filter(|(_, free)| **free > 0)
        {
            let _ = write!(line, "; {free} more {name}");
        }
        text.line(line);
        let children: Vec<_> = seen.mdevs.iter().filter(|m| m.parent == *address).collect();
        text.list(&children, "mdevs", |text, mdev| child(text, seen, mdev));
    });
    let own = |mdev: &&Mdev| seen.devices.iter().all(|d| d.address != mdev.parent);
    let emulated: Vec<_> = seen.mdevs.iter().filter(own).collect();
    if !emulated.is_empty() {
        text.line("  emulated");
        text.list(&emulated, "mdevs", |text, mdev| child(text, seen, mdev));
    }
}

fn child(text: &mut Text, seen: &Seen, mdev: &Mdev) {
    let Mdev {
        uuid,
        node,
        vm,
        type_name,
        ..
    } = mdev;
    let what = match mdev.queue() {
        Some(queue) => format!("queue {queue}"),
        None => type_name.clone(),
    };
    let vm = in_vm(vm.as_deref());
    text.line(format!(
        "    {uuid}  {what}: {node}{vm}, {}",
        used(seen, node)
    ));
}

fn used(seen: &Seen, node: &str) -> String {
    match seen.user(node) {
        Some(User { pid: Some(pid), .. }) => format!("pid {pid}"),
        Some(_) => "in use".to_owned(),
        None => "free".to_owned(),
    }
}

fn domains(text: &mut Text, seen: &Seen) {
    text.line("domains");
    let paging = seen.paging();
    if paging.is_empty() {
        text.line("  none");
    }
    text.list(&paging, "iommu/domains", |text, domain| {
        routes(text, domain, "  ");
        let shown = &domain.mapped[..domain.mapped.len().min(RANGES)];
        let left = shown.iter().fold(domain.mapped_bytes, |left, range| {
            left.saturating_sub(range.len())
        });
        let mut ranges: Vec<_> = shown.iter().map(ToString::to_string).collect();
        if left > 0 {
            ranges.push(format!("and {} more", bytes(left)));
        }
        let mapped = format!("    {} mapped ", bytes(domain.mapped_bytes));
        text.wrapped(&mapped, ranges);
        moved(text, domain, "    ");
        text.list(&seen.nested_on(domain), "iommu/domains", |text, nested| {
            routes(text, nested, "    ");
            if let Some(table) = nested.first_stage {
                text.line(format!("      {table}"));
            }
            moved(text, nested, "      ");
        });
    });
}

fn routes(text: &mut Text, domain: &Domain, indent: &str) {
    let routes = domain.routes.iter().map(|route| format!("[{route}]"));
    let first = format!("{indent}domain {} ({}) : ", domain.id, domain.kind);
    text.wrapped(&first, routes);
}

fn moved(text: &mut Text, domain: &Domain, indent: &str) {
    if domain.dma_operations > 0 {
        let moved = bytes(domain.dma_bytes);
        text.line(format!("{indent}{moved} moved by DMA"));
    }
}

fn jobs(text: &mut Text, seen: &Seen) {
    text.line("jobs");
    let mut busy = Vec::new();
    for device in &seen.devices {
        let queues = device.queues().into_iter();
        let queues = queues.filter(|queue| queue.jobs + queue.waiting > 0);
        busy.extend(queues.map(|queue| (device, queue)));
    }
    if busy.is_empty() {
        text.line("  none");
    }
    text.list(&busy, "devices", |text, (device, queue)| {
        text.line(format!(
            "  {} queue {} ({}): {}, {} failed, {} waiting, {}",
            device.address,
            queue.index,
            queue.owner,
            plural(queue.jobs, "job"),
            queue.failed,
            queue.waiting,
            bytes(queue.bytes),
        ));
    });
    if seen.iommu.page_requests > 0 {
        text.line(format!(
            "  {} wait for an answer",
            plural(seen.iommu.page_requests, "page request")
        ));
    }
}

fn faults(text: &mut Text, seen: &Seen) {
    let (count, held) = seen.faults();
    text.line(format!("faults : {count}"));
    text.list(&held, "iommu/devices", |text, fault| {
        text.line(format!("  {fault}"))
    });
}

fn in_vm(vm: Option<&str>) -> String {
    vm.map_or(String::new(), |vm| format!(" of {vm}"))
}

fn plural(count: impl TryInto<u64>, what: &str) -> impl Display {
    let count = count.try_into().unwrap_or(u64::MAX);
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// A size, exact if it is a whole number of its unit: `52 KiB`, `4097 B`.
pub(crate) fn bytes(count: u64) -> Bytes {
    Bytes(count)
}

/// See [`bytes`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let unit = units.iter().find(|(shift, _)| self.0 >> shift > 0);
        match unit {
            None => write!(f, "{} B", self.0),
            Some((shift, unit)) if self.0.trailing_zeros() >= *shift => {
                write!(f, "{} {unit}", self.0 >> shift)
            }
            Some((shift, unit)) => {
                let tenths = (u128::from(self.0) * 10) >> shift;
                write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
            }
        }
    }
}
