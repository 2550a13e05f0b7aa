//! `/dev/ptmx` in the program's `/dev`.
//!
//! An open of it makes a terminal in the devpts that is mounted on `pts` beside it
//! (`devpts_acquire` in fs/devpts/inode.c). Beside a node that was bound alone the kernel finds
//! none. So it is one of these, the first that can be opened:
//!
//! 1. The node, bound, if it is the one inside of the host's devpts.
//! 2. A node of the same number, made here, which takes root.
//! 3. The node inside of the host's devpts, bound, if its mode (`ptmxmode`) allows it to every
//!    user.
//! 4. A link to it in a second view of the host's whole `/dev`, where everything stands as it does
//!    there.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat},
    mount::{MoveMountFlags, mount_bind, move_mount, unmount},
};

use super::dev::{copy_mounts, make_directory};

/// The name of the node.
const NODE: &str = "ptmx";

/// The second view of the host's `/dev`.
const VIEW: &str = ".host";

/// What has to be known before `/dev` is covered.
pub(crate) struct Terminals {
    /// A copy of the mounts at `/dev`; `None` if there is nothing to do.
    view: Option<OwnedFd>,
}

impl Terminals {
    /// Looks at the host's `/dev`.
    pub(crate) fn new(dev: &Path) -> Self {
        let node = dev.join(NODE);
        let is_node = fs::symlink_metadata(&node).is_ok_and(|m| m.file_type().is_char_device());
        // A link goes on working, and what the user cannot open on the host is not to be opened
        // here.
        if !is_node || !opens(&node) {
            return Terminals { view: None };
        }
        let view = copy_mounts(dev);
        if let Err(error) = &view {
            tracing::debug!(%error, "no second view of /dev");
        }
        Terminals { view: view.ok() }
    }

    /// Makes terminals work in `dev`, which has everything else of the `host`'s. A program without
    /// them starts, too.
    pub(crate) fn provide(self, host: &Path, dev: &Path) {
        let Some(view) = self.view else {
            return;
        };
        let node = dev.join(NODE);
        let ways: [&dyn Fn() -> io::Result<()>; 3] = [
            &|| make(&host.join(NODE), &node),
            &|| bind(&dev.join("pts").join(NODE), &node),
            &|| link(&view, dev, &node),
        ];
        for way in ways {
            if opens(&node) {
                return;
            }
            if let Err(error) = clear(&node).and_then(|()| way()) {
                tracing::debug!(%error, "a way to terminals is closed");
            }
        }
        if !opens(&node) {
            tracing::warn!("the program cannot make pseudo-terminals");
        }
    }
}

/// Takes away what the last way left.
fn clear(node: &Path) -> io::Result<()> {
    // It is no mount if it was not bound.
    let _ = unmount(node, rustix::mount::UnmountFlags::DETACH);
    match fs::remove_file(node) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn make(host: &Path, node: &Path) -> io::Result<()> {
    let like = fs::metadata(host)?;
    let mode = Mode::from_raw_mode(like.mode());
    mknodat(CWD, node, FileType::CharacterDevice, mode, like.rdev())?;
    chown(node, Some(like.uid()), Some(like.gid()))?;
    // Whatever the umask says.
    fs::set_permissions(node, fs::Permissions::from_mode(like.mode() & 0o7777))
}

fn bind(from: &Path, node: &Path) -> io::Result<()> {
    fs::write(node, b"")?;
    Ok(mount_bind(from, node)?)
}

fn link(view: &OwnedFd, dev: &Path, node: &Path) -> io::Result<()> {
    let place = dev.join(VIEW);
    make_directory(&place)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(view.as_fd(), "", CWD, &place, flags)?;
    symlink(PathBuf::from(VIEW).join(NODE), node)
}

/// Whether the file can be opened as a program opens it.
fn opens(path: &Path) -> bool {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).is_ok()
}
