//! Memory that came without a descriptor: it is read and written by messages to the client.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use ioasid_core::{
    Prot,
    host::Worker,
    memory::{Backing, Extent, Memory, MemoryGone, PageSource, PinError, RemoteMemory},
    spa::SpaRange,
    sync::Mutex,
};
use ioasid_host::Client;

use crate::peer::Peer;

/// A range of DMA addresses whose bytes the VM's clients have. Any of those that have mapped it can be
/// asked: they are one program.
pub(crate) struct SocketMemory {
    this: Weak<SocketMemory>,
    client: Weak<Client>,
    worker: Arc<dyn Worker>,
    /// DMA address of the first byte.
    address: u64,
    size: u64,
    writable: bool,
    /// The connections, by number.
    ways: Mutex<Vec<(u64, Arc<Peer>)>>,
    registered: Mutex<Weak<SpaRange>>,
}

impl SocketMemory {
    pub(crate) fn new(client: &Arc<Client>, address: u64, size: u64, writable: bool) -> Arc<Self> {
        Arc::new_cyclic(|this| SocketMemory {
            this: Weak::clone(this),
            client: Arc::downgrade(client),
            worker: client.worker(),
            address,
            size,
            writable,
            ways: Mutex::default(),
            registered: Mutex::default(),
        })
    }

    /// Connection `number` has mapped it too.
    pub(crate) fn add(&self, number: u64, peer: &Arc<Peer>) {
        self.ways.lock().push((number, Arc::clone(peer)));
    }

    /// Connection `number` has unmapped it.
    pub(crate) fn remove(&self, number: u64) {
        self.ways.lock().retain(|(way, _)| *way != number);
    }

    /// Asks the clients that are there, one after the other, until one does it: a VMM answers over the
    /// connection of a device only while its guest lets that very device be a bus master. No lock is
    /// held while one is asked.
    fn ask(&self, mut ask: impl FnMut(&Peer) -> Result<(), MemoryGone>) -> Result<(), MemoryGone> {
        let ways: Vec<_> = {
            let ways = self.ways.lock();
            let open = ways.iter().filter(|(_, peer)| !peer.is_closed());
            open.map(|(_, peer)| Arc::clone(peer)).collect()
        };
        let mut result = Err(MemoryGone { done: 0 });
        for way in ways {
            result = ask(&way);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// The DMA address of `len` bytes from `offset`, if they lie inside.
    fn at(&self, offset: u64, len: usize) -> Option<u64> {
        let end = offset.checked_add(len as u64)?;
        let inside = end <= self.size;
        inside.then_some(self.address.checked_add(offset)).flatten()
    }
}

impl RemoteMemory for SocketMemory {
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let gone = MemoryGone { done: 0 };
        let at = self.at(offset, dst.len()).ok_or(gone)?;
        self.ask(|peer| peer.read(at, dst))
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let gone = MemoryGone { done: 0 };
        let at = self.at(offset, src.len()).ok_or(gone)?;
        if !self.writable {
            return Err(gone);
        }
        self.ask(|peer| peer.write(at, src))
    }

    fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }
}

impl Backing for SocketMemory {
    fn size(&self) -> u64 {
        self.size
    }

    fn memory(&self) -> Memory<'_> {
        Memory::Remote(self)
    }
}

impl PageSource for SocketMemory {
    fn size(&self) -> u64 {
        self.size
    }

    fn pin(&self, offset: u64, len: u64, prot: Prot) -> Result<Vec<Extent>, PinError> {
        match offset.checked_add(len) {
            Some(end) if len > 0 && end <= self.size => {}
            _ => return Err(PinError::OutOfRange),
        }
        if prot.write && !self.writable {
            return Err(PinError::Fault);
        }
        let mut registered = self.registered.lock();
        let hold = match registered.upgrade() {
            Some(range) => range,
            None => {
                let client = self.client.upgrade().ok_or(PinError::Fault)?;
                let this = self.this.upgrade().ok_or(PinError::Fault)?;
                let range = client.register(this)?;
                *registered = Arc::downgrade(&range);
                range
            }
        };
        let spa = hold.start() + offset;
        Ok(vec![Extent { spa, len, hold }])
    }

    fn alignment_hint(&self) -> u64 {
        self.address
    }

    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        RemoteMemory::read(self, offset, dst)
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        RemoteMemory::write(self, offset, src)
    }
}

impl fmt::Debug for SocketMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketMemory")
            .field("size", &self.size)
            .field("ways", &self.ways.lock().len())
            .finish_non_exhaustive()
    }
}
