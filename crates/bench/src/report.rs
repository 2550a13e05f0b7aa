//! The tables as JSON, for a program that compares runs.
//!
//! A figure that cannot be had (there was no sample) is `null`.

use serde::Serialize;

/// Rises when a field changes its meaning or goes; a new field leaves it.
pub(crate) const VERSION: u32 = 1;

/// A run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) version: u32,
    /// Whether the program was optimised; the figures mean nothing when it was not.
    pub(crate) optimised: bool,
    /// Whether `--short` was given.
    pub(crate) short: bool,
    /// What the machine can do at most, in words.
    pub(crate) host: String,
    pub(crate) tables: Vec<Table>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Table {
    /// The benchmark that the table belongs to.
    pub(crate) benchmark: &'static str,
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    pub(crate) note: Option<String>,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// In the table's unit.
    pub(crate) value: Quartiles,
    /// Of the first row, paired by round; the first row has none.
    pub(crate) ratio: Option<Quartiles>,
    pub(crate) goals: Vec<Goal>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Goal {
    /// The name of the row that the ratio is of.
    pub(crate) anchor: String,
    pub(crate) at_most: f64,
    pub(crate) ratio: Quartiles,
    /// `met`, `close` or `missed`.
    pub(crate) verdict: &'static str,
}

#[derive(Debug, Serialize)]
pub(crate) struct Quartiles {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl From<crate::measure::Quartiles> for Quartiles {
    fn from(of: crate::measure::Quartiles) -> Self {
        let crate::measure::Quartiles { low, median, high } = of;
        Quartiles { low, median, high }
    }
}

/// The goals that were missed, a line each.
pub(crate) fn missed(tables: &[Table]) -> Vec<String> {
    let rows = tables
        .iter()
        .flat_map(|table| table.rows.iter().map(move |row| (table, row)));
    let goals = rows.flat_map(|(table, row)| row.goals.iter().map(move |goal| (table, row, goal)));
    goals
        .filter(|(_, _, goal)| goal.verdict == "missed")
        .map(|(table, row, goal)| format!("{}: {} of {}", table.title, row.name, goal.anchor))
        .collect()
}
