//! `--trace`, `trace` and `replay`.

mod args;
mod record;
mod replay;

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use anyhow::{Context as _, Result};
use ioasid_trace::{
    Filter, Reader, chrome, schema::Line, show::Shown, stats::Stats, summary::Summary,
};

use crate::stdio::{StdoutError, print};

pub(crate) use args::{ReplayArgs, TraceArgs, TraceVerb};
pub(crate) use record::{Subject, Tracing, source};
pub(crate) use replay::run as replay;

/// `ioasid trace`.
///
/// # Errors
/// If the trace cannot be read to its end: what could be read is printed then.
pub(crate) fn run(args: TraceArgs) -> Result<u8> {
    match args.verb {
        TraceVerb::Show { file, filter } => {
            let mut out = BufWriter::new(io::stdout().lock());
            let shown = each(&file, &filter.into(), |line| {
                writeln!(out, "{}", Shown(&line)).map_err(|error| StdoutError::from(error).into())
            });
            // What was read before an error is printed before it.
            out.flush().map_err(StdoutError::from)?;
            shown?;
        }
        TraceVerb::Summary { file, filter } => {
            let mut summary = Summary::default();
            let read = each(&file, &filter.into(), |line| {
                summary.add(&line);
                Ok(())
            });
            print(&summary.to_string())?;
            read?;
        }
        TraceVerb::Stats { file, filter } => {
            let mut stats = Stats::default();
            let read = each(&file, &filter.into(), |line| {
                stats.add(&line);
                Ok(())
            });
            print(&stats.to_string())?;
            read?;
        }
        TraceVerb::Export(args) => {
            let mut lines = Vec::new();
            let read = each(&args.file, &args.filter.into(), |line| {
                lines.push(line);
                Ok(())
            });
            let write = || {
                let out = File::create(&args.chrome)?;
                chrome::export(&lines, BufWriter::new(out))
            };
            write().with_context(|| format!("writing {}", args.chrome.display()))?;
            read?;
        }
    }
    Ok(0)
}

/// Calls `op` with each line of the trace at `path` that `filter` wants.
fn each(path: &Path, filter: &Filter, mut op: impl FnMut(Line) -> Result<()>) -> Result<()> {
    let reader = Reader::open(path)?;
    for line in reader {
        let (_, line) = line.with_context(|| path.display().to_string())?;
        if filter.wants(&line) {
            op(line)?;
        }
    }
    Ok(())
}
