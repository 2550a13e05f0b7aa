//! Building: the test programs, out of the kernel's tree, and `ioasid`.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Cache,
    apt::{Apt, Origin},
    headers,
    source::Source,
};

/// Headers that the tests include and that the machine's own C library may have too old.
const HEADERS: [&str; 4] = [
    "linux/iommufd.h",
    "linux/vfio.h",
    "linux/types.h",
    "linux/stddef.h",
];

/// Builds the self-tests in `folder` (below `tools/testing/selftests`) by the kernel's own makefile:
/// the folder with the programs. What is up to date is not built again.
///
/// # Errors
/// If a tool or library cannot be had, or the compiler fails.
pub(crate) fn selftest(
    cache: &Cache,
    origin: &Origin,
    source: &Source,
    folder: &str,
    static_link: bool,
) -> Result<PathBuf> {
    let uapi = cache.path(format!("uapi-{}", source.version));
    if !uapi.exists() {
        headers::install(&source.folder.join("include/uapi"), &HEADERS, &uapi)?;
    }
    let link = if static_link { "static" } else { "dynamic" };
    let output = cache.folder(format!("build-{}/{folder}-{link}", source.version))?;
    let mut compile = flags("-isystem", &uapi);
    let mut linking = OsString::from(if static_link { "-static" } else { "" });
    if let Some(libcap) = libcap(cache, origin, static_link)? {
        compile.push(" ");
        compile.push(flags("-I", &libcap.include));
        linking.push(" ");
        linking.push(flags("-L", &libcap.library));
    }
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(source.folder.join("tools/testing/selftests").join(folder))
        .arg(variable("OUTPUT", output.as_os_str()))
        .arg(variable("KHDR_INCLUDES", &compile))
        .arg(variable("USERLDFLAGS", &linking));
    let said = make
        .stdin(Stdio::null())
        .output()
        .context("`make` could not be run; install make and a C compiler")?;
    if !said.status.success() {
        let errors = String::from_utf8_lossy(&said.stderr);
        bail!(
            "the self-tests of Linux {} could not be built ({}):\n{}",
            source.version,
            said.status,
            errors.trim()
        );
    }
    Ok(output)
}

fn flags(flag: &str, folder: &Path) -> OsString {
    let mut flags = OsString::from(flag);
    if flag == "-isystem" {
        flags.push(" ");
    }
    flags.push(folder);
    flags
}

fn variable(name: &str, value: &std::ffi::OsStr) -> OsString {
    let mut argument = OsString::from(name);
    argument.push("=");
    argument.push(value);
    argument
}

/// Where libcap is for building: the tests drop a capability.
struct Libcap {
    include: PathBuf,
    library: PathBuf,
}

/// libcap from Debian, if the machine has none that a compiler can use.
fn libcap(cache: &Cache, origin: &Origin, static_link: bool) -> Result<Option<Libcap>> {
    let wanted = if static_link { "libcap.a" } else { "libcap.so" };
    let has_header = Path::new("/usr/include/sys/capability.h").exists();
    if has_header && compiler_knows(wanted)? {
        return Ok(None);
    }
    let root = cache.path("libcap-dev");
    if !root.exists() {
        let package = Apt::new(cache, origin)?.download_own("libcap-dev")?;
        let half = cache.folder("libcap-half")?;
        let status = Command::new("dpkg-deb")
            .arg("-x")
            .arg(&package)
            .arg(&half)
            .status()
            .context("running `dpkg-deb`")?;
        ensure!(
            status.success(),
            "`dpkg-deb` could not unpack {}",
            package.display()
        );
        fs::rename(&half, &root).with_context(|| format!("moving libcap to {}", root.display()))?;
    }
    let archive = find(&root, "libcap.a").context("the package libcap-dev holds no libcap.a")?;
    let library = archive.parent().unwrap_or(&root).to_owned();
    Ok(Some(Libcap {
        include: root.join("usr/include"),
        library,
    }))
}

/// Whether the C compiler finds the library file `name`; it answers the bare name if not.
fn compiler_knows(name: &str) -> Result<bool> {
    let output = Command::new("cc")
        .arg(format!("-print-file-name={name}"))
        .output()
        .context(
            "`cc` could not be run; install a C compiler (apt-get install gcc libc6-dev make)",
        )?;
    Ok(String::from_utf8_lossy(&output.stdout).contains('/'))
}

/// The file called `name` anywhere below `folder`.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = super::super::read_dir(folder).ok()?;
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

/// Builds `ioasid`, optimised: the program.
pub(crate) fn ioasid() -> Result<PathBuf> {
    super::super::run(super::super::cargo().args(["build", "--release", "--package", "ioasid"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| super::super::root().join("target"), PathBuf::from);
    Ok(target.join("release/ioasid"))
}
