//! Lines as text, a call as strace shows one.

use std::fmt;

use serde_json::{Map, Value};

use crate::schema::{Call, Line, Name};

/// One line of text.
#[derive(Debug)]
pub struct Shown<'a>(pub &'a Line);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", Seconds(self.0.time()))?;
        match self.0 {
            Line::Header(header) => write!(
                f,
                "trace of {} (schema {}, ioasid {}, Linux {})",
                match header.program.is_empty() {
                    true => "a machine".to_owned(),
                    false => header.program.join(" "),
                },
                header.schema,
                header.host.ioasid,
                header.host.kernel
            ),
            Line::Start(start) => {
                write!(f, "program {} `{}` starts", start.program, start.name)?;
                match &start.vm {
                    Some(vm) => write!(f, " as vm {vm}"),
                    None => Ok(()),
                }
            }
            Line::Exit(exit) => write!(f, "program {} has ended", exit.program),
            Line::Call(call) => show_call(f, call),
            Line::Register(register) => {
                write!(
                    f,
                    "{} {} region {} at {}: {}",
                    register.device,
                    register.access,
                    register.region,
                    register.offset,
                    register.value
                )?;
                if register.size > register.value.0.len() as u64 {
                    write!(f, "... ({} bytes)", register.size)?;
                }
                match register.left_out {
                    0 => Ok(()),
                    left_out => write!(f, " (after {left_out} that are left out)"),
                }
            }
            Line::Dma(dma) => {
                source(f, &dma.device, dma.pasid)?;
                write!(f, " dma {} {} len {}", dma.access, dma.iova, dma.len)?;
                via(f, dma.domain)
            }
            Line::Fault(fault) => {
                source(f, &fault.device, fault.pasid)?;
                let (access, iova) = (&fault.access, fault.iova);
                write!(f, " FAULT {access} {iova}: {}", fault.reason)
            }
            Line::Interrupt(irq) => {
                write!(f, "{} interrupt {} {}", irq.device, irq.index, irq.vector)
            }
            Line::Route(route) => {
                source(f, &route.device, route.pasid)?;
                write!(f, " {}", route.change.name())?;
                if let Some(before) = route.before {
                    write!(f, " domain {before}")?;
                }
                match (route.before, route.domain) {
                    (Some(_), Some(domain)) => write!(f, " by {domain}"),
                    (None, Some(domain)) => write!(f, " domain {domain}"),
                    _ => Ok(()),
                }
            }
            Line::Map(map) => {
                let (iova, last) = (map.iova, map.last);
                write!(f, "domain {} map {iova}-{last} {}", map.domain, map.prot)
            }
            Line::Unmap(unmap) => write!(
                f,
                "domain {} unmap {}-{} ({} mapped)",
                unmap.domain, unmap.iova, unmap.last, unmap.bytes
            ),
            Line::Submit(submit) => {
                let (unit, first) = (submit.unit, submit.first);
                write!(f, "{} queue {unit} takes #{first}", submit.device)?;
                match submit.count {
                    1 => Ok(()),
                    count => write!(f, " to #{}", first.saturating_add(count - 1)),
                }
            }
            Line::Work(work) => {
                let (unit, number) = (work.unit, work.number);
                write!(f, "{} queue {unit} #{number} ", work.device)?;
                write!(f, "{} on ", work.operation)?;
                match work.engine {
                    Some(engine) => write!(f, "engine {engine}")?,
                    None => f.write_str("its worker")?,
                }
                write!(f, ": {} <{}>", work.end, Seconds(work.duration))
            }
            Line::Lost(lost) if lost.lines == 0 => {
                write!(f, "{} accesses to registers are left out", lost.accesses)
            }
            Line::Lost(lost) => write!(f, "{} lines are lost here", lost.lines),
        }
    }
}

fn show_call(f: &mut fmt::Formatter<'_>, call: &Call) -> fmt::Result {
    match call.pid {
        0 => {}
        pid if pid == call.tid => write!(f, "[{pid}] ")?,
        pid => write!(f, "[{pid}/{}] ", call.tid)?,
    }
    if let Some(object) = call.object {
        f.write_str(object.name())?;
        if let Some(device) = &call.device {
            write!(f, " {device}")?;
        }
        f.write_str(" ")?;
    }
    if let Some(file) = call.file {
        write!(f, "#{file} ")?;
    }
    write!(f, "{}(", call.name)?;
    show_fields(f, &call.args)?;
    f.write_str(") = ")?;
    match (&call.errno, call.result) {
        (Some(errno), _) => {
            write!(f, "-1 {errno}")?;
            if let Some(cause) = &call.cause {
                write!(f, ": {cause}")?;
            }
        }
        (None, Some(result)) => write!(f, "{result}")?,
        (None, None) => f.write_str("?")?,
    }
    if !call.reply.is_empty() {
        f.write_str(" {")?;
        show_fields(f, &call.reply)?;
        f.write_str("}")?;
    }
    write!(f, " <{}>", Seconds(call.duration))
}

fn show_fields(f: &mut fmt::Formatter<'_>, fields: &Map<String, Value>) -> fmt::Result {
    for (index, (name, value)) in fields.iter().enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        match value {
            Value::String(text) => write!(f, "{comma}{name}={text}")?,
            value => write!(f, "{comma}{name}={value}")?,
        }
    }
    Ok(())
}

fn source(f: &mut fmt::Formatter<'_>, device: &Name, pasid: Option<u32>) -> fmt::Result {
    match pasid {
        Some(pasid) => write!(f, "{device} pasid {pasid}"),
        None => write!(f, "{device}"),
    }
}

fn via(f: &mut fmt::Formatter<'_>, domain: Option<u32>) -> fmt::Result {
    match domain {
        Some(domain) => write!(f, " domain {domain}"),
        None => Ok(()),
    }
}

/// Nanoseconds as seconds with microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0 / 1000;
        write!(f, "{}.{:06}", micros / 1_000_000, micros % 1_000_000)
    }
}
