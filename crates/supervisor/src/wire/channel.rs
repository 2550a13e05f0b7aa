//! A connection: lines of JSON on a unix socket, with descriptors beside them.
//!
//! Peers are not trusted: a line has a largest size, descriptors that were not asked for are
//! closed, and an unknown message is an error, not a guess.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

/// The version of every message.
pub const SCHEMA: u32 = 1;

/// Descriptors that may wait for the message they belong to.
const PENDING_FDS: usize = 4;

/// A message or a refusal, with its version.
///
/// One of the two is there. Not an enum that serde flattens into it: that would read the message twice.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
struct Envelope<T> {
    schema: u32,
    #[serde(
        default = "none",
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    message: Option<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

fn none<T>() -> Option<T> {
    None
}

/// A message that is there, even if it is `null`.
fn some<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(io::Error),
    /// The peer closed the connection.
    #[error("the other side closed the connection")]
    Closed,
    /// The line is longer than this side accepts.
    #[error("the message is longer than {0} bytes")]
    TooLong(usize),
    /// Not JSON, or not the message that was waited for.
    #[error("not a message that this version understands: {0}")]
    Malformed(serde_json::Error),
    /// A message of another version.
    #[error("not a message that this version understands: schema {0} instead of {SCHEMA}")]
    Schema(u32),
    /// More descriptors than messages can have beside them.
    #[error("not a message that this version understands: too many descriptors")]
    TooManyDescriptors,
    /// The launcher is ready and the listener did not come beside its message.
    #[error("not a message that this version understands: the listener is missing")]
    NoListener,
    /// The peer refused, in one sentence.
    #[error("{0}")]
    Refused(String),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        WireError::Io(error)
    }
}

impl From<serde_json::Error> for WireError {
    fn from(error: serde_json::Error) -> Self {
        WireError::Malformed(error)
    }
}

