//! A client of the vfio-user server: messages that lie, or bytes that are none.
//!
//! The first byte of an input chooses. Odd: the rest goes to the socket as it is. Even: VERSION, then a
//! row of messages, each with a command, flags, a number of descriptors, a payload and, now and then, a
//! size that is not its own. Whatever it is, the device is released afterwards and nothing of the
//! client's memory is left.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a panic is the finding")]

use std::{
    io::{IoSlice, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use ioasid_core::host::StdSpawner;
use ioasid_machine::{ExportedDevice, Machine, MachineFile};
use ioasid_vfio_user::{
    Export, Server, listen,
    spec::{Header, command},
};
use libfuzzer_sys::fuzz_target;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::IntoBytes;

/// Messages of one input.
const MESSAGES: usize = 32;

/// Bytes before a message's payload: command, flags, descriptors, length of the payload.
const HEAD: usize = 4;

struct Stage {
    machine: Arc<Machine>,
    _server: Server,
    device: ExportedDevice,
    path: PathBuf,
    memory: OwnedFd,
}

/// One machine for all inputs.
static STAGE: LazyLock<Stage> = LazyLock::new(|| {
    let file = MachineFile::default_machine();
    let machine = Machine::build("fuzz", &file, &StdSpawner).unwrap();
    let contexts = Arc::clone(&machine);
    let new_context = Box::new(move || contexts.new_context());
    let server = Server::new(Arc::clone(machine.iommu().space()), new_context).unwrap();
    let device = machine.exports().remove(0);
    let path = std::env::temp_dir().join(format!("ioasid-fuzz-{}.sock", std::process::id()));
    let export = Export {
        name: device.name.clone(),
        vm: device.vm.clone(),
        device: Arc::clone(&device.device),
        listener: listen(&path).unwrap(),
        path: path.clone(),
    };
    server.export(export).unwrap();
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let memory = rustix::fs::memfd_create(c"fuzz", flags).unwrap();
    rustix::fs::ftruncate(&memory, 1 << 20).unwrap();
    Stage {
        machine,
        _server: server,
        device,
        path,
        memory,
    }
});

fn send(stream: &UnixStream, bytes: &[u8], fds: usize) -> rustix::io::Result<usize> {
    let fds = vec![STAGE.memory.as_fd(); fds];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

fn messages(stream: &UnixStream, mut rest: &[u8]) {
    let greeting = Header {
        command: command::VERSION,
        size: 20,
        ..Header::default()
    };
    let mut bytes = greeting.as_bytes().to_vec();
    bytes.extend([0; 4]);
    let _ = send(stream, &bytes, 0);
    for id in 0..MESSAGES as u16 {
        let Some((head, after)) = rest.split_first_chunk::<HEAD>() else {
            return;
        };
        let [command, flags, fds, len] = *head;
        let payload = &after[..after.len().min(len.into())];
        rest = &after[payload.len()..];
        let real = (Header::SIZE + payload.len()) as u32;
        // Bits 6 and 7 of the flags, which mean nothing: a size that is too small, or too large.
        let size = match flags >> 6 {
            1 => u32::from(len),
            2 => real.wrapping_mul(1 << 12),
            _ => real,
        };
        let header = Header {
            id,
            command: (command % 20).into(),
            size,
            flags: (flags & 0x3f).into(),
            error: 0,
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(payload);
        if send(stream, &bytes, (fds % 20).into()).is_err() {
            return;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let stage = &*STAGE;
    let mut stream = UnixStream::connect(&stage.path).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    if kind % 2 == 1 {
        let _ = stream.write_all(rest);
    } else {
        messages(&stream, rest);
    }
    // The end of the stream reaches the server behind everything that was sent.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut nowhere = [0; 4096];
    while let Ok(1..) = std::io::Read::read(&mut stream, &mut nowhere) {}
    drop(stream);
    while stage.device.device.open_files() > 0 {
        std::thread::yield_now();
    }
    assert_eq!(stage.machine.ledger().pinned(0), 0, "memory is left behind");
});
