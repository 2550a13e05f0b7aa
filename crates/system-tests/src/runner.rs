//! Named tests of one subject, one after the other: what every test program of this crate runs.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

/// A test of a subject, and what it measured if it passed.
pub type Test<S> = fn(&S) -> Result<String>;

/// Runs the tests that `arguments` select, in their order, and prints what they measured.
///
/// Every test counts as ignored, for each program takes minutes and builds or fetches others first:
/// `--ignored` or `--include-ignored` runs them. Only then, and before the first of them, the subject
/// is made by `set_up`; without it all of them fail.
pub fn run<S: Send + Sync + 'static>(
    mut arguments: Arguments,
    tests: &[(&'static str, Test<S>)],
    set_up: impl Fn() -> Result<S> + Send + Sync + 'static,
) -> ExitCode {
    // They share the machine: what one measures, another one must not disturb.
    arguments.test_threads = Some(1);
    let asked = !arguments.list && (arguments.ignored || arguments.include_ignored);
    let subject = Arc::new(OnceLock::new());
    let set_up = Arc::new(set_up);
    let measured = Arc::new(Mutex::new(Vec::new()));
    let trials = tests.iter().map(|&(name, test)| {
        let (subject, set_up) = (Arc::clone(&subject), Arc::clone(&set_up));
        let measured = Arc::clone(&measured);
        let trial = Trial::test(name, move || {
            let subject = subject.get_or_init(|| set_up().map_err(|error| format!("{error:#}")));
            let subject = subject
                .as_ref()
                .map_err(|error| Failed::from(error.as_str()))?;
            let start = Instant::now();
            let said = test(subject).map_err(|error| Failed::from(format!("{error:#}")))?;
            let line = format!(
                "{name} ({:.1} s)\n    {said}",
                start.elapsed().as_secs_f64()
            );
            measured
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
            Ok(())
        });
        trial.with_ignored_flag(true)
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    for line in measured
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        println!("{line}");
    }
    // A misspelt filter must not pass.
    if conclusion.has_failed() || (asked && conclusion.num_passed == 0) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    const TESTS: &[(&str, Test<u32>)] = &[
        ("one is set up", |one| {
            anyhow::ensure!(*one == 1, "it is {one}");
            Ok(String::new())
        }),
        ("two is set up", |two| {
            anyhow::ensure!(*two == 2, "it is {two}");
            Ok(String::new())
        }),
    ];

    fn runs(filter: Option<&str>, ignored: bool) -> bool {
        let arguments = Arguments {
            filter: filter.map(str::to_owned),
            ignored,
            // Nothing on a terminal says that a test has failed.
            logfile: Some("/dev/null".to_owned()),
            ..Arguments::default()
        };
        let code = run(arguments, TESTS, || Ok(1));
        format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS)
    }

    #[test]
    fn a_test_that_fails_or_is_not_there_is_a_failure() {
        assert!(runs(Some("one"), true));
        assert!(!runs(Some("two"), true));
        assert!(!runs(Some("three"), true));
    }

    #[test]
    fn nothing_is_set_up_unless_it_is_asked_for() {
        let never = || -> Result<u32> { anyhow::bail!("not asked for") };
        let arguments = Arguments {
            logfile: Some("/dev/null".to_owned()),
            ..Arguments::default()
        };
        let code = run(arguments, TESTS, never);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
    }
}
