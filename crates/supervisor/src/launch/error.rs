//! Why a program could not be started: one sentence each, and how to allow it.

use std::{fs, io};

use super::words::{EXIT_FAILED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND};
use crate::{entries::sysfs_tree::InvalidEntry, wire::WireError};

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The hidden verb was called by something else than this crate.
    #[error("this verb is for ioasid's own use")]
    Usage,
    /// No message from `ioasid run`, or it said no.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The host gives no user namespace.
    #[error("this host does not let us make a user namespace: {0}")]
    UserNamespace(io::Error),
    /// The identity maps were refused.
    #[error("cannot keep the uid and gid in the new user namespace: {0}")]
    IdMap(io::Error),
    /// Mounting is refused inside the namespace.
    #[error("this host does not let us mount in our own namespace: {0}")]
    Mount(io::Error),
    /// `/dev` could not be built.
    #[error("cannot build /dev for the program: {0}")]
    Dev(io::Error),
    /// `/sys` could not be built.
    #[error("cannot build /sys for the program: {0}")]
    Sys(io::Error),
    /// What was mounted on `/sys` could not be covered.
    #[error("{0}")]
    Covered(io::Error),
    /// An entry of the description is not a path below `/sys`.
    #[error(transparent)]
    SysEntry(#[from] InvalidEntry),
    /// The filter was refused.
    #[error("{}", filter_sentence(.0))]
    Filter(io::Error),
    /// The machine cannot reach our memory.
    #[error("the machine cannot read the memory of its programs: {0}")]
    NoMemoryAccess(io::Error),
    /// There is no such program.
    #[error("{0}: no such program")]
    NotFound(String),
    /// It is there and cannot be executed.
    #[error("{0}: cannot be executed: {1}")]
    NotExecutable(String, io::Error),
}

impl LaunchError {
    /// The exit status, by the convention of `env` and `timeout`.
    pub fn exit_code(&self) -> u8 {
        match self {
            LaunchError::NotFound(_) => EXIT_NOT_FOUND,
            LaunchError::NotExecutable(..) => EXIT_NOT_EXECUTABLE,
            _ => EXIT_FAILED,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            LaunchError::UserNamespace(_) | LaunchError::IdMap(_) | LaunchError::Mount(_) => {
                Some(namespace_hint())
            }
            LaunchError::Filter(error) if is(error, libc::EINVAL) => {
                Some("Linux 5.19 or newer is needed (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)")
            }
            LaunchError::NoMemoryAccess(_) => Some(
                "run the program and the machine as the same user; Yama's ptrace_scope must not be 3",
            ),
            _ => None,
        }
    }
}

fn filter_sentence(error: &io::Error) -> String {
    if is(error, libc::EBUSY) {
        "ioasid run inside ioasid run is not possible: Linux allows a program tree one seccomp \
         listener, and this one has it already"
            .to_owned()
    } else {
        format!("this host does not let us install a seccomp filter with a listener: {error}")
    }
}

/// What allows namespaces on this host: asks its switches which of them it was.
pub fn namespace_hint() -> &'static str {
    let switch = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let is_set = |path, value: &str| switch(path).is_ok_and(|text| text == value);
    if is_set("/proc/sys/user/max_user_namespaces", "0") {
        "sysctl user.max_user_namespaces=10000 allows user namespaces"
    } else if is_set("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sysctl kernel.unprivileged_userns_clone=1 allows user namespaces"
    } else if is_set(
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
    ) {
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0 lifts AppArmor's restriction, \
             or run as root"
    } else {
        "inside a container, allow user namespaces (for example \
             --security-opt seccomp=unconfined) or run as root with CAP_SYS_ADMIN"
    }
}

fn is(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}
