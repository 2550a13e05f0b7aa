//! What a test program says: the Test Anything Protocol, as the kernel's harness writes it.

use std::{collections::BTreeMap, fmt, ops::AddAssign};

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Passed,
    Failed,
    Skipped,
    /// The program ended, or was stopped, before it said anything about the test.
    Missing,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Missing => "gave no result",
        })
    }
}

/// One test's result.
#[derive(Clone, Debug)]
struct Reported {
    status: Status,
    /// The first thing it complained about, or why it was skipped.
    detail: Option<String>,
}

/// The results of one run of a program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    tests: BTreeMap<String, Reported>,
}

/// Results by name, in the order in which the tests run.
pub(crate) type Results = Vec<(String, Status)>;

impl Run {
    /// Reads `output`; lines that are not of the protocol are the tests' own.
    pub(crate) fn parse(output: &str) -> Self {
        let mut run = Self::default();
        let mut complaint: Option<String> = None;
        // Lines of an assertion in the VFIO library, which go on with their complaint.
        let mut more = 0_u8;
        for line in output.lines() {
            if more > 0
                && let (Some(text), said) = (&mut complaint, line.trim())
            {
                more -= 1;
                if !said.is_empty() {
                    *text += " ";
                    *text += said;
                }
            }
            if line.starts_with("#  RUN ") {
                (complaint, more) = (None, 0);
            } else if complaint.is_none() && line.ends_with(": Assertion Failure") {
                let place = line.trim_end_matches(": Assertion Failure");
                let place = place.rsplit_once('/').map_or(place, |(_, file)| file);
                complaint = Some(format!("{place}:"));
                // An empty line, the expression, what was observed, and errno.
                more = 4;
            } else if let Some(said) = line.strip_prefix("# ") {
                // `# file.c:12:test:Expected ...`; the lines around it only say that it failed.
                if complaint.is_none() && (said.contains(".c:") || said.contains(".h:")) {
                    complaint = Some(said.to_owned());
                }
            } else if let Some((name, mut reported)) = result(line) {
                if reported.status == Status::Failed {
                    reported.detail = complaint.take();
                }
                run.tests.insert(name, reported);
            }
        }
        run
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tests.is_empty()
    }

    /// Adds the results of another program.
    pub(crate) fn extend(&mut self, other: Self) {
        self.tests.extend(other.tests);
    }

    pub(crate) fn status(&self, name: &str) -> Status {
        self.tests
            .get(name)
            .map_or(Status::Missing, |test| test.status)
    }

    pub(crate) fn detail(&self, name: &str) -> Option<&str> {
        self.tests.get(name)?.detail.as_deref()
    }

    /// What became of each of `names`.
    pub(crate) fn results_of(&self, names: &[String]) -> Results {
        let result = |name: &String| (name.clone(), self.status(name));
        names.iter().map(result).collect()
    }
}

/// `ok 12 fixture.variant.test # SKIP why`, or `not ok ...`.
fn result(line: &str) -> Option<(String, Reported)> {
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ')?;
    number.parse::<u64>().ok()?;
    let (name, remark) = match rest.split_once(" # ") {
        Some((name, remark)) => (name, Some(remark)),
        None => (rest, None),
    };
    let skipped = remark.and_then(|remark| remark.strip_prefix("SKIP"));
    let status = match (passed, skipped) {
        (false, _) => Status::Failed,
        (true, Some(_)) => Status::Skipped,
        (true, None) => Status::Passed,
    };
    let detail = skipped.map(|why| why.trim().to_owned());
    Some((name.trim().to_owned(), Reported { status, detail }))
}

/// How many of each; a test without a result counts as failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Counts {
    pub(crate) fn of(results: &[(String, Status)]) -> Self {
        let mut counts = Self::default();
        for (_, status) in results {
            counts.count(*status);
        }
        counts
    }

    pub(crate) fn count(&mut self, status: Status) {
        let field = match status {
            Status::Passed => &mut self.passed,
            Status::Failed | Status::Missing => &mut self.failed,
            Status::Skipped => &mut self.skipped,
        };
        *field = field.saturating_add(1);
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
TAP version 13
1..4
#  RUN           f.v.one ...
#            OK  f.v.one
ok 1 f.v.one
#  RUN           f.v.two ...
# t.c:7:two:Expected 0 (0) == x (-1)
# t.c:8:two:and more
# two: Test terminated by assertion
#          FAIL  f.v.two
not ok 2 f.v.two
#  RUN           f.three ...
ok 3 f.three # SKIP not on this machine
# Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0
";

    #[test]
    fn every_kind_of_result_is_told_apart() {
        let run = Run::parse(OUTPUT);
        let names = ["f.v.one", "f.v.two", "f.three", "f.four"].map(ToOwned::to_owned);
        let results = run.results_of(&names);
        let statuses: Vec<_> = results.iter().map(|(_, status)| *status).collect();
        assert_eq!(
            statuses,
            [
                Status::Passed,
                Status::Failed,
                Status::Skipped,
                Status::Missing
            ]
        );
        assert_eq!(
            Counts::of(&results).to_string(),
            "1 passed, 2 failed, 1 skipped"
        );
    }

    #[test]
    fn a_failure_keeps_its_first_complaint() {
        let run = Run::parse(OUTPUT);
        assert_eq!(
            run.detail("f.v.two"),
            Some("t.c:7:two:Expected 0 (0) == x (-1)")
        );
        assert_eq!(run.detail("f.three"), Some("not on this machine"));
    }

    #[test]
    fn an_assertion_of_the_library_is_a_complaint() {
        let run = Run::parse(
            "#  RUN  f.one ...\n/a/b/iommu.c:448: Assertion Failure\n\n  Expression: fd > 0\n  \
             Observed: -1 > 0\n  [errno: 2 - None]\n\n#  FAIL f.one\nnot ok 1 f.one\n",
        );
        assert_eq!(
            run.detail("f.one"),
            Some("iommu.c:448: Expression: fd > 0 Observed: -1 > 0 [errno: 2 - None]")
        );
    }

    #[test]
    fn other_lines_are_not_results() {
        assert!(Run::parse("okay\nok then\nnot ok maybe\n").is_empty());
    }
}
