//! `cargo xtask fuzz`: the fuzz targets, each for a number of inputs.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use xtask::workspace::{cargo, read_dir, root, run};

/// Which targets, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// One target alone; all of them if none is named.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Inputs for each target; the long form is 10000000. A target whose inputs are rows of many messages
    /// has so many fewer.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    runs: u64,
}

/// Targets whose inputs are rows of messages or accesses, and how many an input has on the average at least.
const ROWS: [(&str, u64); 2] = [("nested", 40), ("vfio_user", 30)];

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
        let rows = ROWS.iter().find(|(target, _)| *target == name);
        let runs = arguments
            .runs
            .div_ceil(rows.map_or(1, |(_, messages)| *messages));
        // The flags of the instrumentation are in the configuration of that folder.
        run(cargo()
            .current_dir(&house)
            .args(["run", "--release", "--bin", &name, "--"])
            .arg(&corpus)
            .arg(format!("-runs={runs}"))
            .arg(format!("-max_len={LARGEST}"))
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .args(["-print_final_stats=1", "-verbosity=0"]))
        .with_context(|| format!("{name}: see {}", findings.display()))?;
        println!("fuzz {name}: {runs} inputs, no finding");
    }
    Ok(())
}

/// The names of the targets.
fn targets(house: &Path) -> Result<Vec<String>> {
    let mut names: Vec<_> = read_dir(&house.join("fuzz_targets"))?
        .iter()
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}
