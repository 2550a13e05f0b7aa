//! Building: the test programs, out of the kernel's tree, and `ioasid`.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::headers;
use xtask::{
    fetch::{Apt, Cache, Origin, find, source::Source, unpack},
    workspace::read_dir,
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
    let needed = if folder == "vfio" { &LIBUUID } else { &LIBCAP };
    if let Some(library) = library(cache, origin, needed, static_link)? {
        compile.push(" ");
        compile.push(flags("-I", &library.include));
        linking.push(" ");
        linking.push(flags("-L", &library.library));
    }
    let mut extra = OsString::new();
    if folder == "vfio" && lacks_calloc_assert(source) {
        let shim = output.join("shim.h");
        // Only if it differs: make looks at its date.
        if !fs::read_to_string(&shim).is_ok_and(|text| text == SHIM) {
            fs::write(&shim, SHIM).with_context(|| format!("writing {}", shim.display()))?;
        }
        extra.push("-include ");
        extra.push(&shim);
    }
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(source.folder.join("tools/testing/selftests").join(folder))
        .arg(variable("OUTPUT", output.as_os_str()))
        .arg(variable("KHDR_INCLUDES", &compile))
        .arg(variable("USERLDFLAGS", &linking))
        .arg(variable("EXTRA_CFLAGS", &extra));
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

/// What the VFIO tests of Linux 7.2.13 call and nobody defines.
const SHIM: &str = include_str!("vfio_shim.h");

/// Whether the VFIO tests of `source` use the helper of [`SHIM`] without defining it.
fn lacks_calloc_assert(source: &Source) -> bool {
    let headers = source
        .folder
        .join("tools/testing/selftests/vfio/lib/include/libvfio");
    let headers = read_dir(&headers).unwrap_or_default();
    !headers
        .iter()
        .any(|header| fs::read_to_string(header).is_ok_and(|text| text.contains("calloc_assert")))
}

/// A library that the tests link with.
struct Needed {
    /// The package with its header and its archive.
    package: &'static str,
    header: &'static str,
    /// Its name without `lib` and suffix.
    name: &'static str,
}

/// A test of iommufd drops a capability.
const LIBCAP: Needed = Needed {
    package: "libcap-dev",
    header: "sys/capability.h",
    name: "cap",
};

/// The VFIO tests read tokens of virtual functions, which are UUIDs.
const LIBUUID: Needed = Needed {
    package: "uuid-dev",
    header: "uuid/uuid.h",
    name: "uuid",
};

/// Where a library is for building.
struct Library {
    include: PathBuf,
    library: PathBuf,
}

/// `needed` from Debian, if the machine has none that a compiler can use.
fn library(
    cache: &Cache,
    origin: &Origin,
    needed: &Needed,
    static_link: bool,
) -> Result<Option<Library>> {
    let &Needed {
        package,
        header,
        name,
    } = needed;
    let suffix = if static_link { "a" } else { "so" };
    let has_header = Path::new("/usr/include").join(header).exists();
    if has_header && compiler_knows(&format!("lib{name}.{suffix}"))? {
        return Ok(None);
    }
    let mut root = cache.path(package);
    if !root.exists() {
        let file = Apt::new(cache, origin)?.download_own(package)?;
        root = unpack(cache, &[file], package)?;
    }
    let archive = format!("lib{name}.a");
    let archive = find(&root, &archive)
        .with_context(|| format!("the package {package} holds no {archive}"))?;
    let library = archive.parent().unwrap_or(&root).to_owned();
    Ok(Some(Library {
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
