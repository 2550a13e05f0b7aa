//! What is asked of a served machine through its socket.

use std::{io, os::unix::net::UnixStream, path::Path, time::Duration};

use ioasid_core::inspect::{Node, Value};

use crate::{
    view::{InjectRequest, MdevRequest},
    wire::{Channel, Counts, REPLY_BYTES, REQUEST_BYTES, Request, WireError, tree::Tree},
};

/// How long a peer may take to send or read a message.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a machine.
pub(crate) fn connect(path: &Path) -> io::Result<Channel> {
    UnixStream::connect(path).map(Channel::new)
}

/// Asks the machine at `path` for its tree.
///
/// # Errors
/// See [`WireError`].
pub fn inspect(path: &Path) -> Result<Node, WireError> {
    ask(path, &Request::Inspect)
}

/// Asks the machine at `path` for its name.
///
/// # Errors
/// See [`WireError`].
pub fn ping(path: &Path) -> Result<String, WireError> {
    match ask(path, &Request::Ping)?.field("name") {
        Some(Value::Text(name)) => Ok(name.clone()),
        _ => Ok(String::new()),
    }
}

/// Asks the machine at `path` about mediated devices.
///
/// # Errors
/// See [`WireError`].
pub fn mdev(path: &Path, request: MdevRequest) -> Result<Node, WireError> {
    ask(path, &Request::Mdev(request))
}

/// Makes something of the machine at `path` fail.
///
/// # Errors
/// See [`WireError`].
pub fn inject(path: &Path, request: InjectRequest) -> Result<(), WireError> {
    ask(path, &Request::Inject(request)).map(drop)
}

/// Asks the machine at `path` what it has counted of a program, once all that is to be written about it
/// is written.
///
/// # Errors
/// See [`WireError`].
pub(crate) fn account(path: &Path, session: u64) -> Result<Counts, WireError> {
    let mut channel = connect(path)?;
    channel.send(&Request::Account { session }, None)?;
    channel.receive(REQUEST_BYTES)
}

fn ask(path: &Path, request: &Request) -> Result<Node, WireError> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut channel = Channel::new(stream);
    channel.send(request, None)?;
    channel.receive::<Tree>(REPLY_BYTES).map(|tree| tree.0)
}
