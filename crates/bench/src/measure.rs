//! Contenders take turns in short slots, the order rotates every round, and ratios are paired within
//! a round.

use std::fmt;

use crate::clock::thread_cpu;
use crate::report;

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Rounds; each contender has one slot in each.
    pub(crate) rounds: usize,
    /// Thread CPU time of one slot, nanoseconds.
    pub(crate) slot: u64,
}

impl Effort {
    /// For figures to compare.
    pub(crate) const FULL: Effort = Effort {
        rounds: 15,
        slot: 8_000_000,
    };
    /// To see that everything runs.
    pub(crate) const SHORT: Effort = Effort {
        rounds: 5,
        slot: 2_000_000,
    };
}

/// One way of doing the work.
pub(crate) struct Contender<'a> {
    name: String,
    units: f64,
    goals: Vec<Goal>,
    /// Does so many iterations and gives back the nanoseconds they took.
    run: Box<dyn FnMut(u64) -> u64 + 'a>,
}

/// At most so many times what the anchor takes.
#[derive(Clone, Copy, Debug)]
struct Goal {
    anchor: usize,
    at_most: f64,
}

impl<'a> Contender<'a> {
    /// A contender whose loop `run(iterations)` is timed from outside, in thread CPU time.
    pub(crate) fn new(name: impl Into<String>, mut run: impl FnMut(u64) + 'a) -> Self {
        Contender::timing_itself(name, move |iterations| {
            let before = thread_cpu();
            run(iterations);
            thread_cpu() - before
        })
    }

    /// A contender that gives back the nanoseconds of the part that counts.
    pub(crate) fn timing_itself(name: impl Into<String>, run: impl FnMut(u64) -> u64 + 'a) -> Self {
        Contender {
            name: name.into(),
            units: 1.0,
            goals: Vec::new(),
            run: Box::new(run),
        }
    }

    /// One iteration does `units` of what the table counts.
    pub(crate) fn per(mut self, units: u64) -> Self {
        self.units = units as f64;
        self
    }

    /// Should take at most `at_most` times what contender number `anchor` takes.
    pub(crate) fn goal(mut self, anchor: usize, at_most: f64) -> Self {
        self.goals.push(Goal { anchor, at_most });
        self
    }
}

/// What a table shows.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    unit: &'static str,
    note: Option<String>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    /// Nanoseconds per unit, one per round.
    samples: Vec<f64>,
    goals: Vec<Goal>,
}

/// How a goal came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The median ratio is within it.
    Met,
    /// The better quartile is within it.
    Close,
    /// Not even that.
    Missed,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::Close => "close",
            Verdict::Missed => "missed",
        }
    }
}

/// Lower quartile, median and upper quartile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quartiles {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Quartiles {
    pub(crate) fn of(mut values: Vec<f64>) -> Quartiles {
        values.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = (values.len().max(1) - 1) as f64 * part;
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            match (values.get(below), values.get(above)) {
                (Some(low), Some(high)) => low + (high - low) * place.fract(),
                _ => f64::NAN,
            }
        };
        Quartiles {
            low: at(0.25),
            median: at(0.5),
            high: at(0.75),
        }
    }
}

/// Lets the contenders take turns.
pub(crate) fn measure(
    title: impl Into<String>,
    unit: &'static str,
    effort: Effort,
    mut contenders: Vec<Contender<'_>>,
) -> Table {
    let iterations: Vec<u64> = contenders
        .iter_mut()
        .map(|contender| calibrate(&mut contender.run, effort.slot))
        .collect();
    let mut rows: Vec<Row> = contenders
        .iter()
        .map(|contender| Row {
            name: contender.name.clone(),
            samples: Vec::with_capacity(effort.rounds),
            goals: contender.goals.clone(),
        })
        .collect();
    let count = contenders.len();
    for round in 0..effort.rounds {
        for turn in 0..count {
            let index = (turn + round) % count;
            let contender = &mut contenders[index];
            let took = (contender.run)(iterations[index]);
            let per_unit = took as f64 / (iterations[index] as f64 * contender.units);
            rows[index].samples.push(per_unit);
        }
    }
    Table {
        title: title.into(),
        unit,
        note: None,
        rows,
    }
}

