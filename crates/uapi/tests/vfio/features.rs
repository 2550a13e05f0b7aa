//! FEATURE, IOEVENTFD, tokens at BIND, and the capabilities of GET_INFO.

use ioasid_uapi::{
    Errno,
    spec::vfio::{
        BindIommufd, DEVICE_BIND_IOMMUFD, DEVICE_FEATURE, DEVICE_GET_INFO, DEVICE_IOEVENTFD,
        DEVICE_RESET, Feature,
    },
};

use crate::{
    common::BASE,
    machine::{CLOSED, EVENTFD, FILE, IOMMUFD, Machine},
};

const SET: u32 = Feature::SET;
const PROBE: u32 = Feature::PROBE;

fn feature(machine: &Machine, flags: u32, data: &[u32]) -> Result<u64, Errno> {
    let argsz = 8 + 4 * data.len() as u32;
    machine.call(DEVICE_FEATURE, &[&[argsz, flags], data].concat())
}

#[test]
fn features_are_probed_whatever_the_size_and_set_with_their_data() {
    let machine = Machine::rich().bound();
    for number in [
        Feature::VF_TOKEN,
        Feature::LOW_POWER_ENTRY,
        Feature::LOW_POWER_ENTRY_WITH_WAKEUP,
        Feature::LOW_POWER_EXIT,
    ] {
        assert_eq!(feature(&machine, number | PROBE, &[]), Ok(0), "{number}");
        assert_eq!(feature(&machine, number | PROBE | SET, &[]), Ok(0));
        for refused in [Feature::GET | PROBE, Feature::GET, 0, SET | Feature::GET] {
            let found = feature(&machine, number | refused, &[0; 4]);
            assert_eq!(found, Err(Errno::EINVAL), "{number} {refused:#x}");
        }
    }
    let short = feature(&machine, Feature::VF_TOKEN | SET, &[0; 3]);
    assert_eq!(short, Err(Errno::EINVAL));
    assert_eq!(feature(&machine, Feature::VF_TOKEN | SET, &[0; 4]), Ok(0));
    let wakeup = Feature::LOW_POWER_ENTRY_WITH_WAKEUP | SET;
    assert_eq!(feature(&machine, wakeup, &[0]), Err(Errno::EINVAL));
}

#[test]
fn features_without_a_driver_of_their_own_are_enotty() {
    let machine = Machine::rich().bound();
    for number in [1, 2, 9, 10, 11, 13, 0xffff] {
        for flags in [PROBE | Feature::GET, PROBE | SET, SET, 0] {
            let found = feature(&machine, number | flags, &[0; 4]);
            assert_eq!(found, Err(Errno::ENOTTY), "{number} {flags:#x}");
        }
    }
    let precopy = feature(&machine, 12 | PROBE | SET, &[]);
    assert_eq!(precopy, Err(Errno::EINVAL));
    for machine in [Machine::child().bound(), Machine::emulated().bound()] {
        for number in [0, 3, 4, 5] {
            let found = feature(&machine, number | PROBE | SET, &[]);
            assert_eq!(found, Err(Errno::ENOTTY), "{number}");
        }
    }
    let plain = Machine::whole().bound();
    let token = feature(&plain, Feature::VF_TOKEN | SET, &[0; 4]);
    assert_eq!(token, Err(Errno::ENOTTY), "no physical function");
}

