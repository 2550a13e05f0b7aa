//! Running a program to its end, or to the end of its time.

use std::{
    fmt, fs,
    io::{self, Read as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How long a program may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(2);

/// Signals to the runner, which end a run in good order.
#[derive(Debug)]
pub(crate) struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Takes over the signals that a terminal or a service manager ends programs with.
    pub(crate) fn watch() -> Result<Self> {
        let last = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let number = usize::try_from(signal).unwrap_or_default();
            signal_hook::flag::register_usize(signal, Arc::clone(&last), number)
                .context("watching for signals")?;
        }
        Ok(Self(last))
    }

    fn last(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }
}

/// What may end a run early.
#[derive(Debug)]
pub(crate) struct Limits<'a> {
    pub(crate) time: Duration,
    pub(crate) signals: &'a Signals,
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Ended(ExitStatus),
    TimedOut(Duration),
    Interrupted(usize),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(status) => write!(f, "{status}"),
            Self::TimedOut(time) => write!(f, "stopped after {} s", time.as_secs()),
            Self::Interrupted(signal) => write!(f, "stopped by signal {signal}"),
        }
    }
}

/// A run that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    /// Everything it wrote to stdout and stderr, in order.
    pub(crate) output: String,
    pub(crate) time: Duration,
    /// Processes that it left running, ended since.
    pub(crate) left: usize,
}

/// Runs `command`, which begins with `setsid`, so that all of its processes can be found.
pub(crate) fn run(mut command: Command, limits: &Limits<'_>) -> Result<Ended> {
    let started = Instant::now();
    let (reader, writer) = io::pipe().context("making a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("duplicating a pipe")?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .context("`setsid` could not be run (package util-linux)")?;
    // The command holds the pipe's writing end.
    drop(command);
    let output = Output::collect(reader);
    let outcome = wait(&mut child, started, limits)?;
    let time = started.elapsed();
    let left = end_session(child.id());
    Ok(Ended {
        outcome,
        output: output.take(),
        time,
        left,
    })
}

fn wait(child: &mut Child, started: Instant, limits: &Limits<'_>) -> Result<Outcome> {
    let early = loop {
        if let Some(status) = child.try_wait().context("waiting for the program")? {
            return Ok(Outcome::Ended(status));
        }
        if let Some(signal) = limits.signals.last() {
            break Outcome::Interrupted(signal);
        }
        if started.elapsed() > limits.time {
            break Outcome::TimedOut(limits.time);
        }
        thread::sleep(LOOK);
    };
    // Asked first: `ioasid run` then ends its program and cleans up.
    send(child.id(), Signal::TERM);
    let asked = Instant::now();
    while asked.elapsed() < GRACE {
        if child
            .try_wait()
            .context("waiting for the program")?
            .is_some()
        {
            return Ok(early);
        }
        thread::sleep(LOOK);
    }
    send(child.id(), Signal::KILL);
    child.wait().context("waiting for the program")?;
    Ok(early)
}

fn send(process: u32, signal: Signal) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    if let Some(process) = process {
        // It may have ended meanwhile.
        let _ = kill_process(process, signal);
    }
}

/// Ends what is left of the session that `leader` began: how many processes that were.
fn end_session(leader: u32) -> usize {
    let mut seen = 0;
    // A process that is being forked is seen the next time.
    for _ in 0..20 {
        let members = members(leader);
        if members.is_empty() {
            break;
        }
        seen = seen.max(members.len());
        for process in members {
            send(process, Signal::KILL);
        }
        thread::sleep(LOOK);
    }
    seen
}

/// Living processes of the session `leader`.
fn members(leader: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let member = |entry: fs::DirEntry| {
        let process: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        in_session(&stat, leader).then_some(process)
    };
    processes.filter_map(member).collect()
}

/// Whether a line of `/proc/PID/stat` is of a living process of the session `leader`. The name, in
/// parentheses, may hold anything.
fn in_session(stat: &str, leader: u32) -> bool {
    let Some((_, fields)) = stat.rsplit_once(')') else {
        return false;
    };
    match fields.split_whitespace().collect::<Vec<_>>()[..] {
        [state, _parent, _group, session, ..] => state != "Z" && session.parse() == Ok(leader),
        _ => false,
    }
}

/// What a program writes, read while it runs.
struct Output {
    text: Arc<Mutex<Vec<u8>>>,
    done: mpsc::Receiver<()>,
}

impl Output {
    fn collect(mut reader: io::PipeReader) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let (sender, done) = mpsc::channel();
        let into = Arc::clone(&text);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                let read = buffer.get(..count).unwrap_or_default();
                into.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(read);
            }
            let _ = sender.send(());
        });
        Self { text, done }
    }

    /// All of it; a process that left its session could keep the pipe open, and is not waited for.
    fn take(self) -> String {
        let _ = self.done.recv_timeout(GRACE);
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, time: Duration) -> Ended {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", script]);
        let signals = Signals(Arc::new(AtomicUsize::new(0)));
        let limits = Limits {
            time,
            signals: &signals,
        };
        run(command, &limits).unwrap()
    }

    #[test]
    fn both_streams_are_kept_in_order() {
        let ended = shell(
            "echo one; echo two >&2; echo three; exit 3",
            Duration::from_secs(60),
        );
        assert_eq!(ended.output, "one\ntwo\nthree\n");
        assert!(matches!(ended.outcome, Outcome::Ended(status) if status.code() == Some(3)));
        assert_eq!(ended.left, 0);
    }

    #[test]
    fn a_run_without_end_is_stopped() {
        let ended = shell(
            "echo before; trap '' TERM; sleep 1000 & sleep 1000",
            Duration::ZERO,
        );
        assert!(matches!(ended.outcome, Outcome::TimedOut(_)));
    }

    #[test]
    fn what_a_program_leaves_running_is_ended_and_counted() {
        let ended = shell(
            "sleep 1000 & sleep 1000 & echo done",
            Duration::from_secs(60),
        );
        assert_eq!((ended.output.as_str(), ended.left), ("done\n", 2));
    }

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_session() {
        assert!(in_session("12 (a) R (b) S 1 12 77 0", 77));
        assert!(!in_session("12 (a) R (b) S 1 12 77 0", 12));
        assert!(!in_session("12 (a) Z 1 12 77 0", 77));
    }
}
