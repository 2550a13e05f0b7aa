//! What an ioctl costs a program that runs under the supervisor.
//!
//! The programs are this executable again. One runs on the supervisor as every program does; the
//! bare one has the same filter, and whoever answers it reads the structure, writes it back, and does
//! nothing else. Time is the processor time of both sides together: they take turns, so on an idle
//! machine that is the time that passes.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::{
        fd::AsFd,
        unix::{
            fs::FileExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};
use ioasid_core::{inspect::Node, memory::PAGE_SIZE as PAGE, spa::SpaSpace};
use ioasid_iommu::{Iommu, IommuConfig};
use ioasid_iommufd::Context;
use ioasid_supervisor::{
    MachineView, Mmio, RunOptions, SysfsEntry, VfioNode,
    filter::{self, Scope},
    launch,
    listener::Listener,
    run,
    wire::Channel,
};
use ioasid_trace::{
    Recorder,
    record::{JsonLines, MachineObserver},
    schema::{Header, Host, MachineSource, VERSION},
};
use iommufd_bindings::iommufd::{iommu_ioas_alloc, iommu_ioas_map, iommu_ioas_unmap};
use iommufd_ioctls::IommuFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    clock::{process_cpu, wall_clock},
    measure::{Contender, Effort, Table, measure},
    program_memory, registers,
};

/// Where mappings begin.
const BASE: u64 = 1 << 32;
/// Flags of a mapping: readable, writable; and at a given address.
const RW: u32 = 6;
pub(crate) const FIXED_RW: u32 = 7;

/// Mappings before all are unmapped.
const PAGES: u64 = 65_536;

/// The words for the two programs.
const BARE: &str = "__bare";
pub(crate) const CLIENT: &str = "__client";

/// Runs this executable as one of its programs, if that is what it was started for.
pub(crate) fn part() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    let first = words.next()?;
    let result = match first.to_str()? {
        launch::VERB => return Some(launch::main(words)),
        BARE => bare_program(&words.next()?.to_string_lossy(), Path::new(&words.next()?)),
        CLIENT => client(&words.next()?.to_string_lossy()),
        _ => return None,
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ioasid-bench: {error:#}");
            ExitCode::FAILURE
        }
    })
}

pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    let made = bare_table(effort).and_then(|bare| Ok(vec![bare, growth(effort)?, traced(effort)?]));
    made.unwrap_or_else(|error| {
        eprintln!("ioasid-bench: no table of interception: {error:#}");
        Vec::new()
    })
}

fn bare_table(effort: Effort) -> Result<Table> {
    let machine = Machine::view();
    let contenders = vec![
        Program::bare("map")?.contender("bare: one struct read and written"),
        Program::run(&machine, "map")?
            .contender("MAP of a page, UNMAP of all 65536")
            .goal(0, 1.3),
        Program::run(&machine, "map-anywhere")?.contender("the same, the IOVA not given"),
        Program::run(&machine, "unmap")?.contender("UNMAP of nothing"),
    ];
    let title = "interception, processor time of both sides";
    let table = measure(title, "ns/ioctl", effort, contenders);
    Ok(table.note("with the UNMAP; an answer that is what was asked is not written again"))
}

fn growth(effort: Effort) -> Result<Table> {
    let machine = Machine::view();
    let row = |mapped: u64, name: &str| -> Result<Contender<'static>> {
        let program = Program::run(&machine, &format!("among:{mapped}"))?;
        Ok(program.contender(name).per(2))
    };
    let contenders = vec![
        row(1 << 10, "among 1 Ki mappings")?,
        row(1 << 16, "among 64 Ki mappings")?.goal(0, 1.3),
        row(1 << 20, "among 1 Mi mappings")?.goal(0, 1.3),
    ];
    let title = "interception, MAP and UNMAP of a page in turn";
    Ok(measure(title, "ns/ioctl", effort, contenders))
}

