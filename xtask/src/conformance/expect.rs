//! What is expected of each test: to pass, unless a file says otherwise and why.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{
    hugepages::{self, Hugepages},
    tap::{Results, Status},
};
use xtask::{fetch::source::numbers, workspace::read_dir};

/// A file of expectations, `SUITE-KERNEL.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expectations {
    /// How many tests the program has.
    tests: usize,
    #[serde(default)]
    skip: Vec<Exception>,
    #[serde(default)]
    fail: Vec<Exception>,
}

/// Tests that do not pass, for one reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    /// Said in words for a reader; may not be empty.
    reason: String,
    #[serde(default)]
    when: When,
    tests: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum When {
    #[default]
    Always,
    /// Where the host has too few huge pages of 2 MiB.
    NoHugepages,
    /// Where the host has no free huge page of 1 GiB.
    NoGigantic,
}

/// What of the host decides what a test can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    /// Enough free huge pages of 2 MiB.
    pub(crate) hugepages: bool,
    /// A free huge page of 1 GiB.
    pub(crate) gigantic: bool,
}

impl Host {
    /// The host as it is, with `pool`.
    pub(crate) fn look(pool: &Hugepages) -> Self {
        Self {
            hugepages: pool.enough(),
            gigantic: hugepages::gigantic_is_free(),
        }
    }

    /// Whether an exception counts here.
    fn fits(self, when: When) -> bool {
        match when {
            When::Always => true,
            When::NoHugepages => !self.hugepages,
            When::NoGigantic => !self.gigantic,
        }
    }
}

/// What one test is expected to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) status: Status,
    pub(crate) reason: Option<String>,
}

/// Expectations by name; a test that is not in it shall pass.
pub(crate) type Exceptions = BTreeMap<String, Expected>;

impl Expectations {
    /// The file in `folder` for `suite` and the kernel `version`, or else for the newest kernel
    /// before it.
    ///
    /// # Errors
    /// If there is none, or it cannot be understood.
    pub(crate) fn find(folder: &Path, suite: &str, version: &str) -> Result<Self> {
        let files = read_dir(folder)?;
        let kernel = |path: &PathBuf| {
            let stem = path.file_stem()?.to_str()?.to_owned();
            let kernel = stem.strip_prefix(suite)?.strip_prefix('-')?.to_owned();
            // Otherwise it is of a suite whose name begins like this one's.
            let is_version = kernel.starts_with(|first: char| first.is_ascii_digit());
            is_version.then_some(())?;
            Some((numbers(&kernel), path.clone()))
        };
        let known = files.iter().filter_map(kernel);
        let version = numbers(version);
        let fits = known.filter(|(kernel, _)| {
            !kernel.is_empty() && version.get(..kernel.len()) >= Some(kernel.as_slice())
        });
        let Some((kernel, path)) = fits.max() else {
            bail!(
                "{} has no expectations of `{suite}` for this kernel or an older one",
                folder.display()
            );
        };
        if version.get(..kernel.len()) != Some(kernel.as_slice()) {
            println!(
                "conformance: no expectations for this kernel yet; comparing with those of an older one, {}",
                path.display()
            );
        }
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not as it should be", path.display()))
    }

    /// The exceptions that count on `host`.
    ///
    /// # Errors
    /// If the file speaks of tests that the program, which has the tests `all`, does not have, or
    /// of one test twice, or gives no reason.
    pub(crate) fn of(&self, all: &[String], host: Host) -> Result<Exceptions> {
        if all.len() != self.tests {
            bail!(
                "the program has {} tests, the expectations are for {}: look at what is new and write it down",
                all.len(),
                self.tests
            );
        }
        self.of_some(all, host)
    }

    /// How many tests there are.
    pub(crate) fn count(&self) -> usize {
        self.tests
    }

    /// As [`Self::of`], where some tests may not be known.
    ///
    /// # Errors
    /// As for [`Self::of`], but for the number; a name that is not known is one only if all are.
    pub(crate) fn of_some(&self, all: &[String], host: Host) -> Result<Exceptions> {
        if all.len() > self.tests {
            bail!(
                "there are {} tests, the expectations are for {}: look at what is new and write it down",
                all.len(),
                self.tests
            );
        }
        let known: BTreeSet<_> = all.iter().collect();
        let mut exceptions = Exceptions::new();
        let mut named = BTreeSet::new();
        let skips = self
            .skip
            .iter()
            .map(|exception| (Status::Skipped, exception));
        let fails = self
            .fail
            .iter()
            .map(|exception| (Status::Failed, exception));
        for (status, exception) in skips.chain(fails) {
            if exception.reason.trim().is_empty() {
                bail!(
                    "the expectations give no reason for {}",
                    exception.tests.join(", ")
                );
            }
            for name in &exception.tests {
                if !known.contains(name) && all.len() == self.tests {
                    bail!("the expectations speak of `{name}`, which is no test of the program");
                }
                if !named.insert((name, exception.when == When::Always)) {
                    bail!("the expectations speak of `{name}` twice");
                }
                if !host.fits(exception.when) {
                    continue;
                }
                let reason = Some(exception.reason.clone());
                exceptions.insert(name.clone(), Expected { status, reason });
            }
        }
        Ok(exceptions)
    }
}

