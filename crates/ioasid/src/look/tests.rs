//! A machine in this process, idle and in use, as each way of looking shows it.

use std::{path::Path, sync::Arc, time::Duration};

use ioasid_core::{
    Prot,
    host::{Caller, FdError, IrqSink, StdSpawner},
    inspect::{Inspect, Node},
    memory::{MemoryGone, OwnPages, PageSource, PinError},
};
use ioasid_iommu::Stop;
use ioasid_iommufd::{Context, HwptAlloc, HwptFlags, MapArgs, ObjectId, UserData};
use ioasid_machine::{Machine, MachineFile};
use ioasid_supervisor::{ControlServer, control};
use ioasid_vfio::DeviceFile;
use ratatui::{Terminal, backend::TestBackend};
use serde_json::Value as Json;

use super::{
    graph::{Graph, dot, svg},
    list,
    screen::screen,
    seen::Seen,
    top::{Moment, draw},
    tree,
};
use crate::view;

const SCHEMA: &str = include_str!("../../../../docs/inspect.schema.json");

/// Where the guests' memory is.
const MEMORY: u64 = 4 << 30;

/// PCI_COMMAND in the configuration space of a device file, and what lets a device do DMA.
const COMMAND: u64 = (7 << 40) + 4;
const MASTER: [u8; 1] = [0x06];

/// A served machine.
struct Served {
    machine: Arc<Machine>,
    server: ControlServer,
    _folder: tempfile::TempDir,
}

impl Served {
    fn start() -> Served {
        let machine =
            Machine::build("scene", &MachineFile::default_machine(), &StdSpawner).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("scene.sock");
        let server = ControlServer::start(view::of(&machine), socket).unwrap();
        Served {
            machine,
            server,
            _folder: folder,
        }
    }

    fn node(&self) -> Node {
        control::inspect(self.server.path()).unwrap()
    }

    fn seen(&self) -> Seen {
        Seen::new(&self.node()).unwrap()
    }

    /// A program of `vm` that has attached every device of it to one IOAS with `len` bytes of memory.
    fn use_devices(&self, vm: &str, pid: u64, len: u64) -> Vmm {
        let context = self.machine.new_context();
        let ioas = context.ioas_alloc().unwrap();
        let space = self.machine.iommu().space();
        let pages = OwnPages::new(space, usize::try_from(len).unwrap()).unwrap();
        let args = MapArgs::fixed(MEMORY, len, Prot::RW);
        context.ioas_map(ioas, Arc::new(pages), args).unwrap();
        let nodes = self.machine.nodes(Some(vm));
        let files = nodes.iter().map(|node| {
            let file = node.device.open().unwrap();
            file.bind(&context).unwrap();
            file.attach(ioas, None).unwrap();
            file
        });
        let program = Arc::new(Program {
            name: format!("vmm-{vm}"),
            pid,
            vm: vm.to_owned(),
            devices: nodes.iter().map(|node| node.name.clone()).collect(),
        });
        let vmm = Vmm {
            files: files.collect(),
            context,
            ioas,
            program: program.clone(),
        };
        let program: Arc<dyn Inspect + Send + Sync> = program;
        self.server.show(&program);
        vmm
    }
}

struct Vmm {
    files: Vec<Arc<DeviceFile>>,
    context: Arc<Context>,
    ioas: ObjectId,
    program: Arc<Program>,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.files.iter().for_each(|file| file.close());
        self.context.close();
    }
}

/// What a session shows of its program.
#[derive(Debug)]
struct Program {
    name: String,
    pid: u64,
    vm: String,
    devices: Vec<String>,
}

impl Inspect for Program {
    fn inspect(&self) -> Node {
        Node::new()
            .with("program", self.name.as_str())
            .with("pid", self.pid)
            .with("vm", self.vm.as_str())
            .with("requests", 100_000_u64)
            .with("open_files", self.devices.len() + 1)
            .with("devices", self.devices.clone())
    }
}

/// The scene: a parent whose own driver is there, and two virtual machines on its other queues.
fn scene(served: &Served) -> [Vmm; 2] {
    [
        served.use_devices("vm1", 101, 32 << 20),
        served.use_devices("vm2", 202, 16 << 20),
    ]
}

/// A program whose memory is one `struct iommu_hwpt_vtd_s1`, at any address.
#[derive(Debug)]
struct StageOne([u8; 24]);

impl StageOne {
    fn at(root: u64) -> Self {
        let mut bytes = [0; 24];
        bytes[8..16].copy_from_slice(&root.to_ne_bytes());
        bytes[16..20].copy_from_slice(&48_u32.to_ne_bytes());
        StageOne(bytes)
    }
}

