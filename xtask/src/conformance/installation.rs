//! A folder where an unprivileged user can run the programs, and the command that makes it so.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use rustix::process::{geteuid, getuid};
use tempfile::TempDir;

/// The user and group `nobody` of every Linux.
const NOBODY: u32 = 65534;

/// Variables of the caller that reach the programs; all else would make runs differ.
const KEPT: [&str; 4] = ["PATH", "TERM", "RUST_LOG", "RUST_BACKTRACE"];

/// A temporary folder with copies of the programs. A home folder of mode 0700, where a build
/// usually is, keeps another user out.
#[derive(Debug)]
pub(crate) struct Installation {
    folder: TempDir,
    privileged: bool,
}

impl Installation {
    /// A folder with copies of `programs`.
    pub(crate) fn new(programs: &[&Path]) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("ioasid-conformance-")
            .tempdir()
            .context("making a temporary folder")?;
        let installed = Self {
            folder,
            privileged: geteuid().is_root(),
        };
        set_mode(installed.folder.path(), 0o755)?;
        for program in programs {
            let copy = installed.place_of(program);
            fs::copy(program, &copy).with_context(|| format!("copying {}", program.display()))?;
            set_mode(&copy, 0o755)?;
        }
        let home = installed.home();
        fs::create_dir(&home).with_context(|| format!("making {}", home.display()))?;
        set_mode(&home, 0o700)?;
        if installed.privileged {
            chown(&home, Some(NOBODY), Some(NOBODY))
                .with_context(|| format!("giving {} away", home.display()))?;
        }
        Ok(installed)
    }

    /// Who runs the programs, in words.
    pub(crate) fn user(&self) -> String {
        if self.privileged {
            format!("user {NOBODY} without capabilities or new privileges")
        } else {
            format!("user {}", getuid().as_raw())
        }
    }

    /// `ioasid run OPTIONS -- PROGRAM`, to which arguments of the program may be added, in a session
    /// of its own.
    pub(crate) fn command(&self, ioasid: &Path, options: &[&str], program: &Path) -> Command {
        let mut command = self.ioasid(ioasid);
        command
            .arg("run")
            .args(options)
            .arg("--")
            .arg(self.place_of(program));
        command
    }

    /// `ioasid`, to which its arguments are to be added, in a session of its own.
    pub(crate) fn ioasid(&self, ioasid: &Path) -> Command {
        let mut command = Command::new("setsid");
        if self.privileged {
            command
                .args(["setpriv", "--clear-groups", "--no-new-privs"])
                .args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")])
                .args([
                    "--inh-caps=-all",
                    "--ambient-caps=-all",
                    "--bounding-set=-all",
                ])
                .arg("--");
        }
        command
            .arg(self.place_of(ioasid))
            .current_dir(self.home())
            .env_clear()
            .envs(env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| name == kept)))
            .env("HOME", self.home())
            .env("XDG_RUNTIME_DIR", self.home())
            .env("LC_ALL", "C");
        command
    }

    /// The folder where the programs run.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Where the copy of `program` is.
    pub(crate) fn place_of(&self, program: &Path) -> PathBuf {
        self.folder
            .path()
            .join(program.file_name().unwrap_or_default())
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", path.display()))
}
