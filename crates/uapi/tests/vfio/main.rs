//! The ioctls, reads and writes of a VFIO device, as a program sees them.

#[path = "../common/mod.rs"]
mod common;
mod features;
mod interrupts;
mod logging;
mod machine;
mod robustness;
mod wire;

use common::{BASE, SIZE};
use ioasid_uapi::{
    Errno,
    iommufd::COMMANDS,
    spec::vfio::{
        AttachIommufdPt, BindIommufd, DEVICE_ATTACH_IOMMUFD_PT, DEVICE_BIND_IOMMUFD,
        DEVICE_DETACH_IOMMUFD_PT, DEVICE_FEATURE, DEVICE_GET_INFO, DEVICE_GET_IRQ_INFO,
        DEVICE_GET_PCI_HOT_RESET_INFO, DEVICE_GET_REGION_INFO, DEVICE_IOEVENTFD,
        DEVICE_PCI_HOT_RESET, DEVICE_RESET, DEVICE_SET_IRQS, Feature, IrqSet,
    },
};
use machine::{CLOSED, EVENTFD, FILE, IOMMUFD, Machine};

const ALL: [u32; 11] = [
    DEVICE_GET_INFO,
    DEVICE_GET_REGION_INFO,
    DEVICE_GET_IRQ_INFO,
    DEVICE_SET_IRQS,
    DEVICE_RESET,
    DEVICE_GET_PCI_HOT_RESET_INFO,
    DEVICE_PCI_HOT_RESET,
    DEVICE_FEATURE,
    DEVICE_BIND_IOMMUFD,
    DEVICE_ATTACH_IOMMUFD_PT,
    DEVICE_DETACH_IOMMUFD_PT,
];

/// The last address from which a struct of `len` bytes cannot be read.
const fn past_the_end(len: usize) -> u64 {
    BASE + (SIZE - len) as u64 + 1
}

#[test]
fn before_bind_every_command_is_einval_even_an_unknown_one() {
    let machine = Machine::whole();
    for cmd in ALL.into_iter().filter(|cmd| *cmd != DEVICE_BIND_IOMMUFD) {
        assert_eq!(machine.at(cmd, 0), Err(Errno::EINVAL), "{cmd:#x}");
    }
    assert_eq!(machine.at(0x3b00, 0), Err(Errno::EINVAL));
    let machine = machine.bound();
    for unknown in [0x3b00, 0x3b64, 0x3b80, 0x3b73, 0x3bff, 0, u32::MAX] {
        assert_eq!(machine.at(unknown, 0), Err(Errno::ENOTTY), "{unknown:#x}");
    }
}

#[test]
fn a_struct_that_cannot_be_read_is_efault_and_a_short_one_einval() {
    let machine = Machine::whole().bound();
    for (cmd, len) in [
        (DEVICE_GET_INFO, 16),
        (DEVICE_GET_REGION_INFO, 32),
        (DEVICE_GET_IRQ_INFO, 16),
        (DEVICE_SET_IRQS, 20),
        (DEVICE_GET_PCI_HOT_RESET_INFO, 12),
        (DEVICE_PCI_HOT_RESET, 12),
        (DEVICE_IOEVENTFD, 28),
        (DEVICE_FEATURE, 8),
        (DEVICE_ATTACH_IOMMUFD_PT, 12),
        (DEVICE_DETACH_IOMMUFD_PT, 8),
    ] {
        for address in [0, past_the_end(len), u64::MAX] {
            assert_eq!(machine.at(cmd, address), Err(Errno::EFAULT), "{cmd:#x}");
        }
        // Before anything else in it is looked at.
        for (argsz, rest) in (0..len as u32).flat_map(|argsz| [(argsz, 0), (argsz, 1)]) {
            let mut short = [rest; 10];
            short[0] = argsz;
            let refused = machine.call(cmd, &short);
            assert_eq!(refused, Err(Errno::EINVAL), "{cmd:#x} {argsz}");
        }
    }
}

