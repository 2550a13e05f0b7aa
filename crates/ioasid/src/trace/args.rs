//! The words of `trace` and `replay`.

use std::path::PathBuf;

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use ioasid_trace::{Filter, schema::Line};

/// `trace`.
#[derive(Args, Debug)]
pub(crate) struct TraceArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: TraceVerb,
}

/// `trace ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum TraceVerb {
    /// Print a trace, one line each, calls as strace prints them.
    Show {
        /// The trace.
        file: PathBuf,
        /// Which lines.
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Count the calls by name: how many, how many failed and how, and how long they took.
    Summary {
        /// The trace.
        file: PathBuf,
        /// Which lines.
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Say what each device did: bytes of DMA, descriptors, interrupts, faults.
    Stats {
        /// The trace.
        file: PathBuf,
        /// Which lines.
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Write a trace in another format.
    Export(ExportArgs),
}

/// `trace export`.
#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// The trace.
    pub(crate) file: PathBuf,
    /// Write the Trace Event Format to this file, for Perfetto and chrome://tracing.
    #[arg(long, value_name = "OUT", required = true)]
    pub(crate) chrome: PathBuf,
    /// Which lines.
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

/// Which lines of a trace. Each may be given again for one more; lines have to fit all that are given.
#[derive(Args, Debug)]
pub(crate) struct FilterArgs {
    /// About this device: a PCI address, or the UUID of a mediated device.
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// Calls on such a file (iommufd, container, group, device, events), or on the one of this number.
    #[arg(long, value_name = "KIND|NUMBER")]
    object: Vec<String>,
    /// Calls that failed with this errno, such as EINVAL; `any` for every failed call.
    #[arg(long, value_name = "ERRNO")]
    errno: Vec<String>,
    /// Lines of this kind.
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(Line::KINDS))]
    kind: Vec<String>,
    /// From this time on, in seconds since the trace began.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    since: Option<u64>,
    /// Up to this time, in seconds since the trace began.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    until: Option<u64>,
}

impl From<FilterArgs> for Filter {
    fn from(args: FilterArgs) -> Self {
        Filter {
            devices: args.device,
            objects: args.object,
            errnos: args.errno,
            kinds: args.kind,
            since: args.since,
            until: args.until,
        }
    }
}

/// Seconds, with decimals perhaps, in nanoseconds.
fn seconds(text: &str) -> Result<u64, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "no number of seconds".to_owned())?;
    match seconds.is_finite() && seconds >= 0.0 {
        true => Ok((seconds * 1e9).round() as u64),
        false => Err("no number of seconds".to_owned()),
    }
}

/// `replay`.
#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    /// The trace.
    pub(crate) file: PathBuf,
    /// Run the calls of this program of the trace alone.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) program: Option<u32>,
}
