//! Lines about the machine: what its devices, domains and engines did.

use serde::{Deserialize, Serialize};

use super::{Bytes, Hex, Name, Word};

/// An access to a region of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Register {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// The device.
    pub device: Name,
    /// The number of the region: 0 to 5 for a BAR, 7 for configuration space.
    pub region: u32,
    /// Offset in the region.
    pub offset: Hex,
    /// `read` and `write` of the file, `load` and `store` of a mapping.
    pub access: Word,
    /// Bytes of the access.
    pub size: u64,
    /// Its first bytes, 64 at the most.
    pub value: Bytes,
    /// Accesses to the device before this one that were counted and not written, because there were
    /// too many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

/// DMA of a device, through the IOMMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Dma {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// The device behind the IOMMU.
    pub device: Name,
    /// The PASID of the request, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pasid: Option<u32>,
    /// The domain that it went through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<u32>,
    /// `read` (from memory) or `write`.
    pub access: Word,
    /// The first I/O virtual address.
    pub iova: Hex,
    /// Bytes that were moved.
    pub len: Hex,
}

/// A refused access of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Fault {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// The device behind the IOMMU.
    pub device: Name,
    /// The PASID of the request, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pasid: Option<u32>,
    /// `read` (from memory) or `write`.
    pub access: Word,
    /// The first I/O virtual address that was refused.
    pub iova: Hex,
    /// Why.
    pub reason: Word,
}

/// An interrupt that a device raised and its user listens to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Interrupt {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// The device.
    pub device: Name,
    /// `INTx`, `MSI`, `MSI-X`, `error` or `request`.
    pub index: Word,
    /// The vector.
    pub vector: u32,
}

/// A source of DMA leads somewhere else from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Route {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// What happened.
    pub change: RouteChange,
    /// The device behind the IOMMU.
    pub device: Name,
    /// The PASID, or none for requests without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pasid: Option<u32>,
    /// The domain that is attached now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<u32>,
    /// The domain that was attached before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u32>,
}

/// What happened to a source of DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RouteChange {
    /// It had no domain and has one.
    Attach,
    /// It has another one.
    Replace,
    /// It has none any more.
    Detach,
}

impl RouteChange {
    /// One word.
    pub const fn name(self) -> &'static str {
        match self {
            RouteChange::Attach => "attach",
            RouteChange::Replace => "replace",
            RouteChange::Detach => "detach",
        }
    }
}

/// A new mapping of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Map {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// The domain.
    pub domain: u32,
    /// The first I/O virtual address.
    pub iova: Hex,
    /// The last one.
    pub last: Hex,
    /// `r`, `w` or `rw`: what devices may do.
    pub prot: Word,
}

/// Mappings of a domain that are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Unmap {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// The domain.
    pub domain: u32,
    /// The first I/O virtual address of the range.
    pub iova: Hex,
    /// The last one.
    pub last: Hex,
    /// Bytes in it that were mapped.
    pub bytes: Hex,
}

/// Descriptors that a device took in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Submit {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// The device.
    pub device: Name,
    /// Its queue or channel.
    pub unit: u32,
    /// The number of the first in that queue.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// What an engine did on a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Work {
    /// Nanoseconds from the beginning of the trace to that of the work.
    pub t: u64,
    /// How long it took, in nanoseconds.
    pub duration: u64,
    /// The device.
    pub device: Name,
    /// Its queue or channel.
    pub unit: u32,
    /// The number of the descriptor in that queue.
    pub number: u64,
    /// What the descriptor does.
    pub operation: Word,
    /// The engine; absent for the worker of the client whose memory it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<u32>,
    /// Why the work ended: `done`, `aborted`, or `later`, `remote` or `page` if there is more to do.
    pub end: Word,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}
