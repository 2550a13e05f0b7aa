//! One VM: the address space that all of its devices stand on.
//!
//! A client maps the VM's memory once for each device, over that device's socket. Here equal mappings
//! are one, with the connections that hold it: the memory is pinned once and in one page table, and
//! goes when the last of them lets go of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use ioasid_core::{
    AddrRange, Prot,
    host::FdError,
    inspect::{Inspect, Node, Value},
    memory::PageSource,
    spa::SpaSpace,
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use ioasid_host::{Client, MemoryFileId, ReceivedFd};
use ioasid_iommu::ReservedRegion;
use ioasid_iommufd::{Context, MapArgs, ObjectId};

use crate::{
    error::{MapError, Result},
    memory::SocketMemory,
    peer::{Hurry, Peer},
    spec::{DmaMap, DmaUnmap, MAX_DMA_MAPS},
};

/// How long a mapping waits for another device of the VM to unmap what is in its way: a client reports
/// a change to its devices one after the other.
const PATIENCE: Duration = Duration::from_secs(1);

/// The address space of one VM, while any of its devices is connected.
#[derive(Debug)]
pub(crate) struct Vm {
    name: String,
    context: Arc<Context>,
    ioas: ObjectId,
    client: Arc<Client>,
    state: Mutex<State>,
    changed: Condvar,
    /// Mappings of memory without a descriptor: only with some a client can be asked for bytes.
    remote: AtomicU64,
    /// It was reported that a file of the VM's memory is not mapped.
    reported: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    mappings: BTreeMap<u64, Mapping>,
    members: BTreeMap<u64, Member>,
}

/// A connection.
#[derive(Debug)]
struct Member {
    peer: Arc<Peer>,
    /// Mappings that it holds.
    maps: usize,
}

#[derive(Debug)]
struct Mapping {
    range: AddrRange,
    prot: Prot,
    memory: What,
    /// Numbers of connections, at least one.
    users: BTreeSet<u64>,
}

/// What is mapped, as far as two mappings are compared.
#[derive(Debug)]
enum What {
    /// A file, from an offset.
    File(MemoryFileId, u64),
    /// What the client has at that address.
    Socket(Arc<SocketMemory>),
}

impl What {
    fn is(&self, other: &Wanted) -> bool {
        match (self, other) {
            (What::File(id, offset), Wanted::File(wanted, at, _)) => id == wanted && offset == at,
            (What::Socket(_), Wanted::Socket) => true,
            _ => false,
        }
    }
}

/// What is to be mapped.
enum Wanted {
    File(MemoryFileId, u64, Arc<dyn PageSource>),
    Socket,
}