/// What a trace costs a program: by the wall clock, as a thread of its own writes it.
fn traced(effort: Effort) -> Result<Table> {
    let task = "among:1024:time";
    let contenders = vec![
        Program::run(&Machine::view(), task)?.contender_of_time_there("not traced"),
        Program::run(&Machine::traced()?, task)?
            .contender_of_time_there("traced to a file")
            .goal(0, 1.5),
    ];
    let contenders = contenders.into_iter().map(|one| one.per(2)).collect();
    let title = "interception, time of MAP and UNMAP of a page in turn";
    let table = measure(title, "ns/ioctl", effort, contenders);
    Ok(table.note("the thread that writes the trace wants a processor of its own"))
}

/// A machine of no devices.
#[derive(Debug)]
struct Machine {
    iommu: Arc<Iommu>,
    recorder: Option<Arc<Recorder>>,
}

impl Machine {
    fn with(recorder: Option<Arc<Recorder>>) -> Arc<dyn MachineView> {
        let iommu = Iommu::new(IommuConfig::default());
        if let Some(recorder) = &recorder {
            iommu.watch().start(MachineObserver::new(recorder));
        }
        Arc::new(Machine { iommu, recorder })
    }

    fn view() -> Arc<dyn MachineView> {
        Machine::with(None)
    }

    /// One whose programs are traced to a file that is gone afterwards.
    fn traced() -> Result<Arc<dyn MachineView>> {
        let header = Header {
            schema: VERSION,
            program: Vec::new(),
            machine: MachineSource::Devices(Vec::new()),
            selftest: false,
            enforce_memlock: false,
            host: Host {
                ioasid: String::new(),
                kernel: String::new(),
                architecture: String::new(),
                processors: 0,
            },
            began: 0,
        };
        let sink = JsonLines::new(tempfile::tempfile().context("making a temporary file")?);
        Ok(Machine::with(Some(Recorder::start(
            header,
            vec![Box::new(sink)],
        )?)))
    }
}

impl MachineView for Machine {
    fn new_context(&self) -> Arc<Context> {
        Context::new(&self.iommu)
    }

    fn nodes(&self, _vm: Option<&str>) -> Vec<VfioNode> {
        Vec::new()
    }

    fn sysfs(&self, _vm: Option<&str>) -> Vec<SysfsEntry> {
        Vec::new()
    }

    fn space(&self) -> Arc<SpaSpace> {
        Arc::clone(self.iommu.space())
    }

    fn inspect(&self) -> Node {
        Node::new()
    }

    fn has_vm(&self, _vm: &str) -> bool {
        false
    }

    fn recorder(&self) -> Option<Arc<Recorder>> {
        self.recorder.clone()
    }
}

/// A program that does so many iterations when it is told to, and says what they took it.
pub(crate) struct Program {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _running: Running,
}

/// What keeps it alive.
enum Running {
    Alone(Child),
    Bare(Child),
    Supervised(Box<run::Running>),
}

impl Drop for Running {
    fn drop(&mut self) {
        let child = match self {
            Running::Alone(child) | Running::Bare(child) => child,
            Running::Supervised(running) => running.child(),
        };
        // It ends by itself when its input does; this is for one that does not.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Program {
    pub(crate) fn bare(task: &str) -> Result<Program> {
        let path = std::env::temp_dir().join(format!("ioasid-bench-{}", std::process::id()));
        let socket = UnixListener::bind(&path)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args([BARE, task])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ours = socket.accept()?.0;
        std::fs::remove_file(&path)?;
        let mut channel = Channel::new(ours);
        channel.receive::<()>(1 << 10)?;
        let listener = channel.take_fd().context("no listener came")?;
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/mem", child.id()))?;
        let listener = Listener::new(listener)?;
        thread::spawn(move || answer(&listener, &memory));
        channel.send(&(), None)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        Program::of(input, output, Running::Bare(child))
    }

    /// One that does not run here.
    pub(crate) fn plain(task: &str) -> Result<Program> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([CLIENT, task])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        Program::of(input, output, Running::Alone(child))
    }

