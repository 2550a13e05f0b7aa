//! The socket: messages in and out, with the descriptors that come along.
//!
//! One read takes a whole message, and more if more are there. Whatever is wrong with a message, the
//! next one starts where its size says. Nothing is kept that a peer has not earned: a message that is
//! longer than any there is is read into nowhere.
//!
//! # Whose descriptors
//!
//! A read of a stream socket ends with the piece that brought descriptors (`unix_stream_read_generic`
//! of `net/unix/af_unix.c`), and a piece is of one send. So they are of the message with the last byte
//! that was read, for any client that sends a message, or part of one, at a time.
//!
//! There is room for as many as a send can bring: what the kernel has no room for it lets go of in the
//! thread that reads, and that may wait for the file.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    ops::Range,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::Arc,
};

use ioasid_core::sync::Mutex;
use ioasid_host::{Closer, ReceivedFd};
use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    error::Error,
    spec::{Header, MAX_DATA_XFER_SIZE},
};

/// Descriptors that one message may bring (`max_msg_fds`).
pub const MAX_FDS: usize = 16;

/// Descriptors that one send can bring (`SCM_MAX_FD` of `include/net/scm.h`).
const MAX_SENT: usize = 253;

/// Most bytes of a payload: an access with all the data that it can have, and room to spare.
pub const MAX_PAYLOAD: usize = MAX_DATA_XFER_SIZE as usize + 4096;

/// Bytes that one read takes at most, and those that are read into nowhere at a time. Longer messages
/// are read to where they stay.
const BUFFER: usize = 16 * 1024;

/// Memory for a payload that is kept from one message to the next.
const KEPT: usize = 64 * 1024;

/// One message of the client.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) descriptors: Descriptors,
}

impl Message {
    /// Makes room for the next one. Memory for an ordinary payload stays.
    fn clear(&mut self) {
        clear(&mut self.payload);
        self.descriptors = Descriptors::default();
    }
}

/// Empties `bytes`, whose memory stays unless it is more than usual.
pub(crate) fn clear(bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.shrink_to(KEPT);
}

/// Descriptors that came in.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    pub(crate) fds: Vec<ReceivedFd>,
    /// More than [`MAX_FDS`] came; the others were closed.
    pub(crate) too_many: bool,
}

impl Descriptors {
    fn append(&mut self, other: &mut Descriptors) {
        let other = std::mem::take(other);
        self.add(other.fds, other.too_many);
    }

    /// Adds `fds`, as far as there is room, and whether there were more.
    fn add(&mut self, fds: impl IntoIterator<Item = ReceivedFd>, more: bool) {
        self.fds.extend(fds);
        self.too_many |= more || self.fds.len() > MAX_FDS;
        self.fds.truncate(MAX_FDS);
    }
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A message.
    Message,
    /// A message that is longer than any; it has been read to its end.
    TooLong(Header),
    /// A header with a size less than its own: the next message starts behind it.
    TooShort(Header),
}

