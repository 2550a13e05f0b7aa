//! A trace in the Trace Event Format, which Perfetto and `chrome://tracing` open.
//!
//! Each program is a process with its threads, whose spans are calls. Each device is a process: its
//! engines are threads whose spans are descriptors, its queues are threads that show submissions, and
//! its own thread shows interrupts, faults and accesses to registers. Domains are threads of one more
//! process. An arrow leads from a submission to the end of its descriptor: it starts in the call that
//! wrote to the device, or, if that was a store to a mapping, in the queue.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::schema::{Call, Line, Name, Submit, Work};

/// The process of the domains.
const DOMAINS: u64 = 1 << 30;
/// The process of the first device.
const DEVICES: u64 = DOMAINS + 1;
/// A device's own thread.
const OWN: u64 = 0;
/// The thread of its first engine.
const ENGINES: u64 = 1;
/// The thread of its first queue.
const QUEUES: u64 = 10_000;
/// The thread of what runs on workers.
const WORKERS: u64 = 20_000;
/// How long what takes no time is shown, in microseconds.
const MOMENT: f64 = 0.001;
/// Calls that are looked at for the one that a submission lies in: one for each program at work.
const CANDIDATES: usize = 64;

/// One event of the format.
#[derive(Debug, Serialize)]
struct Event {
    name: String,
    cat: &'static str,
    ph: &'static str,
    /// Microseconds.
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    pid: u64,
    tid: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    /// Where an arrow ends: at the span that encloses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    bp: Option<&'static str>,
    /// How far an instant reaches: its thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    args: Map<String, Value>,
}

/// A process and a thread.
type Track = (u64, u64);

impl Event {
    fn new(ph: &'static str, cat: &'static str, name: impl Into<String>, t: u64) -> Self {
        Event {
            name: name.into(),
            cat,
            ph,
            ts: microseconds(t),
            dur: None,
            pid: 0,
            tid: 0,
            id: None,
            bp: None,
            s: None,
            args: Map::new(),
        }
    }

    fn on(mut self, (pid, tid): Track) -> Self {
        (self.pid, self.tid) = (pid, tid);
        self
    }

    fn lasting(mut self, duration: f64) -> Self {
        self.dur = Some(duration);
        self
    }

    fn instant(cat: &'static str, name: impl Into<String>, t: u64) -> Self {
        let mut event = Event::new("i", cat, name, t);
        event.s = Some("t");
        event
    }

