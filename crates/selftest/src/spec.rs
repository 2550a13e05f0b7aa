//! The self-test's interface: numbers and layouts, nothing else
//! (drivers/iommu/iommufd/iommufd_test.h of Linux 7.2).

use ioasid_uapi::decode::{Described, Field, Form, Way};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The number of `IOMMU_TEST_CMD` among the ioctls of `/dev/iommu`.
pub const TEST_CMD: u32 = 0xa0;

/// Bytes of [`TestCmd`] that every version of the program has: up to the end of `last`.
pub const TEST_CMD_MIN: usize = 68;

/// Bytes of the operation's own part.
pub const OP_BYTES: usize = 48;

/// `struct iommu_test_cmd`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct TestCmd {
    /// Bytes of the struct.
    pub size: u32,
    /// The operation.
    pub op: u32,
    /// What most operations are about.
    pub id: u32,
    /// Not looked at.
    pub reserved: u32,
    /// One of the structs below, in 8-byte words as its alignment asks.
    pub args: [u64; OP_BYTES / 8],
    /// Not looked at.
    pub last: u32,
    /// The end of the struct is aligned.
    pub padding: u32,
}

impl Described for TestCmd {
    const FIELDS: &'static [Field] = &[
        field("op", std::mem::offset_of!(TestCmd, op), Form::Number),
        field("id", std::mem::offset_of!(TestCmd, id), Form::Number),
        field("size", std::mem::offset_of!(TestCmd, size), Form::Size),
    ];
}

const fn field(name: &'static str, offset: usize, form: Form) -> Field {
    Field {
        name,
        offset,
        width: size_of::<u32>(),
        form,
        way: Way::In,
        when: None,
    }
}

/// Operations of `IOMMU_TEST_CMD`.
pub mod op {
    #![allow(missing_docs)] // The kernel's names, less `IOMMU_TEST_OP_`.
    pub const ADD_RESERVED: u32 = 1;
    pub const MOCK_DOMAIN: u32 = 2;
    pub const MD_CHECK_MAP: u32 = 3;
    pub const MD_CHECK_REFS: u32 = 4;
    pub const CREATE_ACCESS: u32 = 5;
    pub const DESTROY_ACCESS_PAGES: u32 = 6;
    pub const ACCESS_PAGES: u32 = 7;
    pub const ACCESS_RW: u32 = 8;
    pub const SET_TEMP_MEMORY_LIMIT: u32 = 9;
    pub const MOCK_DOMAIN_REPLACE: u32 = 10;
    pub const ACCESS_REPLACE_IOAS: u32 = 11;
    pub const MOCK_DOMAIN_FLAGS: u32 = 12;
    pub const DIRTY: u32 = 13;
    pub const MD_CHECK_IOTLB: u32 = 14;
    pub const TRIGGER_IOPF: u32 = 15;
    pub const DEV_CHECK_CACHE: u32 = 16;
    pub const TRIGGER_VEVENT: u32 = 17;
    pub const PASID_ATTACH: u32 = 18;
    pub const PASID_REPLACE: u32 = 19;
    pub const PASID_DETACH: u32 = 20;
    pub const PASID_CHECK_HWPT: u32 = 21;
    pub const DMABUF_GET: u32 = 22;
    pub const DMABUF_REVOKE: u32 = 23;
}

/// ADD_RESERVED.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct AddReserved {
    /// First IOVA.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// MOCK_DOMAIN and MOCK_DOMAIN_FLAGS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MockDomain {
    /// Out: the mock device.
    pub stdev_id: u32,
    /// Out: what it is attached to.
    pub hwpt_id: u32,
    /// Out: its binding.
    pub idev_id: u32,
    /// [`device_flag`]; MOCK_DOMAIN_FLAGS only.
    pub dev_flags: u32,
}

/// MOCK_DOMAIN_REPLACE.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MockDomainReplace {
    /// In: what to attach to. Out: the page table.
    pub pt_id: u32,
}

