//! The test programs of DPDK.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{Cache, Origin, bundle::Bundle, find};

/// The program that the bundle starts.
pub const TEST: &str = "dpdk-test";

/// Drivers are loaded like libraries: a folder of them that anybody could write to is refused, and
/// the cache may be in such a place.
const BUNDLE: Bundle = Bundle {
    package: "dpdk-dev",
    folder: "dpdk",
    starter: TEST,
    script: r#"#!/bin/sh
# DPDK's tests from a Debian package, with the loader and libraries of its own release.
here=$(dirname "$(readlink -f "$0")")
lib=$here/usr/lib/x86_64-linux-gnu
drivers=
for driver in bus_pci bus_vdev mempool_ring dma_idxd dma_ioat; do
    for file in "$lib/librte_$driver.so."*; do
        drivers=$drivers:$file
        break
    done
done
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" --preload "${drivers#:}" \
    "$here/usr/bin/dpdk-test" "$@"
"#,
    needs: |package| {
        package.starts_with("dpdk-dev_")
            || (package.contains("lib") && !package.contains("-dev_"))
            || package.starts_with("zlib1g_")
    },
};

/// Whether the cache has them.
pub fn is_there(cache: &Cache) -> bool {
    BUNDLE.is_there(cache)
}

/// Their folder in the cache, and their version; fetched if there are none or a `refresh` is asked for.
///
/// # Errors
/// If a tool is missing, or the packages cannot be had.
pub fn fetch(cache: &Cache, origin: &Origin, refresh: bool) -> Result<(PathBuf, String)> {
    let folder = BUNDLE.fetch(cache, origin, refresh)?;
    // `librte_eal.so.MAJOR.MINOR`, where MAJOR is that of the release of November.
    let versioned = crate::workspace::read_dir(&folder.join("usr/lib/x86_64-linux-gnu"))?
        .into_iter()
        .filter_map(|file| {
            let name = file.file_name()?.to_str()?;
            let version = name.strip_prefix("librte_eal.so.")?;
            version.contains('.').then(|| version.to_owned())
        })
        .next();
    find(&folder, TEST).context("the package has no dpdk-test")?;
    Ok((folder, versioned.context("the package has no EAL")?))
}
