//! Groups and the containers they are put into: who may open what, and what goes when.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::{CONFIG, Machine};
use ioasid_core::{AddrRange, Prot, host::Account, memory::OwnPages};
use ioasid_iommu::{DeviceConfig, OwnerId};
use ioasid_iommufd::{
    AttachError, Context, Error as IommufdError, MapError as IommufdMapError, OptionError,
};
use ioasid_vfio::{
    Container, ContainerFile, Error, GroupFile, Passthrough, VfioDevice,
    container::{Extension, MapRequest, UnmapRequest, Version},
    error::{BindError, ContainerError, DeviceNameError, GroupError, MapError, UuidError},
};

const PDEV: &str = "0000:6b:01.0";
const PARENT: &str = "0000:6a:01.0";

fn container(machine: &Machine) -> Arc<Container> {
    Container::new(Context::new(&machine.iommu))
}

fn open(device: &VfioDevice) -> Arc<GroupFile> {
    device.group().open().unwrap()
}

fn is_open(device: &VfioDevice) -> GroupError {
    let group = device.group_number();
    GroupError::Open { group }
}

fn no_container(group: &GroupFile) -> GroupError {
    let group = group.group().number();
    GroupError::NoContainer { group }
}

fn no_device(group: &GroupFile, name: &str) -> Error {
    let (group, name) = (group.group().number(), name.to_owned());
    GroupError::NoSuchDevice { group, name }.into()
}

fn enter(group: &GroupFile, container: &Arc<Container>) {
    group
        .set_container(ContainerFile::Container(Arc::clone(container)))
        .unwrap();
}

fn map_at(iova: u64, size: u64) -> MapRequest {
    MapRequest {
        iova,
        vaddr: 0x10_0000,
        size,
        prot: Prot::RW,
        update: false,
    }
}

/// Maps memory of ours.
fn map(machine: &Machine, container: &Container, iova: u64, size: u64) -> Result<(), Error> {
    container.map(Account::default(), &map_at(iova, size), || {
        let len = usize::try_from(size).unwrap();
        Ok(Arc::new(OwnPages::new(machine.iommu.space(), len).unwrap()) as _)
    })
}

fn unmap_all(container: &Container) -> Result<u64, Error> {
    let request = UnmapRequest {
        iova: 0,
        size: 0,
        all: true,
        vaddr: false,
        dirty: None,
    };
    container.unmap(&request, |_| Ok(()))
}

fn invalidate(container: &Container) -> Result<u64, Error> {
    let request = UnmapRequest {
        iova: 0,
        size: 0,
        all: true,
        vaddr: true,
        dirty: None,
    };
    container.unmap(&request, |_| Ok(()))
}

#[test]
fn a_group_is_open_once_at_a_time() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(PDEV));
    let file = open(&device);
    assert_eq!(device.group().open().unwrap_err(), is_open(&device));
    file.close();
    let _again = open(&device);
    file.close();
    assert_eq!(device.group().open().unwrap_err(), is_open(&device));
}

#[test]
fn a_device_is_bound_alone_or_opened_by_its_group_but_not_both() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(PDEV));
    let context = Context::new(&machine.iommu);
    let alone = device.open().unwrap();
    let group = open(&device);
    assert_eq!(alone.bind(&context), Err(is_open(&device).into()));
    group.close();
    alone.bind(&context).unwrap();
    let bound = GroupError::DevicesBound {
        group: device.group_number(),
        devices: 1,
    };
    assert_eq!(device.group().open().unwrap_err(), bound);
    alone.close();
    open(&device);
}

