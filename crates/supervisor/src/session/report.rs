//! What is said of a call when it is finished: which file it was about, what it asked for, how it ended.

use std::{sync::Arc, time::Instant};

use ioasid_core::host::Caller;
use ioasid_host::Process;
use ioasid_preload::call::{Kind, Shape};
use ioasid_uapi::{
    decode::{self, Decoded, LONGEST, Value},
    table::File,
};

use super::{
    answer::{Answer, Outcome},
    descriptors::object::{Object, OpenFile},
    observe::{Again, CallResult, CalledFile, FinishedCall, KeptIoctl, place},
    paths::lookup,
    state::State,
};
use crate::{
    calls::{
        call::{Buffers, Call, Direction, Mmap, RegisterQuestion, Transfer},
        table,
    },
    system::listener::Request,
    wire::NodeName,
};

/// Bytes of an access whose value is said.
const VALUE_BYTES: u64 = 8;

/// Bytes of a write that are said.
const DATA_BYTES: u64 = 64;

/// Counts a call that was refused, and tells the observers.
pub(crate) fn finished(
    state: &mut State,
    request: &Request,
    outcome: &Outcome,
    started: Option<Instant>,
) {
    let call = table::parse(request.nr, &request.args);
    let refused = outcome.is_err();
    if refused && counts(&call) {
        state.program.observers.account().add_refused();
    }
    let Some(began) = started else {
        return;
    };
    if !refused && !state.program.observers.wants_all() {
        return;
    }
    let took = began.elapsed();
    let result = match outcome {
        Ok(Answer::Value(value)) => CallResult::Value(*value),
        Ok(Answer::Answered(Some(fd))) => CallResult::Descriptor(*fd),
        Ok(Answer::Answered(None)) => return,
        Ok(Answer::Proceed) => CallResult::Proceeds,
        Ok(Answer::Fails(errno)) => CallResult::Host(errno.raw_os_error()),
        Err(error) => CallResult::Refused(error),
    };
    let thread = request.tid;
    let tid = i32::try_from(thread).unwrap_or(0);
    let Some(process) = state.client.known_process(tid) else {
        return;
    };
    let program = Arc::clone(&state.program);
    let mut asked = Asked {
        state,
        process: &process,
        name: table::name(request.nr).unwrap_or("call"),
    };
    if let (Call::Ioctl { fd, request, .. }, CallResult::Value(value)) = (&call, result)
        && let Some((file, again)) = asked.kept(*fd, &call, result)
    {
        program.observers.kept(&Arc::new(KeptIoctl {
            program: Arc::clone(&program.name),
            process: process.id(),
            thread,
            file,
            fd: *fd,
            request: *request,
            value,
            began,
            took,
            again,
        }));
        return;
    }
    let Some(said) = asked.said(&call, result) else {
        return;
    };
    let again = asked.again(&call, result);
    program.observers.finished(&FinishedCall {
        program: &program.name,
        process: process.id(),
        thread,
        file: said.file,
        fd: said.fd,
        call: said.call,
        request: said.request,
        reply: said.reply,
        result,
        is_foreign: is_foreign(&call),
        began,
        took,
        again: again.as_ref(),
    });
}

/// Whether a refusal of the call is one that a person would call one. What the library in the program
/// asks for itself is none, unless it is an access.
fn counts(call: &Call) -> bool {
    match call {
        Call::Greeting { .. } => false,
        Call::Register(question) => is_access(question).is_some(),
        call => !is_foreign(call),
    }
}

/// Whether it is an ioctl of another type than those of the machine's files.
fn is_foreign(call: &Call) -> bool {
    match call {
        Call::Ioctl { request, .. } => (request >> 8) & 0xff != ioasid_uapi::spec::iommufd::TYPE,
        _ => false,
    }
}

fn is_access(question: &RegisterQuestion) -> Option<Shape> {
    let shape = Shape::decode(question.shape)?;
    matches!(shape.kind, Kind::Load | Kind::Store | Kind::Enqueue).then_some(shape)
}

/// What is said of a call.
struct Said {
    file: Option<CalledFile>,
    fd: Option<i32>,
    call: Decoded,
    request: Option<u32>,
    reply: Option<Decoded>,
}

impl Said {
    fn on(fd: i32, file: CalledFile, call: Decoded) -> Self {
        Said {
            file: Some(file),
            fd: Some(fd),
            call,
            request: None,
            reply: None,
        }
    }
}

/// One finished call, and where to look.
struct Asked<'a> {
    state: &'a mut State,
    process: &'a Process,
    /// The system call's name.
    name: &'static str,
}