#[test]
fn bind_checks_in_the_kernels_order() {
    let machine = Machine::whole();
    let bind = |words: &[u32]| machine.call(DEVICE_BIND_IOMMUFD, words);
    let fd = IOMMUFD as u32;
    assert_eq!(machine.at(DEVICE_BIND_IOMMUFD, 0), Err(Errno::EFAULT));
    assert_eq!(bind(&[15, 0, fd, 0]), Err(Errno::EINVAL));
    let tail = |last| [32, 0, fd, 0, 0, 0, 0, last];
    assert_eq!(bind(&tail(1)), Err(Errno::E2BIG));
    assert_eq!(bind(&[u32::MAX, 0, fd, 0, 0, 0, 0, 0]), Err(Errno::EFAULT));
    assert_eq!(bind(&[16, 0, -1_i32 as u32, 0]), Err(Errno::EINVAL));
    assert_eq!(bind(&[16, 2, fd, 0]), Err(Errno::EINVAL));
    let token = |pointer: u32| [24, BindIommufd::TOKEN, CLOSED as u32, 0, pointer, 0];
    assert_eq!(bind(&token(0)), Err(Errno::EFAULT));
    assert_eq!(bind(&token(BASE as u32)), Err(Errno::EINVAL));
    assert_eq!(bind(&[16, 0, CLOSED as u32, 0]), Err(Errno::EBADF));
    assert_eq!(bind(&[16, 0, FILE as u32, 0]), Err(Errno::EBADFD));

    assert_eq!(bind(&tail(0)), Ok(0));
    let [argsz, flags, iommufd, devid] = machine.words();
    assert_eq!((argsz, flags, iommufd), (32, 0, fd));
    assert_ne!(devid, 0);
    assert_eq!(
        bind(&[16, 0, CLOSED as u32, 0]),
        Err(Errno::EINVAL),
        "bound"
    );
    assert_eq!(bind(&[16, 0, -1_i32 as u32, 0]), Err(Errno::EINVAL));
}

#[test]
fn a_device_in_its_drivers_hands_is_eperm_and_its_child_is_not() {
    let machine = Machine::whole();
    let driver = machine.dma.use_dma_api().unwrap();
    let words = [16, 0, IOMMUFD as u32, 0];
    let refused = machine.call(DEVICE_BIND_IOMMUFD, &words);
    assert_eq!(refused, Err(Errno::EPERM));
    drop(driver);
    assert_eq!(machine.call(DEVICE_BIND_IOMMUFD, &words), Ok(0));

    let machine = Machine::child();
    let _driver = machine.dma.use_dma_api().unwrap();
    assert_eq!(machine.call(DEVICE_BIND_IOMMUFD, &words), Ok(0));
}

#[test]
fn a_bind_whose_answer_is_lost_is_undone() {
    let machine = Machine::whole();
    *machine.program.memory.writable.lock() = 0;
    let words = [16, 0, IOMMUFD as u32, 0];
    let lost = machine.call(DEVICE_BIND_IOMMUFD, &words);
    assert_eq!(lost, Err(Errno::EFAULT));
    assert!(!machine.file.is_bound());
    *machine.program.memory.writable.lock() = SIZE;
    assert_eq!(machine.call(DEVICE_BIND_IOMMUFD, &words), Ok(0));
}

#[test]
fn attach_writes_the_page_table_and_nothing_else() {
    let machine = Machine::whole().bound();
    let ioas = machine.program.context.ioas_alloc().unwrap().get();
    assert_eq!(
        machine.call(DEVICE_ATTACH_IOMMUFD_PT, &[12, 0, ioas, 77]),
        Ok(0)
    );
    let [argsz, flags, table, after] = machine.words();
    assert_eq!((argsz, flags, after), (12, 0, 77));
    assert!(table != 0 && table != ioas);
    let attach = |words: &[u32]| machine.call(DEVICE_ATTACH_IOMMUFD_PT, words);
    assert_eq!(attach(&[12, 2, ioas]), Err(Errno::EINVAL));
    assert_eq!(attach(&[12, 0, u32::MAX]), Err(Errno::ENOENT));
    let [_, _, id] = machine.words();
    assert_eq!(id, u32::MAX, "a refused attach writes nothing");
    let pasid = AttachIommufdPt::PASID;
    assert_eq!(attach(&[12, pasid, ioas, 1]), Err(Errno::EINVAL), "no room");
    assert_eq!(attach(&[16, pasid, ioas, 1]), Err(Errno::EINVAL), "an IOAS");
    let detach = |words: &[u32]| machine.call(DEVICE_DETACH_IOMMUFD_PT, words);
    assert_eq!(detach(&[8, 2]), Err(Errno::EINVAL));
    assert_eq!(detach(&[8, pasid]), Err(Errno::EINVAL), "no room");
    assert_eq!(detach(&[8, 0]), Ok(0));
    assert_eq!(detach(&[8, 0]), Ok(0), "nothing attached");
}

