//! What a message of vfio-user costs beside a bare ping-pong over such a socket, and what it takes to
//! map the memory of a large VM.
//!
//! Client and server are threads of this process; time is the processor time of both. The client says
//! what a VMM does, and costs as little as one can: it writes a whole message at once and reads the reply at once.

use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use ioasid_core::{AddrRange, Prot, host::StdSpawner};
use ioasid_iommu::{DeviceConfig, DomainConfig};
use ioasid_machine::{Machine, MachineFile};
use ioasid_vfio_user::{
    Export, Server, listen,
    spec::{DmaMap, DmaUnmap, Header, RegionAccess, command},
};
use rustix::{
    fs::MemfdFlags,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};

use crate::{
    clock::process_cpu,
    measure::{Contender, Effort, Table, measure},
};

/// The whole device of the default machine.
const DEVICE: &str = "0000:6b:01.0";
/// GENSTS of a DSA, a register that can be read at any time, and GENCFG, which can be written.
const STATUS: u64 = 0x90;
const CONFIGURATION: u64 = 0x80;
/// Memory of a large VM, and where it starts.
const LARGE: u64 = 64 << 30;
const ABOVE: u64 = 1 << 32;

pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    let made = messages(effort).and_then(|first| Ok(vec![first, large(effort)?]));
    made.unwrap_or_else(|error| {
        eprintln!("ioasid-bench: no table of messages: {error:#}");
        Vec::new()
    })
}

/// A server with one client that has the device.
struct Stage {
    machine: Arc<Machine>,
    client: Client,
    _server: Server,
    socket: std::path::PathBuf,
}

