//! The messages of vfio-user 0.0 as types, nothing else (QEMU's `docs/interop/vfio-user.rst`,
//! libvfio-user's `include/vfio-user.h`). All numbers are in the byte order of the host.
//!
//! Where a payload is a struct of `include/uapi/linux/vfio.h`, it is in
//! [`ioasid_uapi::spec::vfio`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major number of the protocol version.
pub const MAJOR: u16 = 0;
/// Minor number of the protocol version: the highest there is.
pub const MINOR: u16 = 0;

/// Most bytes that one access moves unless less is agreed on
/// (`VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE`).
pub const MAX_DATA_XFER_SIZE: u32 = 1 << 20;

/// Mappings that one connection may have unless less is agreed on (`max_dma_maps`).
pub const MAX_DMA_MAPS: usize = 65535;

/// The header of every message.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// The sender's number of the message; a reply has that of its command.
    pub id: u16,
    /// What to do: one of [`command`].
    pub command: u16,
    /// Bytes of the message with this header.
    pub size: u32,
    /// [`Header::TYPE`], [`Header::NO_REPLY`], [`Header::ERROR`].
    pub flags: u32,
    /// An errno, in a reply with [`Header::ERROR`].
    pub error: u32,
}

impl Header {
    /// Bytes of a header.
    pub const SIZE: usize = 16;
    /// The bits of the type.
    pub const TYPE: u32 = 0xf;
    /// Type: a command.
    pub const COMMAND: u32 = 0;
    /// Type: a reply.
    pub const REPLY: u32 = 1;
    /// The sender of the command wants no reply.
    pub const NO_REPLY: u32 = 1 << 4;
    /// The command failed; the reply has no payload.
    pub const ERROR: u32 = 1 << 5;

    /// Whether this is a reply; `None` for a type that does not exist.
    pub const fn is_reply(self) -> Option<bool> {
        match self.flags & Self::TYPE {
            Self::COMMAND => Some(false),
            Self::REPLY => Some(true),
            _ => None,
        }
    }

    /// Whether the command wants a reply.
    pub const fn wants_reply(self) -> bool {
        self.flags & Self::NO_REPLY == 0
    }
}

/// The commands.
pub mod command {
    /// Version and capabilities. The first message, and only that.
    pub const VERSION: u16 = 1;
    /// Memory that the device may reach.
    pub const DMA_MAP: u16 = 2;
    /// Memory that it may no longer reach.
    pub const DMA_UNMAP: u16 = 3;
    /// What the device has.
    pub const DEVICE_GET_INFO: u16 = 4;
    /// What a region is.
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    /// Which parts of a region can be reached by descriptors.
    pub const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    /// What an interrupt index is.
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    /// Connects, disconnects or fires interrupts.
    pub const DEVICE_SET_IRQS: u16 = 8;
    /// Reads a region.
    pub const REGION_READ: u16 = 9;
    /// Writes a region.
    pub const REGION_WRITE: u16 = 10;
    /// From the server: reads memory that came without a descriptor.
    pub const DMA_READ: u16 = 11;
    /// From the server: writes such memory.
    pub const DMA_WRITE: u16 = 12;
    /// Resets the device.
    pub const DEVICE_RESET: u16 = 13;
    /// Several small writes.
    pub const REGION_WRITE_MULTI: u16 = 15;
    /// A feature of the device.
    pub const DEVICE_FEATURE: u16 = 16;
    /// Reads the state of a device that is being saved.
    pub const MIG_DATA_READ: u16 = 17;
    /// Writes the state of a device that is being restored.
    pub const MIG_DATA_WRITE: u16 = 18;

    /// The specification's name of a command, without `VFIO_USER_`.
    pub const fn name(command: u16) -> &'static str {
        match command {
            VERSION => "VERSION",
            DMA_MAP => "DMA_MAP",
            DMA_UNMAP => "DMA_UNMAP",
            DEVICE_GET_INFO => "DEVICE_GET_INFO",
            DEVICE_GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
            DEVICE_GET_REGION_IO_FDS => "DEVICE_GET_REGION_IO_FDS",
            DEVICE_GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
            DEVICE_SET_IRQS => "DEVICE_SET_IRQS",
            REGION_READ => "REGION_READ",
            REGION_WRITE => "REGION_WRITE",
            DMA_READ => "DMA_READ",
            DMA_WRITE => "DMA_WRITE",
            DEVICE_RESET => "DEVICE_RESET",
            REGION_WRITE_MULTI => "REGION_WRITE_MULTI",
            DEVICE_FEATURE => "DEVICE_FEATURE",
            MIG_DATA_READ => "MIG_DATA_READ",
            MIG_DATA_WRITE => "MIG_DATA_WRITE",
            _ => "unknown",
        }
    }
}

