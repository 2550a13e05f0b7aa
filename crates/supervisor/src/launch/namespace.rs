//! A mount namespace of our own, and a user namespace where that takes one.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
    mount::{MountPropagationFlags, mount_change},
    process::{fchdir, getegid, geteuid},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};

use super::{dev, error::LaunchError};
use crate::system::process::{in_a_child, unshare};

/// Enters the namespaces, cuts our mounts off from the host's and covers `/dev`; or says why this host does
/// not let us, and leaves this process where it was.
///
/// Root gets a mount namespace alone. Anybody else, and a root without CAP_SYS_ADMIN, gets a user
/// namespace too, in which uid and gid are what they are outside.
///
/// # Errors
/// What a child could do and this process cannot.
pub(crate) fn enter() -> Result<Result<dev::Cover, String>, LaunchError> {
    if geteuid().is_root()
        && let Ok(home) = Home::here()
        && unshare(UnshareFlags::NEWNS).is_ok()
    {
        return Ok(cover().map_err(|error| {
            home.go_back();
            error.to_string()
        }));
    }
    // A child goes first: some hosts give a user namespace and refuse everything in it, and a process
    // that has entered one cannot leave it.
    let tried = in_a_child(|| enter_user_namespace().and_then(|()| cover().map(drop)));
    match tried {
        Ok(None) => {
            enter_user_namespace()?;
            cover().map(Ok)
        }
        Ok(Some(reason)) => Ok(Err(reason)),
        Err(error) => Ok(Err(format!("no child could be asked: {error}"))),
    }
}

fn enter_user_namespace() -> Result<(), LaunchError> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(LaunchError::UserNamespace)?;
    // Without this the kernel lets no unprivileged process write a gid map.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", &format!("{gid} {gid} 1"))
}

/// In the new namespace.
fn cover() -> Result<dev::Cover, LaunchError> {
    // Mounts that appear on the host later still show up; ours never do there.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(|e: Errno| LaunchError::Mount(e.into()))?;
    dev::Cover::new().map_err(LaunchError::Mount)
}

/// The mount namespace and the working directory of this process.
struct Home {
    mounts: OwnedFd,
    directory: OwnedFd,
}

impl Home {
    fn here() -> rustix::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Home {
            mounts: open("/proc/self/ns/mnt", flags, Mode::empty())?,
            directory: open(".", path, Mode::empty())?,
        })
    }

    /// Only root can, from a namespace that it has made.
    fn go_back(&self) {
        let kind = Some(LinkNameSpaceType::Mount);
        let back = move_into_link_name_space(self.mounts.as_fd(), kind)
            .and_then(|()| fchdir(&self.directory));
        if let Err(error) = back {
            // It has every mount of the host's, and none of ours.
            tracing::debug!(%error, "the program stays in a mount namespace of its own");
        }
    }
}

fn write(path: &str, text: &str) -> Result<(), LaunchError> {
    fs::write(path, text).map_err(LaunchError::IdMap)
}