#[test]
fn a_group_in_a_container_owns_the_dma_of_its_devices_until_it_leaves() {
    let machine = Machine::new();
    let dma = machine.dma(PDEV);
    let (device, _) = machine.whole(&dma);
    let group = open(&device);
    let status = group.status().unwrap();
    assert!(status.viable && !status.container_set);

    let stranger = dma.group().claim_dma_owner(OwnerId::new()).unwrap();
    assert!(!group.status().unwrap().viable);
    let container = container(&machine);
    assert!(matches!(
        group.set_container(ContainerFile::Container(Arc::clone(&container))),
        Err(Error::Iommufd(IommufdError::Attach(AttachError::NotOwner(
            _
        ))))
    ));
    drop(stranger);
    enter(&group, &container);
    let status = group.status().unwrap();
    assert!(status.viable && status.container_set);
    assert!(dma.group().owner().is_some());
    assert_eq!(
        group.set_container(ContainerFile::Container(container)),
        Err(GroupError::ContainerSet {
            group: device.group_number()
        }
        .into())
    );
    group.unset_container().unwrap();
    assert!(dma.group().owner().is_none());
    assert_eq!(group.unset_container(), Err(no_container(&group)));
}

#[test]
fn a_device_is_opened_only_by_a_container_with_a_backend() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(PDEV));
    let group = open(&device);
    let name = PDEV.as_bytes();
    let refused = group.open_device(name).unwrap_err();
    assert_eq!(refused, no_container(&group).into());
    let container = container(&machine);
    let empty = container.set_iommu(Version::V2);
    assert_eq!(empty, Err(ContainerError::NoGroup.into()));
    enter(&group, &container);
    let refused = group.open_device(name).unwrap_err();
    assert_eq!(refused, ContainerError::NoBackend.into());
    let unknown = container.refuse_iommu();
    assert_eq!(unknown, Err(ContainerError::NoSuchBackend.into()));
    container.set_iommu(Version::V2).unwrap();
    let second = container.set_iommu(Version::V1);
    assert_eq!(second, Err(ContainerError::BackendSet.into()));
    for other in ["0000:6b:01.1", "", "0000:6b:01.00", "vfio0"] {
        let opened = group.open_device(other.as_bytes());
        assert_eq!(opened.unwrap_err(), no_device(&group, other));
    }
    let file = group.open_device(name).unwrap();
    assert!(file.is_bound() && file.is_of_group());
    let open = GroupError::DevicesOpen {
        group: group.group().number(),
        devices: 1,
    };
    assert_eq!(group.unset_container(), Err(open));
    file.close();
    group.unset_container().unwrap();
}

#[test]
fn files_of_one_device_share_it_and_the_last_one_closes_it() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(PDEV));
    let group = open(&device);
    let container = container(&machine);
    enter(&group, &container);
    container.set_iommu(Version::V2).unwrap();
    let first = group.open_device(PDEV.as_bytes()).unwrap();
    let second = group.open_device(PDEV.as_bytes()).unwrap();
    first.write(CONFIG + 4, &6_u16.to_le_bytes()).unwrap();
    machine.take_journal();
    first.close();
    assert_eq!(
        first.read(CONFIG, &mut [0; 2]),
        Err(BindError::NotBound.into())
    );
    assert!(machine.take_journal().is_empty(), "it is still open");
    let mut command = [0; 2];
    second.read(CONFIG + 4, &mut command).unwrap();
    assert_eq!(u16::from_le_bytes(command) & 6, 6, "one device");
    second.close();
    assert_eq!(machine.take_journal(), ["release, master false"]);
}

#[test]
fn container_group_and_device_close_in_any_order() {
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let machine = Machine::new();
        let dma = machine.dma(PDEV);
        let (device, _) = machine.whole(&dma);
        let group = open(&device);
        let mut container = Some(container(&machine));
        enter(&group, container.as_ref().unwrap());
        container.as_ref().unwrap().set_iommu(Version::V1).unwrap();
        map(&machine, container.as_ref().unwrap(), 0, 4096).unwrap();
        let file = group.open_device(PDEV.as_bytes()).unwrap();
        let mut closed = [false; 3];
        for step in order {
            assert_eq!(machine.iommu.paging_domains(), 1, "{order:?}, {closed:?}");
            match step {
                0 => container = None,
                1 => group.close(),
                _ => file.close(),
            }
            closed[step] = true;
            let reopened = device.group().open();
            if closed[1] && closed[2] {
                assert!(reopened.is_ok(), "{order:?}");
                break;
            }
            assert_eq!(reopened.unwrap_err(), is_open(&device), "{order:?}");
        }
        drop(container);
        assert_eq!(machine.iommu.paging_domains(), 0, "{order:?}");
        assert!(dma.group().owner().is_none(), "{order:?}");
    }
}

