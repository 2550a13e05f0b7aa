//! A mount namespace of our own, and a user namespace where that takes one.

use std::{fs, path::Path};

use rustix::{
    io::Errno,
    mount::{MountPropagationFlags, mount_change},
    process::{getegid, geteuid},
    thread::UnshareFlags,
};

use super::{dev::cover, error::LaunchError};
use crate::system::process::{in_a_child, unshare};

/// Enters the namespaces and cuts our mounts off from the host's.
///
/// Root gets a mount namespace alone. Anybody else, and a root without CAP_SYS_ADMIN, gets a user
/// namespace too, in which uid and gid are what they are outside.
pub(crate) fn enter() -> Result<(), LaunchError> {
    let alone = geteuid().is_root() && unshare(UnshareFlags::NEWNS).is_ok();
    if !alone {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(LaunchError::UserNamespace)?;
        // Without this the kernel lets no unprivileged process write a gid map.
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &format!("{uid} {uid} 1"))?;
        write("/proc/self/gid_map", &format!("{gid} {gid} 1"))?;
    }
    // Mounts that appear on the host later still show up; ours never do there.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(|e: Errno| LaunchError::Mount(e.into()))
}

/// Why [`enter`] would fail, or what comes after it; `None` if it would not.
///
/// A child goes first: some hosts give a user namespace and refuse everything in it, and a process
/// that has entered one cannot leave it.
pub(crate) fn refusal() -> Option<String> {
    let tried = in_a_child(|| {
        enter().and_then(|()| {
            cover(Path::new("/dev"))
                .map(drop)
                .map_err(LaunchError::Mount)
        })
    });
    match tried {
        Ok(None) => None,
        Ok(Some(reason)) => Some(reason),
        Err(error) => Some(format!("no child could be asked: {error}")),
    }
}

fn write(path: &str, text: &str) -> Result<(), LaunchError> {
    fs::write(path, text).map_err(LaunchError::IdMap)
}
