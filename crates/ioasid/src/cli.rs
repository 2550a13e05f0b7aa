//! The command line.

use std::{ffi::OsString, path::PathBuf};

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

/// The Linux I/O address space system in user space.
///
/// Programs that do device passthrough open /dev/iommu and /dev/vfio/..., map memory, attach devices
/// and run DMA - on any machine, without an IOMMU, an accelerator, a kernel module or root.
#[derive(Debug, Parser)]
#[command(
    name = "ioasid",
    version,
    max_term_width = 100,
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
    /// Show what a running machine holds.
    Inspect(InspectArgs),
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
    #[arg(long)]
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
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
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
        /// Its UUID.
        uuid: String,
        /// The type; see `mdev list`. May be left out if the parent has only one.
        #[arg(long = "type")]
        type_name: Option<String>,
        /// The VM that owns it.
        #[arg(long)]
        vm: Option<String>,
    },
    /// List types, free instances and devices.
    List,
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
