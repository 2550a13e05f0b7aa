//! Errors of `ioasid-iommufd`, and of the IOMMU below.

use ioasid_core::{AddrRange, DomainId, failpoint::OutOfMemory, memory::MemoryGone};
use ioasid_iommu::{
    AttachError as DomainError, DomainKind, MapError as TableError, Mismatch as DomainMismatch,
    OwnershipError, ReservedKind, TableFormat,
};
use ioasid_iommufd::{
    AccessError, AllocError, AttachError, CutError, DirtyError, EventError, InvalidateError,
    MapError, Mismatch, MmapError, ObjectError, ObjectId, OptionError, RangeError, Refusal,
    ReservedBy, UnmapError, UserDataError,
};

use crate::sample::{Sample, inside, sample};

fn range(start: u64, last: u64) -> AddrRange {
    AddrRange::new(start, last).unwrap()
}

fn id(number: u32) -> ObjectId {
    ObjectId::from_raw(number)
}

pub(crate) fn samples() -> Vec<Sample> {
    let mut all = objects();
    all.extend(maps());
    all.extend(tables());
    all.extend(unmaps());
    all.extend(ranges());
    all.extend(allocs());
    all.extend(attaches());
    all.extend(domains());
    all.extend(accesses());
    all.extend(dirty());
    all.extend(files());
    all.extend(user_data());
    all
}

fn objects() -> Vec<Sample> {
    let objects = [
        ObjectError::Missing(id(9)),
        ObjectError::InUse(id(3)),
        ObjectError::NoIds,
        ObjectError::Closed,
        ObjectError::NothingCached(id(4)),
    ];
    let options = [
        OptionError::HasObjects,
        OptionError::Mapped { ioas: id(2) },
        OptionError::NoSuchValue(7),
        OptionError::NoVfioIoas,
    ];
    let refusals = [
        Refusal::Invalid,
        Refusal::Io,
        Refusal::NotFound,
        Refusal::Exists,
        Refusal::NoMemory,
        Refusal::Fault,
    ];
    let objects = objects.map(sample).into_iter();
    let all = objects
        .chain(options.map(sample))
        .chain(refusals.map(sample));
    all.collect()
}

fn maps() -> Vec<Sample> {
    let wanted = range(0xfee0_0000, 0xfee0_0fff);
    let device = ReservedBy::Device {
        device: id(3),
        address: "0000:6a:01.0".parse().unwrap(),
        kind: ReservedKind::Msi,
    };
    let beyond = range(1 << 57, u64::MAX);
    [
        MapError::Empty,
        MapError::TooLong { len: u64::MAX - 1 },
        MapError::Misaligned {
            what: "IOVA",
            value: 0x1001,
            alignment: 0x1000,
        },
        MapError::Overflow {
            start: u64::MAX - 0xfff,
            len: 0x2000,
        },
        MapError::NoPermission,
        MapError::Reserved {
            range: wanted,
            reserved: range(0xfee0_0000, 0xfeef_ffff),
            by: device,
        },
        MapError::Reserved {
            range: beyond,
            reserved: beyond,
            by: ReservedBy::Domain(DomainId::new(2).unwrap()),
        },
        MapError::Reserved {
            range: beyond,
            reserved: beyond,
            by: ReservedBy::BackEnd,
        },
        MapError::Exists {
            range: wanted,
            mapped: range(0xfee0_0000, 0xfee0_1fff),
        },
        MapError::NoSpace {
            len: 0x1000,
            alignment: 0x2000,
        },
        MapError::SourceHole { range: wanted },
        MapError::ReadOnlyPages,
        MapError::Table(TableError::NoPageTable),
        MapError::NotFileBacked { ioas: id(2) },
    ]
    .map(sample)
    .into()
}

fn tables() -> Vec<Sample> {
    let (iova, len) = (0x1000, 0x2000);
    [
        TableError::Exists {
            range: range(0x1000, 0x2fff),
        },
        TableError::Empty { iova },
        TableError::Unaligned {
            value: 0x1001,
            page_size: 0x1000,
        },
        TableError::OutOfRange {
            iova,
            len,
            aperture: range(0, 0xfff),
        },
        TableError::OutputOutOfRange {
            spa: 1 << 60,
            len,
            bits: 52,
        },
        TableError::NoPermission { iova },
        TableError::NoPageTable,
        TableError::NoMemory(OutOfMemory),
    ]
    .map(|error| inside(error, MapError::Table(error)))
    .into()
}