#[test]
fn the_last_group_takes_the_backend_and_the_mappings_with_it() {
    let machine = Machine::new();
    let (first, _) = machine.whole(&machine.dma(PDEV));
    let (second, _) = machine.whole(&machine.dma("0000:6b:02.0"));
    let (first, second) = (open(&first), open(&second));
    let container = container(&machine);
    enter(&first, &container);
    container.set_iommu(Version::V2).unwrap();
    map(&machine, &container, 0, 0x3000).unwrap();
    enter(&second, &container);
    assert_eq!(machine.iommu.paging_domains(), 1, "both on one domain");
    assert_eq!(machine.iommu.domains()[0].attachments().len(), 2);
    first.unset_container().unwrap();
    assert_eq!(container.version(), Some(Version::V2));
    second.unset_container().unwrap();
    assert_eq!(container.version(), None);
    let no_backend = Error::from(ContainerError::NoBackend);
    assert_eq!(container.info(), Err(no_backend.clone()));
    assert_eq!(map(&machine, &container, 0, 4096), Err(no_backend));

    enter(&first, &container);
    container.set_iommu(Version::V1).unwrap();
    assert_eq!(unmap_all(&container), Ok(0), "nothing was left");
    assert_eq!(container.info().unwrap().mappings_left, 65535);
}

#[test]
fn a_child_and_a_whole_device_in_one_container_stand_on_one_domain() {
    let machine = Machine::new();
    let parent = machine.dma(PARENT);
    let (child, _) = machine.child(&parent);
    let (whole, _) = machine.whole(&machine.dma(PDEV));
    let driver = parent.use_dma_api().unwrap();
    let before = machine.iommu.paging_domains();
    let (child_group, whole_group) = (open(&child), open(&whole));
    assert!(
        child_group.status().unwrap().viable,
        "nobody claims a child"
    );

    let container = container(&machine);
    enter(&child_group, &container);
    container.set_iommu(Version::V2).unwrap();
    assert_eq!(container.info().unwrap().iova_ranges, None);
    assert!(!container.has(Extension::UpdateVaddr));
    let needed = ContainerError::AddressesNeeded;
    assert_eq!(invalidate(&container), Err(needed.into()));
    map(&machine, &container, 0x1000, 0x1000).unwrap();
    enter(&whole_group, &container);
    let ranges = container.info().unwrap().iova_ranges.unwrap();
    assert_eq!(ranges[0].last(), 0xfedf_ffff);
    assert_eq!(ranges[1].start(), 0xfef0_0000);

    let child_file = child_group.open_device(b"").unwrap();
    assert_eq!(machine.iommu.paging_domains(), before + 1);
    let domain = machine.iommu.domains().pop().unwrap();
    assert_eq!(domain.attachments().len(), 2, "one domain, two routes");
    assert!(domain.iova_to_phys(0x1000).is_some());
    drop(domain);

    machine.take_journal();
    child_file.close();
    assert_eq!(
        machine.take_journal(),
        [
            "quiesce, attached",
            "release, master false",
            "unbind, detached"
        ]
    );
    whole_group.close();
    child_group.close();
    assert_eq!(machine.iommu.paging_domains(), before);
    drop(driver);
}