    /// With the fields of `args`, which is an object.
    fn with(mut self, args: Value) -> Self {
        if let Value::Object(args) = args {
            self.args = args;
        }
        self
    }
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

/// A descriptor: device, queue and number.
type Descriptor = (Name, u32, u64);

/// Writes `lines` as one JSON object to `out`.
///
/// # Errors
/// Those of `out`.
pub fn export(lines: &[Line], out: impl Write) -> io::Result<()> {
    let mut export = Export {
        out,
        any: false,
        devices: BTreeMap::new(),
        named: BTreeSet::new(),
        programs: BTreeMap::new(),
        arrows: 0,
    };
    export
        .out
        .write_all(b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
    export.lines(lines)?;
    export.out.write_all(b"\n]}\n")?;
    export.out.flush()
}

struct Export<W> {
    out: W,
    any: bool,
    devices: BTreeMap<Name, u64>,
    /// Processes and threads that have a name already.
    named: BTreeSet<(u64, Option<u64>)>,
    programs: BTreeMap<u32, String>,
    arrows: u64,
}

impl<W: Write> Export<W> {
    fn lines(&mut self, lines: &[Line]) -> io::Result<()> {
        let ends = descriptor_ends(lines);
        let calls = calls_by_time(lines);
        for line in lines {
            match line {
                Line::Start(start) => {
                    self.programs.insert(start.program, start.name.clone());
                }
                Line::Call(call) => self.call(call)?,
                Line::Submit(submit) => self.submit(submit, &ends, &calls)?,
                Line::Work(work) => self.work(work)?,
                line => self.instant(line)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        let before = if self.any { ",\n" } else { "\n" };
        self.any = true;
        self.out.write_all(before.as_bytes())?;
        Ok(serde_json::to_writer(&mut self.out, event)?)
    }

    /// Names a process, or a thread of one, once.
    fn name(
        &mut self,
        pid: u64,
        tid: Option<u64>,
        name: impl FnOnce() -> String,
    ) -> io::Result<()> {
        if !self.named.insert((pid, tid)) {
            return Ok(());
        }
        let kind = if tid.is_some() {
            "thread_name"
        } else {
            "process_name"
        };
        let event = Event::new("M", "__metadata", kind, 0)
            .on((pid, tid.unwrap_or(0)))
            .with(json!({ "name": name() }));
        self.write(&event)
    }

    /// The track of a thread of a device.
    fn track(&mut self, device: &Name, tid: u64) -> io::Result<Track> {
        let next = DEVICES + self.devices.len() as u64;
        let pid = *self.devices.entry(device.clone()).or_insert(next);
        self.name(pid, None, || format!("device {device}"))?;
        self.name(pid, Some(tid), || match tid {
            OWN => "device".to_owned(),
            WORKERS => "workers".to_owned(),
            QUEUES..WORKERS => format!("queue {}", tid - QUEUES),
            engine => format!("engine {}", engine - ENGINES),
        })?;
        Ok((pid, tid))
    }

    fn thread(&mut self, call: &Call) -> io::Result<Track> {
        let (pid, tid) = (u64::from(call.pid), u64::from(call.tid));
        let known = self.programs.get(&call.program);
        let name = known.map_or("program", String::as_str).to_owned();
        self.name(pid, None, || format!("{name} ({pid})"))?;
        self.name(pid, Some(tid), || format!("thread {tid}"))?;
        Ok((pid, tid))
    }

    fn call(&mut self, call: &Call) -> io::Result<()> {
        let track = self.thread(call)?;
        let mut args = call.args.clone();
        if let Some(result) = call.result {
            args.insert("result".to_owned(), result.into());
        }
        if let Some(errno) = &call.errno {
            args.insert("errno".to_owned(), errno.to_string().into());
        }
        if let Some(cause) = &call.cause {
            args.insert("cause".to_owned(), cause.clone().into());
        }
        let event = Event::new("X", "call", call.name.clone(), call.t)
            .on(track)
            .lasting(microseconds(call.duration))
            .with(Value::Object(args));
        self.write(&event)
    }

    /// A submission, and arrows to the ends of its descriptors.
    fn submit(
        &mut self,
        submit: &Submit,
        ends: &BTreeMap<Descriptor, &Work>,
        calls: &[&Call],
    ) -> io::Result<()> {
        let track = match enclosing(calls, submit.t) {
            Some(call) => self.thread(call)?,
            None => self.track(&submit.device, QUEUES + u64::from(submit.unit))?,
        };
        let event = Event::new("X", "submit", format!("submit #{}", submit.first), submit.t)
            .on(track)
            .lasting(MOMENT)
            .with(json!({ "device": submit.device, "queue": submit.unit, "count": submit.count }));
        self.write(&event)?;
        for number in (submit.first..).take(usize::try_from(submit.count).unwrap_or(0)) {
            let descriptor = (submit.device.clone(), submit.unit, number);
            let Some(work) = ends.get(&descriptor) else {
                continue;
            };
            self.arrows += 1;
            let mut start = Event::new("s", "descriptor", "descriptor", submit.t).on(track);
            start.id = Some(self.arrows);
            self.write(&start)?;
            // Inside of the span, also for those who take its end for outside.
            let (end, tid) = match work.engine {
                Some(engine) => (work.duration.saturating_sub(1), ENGINES + u64::from(engine)),
                None => (work.duration, WORKERS),
            };
            let end = work.t + end;
            let track = self.track(&work.device, tid)?;
            let mut end = Event::new("f", "descriptor", "descriptor", end.max(submit.t)).on(track);
            end.id = Some(self.arrows);
            end.bp = Some("e");
            self.write(&end)?;
        }
        Ok(())
    }

    fn work(&mut self, work: &Work) -> io::Result<()> {
        let args = json!({ "queue": work.unit, "number": work.number, "end": work.end });
        let name = work.operation.clone();
        let Some(engine) = work.engine else {
            // Workers of several clients run side by side.
            let track = self.track(&work.device, WORKERS)?;
            self.arrows += 1;
            for (ph, t) in [("b", work.t), ("e", work.t + work.duration)] {
                let mut event = Event::new(ph, "worker", name.clone(), t).on(track);
                event.id = Some(self.arrows);
                self.write(&event.with(args.clone()))?;
            }
            if work.end != "done" {
                return Ok(());
            }
            // What an arrow can end at: a span of its own.
            let event = Event::new("X", "worker", "done", work.t + work.duration)
                .on(track)
                .lasting(MOMENT);
            return self.write(&event);
        };
        let track = self.track(&work.device, ENGINES + u64::from(engine))?;
        let event = Event::new("X", "descriptor", name, work.t)
            .on(track)
            .lasting(microseconds(work.duration))
            .with(args);
        self.write(&event)
    }

    fn instant(&mut self, line: &Line) -> io::Result<()> {
        let event = match line {
            Line::Interrupt(irq) => {
                let name = format!("{} {}", irq.index, irq.vector);
                Event::instant("interrupt", name, irq.t)
            }
            Line::Fault(fault) => {
                Event::instant("fault", format!("fault: {}", fault.reason), fault.t).with(
                    json!({ "pasid": fault.pasid, "access": fault.access, "iova": fault.iova }),
                )
            }
            Line::Register(register) => {
                let (access, offset) = (&register.access, register.offset);
                let name = format!("{access} {}:{offset}", register.region);
                Event::instant("register", name, register.t)
                    .with(json!({ "value": register.value, "left_out": register.left_out }))
            }
            Line::Route(route) => {
                Event::instant("route", route.change.name(), route.t).with(json!({
                    "pasid": route.pasid, "domain": route.domain, "before": route.before,
                }))
            }
            Line::Dma(dma) => {
                Event::instant("dma", format!("dma {}", dma.access), dma.t).with(json!({
                    "pasid": dma.pasid, "domain": dma.domain, "iova": dma.iova, "len": dma.len,
                }))
            }
            Line::Map(map) => {
                let event = Event::instant("map", "map", map.t)
                    .with(json!({ "iova": map.iova, "last": map.last, "prot": map.prot }));
                return self.in_domain(map.domain, event);
            }
            Line::Unmap(unmap) => {
                let event = Event::instant("map", "unmap", unmap.t)
                    .with(json!({ "iova": unmap.iova, "last": unmap.last, "bytes": unmap.bytes }));
                return self.in_domain(unmap.domain, event);
            }
            _ => return Ok(()),
        };
        let Some(device) = line.device() else {
            return Ok(());
        };
        let track = self.track(device, OWN)?;
        self.write(&event.on(track))
    }

    fn in_domain(&mut self, domain: u32, event: Event) -> io::Result<()> {
        self.name(DOMAINS, None, || "domains".to_owned())?;
        self.name(DOMAINS, Some(domain.into()), || format!("domain {domain}"))?;
        self.write(&event.on((DOMAINS, domain.into())))
    }
}

/// The last work on each descriptor that is done.
fn descriptor_ends(lines: &[Line]) -> BTreeMap<Descriptor, &Work> {
    let works = lines.iter().filter_map(|line| match line {
        Line::Work(work) if work.end == "done" => Some(work),
        _ => None,
    });
    works
        .map(|work| ((work.device.clone(), work.unit, work.number), work))
        .collect()
}

/// Writes to files, by the time at which they begin.
fn calls_by_time(lines: &[Line]) -> Vec<&Call> {
    let mut calls: Vec<&Call> = lines
        .iter()
        .filter_map(|line| match line {
            Line::Call(call) if call.name == "write" => Some(&**call),
            _ => None,
        })
        .collect();
    calls.sort_by_key(|call| call.t);
    calls
}

/// The call that was under way at `t`.
fn enclosing<'a>(calls: &[&'a Call], t: u64) -> Option<&'a Call> {
    let after = calls.partition_point(|call| call.t <= t);
    let before = calls.get(..after)?.iter().rev().take(CANDIDATES);
    before
        .copied()
        .find(|call| t <= call.t.saturating_add(call.duration))
}
