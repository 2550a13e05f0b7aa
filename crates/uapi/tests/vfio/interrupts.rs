//! SET_IRQS on the indexes that not every device has: INTx and MSI.

use ioasid_uapi::{
    Errno,
    spec::vfio::{DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS, IrqSet},
};

use crate::machine::{CLOSED, EVENTFD, Machine};

const NONE: u32 = IrqSet::DATA_NONE;
const BOOL: u32 = IrqSet::DATA_BOOL;
const FD: u32 = IrqSet::DATA_EVENTFD;
const MASK: u32 = IrqSet::ACTION_MASK;
const UNMASK: u32 = IrqSet::ACTION_UNMASK;
const TRIGGER: u32 = IrqSet::ACTION_TRIGGER;
const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;
const COMMAND: u64 = (7 << 40) + 4;

fn set(machine: &Machine, index: u32, flags: u32, start: u32, data: &[i32]) -> Result<u64, Errno> {
    let data: Vec<u32> = data.iter().map(|fd| *fd as u32).collect();
    let header = [
        20 + 4 * data.len() as u32,
        flags,
        index,
        start,
        data.len() as u32,
    ];
    machine.call(DEVICE_SET_IRQS, &[&header, data.as_slice()].concat())
}

fn without(machine: &Machine, index: u32, flags: u32, count: u32) -> Result<u64, Errno> {
    machine.call(DEVICE_SET_IRQS, &[20, flags | NONE, index, 0, count])
}

fn yes_or_no(machine: &Machine, index: u32, flags: u32, yes: u32) -> Result<u64, Errno> {
    machine.call(DEVICE_SET_IRQS, &[21, flags | BOOL, index, 0, 1, yes])
}

#[test]
fn irq_info_counts_what_the_function_shows() {
    let machine = Machine::rich().bound();
    let info = |index| {
        machine
            .call(DEVICE_GET_IRQ_INFO, &[16, 0, index, 0])
            .unwrap();
        let [_, flags, _, count] = machine.words();
        (flags, count)
    };
    assert_eq!(
        [info(INTX), info(MSI), info(MSIX)],
        [(7, 1), (9, 4), (1, 4)]
    );
}

#[test]
fn intx_fires_masks_itself_and_fires_again_when_it_is_unmasked() {
    let machine = Machine::rich().bound();
    let intx = machine.file.device().model().function().intx().clone();
    let fired = || machine.program.eventfds[0].count();
    assert_eq!(set(&machine, INTX, FD | TRIGGER, 0, &[EVENTFD]), Ok(0));
    intx.set(true);
    intx.set(true);
    assert_eq!(fired(), 1);
    assert_eq!(without(&machine, INTX, UNMASK, 1), Ok(0));
    assert_eq!(fired(), 2, "it is still asserted");
    intx.set(false);
    assert_eq!(yes_or_no(&machine, INTX, UNMASK, 1), Ok(0));
    assert_eq!(yes_or_no(&machine, INTX, MASK, 1), Ok(0));
    intx.set(true);
    assert_eq!(fired(), 2, "masked");
    assert_eq!(yes_or_no(&machine, INTX, UNMASK, 0), Ok(0));
    assert_eq!(fired(), 2, "nothing was asked for");
    machine.file.write(COMMAND, &[2, 4]).unwrap();
    assert_eq!(without(&machine, INTX, UNMASK, 1), Ok(0));
    assert_eq!(fired(), 2, "PCI_COMMAND keeps it masked");
    machine.file.write(COMMAND, &[2, 0]).unwrap();
    assert_eq!(fired(), 3);
    let mut status = [0; 2];
    machine.file.read(COMMAND + 2, &mut status).unwrap();
    assert_eq!(status[0] & 8, 8, "the status register shows it");
}