/// A test that did something else than it was expected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Surprise {
    pub(crate) name: String,
    pub(crate) status: Status,
    pub(crate) expected: Expected,
}

/// What in `results` is not as `exceptions` say.
pub(crate) fn surprises(exceptions: &Exceptions, results: &Results) -> Vec<Surprise> {
    let surprise = |(name, status): &(String, Status)| {
        let expected = expected_of(exceptions, name);
        (*status != expected.status).then(|| Surprise {
            name: name.clone(),
            status: *status,
            expected,
        })
    };
    results.iter().filter_map(surprise).collect()
}

/// What `name` is expected to do.
pub(crate) fn expected_of(exceptions: &Exceptions, name: &str) -> Expected {
    exceptions.get(name).cloned().unwrap_or(Expected {
        status: Status::Passed,
        reason: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expectations(text: &str) -> Expectations {
        toml::from_str(text).unwrap()
    }

    const BARE: Host = Host {
        hugepages: false,
        gigantic: false,
    };

    fn names() -> Vec<String> {
        ["a.x", "a.y", "a.z"].map(ToOwned::to_owned).to_vec()
    }

    const TEXT: &str = r#"
        tests = 3
        [[skip]]
        reason = "this variant has no such object"
        tests = ["a.x"]
        [[fail]]
        when = "no-hugepages"
        reason = "maps huge pages"
        tests = ["a.y"]
    "#;

    #[test]
    fn surprises_go_both_ways() {
        let exceptions = expectations(TEXT).of(&names(), BARE).unwrap();
        let results: Results = names()
            .into_iter()
            .zip([Status::Skipped, Status::Passed, Status::Failed])
            .collect();
        let surprises = surprises(&exceptions, &results);
        let names: Vec<_> = surprises
            .iter()
            .map(|surprise| surprise.name.as_str())
            .collect();
        assert_eq!(names, ["a.y", "a.z"]);
        assert_eq!(surprises[0].expected.status, Status::Failed);
        assert_eq!(surprises[1].expected.reason, None);
    }

    #[test]
    fn with_huge_pages_their_tests_shall_pass() {
        let exceptions = expectations(TEXT)
            .of(
                &names(),
                Host {
                    hugepages: true,
                    ..BARE
                },
            )
            .unwrap();
        assert_eq!(expected_of(&exceptions, "a.y").status, Status::Passed);
        assert_eq!(expected_of(&exceptions, "a.x").status, Status::Skipped);
    }

    #[test]
    fn a_wrong_file_is_refused() {
        let of = |text: &str| expectations(text).of(&names(), BARE);
        assert!(of("tests = 4").is_err(), "another number of tests");
        assert!(
            of("tests = 3\n[[fail]]\nreason = \"r\"\ntests = [\"a.w\"]").is_err(),
            "no such test"
        );
        assert!(
            of("tests = 3\n[[fail]]\nreason = \" \"\ntests = [\"a.x\"]").is_err(),
            "no reason"
        );
        assert!(
            of("tests = 3\n[[fail]]\nreason = \"r\"\ntests = [\"a.x\", \"a.x\"]").is_err(),
            "twice"
        );
        assert!(of("tests = 3").is_ok());
    }

    #[test]
    fn a_suite_is_not_taken_for_one_whose_name_is_longer() {
        let folder = tempfile::tempdir().unwrap();
        for (name, tests) in [("a-7.2.toml", 1), ("a-b-7.2.toml", 2)] {
            fs::write(folder.path().join(name), format!("tests = {tests}")).unwrap();
        }
        let count = |suite| {
            Expectations::find(folder.path(), suite, "7.2.13")
                .unwrap()
                .count()
        };
        assert_eq!((count("a"), count("a-b")), (1, 2));
    }

    #[test]
    fn the_files_in_the_repository_are_understood() {
        let folder = xtask::workspace::root().join("conformance");
        for suite in ["iommufd", "iommufd_fail_nth"] {
            Expectations::find(&folder, suite, "7.2.13").unwrap();
            Expectations::find(&folder, suite, "7.10").unwrap();
            assert!(Expectations::find(&folder, suite, "6.1").is_err());
        }
    }
}
