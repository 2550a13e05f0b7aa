//! `/dev/ptmx` in the program's `/dev`.
//!
//! An open of it makes a terminal in the devpts that is mounted on `pts` beside it
//! (`devpts_acquire` in fs/devpts/inode.c). Beside a node that was bound alone the kernel finds
//! none. So it is one of these, the first that can be opened:
//!
//! 1. The node, bound, if it is the one inside of the host's devpts; if it is not, a node of the same
//!    number, made here, which takes root.
//! 2. The node inside of the host's devpts, bound, if its mode (`ptmxmode`) allows it to every
//!    user.
//! 3. A link to it in a second view of the host's whole `/dev` ([`View`]).

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, chown},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, mknodat},
    mount::{UnmountFlags, mount_bind, unmount},
};

use super::view::View;

/// The name of the node.
pub(crate) const NODE: &str = "ptmx";

/// A way to the node, which may be closed.
type Way<'a> = &'a dyn Fn() -> io::Result<()>;

/// The host's terminals, and where the program's are to be.
pub(crate) struct Terminals<'a> {
    host: PathBuf,
    dev: &'a Path,
    node: PathBuf,
}

impl<'a> Terminals<'a> {
    /// Those of the `/dev` that `host` leads to, for `dev`, which has everything else of it.
    pub(crate) fn new(host: &Path, dev: &'a Path) -> Self {
        Terminals {
            host: host.join(NODE),
            dev,
            node: dev.join(NODE),
        }
    }

    /// Makes them work, if they are not there by a link. A program without them starts, too.
    pub(crate) fn provide(self, view: &View) {
        let Ok(host) = fs::symlink_metadata(&self.host) else {
            return;
        };
        if !host.file_type().is_char_device() {
            return;
        }
        let pts = self.dev.join("pts");
        let is_in_devpts = fs::metadata(&pts).is_ok_and(|pts| pts.dev() == host.dev());
        let bind_it: Way<'_> = &|| self.bind(&self.host);
        let make_it: Way<'_> = &|| self.make(&host);
        let first = if is_in_devpts { bind_it } else { make_it };
        let bind_inner: Way<'_> = &|| self.bind(&pts.join(NODE));
        let link_it: Way<'_> = &|| view.link(NODE);
        // What the user cannot open on the host is not to be opened here.
        let ways: &[Way<'_>] = match self.may_be_opened() {
            true => &[first, bind_inner, link_it],
            false => &[link_it, bind_it],
        };
        for way in ways {
            match self.clear().and_then(|()| way()) {
                Ok(()) if !self.may_be_opened() || opens(&self.node) => return,
                Ok(()) => {}
                Err(error) => tracing::debug!(%error, "a way to terminals is closed"),
            }
        }
        tracing::warn!("the program cannot make pseudo-terminals");
    }

    fn may_be_opened(&self) -> bool {
        let both = Access::READ_OK | Access::WRITE_OK;
        accessat(CWD, &self.host, both, AtFlags::EACCESS).is_ok()
    }

    /// Takes away what the last way left.
    fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.node) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                unmount(&self.node, UnmountFlags::DETACH)?;
                fs::remove_file(&self.node)
            }
            other => other,
        }
    }

    fn make(&self, like: &fs::Metadata) -> io::Result<()> {
        let mode = Mode::from_raw_mode(like.mode());
        mknodat(
            CWD,
            &self.node,
            FileType::CharacterDevice,
            mode,
            like.rdev(),
        )?;
        chown(&self.node, Some(like.uid()), Some(like.gid()))
    }

    fn bind(&self, from: &Path) -> io::Result<()> {
        fs::write(&self.node, b"")?;
        Ok(mount_bind(from, &self.node)?)
    }
}

/// Whether the file can be opened as a program opens it.
fn opens(path: &Path) -> bool {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).is_ok()
}
