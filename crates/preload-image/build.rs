//! Builds `crates/preload` as a shared library.
//!
//! By a cargo of its own: the library has another panic strategy and other link arguments than
//! whatever is being built here, and may be for another C library (an executable without one holds it
//! too). That cargo has a target directory of its own, so it waits for no lock that ours holds, and
//! the same lock file, so it needs nothing that ours has not fetched.
//!
//! `IOASID_PRELOAD_IMAGE` names a library that was built before, and nothing is built.

#![allow(clippy::print_stdout, reason = "how a build script speaks")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const NAME: &str = "libioasid_preload.so";

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    println!("cargo::rerun-if-env-changed=IOASID_PRELOAD_IMAGE");
    let built = match env::var_os("IOASID_PRELOAD_IMAGE") {
        Some(path) => PathBuf::from(path),
        None => {
            for part in ["../preload/src", "../preload/Cargo.toml"] {
                println!("cargo::rerun-if-changed={}", here.join(part).display());
            }
            for part in ["../mmio/src", "../mmio/Cargo.toml"] {
                println!("cargo::rerun-if-changed={}", here.join(part).display());
            }
            build(&here.join("../preload/Cargo.toml"), &out.join("target"))
        }
    };
    println!("cargo::rerun-if-changed={}", built.display());
    if let Err(error) = fs::copy(&built, out.join(NAME)) {
        panic!("cannot copy {}: {error}", built.display());
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn build(manifest: &Path, target: &Path) -> PathBuf {
    let mut cargo = Command::new(variable("CARGO"));
    // What the outer cargo was told about its own build, a wrapper as clippy's or flags that count
    // coverage, is not for this one.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let keep = [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_HTTP_",
            "CARGO_REGISTR",
        ];
        if (name.starts_with("CARGO") && !keep.iter().any(|keep| name.starts_with(keep)))
            || name.starts_with("RUSTC")
            || name.starts_with("RUSTDOC")
            || name == "RUSTFLAGS"
        {
            cargo.env_remove(&*name);
        }
    }
    cargo
        .args(["rustc", "--release", "--lib", "--crate-type", "cdylib"])
        .args(["--features", "image", "--target", TARGET])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(target)
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .arg("--");
    // No C library and no start files: what is missing is in the program already. Bound when it is
    // loaded, since it runs in signal handlers.
    for argument in [
        "-nostdlib",
        "-nostartfiles",
        "-Wl,-z,now",
        "-Wl,-soname,libioasid-mmio.so",
    ] {
        cargo.args(["-C", &format!("link-arg={argument}")]);
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("building crates/preload: {status}"),
        Err(error) => panic!("starting cargo for crates/preload: {error}"),
    }
    target.join(TARGET).join("release").join(NAME)
}
