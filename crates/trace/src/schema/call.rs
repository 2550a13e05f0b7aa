//! Calls of programs, with all that a replay needs: what each read of its program's memory, and what
//! it wrote there.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Bytes, Hex, Name, Word};

/// A call of a program on a file of the machine, written when it was answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Call {
    /// Nanoseconds from the beginning of the trace to that of the call.
    pub t: u64,
    /// How long it took, in nanoseconds.
    pub duration: u64,
    /// The number of the program in this trace.
    pub program: u32,
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The file descriptor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// The number of the open file in this trace: its duplicates have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<u64>,
    /// What the file is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
    /// The device, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Name>,
    /// The ioctl as the kernel's headers call it, without `IOMMU_` and `VFIO_`; or `open`, `close`,
    /// `read`, `write`, `mmap`.
    pub name: Word,
    /// The number of the ioctl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Hex>,
    /// The argument of the ioctl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argument: Option<Hex>,
    /// The arguments by name, as far as they were decoded.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub args: Map<String, Value>,
    /// What it returned, if it did not fail. That of `mmap` is the kernel's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<u64>,
    /// How it failed, by the name of the errno.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<Word>,
    /// Why it failed, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What it answered, by name, if it is an ioctl that did not fail.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub reply: Map<String, Value>,
    /// What it did with memory and descriptors of its program, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exchange: Vec<Exchange>,
}

/// What an open file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Object {
    /// `/dev/iommu`.
    Iommufd,
    /// `/dev/vfio/vfio`.
    Container,
    /// A group.
    Group,
    /// A device.
    Device,
    /// Events that an ioctl gave a descriptor for.
    Events,
    /// Anything else.
    Other,
}

impl Object {
    /// One word.
    pub const fn name(self) -> &'static str {
        match self {
            Object::Iommufd => "iommufd",
            Object::Container => "container",
            Object::Group => "group",
            Object::Device => "device",
            Object::Events => "events",
            Object::Other => "file",
        }
    }
}

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Extent {
    /// The system physical address of the first byte.
    pub spa: Hex,
    /// Bytes.
    pub len: Hex,
}

/// One step of a call in its program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "did", rename_all = "kebab-case")]
pub enum Exchange {
    /// An allocation of it was to fail (`fail-nth`).
    Failing {
        /// Which one, from 1.
        allocation: u32,
    },
    /// It read memory.
    Read {
        /// The address.
        at: Hex,
        /// What was there.
        bytes: Bytes,
    },
    /// It could not read memory.
    Unreadable {
        /// The address.
        at: Hex,
        /// Bytes.
        len: Hex,
    },
    /// It wrote memory.
    Wrote {
        /// The address.
        at: Hex,
        /// What it wrote.
        bytes: Bytes,
    },
    /// It could not write memory.
    Unwritable {
        /// The address.
        at: Hex,
        /// Bytes.
        len: Hex,
    },
    /// Pages were pinned, and this is where they are: the same memory has the same addresses.
    Pinned {
        /// The address, or the offset in a file.
        at: Hex,
        /// Bytes.
        len: Hex,
        /// System physical addresses, in order.
        extents: Vec<Extent>,
    },
    /// Pages were not pinned.
    NotPinned {
        /// The address, or the offset in a file.
        at: Hex,
        /// Bytes.
        len: Hex,
        /// `fault`, `no-memory`, `out-of-range` or `revoked`.
        error: Word,
    },
    /// It made a source of pages of addresses or of a file, or could not.
    Pages {
        /// The address, or the offset in the file.
        at: Hex,
        /// Bytes.
        len: Hex,
        /// The descriptor of the file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fd: Option<i32>,
        /// They come from a file.
        #[serde(default)]
        from_file: bool,
        /// They are a device's.
        #[serde(default)]
        of_device: bool,
        /// The address that a chosen IOVA is congruent to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<Hex>,
        /// Why not: as for `not-pinned`, or as for `descriptor`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Word>,
    },
    /// It looked a descriptor up.
    Descriptor {
        /// The descriptor.
        fd: i32,
        /// The number of the file in this trace, if it is one of the machine's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<u64>,
        /// Why it is of no use: `not-open`, `wrong-type`, `beyond-end`, `no-memory`,
        /// `outside-buffer`, `revoked` or `none-free`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Word>,
    },
    /// It gave the program a descriptor, or could not.
    Gave {
        /// The descriptor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fd: Option<i32>,
        /// The number of the file in this trace. There is none if the call failed afterwards.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<u64>,
        /// Why not, as for `descriptor`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Word>,
    },
    /// It asked for whom memory is locked.
    Account {
        /// A number for the address space.
        process: Hex,
        /// The user.
        user: u32,
        /// No limit applies.
        unlimited: bool,
        /// The limit in bytes, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<Hex>,
    },
}