/// The connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The client has closed it.
    #[error("the client is gone")]
    Closed,
    /// The client has connected, and does not speak in time.
    #[error("it says nothing")]
    Silent,
    /// Its first message does not begin a connection, or the device cannot be opened: the client has got
    /// the error.
    #[error("it was refused: {0}")]
    Refused(Error),
    /// What came in is no message: where the next one starts is unknown.
    #[error("no message of vfio-user came in: {0}")]
    Nonsense(&'static str),
    /// The operating system said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The receiving side: one thread at a time reads.
#[derive(Debug)]
pub(crate) struct Receiver {
    socket: Arc<UnixStream>,
    /// What closes descriptors that nobody uses.
    closer: Arc<Closer>,
    buffer: Box<[u8]>,
    /// The part of `buffer` that has been read and belongs to messages still to come.
    unread: Range<usize>,
    /// Descriptors of the next message.
    own: Descriptors,
    /// Those that the last read brought: of the message with its last byte.
    last: Descriptors,
}

impl Receiver {
    pub(crate) fn new(socket: Arc<UnixStream>, closer: Arc<Closer>) -> Self {
        Receiver {
            socket,
            closer,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            unread: 0..0,
            own: Descriptors::default(),
            last: Descriptors::default(),
        }
    }

    /// The next message, into `message`.
    pub(crate) fn receive(&mut self, message: &mut Message) -> Result<Incoming, Broken> {
        message.clear();
        self.read_to(Header::SIZE)?;
        let header = self.take(Header::SIZE);
        let header = Header::read_from_bytes(header).map_err(|_| Broken::Nonsense("header"))?;
        message.header = header;
        let Some(rest) = (header.size as usize).checked_sub(Header::SIZE) else {
            self.take_descriptors(message);
            message.clear();
            return Ok(Incoming::TooShort(header));
        };
        if rest > MAX_PAYLOAD {
            self.drain(rest, message)?;
            message.clear();
            return Ok(Incoming::TooLong(header));
        }
        if rest <= BUFFER {
            self.read_to(rest)?;
            message.payload.extend_from_slice(self.take(rest));
        } else {
            message.payload.extend_from_slice(self.take(rest));
            let here = message.payload.len();
            message.payload.resize(rest, 0);
            let missing = message.payload.get_mut(here..).unwrap_or_default();
            fill(&self.socket, &self.closer, missing, &mut self.last)?;
        }
        self.take_descriptors(message);
        Ok(Incoming::Message)
    }

    /// Up to `count` bytes of the buffer.
    fn take(&mut self, count: usize) -> &[u8] {
        let start = self.unread.start;
        let end = (start + count).min(self.unread.end);
        self.unread.start = end;
        self.buffer.get(start..end).unwrap_or_default()
    }

    /// The message ends here.
    fn take_descriptors(&mut self, message: &mut Message) {
        message.descriptors.append(&mut self.own);
        if self.unread.is_empty() {
            message.descriptors.append(&mut self.last);
        }
    }

    /// Reads until there are `count` bytes in the buffer, which has room for them.
    fn read_to(&mut self, count: usize) -> Result<(), Broken> {
        while self.unread.len() < count {
            // What there is ends within the next message.
            self.own.append(&mut self.last);
            let have = self.unread.len();
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..have;
            let room = self.buffer.get_mut(have..).unwrap_or_default();
            let flags = RecvFlags::empty();
            self.unread.end += read(&self.socket, &self.closer, room, flags, &mut self.last)?;
        }
        Ok(())
    }

    fn drain(&mut self, mut rest: usize, message: &mut Message) -> Result<(), Broken> {
        rest -= self.take(rest).len();
        while rest > 0 {
            self.last = Descriptors::default();
            let part = self.buffer.get_mut(..rest.min(BUFFER)).unwrap_or_default();
            fill(&self.socket, &self.closer, part, &mut self.last)?;
            rest -= part.len();
        }
        self.take_descriptors(message);
        Ok(())
    }
}

/// Reads until `bytes` are full, and nothing behind them.
fn fill(
    socket: &UnixStream,
    closer: &Arc<Closer>,
    bytes: &mut [u8],
    to: &mut Descriptors,
) -> Result<(), Broken> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..)
        && !rest.is_empty()
    {
        done += read(socket, closer, rest, RecvFlags::WAITALL, to)?;
    }
    Ok(())
}

/// Reads once; at least one byte. Descriptors are added to `to`.
fn read(
    socket: &UnixStream,
    closer: &Arc<Closer>,
    bytes: &mut [u8],
    flags: RecvFlags,
    to: &mut Descriptors,
) -> Result<usize, Broken> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT))];
    let mut parts = [IoSliceMut::new(bytes)];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let received = match recvmsg(socket.as_fd(), &mut parts, &mut control, flags) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(Errno::CONNRESET) => return Err(Broken::Closed),
            Err(Errno::AGAIN) => return Err(Broken::Silent),
            Err(errno) => return Err(Broken::Io(errno.into())),
        };
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                let fds: Vec<_> = fds.map(|fd| ReceivedFd::new(fd, closer)).collect();
                to.add(fds, false);
                if closer.is_full() {
                    return Err(Broken::Nonsense("descriptors that cannot be closed"));
                }
            }
        }
        to.too_many |= received.flags.contains(ReturnFlags::CTRUNC);
        if received.bytes == 0 {
            return Err(Broken::Closed);
        }
        return Ok(received.bytes);
    }
}

/// The sending side, for any thread. A client that does not read blocks those that send to it, and
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

    /// Sends a message whose header and payload are one piece, `bytes`: the header goes to its
    /// beginning, with the size.
    pub(crate) fn send_whole(&self, mut header: Header, bytes: &mut [u8]) -> io::Result<()> {
        header.size = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let place = bytes.get_mut(..Header::SIZE);
        place
            .ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(header.as_bytes());
        let mut rest = &*bytes;
        let _turn = self.turn.lock();
        while !rest.is_empty() {
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Ends the connection in both directions: threads that read or send are woken.
    pub(crate) fn shut_down(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
