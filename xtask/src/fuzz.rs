//! `cargo xtask fuzz`: the fuzz targets, each for a number of inputs.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{cargo, read_dir, root, run};

/// Which targets, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// One target alone; all of them if none is named.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Inputs for each target; the long form is 10000000.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    runs: u64,
}

/// The largest input of any target, in bytes.
const LARGEST: u32 = 3200;

/// Runs them. A finding ends the run, and is left as a file beside the corpus.
pub(crate) fn run_targets(arguments: &Fuzz) -> Result<()> {
    ensure!(
        arguments.runs > 0,
        "no run shows nothing: --runs 1 at least"
    );
    let house = root().join("fuzz");
    let targets = targets(&house)?;
    let chosen: Vec<_> = match &arguments.target {
        None => targets,
        Some(name) if targets.contains(name) => vec![name.clone()],
        Some(name) => bail!("there is no target `{name}`, only {}", targets.join(", ")),
    };
    for name in chosen {
        let corpus = house.join("corpus").join(&name);
        let findings = house.join("artifacts").join(&name);
        for folder in [&corpus, &findings] {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        // The flags of the instrumentation are in the configuration of that folder.
        run(cargo()
            .current_dir(&house)
            .args(["run", "--release", "--bin", &name, "--"])
            .arg(&corpus)
            .arg(format!("-runs={}", arguments.runs))
            .arg(format!("-max_len={LARGEST}"))
            .args(options(&house, &name)?)
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .args(["-print_final_stats=1", "-verbosity=0"]))
        .with_context(|| format!("{name}: see {}", findings.display()))?;
        println!("fuzz {name}: {} inputs, no finding", arguments.runs);
    }
    Ok(())
}

/// The names of the targets.
fn targets(house: &Path) -> Result<Vec<String>> {
    let mut names: Vec<_> = read_dir(&house.join("fuzz_targets"))?
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// What a target wants of libFuzzer: the lines behind `[libfuzzer]` of its `.options`, if it has one.
fn options(house: &Path, name: &str) -> Result<Vec<String>> {
    let path = house
        .join("fuzz_targets")
        .join(name)
        .with_extension("options");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines = text.lines().skip_while(|line| line.trim() != "[libfuzzer]");
    let pairs = lines.filter_map(|line| line.split_once('='));
    Ok(pairs
        .map(|(key, value)| format!("-{}={}", key.trim(), value.trim()))
        .collect())
}