impl Vm {
    /// An empty address space of `context` for the VM `name`, whose memory gets system physical
    /// addresses in `space`.
    pub(crate) fn new(name: &str, context: Arc<Context>, space: Arc<SpaSpace>) -> io::Result<Self> {
        let ioas = context.ioas_alloc().map_err(io::Error::other)?;
        Ok(Vm {
            name: name.to_owned(),
            context,
            ioas,
            client: Client::new(name, space)?,
            state: Mutex::default(),
            changed: Condvar::new(),
            remote: AtomicU64::new(0),
            reported: AtomicBool::new(false),
        })
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn ioas(&self) -> ObjectId {
        self.ioas
    }

    /// Where its descriptors go.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Whether a client may be asked for bytes now.
    pub(crate) fn has_remote_memory(&self) -> bool {
        self.remote.load(Ordering::Acquire) > 0
    }

    /// A connection joins.
    pub(crate) fn join(&self, number: u64, peer: Arc<Peer>) {
        let member = Member { peer, maps: 0 };
        self.state.lock().members.insert(number, member);
    }

    /// A connection leaves: everything that it alone holds is unmapped.
    pub(crate) fn leave(&self, number: u64) {
        let mut state = self.state.lock();
        let held = |mapping: &Mapping| mapping.users.contains(&number);
        let held: Vec<_> = state.mappings.values().filter(|m| held(m)).collect();
        let starts: Vec<u64> = held.iter().map(|mapping| mapping.range.start()).collect();
        for start in starts {
            // The rest goes even if one does not: the file of the VM takes it along.
            if let Err(error) = self.release(&mut state, number, start) {
                tracing::warn!(%error, vm = self.name, "a mapping stays until the VM has left");
            }
        }
        state.members.remove(&number);
        drop(state);
        self.changed.notify_all();
    }

    /// The answers of the VM's clients are waited for only a short time while `work` runs.
    pub(crate) fn hurried<T>(&self, work: impl FnOnce() -> T) -> T {
        let state = self.state.lock();
        let peers: Vec<_> = state
            .members
            .values()
            .map(|m| Arc::clone(&m.peer))
            .collect();
        drop(state);
        let _hurry: Vec<Hurry<'_>> = peers.iter().map(|peer| peer.hurry()).collect();
        work()
    }

    /// DMA_MAP of connection `number`.
    pub(crate) fn map(&self, number: u64, request: &DmaMap, fd: Option<ReceivedFd>) -> Result<()> {
        let access = request.flags & (DmaMap::READ | DmaMap::WRITE);
        let way = request.flags & !(DmaMap::READ | DmaMap::WRITE);
        match (way, &fd) {
            (0, _) | (DmaMap::MMAP | DmaMap::FILE_IO, Some(_)) if access != 0 => {}
            _ => {
                let flags = request.flags;
                return Err(MapError::Flags { flags }.into());
            }
        }
        let prot = Prot {
            read: access & DmaMap::READ != 0,
            write: access & DmaMap::WRITE != 0,
        };
        let range = range_of(request.address, request.size)?;
        // A whole device's DMA never reaches it, and any device of the VM may be the next to come.
        let window = ReservedRegion::msi_window().range;
        if range.overlaps(window) {
            return Err(MapError::Reserved { range, window }.into());
        }
        let wanted = self.wanted(request, fd)?;
        let until = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        loop {
            let maps = state.members.get(&number).map_or(0, |member| member.maps);
            if maps >= MAX_DMA_MAPS {
                let limit = MAX_DMA_MAPS;
                return Err(MapError::TooMany { limit }.into());
            }
            match state.in_the_way(range, number) {
                InTheWay::Nothing => break,
                InTheWay::Own => return Err(MapError::Exists { range }.into()),
                InTheWay::Others => {}
            }
            if self.share(&mut state, number, range, prot, &wanted) {
                return Ok(());
            }
            let left = until.checked_duration_since(Instant::now());
            let left = left.filter(|left| !left.is_zero());
            let left = left.ok_or(MapError::Different { range })?;
            state = self.changed.wait_timeout(state, left);
        }
        self.insert(&mut state, number, range, prot, wanted)
    }

    /// What a DMA_MAP with or without a descriptor asks for. A file that is not in memory is not
    /// touched: its file system may never answer. Its bytes are the client's all the same, which can be
    /// asked for them.
    fn wanted(&self, request: &DmaMap, fd: Option<ReceivedFd>) -> Result<Wanted> {
        let Some(fd) = fd else {
            return Ok(Wanted::Socket);
        };
        if fd.is_memory() {
            let (offset, size) = (request.offset, request.size);
            let (id, pages) = self.client.received_file(fd, offset, size)?;
            return Ok(Wanted::File(id, offset, pages));
        }
        if !fd.has_path() {
            return Err(FdError::WrongType.into());
        }
        if !self.reported.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                vm = self.name,
                "the VM's memory is a file that is neither a memfd nor on tmpfs or hugetlbfs: it is not \
                 mapped, since its file system may block, and each piece of DMA is a message to the VMM \
                 (QEMU: -object memory-backend-memfd,share=on is faster)"
            );
        }
        Ok(Wanted::Socket)
    }

    /// Takes part in an equal mapping of another connection, if there is one.
    fn share(
        &self,
        state: &mut State,
        number: u64,
        range: AddrRange,
        prot: Prot,
        wanted: &Wanted,
    ) -> bool {
        let Some(mapping) = state.mappings.get_mut(&range.start()) else {
            return false;
        };
        if mapping.range != range || mapping.prot != prot || !mapping.memory.is(wanted) {
            return false;
        }
        let Some(member) = state.members.get_mut(&number) else {
            return false;
        };
        if let What::Socket(memory) = &mapping.memory {
            memory.add(number, &member.peer);
        }
        mapping.users.insert(number);
        member.maps += 1;
        true
    }

    fn insert(
        &self,
        state: &mut State,
        number: u64,
        range: AddrRange,
        prot: Prot,
        wanted: Wanted,
    ) -> Result<()> {
        let member = state.members.get_mut(&number).ok_or(MapError::Left)?;
        let len = range.len_saturating();
        let (memory, pages): (_, Arc<dyn PageSource>) = match wanted {
            Wanted::File(id, offset, pages) => (What::File(id, offset), pages),
            Wanted::Socket => {
                let memory = SocketMemory::new(&self.client, range.start(), len, prot.write);
                memory.add(number, &member.peer);
                (What::Socket(Arc::clone(&memory)), memory)
            }
        };
        let args = MapArgs::fixed(range.start(), len, prot);
        self.context.ioas_map(self.ioas, pages, args)?;
        if matches!(memory, What::Socket(_)) {
            self.remote.fetch_add(1, Ordering::AcqRel);
        }
        member.maps += 1;
        let mapping = Mapping {
            range,
            prot,
            memory,
            users: BTreeSet::from([number]),
        };
        state.mappings.insert(range.start(), mapping);
        Ok(())
    }

    /// DMA_UNMAP of connection `number`: all of its mappings in the range, which may be none. When it
    /// returns, nothing of the device that reached them before is in flight, unless another device of
    /// the VM holds them still.
    pub(crate) fn unmap(&self, number: u64, request: &DmaUnmap) -> Result<()> {
        if request.flags & DmaUnmap::DIRTY != 0 {
            return Err(MapError::NoDirtyPages.into());
        }
        let &DmaUnmap {
            flags,
            address,
            size,
            ..
        } = request;
        if flags & !DmaUnmap::ALL != 0 {
            return Err(MapError::Flags { flags }.into());
        }
        let range = match flags & DmaUnmap::ALL != 0 {
            true if (address, size) == (0, 0) => AddrRange::ALL,
            true => return Err(MapError::Range { address, size }.into()),
            false => range_of(address, size)?,
        };
        let mut state = self.state.lock();
        let held = |mapping: &&Mapping| mapping.users.contains(&number);
        let mine: Vec<AddrRange> = state
            .overlapping(range)
            .filter(held)
            .map(|m| m.range)
            .collect();
        if let Some(mapping) = mine.iter().find(|mapped| !range.covers(**mapped)) {
            let mapping = *mapping;
            return Err(MapError::Cuts { range, mapping }.into());
        }
        let result = mine
            .iter()
            .try_for_each(|mapped| self.release(&mut state, number, mapped.start()));
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Connection `number` lets go of the mapping at `start`; the last one unmaps it.
    fn release(&self, state: &mut MutexGuard<'_, State>, number: u64, start: u64) -> Result<()> {
        let Some(mapping) = state.mappings.get_mut(&start) else {
            return Ok(());
        };
        if mapping.users.len() == 1 {
            let len = mapping.range.len_saturating();
            self.context.ioas_unmap(self.ioas, start, len)?;
        }
        mapping.users.remove(&number);
        if let What::Socket(memory) = &mapping.memory {
            memory.remove(number);
            if mapping.users.is_empty() {
                self.remote.fetch_sub(1, Ordering::AcqRel);
            }
        }
        if mapping.users.is_empty() {
            state.mappings.remove(&start);
        }
        if let Some(member) = state.members.get_mut(&number) {
            member.maps = member.maps.saturating_sub(1);
        }
        Ok(())
    }
}

