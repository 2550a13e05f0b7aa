//! A stock QEMU that runs with the loader and libraries of its own release.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use super::{Cache, Origin, bundle::Bundle};

const BUNDLE: Bundle = Bundle {
    package: "qemu-system-x86",
    folder: "qemu",
    starter: "qemu-system-x86_64",
    script: r#"#!/bin/sh
# QEMU from a Debian package, with the loader, libraries and firmware of its own release.
here=$(dirname "$(readlink -f "$0")")
lib=$here/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$lib/qemu"
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$here/usr/bin/qemu-system-x86_64" \
    -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" -L "$here/usr/lib/ipxe/qemu" "$@"
"#,
    needs: |_| true,
};

/// A QEMU in the cache.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// What it says of itself, such as `QEMU emulator version 11.1.3 ...`.
    pub version: String,
    /// The folder, which may be moved or copied as a whole.
    pub folder: PathBuf,
    /// What to run.
    pub program: PathBuf,
}

/// Whether the cache has one.
pub fn is_there(cache: &Cache) -> bool {
    BUNDLE.is_there(cache)
}

/// The QEMU in the cache, fetched if there is none or a `refresh` is asked for.
///
/// # Errors
/// If a tool is missing, the packages cannot be had, or what was fetched does not run.
pub fn fetch(cache: &Cache, origin: &Origin, refresh: bool) -> Result<Qemu> {
    let folder = BUNDLE.fetch(cache, origin, refresh)?;
    let program = folder.join(BUNDLE.starter);
    let said = Command::new(&program)
        .arg("--version")
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    ensure!(
        said.status.success(),
        "{} does not run ({}): {}",
        program.display(),
        said.status,
        String::from_utf8_lossy(&said.stderr).trim()
    );
    let text = String::from_utf8_lossy(&said.stdout);
    let version = text.lines().next().unwrap_or_default().to_owned();
    Ok(Qemu {
        version,
        folder,
        program,
    })
}
