//! Unpacking packages, all or nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::Cache;

/// Unpacks `packages` over one another into the folder `name` of the cache, in place of what is
/// there: the folder. A folder that is there is complete.
///
/// # Errors
/// If `dpkg-deb` is missing or cannot unpack one.
pub fn unpack(cache: &Cache, packages: &[PathBuf], name: &str) -> Result<PathBuf> {
    let half = cache.path(format!("{name}.half"));
    remove(&half)?;
    fs::create_dir(&half).with_context(|| format!("making {}", half.display()))?;
    for package in packages {
        let status = Command::new("dpkg-deb")
            .arg("-x")
            .arg(package)
            .arg(&half)
            .status()
            .context("running `dpkg-deb`")?;
        ensure!(
            status.success(),
            "`dpkg-deb` could not unpack {}",
            package.display()
        );
    }
    let place = cache.path(name);
    remove(&place)?;
    fs::rename(&half, &place)
        .with_context(|| format!("moving what was unpacked to {}", place.display()))?;
    Ok(place)
}

/// Removes `folder` and all in it, if it is there.
fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

/// The file called `name` anywhere below `folder`.
pub fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = crate::workspace::read_dir(folder).ok()?;
    entries.into_iter().find_map(|path| {
        if path.is_dir() && !path.is_symlink() {
            find(&path, name)
        } else {
            path.file_name()
                .is_some_and(|file| file == name)
                .then_some(path)
        }
    })
}
