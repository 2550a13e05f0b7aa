//! What a run has shown, for a terminal.

use std::{collections::BTreeMap, path::Path};

use super::{
    expect::{Exceptions, Surprise, expected_of},
    launch::{Ended, Outcome},
    tap::{Counts, Results, Run},
};

/// More surprises than this are only counted; all are in the log.
const SHOWN: usize = 40;

/// A line per fixture and variant.
pub(crate) fn fixtures(results: &Results, exceptions: &Exceptions) {
    let mut rows: Vec<(&str, Counts, usize)> = Vec::new();
    for (name, status) in results {
        let fixture = name
            .rsplit_once('.')
            .map_or(name.as_str(), |(fixture, _)| fixture);
        if rows.last().is_none_or(|(last, ..)| *last != fixture) {
            rows.push((fixture, Counts::default(), 0));
        }
        if let Some((_, counts, surprises)) = rows.last_mut() {
            counts.count(*status);
            *surprises += usize::from(*status != expected_of(exceptions, name).status);
        }
    }
    let width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    println!("\n{:width$}  passed  failed  skipped  surprises", "fixture");
    for (name, counts, surprises) in rows {
        println!(
            "{name:width$}  {:6}  {:6}  {:7}  {}",
            counts.passed,
            counts.failed,
            counts.skipped,
            if surprises == 0 {
                "-".to_owned()
            } else {
                surprises.to_string()
            }
        );
    }
}

/// The tests that did not do what was expected, and what they said.
pub(crate) fn surprises(surprises: &[Surprise], run: &Run) {
    if surprises.is_empty() {
        return;
    }
    println!("\nsurprises:");
    for surprise in surprises.iter().take(SHOWN) {
        print!("  {} {}", surprise.name, surprise.status);
        match (&surprise.expected.reason, surprise.expected.status) {
            (Some(reason), status) => println!("; expected: {status}, because {reason}"),
            (None, _) => println!(),
        }
        if let Some(detail) = run.detail(&surprise.name) {
            println!("      {detail}");
        }
    }
    if let Some(more @ 1..) = surprises.len().checked_sub(SHOWN) {
        println!("  and {more} more");
    }
}

/// Why tests did not pass, where that was expected: a line per reason.
pub(crate) fn reasons(results: &Results, exceptions: &Exceptions) {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for (name, status) in results {
        let expected = expected_of(exceptions, name);
        if let (true, Some(reason)) = (*status == expected.status, expected.reason) {
            let count = reasons.entry(format!("{status}: {reason}")).or_default();
            *count = count.saturating_add(1);
        }
    }
    for (reason, count) in reasons {
        println!("  {count} {reason}");
    }
}

/// How `results` differ from those of `oracle`.
pub(crate) fn against(oracle: &Run, results: &Results) {
    let mut differences = 0;
    println!("\ncompared with the other file:");
    for (name, status) in results {
        let other = oracle.status(name);
        if other != *status {
            differences += 1;
            println!("  {name} {status} here, {other} there");
        }
    }
    println!("  {differences} of {} tests differ", results.len());
}

/// How the run ended; whether in good order.
pub(crate) fn outcome(ended: &Ended, counts: &Counts, surprises: usize, log: &Path) -> bool {
    println!(
        "\n{counts} in {:.1} s; surprises: {surprises}",
        ended.time.as_secs_f64()
    );
    println!("all it said: {}", log.display());
    let mut plain = true;
    match ended.outcome {
        // The harness ends with 0, or with 1 if a test failed.
        Outcome::Ended(status) if matches!(status.code(), Some(0 | 1)) => {}
        outcome => {
            println!("the run did not end by itself: {outcome}");
            plain = false;
        }
    }
    if ended.left != 0 {
        println!("{} processes were left behind, ended now", ended.left);
        plain = false;
    }
    if counts.failed != 0 && ended.output.trim().is_empty() {
        println!("the program said nothing at all: can `ioasid run` run here?");
    }
    plain
}
