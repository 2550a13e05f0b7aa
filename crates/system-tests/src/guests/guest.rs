//! A guest: a stock QEMU under `ioasid run`, its console and its monitor.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use ioasid_testing::PATIENCE;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value as Json, json};

/// How often is looked whether QEMU has ended.
const INTERVAL: Duration = Duration::from_millis(20);

/// The last line of a report.
const END: &str = "GUEST end";

/// A PCI function as the guest sees it.
#[derive(Clone, Debug)]
pub struct Function {
    /// Vendor and device, `0x8086 0x2021`.
    pub ids: String,
    /// Name of the driver, `none` without one.
    pub driver: String,
    /// DMA channels that the driver has registered.
    pub channels: usize,
    /// Interrupts by MSI-X that its driver got.
    pub interrupts: u64,
}

/// What a guest says of itself.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By address.
    pub functions: BTreeMap<String, Function>,
    /// Lines of its kernel about the drivers.
    pub log: Vec<String>,
    /// Lines of its kernel that tell of an error.
    pub errors: Vec<String>,
    /// What its arrays have done since they were told to.
    pub work: Vec<Work>,
    /// Its DSA queue.
    pub queue: Option<Queue>,
    /// What its program that drives devices by hand has shown.
    pub claims: Vec<Claim>,
    /// Hash of the random file that it keeps in memory.
    pub kept: Option<String>,
}

/// What a program of the guest has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// How many attempts it took; `None` if it does not hold.
    pub attempts: Option<u64>,
    /// Its name, and why it does not hold.
    pub said: String,
}

/// A DSA queue of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// What the guest's kernel says of it.
    pub state: String,
    /// Bytes 8 to 11 of its WQCFG as the guest reads them.
    pub usage: u32,
    /// Its character device, `none` without one.
    pub node: String,
}

/// What an array of a guest has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Blocks of 4 MiB that were written and read again.
    pub rounds: u64,
    /// Those of them that were not the same.
    pub wrong: u64,
    /// Sectors whose parity is not that of their data.
    pub mismatches: u64,
}

impl Report {
    fn parse(text: &str) -> Self {
        let mut report = Self::default();
        for line in text.lines() {
            let Some(said) = line.trim().strip_prefix("GUEST ") else {
                continue;
            };
            match said.split_whitespace().collect::<Vec<_>>()[..] {
                ["pci", address, vendor, device, driver, channels] => {
                    let function = Function {
                        ids: format!("{vendor} {device}"),
                        driver: driver.to_owned(),
                        channels: channels.parse().unwrap_or(0),
                        interrupts: 0,
                    };
                    report.functions.insert(address.to_owned(), function);
                }
                // `24: COUNT ... PCI-MSIX-0000:01:00.0 0-edge ioat-msix`, a count for each processor; `IR-` before
                // that if an IOMMU remaps interrupts.
                ["irq", _, ref rest @ ..] => {
                    let counts = rest.iter().map_while(|word| word.parse::<u64>().ok());
                    let mut chips = rest.iter().filter_map(|word| {
                        word.trim_start_matches("IR-").strip_prefix("PCI-MSIX-")
                    });
                    let address = chips.next().unwrap_or_default();
                    if let Some(function) = report.functions.get_mut(address) {
                        function.interrupts += counts.sum::<u64>();
                    }
                }
                ["log", ..] => report.log.push(said.to_owned()),
                ["error", ..] => report.errors.push(said.to_owned()),
                ["queue", state, usage, node] => {
                    let usage = usage.strip_prefix("0x").unwrap_or_default();
                    report.queue = u32::from_str_radix(usage, 16).ok().map(|usage| Queue {
                        state: state.to_owned(),
                        usage,
                        node: node.to_owned(),
                    });
                }
                ["claim", "ok", attempts, ref name @ ..] => report.claims.push(Claim {
                    attempts: attempts.parse().ok(),
                    said: name.join(" "),
                }),
                ["claim", ref why @ ..] => report.claims.push(Claim {
                    attempts: None,
                    said: why.join(" "),
                }),
                ["kept", hash, ..] => report.kept = Some(hash.to_owned()),
                ["work", _, rounds, wrong, mismatches] => report.work.push(Work {
                    rounds: rounds.parse().unwrap_or(0),
                    // What cannot be read is no success.
                    wrong: wrong.parse().unwrap_or(u64::MAX),
                    mismatches: mismatches.parse().unwrap_or(u64::MAX),
                }),
                _ => {}
            }
        }
        report
    }
}

