//! The names of a program's tests, from its own list.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

/// The tests of `program` in the order in which it runs them, as `fixture.variant.test`.
///
/// # Errors
/// If the program cannot be run or lists nothing.
pub(crate) fn of(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program)
        .arg("-l")
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    let names = parse(&String::from_utf8_lossy(&output.stderr));
    if names.is_empty() {
        bail!(
            "`{} -l` lists no test ({})",
            program.display(),
            output.status
        );
    }
    Ok(names)
}

/// Those of `all` that contain one of `filters`; all without a filter.
///
/// # Errors
/// If none is left.
pub(crate) fn choose(all: &[String], filters: &[String]) -> Result<Vec<String>> {
    if filters.is_empty() {
        return Ok(all.to_vec());
    }
    let matches = |name: &&String| filters.iter().any(|filter| name.contains(filter.as_str()));
    let chosen: Vec<_> = all.iter().filter(matches).cloned().collect();
    if chosen.is_empty() {
        bail!("no test's name contains `{}`", filters.join("` or `"));
    }
    Ok(chosen)
}

/// Reads the list: a block per fixture, its variants and its tests in two columns side by side.
/// What else the program says, before or after it, is left out.
pub(crate) fn parse(text: &str) -> Vec<String> {
    /// Where the columns begin unless a name is too long for its own.
    const VARIANT: usize = 21;
    const TEST: usize = 47;

    let mut names = Vec::new();
    let rows: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for block in rows.split(|line| line.starts_with("---")) {
        let Some((first, rest)) = block.split_first() else {
            continue;
        };
        let (mut variants, mut tests) = (Vec::new(), Vec::new());
        let fixture = match first.split_whitespace().collect::<Vec<_>>()[..] {
            [fixture, variant, test] => {
                variants.push(variant);
                tests.push(test);
                fixture
            }
            [fixture, test] => {
                tests.push(test);
                fixture
            }
            _ => continue,
        };
        for row in rest {
            // A row that goes on with the block has no fixture.
            let begin = row.len().saturating_sub(row.trim_start().len());
            match row.split_whitespace().collect::<Vec<_>>()[..] {
                [test] if begin >= TEST => tests.push(test),
                [variant] if begin == VARIANT => variants.push(variant),
                [variant, test] if begin == VARIANT => {
                    variants.push(variant);
                    tests.push(test);
                }
                _ => {}
            }
        }
        if variants.is_empty() {
            names.extend(tests.iter().map(|test| format!("{fixture}.{test}")));
        }
        for variant in variants {
            names.extend(
                tests
                    .iter()
                    .map(|test| format!("{fixture}.{variant}.{test}")),
            );
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
# FIXTURE            VARIANT                   TEST
global                                         
--------------------------------------------------------------------------------
alone                                          first
                                               second
--------------------------------------------------------------------------------
a_name_that_is_too_long one                       first
                     two                       second
                     three                     
                     with_a_name_that_is_too_long 
Something else that the program says:
    0000:00:00.0
";

    #[test]
    fn variants_multiply_tests() {
        let names = parse(LIST);
        assert_eq!(names.len(), 2 + 4 * 2);
        assert_eq!(
            &names[..3],
            [
                "alone.first",
                "alone.second",
                "a_name_that_is_too_long.one.first"
            ]
        );
        assert_eq!(names[7], "a_name_that_is_too_long.three.second");
    }

    #[test]
    fn a_filter_that_fits_nothing_is_an_error() {
        let names = parse(LIST);
        assert_eq!(choose(&names, &["alone.".to_owned()]).unwrap().len(), 2);
        assert!(choose(&names, &["none".to_owned()]).is_err());
    }
}