fn unmaps() -> Vec<Sample> {
    let (range, area) = (range(0x1000, 0x1fff), range(0x1000, 0x3fff));
    let unmaps = [
        UnmapError::Empty,
        UnmapError::Overflow {
            start: u64::MAX - 0xfff,
            len: 0x2000,
        },
        UnmapError::NotMapped { range },
        UnmapError::Cuts { range, area },
        UnmapError::Locked { area },
        UnmapError::StillHeld { area },
    ];
    let cuts = [
        CutError::Changing { area },
        CutError::DevicePages { area },
        CutError::Misaligned {
            area,
            last: 0x1800,
            alignment: 0x1000,
        },
        CutError::InUse { area },
    ];
    unmaps
        .map(sample)
        .into_iter()
        .chain(cuts.map(sample))
        .collect()
}

fn ranges() -> Vec<Sample> {
    let (range, area) = (range(0x1000, 0x1fff), range(0x1000, 0x3fff));
    let by = ReservedBy::BackEnd;
    [
        RangeError::Empty {
            start: 0x2000,
            last: 0x1fff,
        },
        RangeError::Overlaps { range },
        RangeError::Mapped {
            reserved: range,
            area,
            by,
        },
        RangeError::Allowed {
            reserved: range,
            by,
        },
        RangeError::Reserved { range },
        RangeError::MisalignedAreas { alignment: 0x1000 },
    ]
    .map(sample)
    .into()
}

fn allocs() -> Vec<Sample> {
    let (viommu, iova, len) = (id(5), 0x1000, 0x2000);
    [
        AllocError::NotAParent(id(3)),
        AllocError::DataLength { kind: 1, len: 16 },
        AllocError::OtherIommu {
            device: id(3),
            viommu,
        },
        AllocError::BadDepth {
            depth: 0,
            max: 1 << 19,
        },
        AllocError::RingEmpty,
        AllocError::FlagsNotSupported(0x40),
        AllocError::NoData,
        AllocError::NoNesting(TableFormat::X86_64Stage1),
        AllocError::NoSecondStage {
            kind: DomainKind::Unmanaged,
            format: TableFormat::AmdV1,
        },
        AllocError::TypeNotSupported(2),
        AllocError::DeviceHasNumber(id(3)),
        AllocError::NumberTaken { viommu, number: 8 },
        AllocError::QueueExists { viommu, kind: 1 },
        AllocError::RingOverflow { iova, len },
        AllocError::RingInLastPage { iova, len },
        AllocError::NotContiguous { iova, pieces: 3 },
        AllocError::NoDomain,
    ]
    .map(sample)
    .into()
}

fn attaches() -> Vec<Sample> {
    let device = id(3);
    let (group, domain) = (4, DomainId::new(2).unwrap());
    [
        AttachError::NotAttachable(device),
        AttachError::NotOwner(OwnershipError::DriverInUse { group }),
        AttachError::NotOwner(OwnershipError::OtherOwner { group }),
        AttachError::GroupBusy(OwnershipError::Attached {
            group,
            pasid: None,
            domain,
        }),
        AttachError::Attached {
            device,
            pasid: Some(7),
        },
        AttachError::Iommu(DomainError::NotAttached {
            at: "0000:6a:01.0".parse().map(source).unwrap(),
        }),
        AttachError::NothingToReplace {
            device,
            pasid: Some(7),
        },
        AttachError::Incompatible(Mismatch::DirtyTracking),
        AttachError::Incompatible(Mismatch::SharedPageRequests),
        AttachError::Incompatible(Mismatch::AddressWidth(39)),
        AttachError::Incompatible(Mismatch::SupervisorRequests),
        AttachError::Incompatible(Mismatch::ExtendedAccessed),
        AttachError::NoPageRequests(device),
        AttachError::GroupElsewhere {
            attached: id(5),
            wanted: id(6),
        },
        AttachError::NotForPasids { device },
        AttachError::NoSuchPasid {
            pasid: 0,
            max_pasids: 1024,
        },
        AttachError::PasidSpace(1 << 31),
        AttachError::NoPasids(device),
    ]
    .map(sample)
    .into()
}