#[test]
fn low_power_is_entered_once_and_left_by_use_if_there_is_an_eventfd() {
    let machine = Machine::rich().bound();
    machine.file.device().set_mappable(true);
    let entry = Feature::LOW_POWER_ENTRY | SET;
    let wakeup = Feature::LOW_POWER_ENTRY_WITH_WAKEUP | SET;
    let exit = Feature::LOW_POWER_EXIT | SET;
    let faults = || machine.file.mapped_read(0, &mut [0; 4]).is_err();
    assert_eq!(feature(&machine, entry, &[]), Ok(0));
    assert!(faults());
    assert_eq!(feature(&machine, entry, &[]), Err(Errno::EINVAL));
    let taken = feature(&machine, wakeup, &[EVENTFD as u32, 0]);
    assert_eq!(taken, Err(Errno::EINVAL));
    machine.file.read(0, &mut [0; 4]).unwrap();
    assert!(faults(), "it sleeps again after a read");
    assert_eq!(feature(&machine, exit, &[]), Ok(0));
    assert_eq!(feature(&machine, exit, &[]), Ok(0), "nothing to do");
    assert!(!faults());

    for (fd, errno) in [
        (-1, Errno::EINVAL),
        (CLOSED, Errno::EBADF),
        (FILE, Errno::EINVAL),
    ] {
        let found = feature(&machine, wakeup, &[fd as u32, 0]);
        assert_eq!(found, Err(errno), "{fd}");
    }
    assert_eq!(feature(&machine, wakeup, &[EVENTFD as u32, 0]), Ok(0));
    assert!(faults());
    assert_eq!(
        machine.program.eventfds[0].count(),
        0,
        "a mapping wakes nobody"
    );
    assert_eq!(machine.at(0x3bff, 0), Err(Errno::ENOTTY));
    assert_eq!(
        machine.program.eventfds[0].count(),
        1,
        "a use, if a vain one"
    );
    assert!(!faults());
    assert_eq!(feature(&machine, entry, &[]), Ok(0));
    machine.file.close();
}

#[test]
fn a_token_is_needed_where_there_are_virtual_functions_and_nowhere_else() {
    let bind = |machine: &Machine, flags: u32, token: u64| {
        let words = [
            24,
            flags,
            IOMMUFD as u32,
            0,
            token as u32,
            (token >> 32) as u32,
        ];
        machine.call(DEVICE_BIND_IOMMUFD, &words)
    };
    let token = BASE + 0x100;
    assert_eq!(
        bind(&Machine::whole(), BindIommufd::TOKEN, 8),
        Err(Errno::EFAULT)
    );
    let unneeded = bind(&Machine::whole(), BindIommufd::TOKEN, token);
    assert_eq!(unneeded, Err(Errno::EINVAL));
    for child in [Machine::child(), Machine::emulated()] {
        let unread = bind(&child, BindIommufd::TOKEN, 8);
        assert_eq!(unread, Err(Errno::EINVAL));
    }
    assert_eq!(bind(&Machine::rich(), 0, 0), Ok(0));
    assert_eq!(bind(&Machine::rich(), BindIommufd::TOKEN, token), Ok(0));
    assert_eq!(bind(&Machine::rich(), 2, token), Err(Errno::EINVAL));
}

#[test]
fn an_eventfd_makes_stores_until_it_is_taken_back() {
    let machine = Machine::rich().bound();
    let call = |size: u32, offset: u64, data: u64, fd: i32| {
        let (low, high) = (|x: u64| x as u32, |x: u64| (x >> 32) as u32);
        let words = [
            32,
            size,
            low(offset),
            high(offset),
            low(data),
            high(data),
            fd as u32,
            0,
        ];
        machine.call(DEVICE_IOEVENTFD, &words)
    };
    let portal = 2 << 40;
    for (size, offset, fd) in [
        (0, portal, EVENTFD),
        (3, portal, EVENTFD),
        (16, portal, EVENTFD),
        (4, portal, -2),
        (8, portal, EVENTFD),
        (4, 7 << 40, EVENTFD),
        (4, 9 << 40, EVENTFD),
        (4, 1 << 40, EVENTFD),
        (4, portal + 0x3ffd, EVENTFD),
        (4, 0x2000, EVENTFD),
        (4, 0x1ffe, EVENTFD),
        (4, 0x203c, EVENTFD),
        (4, portal, FILE),
    ] {
        let found = call(size, offset, 1, fd);
        assert_eq!(found, Err(Errno::EINVAL), "{size} {offset:#x} {fd}");
    }
    assert_eq!(call(4, portal, 1, -1), Err(Errno::ENODEV));
    assert_eq!(call(4, portal, 1, CLOSED), Err(Errno::EBADF));
    let short = machine.call(DEVICE_IOEVENTFD, &[27, 4, 0, 2 << 8, 0, 0, 0, 0]);
    assert_eq!(short, Err(Errno::EINVAL));

    assert_eq!(call(2, portal + 6, 0xffff_1234, EVENTFD), Ok(0));
    assert_eq!(
        call(2, portal + 6, 0xffff_1234, EVENTFD + 1),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        call(2, portal + 6, 0x1234, EVENTFD + 1),
        Ok(0),
        "other data"
    );
    let (_, listener) = machine.program.listeners.lock()[0].clone();
    listener.signal();
    assert_eq!(machine.stores(), [(2, 6, vec![0x34, 0x12])]);
    machine.file.write((7 << 40) + 4, &[0, 0]).unwrap();
    listener.signal();
    assert_eq!(machine.stores(), [], "memory that does not answer");
    machine.file.write((7 << 40) + 4, &[2, 0]).unwrap();
    assert_eq!(machine.at(DEVICE_RESET, 0), Ok(0));
    listener.signal();
    assert_eq!(machine.stores().len(), 1, "a reset takes nothing back");
    assert_eq!(call(2, portal + 6, 0xffff_1234, -1), Ok(0));
    listener.signal();
    assert_eq!(machine.stores(), []);
    let (_, other) = machine.program.listeners.lock()[1].clone();
    machine.file.close();
    other.signal();
    assert_eq!(machine.stores(), [], "nothing after the close");
}

