//! The parts of the kernel's source that its self-tests are built from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Cache,
    apt::{Apt, Origin},
};

/// The version that the expectations are for, and what to take if it has left the suite.
const WANTED: &str = "linux-source-7.2";
const FAMILY: &str = "linux-source-7.";

/// What is unpacked, below the top folder.
const PARTS: [&str; 14] = [
    "Makefile",
    // Links in the VFIO tests point at these.
    "drivers/dma/idxd/registers.h",
    "drivers/dma/ioat/hw.h",
    "drivers/dma/ioat/registers.h",
    "include/linux/pci_ids.h",
    "include/uapi",
    "scripts/subarch.include",
    "drivers/iommu/iommufd/iommufd_test.h",
    "tools/include",
    "tools/arch/x86/include",
    "tools/testing/selftests/iommu",
    "tools/testing/selftests/vfio",
    "tools/testing/selftests/kselftest*.h",
    "tools/testing/selftests/lib.mk",
];

/// Written last: a folder without it was left half done.
const COMPLETE: &str = ".complete";

/// An unpacked source.
#[derive(Clone, Debug)]
pub struct Source {
    /// Such as `7.2.13`.
    pub version: String,
    /// The top of its tree.
    pub folder: PathBuf,
}

/// The source in the cache, fetched if there is none or a `refresh` is asked for.
///
/// # Errors
/// If a tool is missing, or the package cannot be had.
pub fn fetch(cache: &Cache, origin: &Origin, refresh: bool) -> Result<Source> {
    if !refresh && let Some(source) = cached(cache)? {
        return Ok(source);
    }
    let apt = Apt::new(cache, origin)?;
    let (package, version) = choose(apt.search(FAMILY)?)?;
    if package != WANTED {
        println!("fetch: {WANTED} has left the suite; taking {package}");
    }
    let archive = apt.download(&format!("{package}={version}"))?;
    let folder = cache.folder("unpacking")?;
    fs::remove_dir_all(&folder).with_context(|| format!("clearing {}", folder.display()))?;
    let folder = cache.folder("unpacking")?;
    println!("fetch: unpacking what the tests need");
    unpack(&archive, &format!("./usr/src/{package}.tar.xz"), &folder)?;
    let version = version_of(&folder)?;
    fs::write(folder.join(COMPLETE), "").context("marking the source as complete")?;
    let place = cache.path(format!("linux-{version}"));
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("replacing {}", place.display()))?;
    }
    fs::rename(&folder, &place)
        .with_context(|| format!("moving the source to {}", place.display()))?;
    // 160 MB that the unpacked part replaces.
    fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))?;
    Ok(Source {
        version,
        folder: place,
    })
}

/// The newest source in the cache.
fn cached(cache: &Cache) -> Result<Option<Source>> {
    let mut found = Vec::new();
    for folder in crate::workspace::read_dir(cache.top())? {
        let name = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // A source that an older version of this program unpacked may lack a part.
        let complete = folder.join(COMPLETE).exists()
            && PARTS
                .iter()
                .all(|part| part.contains('*') || folder.join(part).exists());
        if let (Some(version), true) = (name.strip_prefix("linux-"), complete) {
            found.push(Source {
                version: version.to_owned(),
                folder,
            });
        }
    }
    Ok(found
        .into_iter()
        .max_by_key(|source| numbers(&source.version)))
}

/// The package to take: [`WANTED`], or the newest of its family.
fn choose(found: Vec<(String, String)>) -> Result<(String, String)> {
    let newest = found
        .into_iter()
        .max_by_key(|(name, version)| (name == WANTED, numbers(version)));
    newest.with_context(|| {
        format!(
            "the mirror has no package {FAMILY}*; unpack a kernel source into \
             target/conformance/linux-VERSION and put an empty file `{COMPLETE}` there"
        )
    })
}

/// A version as numbers, for comparing: `7.2.13-1` is 7, 2, 13, 1.
pub fn numbers(version: &str) -> Vec<u64> {
    let parts = version.split(|character: char| !character.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

/// Unpacks [`PARTS`] of the tar archive `inside` the package `archive`, without storing either.
fn unpack(archive: &Path, inside: &str, folder: &Path) -> Result<()> {
    let mut package = piped(
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(archive),
        Stdio::null(),
    )?;
    let mut tarball = piped(
        Command::new("tar").args(["-xO", inside]),
        output_of(&mut package)?,
    )?;
    let mut plain = piped(
        Command::new("xz").args(["-dc", "-T0"]),
        output_of(&mut tarball)?,
    )?;
    let mut files = Command::new("tar");
    files
        .args([
            "-x",
            "--strip-components=1",
            "--wildcards",
            "--no-same-owner",
            "-C",
        ])
        .arg(folder)
        .args(PARTS.map(|part| format!("*/{part}")))
        .stdin(output_of(&mut plain)?);
    let status = files.status().context("running `tar`")?;
    for (name, mut child) in [("dpkg-deb", package), ("tar", tarball), ("xz", plain)] {
        let status = child
            .wait()
            .with_context(|| format!("waiting for `{name}`"))?;
        ensure!(
            status.success(),
            "`{name}` could not unpack {} ({status})",
            archive.display()
        );
    }
    ensure!(
        status.success(),
        "{} lacks a part that the tests need ({status}); the list is in {}",
        archive.display(),
        file!()
    );
    Ok(())
}

fn piped(command: &mut Command, input: impl Into<Stdio>) -> Result<Child> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(input)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{name}` could not be run; install it"))
}

fn output_of(child: &mut Child) -> Result<Stdio> {
    Ok(child
        .stdout
        .take()
        .context("a pipe was taken twice")?
        .into())
}

/// The version in the Makefile at the top of `folder`.
fn version_of(folder: &Path) -> Result<String> {
    let path = folder.join("Makefile");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    };
    match (value("VERSION"), value("PATCHLEVEL"), value("SUBLEVEL")) {
        (Some(version), Some(level), Some(sublevel)) => Ok(format!("{version}.{level}.{sublevel}")),
        _ => bail!("{} does not say its version", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> (String, String) {
        (name.to_owned(), version.to_owned())
    }

    #[test]
    fn the_wanted_version_goes_before_newer_ones() {
        let found = vec![
            package("linux-source-7.10", "7.10.2-1"),
            package(WANTED, "7.2.13-1"),
        ];
        assert_eq!(choose(found).unwrap().0, WANTED);
    }

    #[test]
    fn without_it_the_newest_is_taken_by_number() {
        let found = vec![
            package("linux-source-7.10", "7.10.2-1"),
            package("linux-source-7.9", "7.9.12-1"),
        ];
        assert_eq!(choose(found).unwrap().0, "linux-source-7.10");
        assert!(choose(Vec::new()).is_err());
    }
}
