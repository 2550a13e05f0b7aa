//! The command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use ioasid_supervisor::Mmio;

use crate::{
    check::CheckArgs,
    inject::InjectArgs,
    trace::{ReplayArgs, TraceArgs},
};

/// What `--help` says at its end.
const LOG_HELP: &str = "\
Environment:
  IOASID_LOG  What is logged on stderr, instead of -v: a level (error, warn, info, debug, trace), or
              levels by crate, such as info,ioasid_iommu=trace.
  NO_COLOR    If it is set and not empty, nothing is coloured. Pipes and files never get colours.

Exit status:
  0 if it worked, 1 if not, 2 if the command line makes no sense. `run` gives its program's own,
  125 if ioasid itself failed (the command line included), 126 if the program could not be executed,
  127 if it was not found. 141 (SIGPIPE) if the reader of the output went away.";

/// The Linux I/O address space system in user space.
///
/// Programs that do device passthrough open /dev/iommu and /dev/vfio/..., map memory, attach devices
/// and run DMA - on any machine, without an IOMMU, an accelerator, a kernel module or root.
#[derive(Debug, Parser)]
#[command(
    name = "ioasid",
    version,
    max_term_width = 100,
    after_help = LOG_HELP,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// Say more on stderr (-v: modes and steps, -vv: also each call that `run` or `serve` answers).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Say nothing but errors on stderr: not that a program was refused something, either.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a program that sees a machine's devices.
    ///
    /// The exit status is the program's own, or 128+N if signal N killed it; 125 if ioasid itself
    /// failed, 126 if the program could not be executed, 127 if it was not found.
    Run(RunArgs),
    /// Show what a machine will look like, and whether this host can run it.
    ///
    /// The exit status is 0 if it can, and 1 if not, with what to do about each obstacle.
    Check(CheckArgs),
    /// Keep a machine running, for programs to join.
    Serve(ServeArgs),
    /// Show a running machine on one screen: programs, devices, domains, jobs, faults.
    Inspect(InspectArgs),
    /// List the devices of a machine: what can be opened, where, and who uses it.
    Ls(LsArgs),
    /// Watch a running machine: programs, devices, domains and the rate of their DMA. `q` quits.
    Top(TopArgs),
    /// Draw programs, domains, routes and devices of a running machine.
    Graph(GraphArgs),
    /// Create, list and remove mediated devices of a running machine.
    Mdev(MdevArgs),
    /// Make something of a running machine fail on purpose: to test what a program does then.
    Inject(InjectArgs),
    /// Look at a trace that `--trace` wrote.
    Trace(TraceArgs),
    /// Run the calls of a trace against a fresh machine, and tell the first difference.
    ///
    /// The exit status is 0 if there is none, and 1 otherwise.
    Replay(ReplayArgs),
    /// Show one parent device with three queues and two VMs at work, and check every claim.
    Demo(DemoArgs),
    /// The child side of `run`.
    #[command(name = "__launch", hide = true)]
    Launch(RestArgs),
    /// One VM of the demo.
    #[command(name = "__vm", hide = true)]
    Vm(RestArgs),
}

/// Where a machine comes from.
#[derive(Args, Debug)]
pub(crate) struct MachineArgs {
    /// Build the machine that this TOML file describes.
    #[arg(long, value_name = "FILE")]
    pub(crate) machine: Option<PathBuf>,
    /// Devices.
    #[command(flatten)]
    pub(crate) devices: DeviceArgs,
}

/// Devices of a machine that no file describes.
#[derive(Args, Debug)]
pub(crate) struct DeviceArgs {
    /// Build a machine of this device, such as dsa,queues=4,driver=vfio; may be given again. `help`
    /// lists the models, MODEL,help the keys of one.
    #[arg(long, value_name = "MODEL[,KEY=VALUE...]", conflicts_with = "machine")]
    pub(crate) device: Vec<String>,
}

/// `run`.
#[derive(Args, Debug)]
#[command(override_usage = "ioasid run [OPTIONS] -- <PROGRAM>...")]
pub(crate) struct RunArgs {
    /// The machine, if it is private to the program.
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Join the machine that `serve` keeps: its name or the path of its socket.
    #[arg(long, value_name = "NAME|SOCKET", conflicts_with_all = ["machine", "device"])]
    pub(crate) join: Option<String>,
    /// Add the mock devices and the ioctl that the kernel's own self-test of /dev/iommu asks for.
    #[arg(long, conflicts_with = "join")]
    pub(crate) selftest: bool,
    /// Enforce RLIMIT_MEMLOCK (`ulimit -l`) on what the program maps, as the kernel does.
    #[arg(long, conflicts_with = "join")]
    pub(crate) enforce_memlock: bool,
    /// Write what happens to FILE, as lines of JSON: every call, DMA, interrupt, fault, attach and
    /// mapping. `ioasid trace` shows it, and docs/trace.md describes it.
    #[arg(long, value_name = "FILE", conflicts_with = "join")]
    pub(crate) trace: Option<PathBuf>,
    /// Show the program only what this VM owns.
    #[arg(long, value_name = "NAME")]
    pub(crate) vm: Option<String>,
    /// How accesses to mapped device registers are caught: by a library in each process and ptrace
    /// where that is not loaded (auto), by one of the two alone, or not at all: then no region can be
    /// mapped, and programs use read and write.
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = mmio())]
    pub(crate) mmio: Mmio,
    /// Say why, a line for each call that is refused and for each fault of DMA: on stderr, or in FILE.
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "-"
    )]
    pub(crate) explain: Option<PathBuf>,
    /// Trap every path instead of giving the program a namespace of its own, as on a host that
    /// refuses namespaces.
    #[arg(long, hide = true)]
    pub(crate) no_namespaces: bool,
    /// The program and its arguments.
    // Not required by clap: `--device help` runs none.
    #[arg(last = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