impl Caller for StageOne {
    fn read(&self, _: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        dst.copy_from_slice(&self.0[..dst.len()]);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), MemoryGone> {
        Err(MemoryGone { done: 0 })
    }

    fn pages(&self, _: u64, _: u64) -> Result<Arc<dyn PageSource>, PinError> {
        Err(PinError::Fault)
    }

    fn file_pages(&self, _: i32, _: u64, _: u64) -> Result<Arc<dyn PageSource>, FdError> {
        Err(FdError::NotOpen)
    }

    fn eventfd(&self, _: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        Err(FdError::NotOpen)
    }
}

/// A VMM with a virtual IOMMU: its whole device translates by a table of the guest, itself and at PASID 1.
fn nest(served: &Served) -> Vmm {
    let context = served.machine.new_context();
    let ioas = context.ioas_alloc().unwrap();
    let nodes = served.machine.nodes(Some("vm1"));
    let whole = nodes.iter().find_map(|node| {
        let file = node.device.open().unwrap();
        let id = file.bind(&context).unwrap();
        match context.hw_info(id).unwrap().max_pasid_log2 {
            0 => {
                file.close();
                None
            }
            _ => Some((file, id, node.name.clone())),
        }
    });
    let (file, device, node) = whole.unwrap();
    let flags = HwptFlags::NEST_PARENT.with(HwptFlags::PASID);
    let parent = HwptAlloc::new(device, ioas).with_flags(flags);
    let parent = context.hwpt_alloc(parent).unwrap();
    let table = StageOne::at(0x7000);
    let data = UserData::new(&table, 1, 0x1000, 24);
    let nested = HwptAlloc::new(device, parent).with_flags(HwptFlags::PASID);
    let nested = context.hwpt_alloc_with(nested, Some(&data)).unwrap();
    file.attach(nested, None).unwrap();
    let pasid = file.user_pasids().unwrap().pasid(1);
    file.attach(nested, Some(pasid)).unwrap();
    let program = Arc::new(Program {
        name: "vmm-vm1".to_owned(),
        pid: 101,
        vm: "vm1".to_owned(),
        devices: vec![node],
    });
    let shown: Arc<dyn Inspect + Send + Sync> = program.clone();
    served.server.show(&shown);
    Vmm {
        files: vec![file],
        context,
        ioas,
        program,
    }
}

/// A fault of a device that a VM has: nothing is mapped there.
fn fault(served: &Served, vmm: &Vmm) {
    let ioas = served.seen().iommufds[0].ioas[0].id;
    assert_eq!(ioas, u64::from(vmm.ioas.get()));
    let domains = served.machine.iommu().domains();
    let unmanaged =
        |domain: &&Arc<ioasid_iommu::Domain>| domain.kind() == ioasid_iommu::DomainKind::Unmanaged;
    let domain = domains.iter().find(unmanaged).unwrap();
    let (address, pasid) = domain.attachments()[0];
    let devices = served.machine.iommu().devices();
    let device = devices
        .iter()
        .find(|device| device.address() == address)
        .unwrap();
    for file in &vmm.files {
        file.write(COMMAND, &MASTER).unwrap();
    }
    let mut port = device.port();
    let mut guard = port.enter(pasid);
    match guard.write(0xdead_0000, &[1; 64]).stop {
        Some(Stop::Fault(fault)) => guard.report(&fault),
        other => panic!("{other:?}"),
    }
}