/// A connection.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    received: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Channel {
    /// Speaks over `socket`.
    pub fn new(socket: UnixStream) -> Self {
        Channel {
            socket,
            received: Vec::new(),
            fds: VecDeque::new(),
        }
    }

    /// The socket itself.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sends `message`, with at most one descriptor beside it.
    ///
    /// # Errors
    /// [`WireError::Io`].
    pub fn send<T: Serialize>(
        &mut self,
        message: &T,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), WireError> {
        let envelope = Envelope {
            schema: SCHEMA,
            message: Some(message),
            refused: None,
        };
        self.send_envelope(&envelope, fd)
    }

    /// Refuses what the peer asked for, in one sentence.
    ///
    /// # Errors
    /// [`WireError::Io`].
    pub fn refuse(&mut self, sentence: &str) -> Result<(), WireError> {
        let envelope = Envelope::<()> {
            schema: SCHEMA,
            message: None,
            refused: Some(sentence.to_owned()),
        };
        self.send_envelope(&envelope, None)
    }

    fn send_envelope<T: Serialize>(
        &mut self,
        envelope: &Envelope<T>,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), WireError> {
        let mut line = serde_json::to_vec(envelope)?;
        line.push(b'\n');
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            let sent = match sendmsg(
                &self.socket,
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(io::Error::from)?,
            };
            control.clear();
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits for a message of at most `limit` bytes.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn receive<T: DeserializeOwned>(&mut self, limit: usize) -> Result<T, WireError> {
        let line = self.line(limit)?;
        let envelope: Envelope<T> = serde_json::from_slice(&line)?;
        if envelope.schema != SCHEMA {
            return Err(WireError::Schema(envelope.schema));
        }
        match (envelope.message, envelope.refused) {
            (Some(message), None) => Ok(message),
            (None, Some(sentence)) => Err(WireError::Refused(sentence)),
            _ => Err(WireError::Malformed(serde::de::Error::custom(
                "neither a message nor a refusal",
            ))),
        }
    }

    /// The descriptor that came beside the last message.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }

    fn line(&mut self, limit: usize) -> Result<Vec<u8>, WireError> {
        let mut searched = 0;
        loop {
            if let Some(end) = find_newline(&self.received, searched) {
                let rest = self.received.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.received, rest);
                line.pop();
                return Ok(line);
            }
            searched = self.received.len();
            if searched > limit {
                return Err(WireError::TooLong(limit));
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<(), WireError> {
        let mut bytes = [0u8; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PENDING_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = loop {
            match recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_err(io::Error::from)?,
            }
        };
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                self.fds.extend(fds);
            }
        }
        if self.fds.len() > PENDING_FDS || message.flags.contains(ReturnFlags::CTRUNC) {
            self.fds.clear();
            return Err(WireError::TooManyDescriptors);
        }
        if message.bytes == 0 {
            return Err(WireError::Closed);
        }
        self.received
            .extend_from_slice(bytes.get(..message.bytes).unwrap_or_default());
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn find_newline(bytes: &[u8], from: usize) -> Option<usize> {
    let tail = bytes.get(from..)?;
    Some(from + tail.iter().position(|b| *b == b'\n')?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::wire::messages::{
        Attach, Description, Mmio, Mode, NodeName, Placeholder, REPLY_BYTES, REQUEST_BYTES, Request,
    };

    fn pair() -> (Channel, Channel) {
        let (a, b) = UnixStream::pair().unwrap();
        (Channel::new(a), Channel::new(b))
    }

    #[test]
    fn a_message_arrives_with_its_descriptor() {
        let (mut a, mut b) = pair();
        let attach = Attach {
            base: 896,
            mode: Mode::Namespaces {
                placeholders: vec![Placeholder {
                    dev: 1,
                    ino: u64::MAX,
                    node: NodeName::Device("vfio0".to_owned()),
                }],
                sys: Some(u64::MAX),
            },
            mmio: Mmio::Ptrace,
            explain: false,
            pid: 17,
        };
        a.send(&attach, Some(std::io::stdin().as_fd())).unwrap();
        assert_eq!(b.receive::<Attach>(REQUEST_BYTES).unwrap(), attach);
        assert!(b.take_fd().is_some());
        assert!(b.take_fd().is_none());
    }

    #[test]
    fn hostile_lines_are_errors() {
        for (line, what) in [
            (&b"{}\n"[..], "malformed"),
            (b"{\"schema\":2,\"message\":\"ping\"}\n", "schema"),
            (b"{\"schema\":1,\"message\":\"dance\"}\n", "malformed"),
            (b"\xff\xfe\n", "malformed"),
            (b"", "closed"),
            (b"{\"schema\":1,", "closed"),
        ] {
            let (mut a, mut b) = pair();
            a.socket.write_all(line).unwrap();
            drop(a);
            let error = b.receive::<Request>(REQUEST_BYTES).unwrap_err();
            match what {
                "closed" => assert!(matches!(error, WireError::Closed), "{error}"),
                "schema" => assert!(matches!(error, WireError::Schema(2)), "{error}"),
                _ => assert!(matches!(error, WireError::Malformed(_)), "{error}"),
            }
        }
    }

    #[test]
    fn an_endless_line_is_cut_off() {
        let (mut a, mut b) = pair();
        let writer = std::thread::spawn(move || while a.socket.write_all(&[b' '; 4096]).is_ok() {});
        let error = b.receive::<Request>(REQUEST_BYTES).unwrap_err();
        assert!(matches!(error, WireError::TooLong(_)), "{error}");
        drop(b);
        writer.join().unwrap();
    }

    #[test]
    fn a_refusal_carries_its_sentence() {
        let (mut a, mut b) = pair();
        a.refuse("there is no vm9").unwrap();
        let error = b.receive::<Description>(REPLY_BYTES).unwrap_err();
        assert_eq!(error.to_string(), "there is no vm9");
    }
}