/// VERSION, command and reply. Text in JSON follows, with a NUL at its end, or nothing.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Version {
    /// Major number.
    pub major: u16,
    /// Minor number.
    pub minor: u16,
}

/// DMA_MAP (`struct vfio_user_dma_map`). The reply has no payload.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaMap {
    /// Bytes of this struct.
    pub argsz: u32,
    /// [`DmaMap::READ`], [`DmaMap::WRITE`], [`DmaMap::MMAP`], [`DmaMap::FILE_IO`].
    pub flags: u32,
    /// Where the memory starts in the file whose descriptor is sent along.
    pub offset: u64,
    /// DMA address of the first byte.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

impl DmaMap {
    /// The device may read.
    pub const READ: u32 = 1 << 0;
    /// The device may write.
    pub const WRITE: u32 = 1 << 1;
    /// The file can be mapped: what is presumed if there is one.
    pub const MMAP: u32 = 1 << 2;
    /// The file is to be read and written with system calls.
    pub const FILE_IO: u32 = 1 << 3;
}

/// DMA_UNMAP, command and reply (`struct vfio_user_dma_unmap`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaUnmap {
    /// Bytes of the reply's payload.
    pub argsz: u32,
    /// [`DmaUnmap::DIRTY`], [`DmaUnmap::ALL`].
    pub flags: u32,
    /// DMA address of the first byte.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

impl DmaUnmap {
    /// With a bitmap of the pages that were written.
    pub const DIRTY: u32 = 1 << 0;
    /// Everything; address and size are 0.
    pub const ALL: u32 = 1 << 1;
}

/// GET_REGION_IO_FDS, command and reply. The reply's sub-regions follow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RegionIoFds {
    /// Bytes of the reply's payload.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// Region.
    pub index: u32,
    /// Number of sub-regions.
    pub count: u32,
}

/// REGION_READ and REGION_WRITE, command and reply. The data follows where there is some.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RegionAccess {
    /// Offset in the region.
    pub offset: u64,
    /// Region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

/// One write of REGION_WRITE_MULTI, behind the number of writes (8 bytes, which are also its reply).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SmallWrite {
    /// Where.
    pub access: RegionAccess,
    /// The data: the first [`RegionAccess::count`] bytes.
    pub data: [u8; 8],
}

/// DMA_READ and DMA_WRITE, command and reply. The data follows where there is some.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaAccess {
    /// DMA address.
    pub address: u64,
    /// Bytes.
    pub count: u64,
}

/// MIG_DATA_READ and MIG_DATA_WRITE, command and reply. The data follows where there is some. The
/// reply to MIG_DATA_WRITE has no payload.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MigData {
    /// Bytes of the reply's payload, or of this struct with its data.
    pub argsz: u32,
    /// Bytes of data. In the reply to MIG_DATA_READ, 0 at the end of the state.
    pub size: u32,
}

/// Data of the feature DMA_LOGGING_START (`struct vfio_user_device_feature_dma_logging_control`), before
/// its ranges ([`DmaLoggingRange`](ioasid_uapi::spec::vfio::DmaLoggingRange)).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct LoggingControl {
    /// Bytes of a page of the log; in the reply those that it has.
    pub page_size: u64,
    /// Number of ranges; 0 for all addresses.
    pub num_ranges: u32,
    /// Unused.
    pub reserved: u32,
}

/// Data of the feature DMA_LOGGING_REPORT (`struct vfio_user_device_feature_dma_logging_report`); in the
/// reply the bitmap follows, in words of 64 bits.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct LoggingReport {
    /// First DMA address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that a bit is for: a power of two from 4096.
    pub page_size: u64,
}

const _: () = {
    assert!(size_of::<LoggingControl>() == 16);
    assert!(size_of::<LoggingReport>() == 24);
    assert!(size_of::<MigData>() == 8);
    assert!(size_of::<Header>() == Header::SIZE);
    assert!(size_of::<Version>() == 4);
    assert!(size_of::<DmaMap>() == 32);
    assert!(size_of::<DmaUnmap>() == 24);
    assert!(size_of::<RegionIoFds>() == 16);
    assert!(size_of::<RegionAccess>() == 16);
    assert!(size_of::<SmallWrite>() == 24);
    assert!(size_of::<DmaAccess>() == 16);
};
