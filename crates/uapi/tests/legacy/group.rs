//! Groups.

use std::time::Duration;

use ioasid_iommu::OwnerId;
use ioasid_uapi::{
    Errno,
    spec::{
        container::{SET_IOMMU, TYPE1V2_IOMMU},
        group::{GET_DEVICE_FD, GET_STATUS, SET_CONTAINER, UNSET_CONTAINER},
        vfio::{
            BindIommufd, DEVICE_ATTACH_IOMMUFD_PT, DEVICE_BIND_IOMMUFD, DEVICE_DETACH_IOMMUFD_PT,
            DEVICE_GET_INFO,
        },
    },
    vfio::device_ioctl,
};
use zerocopy::IntoBytes;

use super::{
    common::{BASE, SIZE},
    machine::{CLOSED, CONTAINER, FILE, FIRST_DEVICE, IOMMUFD, Machine, PDEV, UUID},
};

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

const PAST: u64 = BASE + SIZE as u64 - 3;

#[test]
fn status_tells_viable_and_whether_there_is_a_container() {
    let machine = Machine::new();
    let status = |argsz| {
        let result = machine.group(GET_STATUS, &words(&[argsz, 77]));
        result.map(|_| (machine.program.word(BASE), machine.program.word(BASE + 4)))
    };
    assert_eq!(status(8), Ok((8, 1)));
    assert_eq!(status(100), Ok((100, 1)), "a larger argsz is fine");
    assert_eq!(status(7), Err(Errno::EINVAL));
    assert_eq!(machine.group_at(GET_STATUS, PAST), Err(Errno::EFAULT));
    let stranger = machine.dma.group().claim_dma_owner(OwnerId::new()).unwrap();
    assert_eq!(status(8), Ok((8, 0)));
    drop(stranger);
    machine.set_container(CONTAINER).unwrap();
    assert_eq!(status(8), Ok((8, 3)));
    machine.group_at(UNSET_CONTAINER, 0).unwrap();
    machine.set_container(IOMMUFD).unwrap();
    assert_eq!(status(8), Ok((8, 3)));
    *machine.program.memory.writable.lock() = 4;
    assert_eq!(status(8), Err(Errno::EFAULT));
}

#[test]
fn set_container_checks_in_the_kernels_order() {
    let machine = Machine::new();
    assert_eq!(machine.group_at(SET_CONTAINER, PAST), Err(Errno::EFAULT));
    assert_eq!(machine.set_container(CLOSED), Err(Errno::EBADF));
    assert_eq!(machine.set_container(-1), Err(Errno::EBADF));
    assert_eq!(machine.set_container(FILE), Err(Errno::EBADFD));
    let stranger = machine.dma.group().claim_dma_owner(OwnerId::new()).unwrap();
    assert_eq!(machine.set_container(CONTAINER), Err(Errno::EPERM));
    assert_eq!(machine.set_container(IOMMUFD), Ok(0), "nothing is claimed");
    machine.group_at(UNSET_CONTAINER, 0).unwrap();
    drop(stranger);
    assert_eq!(machine.group_at(UNSET_CONTAINER, 0), Err(Errno::EINVAL));
    machine.set_container(CONTAINER).unwrap();
    assert_eq!(machine.set_container(CLOSED), Err(Errno::EBADF));
    for set in [CONTAINER, IOMMUFD, FILE] {
        assert_eq!(machine.set_container(set), Err(Errno::EINVAL), "{set}");
    }
}

#[test]
fn a_group_without_devices_is_enodev() {
    let machine = Machine::new();
    machine.vfio.remove(&machine.whole, Duration::ZERO).unwrap();
    assert_eq!(
        machine.group(GET_STATUS, &words(&[8, 0])),
        Err(Errno::ENODEV)
    );
    assert_eq!(machine.set_container(CONTAINER), Err(Errno::ENODEV));
    assert_eq!(machine.set_container(FILE), Err(Errno::ENODEV));
    let opened = machine.group(GET_DEVICE_FD, &name(PDEV));
    assert_eq!(opened, Err(Errno::ENODEV));
}

#[test]
fn a_device_is_opened_by_its_name() {
    let machine = Machine::new();
    let open = |text: &str| machine.group(GET_DEVICE_FD, &name(text));
    assert_eq!(
        machine.group_at(GET_DEVICE_FD, BASE - 1),
        Err(Errno::EFAULT)
    );
    assert_eq!(open("0000:6b:01.1"), Err(Errno::ENODEV));
    assert_eq!(open(UUID), Err(Errno::ENODEV), "of another group");
    assert_eq!(open(PDEV), Err(Errno::EINVAL), "no container");
    machine.set_container(CONTAINER).unwrap();
    assert_eq!(open(PDEV), Err(Errno::EINVAL), "no backend");
    machine.container_at(SET_IOMMU, TYPE1V2_IOMMU).unwrap();
    assert_eq!(open(PDEV), Ok(FIRST_DEVICE));
    assert_eq!(open(&format!("{PDEV} ")), Ok(FIRST_DEVICE + 1));
    for bad in ["x", "vf_token=", "vf_token=zz"] {
        assert_eq!(open(&format!("{PDEV} {bad}")), Err(Errno::EINVAL), "{bad}");
    }
    let unneeded = format!("{PDEV} vf_token={UUID}");
    assert_eq!(open(&unneeded), Err(Errno::EINVAL));
    let twice = format!("{unneeded} vf_token={UUID}");
    assert_eq!(open(&twice), Err(Errno::EINVAL));
    assert_eq!(machine.group_at(UNSET_CONTAINER, 0), Err(Errno::EBUSY));
    *machine.program.full.lock() = true;
    assert_eq!(open(PDEV), Err(Errno::EMFILE));
    let files = machine.program.devices.lock();
    assert!(files.iter().all(|file| file.is_bound()));
}

