//! The lookup (RID, PASID) -> attachment: one cell for DMA without a PASID, and a directory of
//! cells for the others, read under the same guard as the page walk that follows.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ioasid_core::{
    Pasid,
    grace::{Grace, Loaded, ProtectedTable},
    lock_order::OrderedMutex,
};

use crate::{base::locks, domain::space::AddressSpace, events::fault::FaultSink};

/// What a cell of the route table leads to.
pub(crate) struct Attachment {
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) faults: Arc<dyn FaultSink>,
}

/// PASIDs in one leaf of the directory; few under a model checker, which makes many machines.
const LEAF_BITS: u32 = if cfg!(ioasid_shuttle) { 2 } else { 10 };
const LEAF_SIZE: usize = 1 << LEAF_BITS;

type Leaf = ProtectedTable<Attachment>;

/// The routes of one device. Leaves come with the first attachment and stay as long as the device:
/// at most 1024 of 8 KiB, however often a user attaches.
pub(crate) struct RouteTable {
    rid: ProtectedTable<Attachment>,
    directory: ProtectedTable<Leaf>,
    /// The same leaves, for writers.
    leaves: OrderedMutex<BTreeMap<usize, Arc<Leaf>>>,
}

impl RouteTable {
    pub(crate) fn new(grace: &Arc<Grace>, pasid_bits: u8) -> Self {
        let leaves = match pasid_bits {
            0 => 0,
            bits => (1_usize << bits).div_ceil(LEAF_SIZE),
        };
        RouteTable {
            rid: ProtectedTable::new(Arc::clone(grace), 1),
            directory: ProtectedTable::new(Arc::clone(grace), leaves),
            leaves: OrderedMutex::new(&locks::ROUTE_LEAVES, BTreeMap::new()),
        }
    }

    /// Finds the attachment at a route.
    #[inline]
    pub(crate) fn find<'a>(&'a self, pasid: Option<Pasid>, loaded: &mut Loaded<'a, Attachment>) {
        match pasid {
            None => loaded.find(&self.rid, 0),
            Some(pasid) => {
                let (leaf, cell) = split(pasid);
                loaded.find_in(&self.directory, leaf, cell);
            }
        }
    }

    /// Sets the attachment at a route. The caller has checked that the device can send the PASID,
    /// and waits for the readers of the old one.
    pub(crate) fn set(&self, pasid: Option<Pasid>, attachment: Option<Arc<Attachment>>) {
        locks::GROUP.assert_held();
        match pasid {
            None => self.rid.swap(0, attachment),
            Some(pasid) => {
                let (index, cell) = split(pasid);
                let mut leaves = self.leaves.lock();
                let leaf = leaves.entry(index).or_insert_with(|| {
                    let leaf = Arc::new(Leaf::new(Arc::clone(self.rid.grace()), LEAF_SIZE));
                    self.directory.swap(index, Some(Arc::clone(&leaf)));
                    leaf
                });
                leaf.swap(cell, attachment);
            }
        }
    }
}

fn split(pasid: Pasid) -> (usize, usize) {
    let number = pasid.get() as usize;
    (number >> LEAF_BITS, number & (LEAF_SIZE - 1))
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RouteTable")
    }
}
