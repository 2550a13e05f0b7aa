//! The socket: messages in and out, with the descriptors that come along.
//!
//! A header is read first, then exactly as many bytes as it says: whatever is wrong with a message,
//! the next one starts where it should. Nothing is allocated that a peer has not earned: a message
//! that is longer than any there is is read into nowhere.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use ioasid_core::sync::Mutex;
use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::spec::{Header, MAX_DATA_XFER_SIZE};

/// Descriptors that one message may bring (`max_msg_fds`).
pub const MAX_FDS: usize = 16;

/// Most bytes of a payload: an access with all the data that it can have, and room to spare.
pub const MAX_PAYLOAD: usize = MAX_DATA_XFER_SIZE as usize + 4096;

/// Bytes that are read into nowhere at a time.
const DRAIN: usize = 64 * 1024;

/// One message of the client.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    /// There were more descriptors than a message may bring; they are closed.
    pub(crate) too_many_fds: bool,
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A message.
    Message(Message),
    /// A message that is longer than any; it has been read to its end.
    TooLong(Header),
}

/// The connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The client has closed it, or does not speak in time.
    #[error("the client is gone")]
    Closed,
    /// What came in is no message: nobody can tell where the next one starts.
    #[error("no message of vfio-user came in: {0}")]
    Nonsense(&'static str),
    /// The operating system said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The receiving side: one thread at a time reads.
#[derive(Debug)]
pub(crate) struct Receiver(Arc<UnixStream>);

impl Receiver {
    pub(crate) fn new(socket: Arc<UnixStream>) -> Self {
        Receiver(socket)
    }

    /// The next message.
    pub(crate) fn receive(&mut self) -> Result<Incoming, Broken> {
        let mut message = Message::default();
        let mut bytes = [0; Header::SIZE];
        self.fill(&mut bytes, &mut message)?;
        let header = Header::read_from_bytes(&bytes).map_err(|_| Broken::Nonsense("header"))?;
        message.header = header;
        let rest = (header.size as usize)
            .checked_sub(Header::SIZE)
            .ok_or(Broken::Nonsense("a size less than that of a header"))?;
        if rest > MAX_PAYLOAD {
            self.drain(rest)?;
            return Ok(Incoming::TooLong(header));
        }
        if rest > 0 {
            let mut payload = vec![0; rest];
            self.fill(&mut payload, &mut message)?;
            message.payload = payload;
        }
        Ok(Incoming::Message(message))
    }

    fn drain(&self, mut rest: usize) -> Result<(), Broken> {
        let mut nowhere = vec![0; DRAIN];
        let mut unwanted = Message::default();
        while rest > 0 {
            let part = nowhere.get_mut(..rest.min(DRAIN)).unwrap_or_default();
            self.fill(part, &mut unwanted)?;
            rest -= part.len();
            unwanted.fds.clear();
        }
        Ok(())
    }

    /// Reads until `bytes` are full; descriptors go to `message`.
    fn fill(&self, bytes: &mut [u8], message: &mut Message) -> Result<(), Broken> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..)
            && !rest.is_empty()
        {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(rest)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
            let received = match recvmsg(self.0.as_fd(), &mut parts, &mut control, flags) {
                Ok(received) => received,
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET | Errno::AGAIN) => return Err(Broken::Closed),
                Err(errno) => return Err(Broken::Io(errno.into())),
            };
            for part in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = part {
                    message.fds.extend(fds);
                }
            }
            message.too_many_fds |=
                received.flags.contains(ReturnFlags::CTRUNC) || message.fds.len() > MAX_FDS;
            message.fds.truncate(MAX_FDS);
            if received.bytes == 0 {
                return Err(Broken::Closed);
            }
            done += received.bytes;
        }
        Ok(())
    }
}

/// The sending side, for any thread. A client that does not read blocks whoever sends to it, and
/// these threads serve it alone.
#[derive(Debug)]
pub(crate) struct Sender {
    socket: Arc<UnixStream>,
    turn: Mutex<()>,
}

impl Sender {
    pub(crate) fn new(socket: Arc<UnixStream>) -> Self {
        Sender {
            socket,
            turn: Mutex::new(()),
        }
    }

    /// Sends a whole message; its size is filled in.
    pub(crate) fn send(&self, mut header: Header, payload: [&[u8]; 2]) -> io::Result<()> {
        let [first, second] = payload;
        let size = Header::SIZE + first.len() + second.len();
        header.size = u32::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut parts = [
            IoSlice::new(header.as_bytes()),
            IoSlice::new(first),
            IoSlice::new(second),
        ];
        let mut rest = &mut parts[..];
        let _turn = self.turn.lock();
        let mut left = size;
        while left > 0 {
            let sent = rustix::net::sendmsg(
                self.socket.as_fd(),
                rest,
                &mut rustix::net::SendAncillaryBuffer::default(),
                SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    left = left.saturating_sub(sent);
                    IoSlice::advance_slices(&mut rest, sent.min(size));
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Ends the connection in both directions: whoever reads or sends is woken.
    pub(crate) fn shut_down(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}