/// What a guest has written to its console, and QEMU and `ioasid` beside it.
#[derive(Debug, Default)]
struct Console {
    text: Mutex<Said>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    /// The guest.
    console: String,
    /// QEMU and `ioasid`, on standard error.
    errors: String,
    /// How many of the two streams have ended.
    ended: usize,
}

impl Said {
    /// The end of both.
    fn last(&self) -> String {
        let last = |text: &str, count| {
            let lines: Vec<_> = text.lines().collect();
            let first = lines.len().saturating_sub(count);
            lines.get(first..).unwrap_or_default().join(" / ")
        };
        format!("{} / {}", last(&self.console, 8), last(&self.errors, 4))
    }

    fn has_ended(&self) -> bool {
        self.ended == 2
    }
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    name: String,
    child: Child,
    input: ChildStdin,
    console: Arc<Console>,
    /// How much of the console was looked at.
    seen: usize,
    monitor: PathBuf,
}

impl Guest {
    /// Starts `command`, which runs QEMU with its console on stdin and stdout and its monitor on the
    /// socket `monitor`. What it says is also printed if `shown`.
    pub fn begin(name: &str, command: &mut Command, monitor: &Path, shown: bool) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("starting QEMU")?;
        let console = Arc::new(Console::default());
        let output = child.stdout.take().context("stdout of QEMU")?;
        let errors = child.stderr.take().context("stderr of QEMU")?;
        let into = Arc::clone(&console);
        std::thread::spawn(move || into.fill(output, shown, false));
        let into = Arc::clone(&console);
        std::thread::spawn(move || into.fill(errors, shown, true));
        Ok(Self {
            name: name.to_owned(),
            input: child.stdin.take().context("stdin of QEMU")?,
            child,
            console,
            seen: 0,
            monitor: monitor.to_owned(),
        })
    }

    /// The process that was started: `ioasid run`.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order and waits for the report after it.
    pub fn order(&mut self, order: &str) -> Result<Report> {
        self.begin_order(order)?;
        self.next_report()
    }

    /// Gives an order; the next report is the one after it.
    pub fn begin_order(&mut self, order: &str) -> Result<()> {
        writeln!(self.input, "{order}").with_context(|| format!("ordering {}", self.name))
    }

    /// Waits for the next report.
    pub fn next_report(&mut self) -> Result<Report> {
        let (begin, end) = self
            .console
            .wait(self.seen, END)
            .map_err(|said| anyhow::anyhow!("{} gave no report; it said: {said}", self.name))?;
        self.seen = end;
        Ok(Report::parse(&self.console.text(begin, end)))
    }

    /// Whether the next report is there.
    pub fn has_report(&self) -> bool {
        self.console.has(self.seen, END)
    }

    /// Stops its processors.
    pub fn pause(&self) -> Result<()> {
        Monitor::connect(&self.monitor)?.execute("stop", &json!({}))
    }

    /// Lets its processors go on.
    pub fn resume(&self) -> Result<()> {
        Monitor::connect(&self.monitor)?.execute("cont", &json!({}))
    }

    /// The file that its memory is in, of a guest that shares it.
    pub fn memory(&self) -> Result<PathBuf> {
        let files = format!("/proc/{}/fd", self.id());
        for entry in std::fs::read_dir(&files).with_context(|| format!("reading {files}"))? {
            let path = entry?.path();
            let name = std::fs::read_link(&path).unwrap_or_default();
            if name.to_string_lossy().contains("memfd:memory-backend") {
                return Ok(path);
            }
        }
        bail!("{} has no file of memory", self.name)
    }

    /// Resets the guest as a button would: its kernel starts anew, and the next report is of that.
    pub fn reset(&self) -> Result<()> {
        let mut monitor = Monitor::connect(&self.monitor)?;
        // QEMU was told to end instead, for a guest whose kernel panics.
        monitor.execute("set-action", &json!({ "reboot": "reset" }))?;
        monitor.execute("system_reset", &json!({}))?;
        monitor.wait_for_event("RESET", |_| true)?;
        monitor.execute("set-action", &json!({ "reboot": "shutdown" }))
    }

    /// Takes the device `id` away from the guest, which may keep it until it has let go.
    pub fn unplug(&self, id: &str) -> Result<()> {
        let mut monitor = Monitor::connect(&self.monitor)?;
        monitor.execute("device_del", &json!({ "id": id }))?;
        monitor.wait_for_event("DEVICE_DELETED", |data| data["device"] == id)
    }

    /// Ends the guest as a power switch would. All that QEMU and `ioasid` have said on standard error.
    pub fn quit(mut self) -> Result<String> {
        let mut monitor = Monitor::connect(&self.monitor)?;
        monitor.execute("quit", &json!({}))?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() || !self.console.has_ended() {
            ensure!(Instant::now() < deadline, "{} does not end", self.name);
            std::thread::sleep(INTERVAL);
        }
        let text = self.console.text.lock();
        Ok(text.unwrap_or_else(PoisonError::into_inner).errors.clone())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.child.wait();
        }
    }
}

