//! One conversation: messages out, replies in, and what every server owes to a client.
//!
//! As long as the client keeps to the protocol, each command that wants a reply gets one, in the order of
//! the commands, and the server does not hang up. A message whose header lies ends that: from then on
//! nobody knows where the next one starts, and nothing more is expected.

use std::{
    collections::VecDeque,
    io::{IoSlice, Read},
    mem::MaybeUninit,
    net::Shutdown,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use ioasid_vfio_user::spec::{DmaAccess, Header, command};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use zerocopy::{FromBytes, IntoBytes};

/// Descriptors that one message can bring here: more than the server takes.
const MAX_FDS: usize = 20;

/// Bytes of messages that wait for each other, so that they need one call.
const TOGETHER: usize = 16 << 10;

/// Commands that a client with private memory sends before it listens. The server carries out 64 behind a
/// slow one before it reads on, and while it does not, it hears no answers: half a second each time.
const AHEAD: usize = 30;

/// Saved state that is kept for the device that it is given to.
const KEPT: usize = 1 << 20;

/// How many commands of each number were carried out.
pub(crate) static ACCEPTED: [AtomicU64; 20] = [const { AtomicU64::new(0) }; 20];

/// How the client answers when the server asks for its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    /// With bytes.
    Answers,
    /// With an error.
    Refuses,
    /// With an answer of another size.
    Lies,
}

pub(crate) struct Client<'a> {
    stream: UnixStream,
    unsent: Vec<u8>,
    received: Vec<u8>,
    next: u16,
    /// Numbers and commands of the messages without a reply.
    waiting: VecDeque<(u16, u16)>,
    /// Commands since it has listened last.
    ahead: usize,
    /// The last one wants no reply.
    posted: bool,
    /// It has private memory, and is asked for it.
    private: bool,
    /// Whether both sides know where the messages are.
    in_step: bool,
    /// Messages that the server has read, as its replies show.
    read: u64,
    pub(crate) manners: Manners,
    /// What MIG_DATA_READ gave.
    kept: &'a mut Vec<u8>,
}

impl<'a> Client<'a> {
    pub(crate) fn connect(path: &Path, kept: &'a mut Vec<u8>) -> Self {
        Client {
            stream: UnixStream::connect(path).unwrap(),
            unsent: Vec::new(),
            received: Vec::new(),
            next: 0,
            waiting: VecDeque::new(),
            ahead: 0,
            posted: false,
            private: false,
            in_step: true,
            read: 0,
            manners: Manners::Answers,
            kept,
        }
    }

    /// Whether it still makes sense to go on.
    pub(crate) fn is_in_step(&self) -> bool {
        self.in_step
    }

    /// The state that was read last.
    pub(crate) fn kept(&self) -> &[u8] {
        self.kept
    }

    pub(crate) fn forget(&mut self) {
        self.kept.clear();
    }

    /// A command; `flags` beside the type.
    pub(crate) fn command(
        &mut self,
        command: u16,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) {
        let id = self.next;
        let size = (Header::SIZE + payload.len()) as u32;
        let header = Header {
            id,
            command,
            size,
            flags: flags & !Header::TYPE,
            error: 0,
        };
        self.next = self.next.wrapping_add(1);
        self.posted = !header.wants_reply();
        if !self.posted {
            self.waiting.push_back((id, command));
        }
        self.put(&header, payload, fds);
        self.private |= command == command::DMA_MAP && fds.is_empty();
        self.ahead += 1;
        if self.private && self.ahead >= AHEAD {
            self.sync();
        }
    }

    /// A message whose header does not tell the truth. The last one of the conversation.
    pub(crate) fn lie(&mut self, header: &Header, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.in_step = false;
        self.put(header, payload, fds);
    }

