//! Programs from packages that run with the loader and the libraries of their own release, so that
//! neither the host's release nor what is installed on it matters.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Cache,
    apt::{self, Apt, Origin},
    unpack,
};

/// A program and all that it needs.
#[derive(Debug)]
pub struct Bundle {
    /// The package with the program.
    pub package: &'static str,
    /// The folder in the cache.
    pub folder: &'static str,
    /// The script in that folder which starts the program, wherever the folder is moved or copied to.
    pub starter: &'static str,
    /// What the script says.
    pub script: &'static str,
    /// Whether the program needs a package on which it depends, by its file's name.
    pub needs: fn(&str) -> bool,
}

impl Bundle {
    /// Whether the cache has it.
    pub fn is_there(&self, cache: &Cache) -> bool {
        cache.path(self.folder).join(self.starter).exists()
    }

    /// Its folder in the cache, fetched if there is none or a `refresh` is asked for.
    ///
    /// # Errors
    /// If a tool is missing, or the packages cannot be had.
    pub fn fetch(&self, cache: &Cache, origin: &Origin, refresh: bool) -> Result<PathBuf> {
        let folder = cache.path(self.folder);
        if refresh || !self.is_there(cache) {
            let mut packages = Apt::of_guests(cache, origin)?.download_closure(self.package)?;
            let archives = packages.first().and_then(|package| package.parent());
            let archives = archives.map(Path::to_owned);
            packages.retain(|package| {
                let name = package.file_name().unwrap_or_default();
                (self.needs)(&name.to_string_lossy())
            });
            println!("fetch: unpacking {} packages", packages.len());
            unpack(cache, &packages, self.folder)?;
            let starter = folder.join(self.starter);
            fs::write(&starter, self.script)
                .with_context(|| format!("writing {}", starter.display()))?;
            fs::set_permissions(&starter, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("making {} executable", starter.display()))?;
            if let Some(archives) = archives {
                apt::clear(&archives)?;
            }
        }
        Ok(folder)
    }
}

/// Copies a bundle's folder to `place`, where every user can read it.
///
/// # Errors
/// If it cannot be copied.
pub fn copy(folder: &Path, place: &Path) -> Result<()> {
    let copied = Command::new("cp")
        .args(["-a", "--reflink=auto", "--no-preserve=ownership"])
        .arg(folder)
        .arg(place)
        .status()
        .context("running `cp`")?;
    ensure!(copied.success(), "{} could not be copied", folder.display());
    fs::set_permissions(place, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("setting the mode of {}", place.display()))
}