fn valid(node: &Node) {
    let schema: Json = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let json: Json = serde_json::from_str(&tree::to_json_text(node)).unwrap();
    let errors: Vec<_> = validator.iter_errors(&json).collect();
    let errors: Vec<_> = errors
        .iter()
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn the_schema_is_one_and_describes_an_idle_machine_and_one_in_use() {
    let schema: Json = serde_json::from_str(SCHEMA).unwrap();
    jsonschema::draft202012::meta::validate(&schema).unwrap();
    let served = Served::start();
    valid(&served.node());
    let vmms = scene(&served);
    let busy = crate::demo::parent::keep_busy(&served.machine).unwrap();
    fault(&served, &vmms[0]);
    while jobs(&served.seen()) == 0 {
        std::thread::yield_now();
    }
    let node = served.node();
    valid(&node);
    assert_eq!(Seen::new(&node).unwrap().faults().0, 1);
    drop(busy);
}

#[test]
fn the_schema_refuses_a_field_that_vanishes_one_that_is_new_and_a_number_that_is_text() {
    let schema: Json = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let good: Json = serde_json::from_str(&tree::to_json_text(&Served::start().node())).unwrap();
    assert!(validator.is_valid(&good));
    let mut bad = good.clone();
    bad["devices"][0].as_object_mut().unwrap().remove("vm");
    assert!(!validator.is_valid(&bad));
    let mut bad = good.clone();
    bad["iommu"]["domains"][0]["new"] = 1.into();
    assert!(!validator.is_valid(&bad));
    let mut bad = good.clone();
    bad["iommu"]["domains"][0]["mapped_bytes"] = "4096".into();
    assert!(!validator.is_valid(&bad));
}

fn jobs(seen: &Seen) -> u64 {
    let queues = seen.devices.iter().flat_map(|device| device.queues());
    queues.map(|queue| queue.jobs).sum()
}

fn fits(text: &str) {
    let long: Vec<_> = text
        .lines()
        .filter(|line| line.chars().count() > 80)
        .collect();
    assert!(
        long.is_empty(),
        "longer than 80 columns:\n{}",
        long.join("\n")
    );
    let lines = text.lines().count();
    assert!(lines <= 24, "{lines} lines:\n{text}");
}

#[test]
fn an_idle_default_machine_fits_a_terminal_and_so_does_the_scene() {
    let served = Served::start();
    let idle = screen(&served.seen());
    fits(&idle);
    assert!(idle.contains("programs\n  none\n"), "{idle}");
    assert!(idle.contains("faults : 0\n"), "{idle}");
    let _vmms = scene(&served);
    let text = screen(&served.seen());
    fits(&text);
    let domain = text
        .lines()
        .find(|line| line.contains("domain 2 (unmanaged) : ["))
        .unwrap();
    assert!(domain.contains(" PASID 1]"), "{text}");
    assert!(
        text.contains("    32 MiB mapped 0x100000000-0x101ffffff\n"),
        "{text}"
    );
    assert!(text.contains("vfio1 of vm1, pid 101\n"), "{text}");
}

#[test]
fn the_screen_shows_a_fault_with_its_source_and_reason() {
    let served = Served::start();
    let vmms = scene(&served);
    fault(&served, &vmms[0]);
    let text = screen(&served.seen());
    assert!(text.contains("faults : 1\n"), "{text}");
    assert!(text.contains(": write at 0xdead0000: "), "{text}");
}

#[test]
fn the_screen_says_how_many_more_there_are() {
    let served = Served::start();
    let programs: Vec<_> = (0..20)
        .map(|pid| {
            Arc::new(Program {
                name: "client".to_owned(),
                pid,
                vm: "vm1".to_owned(),
                devices: Vec::new(),
            }) as Arc<dyn Inspect + Send + Sync>
        })
        .collect();
    programs
        .iter()
        .for_each(|program| served.server.show(program));
    let text = screen(&served.seen());
    assert!(text.contains("  and 12 more: --path programs\n"), "{text}");
    drop(programs);
    assert!(screen(&served.seen()).contains("programs\n  none\n"));
}

#[test]
fn the_list_has_the_same_columns_everywhere_and_says_who_uses_what() {
    let served = Served::start();
    let columns = |text: &str| -> Vec<Vec<String>> {
        let words = |line: &str| line.split_whitespace().map(ToOwned::to_owned).collect();
        text.lines().map(words).collect()
    };
    let idle = columns(&list::list(&served.seen()));
    assert!(idle.iter().all(|row| row.len() == 9), "{idle:?}");
    let vmms = scene(&served);
    let used = columns(&list::list(&served.seen()));
    assert!(used.iter().all(|row| row.len() == 9), "{used:?}");
    for device in &vmms[1].program.devices {
        let path = format!("/dev/vfio/devices/{device}");
        let find =
            |rows: &[Vec<String>]| rows.iter().find(|row| row[5] == path).unwrap()[6..].to_vec();
        assert_eq!(find(&idle), ["free", "-", "-"]);
        assert_eq!(find(&used), ["used", "202", "vmm-vm2"]);
    }
    let host: Vec<_> = idle.iter().filter(|row| row[6] == "host").collect();
    assert_eq!(host.len(), 1, "the parent belongs to its driver: {idle:?}");
    assert_eq!(host[0][5], "-");
}

#[test]
fn the_live_view_shows_programs_devices_and_the_rate_of_dma() {
    let served = Served::start();
    let _vmms = scene(&served);
    let mut terminal = Terminal::new(TestBackend::new(100, 40)).unwrap();
    let before = served.seen();
    let mut after = before.clone();
    let dma = after
        .iommu
        .domains
        .iter_mut()
        .find(|domain| domain.kind == "dma")
        .unwrap();
    dma.dma_bytes += 6 << 20;
    let moment = Moment::first(before).then(after, Duration::from_secs(2));
    terminal.draw(|frame| draw(frame, &moment)).unwrap();
    let shown = terminal.backend().to_string();
    for words in [
        "machine scene",
        "q quits",
        "vmm-vm1",
        "vmm-vm2",
        "kernel",
        "3 MiB",
        "faults: 0",
    ] {
        assert!(shown.contains(words), "no {words:?} in\n{shown}");
    }
    let mut small = Terminal::new(TestBackend::new(20, 3)).unwrap();
    small.draw(|frame| draw(frame, &moment)).unwrap();
}

/// Compares `text` with a file of the documentation, or writes it there if IOASID_BLESS is set.
fn as_committed(text: &str, file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(file);
    if std::env::var_os("IOASID_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, committed, "IOASID_BLESS=1 writes {}", path.display());
}

#[test]
fn the_graph_of_the_scene_is_the_one_in_the_documentation() {
    let served = Served::start();
    let _vmms = scene(&served);
    let graph = Graph::new(&served.seen());
    assert_eq!(
        (graph.users.len(), graph.spaces.len(), graph.domains.len()),
        (3, 3, 3)
    );
    // VM1 reaches its memory through two routes, which lead to one domain.
    let of = |domain: usize| {
        graph
            .routes
            .iter()
            .filter(|(from, _)| *from == domain)
            .count()
    };
    assert_eq!([0, 1, 2].map(of), [1, 2, 1]);
    as_committed(&svg::draw(&graph), "scene.svg");
    as_committed(&dot::draw(&graph), "scene.dot");
}

#[test]
fn a_nested_domain_is_seen_on_its_parent() {
    let served = Served::start();
    let vmm = nest(&served);
    let node = served.node();
    valid(&node);
    let seen = served.seen();
    let paging = seen.paging();
    let [parent] = paging
        .iter()
        .filter(|one| one.kind == "unmanaged")
        .collect::<Vec<_>>()[..]
    else {
        panic!("one domain of a VM: {paging:?}");
    };
    let [nested] = seen.nested_on(parent)[..] else {
        panic!("one nested domain: {seen:?}");
    };
    assert_eq!((parent.routes.len(), nested.routes.len()), (0, 2));
    let (parent, nested) = (parent.id, nested.id);

    let device = &seen
        .iommu
        .domains
        .iter()
        .find(|one| one.id == nested)
        .unwrap();
    let device = &device.routes[0].device;
    let text = screen(&seen);
    fits(&text);
    let lines = format!(
        "  domain {parent} (unmanaged) :\n    0 B mapped\n    \
         domain {nested} (nested) : [{device}] [{device} PASID 1]\n      \
         first stage at 0x7000, 48 bits\n"
    );
    assert!(text.contains(&lines), "{text}");

    let mut terminal = Terminal::new(TestBackend::new(120, 40)).unwrap();
    let moment = Moment::first(seen.clone());
    terminal.draw(|frame| draw(frame, &moment)).unwrap();
    let shown = terminal.backend().to_string();
    assert!(shown.contains(&format!("nested on {parent}")), "{shown}");

    let graph = Graph::new(&seen);
    assert_eq!((graph.stages.len(), graph.nested_routes.len()), (1, 2));
    let dot = dot::draw(&graph);
    let domain = graph.stages[0].0;
    assert!(dot.contains(&format!("d{domain} -> n0;")), "{dot}");
    assert!(
        dot.contains("n0 -> p2:l0;") && dot.contains("n0 -> p2:l2;"),
        "{dot}"
    );
    let svg = svg::draw(&graph);
    assert!(svg.contains(">first stages<") && svg.contains(">first stage at 0x7000, 48 bits<"));
    drop(vmm);
    assert!(!svg::draw(&Graph::new(&served.seen())).contains("first stages"));
}

#[test]
fn names_cannot_break_out_of_the_picture() {
    let block = |title: &str| super::graph::Block {
        title: title.to_owned(),
        lines: vec!["a\"b\\c{d}|<e>&\u{1b}[0m".to_owned()],
    };
    let graph = Graph {
        users: vec![block("<script>")],
        devices: vec![block("x\"]; y [label=\"")],
        ..Graph::default()
    };
    let svg = svg::draw(&graph);
    assert!(!svg.contains("<script>") && svg.contains("&lt;script&gt;") && !svg.contains('\u{1b}'));
    let dot = dot::draw(&graph);
    assert!(
        dot.contains(r#"<l0> x\"]; y [label=\""#) && !dot.contains('\u{1b}'),
        "{dot}"
    );
}
