//! What a service manager gives and wants to know: sockets that it has opened (`LISTEN_FDS`,
//! sd_listen_fds(3)) and how far the service is (`NOTIFY_SOCKET`, sd_notify(3)).
// UNSAFETY: descriptors that came with the process are named by number alone.
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

/// The sockets that a service manager has passed to this process, with their names (`LISTEN_FDNAMES`,
/// empty where there is none). They are given once; a second call has none.
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

/// Tells the service manager `state`, such as `READY=1`. Without one there is nothing to do.
///
/// # Errors
/// What the operating system says.
pub fn notify(state: &str) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(path) => notify_at(&path, state),
        None => Ok(()),
    }
}

fn notify_at(path: &OsStr, state: &str) -> io::Result<()> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_manager_hears_that_the_service_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        notify_at(path.as_os_str(), "READY=1").unwrap();
        let mut text = [0; 16];
        let len = manager.recv(&mut text).unwrap();
        assert_eq!(&text[..len], b"READY=1");
        notify("READY=1").unwrap();
    }
}