/// Iterations that fill a slot; also warms the contender up.
fn calibrate(run: &mut dyn FnMut(u64) -> u64, slot: u64) -> u64 {
    let mut iterations = 1;
    loop {
        let took = run(iterations).max(1);
        if took >= slot / 4 || iterations >= 1 << 40 {
            return (iterations as f64 * slot as f64 / took as f64).max(1.0) as u64;
        }
        let factor = (slot / 2 / took).clamp(2, 16);
        iterations *= factor;
    }
}

impl Table {
    /// A table of samples that were taken in another way, paired by their index.
    pub(crate) fn from_samples(
        title: impl Into<String>,
        unit: &'static str,
        rows: Vec<(String, Vec<f64>, Option<f64>)>,
    ) -> Table {
        let rows = rows.into_iter().map(|(name, samples, goal)| Row {
            name,
            samples,
            goals: goal
                .map(|at_most| Goal { anchor: 0, at_most })
                .into_iter()
                .collect(),
        });
        Table {
            title: title.into(),
            unit,
            note: None,
            rows: rows.collect(),
        }
    }

    /// A line under the title.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Table {
        self.note = Some(note.into());
        self
    }

    /// The first row, and of the others the one with the largest ratio to it.
    pub(crate) fn only_worst(mut self) -> Table {
        let median = |row: &Row| self.ratio(row, 0).map_or(f64::NAN, |ratio| ratio.median);
        let ratios: Vec<f64> = self.rows.iter().map(median).collect();
        let others = ratios.iter().enumerate().skip(1);
        let worst = others.max_by(|a, b| a.1.total_cmp(b.1));
        if let Some((worst, _)) = worst {
            self.rows.swap(1, worst);
            self.rows.truncate(2);
        }
        for anchor in self.rows.iter_mut().take(1) {
            anchor.goals.clear();
        }
        self
    }

    fn ratio(&self, row: &Row, anchor: usize) -> Option<Quartiles> {
        let anchor = self.rows.get(anchor)?;
        let pairs = row.samples.iter().zip(&anchor.samples);
        Some(Quartiles::of(pairs.map(|(a, b)| a / b).collect()))
    }

    fn verdict(&self, row: &Row, goal: Goal) -> Option<(Verdict, Quartiles)> {
        let ratio = self.ratio(row, goal.anchor)?;
        let verdict = if ratio.median <= goal.at_most {
            Verdict::Met
        } else if ratio.low <= goal.at_most {
            Verdict::Close
        } else {
            Verdict::Missed
        };
        Some((verdict, ratio))
    }

    /// How each goal came out.
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        let goals = |row: &'_ Row| row.goals.clone();
        let rows = self.rows.iter();
        rows.flat_map(|row| goals(row).into_iter().map(move |goal| (row, goal)))
            .filter_map(|(row, goal)| Some(self.verdict(row, goal)?.0))
            .collect()
    }

    /// What the table shows, for a program; `benchmark` is what it belongs to.
    pub(crate) fn report(&self, benchmark: &'static str) -> report::Table {
        let goal = |row: &Row, goal: Goal| {
            let (verdict, ratio) = self.verdict(row, goal)?;
            Some(report::Goal {
                anchor: self.rows.get(goal.anchor)?.name.clone(),
                at_most: goal.at_most,
                ratio: ratio.into(),
                verdict: verdict.word(),
            })
        };
        let rows = self.rows.iter().enumerate();
        let rows = rows.map(|(index, row)| report::Row {
            name: row.name.clone(),
            value: Quartiles::of(row.samples.clone()).into(),
            ratio: (index > 0)
                .then(|| self.ratio(row, 0).map(Into::into))
                .flatten(),
            goals: row.goals.iter().filter_map(|&g| goal(row, g)).collect(),
        });
        report::Table {
            benchmark,
            title: self.title.clone(),
            unit: self.unit,
            note: self.note.clone(),
            rows: rows.collect(),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        if let Some(note) = &self.note {
            writeln!(f, "  ({note})")?;
        }
        for (index, row) in self.rows.iter().enumerate() {
            let median = Quartiles::of(row.samples.clone()).median;
            write!(f, "  {:<34} {:>10} {}", row.name, number(median), self.unit)?;
            if index > 0
                && let Some(ratio) = self.ratio(row, 0)
            {
                let quartiles = format!("[{} .. {}]", number(ratio.low), number(ratio.high));
                write!(f, " {:>7}x {quartiles}", number(ratio.median))?;
            }
            writeln!(f)?;
            for &goal in &row.goals {
                let Some((verdict, ratio)) = self.verdict(row, goal) else {
                    continue;
                };
                let word = verdict.word();
                let (most, anchor) = (goal.at_most, &self.rows[goal.anchor].name);
                let is = number(ratio.median);
                writeln!(
                    f,
                    "      goal {word}: {is}x {anchor}, to be at most {most}x"
                )?;
            }
        }
        Ok(())
    }
}

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_values() {
        let q = Quartiles::of(vec![4.0, 1.0, 3.0, 2.0, 5.0]);
        assert_eq!((q.low, q.median, q.high), (2.0, 3.0, 4.0));
        let q = Quartiles::of(vec![1.0, 2.0]);
        assert_eq!((q.low, q.median, q.high), (1.25, 1.5, 1.75));
        assert!(Quartiles::of(Vec::new()).median.is_nan());
    }

    #[test]
    fn ratios_are_paired_by_round_and_judge_the_goal() {
        // The machine became ten times slower after two rounds: the ratio did not change.
        let peer = vec![1.0, 1.0, 10.0, 10.0];
        let ours: Vec<f64> = peer.iter().map(|value| value * 2.0).collect();
        let rows = vec![
            ("peer".to_owned(), peer, None),
            ("met".to_owned(), ours.clone(), Some(2.0)),
            ("missed".to_owned(), ours, Some(1.9)),
        ];
        let table = Table::from_samples("t", "ns", rows);
        assert_eq!(table.verdicts(), [Verdict::Met, Verdict::Missed]);
        let ratio = table.ratio(&table.rows[1], 0).unwrap();
        assert_eq!((ratio.low, ratio.high), (2.0, 2.0));
    }

    #[test]
    fn a_report_says_what_the_table_shows() {
        let rows = vec![
            ("peer".to_owned(), vec![1.0, 2.0, 4.0], None),
            ("ours".to_owned(), vec![3.0, 6.0, 12.0], Some(2.0)),
        ];
        let table = Table::from_samples("t", "ns", rows).note("n");
        let three = serde_json::json!({"low": 3.0, "median": 3.0, "high": 3.0});
        let expected = serde_json::json!({
            "benchmark": "b", "title": "t", "unit": "ns", "note": "n",
            "rows": [
                {
                    "name": "peer", "value": {"low": 1.5, "median": 2.0, "high": 3.0},
                    "ratio": null, "goals": [],
                },
                {
                    "name": "ours", "value": {"low": 4.5, "median": 6.0, "high": 9.0},
                    "ratio": three,
                    "goals": [
                        {"anchor": "peer", "at_most": 2.0, "ratio": three, "verdict": "missed"},
                    ],
                },
            ],
        });
        assert_eq!(serde_json::to_value(table.report("b")).unwrap(), expected);
    }

    #[test]
    fn the_worst_row_stays_beside_the_anchor() {
        let row = |name: &str, sample| (name.to_owned(), vec![sample; 3], Some(2.0));
        let rows = vec![
            row("anchor", 4.0),
            row("a", 1.0),
            row("b", 9.0),
            row("c", 8.0),
        ];
        let table = Table::from_samples("t", "ns", rows).only_worst();
        let names: Vec<_> = table.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["anchor", "b"]);
        assert_eq!(table.verdicts(), [Verdict::Missed]);
    }

    #[test]
    fn every_contender_has_one_slot_per_round() {
        let effort = Effort {
            rounds: 3,
            slot: 1000,
        };
        let contenders = (1..=3)
            .map(|cost| Contender::timing_itself("c", move |n| n * cost * 10))
            .collect();
        let table = measure("t", "ns", effort, contenders);
        for (row, cost) in table.rows.iter().zip([10.0, 20.0, 30.0]) {
            assert_eq!(row.samples, [cost; 3]);
        }
    }
}
