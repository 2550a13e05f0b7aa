//! What a service manager gives and wants to know: sockets that it has opened (`LISTEN_FDS`,
//! sd_listen_fds(3)) and how far the service is (`NOTIFY_SOCKET`, sd_notify(3)). And what a process
//! does that goes on when its clients leave.
// UNSAFETY: descriptors that came with the process are named by number alone; the allocator of the
// C library is called by its own function.
#![allow(unsafe_code)]

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net::SocketAddr, net::UnixDatagram},
    },
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::process::Resource;

/// The first descriptor that a service manager passes (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// The most that are taken.
const MOST: RawFd = 1024;

/// The sockets that a service manager has passed to this process, with their names
/// (`LISTEN_FDNAMES`, empty where there is none). They are given once; a second call has none.
///
/// To be called before the process opens anything of its own.
pub fn listen_fds() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name| -> Option<i64> { std::env::var(name).ok()?.parse().ok() };
    if number("LISTEN_PID") != Some(std::process::id().into()) || TAKEN.swap(true, Ordering::AcqRel)
    {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, MOST.into());
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let fds = (FIRST..).take(usize::try_from(count).unwrap_or(0));
    let open = fds.filter_map(|fd| {
        let name = names.next().unwrap_or_default();
        // SAFETY: F_GETFD and F_SETFD take a number and an integer, and fail if it is not open.
        let flags = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        // SAFETY: open, and ours: the service manager passed it to this process, and the flag above
        // lets this happen once.
        (flags == 0).then(|| (name, unsafe { OwnedFd::from_raw_fd(fd) }))
    });
    open.collect()
}

/// Lets this process have as many descriptors as its hard limit allows: each client brings some.
pub fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Otherwise what there is has to do.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}

/// Gives memory that this process has freed back to the system, to be called when a client with
/// much of it has left. glibc keeps what lies below anything that is still in use (malloc_trim(3)):
/// of a client with 65,535 mappings all that is 80 MiB, and of one that has spread them 600.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes the allocator's own locks, and moves nothing that is in use.
        unsafe { libc::malloc_trim(0) };
    }
}

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Manager(Option<UnixDatagram>);

impl Manager {
    /// Connects to the service manager that the environment names. One that cannot be reached is
    /// none.
    pub fn from_env() -> Self {
        let path = std::env::var_os("NOTIFY_SOCKET");
        Manager(path.and_then(|path| connect(&path).ok()))
    }

    /// Tells it `state`, such as `READY=1`.
    pub fn notify(&self, state: &str) {
        if let Some(socket) = &self.0 {
            // It is no matter of the service's whether anybody listens.
            let _ = socket.send(state.as_bytes());
        }
    }
}

fn connect(path: &OsStr) -> io::Result<UnixDatagram> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_manager_hears_that_the_service_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        Manager(connect(path.as_os_str()).ok()).notify("READY=1");
        let mut text = [0; 16];
        let len = manager.recv(&mut text).unwrap();
        assert_eq!(&text[..len], b"READY=1");
        Manager(None).notify("READY=1");
    }
}
