//! One connection: a client and the device that it has, from VERSION to the end.
//!
//! The thread that reads the socket also carries out the commands, one after the other, so an
//! ordinary message costs no switch of threads. It must not wait for the device's DMA, though, while a
//! client might be needed to finish it: such a command goes to a second thread, together with all that
//! follow until it is through, and the first goes on reading answers.

use std::{collections::VecDeque, io, os::unix::net::UnixStream, sync::Arc, time::Duration};

use ioasid_core::{
    host::Worker,
    sync::{Condvar, Mutex},
};
use ioasid_host::{ClientWorker, Closer};
use ioasid_uapi::Errno;
use ioasid_vfio::VfioDevice;

use crate::{
    commands::{Target, may_wait},
    error::{Error, MessageError},
    peer::Peer,
    spec::{Header, command},
    version::{Agreement, negotiate},
    vm::Vm,
    wire::{Broken, Incoming, MAX_PAYLOAD, Message, Receiver, Sender, clear},
};

/// How long a client may take to say VERSION.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Commands that wait behind a slow one; a client that sends more waits itself.
const QUEUE: usize = 64;

/// Serves one client until it leaves, or [`UnixStream::shutdown`] ends the stream. When it returns the
/// device is released and pristine, and what the client alone had mapped is unmapped.
pub(crate) fn serve(
    stream: &Arc<UnixStream>,
    device: &Arc<VfioDevice>,
    closer: &Arc<Closer>,
    number: u64,
    vm: impl FnOnce() -> io::Result<Arc<Vm>>,
) -> Result<(), Broken> {
    let mut receiver = Receiver::new(Arc::clone(stream), Arc::clone(closer));
    let peer = Arc::new(Peer::new(Sender::new(Arc::clone(stream))));
    stream.set_read_timeout(Some(HANDSHAKE))?;
    let (header, agreement) = handshake(&mut receiver, &peer, device)?;
    stream.set_read_timeout(None)?;
    peer.set_max_transfer(agreement.max_transfer as usize);
    let opened = vm().map_err(Broken::Io)?;
    let target = match open(device, number, &opened) {
        Ok(target) => target,
        Err(error) => {
            reply_error(&peer, header, error.clone())?;
            return Err(Broken::Refused(error));
        }
    };
    opened.join(number, Arc::clone(&peer));
    let connection = Arc::new(Connection {
        target,
        peer,
        line: Mutex::default(),
        room: Condvar::new(),
    });
    let ending = Ending(Arc::clone(&connection));
    let sender = connection.peer.sender();
    let result = sender
        .send(success(header), [&agreement.reply, &[]])
        .map_err(Broken::Io)
        .and_then(|()| connection.run(&mut receiver));
    drop(ending);
    result
}

/// The end of a connection, however it comes.
#[derive(Debug)]
struct Ending(Arc<Connection>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The first message. A client that begins otherwise gets an error.
fn handshake(
    receiver: &mut Receiver,
    peer: &Peer,
    device: &VfioDevice,
) -> Result<(Header, Agreement), Broken> {
    let mut message = Message::default();
    if let Some((header, error)) = unread(receiver.receive(&mut message)?)? {
        reply_error(peer, header, error.clone())?;
        return Err(Broken::Refused(error));
    }
    let header = message.header;
    let agreement = if header.is_reply() == Some(false) && header.command == command::VERSION {
        negotiate(&message.payload, device.can_migrate())
    } else {
        Err(MessageError::OutOfTurn.into())
    };
    match agreement {
        Ok(agreement) => Ok((header, agreement)),
        Err(error) => {
            reply_error(peer, header, error.clone())?;
            Err(Broken::Refused(error))
        }
    }
}

/// The header of a message that was not read for its size, and why. The sender gets the error, unless
/// the message is itself an answer.
fn unread(incoming: Incoming) -> Result<Option<(Header, Error)>, Broken> {
    let (header, error) = match incoming {
        Incoming::Message => return Ok(None),
        Incoming::TooLong(header) => (
            header,
            MessageError::TooLong {
                bytes: header.size as usize,
                limit: Header::SIZE + MAX_PAYLOAD,
            },
        ),
        Incoming::TooShort(header) => (
            header,
            MessageError::Size {
                bytes: header.size as usize,
                needed: Header::SIZE,
            },
        ),
    };
    match header.is_reply() {
        Some(true) => Err(Broken::Nonsense("an answer of another size")),
        _ => Ok(Some((header, error.into()))),
    }
}

/// Opens, binds and attaches the device, as a program would.
fn open(device: &Arc<VfioDevice>, number: u64, vm: &Arc<Vm>) -> Result<Target, Error> {
    let file = device.open()?;
    file.bind(vm.context())?;
    file.attach(vm.ioas(), None)?;
    Ok(Target {
        number,
        file,
        vm: Arc::clone(vm),
    })
}

#[derive(Debug)]
struct Connection {
    target: Target,
    peer: Arc<Peer>,
    line: Mutex<Line>,
    /// There is room in the line, or it is empty.
    room: Condvar,
}

/// Commands that wait for the second thread.
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Message>,
    /// The second thread carries out commands: all of them go to it.
    busy: bool,
    /// A reply could not be sent.
    broken: bool,
    second: Option<Arc<ClientWorker>>,
}

