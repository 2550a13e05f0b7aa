//! Programs for guests beside busybox, with the loader and libraries that they need.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{
    Cache,
    apt::{Apt, Origin},
    find, unpack,
};

/// The programs' packages, and those of their libraries.
const PACKAGES: [&str; 7] = [
    "mdadm",
    "accel-config",
    "libaccel-config1",
    "libjson-c5",
    "libudev1",
    "libcap2",
    "libc6",
];

/// The folder in the cache.
const FOLDER: &str = "guest-tools";

/// Where a program looks for its libraries.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// What a guest gets: the place there, and the file's name in the packages.
const FILES: [(&str, &str); 8] = [
    ("bin", "mdadm"),
    ("bin", "accel-config"),
    ("lib64", "ld-linux-x86-64.so.2"),
    (LIBRARIES, "libc.so.6"),
    (LIBRARIES, "libaccel-config.so.1"),
    (LIBRARIES, "libjson-c.so.5"),
    (LIBRARIES, "libudev.so.1"),
    (LIBRARIES, "libcap.so.2"),
];

/// A file for guests.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Its path in the guest, without the leading slash.
    pub place: String,
    /// Where it is in the cache.
    pub file: PathBuf,
}

/// Whether the cache has them.
pub fn is_there(cache: &Cache) -> bool {
    cache.path(FOLDER).exists()
}

/// The programs in the cache, fetched if there are none or a `refresh` is asked for.
///
/// # Errors
/// If a tool is missing, the packages cannot be had, or lack a file.
pub fn fetch(cache: &Cache, origin: &Origin, refresh: bool) -> Result<Vec<Tool>> {
    if refresh || !is_there(cache) {
        let apt = Apt::of_guests(cache, origin)?;
        let packages = apt.download_all(&PACKAGES)?;
        unpack(cache, &packages, FOLDER)?;
    }
    let folder = cache.path(FOLDER);
    let tool = |(place, name): (&str, &str)| {
        let usr = folder.join("usr");
        let found = ["bin", "sbin", LIBRARIES].iter().find_map(|inside| {
            let file = usr.join(inside).join(name);
            file.is_file().then_some(file)
        });
        let file = found.or_else(|| find(&folder, name));
        Ok(Tool {
            place: format!("{place}/{name}"),
            file: file.with_context(|| format!("the guests' packages lack {name}"))?,
        })
    };
    FILES.into_iter().map(tool).collect()
}
