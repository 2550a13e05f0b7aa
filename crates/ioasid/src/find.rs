//! Which running machine a command is about.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use ioasid_supervisor::control;

/// The socket of the machine called, or at, `machine`.
pub(crate) fn socket(machine: &str) -> Result<PathBuf> {
    let path = control::socket_path(machine)?;
    if !path.exists() {
        let found = control::find_machines();
        if found.is_empty() {
            bail!("no machine `{machine}` is running; start one with `ioasid serve`");
        }
        let found: Vec<_> = found.iter().map(|path| machine_name(path)).collect();
        bail!(
            "no machine `{machine}` is running; there is {}",
            found.join(", ")
        );
    }
    Ok(path)
}

/// The name of the machine with this socket.
pub(crate) fn machine_name(path: &Path) -> String {
    path.file_stem()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// The machine that was named, or the only one.
pub(crate) fn chosen(machine: Option<&str>) -> Result<PathBuf> {
    match machine {
        Some(machine) => socket(machine),
        None => match control::find_machines().as_slice() {
            [] => bail!("no machine is running; start one with `ioasid serve`"),
            [only] => Ok(only.clone()),
            several => {
                let names: Vec<_> = several.iter().map(|path| machine_name(path)).collect();
                bail!(
                    "several machines are running, name one: {}",
                    names.join(", ")
                )
            }
        },
    }
}