impl Asked<'_> {
    /// What is to be said of `call`; nothing if it is about no file of the machine.
    fn said(&mut self, call: &Call, result: CallResult<'_>) -> Option<Said> {
        let refused = matches!(result, CallResult::Refused(_));
        match call {
            Call::Ioctl {
                fd,
                request,
                argument,
            } => self.ioctl((*fd, *request, *argument), result),
            Call::Open { at, flags } => self.open(at.address, *flags, result),
            Call::OpenHow { path, how, .. } => {
                let mut flags = [0; 8];
                // Unreadable, it was refused for that.
                let _ = self.process.read(*how, &mut flags);
                self.open(*path, u64::from_ne_bytes(flags), result)
            }
            Call::Transfer(transfer) => self.transfer(transfer, result),
            Call::Mmap(arguments) => self.map(arguments),
            Call::Register(question) => self.register(question),
            Call::Seek { fd, offset, whence } => {
                let call = self.named().with("offset", Value::Signed(*offset));
                self.on(*fd, call.with("whence", Value::Number((*whence).into())))
            }
            Call::Truncate { fd, len } => {
                let call = self.named().with("len", Value::Hex(*len));
                self.on(*fd, call)
            }
            Call::Allocate {
                fd,
                mode,
                offset,
                len,
            } => {
                let call = self.named().with("mode", Value::Hex((*mode).into()));
                let call = call.with("offset", Value::Hex(*offset));
                self.on(*fd, call.with("len", Value::Hex(*len)))
            }
            Call::Sync { fd } | Call::AddSeals { fd } | Call::GetSeals { fd } => {
                let call = self.named();
                self.on(*fd, call)
            }
            Call::Duplicate { fd, .. } | Call::GetFlags { fd } if refused => {
                let call = self.named();
                self.on(*fd, call)
            }
            // Looking at entries of /dev and /sys says nothing of the machine, unless it is refused.
            _ if refused && counts(call) => Some(Said {
                file: None,
                fd: None,
                call: self.named(),
                request: None,
                reply: None,
            }),
            _ => None,
        }
    }

    /// The file of an ioctl and what it did, if that is kept and there is a table that decodes it.
    fn kept(
        &mut self,
        fd: i32,
        call: &Call,
        result: CallResult<'_>,
    ) -> Option<(CalledFile, Again)> {
        self.state.steps.as_ref()?;
        let file = self.file(fd)?;
        file.table()?;
        let again = self.again(call, result)?;
        Some((file, again))
    }

    /// What it takes to do `call` again, if somebody wants to.
    fn again(&mut self, call: &Call, result: CallResult<'_>) -> Option<Again> {
        let steps = self.state.steps.as_ref()?.take();
        let (fd, argument) = match call {
            Call::Ioctl { fd, argument, .. } => (Some(*fd), *argument),
            Call::Transfer(transfer) => {
                let position = self.place_of(transfer, result);
                (Some(transfer.fd), position.unwrap_or(0))
            }
            Call::Mmap(arguments) => (Some(arguments.fd), arguments.offset),
            _ => match result {
                CallResult::Descriptor(fd) => (Some(fd), 0),
                _ => (None, 0),
            },
        };
        let identity = fd.and_then(|fd| self.state.descriptors.identity(self.process, fd));
        let file = identity.and_then(|identity| self.state.descriptors.files.get(identity));
        Some(Again {
            file: file.map(|file| file.number),
            device: file.and_then(|file| match &file.object {
                Object::Device(device) => Some(device.device().known_as().into()),
                _ => None,
            }),
            argument,
            steps,
        })
    }

    fn named(&self) -> Decoded {
        Decoded::new(self.name)
    }

    /// The file behind `fd`.
    fn file(&mut self, fd: i32) -> Option<CalledFile> {
        let identity = self.state.descriptors.identity(self.process, fd)?;
        if let Some(file) = self.state.descriptors.files.get(identity) {
            return Some(called(file));
        }
        self.state.paths.node_at(identity).map(of_node)
    }

    /// A call on `fd`, if that is a file of the machine.
    fn on(&mut self, fd: i32, call: Decoded) -> Option<Said> {
        let file = self.file(fd)?;
        Some(Said::on(fd, file, call))
    }

    fn ioctl(
        &mut self,
        (fd, request, argument): (i32, u32, u64),
        result: CallResult<'_>,
    ) -> Option<Said> {
        let file = self.file(fd)?;
        let Some(table) = file.table() else {
            let call = Decoded::new(format!("ioctl({request:#x})"));
            return Some(Said::on(fd, file, call.with("arg", Value::Hex(argument))));
        };
        // The struct as it was when the call began: the answer may have changed its beginning.
        let before = std::mem::take(&mut self.state.argument);
        let noted = self.state.steps.as_ref();
        let bytes = match noted.map(|steps| steps.image(argument, LONGEST)) {
            Some(bytes) => bytes,
            None => {
                let mut bytes = self.bytes(table, request, argument);
                for (now, before) in bytes.iter_mut().zip(before) {
                    *now = before;
                }
                bytes
            }
        };
        let call = decode::request(table, request, argument, &bytes);
        let reply = match result {
            // With its steps kept, it is decoded elsewhere.
            CallResult::Value(_) => {
                let bytes = self.bytes(table, request, argument);
                Some(decode::reply(table, request, &bytes))
            }
            _ => None,
        };
        Some(Said {
            request: Some(request),
            reply,
            ..Said::on(fd, file, call)
        })
    }

    /// What stands at the argument of an ioctl, as far as it can be read and is worth a look.
    fn bytes(&self, table: File, request: u32, argument: u64) -> Vec<u8> {
        let mut head = [0; 16];
        if decode::length(table, request, &head) == 0 {
            return Vec::new();
        }
        let got = self.process.read(argument, &mut head).is_ok();
        let wanted = match got {
            true => decode::length(table, request, &head),
            false => head.len(),
        };
        let mut bytes = vec![0; wanted.min(LONGEST)];
        if self.process.read(argument, &mut bytes).is_ok() {
            return bytes;
        }
        // Up to the end of its page, behind which nothing need be.
        let room = usize::try_from(4096 - argument % 4096).unwrap_or(0);
        bytes.truncate(room);
        match self.process.read(argument, &mut bytes) {
            Ok(()) => bytes,
            Err(_) => Vec::new(),
        }
    }

    fn open(&mut self, path: u64, flags: u64, result: CallResult<'_>) -> Option<Said> {
        let text = lookup::read_path(self.process, path)?;
        let text = text.to_string_lossy().into_owned();
        // A new descriptor says which file it is; without one, the path does.
        let file = match result {
            CallResult::Descriptor(fd) => Some(self.file(fd)?),
            CallResult::Refused(_) => named_by(&text),
            CallResult::Value(_) | CallResult::Proceeds | CallResult::Host(_) => return None,
        };
        let call = Decoded::new("open").with("path", Value::Text(text));
        Some(Said {
            file,
            fd: None,
            call: call
                .with(
                    "flags",
                    Value::Flags {
                        bits: flags & !(libc::O_ACCMODE as u64),
                        names: OPEN,
                    },
                )
                .with("mode", Value::name(flags & libc::O_ACCMODE as u64, ACCESS)),
            request: None,
            reply: None,
        })
    }

    fn transfer(&mut self, transfer: &Transfer, result: CallResult<'_>) -> Option<Said> {
        let file = self.file(transfer.fd)?;
        let position = self.place_of(transfer, result);
        let mut call = self.named();
        if let CalledFile::Device(_) = file {
            call = place(call, position.unwrap_or(0));
        }
        call = match transfer.buffers {
            Buffers::One { len, .. } => call.with("len", Value::Number(len)),
            Buffers::Vector { count, .. } => call.with("buffers", Value::Number(count)),
        };
        if let Some(data) = self.data(transfer, result) {
            call = call.with("data", data);
        }
        Some(Said::on(transfer.fd, file, call))
    }

    /// Where in its file a read or write begins.
    fn place_of(&mut self, transfer: &Transfer, result: CallResult<'_>) -> Option<u64> {
        match (transfer.offset, result) {
            (Some(offset), _) => Some(offset),
            (None, CallResult::Value(moved)) => {
                Some(self.position(transfer.fd)?.wrapping_sub(moved))
            }
            (None, _) => self.position(transfer.fd),
        }
    }

    /// Where a read or write without an offset goes on.
    fn position(&mut self, fd: i32) -> Option<u64> {
        let file = self.state.descriptors.file(self.process, fd)?;
        Some(file.position)
    }

    /// What was read or written, if it is short.
    fn data(&self, transfer: &Transfer, result: CallResult<'_>) -> Option<Value> {
        let Buffers::One { address, len } = transfer.buffers else {
            return None;
        };
        let len = match (transfer.direction, result) {
            (Direction::Read, CallResult::Value(moved)) => moved,
            (Direction::Write, _) => len,
            (Direction::Read, _) => return None,
        };
        if len == 0 || len > DATA_BYTES {
            return None;
        }
        let mut bytes = [0; DATA_BYTES as usize];
        let bytes = bytes.get_mut(..len as usize)?;
        self.process.read(address, bytes).ok()?;
        Some(value_of(bytes))
    }

    fn map(&mut self, arguments: &Mmap) -> Option<Said> {
        let file = self.file(arguments.fd)?;
        let mut call = self.named();
        call = match file {
            CalledFile::Device(_) => place(call, arguments.offset),
            _ => call.with("offset", Value::Hex(arguments.offset)),
        };
        call = call.with("len", Value::Hex(arguments.len));
        call = call.with(
            "prot",
            Value::Flags {
                bits: arguments.prot,
                names: PROT,
            },
        );
        let kind = arguments.flags & libc::MAP_TYPE as u64;
        let call = call.with("type", Value::name(kind, MAP));
        Some(Said::on(arguments.fd, file, call))
    }

    fn register(&mut self, question: &RegisterQuestion) -> Option<Said> {
        let shape = is_access(question)?;
        let name = match shape.kind {
            Kind::Load => "load",
            Kind::Enqueue => "enqueue",
            _ => "store",
        };
        let mut call = Decoded::new(name);
        let place_of = self.state.registers.place(self.process, question.address);
        let mut file = None;
        match place_of {
            Some((device, offset)) => {
                call = place(call, offset);
                file = Some(CalledFile::Device(device));
            }
            None => call = call.with("address", Value::Hex(question.address)),
        }
        call = call.with("len", Value::Number(shape.size as u64));
        if shape.kind == Kind::Store && shape.size as u64 <= VALUE_BYTES {
            call = call.with("data", Value::Hex(question.value));
        }
        Some(Said {
            file,
            fd: None,
            call,
            request: None,
            reply: None,
        })
    }
}