impl Console {
    fn fill(&self, mut output: impl std::io::Read, shown: bool, are_errors: bool) {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            let read = buffer.get(..count).unwrap_or_default();
            let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
            let said = String::from_utf8_lossy(read);
            if shown {
                print!("{said}");
            }
            let into = match are_errors {
                false => &mut text.console,
                true => &mut text.errors,
            };
            into.push_str(&said);
            self.more.notify_all();
        }
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.ended += 1;
        self.more.notify_all();
    }

    fn has_ended(&self) -> bool {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.has_ended()
    }

    fn text(&self, begin: usize, end: usize) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.console.get(begin..end).unwrap_or_default().to_owned()
    }

    /// Whether `wanted` stands behind `begin`, or nothing will any more.
    fn has(&self, begin: usize, wanted: &str) -> bool {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = text.console.get(begin..);
        text.has_ended() || rest.is_some_and(|rest| rest.contains(wanted))
    }

    /// Waits until `wanted` stands behind `begin`: where the text begins and where `wanted` ends; or
    /// the end of all that was said if it does not come.
    fn wait(&self, begin: usize, wanted: &str) -> Result<(usize, usize), String> {
        let deadline = Instant::now() + PATIENCE;
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let rest = text.console.get(begin..).unwrap_or_default();
            if let Some(at) = rest.find(wanted) {
                return Ok((begin, begin + at + wanted.len()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if text.has_ended() || left.is_zero() {
                return Err(text.last());
            }
            text = self
                .more
                .wait_timeout(text, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// QEMU's monitor, by its machine protocol.
struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("connecting to the monitor at {}", path.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        monitor.read()?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn read(&mut self) -> Result<Json> {
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .context("reading from the monitor")?;
        ensure!(!line.is_empty(), "the monitor closed its connection");
        serde_json::from_str(&line).context("reading what the monitor says")
    }

    /// Runs a command; events before its answer are not kept.
    fn execute(&mut self, command: &str, arguments: &Json) -> Result<()> {
        let request = json!({ "execute": command, "arguments": arguments });
        // In one piece: QEMU obeys at the last brace, and may have ended before a line's end comes.
        let line = format!("{request}\n");
        let stream = self.stream.get_mut();
        stream
            .write_all(line.as_bytes())
            .context("writing to the monitor")?;
        loop {
            let answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("`{command}` failed: {}", error["desc"]);
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn wait_for_event(&mut self, name: &str, wanted: impl Fn(&Json) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let said = self.read()?;
            if said["event"] == name && wanted(&said["data"]) {
                return Ok(());
            }
        }
        bail!("no event {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_among_other_lines() {
        let report = Report::parse(
            "[    1.0] noise\r\nGUEST pci 0000:01:00.0 0x8086 0x2021 ioatdma 1\r\nGUEST pci 0000:02:00.0 \
             0x8086 0x2021 none 0\r\nGUEST irq 24: 3 PCI-MSIX-0000:01:00.0 0-edge ioat-msix\r\n\
             GUEST irq 25: 1 4 IR-PCI-MSIX-0000:02:00.0 0-edge ioat-msix\r\n\
             GUEST log x\r\nGUEST claim ok 7 a b\r\nGUEST claim FAIL a b: c\r\n",
        );
        let function = &report.functions["0000:01:00.0"];
        assert_eq!((function.channels, function.interrupts), (1, 3));
        let function = &report.functions["0000:02:00.0"];
        assert_eq!((&*function.driver, function.interrupts), ("none", 5));
        assert_eq!(report.log.len(), 1);
        let attempts: Vec<_> = report.claims.iter().map(|claim| claim.attempts).collect();
        assert_eq!(attempts, [Some(7), None]);
        assert_eq!(report.claims[1].said, "FAIL a b: c");
    }
}