/// MD_CHECK_MAP.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CheckMap {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// The program's address of the memory that should be mapped there.
    pub uptr: u64,
}

/// MD_CHECK_REFS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CheckRefs {
    /// Bytes.
    pub length: u64,
    /// The program's address of the pages.
    pub uptr: u64,
    /// How often each should be pinned.
    pub refs: u32,
    /// The end of the struct is aligned.
    pub padding: u32,
}

/// CREATE_ACCESS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CreateAccess {
    /// Out: a descriptor of the access object.
    pub access_fd: u32,
    /// [`access_flag::NEEDS_PIN_PAGES`].
    pub flags: u32,
}

/// DESTROY_ACCESS_PAGES.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DestroyAccessPages {
    /// What ACCESS_PAGES gave.
    pub pages_id: u32,
}

/// ACCESS_PAGES.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct AccessPages {
    /// [`access_flag::WRITE`].
    pub flags: u32,
    /// Out: the number of the pinned pages.
    pub pages_id: u32,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// The program's address of the memory that should be mapped there, or 0.
    pub uptr: u64,
}

/// ACCESS_RW.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct AccessRw {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// The program's buffer.
    pub uptr: u64,
    /// [`access_flag::WRITE`], [`access_flag::SLOW_PATH`].
    pub flags: u32,
    /// The end of the struct is aligned.
    pub padding: u32,
}

/// SET_TEMP_MEMORY_LIMIT.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MemoryLimit {
    /// Bytes.
    pub limit: u32,
}

/// ACCESS_REPLACE_IOAS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct AccessReplaceIoas {
    /// The new IOAS.
    pub ioas_id: u32,
}

/// DIRTY.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Dirty {
    /// Not looked at.
    pub flags: u32,
    /// The next field is aligned.
    pub padding: u32,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes for each bit.
    pub page_size: u64,
    /// The program's bitmap.
    pub uptr: u64,
    /// Out: how many bits were set.
    pub nr_dirty: u64,
}

/// MD_CHECK_IOTLB and DEV_CHECK_CACHE.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CheckEntry {
    /// Which entry.
    pub id: u32,
    /// What it should hold.
    pub value: u32,
}

/// TRIGGER_IOPF.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct TriggerIopf {
    /// The binding of the device that faults.
    pub dev_id: u32,
    /// The PASID of the access, or 0.
    pub pasid: u32,
    /// The page request group.
    pub group: u32,
    /// What it wants to do.
    pub perm: u32,
    /// The address.
    pub address: u64,
}

/// TRIGGER_VEVENT.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct TriggerVevent {
    /// The binding of the device.
    pub dev_id: u32,
}

/// PASID_ATTACH, PASID_REPLACE, PASID_DETACH and PASID_CHECK_HWPT.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct PasidArgs {
    /// The PASID.
    pub pasid: u32,
    /// In: what to attach to, or what should be attached. Out: the page table.
    pub pt_id: u32,
}

/// DMABUF_GET.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DmabufGet {
    /// Bytes.
    pub length: u32,
    /// Flags of the new descriptor, as for `open`.
    pub open_flags: u32,
}

/// DMABUF_REVOKE.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DmabufRevoke {
    /// The dma-buf.
    pub fd: i32,
    /// Whether it is to be revoked, or given back.
    pub revoked: u32,
}

const _: () = {
    assert!(size_of::<AddReserved>() <= OP_BYTES);
    assert!(size_of::<MockDomain>() <= OP_BYTES);
    assert!(size_of::<MockDomainReplace>() <= OP_BYTES);
    assert!(size_of::<CheckMap>() <= OP_BYTES);
    assert!(size_of::<CheckRefs>() <= OP_BYTES);
    assert!(size_of::<CreateAccess>() <= OP_BYTES);
    assert!(size_of::<DestroyAccessPages>() <= OP_BYTES);
    assert!(size_of::<AccessPages>() <= OP_BYTES);
    assert!(size_of::<AccessRw>() <= OP_BYTES);
    assert!(size_of::<MemoryLimit>() <= OP_BYTES);
    assert!(size_of::<AccessReplaceIoas>() <= OP_BYTES);
    assert!(size_of::<Dirty>() <= OP_BYTES);
    assert!(size_of::<CheckEntry>() <= OP_BYTES);
    assert!(size_of::<TriggerIopf>() <= OP_BYTES);
    assert!(size_of::<TriggerVevent>() <= OP_BYTES);
    assert!(size_of::<PasidArgs>() <= OP_BYTES);
    assert!(size_of::<DmabufGet>() <= OP_BYTES);
    assert!(size_of::<DmabufRevoke>() <= OP_BYTES);
};