/// A register's value, or bytes.
fn value_of(bytes: &[u8]) -> Value {
    match bytes.len() as u64 {
        len if len <= VALUE_BYTES => {
            let mut word = [0; 8];
            if let Some(into) = word.get_mut(..bytes.len()) {
                into.copy_from_slice(bytes);
            }
            Value::Hex(u64::from_le_bytes(word))
        }
        _ => Value::Bytes(bytes.to_vec()),
    }
}

fn called(file: &OpenFile) -> CalledFile {
    match &file.object {
        Object::Iommufd(_) => CalledFile::Iommu,
        Object::Container(_) => CalledFile::Container,
        Object::Group(group) => CalledFile::Group(group.group().number()),
        Object::Device(device) => CalledFile::Device(device.device().name().to_owned()),
        Object::Event(_) => CalledFile::Events,
        Object::FailNth(_) => CalledFile::FailNth,
        Object::Attribute(attribute) => CalledFile::Attribute(attribute.path().to_owned()),
    }
}

fn of_node(node: &NodeName) -> CalledFile {
    match node {
        NodeName::Iommu => CalledFile::Iommu,
        NodeName::Container => CalledFile::Container,
        NodeName::Group(number) => CalledFile::Group(*number),
        NodeName::Device(name) => CalledFile::Device(name.clone()),
    }
}