impl Stage {
    fn new() -> Result<Self> {
        let machine = Machine::build("bench", &MachineFile::default_machine(), &StdSpawner)?;
        let contexts = Arc::clone(&machine);
        let new_context = Box::new(move || contexts.new_context());
        let server = Server::new(Arc::clone(machine.iommu().space()), new_context)?;
        let mut exports = machine.exports().into_iter();
        let device = exports.find(|export| export.name == DEVICE);
        let device = device.context("the default machine has no such device")?;
        let path = format!("ioasid-bench-{}.sock", std::process::id());
        let path = std::env::temp_dir().join(path);
        server.export(Export {
            name: device.name,
            vm: device.vm,
            device: device.device,
            listener: listen(&path)?,
            path: path.clone(),
        })?;
        let mut client = Client(UnixStream::connect(&path)?);
        client.call(command::VERSION, &[0; 4], None)?;
        let mut on = access(7, 4, 2);
        on.extend([6, 0]);
        client.call(command::REGION_WRITE, &on, None)?;
        Ok(Stage {
            machine,
            client,
            _server: server,
            socket: path,
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

struct Client(UnixStream);

impl Client {
    fn call(&mut self, command: u16, payload: &[u8], fd: Option<&OwnedFd>) -> Result<()> {
        let size = Header::SIZE + payload.len();
        let mut message = Vec::with_capacity(size);
        message.extend([0; 2]);
        message.extend(command.to_ne_bytes());
        message.extend((size as u32).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(payload);
        match fd {
            None => self.0.write_all(&message)?,
            Some(fd) => {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let fds = [fd.as_fd()];
                control.push(SendAncillaryMessage::ScmRights(&fds));
                let parts = [IoSlice::new(&message)];
                sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL)?;
            }
        }
        // There is one reply and nothing behind it: one read has it, as of a client that knows what
        // it asked for.
        let mut reply = [0; 4096];
        let count = self.0.read(&mut reply)?;
        let reply = reply.get(..count).unwrap_or_default();
        let word = |at: usize| reply.get(at..at + 4).and_then(|bytes| bytes.first_chunk());
        let word = |at| word(at).map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        ensure!(word(4) as usize == count, "a reply in pieces");
        ensure!(word(8) == Header::REPLY, "errno {}", word(12));
        Ok(())
    }

    fn map(&mut self, fd: &OwnedFd, address: u64, size: u64) -> Result<()> {
        let numbers = [0, address, size];
        let mut payload = Vec::with_capacity(size_of::<DmaMap>());
        payload.extend(32_u32.to_ne_bytes());
        payload.extend((DmaMap::READ | DmaMap::WRITE).to_ne_bytes());
        payload.extend(numbers.iter().flat_map(|number: &u64| number.to_ne_bytes()));
        self.call(command::DMA_MAP, &payload, Some(fd))
    }

    fn unmap(&mut self, address: u64, size: u64) -> Result<()> {
        let mut payload = Vec::with_capacity(size_of::<DmaUnmap>());
        payload.extend(24_u32.to_ne_bytes());
        payload.extend([0; 4]);
        payload.extend(
            [address, size]
                .iter()
                .flat_map(|number| number.to_ne_bytes()),
        );
        self.call(command::DMA_UNMAP, &payload, None)
    }
}

fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    let mut payload = Vec::with_capacity(size_of::<RegionAccess>() + 8);
    payload.extend(offset.to_ne_bytes());
    payload.extend(region.to_ne_bytes());
    payload.extend(count.to_ne_bytes());
    payload
}

fn memfd(len: u64) -> Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(c"bench", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, len)?;
    Ok(fd)
}

/// Runs `work` so many times; nanoseconds of both sides.
fn timed(iterations: u64, mut work: impl FnMut() -> Result<()>) -> u64 {
    let before = process_cpu();
    for _ in 0..iterations {
        if let Err(error) = work() {
            eprintln!("ioasid-bench: a message failed: {error:#}");
            break;
        }
    }
    process_cpu() - before
}

/// A message of 32 bytes and an answer of 36, as of a REGION_READ, without any meaning.
fn ping_pong() -> Result<UnixStream> {
    let (near, mut far) = UnixStream::pair()?;
    std::thread::spawn(move || {
        let mut question = [0; 32];
        while far.read_exact(&mut question).is_ok() && far.write_all(&[0; 36]).is_ok() {}
    });
    Ok(near)
}

fn messages(effort: Effort) -> Result<Table> {
    let stage = std::cell::RefCell::new(Stage::new()?);
    let mut near = ping_pong()?;
    let page = memfd(4096)?;
    let read = access(0, STATUS, 4);
    let mut write = access(0, CONFIGURATION, 4);
    write.extend([0; 4]);
    let call = |command: u16, payload: &[u8]| -> Result<()> {
        stage.borrow_mut().client.call(command, payload, None)
    };
    let contenders = vec![
        Contender::timing_itself("bare: 32 bytes there, 36 back", |iterations| {
            timed(iterations, || {
                near.write_all(&[0; 32])?;
                Ok(near.read_exact(&mut [0; 36])?)
            })
        }),
        Contender::timing_itself("REGION_READ of 4 bytes", |iterations| {
            timed(iterations, || call(command::REGION_READ, &read))
        })
        .goal(0, 1.2),
        Contender::timing_itself("REGION_WRITE of 4 bytes", |iterations| {
            timed(iterations, || call(command::REGION_WRITE, &write))
        })
        .goal(0, 1.2),
        Contender::timing_itself("DMA_MAP and DMA_UNMAP of a page", |iterations| {
            timed(iterations, || {
                let client = &mut stage.borrow_mut().client;
                client.map(&page, 0, 4096)?;
                client.unmap(0, 4096)
            })
        })
        .per(2),
    ];
    Ok(measure(
        "messages of vfio-user",
        "message",
        effort,
        contenders,
    ))
}

/// The memory of a VM of 64 GiB, which nobody has touched.
fn large(effort: Effort) -> Result<Table> {
    let mut stage = Stage::new()?;
    let memory = memfd(LARGE)?;
    let iommu = Arc::clone(stage.machine.iommu());
    let device = iommu.add_device(DeviceConfig::new("0000:7f:00.0".parse()?))?;
    let domain = iommu.alloc_domain(DomainConfig::unmanaged(device.format()))?;
    let contenders = vec![
        Contender::timing_itself("DMA_MAP of 64 GiB, both sides", |iterations| {
            let mut took = 0;
            for _ in 0..iterations {
                took += timed(1, || stage.client.map(&memory, ABOVE, LARGE));
                let _ = stage.client.unmap(ABOVE, LARGE);
            }
            took
        }),
        Contender::timing_itself("its page table alone", |iterations| {
            let mut took = 0;
            for _ in 0..iterations {
                took += timed(1, || Ok(domain.map(ABOVE, ABOVE, LARGE, Prot::RW)?));
                if let Some(range) = AddrRange::from_len(ABOVE, LARGE) {
                    let _ = domain.unmap(range);
                }
            }
            took
        }),
    ];
    Ok(measure("64 GiB of a VM", "mapping", effort, contenders))
}
