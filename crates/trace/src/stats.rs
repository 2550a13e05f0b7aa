//! What each device of a trace did.

use std::{collections::BTreeMap, fmt};

use crate::schema::{Line, Name};

/// What one device did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Bytes that it read from memory.
    pub read_bytes: u64,
    /// Bytes that it wrote to memory.
    pub written_bytes: u64,
    /// Transfers, each under one guard at the most.
    pub transfers: u64,
    /// Descriptors that it took in.
    pub submitted: u64,
    /// Descriptors that are done.
    pub done: u64,
    /// Descriptors that were cut short.
    pub aborted: u64,
    /// Time that its engines worked, in nanoseconds.
    pub busy: u64,
    /// Interrupts.
    pub interrupts: u64,
    /// Faults.
    pub faults: u64,
    /// Accesses to its regions, with those that are left out of the trace.
    pub accesses: u64,
}

/// What the devices of a trace did.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    devices: BTreeMap<Name, DeviceStats>,
    /// Time of the last line, in nanoseconds.
    end: u64,
    lost: u64,
    accesses: u64,
}

impl Stats {
    /// Counts a line.
    pub fn add(&mut self, line: &Line) {
        self.end = self.end.max(line.time());
        if let Line::Lost(lost) = line {
            self.lost += lost.lines;
            self.accesses += lost.accesses;
        }
        let Some(name) = line.device() else { return };
        if matches!(line, Line::Call(_) | Line::Route(_)) {
            return;
        }
        let device = self.devices.entry(name.clone()).or_default();
        match line {
            Line::Dma(dma) => {
                device.transfers += 1;
                match dma.access == "write" {
                    true => device.written_bytes += dma.len.0,
                    false => device.read_bytes += dma.len.0,
                }
            }
            Line::Submit(submit) => device.submitted += submit.count,
            Line::Work(work) => {
                device.busy += work.duration;
                device.done += u64::from(work.end == "done");
                device.aborted += u64::from(work.end == "aborted");
            }
            Line::Interrupt(_) => device.interrupts += 1,
            Line::Fault(_) => device.faults += 1,
            Line::Register(register) => device.accesses += 1 + register.left_out,
            _ => {}
        }
    }

    /// By name.
    pub fn devices(&self) -> &BTreeMap<Name, DeviceStats> {
        &self.devices
    }

    /// Lines that are missing.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl fmt::Display for Stats {
    /// A paragraph for each device. Rates are over the time of the whole trace.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = (self.end as f64 / 1e9).max(1e-9);
        let rate = |count: u64| count as f64 / seconds;
        for (name, device) in &self.devices {
            writeln!(f, "{name}")?;
            writeln!(
                f,
                "  dma          {} bytes read, {} written, {} transfers, {:.3} MB/s",
                device.read_bytes,
                device.written_bytes,
                device.transfers,
                rate(device.read_bytes + device.written_bytes) / 1e6,
            )?;
            writeln!(
                f,
                "  descriptors  {} submitted, {} done, {} aborted, {:.0}/s, engines busy {:.3} s",
                device.submitted,
                device.done,
                device.aborted,
                rate(device.done),
                device.busy as f64 / 1e9,
            )?;
            writeln!(
                f,
                "  interrupts   {}, {:.0}/s",
                device.interrupts,
                rate(device.interrupts)
            )?;
            writeln!(f, "  faults       {}", device.faults)?;
            writeln!(f, "  registers    {} accesses", device.accesses)?;
        }
        if self.accesses > 0 {
            writeln!(f, "{} further accesses to registers", self.accesses)?;
        }
        if self.lost > 0 {
            let lost = self.lost;
            writeln!(f, "{lost} lines are lost: the counts are too small")?;
        }
        Ok(())
    }
}