/// The file that an absolute path names, as programs write it.
fn named_by(path: &str) -> Option<CalledFile> {
    if let Some(attribute) = path.strip_prefix("/sys/") {
        return Some(CalledFile::Attribute(attribute.to_owned()));
    }
    let below = path.strip_prefix("/dev/")?;
    if let Some(device) = below.strip_prefix("vfio/devices/") {
        return Some(CalledFile::Device(device.to_owned()));
    }
    let mut fixed = NodeName::FIXED.into_iter();
    if let Some((_, node)) = fixed.find(|(name, _)| *name == below) {
        return Some(of_node(&node));
    }
    let number = below.strip_prefix("vfio/")?.parse().ok()?;
    Some(CalledFile::Group(number))
}

/// How a file is opened.
const ACCESS: decode::Names = &[
    (libc::O_RDONLY as u64, "O_RDONLY"),
    (libc::O_WRONLY as u64, "O_WRONLY"),
    (libc::O_RDWR as u64, "O_RDWR"),
];
const OPEN: decode::Names = &[
    (libc::O_CLOEXEC as u64, "O_CLOEXEC"),
    (libc::O_NONBLOCK as u64, "O_NONBLOCK"),
    (libc::O_APPEND as u64, "O_APPEND"),
    (libc::O_CREAT as u64, "O_CREAT"),
    (libc::O_TRUNC as u64, "O_TRUNC"),
    (libc::O_NOFOLLOW as u64, "O_NOFOLLOW"),
];
const PROT: decode::Names = &[
    (libc::PROT_READ as u64, "READ"),
    (libc::PROT_WRITE as u64, "WRITE"),
    (libc::PROT_EXEC as u64, "EXEC"),
];
const MAP: decode::Names = &[
    (libc::MAP_SHARED as u64, "SHARED"),
    (libc::MAP_PRIVATE as u64, "PRIVATE"),
    (libc::MAP_SHARED_VALIDATE as u64, "SHARED_VALIDATE"),
];