fn source(device: ioasid_core::PciAddress) -> ioasid_iommu::SourceId {
    ioasid_iommu::SourceId {
        device,
        pasid: None,
    }
}

fn domains() -> Vec<Sample> {
    let device = "0000:6a:01.0".parse().unwrap();
    let at = source(device);
    [
        DomainError::NotSingleton { device, others: 2 },
        DomainError::NoPasidSupport { device },
        DomainError::PasidRange {
            device,
            pasid: 2048,
            last: 1023,
        },
        DomainError::Resetting { device },
        DomainError::Attached {
            at,
            domain: DomainId::new(2).unwrap(),
        },
        DomainError::DriverInUse { device },
        DomainError::NotAttached { at },
        DomainError::Incompatible(DomainMismatch::DirtyTracking { device }),
        DomainError::Incompatible(DomainMismatch::PageRequests { device }),
        DomainError::NoMemory(OutOfMemory),
    ]
    .map(|error| inside(error, AttachError::Iommu(error)))
    .into()
}

fn accesses() -> Vec<Sample> {
    let area = range(0x1000, 0x3fff);
    [
        AccessError::NotAttached(id(4)),
        AccessError::AlreadyAttached {
            access: id(4),
            ioas: id(2),
        },
        AccessError::CopiesOnly(id(4)),
        AccessError::Empty,
        AccessError::Overflow {
            start: u64::MAX - 0xfff,
            len: 0x2000,
        },
        AccessError::NotMapped {
            range: area,
            at: 0x2000,
        },
        AccessError::Leaving { area },
        AccessError::DevicePages { area },
        AccessError::PartialPage {
            offset: 0x10,
            len: 0x800,
        },
        AccessError::Permission { area, write: true },
        AccessError::MemoryGone(MemoryGone { done: 0 }),
    ]
    .map(sample)
    .into()
}

fn dirty() -> Vec<Sample> {
    let (iova, len) = (0x1000, 0x1800);
    [
        DirtyError::NotSupported(id(4)),
        DirtyError::Off(id(4)),
        DirtyError::Overflow {
            iova: u64::MAX - 0xfff,
            len: 0x2000,
        },
        DirtyError::Empty,
        DirtyError::Misaligned {
            iova,
            len,
            alignment: 0x2000,
        },
        DirtyError::NotMapped {
            range: range(0x1000, 0x1fff),
        },
    ]
    .map(sample)
    .into()
}

fn files() -> Vec<Sample> {
    let events = [
        EventError::PartialRecord {
            len: 12,
            record: 40,
        },
        EventError::ReadTooShort { len: 8, needed: 24 },
        EventError::NoSuchFault(77),
        EventError::NoSuchAnswer(3),
        EventError::NotReadable,
        EventError::NotWritable,
        EventError::WrongMode,
    ];
    let invalidations = [
        InvalidateError::NotSupported {
            index: 2,
            flags: 4,
            reserved: 0,
        },
        InvalidateError::BadRange {
            index: 2,
            address: 0x1000,
            pages: u64::MAX,
        },
    ];
    let maps = [
        MmapError::NotWholePages { len: 0x1800 },
        MmapError::Private,
        MmapError::Executable,
        MmapError::NoSuchOffset {
            offset: 0x2000,
            len: 0x1000,
        },
        MmapError::NoSpace { len: 0x1000 },
    ];
    events
        .map(sample)
        .into_iter()
        .chain(invalidations.map(sample))
        .chain(maps.map(sample))
        .collect()
}

fn user_data() -> Vec<Sample> {
    [
        UserDataError::WrongType { kind: 1, wanted: 2 },
        UserDataError::Length {
            len: 4,
            min: 8,
            max: 16,
        },
        UserDataError::BadArray {
            address: 0x1000,
            entry_len: 4096,
            entries: 3,
        },
        UserDataError::NoSuchEntry {
            index: 4,
            entries: 3,
        },
        UserDataError::UnknownBytes { known: 16 },
        UserDataError::BadValue,
        UserDataError::Unreadable {
            address: 0x1000,
            source: MemoryGone { done: 0 },
        },
        UserDataError::BeyondMemory { index: 5 },
    ]
    .map(sample)
    .into()
}
