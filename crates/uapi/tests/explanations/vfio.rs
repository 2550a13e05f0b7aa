//! Errors of `ioasid-vfio`.

use std::time::Duration;

use ioasid_core::{AddrRange, Pasid, host::FdError};
use ioasid_iommu::PasidError;
use ioasid_vfio::{
    AttributeError, Feature, IrqAction, IrqIndex, MigrationState, StateError,
    error::{
        AttachError, BindError, ContainerError, DeviceError, DeviceNameError, DmaLogError,
        FeatureError, GroupError, IoeventfdError, IrqError, MapError, MdevError, MigrationError,
        RegionError, TokenError, UuidError,
    },
};

use crate::sample::{Sample, sample};

fn range(start: u64, last: u64) -> AddrRange {
    AddrRange::new(start, last).unwrap()
}

pub(crate) fn samples() -> Vec<Sample> {
    let mut all = binds();
    all.extend(regions());
    all.extend(irqs());
    all.extend(features());
    all.extend(logs());
    all.extend(groups());
    all.extend(containers());
    all.extend(maps());
    all.extend(mdevs());
    all
}

fn binds() -> Vec<Sample> {
    let binds = [
        BindError::NotBound,
        BindError::AlreadyBound,
        BindError::BoundElsewhere,
        BindError::Gone,
        BindError::StillOpen { open: 2 },
        BindError::NoPasid(PasidError::Exhausted { last: 15 }),
        BindError::PasidTooLarge {
            pasid: Pasid::new(300).unwrap(),
            limit: 256,
        },
    ];
    let tokens = [TokenError::Missing, TokenError::Wrong, TokenError::Unneeded];
    let mut all: Vec<_> = binds.map(sample).into();
    all.extend(tokens.map(sample));
    all.push(sample(AttachError::NoUserPasids));
    all
}

fn regions() -> Vec<Sample> {
    let (offset, len) = (0x7000, 16);
    [
        RegionError::NoSuchIndex { index: 9 },
        RegionError::Absent { index: 6 },
        RegionError::BeyondEnd {
            index: 2,
            offset,
            size: 0x4000,
        },
        RegionError::BeyondConfig {
            offset: 4094,
            len: 4,
            size: 4096,
        },
        RegionError::MemoryDisabled,
        RegionError::Asleep,
        RegionError::NoAnswer {
            waited: Duration::from_millis(10_000),
        },
        RegionError::NoBusMaster,
        RegionError::PrivateMapping,
        RegionError::NotMappable { offset, len },
        RegionError::NotMapped { offset, len },
    ]
    .map(sample)
    .into()
}

fn irqs() -> Vec<Sample> {
    let index = IrqIndex::Msix;
    [
        IrqError::NoSuchIndex { index: 7 },
        IrqError::Absent {
            index: IrqIndex::Intx,
        },
        IrqError::NoSuchVectors {
            index,
            start: 4,
            count: 8,
            available: 9,
        },
        IrqError::DataCount {
            elements: 2,
            count: 3,
        },
        IrqError::OtherEnabled {
            index,
            enabled: IrqIndex::Intx,
        },
        IrqError::NotEnabled { index },
        IrqError::NotOneVector { index, count: 2 },
        IrqError::Asleep { index },
        IrqError::BeyondEnabled {
            vector: 5,
            enabled: 4,
        },
        IrqError::NoEventfd { index },
        IrqError::NoSuchAction {
            index,
            action: IrqAction::Mask,
        },
        IrqError::NoVectors { index },
        IrqError::Eventfd {
            vector: 3,
            error: FdError::NotOpen,
        },
        IrqError::UnmaskedAlready,
    ]
    .map(sample)
    .into()
}

fn features() -> Vec<Sample> {
    let offset = 0x40;
    let mut all = vec![
        sample(FeatureError::Absent(Feature::Migration)),
        sample(FeatureError::LowPowerAlready),
    ];
    let stores = [
        IoeventfdError::NoRegister { offset, size: 8 },
        IoeventfdError::Exists { offset },
        IoeventfdError::NotFound { offset },
        IoeventfdError::TooMany { limit: 1000 },
        IoeventfdError::Eventfd(FdError::WrongType),
    ];
    all.extend(stores.map(sample));
    let moves = [
        MigrationError::NoSuchState { number: 9 },
        MigrationError::InError {
            to: MigrationState::Stop,
        },
        MigrationError::OtherState {
            is: MigrationState::Running,
            needed: MigrationState::StopCopy,
        },
        MigrationError::BadState(StateError),
        MigrationError::TooLarge {
            size: 100_000,
            limit: 65_536,
        },
    ];
    all.extend(moves.map(sample));
    all
}