    /// Bytes that need not be a message.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.in_step = false;
        self.unsent.extend(bytes);
    }

    fn put(&mut self, header: &Header, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        // Descriptors come with a send of their own, as every client has it.
        if !fds.is_empty() {
            self.flush();
        }
        self.unsent.extend(header.as_bytes());
        self.unsent.extend(payload);
        if !fds.is_empty() {
            self.send_all(fds);
        } else if self.unsent.len() > TOGETHER {
            self.flush();
        }
    }

    pub(crate) fn flush(&mut self) {
        self.send_all(&[]);
    }

    /// Sends what is there, and what comes to it meanwhile; `fds` go with the first byte.
    fn send_all(&mut self, mut fds: &[BorrowedFd<'_>]) {
        while !self.unsent.is_empty() {
            let bytes = std::mem::take(&mut self.unsent);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !fds.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(fds));
                }
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                match sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, flags) {
                    Ok(sent) => {
                        rest = &rest[sent..];
                        fds = &[];
                    }
                    Err(Errno::AGAIN) => self.wait_for_room(),
                    Err(Errno::INTR) => {}
                    // The server has hung up: whether it may, `sync` says.
                    Err(_) => return,
                }
            }
        }
    }

    fn wait_for_room(&mut self) {
        let both = PollFlags::IN | PollFlags::OUT;
        let mut fds = [PollFd::new(&self.stream, both)];
        poll(&mut fds, None).unwrap();
        if fds[0].revents().contains(PollFlags::IN) {
            self.receive();
        }
    }

    /// Everything that was sent is carried out.
    pub(crate) fn sync(&mut self) {
        self.ahead = 0;
        if self.in_step && self.posted {
            self.command(command::DEVICE_GET_INFO, 0, &[0; 16], &[]);
        }
        self.flush();
        while self.in_step && !self.waiting.is_empty() {
            let open = self.receive();
            assert!(open || !self.in_step, "the server hangs up without a cause");
            self.flush();
        }
    }

    /// Says goodbye, and waits until the server has. Returns how many messages it has read for sure.
    pub(crate) fn finish(mut self) -> u64 {
        if self.in_step {
            self.sync();
        }
        self.hang_up()
    }

    /// Goes without a word.
    pub(crate) fn hang_up(mut self) -> u64 {
        self.flush();
        // The end of the stream reaches the server behind everything that was sent.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.manners = Manners::Refuses;
        while self.receive() {}
        // The lie, or the raw bytes, are one message.
        self.read + u64::from(!self.in_step)
    }

    /// Reads once, and looks at all messages that are whole then. Whether there is more to come.
    fn receive(&mut self) -> bool {
        let mut room = [0; 32 << 10];
        let count = match self.stream.read(&mut room) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return true,
            Err(_) => return false,
        };
        let mut bytes = std::mem::take(&mut self.received);
        bytes.extend(&room[..count]);
        let mut rest = &bytes[..];
        while let Ok((header, _)) = Header::read_from_prefix(rest) {
            let size = header.size as usize;
            assert!(size >= Header::SIZE, "the server sends no messages");
            let Some((message, after)) = rest.split_at_checked(size) else {
                break;
            };
            self.look(header, &message[Header::SIZE..]);
            rest = after;
        }
        self.received = rest.to_vec();
        true
    }

    fn look(&mut self, header: Header, payload: &[u8]) {
        match header.is_reply() {
            Some(true) => self.look_at_reply(header, payload),
            Some(false) => self.answer(header, payload),
            None => panic!("a type of message that does not exist"),
        }
    }

    fn look_at_reply(&mut self, header: Header, payload: &[u8]) {
        if header.flags & Header::ERROR == 0 {
            assert_eq!(header.error, 0);
            if let Some(accepted) = ACCEPTED.get(usize::from(header.command)) {
                accepted.fetch_add(1, Ordering::Relaxed);
            }
            if header.command == command::MIG_DATA_READ && self.kept.len() < KEPT {
                self.kept.extend(payload.get(8..).unwrap_or_default());
            }
        } else {
            assert!(payload.is_empty(), "an error has no payload");
            assert_ne!(header.error, 0, "an error has a number");
        }
        let Some(first) = self.waiting.pop_front() else {
            assert!(!self.in_step, "a reply to nothing");
            return;
        };
        if self.in_step {
            let found = (header.id, header.command);
            assert_eq!(found, first, "each command has one reply, in order");
            self.read = u64::from(header.id) + 1;
        }
    }

    /// The server asks for memory.
    fn answer(&mut self, header: Header, payload: &[u8]) {
        let (access, data) = DmaAccess::read_from_prefix(payload).unwrap();
        let count = access.count as usize;
        assert!((1..=1 << 20).contains(&count), "the size of a transfer");
        let mut reply = access.as_bytes().to_vec();
        match header.command {
            command::DMA_READ => reply.resize(reply.len() + count, 0x5a),
            command::DMA_WRITE => assert_eq!(data.len(), count),
            other => panic!("the server asks {other}"),
        }
        let mut flags = Header::REPLY;
        match self.manners {
            Manners::Answers => {}
            Manners::Refuses => {
                flags |= Header::ERROR;
                reply.clear();
            }
            Manners::Lies => {
                self.in_step = false;
                reply.truncate(9);
            }
        }
        let answer = Header {
            size: (Header::SIZE + reply.len()) as u32,
            flags,
            ..header
        };
        // Behind what is being sent.
        self.unsent.extend(answer.as_bytes());
        self.unsent.extend(&reply);
    }
}