/// Flags of mock devices.
pub mod device_flag {
    /// Its IOMMU tracks no dirty pages.
    pub const NO_DIRTY: u32 = 1 << 0;
    /// It has PASIDs, [`super::PASID_WIDTH`] bits wide.
    pub const PASID: u32 = 1 << 2;
}

/// Flags of the operations on access objects.
pub mod access_flag {
    /// CREATE_ACCESS: it pins pages.
    pub const NEEDS_PIN_PAGES: u32 = 1 << 0;
    /// ACCESS_PAGES, ACCESS_RW: to write.
    pub const WRITE: u32 = 1 << 0;
    /// ACCESS_RW: without the shortcuts that the kernel has, which are none here.
    pub const SLOW_PATH: u32 = 1 << 2;
}

/// Bits of a mock device's PASIDs.
pub const PASID_WIDTH: u8 = 20;
/// The PASID at which a second attach fails, on purpose.
pub const FAILING_PASID: u32 = 1024;
/// The least that SET_TEMP_MEMORY_LIMIT takes: three words of the kernel's batches.
pub const MEMORY_LIMIT_MIN: u32 = 12;
/// The most bytes that one operation on an access object moves.
pub const ACCESS_MAX: u64 = 16 << 20;
/// The most pages of a mock dma-buf.
pub const DMABUF_PAGES: u64 = 512;

/// First address that a mock page table translates.
pub const APERTURE_START: u64 = 1 << 24;
/// Last address that a mock page table translates.
pub const APERTURE_LAST: u64 = (1 << 31) - 1;
/// Bytes of a leaf of a mock page table.
pub const PAGE_SIZE: u64 = 2048;
/// Bytes of a large leaf of a mock page table with large leaves.
pub const HUGE_PAGE_SIZE: u64 = 512 * PAGE_SIZE;
/// Bits of an address that a mock page table translates: three levels of 9 bits over the page
/// (`amdv1pt_iommu_fmt_init` in drivers/iommu/generic_pt/fmt/amdv1.h). The default kind is told to be
/// smaller.
pub const ADDRESS_BITS: u32 = 38;

/// `IOMMU_HWPT_DATA_SELFTEST`.
pub const HWPT_DATA: u32 = 0xdead;
/// `IOMMU_HW_INFO_TYPE_SELFTEST`.
pub const HW_INFO: u32 = 0xfeed_beef;
/// What the mock's register holds.
pub const HW_INFO_REGISTER: u32 = 0xdead_beef;
/// The type of everything else: virtual IOMMUs, their queues, invalidations.
pub const SELFTEST: u32 = 0xdead_beef;
/// `IOMMU_VEVENTQ_TYPE_SELFTEST`.
pub const VEVENTQ: u32 = 0xbeef_beef;
/// What a device's caches hold at first.
pub const CACHE_DEFAULT: u32 = 0xbad_dad;
/// Entries of an IOTLB, and caches of a device.
pub const ENTRIES: usize = 4;
/// Hardware queues of a virtual IOMMU.
pub const HW_QUEUES: u32 = 2;
/// Invalidate everything.
pub const INVALIDATE_ALL: u32 = 1 << 0;
/// `pagetable_type` of a page table with large leaves; 0 is one without.
pub const PAGETABLE_HUGE: u32 = 1;

const _: () = assert!(size_of::<TestCmd>() == 72);