/// VFIO keeps a record of each way by itself, and undoes only what went by the same.
#[test]
fn pasid_0_is_the_device_itself_by_another_way() {
    let machine = Machine::whole().bound();
    let ioas = || machine.program.context.ioas_alloc().unwrap().get();
    let (one, other) = (ioas(), ioas());
    let pasid = AttachIommufdPt::PASID;
    let attach = |words: &[u32]| machine.call(DEVICE_ATTACH_IOMMUFD_PT, words);
    let detach = |words: &[u32]| machine.call(DEVICE_DETACH_IOMMUFD_PT, words);
    let attached = || {
        let attachments = machine.dma.attachments();
        attachments
            .iter()
            .any(|(_, domain)| domain.kind().is_paging())
    };
    assert_eq!(attach(&[16, pasid, one, 0]), Ok(0));
    let [_, _, table] = machine.words();
    assert!(attached() && table != one);
    assert_eq!(attach(&[12, 0, one]), Err(Errno::EBUSY));
    assert_eq!(attach(&[12, 0, u32::MAX]), Err(Errno::ENOENT));
    assert_eq!(detach(&[8, 0]), Ok(0), "not attached in this way");
    assert!(attached());
    assert_eq!(attach(&[16, pasid, other, 0]), Ok(0), "replaced");
    assert_eq!(detach(&[12, pasid, 0]), Ok(0));
    assert!(!attached());
    assert_eq!(detach(&[12, pasid, 0]), Ok(0), "nothing attached");

    assert_eq!(attach(&[12, 0, one]), Ok(0));
    for pt_id in [one, other] {
        assert_eq!(attach(&[16, pasid, pt_id, 0]), Err(Errno::EBUSY));
    }
    assert_eq!(detach(&[12, pasid, 0]), Ok(0), "not attached in this way");
    assert!(attached());
    assert_eq!(attach(&[12, 0, other]), Ok(0), "replaced");
    assert_eq!(detach(&[8, 0]), Ok(0));
    assert!(!attached());

    // A file that is closed detaches either.
    assert_eq!(attach(&[16, pasid, one, 0]), Ok(0));
    machine.file.unbind();
    assert!(!attached());
}

#[test]
fn the_size_of_a_pasid_is_looked_at_before_its_bytes() {
    let machine = Machine::whole().bound();
    let pasid = AttachIommufdPt::PASID;
    for (request, least) in [
        (DEVICE_ATTACH_IOMMUFD_PT, 12),
        (DEVICE_DETACH_IOMMUFD_PT, 8),
    ] {
        let at = BASE + SIZE as u64 - u64::from(least);
        let call = |argsz| {
            machine.program.put(at, &[argsz, pasid]);
            machine.at(request, at)
        };
        assert_eq!(call(least), Err(Errno::EINVAL));
        assert_eq!(call(least + 4), Err(Errno::EFAULT));
    }
}

#[test]
fn an_attach_whose_answer_is_lost_is_undone() {
    let machine = Machine::whole().bound();
    let ioas = machine.program.context.ioas_alloc().unwrap().get();
    *machine.program.memory.writable.lock() = 0;
    let lost = machine.call(DEVICE_ATTACH_IOMMUFD_PT, &[12, 0, ioas]);
    assert_eq!(lost, Err(Errno::EFAULT));
    let paging = machine.dma.attachments();
    assert!(paging.iter().all(|(_, domain)| !domain.kind().is_paging()));
}

#[test]
fn a_child_takes_no_pasid_whatever_the_size() {
    let machine = Machine::child().bound();
    let pasid = AttachIommufdPt::PASID;
    for argsz in [12, 16] {
        let attach = machine.call(DEVICE_ATTACH_IOMMUFD_PT, &[argsz, pasid, 1, 1]);
        assert_eq!(attach, Err(Errno::EOPNOTSUPP));
    }
    let detach = machine.call(DEVICE_DETACH_IOMMUFD_PT, &[8, pasid]);
    assert_eq!(detach, Err(Errno::EOPNOTSUPP));
}