#[test]
fn a_name_is_at_most_a_page_with_its_end() {
    let machine = Machine::new();
    let long = |len: usize| {
        let mut bytes = vec![b'x'; len];
        bytes.push(0);
        machine.group(GET_DEVICE_FD, &bytes)
    };
    assert_eq!(long(4095), Err(Errno::ENODEV));
    assert_eq!(long(4096), Err(Errno::EINVAL));
    // At the very end of what can be read.
    let end = BASE + SIZE as u64 - 2;
    machine.program.put(end, b"x\0");
    assert_eq!(machine.group_at(GET_DEVICE_FD, end), Err(Errno::ENODEV));
    machine.program.put(end, b"xx");
    assert_eq!(machine.group_at(GET_DEVICE_FD, end), Err(Errno::EFAULT));
}

#[test]
fn a_device_of_a_group_cannot_be_bound_or_attached() {
    let machine = Machine::with_iommu(TYPE1V2_IOMMU);
    machine.group(GET_DEVICE_FD, &name(PDEV)).unwrap();
    let file = machine.program.devices.lock()[0].clone();
    let call = |cmd, bytes: &[u8]| {
        machine.program.put(BASE, bytes);
        device_ioctl(&file, cmd, BASE, &machine.program).map_err(Errno::from)
    };
    assert_eq!(call(DEVICE_GET_INFO, &words(&[16, 0, 0, 0])), Ok(0));
    for cmd in [DEVICE_ATTACH_IOMMUFD_PT, DEVICE_DETACH_IOMMUFD_PT] {
        assert_eq!(call(cmd, &words(&[12, 0, 1])), Err(Errno::ENOTTY));
    }
    let bind = words(&[16, 0, IOMMUFD as u32, 0]);
    assert_eq!(call(DEVICE_BIND_IOMMUFD, &bind), Err(Errno::EINVAL));
}

#[test]
fn a_file_of_its_own_is_ebusy_while_the_group_is_open_and_the_other_way_round() {
    let machine = Machine::new();
    let file = machine.whole.open().unwrap();
    let bind = |flags: u32, token: u64| {
        let request = BindIommufd {
            argsz: size_of::<BindIommufd>() as u32,
            flags,
            iommufd: IOMMUFD,
            token_uuid_ptr: token,
            ..BindIommufd::default()
        };
        machine.program.put(BASE, request.as_bytes());
        let bound = device_ioctl(&file, DEVICE_BIND_IOMMUFD, BASE, &machine.program);
        bound.map_err(Errno::from)
    };
    assert_eq!(bind(0, 0), Err(Errno::EBUSY));
    assert_eq!(
        bind(BindIommufd::TOKEN, 1),
        Err(Errno::EBUSY),
        "before the token"
    );
    machine.group.close();
    assert_eq!(bind(0, 0), Ok(0));
    let opened = machine.whole.group().open();
    assert_eq!(opened.map(drop).map_err(Errno::from), Err(Errno::EBUSY));
}

#[test]
fn an_mdev_is_opened_by_its_uuid_and_shares_the_container() {
    let machine = Machine::with_iommu(TYPE1V2_IOMMU);
    let set = machine.child(SET_CONTAINER, &CONTAINER.to_ne_bytes());
    assert_eq!(set, Ok(0));
    assert_eq!(
        machine.child(GET_DEVICE_FD, &name(PDEV)),
        Err(Errno::ENODEV)
    );
    assert_eq!(machine.child(GET_DEVICE_FD, &name(UUID)), Ok(FIRST_DEVICE));
    assert_eq!(machine.iommu.paging_domains(), 1);
    assert_eq!(machine.iommu.domains()[0].attachments().len(), 2);
}

#[test]
fn on_an_iommufd_a_device_is_claimed_when_it_is_opened() {
    let machine = Machine::new();
    machine.set_container(IOMMUFD).unwrap();
    let ioas = machine.program.context.vfio_ioas().unwrap();
    let stranger = machine.dma.group().claim_dma_owner(OwnerId::new()).unwrap();
    let open = || machine.group(GET_DEVICE_FD, &name(PDEV));
    assert_eq!(open(), Err(Errno::EPERM));
    drop(stranger);
    assert_eq!(open(), Ok(FIRST_DEVICE));
    machine.program.devices.lock().clear();
    machine.program.context.destroy(ioas).unwrap();
    assert_eq!(open(), Err(Errno::ENODEV), "there is no IOAS");
    assert_eq!(machine.set_container(IOMMUFD), Err(Errno::EINVAL));
    machine.group_at(UNSET_CONTAINER, 0).unwrap();
    machine.set_container(IOMMUFD).unwrap();
    assert_eq!(open(), Ok(FIRST_DEVICE));
}

#[test]
fn an_unknown_command_is_enotty() {
    let machine = Machine::new();
    for cmd in [0x3b64, 0x3b66, 0x3b6b, 0x3b70, 0x3b7f] {
        assert_eq!(machine.group_at(cmd, BASE), Err(Errno::ENOTTY), "{cmd:#x}");
    }
}