fn range_of(address: u64, size: u64) -> Result<AddrRange, MapError> {
    AddrRange::from_len(address, size).ok_or(MapError::Range { address, size })
}

/// What a new mapping would overlap.
enum InTheWay {
    Nothing,
    /// A mapping of the same connection.
    Own,
    /// Mappings of others.
    Others,
}

impl State {
    fn in_the_way(&self, range: AddrRange, number: u64) -> InTheWay {
        let mut found = InTheWay::Nothing;
        for mapping in self.overlapping(range) {
            if mapping.users.contains(&number) {
                return InTheWay::Own;
            }
            found = InTheWay::Others;
        }
        found
    }

    /// The mappings that overlap `range`, in order.
    fn overlapping(&self, range: AddrRange) -> impl Iterator<Item = &Mapping> {
        let before = self.mappings.range(..range.start()).next_back();
        let before = before.filter(|(_, mapping)| mapping.range.overlaps(range));
        let inside = self.mappings.range(range.start()..=range.last());
        before.into_iter().chain(inside).map(|(_, mapping)| mapping)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.context.close();
        self.client.stop();
    }
}

impl Inspect for Vm {
    fn inspect(&self) -> Node {
        let state = self.state.lock();
        let mappings = state.mappings.values().map(|mapping| {
            let memory = match mapping.memory {
                What::File(..) => "file",
                What::Socket(_) => "socket",
            };
            let node = Node::new()
                .with("iova", mapping.range)
                .with("prot", mapping.prot.to_string())
                .with("memory", memory)
                .with("holders", mapping.users.len());
            Value::Node(node)
        });
        Node::new()
            .with("name", self.name.as_str())
            .with("ioas", self.ioas.get())
            .with("connections", state.members.len())
            .with("mappings", Value::List(mappings.collect()))
    }
}