/// As the kernel's mtty answers.
#[test]
fn an_emulated_device_is_an_access_object_to_iommufd() {
    let machine = Machine::emulated();
    let words = [16, 0, IOMMUFD as u32, 0];
    assert_eq!(machine.call(DEVICE_BIND_IOMMUFD, &words), Ok(0));
    let [.., id] = machine.words::<4>();
    let context = &machine.program.context;
    let iommufd = |name: &str, words: &[u32]| {
        let command = COMMANDS.iter().find(|command| command.name == name);
        machine.program.put(BASE, words);
        let request = command.unwrap().request;
        let done = ioasid_uapi::iommufd::ioctl(context, request, BASE, &machine.program);
        done.map_err(Errno::from)
    };
    let info = [40, 0, id, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(iommufd("GET_HW_INFO", &info), Err(Errno::ENOENT));
    let ioas = context.ioas_alloc().unwrap().get();
    let hwpt = [48, 0, id, ioas, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(iommufd("HWPT_ALLOC", &hwpt), Err(Errno::ENOENT));
    assert_eq!(iommufd("DESTROY", &[8, id]), Err(Errno::EBUSY));

    let attach = |words: &[u32]| machine.call(DEVICE_ATTACH_IOMMUFD_PT, words);
    assert_eq!(attach(&[12, 0, id]), Err(Errno::ENOENT), "no IOAS");
    assert_eq!(attach(&[12, 0, ioas]), Ok(0));
    let [_, _, table] = machine.words();
    assert_eq!(table, ioas, "there is no page table to name");
    let pasid = AttachIommufdPt::PASID;
    assert_eq!(attach(&[16, pasid, ioas, 1]), Err(Errno::EOPNOTSUPP));
    // struct iommu_ioas_iova_ranges: size, id, number, reserved, address, alignment.
    let ranges = [32, ioas, 1, 0, BASE as u32 + 0x100, 0, 0, 0];
    assert_eq!(iommufd("IOAS_IOVA_RANGES", &ranges), Ok(0));
    let range: [u32; 4] =
        std::array::from_fn(|at| machine.program.word(BASE + 0x100 + 4 * at as u64));
    assert_eq!(range, [0, 0, u32::MAX, u32::MAX], "nothing is reserved");
    assert_eq!(machine.call(DEVICE_DETACH_IOMMUFD_PT, &[8, 0]), Ok(0));
    machine.file.close();
    assert_eq!(iommufd("DESTROY", &[8, id]), Err(Errno::ENOENT));
}

#[test]
fn get_info_writes_what_there_is_room_for() {
    let machine = Machine::whole().bound();
    let fresh = [0, 9, 9, 9, 9, 9];
    for (argsz, expected) in [
        (16, [16, 3, 9, 5, 9, 9]),
        (20, [20, 3, 9, 5, 0, 9]),
        (24, [24, 3, 9, 5, 0, 0]),
        (100, [100, 3, 9, 5, 0, 0]),
    ] {
        let mut words = fresh;
        words[0] = argsz;
        assert_eq!(machine.call(DEVICE_GET_INFO, &words), Ok(0));
        assert_eq!(machine.words(), expected);
    }
}

#[test]
fn region_info_knows_nine_regions() {
    let machine = Machine::whole().bound();
    let info = |index| {
        let done = machine.call(DEVICE_GET_REGION_INFO, &[32, 9, index, 9, 9, 9, 9, 9]);
        let [argsz, flags, _, cap, size, size_high, offset, offset_high] = machine.words();
        assert!(done.is_err() || (size_high, offset) == (0, 0));
        done.map(|_| (argsz, flags, cap, size, offset_high))
    };
    assert_eq!(info(0), Ok((32, 3, 9, 0x4000, 0)));
    assert_eq!(info(1), Ok((32, 0, 9, 0, 1 << 8)), "absent");
    assert_eq!(info(2), Ok((32, 3, 9, 0x4000, 2 << 8)));
    assert_eq!(info(6), Ok((32, 0, 9, 0, 6 << 8)), "no ROM");
    assert_eq!(info(7), Ok((32, 3, 9, 4096, 7 << 8)));
    assert_eq!(info(8), Err(Errno::EINVAL), "no VGA");
    assert_eq!(info(9), Err(Errno::EINVAL));
    assert_eq!(info(u32::MAX), Err(Errno::EINVAL));
}

#[test]
fn region_info_grows_for_its_capabilities() {
    let machine = Machine::whole().bound();
    machine.file.device().set_mappable(true);
    let call = |argsz| {
        let words = [argsz, 0, 0, 9, 0, 0, 0, 0, 9, 9];
        assert_eq!(machine.call(DEVICE_GET_REGION_INFO, &words), Ok(0));
        machine.words::<10>()
    };
    assert_eq!(call(32), [40, 15, 0, 0, 0x4000, 0, 0, 0, 9, 9]);
    assert_eq!(call(40), [40, 15, 0, 32, 0x4000, 0, 0, 0, 1 << 16 | 3, 0]);
    let bar2 = [32, 0, 2, 9, 0, 0, 0, 0];
    assert_eq!(machine.call(DEVICE_GET_REGION_INFO, &bar2), Ok(0));
    assert_eq!(machine.words::<4>(), [32, 7, 2, 9], "no MSI-X there");
}

#[test]
fn irq_info_knows_five_indexes() {
    let machine = Machine::whole().bound();
    let info = |index| {
        let done = machine.call(DEVICE_GET_IRQ_INFO, &[16, 0, index, 0]);
        let [_, flags, _, count] = machine.words();
        done.map(|_| (flags, count))
    };
    assert_eq!(info(0), Ok((7, 0)));
    assert_eq!(info(1), Ok((9, 0)));
    assert_eq!(info(2), Ok((1, 4)));
    assert_eq!(info(3), Ok((9, 1)));
    assert_eq!(info(4), Ok((9, 1)));
    assert_eq!(info(5), Err(Errno::EINVAL));
}

#[test]
fn set_irqs_checks_in_the_kernels_order() {
    const MSIX: u32 = 2;
    let (none, bool_, fd) = (IrqSet::DATA_NONE, IrqSet::DATA_BOOL, IrqSet::DATA_EVENTFD);
    let trigger = IrqSet::ACTION_TRIGGER;
    let machine = Machine::whole().bound();
    let set = |words: &[u32]| machine.call(DEVICE_SET_IRQS, words);
    for (words, expected) in [
        ([20, none | trigger, 5, 0, 1], Errno::EINVAL),
        ([20, none | trigger, MSIX, 0, u32::MAX], Errno::EINVAL),
        ([20, none | trigger, MSIX, u32::MAX, 0], Errno::EINVAL),
        ([20, none | trigger | 64, MSIX, 0, 1], Errno::EINVAL),
        ([20, none | trigger, MSIX, 4, 0], Errno::EINVAL),
        ([20, none | trigger, MSIX, 1, 4], Errno::EINVAL),
        ([20, trigger, MSIX, 0, 1], Errno::EINVAL),
        ([20, none | bool_ | trigger, MSIX, 0, 1], Errno::EINVAL),
        ([20, bool_ | trigger, MSIX, 0, 1], Errno::EINVAL),
        ([23, fd | trigger, MSIX, 0, 1], Errno::EINVAL),
        ([20, none, MSIX, 0, 1], Errno::ENOTTY),
        ([20, none | IrqSet::ACTION_MASK, MSIX, 0, 1], Errno::ENOTTY),
        (
            [20, none | trigger | IrqSet::ACTION_MASK, MSIX, 0, 1],
            Errno::ENOTTY,
        ),
        ([20, none | trigger, MSIX, 0, 1], Errno::EINVAL),
        ([20, none | trigger, 0, 0, 0], Errno::EINVAL),
        ([20, fd | trigger, MSIX, 0, 0], Errno::ERANGE),
    ] {
        assert_eq!(set(&words), Err(expected), "{words:?}");
    }
    let with = |data: i32| set(&[24, fd | trigger, MSIX, 0, 1, data as u32]);
    assert_eq!(with(CLOSED), Err(Errno::EBADF));
    assert_eq!(with(FILE), Err(Errno::EINVAL));
    machine
        .program
        .put(past_the_end(20) - 1, &[24, fd | trigger, MSIX, 0, 1]);
    let past = machine.at(DEVICE_SET_IRQS, past_the_end(20) - 1);
    assert_eq!(past, Err(Errno::EFAULT), "the data");
}

#[test]
fn eventfds_fire_by_loopback_exactly_once() {
    let machine = Machine::whole().bound();
    let fire = [20, IrqSet::DATA_NONE | IrqSet::ACTION_TRIGGER, 2, 1, 1];
    let connect = IrqSet::DATA_EVENTFD | IrqSet::ACTION_TRIGGER;
    let fds = [28, connect, 2, 0, 2, -1_i32 as u32, EVENTFD as u32];
    assert_eq!(machine.call(DEVICE_SET_IRQS, &fds), Ok(0));
    assert_eq!(machine.call(DEVICE_SET_IRQS, &fire), Ok(0));
    assert_eq!(machine.program.eventfds[0].count(), 1);
    let bools = [
        22,
        IrqSet::DATA_BOOL | IrqSet::ACTION_TRIGGER,
        2,
        0,
        2,
        0x0100,
    ];
    assert_eq!(machine.call(DEVICE_SET_IRQS, &bools), Ok(0));
    assert_eq!(machine.program.eventfds[0].count(), 2);
    let off = [20, fire[1], 2, 0, 0];
    assert_eq!(machine.call(DEVICE_SET_IRQS, &off), Ok(0));
    assert_eq!(machine.call(DEVICE_SET_IRQS, &fire), Err(Errno::EINVAL));
}

#[test]
fn there_are_no_features_and_no_bus_resets() {
    let machine = Machine::whole().bound();
    let feature = |flags| machine.call(DEVICE_FEATURE, &[8, flags]);
    let both = Feature::GET | Feature::SET;
    assert_eq!(feature(1 << 19), Err(Errno::EINVAL));
    assert_eq!(feature(both), Err(Errno::EINVAL));
    for flags in [
        both | Feature::PROBE,
        Feature::GET | 1,
        0,
        Feature::PROBE | 0xffff,
    ] {
        assert_eq!(feature(flags), Err(Errno::ENOTTY), "{flags:#x}");
    }
    let info = machine.call(DEVICE_GET_PCI_HOT_RESET_INFO, &[12, 0, 0]);
    assert_eq!(info, Err(Errno::ENODEV));
    let reset = |words: &[u32]| machine.call(DEVICE_PCI_HOT_RESET, words);
    assert_eq!(reset(&[12, 1, 0]), Err(Errno::EINVAL));
    assert_eq!(reset(&[16, 0, 1, 3]), Err(Errno::EINVAL), "groups");
    assert_eq!(reset(&[12, 0, 0]), Err(Errno::ENODEV));
    assert_eq!(machine.at(DEVICE_RESET, 0), Ok(0));
}

#[test]
fn reads_and_writes_answer_with_errnos() {
    use ioasid_uapi::vfio;
    let pread = |file: &_, at, bytes: &mut [u8]| {
        let read = vfio::pread(file, at, bytes);
        read.map_err(Errno::from)
    };
    let pwrite = |file: &_, at, bytes: &[u8]| {
        let written = vfio::pwrite(file, at, bytes);
        written.map_err(Errno::from)
    };
    let machine = Machine::whole();
    let file = &machine.file;
    assert_eq!(pread(file, 0, &mut [0; 8]), Err(Errno::EINVAL), "unbound");
    let machine = machine.bound();
    let file = &machine.file;
    const CONFIG: u64 = 7 << 40;
    assert_eq!(pread(file, CONFIG, &mut [0; 4]), Ok(4));
    assert_eq!(pread(file, CONFIG + 4094, &mut [0; 4]), Err(Errno::EFAULT));
    assert_eq!(pread(file, 0x4000, &mut [0; 4]), Err(Errno::EINVAL));
    assert_eq!(pwrite(file, 9 << 40, &[0; 4]), Err(Errno::EINVAL));
    assert_eq!(pwrite(file, CONFIG + 4, &[0; 2]), Ok(2));
    assert_eq!(pread(file, 0, &mut [0; 8]), Err(Errno::EIO));
}