#[test]
fn a_group_whose_own_ranges_are_mapped_cannot_join() {
    let machine = Machine::new();
    let (child, _) = machine.child(&machine.dma(PARENT));
    let dma = machine.dma(PDEV);
    let (whole, _) = machine.whole(&dma);
    let (child, whole) = (open(&child), open(&whole));
    let container = container(&machine);
    enter(&child, &container);
    container.set_iommu(Version::V2).unwrap();
    // For a child alone the interrupt window is memory like any other.
    map(&machine, &container, 0xfee0_0000, 0x1000).unwrap();
    let file = || ContainerFile::Container(Arc::clone(&container));
    assert!(matches!(
        whole.set_container(file()),
        Err(Error::Container(ContainerError::ReservedMapped(_)))
    ));
    assert!(dma.group().owner().is_none(), "nothing is claimed");
    unmap_all(&container).unwrap();
    whole.set_container(file()).unwrap();
    let refused = map(&machine, &container, 0xfee0_0000, 0x1000);
    assert!(matches!(
        refused,
        Err(Error::Iommufd(IommufdError::Map(
            IommufdMapError::Reserved { .. }
        )))
    ));
}

#[test]
fn nobody_joins_while_addresses_are_invalid() {
    let machine = Machine::new();
    let (first, _) = machine.whole(&machine.dma(PDEV));
    let (second, _) = machine.whole(&machine.dma("0000:6b:02.0"));
    let (first, second) = (open(&first), open(&second));
    let container = container(&machine);
    enter(&first, &container);
    assert!(!container.has(Extension::UpdateVaddr), "no backend yet");
    container.set_iommu(Version::V2).unwrap();
    assert!(container.has(Extension::UpdateVaddr) && container.has(Extension::DmaCoherent));
    map(&machine, &container, 0x1000, 0x1000).unwrap();
    assert_eq!(invalidate(&container), Ok(0x1000));
    let twice = MapError::AlreadyInvalid { iova: 0x1000 };
    assert_eq!(invalidate(&container), Err(twice.into()));
    let file = || ContainerFile::Container(Arc::clone(&container));
    let invalid = ContainerError::AddressesInvalid { mappings: 1 };
    assert_eq!(second.set_container(file()), Err(invalid.into()));
    let update = |iova, size| {
        let mut request = map_at(iova, size);
        (request.prot, request.update) = (
            Prot {
                read: false,
                write: false,
            },
            true,
        );
        container.map::<Error>(Account::default(), &request, || unreachable!())
    };
    let bytes = |iova, size| AddrRange::from_len(iova, size).unwrap();
    let range = bytes(0x5000, 0x1000);
    assert_eq!(
        update(0x5000, 0x1000),
        Err(MapError::NotFound { range }.into())
    );
    let not_invalid = |range| Err(MapError::NotInvalid { range }.into());
    assert_eq!(update(0x1000, 0x2000), not_invalid(bytes(0x1000, 0x2000)));
    assert_eq!(update(0x1000, 0x1000), Ok(()));
    assert_eq!(update(0x1000, 0x1000), not_invalid(bytes(0x1000, 0x1000)));
    second.set_container(file()).unwrap();
}

#[test]
fn an_iommufd_in_the_place_of_a_container_gets_an_ioas_and_devices_one_by_one() {
    let machine = Machine::new();
    let parent = machine.dma(PARENT);
    let (child, _) = machine.child(&parent);
    let dma = machine.dma(PDEV);
    let (whole, _) = machine.whole(&dma);
    let context = Context::new(&machine.iommu);
    let (child_group, whole_group) = (open(&child), open(&whole));
    for group in [&child_group, &whole_group] {
        let file = ContainerFile::Iommufd(Arc::clone(&context));
        group.set_container(file).unwrap();
        assert!(group.status().unwrap().container_set);
    }
    let ioas = context.vfio_ioas().unwrap();
    assert!(dma.group().owner().is_none(), "claimed when it is opened");
    let child_file = child_group.open_device(b"").unwrap();
    let whole_file = whole_group.open_device(PDEV.as_bytes()).unwrap();
    assert!(dma.group().owner().is_some());
    assert_eq!(machine.iommu.paging_domains(), 1);

    // The group's file does not need to stay, nor to be set.
    whole_group.unset_container().unwrap();
    whole_group.close();
    assert!(whole_file.info().is_ok());
    let again = open(&whole);
    assert_eq!(
        again.open_device(PDEV.as_bytes()).unwrap_err(),
        no_container(&again).into()
    );
    again.close();
    let alone = whole.open().unwrap();
    assert_eq!(alone.bind(&context), Err(BindError::BoundElsewhere.into()));
    whole_file.close();
    child_file.close();
    assert!(dma.group().owner().is_none());
    context.destroy(ioas).unwrap();
    // Without an IOAS no device can be opened.
    let opened = child_group.open_device(b"");
    assert_eq!(
        opened.unwrap_err(),
        Error::Iommufd(OptionError::NoVfioIoas.into())
    );
    assert!(
        machine
            .take_journal()
            .ends_with(&["unbind, detached".to_owned()])
    );
}

