//! Tracing a machine of this process.

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::available_parallelism,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use ioasid_machine::{DEFAULT_MACHINE, Machine};
use ioasid_trace::{
    Recorder, Sink,
    record::{JsonLines, MachineObserver, TextLines},
    schema::{Header, Host, MachineSource, VERSION},
};

/// A trace that is being written.
#[derive(Debug)]
pub(crate) struct Tracing {
    recorder: Arc<Recorder>,
    observer: Arc<MachineObserver>,
    file: Option<PathBuf>,
}

/// What of a trace's header the command line says.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    /// The program and its arguments.
    pub(crate) program: &'a [OsString],
    /// What its machine is built of.
    pub(crate) machine: MachineSource,
    /// With the mock devices of the kernel's self-test.
    pub(crate) selftest: bool,
    /// RLIMIT_MEMLOCK is enforced.
    pub(crate) enforce_memlock: bool,
}

impl Tracing {
    /// Begins to trace what happens in `machine` to `file`, if there is one, and shows calls on standard error if `shown`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn start(
        file: Option<&Path>,
        shown: bool,
        machine: &Machine,
        subject: Subject<'_>,
    ) -> Result<Option<Self>> {
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        if let Some(file) = file {
            let out = File::create(file).with_context(|| format!("creating {}", file.display()))?;
            sinks.push(Box::new(JsonLines::new(out)));
        }
        if shown {
            sinks.push(Box::new(TextLines::new(io::stderr())));
        }
        if sinks.is_empty() {
            return Ok(None);
        }
        let recorder = Recorder::start(header(subject), sinks).context("writing the trace")?;
        let observer = MachineObserver::new(&recorder);
        if file.is_some() {
            machine.iommu().watch().start(observer.clone());
        }
        Ok(Some(Tracing {
            observer,
            recorder,
            file: file.map(Path::to_owned),
        }))
    }

    /// Where calls of programs are told.
    pub(crate) fn recorder(&self) -> Arc<Recorder> {
        Arc::clone(&self.recorder)
    }

    /// Ends the trace. The machine does nothing any more.
    ///
    /// # Errors
    /// If something could not be written: the trace is incomplete.
    pub(crate) fn finish(self) -> Result<()> {
        self.observer.finish();
        self.recorder.finish().with_context(|| match &self.file {
            Some(file) => format!("the trace {} is incomplete", file.display()),
            None => "not all calls could be shown".to_owned(),
        })
    }
}

/// What a machine is built of that `file` or `devices` describe, or the default one.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn source(file: Option<&Path>, devices: &[String]) -> Result<MachineSource> {
    Ok(match file {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            MachineSource::File(text.with_context(|| format!("reading {}", path.display()))?)
        }
        None if devices.is_empty() => MachineSource::File(DEFAULT_MACHINE.to_owned()),
        None => MachineSource::Devices(devices.to_vec()),
    })
}

fn header(subject: Subject<'_>) -> Header {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = available_parallelism().map_or(1, usize::from);
    let began = SystemTime::now().duration_since(UNIX_EPOCH);
    let words = subject.program.iter();
    Header {
        schema: VERSION,
        program: words
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        machine: subject.machine,
        selftest: subject.selftest,
        enforce_memlock: subject.enforce_memlock,
        host: Host {
            ioasid: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel.trim().to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            processors: u32::try_from(processors).unwrap_or(u32::MAX),
        },
        began: began.map_or(0, |since| since.as_secs()),
    }
}