    pub(crate) fn run(machine: &Arc<dyn MachineView>, task: &str) -> Result<Program> {
        Program::run_with(machine, task, Mmio::Auto)
    }

    pub(crate) fn run_with(
        machine: &Arc<dyn MachineView>,
        task: &str,
        mmio: Mmio,
    ) -> Result<Program> {
        let mut options = RunOptions::new(std::env::current_exe()?, [CLIENT, task]);
        options.mmio = mmio;
        options.stdin = Some(Stdio::piped());
        options.stdout = Some(Stdio::piped());
        let mut running = run::start(Arc::clone(machine), options)?;
        let (input, output) = (running.child().stdin.take(), running.child().stdout.take());
        Program::of(input, output, Running::Supervised(Box::new(running)))
    }

    fn of(
        input: Option<ChildStdin>,
        output: Option<ChildStdout>,
        running: Running,
    ) -> Result<Program> {
        let mut program = Program {
            input: input.context("no pipe")?,
            output: BufReader::new(output.context("no pipe")?),
            _running: running,
        };
        program.line().context("a program did not start")?;
        Ok(program)
    }

    fn line(&mut self) -> Result<u64> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }

    /// Tells it how much to do, without waiting for it.
    pub(crate) fn begin(&mut self, amount: u64) -> Result<()> {
        Ok(writeln!(self.input, "{amount}")?)
    }

    /// What it says when it has done that.
    pub(crate) fn result(&mut self) -> Result<u64> {
        self.line()
    }

    /// Nanoseconds of processor time, here and there.
    fn turn(&mut self, iterations: u64) -> Result<u64> {
        let before = process_cpu();
        writeln!(self.input, "{iterations}")?;
        let there = self.line()?;
        Ok(process_cpu() - before + there)
    }

    /// What the program says that they took, and nothing of our time.
    pub(crate) fn contender_of_time_there(mut self, name: &str) -> Contender<'static> {
        Contender::timing_itself(name, move |iterations| {
            writeln!(self.input, "{iterations}").expect("the program goes on");
            self.line().expect("the program goes on")
        })
    }

    pub(crate) fn contender(mut self, name: &str) -> Contender<'static> {
        Contender::timing_itself(name, move |iterations| {
            self.turn(iterations).expect("the program goes on")
        })
    }
}

/// Answers a bare program: its structure, if it has one, is read, written back, and the call succeeds.
fn answer(listener: &Listener, memory: &File) {
    const LEN: usize = size_of::<iommu_ioas_map>();
    while let Ok(request) = listener.receive() {
        let Some(request) = request else {
            let mut fds = [PollFd::new(listener, PollFlags::IN)];
            if poll(&mut fds, Some(&Timespec::default())).is_err()
                || fds[0].revents().contains(PollFlags::HUP)
            {
                return;
            }
            continue;
        };
        if request.nr != libc::SYS_ioctl {
            listener.proceed(request.id);
            continue;
        }
        if request.args[2] == 0 {
            listener.reply(request.id, 0);
            continue;
        }
        let mut structure = [0; LEN];
        let moved = memory
            .read_exact_at(&mut structure, request.args[2])
            .and_then(|()| memory.write_all_at(&structure, request.args[2]));
        match moved {
            Ok(()) => listener.reply(request.id, 0),
            Err(_) => listener.fail(request.id, libc::EFAULT),
        }
    }
}

fn bare_program(task: &str, socket: &Path) -> Result<()> {
    let socket = UnixStream::connect(socket)?;
    let mut channel = Channel::new(socket);
    let scope = Scope {
        base: 896,
        reach: 0,
        status: false,
        paths: false,
        attributes: false,
    };
    let listener = filter::install(&filter::program(&scope))?;
    channel.send(&(), Some(listener.as_fd()))?;
    drop(listener);
    channel.receive::<()>(1 << 10)?;
    if let Some(task) = task.strip_prefix(registers::PREFIX) {
        return registers::work(task);
    }
    work(
        &IommuFd::new_from_fd(File::open("/dev/null")?),
        task,
        process_cpu,
    )
}

