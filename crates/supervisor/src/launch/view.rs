//! A second view of the host's whole `/dev` in the program's, where everything stands as it does there.

use std::{
    cell::Cell,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, move_mount},
};

use super::dev::{copy_mounts, make_directory};

/// Its name.
const NAME: &str = ".host";

/// The view. It is mounted when something first needs it.
pub(crate) struct View {
    dev: PathBuf,
    /// A copy of the mounts at `/dev`; `None` where the kernel gives none.
    mounts: Option<OwnedFd>,
    is_mounted: Cell<bool>,
}

impl View {
    /// Of what is at `dev` now, which is about to be covered.
    pub(crate) fn of(dev: &Path) -> Self {
        let mounts = copy_mounts(dev);
        if let Err(error) = &mounts {
            tracing::debug!(%error, "no second view of /dev");
        }
        View {
            dev: dev.to_owned(),
            mounts: mounts.ok(),
            is_mounted: Cell::new(false),
        }
    }

    /// Makes the entry `name` a link to the host's.
    ///
    /// # Errors
    /// If there is no view, or something of that name.
    pub(crate) fn link(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = name.as_ref();
        self.mount()?;
        symlink(PathBuf::from(NAME).join(name), self.dev.join(name))
    }

    fn mount(&self) -> io::Result<()> {
        let mounts = self.mounts.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        if self.is_mounted.get() {
            return Ok(());
        }
        let place = self.dev.join(NAME);
        match make_directory(&place) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(mounts.as_fd(), "", CWD, &place, flags)?;
        self.is_mounted.set(true);
        Ok(())
    }
}