#[test]
fn devices_of_one_iommu_group_come_and_go_together() {
    let machine = Machine::new();
    let first = machine.dma(PDEV);
    let mut config = DeviceConfig::new("0000:6b:01.1".parse().unwrap());
    config.group = Some(Arc::clone(first.group()));
    let second = machine.iommu.add_device(config).unwrap();
    let (one, _) = machine.whole(&first);
    let (two, model) = machine.whole(&second);
    assert!(Arc::ptr_eq(one.group(), two.group()));
    assert_eq!(machine.vfio.groups().len(), 1);
    let group = open(&one);
    let container = container(&machine);
    enter(&group, &container);
    container.set_iommu(Version::V2).unwrap();
    assert_eq!(machine.iommu.domains()[0].attachments().len(), 2);
    let file = group.open_device(b"0000:6b:01.1").unwrap();
    assert!(Arc::ptr_eq(file.device(), &two));
    drop((file, model));
}

#[test]
fn a_group_whose_devices_are_gone_says_so() {
    let machine = Machine::new();
    let (device, _) = machine.child(&machine.dma(PARENT));
    let group = open(&device);
    let container = container(&machine);
    enter(&group, &container);
    machine
        .vfio
        .remove(&device, std::time::Duration::ZERO)
        .unwrap();
    let number = device.group_number();
    let gone = GroupError::Gone { group: number };
    assert_eq!(group.status(), Err(gone.clone()));
    let file = ContainerFile::Container(container);
    assert_eq!(group.set_container(file), Err(gone.clone().into()));
    assert_eq!(group.open_device(b"").unwrap_err(), no_device(&group, ""));
    group.close();
    assert_eq!(device.group().open().unwrap_err(), gone);
    assert!(machine.vfio.group(device.group_number()).is_none());
}

#[test]
fn names_with_options_are_for_whole_devices_alone() {
    let machine = Machine::new();
    let name = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01";
    let parent = machine.dma(PARENT);
    let model = common::Example::new(&machine.journal);
    let passthrough = Passthrough::Child(machine.child_pasid(&parent, 1));
    let child = machine.vfio.add_named(name.to_owned(), model, passthrough);
    let group = open(&child);
    let container = container(&machine);
    enter(&group, &container);
    container.set_iommu(Version::V2).unwrap();
    let with_option = format!("{name} vf_token={name}");
    let opened = group.open_device(with_option.as_bytes());
    assert_eq!(opened.unwrap_err(), no_device(&group, &with_option));
    group.open_device(name.as_bytes()).unwrap();
    // Unless it is presented as a PCI function too.
    child.group().present_as("0000:70:00.0".to_owned());
    group.open_device(b"0000:70:00.0").unwrap();
    let option = DeviceNameError::Option {
        text: "x".to_owned(),
    };
    assert_eq!(
        group.open_device(b"0000:70:00.0 x").unwrap_err(),
        GroupError::from(option.clone()).into()
    );
    drop(group);

    let (whole, _) = machine.whole(&machine.dma(PDEV));
    let group = open(&whole);
    let token = DeviceNameError::Token(UuidError::Length(1));
    for (text, error) in [("x", option), ("vf_token=1", token)] {
        let opened = group.open_device(format!("{PDEV} {text}").as_bytes());
        assert_eq!(opened.unwrap_err(), GroupError::from(error).into());
    }
}
