//! Built programs in a folder that every user can read.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use xtask::workspace::{cargo, run as checked, target_directory};

/// A user without any privilege: `nobody`.
pub const NOBODY: u32 = 65534;

/// Programs, and how often to run them.
#[derive(Debug)]
pub struct Installation {
    directory: PathBuf,
    /// The full number of repetitions.
    pub long: bool,
}

/// Who runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Whoever runs this.
    Own,
    /// uid 65534, no capabilities, no_new_privs.
    Nobody,
}

/// The two builds of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// Linked dynamically.
    Dynamic,
    /// Linked statically.
    Static,
}

impl Installation {
    /// Builds everything and copies it to a directory of its own.
    pub fn build(long: bool) -> Result<Self> {
        // Alone, as everybody builds it: together with others it would be built once more, with features of
        // libraries that those ask for.
        let ioasid = xtask::workspace::ioasid(None)?;
        checked(cargo().args([
            "build",
            "--release",
            "-p",
            "passthrough-client",
            "--bins",
            "--example",
            "edu",
            "--example",
            "first_dma",
            "--example",
            "mistakes",
            "--example",
            "nested",
            "--example",
            "planted",
        ]))?;
        // crt-static needs an explicit target, or proc macros would be built with it as well.
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        checked(
            cargo()
                .args([
                    "build",
                    "--release",
                    "-p",
                    "passthrough-client",
                    "--target",
                    &target,
                ])
                .arg("--target-dir")
                .arg(target_directory().join("static"))
                .env("RUSTFLAGS", "-C target-feature=+crt-static"),
        )?;
        let installation = Installation::empty(long)?;
        let built = target_directory();
        for (from, to) in [
            (ioasid, "ioasid"),
            (built.join("release/passthrough-client"), "client"),
            (built.join("release/examples/edu"), "edu"),
            (built.join("release/examples/first_dma"), "first_dma"),
            (built.join("release/examples/mistakes"), "mistakes"),
            (built.join("release/examples/nested"), "nested"),
            (built.join("release/examples/planted"), "planted"),
            (
                built
                    .join("static")
                    .join(target)
                    .join("release/passthrough-client"),
                "client-static",
            ),
        ] {
            installation.add(&from, to)?;
        }
        Ok(installation)
    }

    /// A installation with this `ioasid` and nothing else.
    pub fn bare(ioasid: &Path) -> Result<Self> {
        let installation = Installation::empty(false)?;
        installation.add(ioasid, "ioasid")?;
        Ok(installation)
    }

    fn empty(long: bool) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("ioasid-e2e-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        Ok(Installation { directory, long })
    }

    /// Adds a copy of the program `from` under the name `to`.
    pub fn add(&self, from: &Path, to: &str) -> Result<()> {
        fs::copy(from, self.path(to)).with_context(|| format!("copying {}", from.display()))?;
        fs::set_permissions(self.path(to), fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// A file of the installation.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The client's file.
    pub fn client(&self, client: Client) -> PathBuf {
        self.path(match client {
            Client::Dynamic => "client",
            Client::Static => "client-static",
        })
    }

    /// `short`, or `long` in the long form.
    pub fn times(&self, short: usize, long: usize) -> usize {
        if self.long { long } else { short }
    }

    /// The users to try: as root also an unprivileged one.
    pub fn users(&self) -> Vec<User> {
        let is_root = fs::read_to_string("/proc/self/status")
            .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")));
        if is_root {
            vec![User::Own, User::Nobody]
        } else {
            vec![User::Own]
        }
    }

    /// The least privileged of them.
    pub fn weakest_user(&self) -> User {
        self.users().pop().unwrap_or(User::Own)
    }

    /// A folder of the installation that is `user`'s.
    pub fn folder_of(&self, user: User, name: &str) -> Result<PathBuf> {
        let folder = self.path(name);
        fs::create_dir_all(&folder)?;
        if user == User::Nobody {
            chown(&folder, Some(NOBODY), Some(NOBODY)).context("giving a folder away")?;
        }
        Ok(folder)
    }

    /// `ioasid` as `user`.
    pub fn ioasid(&self, user: User) -> Command {
        self.command(user, self.path("ioasid"))
    }

    /// `program` as `user`.
    pub fn command(&self, user: User, program: impl AsRef<OsStr>) -> Command {
        let mut command = match user {
            User::Own => Command::new(program),
            User::Nobody => {
                let mut command = Command::new("setpriv");
                command
                    .args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")])
                    .args(["--clear-groups", "--no-new-privs", "--"])
                    .arg(program.as_ref());
                command
            }
        };
        command
            .current_dir("/")
            .env_remove("XDG_RUNTIME_DIR")
            // What every user may search: a program that is nowhere must not look forbidden.
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