fn client(task: &str) -> Result<()> {
    if let Some(task) = task.strip_prefix(registers::PREFIX) {
        return registers::work(task);
    }
    if let Some(task) = task.strip_prefix(program_memory::PREFIX) {
        return program_memory::work(task);
    }
    let iommufd = IommuFd::new()?;
    match task.strip_suffix(":time") {
        Some(task) => work(&iommufd, task, wall_clock()),
        None => work(&iommufd, task, process_cpu),
    }
}

/// Does what is asked on standard input, line by line, and says what it took by `clock`.
fn work(iommufd: &IommuFd, task: &str, clock: impl Fn() -> u64) -> Result<()> {
    let mut space = Space::new(iommufd)?;
    let mut among = None;
    if let Some(mapped) = task.strip_prefix("among:") {
        let mapped = mapped.parse()?;
        for page in 0..mapped {
            space.map(page, FIXED_RW)?;
        }
        among = Some(mapped);
    }
    println!("0");
    for line in std::io::stdin().lines() {
        let iterations: u64 = line?.parse()?;
        let before = clock();
        for _ in 0..iterations {
            match (task, among) {
                (_, Some(mapped)) => {
                    space.map(mapped, FIXED_RW)?;
                    space.unmap(mapped)?;
                }
                ("map", None) => space.map_next(FIXED_RW)?,
                ("map-anywhere", None) => space.map_next(RW)?,
                _ => space.unmap_all()?,
            }
        }
        println!("{}", clock() - before);
    }
    Ok(())
}

/// An address space and the memory that is mapped into it.
pub(crate) struct Space<'a> {
    iommufd: &'a IommuFd,
    id: u32,
    memory: Vec<u8>,
    mapped: u64,
}

impl<'a> Space<'a> {
    pub(crate) fn new(iommufd: &'a IommuFd) -> Result<Self> {
        let mut alloc = iommu_ioas_alloc {
            size: size_of::<iommu_ioas_alloc>() as u32,
            ..Default::default()
        };
        iommufd.alloc_iommu_ioas(&mut alloc)?;
        Ok(Space {
            iommufd,
            id: alloc.out_ioas_id,
            memory: vec![0; 2 * PAGE as usize],
            mapped: 0,
        })
    }

    pub(crate) fn map(&self, page: u64, flags: u32) -> Result<()> {
        let map = iommu_ioas_map {
            size: size_of::<iommu_ioas_map>() as u32,
            flags,
            ioas_id: self.id,
            user_va: (self.memory.as_ptr() as u64).next_multiple_of(PAGE),
            length: PAGE,
            iova: BASE + page * PAGE,
            ..Default::default()
        };
        Ok(self.iommufd.map_iommu_ioas(&map)?)
    }

    pub(crate) fn unmap(&self, page: u64) -> Result<()> {
        self.unmap_range(BASE + page * PAGE, PAGE)
    }

    fn unmap_all(&self) -> Result<()> {
        self.unmap_range(0, u64::MAX)
    }

    fn unmap_range(&self, iova: u64, length: u64) -> Result<()> {
        let mut unmap = iommu_ioas_unmap {
            size: size_of::<iommu_ioas_unmap>() as u32,
            ioas_id: self.id,
            iova,
            length,
        };
        Ok(self.iommufd.unmap_iommu_ioas(&mut unmap)?)
    }

    fn map_next(&mut self, flags: u32) -> Result<()> {
        self.map(self.mapped, flags)?;
        self.mapped += 1;
        if self.mapped == PAGES {
            self.unmap_all()?;
            self.mapped = 0;
        }
        Ok(())
    }
}