impl Line {
    /// The second thread, which a connection has from its first slow command on.
    fn second(&mut self) -> io::Result<Arc<ClientWorker>> {
        if let Some(second) = &self.second {
            return Ok(Arc::clone(second));
        }
        let second = ClientWorker::new("vm commands")?;
        self.second = Some(Arc::clone(&second));
        Ok(second)
    }
}

impl Connection {
    fn run(self: &Arc<Self>, receiver: &mut Receiver) -> Result<(), Broken> {
        let mut message = Message::default();
        let mut reply = Vec::new();
        loop {
            let refused = unread(receiver.receive(&mut message)?)?;
            let header = message.header;
            match (refused, header.is_reply()) {
                (Some((header, error)), _) => self.answer(header, Err(error), &mut reply)?,
                (None, Some(true)) => self.peer.deliver(std::mem::take(&mut message))?,
                (None, Some(false)) => self.accept(&mut message, &mut reply)?,
                (None, None) => {
                    let error = MessageError::Field {
                        field: "flags",
                        value: header.flags.into(),
                    };
                    self.answer(header, Err(error.into()), &mut reply)?;
                }
            }
        }
    }

    /// A command: carried out here, or in the line. Its reply is put together in `reply`.
    fn accept(self: &Arc<Self>, message: &mut Message, reply: &mut Vec<u8>) -> Result<(), Broken> {
        let mut line = self.line.lock();
        if line.broken {
            return Err(Broken::Closed);
        }
        let here = !line.busy && (!self.target.vm.has_remote_memory() || !may_wait(message));
        if here {
            drop(line);
            return Ok(self.carry_out(message, reply)?);
        }
        while line.waiting.len() >= QUEUE {
            line = self.room.wait(line);
        }
        if !line.busy {
            // The end of the connection waits for it: it is busy only once it will work.
            let second = line.second()?;
            let this = Arc::clone(self);
            let submitted = second.submit(Box::new(move || this.work_off()));
            submitted.map_err(io::Error::other)?;
            line.busy = true;
        }
        line.waiting.push_back(std::mem::take(message));
        Ok(())
    }

    /// The second thread: everything in the line.
    fn work_off(&self) {
        let _working = Working(self);
        let mut reply = Vec::new();
        loop {
            let mut line = self.line.lock();
            let Some(mut message) = line.waiting.pop_front() else {
                // The next command that finds it idle starts it again.
                line.busy = false;
                return;
            };
            drop(line);
            self.room.notify_all();
            let slow = may_wait(&message);
            let done = match slow {
                true => self
                    .target
                    .vm
                    .hurried(|| self.carry_out(&mut message, &mut reply)),
                false => self.carry_out(&mut message, &mut reply),
            };
            if done.is_err() {
                self.line.lock().broken = true;
            }
        }
    }

    fn carry_out(&self, message: &mut Message, reply: &mut Vec<u8>) -> io::Result<()> {
        let header = message.header;
        clear(reply);
        reply.extend_from_slice(&[0; Header::SIZE]);
        let result = self.target.execute(message, reply);
        self.answer(header, result, reply)
    }

    /// Sends the reply that is in `reply` behind room for a header, or the error.
    fn answer(
        &self,
        header: Header,
        result: Result<(), Error>,
        reply: &mut [u8],
    ) -> io::Result<()> {
        if let Err(error) = &result {
            let command = command::name(header.command);
            tracing::debug!(connection = self.target.number, command, %error, "refused");
        }
        if !header.wants_reply() {
            return Ok(());
        }
        match result {
            Ok(()) => self.peer.sender().send_whole(success(header), reply),
            Err(error) => reply_error(&self.peer, header, error),
        }
    }

    /// The client is gone: everything of it goes, the device first.
    fn end(&self) {
        self.peer.close();
        let mut line = self.line.lock();
        line.broken = true;
        line.waiting.clear();
        while line.busy {
            line = self.room.wait(line);
        }
        if let Some(second) = line.second.take() {
            second.stop();
        }
        drop(line);
        let Target { number, file, vm } = &self.target;
        vm.hurried(|| file.close());
        vm.leave(*number);
    }
}

/// The second thread at work. Nobody waits for it after it has ended, in whatever way.
#[derive(Debug)]
struct Working<'a>(&'a Connection);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut line = self.0.line.lock();
            line.busy = false;
            line.broken = true;
        }
        self.0.room.notify_all();
    }
}

/// The header of the reply to a command that was carried out.
fn success(header: Header) -> Header {
    Header {
        flags: Header::REPLY,
        error: 0,
        ..header
    }
}

fn reply_error(peer: &Peer, header: Header, error: Error) -> io::Result<()> {
    let errno = Errno::from(error).get();
    let header = Header {
        flags: Header::REPLY | Header::ERROR,
        error: errno.unsigned_abs(),
        ..header
    };
    peer.sender().send(header, [&[], &[]])
}
