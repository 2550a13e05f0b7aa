//! What the tests share: a machine with its server, and a client that says exactly what a test wants.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses its own part"
)]
#![allow(unreachable_pub, reason = "shared by several test binaries")]

pub mod hanging;
pub mod migration;

use std::{
    collections::VecDeque,
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use ioasid_core::host::StdSpawner;
use ioasid_dsa::spec::{
    Cmd, Command, CompletionRecord, Descriptor,
    completion::RECORD_SIZE,
    registers as reg,
    tables::{GRPCFG_SIZE, WqLimits, WqUse},
};
use ioasid_machine::{Machine, MachineFile};
use ioasid_testing::{MDEVS, parent, whole};
pub use ioasid_testing::{PATIENCE, eventually, pattern};
use ioasid_vfio_user::{
    Export, Server, listen,
    spec::{
        DmaAccess, DmaMap, DmaUnmap, Header, RegionAccess, Version,
        command::{self, DMA_READ, DMA_WRITE},
    },
};
use rustix::{
    fs::MemfdFlags,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use zerocopy::{FromBytes, IntoBytes};

/// The mediated device of VM 1.
pub const MDEV1: &str = MDEVS[0];
/// The mediated device of VM 2.
pub const MDEV2: &str = MDEVS[1];
/// The whole device of VM 1.
pub const PDEV: &str = "0000:6b:01.0";

/// A device of each kind, each for a VM of its own.
pub fn every_kind() -> String {
    parent("dsa", None, &[(MDEV1, "vm1")])
        + &whole("dsa", PDEV, "vm2")
        + &parent("ioat", None, &[(CHANNEL, "vm3"), (NEIGHBOUR, "vm5")])
        + &whole("ioat", CHANNELS, "vm4")
        + "queues = 3\n"
}
/// The mediated channel of VM 3.
pub const CHANNEL: &str = MDEVS[2];
/// Another channel of the same parent, of VM 5.
pub const NEIGHBOUR: &str = MDEVS[3];
/// The whole I/OAT of VM 4.
pub const CHANNELS: &str = "0000:6c:01.0";

/// Errno numbers as clients see them.
pub const EIO: u32 = 5;
pub const EBUSY: u32 = 16;
pub const EEXIST: u32 = 17;
pub const EINVAL: u32 = 22;
pub const ENOTTY: u32 = 25;
pub const EMSGSIZE: u32 = 90;
pub const EOPNOTSUPP: u32 = 95;

/// A machine and its server.
pub struct Fixture {
    pub machine: Arc<Machine>,
    pub server: Server,
    pub dir: tempfile::TempDir,
}

impl Fixture {
    /// The default machine.
    pub fn new() -> Self {
        Fixture::of(&MachineFile::default_machine())
    }

    pub fn of(file: &MachineFile) -> Self {
        let machine = Machine::build("test", file, &StdSpawner).unwrap();
        let contexts = Arc::clone(&machine);
        let new_context = Box::new(move || contexts.new_context());
        let server = Server::new(Arc::clone(machine.iommu().space()), new_context).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for exported in machine.exports() {
            let path = socket(dir.path(), &exported.name);
            let export = Export {
                name: exported.name,
                vm: exported.vm,
                device: exported.device,
                listener: listen(&path).unwrap(),
                path,
            };
            server.export(export).unwrap();
        }
        Fixture {
            machine,
            server,
            dir,
        }
    }

    pub fn path(&self, device: &str) -> PathBuf {
        socket(self.dir.path(), device)
    }

    /// A client that has said nothing yet.
    pub fn stream(&self, device: &str) -> UnixStream {
        let stream = UnixStream::connect(self.path(device)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A client that has the device.
    pub fn connect(&self, device: &str) -> Vmm {
        let mut vmm = Vmm::new(self.stream(device));
        vmm.version();
        vmm
    }

    pub fn is_bound(&self, device: &str) -> bool {
        let exports = self.machine.exports();
        let found = exports.iter().find(|export| export.name == device);
        found.unwrap().device.is_bound()
    }

    /// Waits until no client has the device.
    pub fn released(&self, device: &str) {
        eventually("the release of a device", || !self.is_bound(device));
    }

    /// The tree of `ioasid inspect`, as text.
    pub fn inspected(&self) -> String {
        use ioasid_core::inspect::Inspect;
        format!("{:?}{:?}", self.server.inspect(), self.machine.inspect())
    }
}

fn socket(dir: &Path, device: &str) -> PathBuf {
    dir.join(format!("{device}.sock"))
}

/// Memory of a VM.
pub fn memfd(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create(c"ram", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

pub fn peek(fd: &OwnedFd, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert_eq!(rustix::io::pread(fd, &mut bytes, offset).unwrap(), len);
    bytes
}

pub fn poke(fd: &OwnedFd, offset: u64, bytes: &[u8]) {
    assert_eq!(rustix::io::pwrite(fd, bytes, offset).unwrap(), bytes.len());
}

/// A message as it came.
#[derive(Debug)]
pub struct Received {
    pub header: Header,
    pub payload: Vec<u8>,
}

/// A client.
#[derive(Debug)]
pub struct Vmm {
    pub stream: UnixStream,
    next: u16,
    /// Its private memory, from DMA address 0, if it has some.
    pub ram: Vec<u8>,
    /// Whether it answers what the server asks while it waits for an answer itself.
    pub answers: bool,
    /// What the server asks, and was not answered.
    pub asked: VecDeque<Received>,
}

impl Vmm {
    pub fn new(stream: UnixStream) -> Self {
        Vmm {
            stream,
            next: 1,
            ram: Vec::new(),
            answers: true,
            asked: VecDeque::new(),
        }
    }

    pub fn send(&mut self, header: Header, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(payload);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let parts = [IoSlice::new(&bytes)];
        let sent = sendmsg(&self.stream, &parts, &mut control, SendFlags::NOSIGNAL).unwrap();
        self.stream.write_all(&bytes[sent..]).unwrap();
    }

    /// Sends a command; returns its number.
    pub fn start(&mut self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> u16 {
        self.start_with(command, 0, payload, fds)
    }

    pub fn start_with(
        &mut self,
        command: u16,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> u16 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let header = Header {
            id,
            command,
            size: (Header::SIZE + payload.len()) as u32,
            flags,
            error: 0,
        };
        self.send(header, payload, fds);
        id
    }

    /// The next message, whatever it is; `None` at the end of the stream.
    pub fn receive(&mut self) -> Option<Received> {
        let mut bytes = [0; Header::SIZE];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("the server says nothing")
            }
            Err(_) => return None,
        }
        let header = Header::read_from_bytes(&bytes).unwrap();
        let mut payload = vec![0; header.size as usize - Header::SIZE];
        self.stream.read_exact(&mut payload).unwrap();
        Some(Received { header, payload })
    }

    /// The reply to `id`: its payload, or its errno. Serves the server meanwhile.
    pub fn reply(&mut self, id: u16) -> Result<Vec<u8>, u32> {
        loop {
            let message = self.receive().expect("the server has hung up");
            match message.header.is_reply() {
                Some(true) => {
                    assert_eq!(message.header.id, id, "replies come in order");
                    if message.header.flags & Header::ERROR != 0 {
                        assert!(message.payload.is_empty(), "an error has no payload");
                        return Err(message.header.error);
                    }
                    return Ok(message.payload);
                }
                _ if self.answers => self.answer(&message),
                _ => self.asked.push_back(message),
            }
        }
    }

    /// Does what the server asks.
    pub fn answer(&mut self, message: &Received) {
        let (access, data) = DmaAccess::read_from_prefix(&message.payload).unwrap();
        let range = access.address as usize..(access.address + access.count) as usize;
        let mut payload = access.as_bytes().to_vec();
        match message.header.command {
            DMA_READ => payload.extend(&self.ram[range]),
            DMA_WRITE => self.ram[range].copy_from_slice(data),
            other => panic!("the server asks {other}"),
        }
        let header = Header {
            size: (Header::SIZE + payload.len()) as u32,
            flags: Header::REPLY,
            ..message.header
        };
        self.send(header, &payload, &[]);
    }

    pub fn call(&mut self, command: u16, payload: &[u8]) -> Result<Vec<u8>, u32> {
        self.call_with(command, payload, &[])
    }

    pub fn call_with(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, u32> {
        let id = self.start(command, payload, fds);
        self.reply(id)
    }

    pub fn version(&mut self) -> String {
        let reply = self.try_version().unwrap();
        String::from_utf8(reply[4..].to_vec()).unwrap()
    }

    pub fn try_version(&mut self) -> Result<Vec<u8>, u32> {
        let version = Version { major: 0, minor: 1 };
        let mut payload = version.as_bytes().to_vec();
        payload.extend(
            b"{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\
              \"write_multiple\":true,\"pgsizes\":4096}}\0",
        );
        self.call(command::VERSION, &payload)
    }

    /// Whether the server has hung up.
    pub fn is_over(&mut self) -> bool {
        self.receive().is_none()
    }

    pub fn map(
        &mut self,
        fd: Option<&OwnedFd>,
        offset: u64,
        address: u64,
        size: u64,
    ) -> Result<(), u32> {
        let request = DmaMap {
            argsz: 32,
            flags: DmaMap::READ | DmaMap::WRITE,
            offset,
            address,
            size,
        };
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        let reply = self.call_with(command::DMA_MAP, request.as_bytes(), &fds)?;
        assert!(reply.is_empty(), "16 bytes in all");
        Ok(())
    }

    pub fn unmap(&mut self, address: u64, size: u64) -> Result<(), u32> {
        let request = DmaUnmap {
            argsz: 24,
            flags: 0,
            address,
            size,
        };
        let reply = self.call(command::DMA_UNMAP, request.as_bytes())?;
        assert_eq!(reply, request.as_bytes(), "40 bytes in all");
        Ok(())
    }

    pub fn read(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, u32> {
        let access = RegionAccess {
            offset,
            region,
            count,
        };
        let reply = self.call(command::REGION_READ, access.as_bytes())?;
        assert_eq!(&reply[..16], access.as_bytes());
        Ok(reply[16..].to_vec())
    }

    fn write_payload(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
        let access = RegionAccess {
            offset,
            region,
            count: data.len() as u32,
        };
        let mut payload = access.as_bytes().to_vec();
        payload.extend(data);
        payload
    }

    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), u32> {
        let payload = Vmm::write_payload(region, offset, data);
        let reply = self.call(command::REGION_WRITE, &payload)?;
        assert_eq!(reply, payload[..16]);
        Ok(())
    }

    /// A posted write: there is no reply.
    pub fn post(&mut self, region: u32, offset: u64, data: &[u8]) {
        let payload = Vmm::write_payload(region, offset, data);
        self.start_with(command::REGION_WRITE, Header::NO_REPLY, &payload, &[]);
    }

    pub fn read32(&mut self, offset: u64) -> u32 {
        let bytes = self.read(0, offset, 4).unwrap();
        u32::from_ne_bytes(bytes.try_into().unwrap())
    }

    /// Memory and bus mastering on.
    pub fn switch_on(&mut self) {
        self.write(7, 4, &[6, 0]).unwrap();
    }

    /// Runs a command of the DSA; its error code.
    pub fn command(&mut self, command: Command, operand: u32) -> u8 {
        let cmd = Cmd::new().with_code(command as u8).with_operand(operand);
        self.write(0, reg::CMD, &cmd.into_bits().to_le_bytes())
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.read32(reg::CMDSTS);
            if status & 1 << 31 == 0 {
                return status as u8;
            }
            assert!(Instant::now() < deadline, "a device command never ends");
        }
    }

    /// Brings a one-queue child up.
    pub fn bring_up_child(&mut self) {
        self.switch_on();
        for command in [
            Command::ResetDevice,
            Command::EnableDevice,
            Command::EnableWq,
        ] {
            assert_eq!(self.command(command, 0), 0, "{command:?}");
        }
    }

    /// Brings a whole device up, with its first queue.
    pub fn bring_up_whole(&mut self) {
        self.switch_on();
        assert_eq!(self.command(Command::ResetDevice, 0), 0);
        self.write(0, reg::GRPCFG, &1_u64.to_le_bytes()).unwrap();
        let engines = reg::GRPCFG + GRPCFG_SIZE / 2;
        self.write(0, engines, &3_u64.to_le_bytes()).unwrap();
        let limits = WqLimits::new()
            .with_max_xfer_shift(21)
            .with_max_batch_shift(5);
        let usage = WqUse::new().with_dedicated(true).with_priority(10);
        let words = [(0, 16), (8, usage.into_bits()), (12, limits.into_bits())];
        for (offset, value) in words {
            let value: u32 = value;
            self.write(0, reg::WQCFG + offset, &value.to_le_bytes())
                .unwrap();
        }
        for command in [Command::EnableDevice, Command::EnableWq] {
            assert_eq!(self.command(command, 0), 0, "{command:?}");
        }
    }

    /// One store of 64 bytes to the portal, posted as a guest's.
    pub fn submit(&mut self, descriptor: Descriptor) {
        self.post(2, 0, &descriptor.to_bytes());
    }
}

/// Waits for a completion record in a VM's shared memory.
pub fn wait_record(ram: &OwnedFd, offset: u64) -> CompletionRecord {
    eventually("a completion record", || peek(ram, offset, 1)[0] != 0);
    let bytes = peek(ram, offset, RECORD_SIZE);
    CompletionRecord::from_bytes(&bytes.try_into().unwrap())
}