#[test]
fn intx_refuses_what_does_not_fit_its_state() {
    let machine = Machine::rich().bound();
    let bad = Err(Errno::EINVAL);
    for action in [MASK, UNMASK, TRIGGER] {
        assert_eq!(without(&machine, INTX, action, 1), bad, "off");
        assert_eq!(without(&machine, INTX, action, 0), bad);
        assert_eq!(yes_or_no(&machine, INTX, action, 1), bad);
    }
    assert_eq!(set(&machine, INTX, FD | UNMASK, 0, &[EVENTFD]), bad);
    assert_eq!(
        set(&machine, INTX, FD | TRIGGER, 0, &[CLOSED]),
        Err(Errno::EBADF)
    );
    assert_eq!(set(&machine, INTX, FD | TRIGGER, 0, &[]), bad);
    assert_eq!(
        set(&machine, INTX, FD | TRIGGER, 0, &[-1]),
        Ok(0),
        "no eventfd"
    );
    assert_eq!(without(&machine, INTX, TRIGGER, 1), Ok(0));
    assert_eq!(
        set(&machine, INTX, FD | MASK, 0, &[EVENTFD]),
        Err(Errno::ENOTTY)
    );
    for index in [MSI, MSIX] {
        assert_eq!(set(&machine, index, FD | TRIGGER, 0, &[EVENTFD]), bad);
        assert_eq!(without(&machine, index, TRIGGER, 0), bad, "it is off");
    }
    assert_eq!(without(&machine, INTX, TRIGGER, 0), Ok(0));
    assert_eq!(without(&machine, INTX, TRIGGER, 0), bad);
}

#[test]
fn one_eventfd_unmasks_intx() {
    let machine = Machine::rich().bound();
    let intx = machine.file.device().model().function().intx().clone();
    assert_eq!(set(&machine, INTX, FD | TRIGGER, 0, &[EVENTFD]), Ok(0));
    assert_eq!(
        set(&machine, INTX, FD | UNMASK, 0, &[CLOSED]),
        Err(Errno::EBADF)
    );
    assert_eq!(set(&machine, INTX, FD | UNMASK, 0, &[EVENTFD + 1]), Ok(0));
    let second = set(&machine, INTX, FD | UNMASK, 0, &[EVENTFD + 1]);
    assert_eq!(second, Err(Errno::EBUSY));
    intx.set(true);
    let (_, unmask) = machine.program.listeners.lock()[0].clone();
    unmask.signal();
    assert_eq!(machine.program.eventfds[0].count(), 2);
    assert_eq!(set(&machine, INTX, FD | UNMASK, 0, &[-1]), Ok(0));
    assert_eq!(set(&machine, INTX, FD | UNMASK, 0, &[EVENTFD + 2]), Ok(0));
}

#[test]
fn msi_has_the_vectors_that_it_was_enabled_with() {
    let machine = Machine::rich().bound();
    let vectors = machine.file.device().model().function().vectors().clone();
    let bad = Err(Errno::EINVAL);
    assert_eq!(set(&machine, MSI, FD | TRIGGER, 0, &[]), Err(Errno::ERANGE));
    assert_eq!(set(&machine, MSI, FD | TRIGGER, 0, &[EVENTFD; 5]), bad);
    assert_eq!(
        set(&machine, MSI, FD | TRIGGER, 0, &[EVENTFD, EVENTFD + 1]),
        Ok(0)
    );
    assert_eq!(set(&machine, MSI, FD | TRIGGER, 2, &[EVENTFD]), bad);
    assert_eq!(set(&machine, MSI, FD | TRIGGER, 2, &[-1]), Ok(0));
    for action in [MASK, UNMASK] {
        assert_eq!(without(&machine, MSI, action, 1), Err(Errno::ENOTTY));
    }
    // Bus mastering on: a message is a memory write.
    machine.file.write(7 << 40 | 4, &[6]).unwrap();
    vectors.signal(1);
    assert_eq!(without(&machine, MSI, TRIGGER, 2), Ok(0));
    let counts = || [0, 1].map(|fd: usize| machine.program.eventfds[fd].count());
    assert_eq!(counts(), [1, 2]);
    assert_eq!(
        set(&machine, MSI, FD | TRIGGER, 0, &[EVENTFD, CLOSED]),
        Err(Errno::EBADF)
    );
    assert_eq!(without(&machine, MSI, TRIGGER, 2), Ok(0));
    assert_eq!(counts(), [1, 2], "the failed request took its vectors away");
    assert_eq!(without(&machine, MSI, TRIGGER, 0), Ok(0));
    assert_eq!(without(&machine, MSI, TRIGGER, 1), bad);
}
