//! Where the workspace is, and cargo run in it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The workspace's folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where cargo puts what it builds.
pub fn target_directory() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(path) => root().join(path),
        None => root().join("target"),
    }
}

/// The cargo that runs this program, in the workspace.
pub fn cargo() -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    command
}

/// Prints `command` and runs it.
///
/// # Errors
/// If it cannot be run or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let words = |command: &Command| {
        let program = Path::new(command.get_program());
        let mut words = vec![program.file_name().unwrap_or_default().to_owned()];
        words.extend(command.get_args().map(ToOwned::to_owned));
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    };
    println!("$ {}", words(command));
    let status = command.status().with_context(|| words(command))?;
    if status.success() {
        Ok(())
    } else {
        bail!("`{}` failed ({status})", words(command))
    }
}

/// The program `ioasid`: the one that is `given`, or one that is built, optimised.
///
/// # Errors
/// If cargo fails.
pub fn ioasid(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    run(cargo().args(["build", "--release", "--package", "ioasid"]))?;
    Ok(target_directory().join("release/ioasid"))
}

/// The paths of what is in `directory`.
///
/// # Errors
/// If it cannot be read.
pub fn read_dir(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect())
}

/// The name in the manifest of `directory`.
pub fn package_name(directory: &Path) -> Option<String> {
    let manifest = fs::read_to_string(directory.join("Cargo.toml")).ok()?;
    let mut lines = manifest.lines();
    let name = lines.find_map(|line| line.strip_prefix("name = "))?;
    Some(name.trim_matches('"').to_owned())
}
