//! The library that a program is started with, so that its accesses to mapped registers are caught
//! inside of it (`crates/preload`).

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::Path,
};

use ioasid_preload_image::IMAGE;
use tempfile::TempDir;

use crate::wire::Library;

/// The file's name, by which a process that has loaded it is known.
pub(crate) const NAME: &str = "libioasid-mmio.so";

/// A link to its own directory, by which the library is named. The runtime of AddressSanitizer,
/// where it is a library, ends a program whose first library is another than itself, and knows
/// itself by this in the path (`AsanCheckDynamicRTPrereqs` in compiler-rt). It need not be the
/// first for us: what it replaces of the C library we do not call. The program's maps show the
/// library without the link, as they must: a runtime that is linked into the program ends it if it
/// finds the name there.
const ALIAS: &str = "libasan.so";

/// Where it lies in a program's own `/dev`.
const IN_DEV: &str = "/dev/.ioasid";

/// What the dynamic linker looks at.
pub(crate) const VARIABLE: &str = "LD_PRELOAD";

/// Writes it to a new directory; returns its path too.
pub(crate) fn in_a_directory() -> io::Result<(TempDir, String)> {
    let directory = tempfile::Builder::new().prefix("ioasid-").tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let path = write(directory.path())?;
    Ok((directory, path))
}

/// Writes it to `directory`; returns the path that programs get.
fn write(directory: &Path) -> io::Result<String> {
    let path = directory.join(NAME);
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(&path)?;
    io::Write::write_all(&mut file, IMAGE)?;
    // Whatever the umask says.
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    let unusable = || io::Error::new(io::ErrorKind::InvalidInput, "not a path for LD_PRELOAD");
    symlink(".", directory.join(ALIAS))?;
    // The dynamic linker takes both for the end of a path.
    let path = directory.join(ALIAS).join(NAME);
    let path = path.into_os_string().into_string().ok();
    path.filter(|path| !path.contains([' ', ':']))
        .ok_or_else(unusable)
}

/// The value of [`VARIABLE`] for the program, behind what it has already: what others put around
/// functions of the C library stays around ours. `None` to leave it alone. Without the library a
/// program still runs, and is traced where it maps registers.
pub(crate) fn environment(library: Library) -> Option<OsString> {
    let path = match library {
        Library::None => return None,
        Library::At(path) => path,
        Library::InDev => {
            let directory = Path::new(IN_DEV);
            let made = fs::create_dir(directory)
                .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o755)))
                .and_then(|()| write(directory));
            match made {
                Ok(path) => path,
                Err(error) => {
                    tracing::warn!(%error, "no library for registers in /dev");
                    return None;
                }
            }
        }
    };
    let mut value = std::env::var_os(VARIABLE).unwrap_or_default();
    if !value.is_empty() {
        value.push(":");
    }
    value.push(path);
    Some(value)
}