/// A name of a machine: a file name, as its socket is called after it.
fn machine_name(name: &str) -> Result<String, String> {
    match name {
        "" => Err("a machine's name is not empty".to_owned()),
        _ if name.contains('/') => {
            Err("a machine's name has no `/`; --socket takes the path of a socket".to_owned())
        }
        _ if name.starts_with('.') => Err("a machine's name starts with no `.`".to_owned()),
        _ => Ok(name.to_owned()),
    }
}

/// A time in seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds >= 0.1);
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| "a number of seconds, at least 0.1".to_owned())
}

/// The values of `--mmio`.
fn mmio() -> impl TypedValueParser<Value = Mmio> {
    let value = |mode: Mmio| PossibleValue::new(mode.name()).help(mode.meaning());
    PossibleValuesParser::new(Mmio::ALL.map(value)).try_map(|name| name.parse::<Mmio>())
}

/// `serve`.
#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// The machine file; without one the default machine.
    #[arg(value_name = "MACHINE.toml")]
    pub(crate) machine: Option<PathBuf>,
    /// Name of the machine, for --join and inspect; the file's name by default.
    #[arg(long, value_parser = machine_name)]
    pub(crate) name: Option<String>,
    /// Where the vfio-user sockets of the devices go, one for each; beside the control socket by
    /// default.
    #[arg(long, value_name = "DIR")]
    pub(crate) socket_dir: Option<PathBuf>,
    /// Serve virtual machines only: no program can join, and the process confines itself.
    #[arg(long)]
    pub(crate) no_join: bool,
    /// Path of the control socket, instead of one made from the name.
    #[arg(long, value_name = "PATH", conflicts_with = "name")]
    pub(crate) socket: Option<PathBuf>,
    /// Write what happens to FILE, as `run --trace` does.
    #[arg(long, value_name = "FILE", conflicts_with = "no_join")]
    pub(crate) trace: Option<PathBuf>,
    /// Keep the first queue of every parent's own driver busy with copies, each byte checked;
    /// `inspect` shows the account.
    #[arg(long)]
    pub(crate) busy: bool,
}

/// `inspect`.
#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// The machine: its name or the path of its socket; may be left out if only one runs.
    #[arg(value_name = "NAME|SOCKET")]
    pub(crate) machine: Option<String>,
    /// Show this part alone, and all of it: names with slashes between them, such as
    /// devices/0000:6a:01.0 or iommu/domains/1.
    #[arg(short, long, value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// Show everything that there is to see, as a tree.
    #[arg(short, long, conflicts_with = "path")]
    pub(crate) all: bool,
    /// Print one JSON object with everything, or with the part that is asked for.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `ls`.
#[derive(Args, Debug)]
pub(crate) struct LsArgs {
    /// The machine: its name or the path of its socket; may be left out if only one runs.
    #[arg(value_name = "NAME|SOCKET", conflicts_with_all = ["machine", "device"], id = "running")]
    pub(crate) machine: Option<String>,
    /// A machine that does not run.
    #[command(flatten)]
    pub(crate) build: MachineArgs,
}

/// `top`.
#[derive(Args, Debug)]
pub(crate) struct TopArgs {
    /// The machine: its name or the path of its socket; may be left out if only one runs.
    #[arg(value_name = "NAME|SOCKET")]
    pub(crate) machine: Option<String>,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) every: Duration,
}

/// `graph`.
#[derive(Args, Debug)]
pub(crate) struct GraphArgs {
    /// The machine: its name or the path of its socket; may be left out if only one runs.
    #[arg(value_name = "NAME|SOCKET")]
    pub(crate) machine: Option<String>,
    /// Draw it as SVG, a picture that any browser shows, instead of DOT, the text that Graphviz takes.
    #[arg(long)]
    pub(crate) svg: bool,
}

/// `mdev`.
#[derive(Args, Debug)]
pub(crate) struct MdevArgs {
    /// The machine: its name or the path of its socket; may be left out if only one runs.
    #[arg(long, value_name = "NAME|SOCKET", global = true)]
    pub(crate) machine: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: MdevVerb,
}

/// `mdev ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum MdevVerb {
    /// Create a mediated device on a queue that is set aside for one.
    Create {
        /// PCI address of the parent, such as 0000:6a:01.0.
        parent: String,
        /// Its UUID; a new one by default. It is printed.
        uuid: Option<String>,
        /// The type; see `mdev list`. May be left out if the parent has only one.
        #[arg(long = "type")]
        type_name: Option<String>,
        /// The VM that owns it.
        #[arg(long)]
        vm: Option<String>,
    },
    /// List types, free instances and devices.
    List {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Remove a mediated device that no program uses.
    Remove {
        /// Its UUID.
        uuid: String,
    },
}

/// `demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Print one JSON object with every claim and what was measured.
    #[arg(long)]
    pub(crate) json: bool,
    /// Write what happens to FILE, as `run --trace` does.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Check the claims a few times more often.
    #[arg(long, hide = true, default_value_t = 1)]
    pub(crate) rounds: u32,
}

/// Everything after a hidden verb, for the floor that understands it.
#[derive(Args, Debug)]
pub(crate) struct RestArgs {
    /// Passed on.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) rest: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn options_after_the_dashes_belong_to_the_program() {
        let cli = Cli::parse_from(["ioasid", "run", "--vm", "a", "--", "prog", "--vm", "-v"]);
        let Verb::Run(run) = cli.verb else {
            panic!("run")
        };
        assert_eq!(run.program, ["prog", "--vm", "-v"]);
        assert_eq!(run.vm.as_deref(), Some("a"));
    }
}
