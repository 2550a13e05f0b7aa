//! What `ioasid-uapi` refuses by itself, and the errors of `ioasid-core`.

use ioasid_core::{
    failpoint::OutOfMemory,
    host::FdError,
    memory::{MemoryGone, PinError},
};
use ioasid_uapi::{
    decode::names,
    error::{FieldError, FileError, Operation, RegisterError, RequestError, Wanted},
    table::File,
};

use crate::sample::{Sample, sample};

pub(crate) fn samples() -> Vec<Sample> {
    let mut all = requests();
    all.extend(fields());
    all.extend(files());
    all.extend(registers());
    all.extend(core());
    all
}

fn requests() -> Vec<Sample> {
    let (address, len) = (0x7f00_0000_1000, 4104);
    let (fd, wanted) = (7, Wanted::Iommufd);
    [
        RequestError::UnknownCommand {
            file: File::Iommufd,
            request: 0x3bff,
        },
        RequestError::OtherRequest {
            request: 0x4000_3b85,
            known: 0x3b85,
            name: "IOAS_MAP",
        },
        RequestError::OpenedByGroup {
            name: "ATTACH_IOMMUFD_PT",
        },
        RequestError::UnknownFeature { number: 11 },
        RequestError::NoHandler(FieldError::OneOf {
            field: "flags",
            value: 1,
            known: names::IRQ_ACTION,
        }),
        RequestError::TooSmall { size: 39, min: 40 },
        RequestError::UnknownBytes {
            offset: 45,
            known: 40,
        },
        RequestError::Unreadable { address, len },
        RequestError::Unwritable { address, len },
        RequestError::BeyondMemory {
            base: u64::MAX - 7,
            offset: 16,
        },
        RequestError::Pages {
            address,
            len,
            error: PinError::Fault,
        },
        RequestError::FilePages {
            fd,
            start: 0x2000,
            len,
            error: FdError::NotOpen,
        },
        RequestError::Descriptor {
            fd,
            wanted,
            error: FdError::NotOpen,
        },
        RequestError::WrongFile { fd, wanted },
        RequestError::NoDescriptor(FdError::NoneFree),
        RequestError::NoRoom { room: 1, needed: 2 },
        RequestError::TooManyRanges {
            given: 70_000,
            limit: 65_536,
        },
        RequestError::LastAddress {
            field: "iova",
            value: u64::MAX,
        },
        RequestError::NameTooLong { limit: 4096 },
        RequestError::BitmapAddress {
            address: 0x7fff_ffff_f000,
            size: 0x2000,
        },
        RequestError::BitmapSize {
            size: 8,
            needed: 16,
            limit: 1 << 28,
            pages: 65,
        },
        RequestError::FeatureWay {
            number: 5,
            set: false,
        },
        RequestError::NoPrecopy,
        RequestError::NoHotReset,
    ]
    .map(sample)
    .into()
}

fn fields() -> Vec<Sample> {
    let field = "flags";
    let supported = [
        FieldError::Flags {
            field,
            value: 0x17,
            known: names::IOAS_MAP,
        },
        FieldError::NotZero {
            field: "reserved",
            value: 9,
        },
        FieldError::Value {
            field: "option_id",
            value: 9,
            known: names::OPTION,
        },
        FieldError::NoType { field: "type" },
    ];
    let valid = [
        FieldError::Flags {
            field,
            value: 0x41,
            known: names::DMA_MAP,
        },
        FieldError::Value {
            field,
            value: 3,
            known: names::STORE_BYTES,
        },
        FieldError::OneOf {
            field,
            value: 0x20,
            known: names::IRQ_DATA,
        },
        FieldError::Exclusive {
            field,
            value: 3,
            known: names::DMA_UNMAP,
        },
        FieldError::Negative {
            field: "iommufd",
            value: -2,
        },
    ];
    let supported = supported.map(RequestError::NotSupported).map(sample);
    let valid = valid.map(RequestError::Invalid).map(sample);
    supported.into_iter().chain(valid).collect()
}

fn files() -> Vec<Sample> {
    let operations = [
        Operation::Ioctl,
        Operation::Read,
        Operation::Write,
        Operation::Map,
        Operation::Seek,
        Operation::Truncate,
        Operation::Sync,
        Operation::Seal,
    ];
    let nothing = operations.map(|operation| FileError::NoOperation { operation });
    let path = "devices/pci0000:6b/0000:6a:01.0/config".to_owned();
    let others = [
        FileError::Gone {
            name: "vfio7".to_owned(),
        },
        FileError::NoExtents { in_sys: true },
        FileError::NoExtents { in_sys: false },
        FileError::FlagsNotSupported {
            operation: Operation::Read,
            flags: 8,
        },
        FileError::NotOpenFor {
            operation: Operation::Read,
        },
        FileError::NotOpenFor {
            operation: Operation::Map,
        },
        FileError::NotOpenFor {
            operation: Operation::Seal,
        },
        FileError::NoOffsets,
        FileError::BadOffset {
            offset: 1 << 63,
            len: 16,
        },
        FileError::BadWhence { whence: 9 },
        FileError::BadVector {
            count: 2000,
            limit: 1024,
        },
        FileError::MappingOff,
        FileError::Lockdown,
        FileError::AttributeMode { path: path.clone() },
        FileError::AttributeNotBuilt { path },
        FileError::BadText { offset: 3, len: 14 },
        FileError::NoSuchNode {
            path: "/dev/vfio/7".to_owned(),
            free: "/dev/vfio/devices/vfio0 (0000:69:01.0)".to_owned(),
        },
        FileError::NoNode,
        FileError::NoThread { tid: 1234 },
        FileError::Closed { fd: 7 },
        FileError::NoNumber,
        FileError::NoResource,
        FileError::HostFailed,
    ];
    nothing.into_iter().chain(others).map(sample).collect()
}

fn registers() -> Vec<Sample> {
    let address = 0x7f00_0000_1004;
    [
        RegisterError::NotMapped { address, size: 4 },
        RegisterError::Instruction { address },
        RegisterError::Malformed { shape: 0x77 },
        RegisterError::NoNode,
        RegisterError::NotWatched,
        RegisterError::HasPage,
        RegisterError::TooManyPages { limit: 64 },
        RegisterError::MemoryClosed,
    ]
    .map(sample)
    .into()
}

fn core() -> Vec<Sample> {
    let mut all = vec![sample(OutOfMemory), sample(MemoryGone { done: 12 })];
    let pins = [
        PinError::Fault,
        PinError::NoMemory,
        PinError::Revoked,
        PinError::OutOfRange,
    ];
    all.extend(pins.map(sample));
    let fds = [
        FdError::NotOpen,
        FdError::NoMemory,
        FdError::NoneFree,
        FdError::Revoked,
        FdError::WrongType,
        FdError::BeyondEnd,
        FdError::OutsideBuffer,
    ];
    all.extend(fds.map(sample));
    all
}