fn logs() -> Vec<Sample> {
    let (iova, length) = (0x1000, 0x800);
    [
        DmaLogError::Started,
        DmaLogError::NotStarted,
        DmaLogError::PageSize { bytes: 3000 },
        DmaLogError::NoRange,
        DmaLogError::Misaligned {
            iova,
            length,
            page_size: 4096,
        },
        DmaLogError::Empty { iova },
        DmaLogError::Overflow {
            iova: u64::MAX - 0xfff,
            length: 0x2000,
        },
        DmaLogError::Overlaps {
            range: range(0x1000, 0x1fff),
            other: range(0, 0x1fff),
        },
        DmaLogError::TooManyRanges { limit: 128 },
        DmaLogError::NotLogged {
            range: range(0x1000, 0x1fff),
        },
        DmaLogError::Overrun,
    ]
    .map(sample)
    .into()
}

fn groups() -> Vec<Sample> {
    let group = 5;
    [
        GroupError::Gone { group },
        GroupError::Open { group },
        GroupError::DevicesBound { group, devices: 2 },
        GroupError::ContainerSet { group },
        GroupError::NoContainer { group },
        GroupError::DevicesOpen { group, devices: 2 },
        GroupError::NoSuchDevice {
            group,
            name: "0000:6a:02.0".to_owned(),
        },
    ]
    .map(sample)
    .into_iter()
    .chain(
        [
            DeviceNameError::Option {
                text: "vf_tok=1".to_owned(),
            },
            DeviceNameError::Token(UuidError::Length(4)),
        ]
        .map(sample),
    )
    .chain([sample(GroupError::DeviceName(DeviceNameError::Option {
        text: "x".to_owned(),
    }))])
    .collect()
}

fn containers() -> Vec<Sample> {
    [
        ContainerError::NoGroup,
        ContainerError::NoBackend,
        ContainerError::BackendSet,
        ContainerError::NoSuchBackend,
        ContainerError::ReservedMapped(ioasid_iommufd::Error::NoMemory),
        ContainerError::AddressesInvalid { mappings: 3 },
        ContainerError::AddressesNeeded,
    ]
    .map(sample)
    .into()
}

fn maps() -> Vec<Sample> {
    let (iova, size, range) = (0x1000, 0x1800, range(0x1000, 0x27ff));
    [
        MapError::Empty { iova },
        MapError::Overflow {
            start: u64::MAX - 0xfff,
            size: 0x2000,
        },
        MapError::Permissions,
        MapError::Misaligned {
            iova,
            size,
            page_size: 0x2000,
        },
        MapError::Exists {
            range,
            other: 0x2000,
        },
        MapError::NotFound { range },
        MapError::TooMany { limit: 65_535 },
        MapError::NotInvalid { range },
        MapError::AlreadyInvalid { iova },
        MapError::RangeWithAll,
        MapError::Cuts { range },
        MapError::NotTracking,
        MapError::BitmapUnit {
            given: 0x2000,
            page_size: 0x1000,
        },
        MapError::TooLargeForBitmap {
            pages: 1 << 32,
            limit: 1 << 31,
        },
        MapError::NoDirtyPages,
    ]
    .map(sample)
    .into()
}

fn mdevs() -> Vec<Sample> {
    let parent = "0000:6a:01.0".to_owned();
    let type_id = "dsa-1dwq".to_owned();
    let text = b"00000000-0000-4000-8000-00000000000a";
    let uuid = ioasid_vfio::mdev::Uuid::from_create(text).unwrap();
    let mut all: Vec<_> = [
        MdevError::NoSuchType {
            parent: parent.clone(),
            type_id: type_id.clone(),
        },
        MdevError::Exists { uuid },
        MdevError::NoInstance {
            parent: parent.clone(),
            type_id,
        },
        MdevError::NotFound { uuid },
        MdevError::ParentGone { parent },
        MdevError::Bind(BindError::Gone),
        MdevError::Uuid(UuidError::Length(4)),
        MdevError::Device(DeviceError::new(StateError)),
    ]
    .map(sample)
    .into();
    all.extend([UuidError::Length(35), UuidError::Character(8)].map(sample));
    let attributes = [
        AttributeError::NotWritable,
        AttributeError::Invalid,
        AttributeError::NotBuilt,
        AttributeError::OutOfRange,
        AttributeError::Busy,
        AttributeError::NoDevice,
        AttributeError::NoMemory,
        AttributeError::Vfio(BindError::Gone.into()),
    ];
    all.extend(attributes.map(sample));
    all
}
