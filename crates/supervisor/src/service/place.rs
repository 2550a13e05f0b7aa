//! Where machines have their sockets, and whether one is there already.

use std::{
    fmt,
    fs::{self, DirBuilder},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use rustix::{net::sockopt::socket_peercred, process::geteuid};

use super::client::ping;

/// Why a machine cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another machine has that name.
    #[error("{owner} is being served at {} already; choose another --name, or end it", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        owner: Owner,
    },
    /// The folder that the socket is to be in does not exist.
    #[error("cannot serve at {}: there is no folder {}", path.display(), folder.display())]
    NoFolder {
        /// The socket.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
    },
    /// The directory belongs to another user, or others may write to it.
    #[error("{} is not a directory of this user alone", .0.display())]
    UnsafeDirectory(PathBuf),
    /// There is something at that path which is no socket.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// Not a file name.
    #[error("{0:?} cannot name a machine")]
    BadName(String),
    /// The file system or the host said no.
    #[error("cannot serve at {}: {error}", path.display())]
    Io {
        /// The socket or its directory.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// A machine that runs already, as far as it says who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: Option<String>,
    /// The process that serves it.
    pub pid: Option<i32>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "machine `{name}`")?,
            None => f.write_str("a machine that does not answer")?,
        }
        match self.pid {
            Some(pid) => write!(f, " (pid {pid})"),
            None => Ok(()),
        }
    }
}

/// Where this user's machines have their sockets. Makes the directory.
///
/// # Errors
/// [`ControlError::UnsafeDirectory`], [`ControlError::Io`].
pub fn directory() -> Result<PathBuf, ControlError> {
    let path = directory_path();
    let io = |error| ControlError::Io {
        path: path.clone(),
        error,
    };
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
        _ => {}
    }
    let metadata = fs::symlink_metadata(&path).map_err(io)?;
    let private =
        metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if private {
        Ok(path)
    } else {
        Err(ControlError::UnsafeDirectory(path))
    }
}

fn directory_path() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) if Path::new(&runtime).is_absolute() && Path::new(&runtime).is_dir() => {
            Path::new(&runtime).join("ioasid")
        }
        _ if geteuid().is_root() && Path::new("/run").is_dir() => PathBuf::from("/run/ioasid"),
        _ => PathBuf::from(format!("/tmp/ioasid-{}", geteuid().as_raw())),
    }
}

/// The socket of the machine called `name`; a name with a slash in it is a path already.
///
/// # Errors
/// [`ControlError::BadName`], and as [`directory`].
pub fn socket_path(name: &str) -> Result<PathBuf, ControlError> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    if name.is_empty() || name.starts_with('.') || name.contains('\0') {
        return Err(ControlError::BadName(name.to_owned()));
    }
    Ok(directory()?.join(format!("{name}.sock")))
}

/// The sockets of the machines that this user serves now, in order of name. Nothing is made or
/// removed.
pub fn find_machines() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory_path()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "sock"))
        .filter(|path| UnixStream::connect(path).is_ok())
        .collect();
    found.sort();
    found
}

/// Whether a machine could be served at `path`. Nothing is made or removed.
///
/// # Errors
/// [`ControlError::InUse`], [`ControlError::NotASocket`], [`ControlError::NoFolder`], or
/// [`ControlError::Io`].
pub fn check_free(path: &Path) -> Result<(), ControlError> {
    folder_of(path)?;
    is_stale(path).map(drop)
}

pub(crate) fn folder_of(path: &Path) -> Result<(), ControlError> {
    match path.parent() {
        Some(folder) if folder != Path::new("") && !folder.is_dir() => {
            Err(ControlError::NoFolder {
                path: path.to_owned(),
                folder: folder.to_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// Removes a socket that no process listens on any more.
pub(crate) fn clear_stale(path: &Path) -> Result<(), ControlError> {
    if is_stale(path)? {
        fs::remove_file(path).map_err(|error| ControlError::Io {
            path: path.to_owned(),
            error,
        })?;
    }
    Ok(())
}

/// Whether there is a socket at `path` that no process listens on: false if there is nothing.
fn is_stale(path: &Path) -> Result<bool, ControlError> {
    let io = |error| ControlError::Io {
        path: path.to_owned(),
        error,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(ControlError::NotASocket(path.to_owned()))
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(stream) => Err(ControlError::InUse {
                path: path.to_owned(),
                owner: Owner {
                    name: ping(path).ok(),
                    pid: socket_peercred(&stream)
                        .ok()
                        .map(|peer| peer.pid.as_raw_pid()),
                },
            }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
            Err(error) => Err(io(error)),
        },
    }
}