#[test]
fn there_are_a_thousand_ioeventfds_at_most() {
    let machine = Machine::rich().bound();
    let call = |data: u32| {
        let words = [32, 4, 0, 2 << 8, data, 0, EVENTFD as u32, 0];
        machine.call(DEVICE_IOEVENTFD, &words)
    };
    for data in 0..1000 {
        assert_eq!(call(data), Ok(0));
    }
    assert_eq!(call(1000), Err(Errno::ENOSPC));
}

#[test]
fn get_info_tells_of_atomic_operations_where_there_is_room() {
    let machine = Machine::rich().bound();
    let info = |argsz: u32| {
        machine
            .call(DEVICE_GET_INFO, &[argsz, 0, 0, 0, 9, 9, 9, 9, 9, 9])
            .unwrap();
        machine.words::<10>()
    };
    assert_eq!(info(16), [40, 0x83, 9, 5, 9, 9, 9, 9, 9, 9]);
    assert_eq!(info(24), [40, 0x83, 9, 5, 0, 0, 9, 9, 9, 9]);
    let cap = 1 << 16 | 5;
    assert_eq!(info(40), [40, 0x83, 9, 5, 24, 0, cap, 0, 5, 0]);
}

#[test]
fn a_state_without_a_free_descriptor_is_entered_and_told_without_one() {
    let machine = Machine::movable().bound();
    let state = |machine: &Machine| -> [u32; 2] {
        feature(machine, Feature::MIG_DEVICE_STATE | Feature::GET, &[7, 7]).unwrap();
        machine.words::<4>()[2..].try_into().unwrap()
    };
    assert_eq!(state(&machine), [2, u32::MAX]);
    // As in Linux, the descriptor is made when the device is there already.
    for to in [3, 4] {
        let set = Feature::MIG_DEVICE_STATE | SET;
        assert_eq!(feature(&machine, set, &[to, 7]), Err(Errno::EMFILE));
        assert_eq!(machine.words::<4>()[2..], [to, u32::MAX]);
        assert_eq!(state(&machine), [to, u32::MAX]);
        assert_eq!(feature(&machine, set, &[to, 7]), Ok(0), "it is there");
        assert_eq!(feature(&machine, set, &[1, 7]), Ok(0));
        assert_eq!(feature(&machine, set, &[0, 7]), Err(Errno::EINVAL));
        assert_eq!(machine.words::<4>()[2..], [0, u32::MAX]);
    }
    for number in [1, 2, 9] {
        assert_eq!(feature(&machine, number | PROBE, &[]), Ok(0));
        let short = feature(&machine, number | Feature::GET, &[0]);
        assert_eq!(short, Err(Errno::EINVAL), "{number}");
    }
}
