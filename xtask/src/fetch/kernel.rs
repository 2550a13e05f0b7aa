//! A stock kernel for guests, with its modules, and a static busybox for their first program.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{
    Cache,
    apt::{Apt, BACKPORTS, Origin},
    find, unpack,
};

/// Depends on the newest kernel of its release.
const META: &str = "linux-image-amd64";
const BUSYBOX: &str = "busybox-static";

/// The folder in the cache.
const FOLDER: &str = "guest";

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Such as `7.3.4+deb13-amd64`.
    pub version: String,
    /// What a boot loader starts.
    pub image: PathBuf,
    /// Its modules, each in a file `NAME.ko.xz` somewhere below.
    modules: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
}

impl Kernel {
    fn in_folder(folder: &Path) -> Option<Self> {
        let modules = crate::workspace::read_dir(&folder.join("usr/lib/modules"))
            .ok()?
            .pop()?;
        let kernel = Self {
            version: modules.file_name()?.to_string_lossy().into_owned(),
            image: modules.join("vmlinuz"),
            busybox: folder.join("usr/bin/busybox"),
            modules,
        };
        (kernel.image.exists() && kernel.busybox.exists()).then_some(kernel)
    }

    /// The file of the module `name`, compressed.
    ///
    /// # Errors
    /// If the kernel has no such module: it may be built in, or another kernel's.
    pub fn module(&self, name: &str) -> Result<PathBuf> {
        find(&self.modules, &format!("{name}.ko.xz"))
            .with_context(|| format!("the kernel {} has no module {name}", self.version))
    }
}

/// Whether the cache has one.
pub fn is_there(cache: &Cache) -> bool {
    Kernel::in_folder(&cache.path(FOLDER)).is_some()
}

/// The kernel in the cache, fetched if there is none or a `refresh` is asked for.
///
/// # Errors
/// If a tool is missing, or the packages cannot be had.
pub fn fetch(cache: &Cache, origin: &Origin, refresh: bool) -> Result<Kernel> {
    let folder = cache.path(FOLDER);
    if !refresh && let Some(kernel) = Kernel::in_folder(&folder) {
        return Ok(kernel);
    }
    let apt = Apt::of_guests(cache, origin)?;
    let depends = apt.depends(&format!("{META}/{BACKPORTS}"))?;
    let version = depends
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .find(|version| version.starts_with(|first: char| first.is_ascii_digit()))
        .with_context(|| format!("the package {META} depends on no kernel"))?;
    // One at a time, as a download clears the folder of the last.
    let mut packages = Vec::new();
    let keep = cache.folder("guest-packages")?;
    for name in [
        format!("linux-binary-{version}"),
        format!("linux-modules-{version}"),
        BUSYBOX.to_owned(),
    ] {
        let package = apt.download(&name)?;
        let kept = keep.join(package.file_name().unwrap_or_default());
        std::fs::rename(&package, &kept)
            .with_context(|| format!("moving {}", package.display()))?;
        packages.push(kept);
    }
    println!("fetch: unpacking the kernel {version}");
    let folder = unpack(cache, &packages, FOLDER)?;
    std::fs::remove_dir_all(&keep).with_context(|| format!("removing {}", keep.display()))?;
    Kernel::in_folder(&folder)
        .with_context(|| format!("the packages of the kernel {version} lack a part"))
}
