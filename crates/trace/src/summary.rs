//! The calls of a trace by name: how many, how many failed and how, and how long they took.

use std::{collections::BTreeMap, fmt};

use crate::{schema::Line, show::Seconds};

/// What came of the calls of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallSummary {
    /// Calls.
    pub calls: u64,
    /// Those that failed, by errno.
    pub errors: BTreeMap<String, u64>,
    /// How long they took together, in nanoseconds.
    pub time: u64,
    /// The longest, in nanoseconds.
    pub longest: u64,
}

/// The calls of a trace by name.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    calls: BTreeMap<String, CallSummary>,
}

impl Summary {
    /// Counts a line.
    pub fn add(&mut self, line: &Line) {
        let Line::Call(call) = line else { return };
        let summary = self.calls.entry(call.name.to_string()).or_default();
        summary.calls += 1;
        summary.time += call.duration;
        summary.longest = summary.longest.max(call.duration);
        if let Some(errno) = &call.errno {
            *summary.errors.entry(errno.to_string()).or_default() += 1;
        }
    }

    /// By name.
    pub fn calls(&self) -> &BTreeMap<String, CallSummary> {
        &self.calls
    }
}

impl fmt::Display for Summary {
    /// A table, what took most first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<_> = self.calls.iter().collect();
        rows.sort_by_key(|(name, summary)| (std::cmp::Reverse(summary.time), *name));
        writeln!(
            f,
            "{:>12} {:>12} {:>12} {:>8} {:>8}  call",
            "seconds", "each", "longest", "calls", "errors"
        )?;
        for (name, summary) in rows {
            let failed: u64 = summary.errors.values().sum();
            write!(
                f,
                "{:>12} {:>12} {:>12} {:>8} {failed:>8}  {name}",
                Seconds(summary.time).to_string(),
                Seconds(summary.time / summary.calls.max(1)).to_string(),
                Seconds(summary.longest).to_string(),
                summary.calls,
            )?;
            for (index, (errno, count)) in summary.errors.iter().enumerate() {
                let before = if index == 0 { " (" } else { ", " };
                write!(f, "{before}{errno} {count}")?;
            }
            f.write_str(if failed > 0 { ")\n" } else { "\n" })?;
        }
        Ok(())
    }
}
