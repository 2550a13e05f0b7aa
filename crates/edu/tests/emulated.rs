//! The device as a program uses it: it reaches what the program has mapped, by an access object.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ioasid_core::{
    Prot,
    host::{Account, CountingIrq, IrqSink, StdSpawner},
    memory::{OwnPages, PageSource},
};
use ioasid_edu::{
    EduParent, INSTANCES, TYPE_EDU,
    spec::{
        BUFFER, COMPUTING, DMA_DONE, DMA_INTERRUPT, DMA_START, DMA_TO_MEMORY, FACTORIAL_DONE,
        FACTORIAL_INTERRUPT, IDENTIFICATION, offset,
    },
};
use ioasid_iommu::{Iommu, IommuConfig};
use ioasid_iommufd::{Context, MapArgs, ObjectId};
use ioasid_vfio::{
    Container, ContainerFile, DeviceFile, Error, Eventfd, IrqAction, IrqData, IrqIndex,
    MigrationState, SetIrqs, StateError, Vfio, VfioDevice,
    container::{MapRequest, Version},
    error::{AttachError, MdevError, MigrationError},
    mdev::{MdevParent, MdevRegistry, Uuid},
};

use proptest::{collection::vec, prelude::*};

const UUID: &str = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01";
const IOVA: u64 = 0x10_0000;
const CONFIG: u64 = 7 << 40;
/// `PCI_COMMAND` and its bit that lets the device reach memory.
const COMMAND: u64 = CONFIG + 4;
const BUS_MASTER: u16 = 4;

struct Machine {
    iommu: Arc<Iommu>,
    parent: Arc<EduParent>,
    mdevs: Arc<MdevRegistry>,
    context: Arc<Context>,
    ioas: ObjectId,
    pages: OwnPages,
}

impl Machine {
    fn new() -> Self {
        let iommu = Iommu::new(IommuConfig::default());
        let mdevs = MdevRegistry::new(&Vfio::new(&iommu));
        let parent = EduParent::new("edu", Arc::new(StdSpawner));
        mdevs.add_parent(parent.clone());
        let context = Context::new(&iommu);
        let ioas = context.ioas_alloc().unwrap();
        let pages = OwnPages::new(iommu.space(), 0x2000).unwrap();
        let args = MapArgs::fixed(IOVA, 0x2000, Prot::RW);
        context
            .ioas_map(ioas, Arc::new(pages.clone()), args)
            .unwrap();
        Machine {
            iommu,
            parent,
            mdevs,
            context,
            ioas,
            pages,
        }
    }

    fn device(&self) -> Arc<VfioDevice> {
        let mdev = self.mdevs.create("edu", TYPE_EDU, UUID.as_bytes());
        Arc::clone(mdev.unwrap().device())
    }

    /// Bound, attached, and allowed to reach memory.
    fn ready(&self) -> Arc<DeviceFile> {
        let file = self.device().open().unwrap();
        file.bind(&self.context).unwrap();
        assert_eq!(file.attach(self.ioas, None), Ok(self.ioas));
        let command = 2 | BUS_MASTER;
        file.write(COMMAND, &command.to_le_bytes()).unwrap();
        file
    }
}

fn get(file: &DeviceFile, offset: u64) -> u32 {
    let mut data = [0; 4];
    assert_eq!(file.read(offset, &mut data), Ok(4));
    u32::from_le_bytes(data)
}

fn set(file: &DeviceFile, offset: u64, value: u32) {
    assert_eq!(file.write(offset, &value.to_le_bytes()), Ok(4));
}

fn set_wide(file: &DeviceFile, offset: u64, value: u64) {
    assert_eq!(file.write(offset, &value.to_le_bytes()), Ok(8));
}

/// Waits until `holds`; the deadline is for a device that never answers.
fn until(holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(600), "no answer");
        std::thread::yield_now();
    }
}

fn transfer(file: &DeviceFile, from: u64, to: u64, count: u64, command: u64) {
    set_wide(file, offset::DMA_SOURCE, from);
    set_wide(file, offset::DMA_DESTINATION, to);
    set_wide(file, offset::DMA_COUNT, count);
    set_wide(file, offset::DMA_COMMAND, command | DMA_START);
    until(|| u64::from(get(file, offset::DMA_COMMAND)) & DMA_START == 0);
}

#[test]
fn what_is_copied_in_comes_out_elsewhere() {
    let machine = Machine::new();
    let file = machine.ready();
    machine
        .pages
        .memory()
        .write(0x10, b"through the access object");
    transfer(&file, IOVA + 0x10, BUFFER + 8, 25, 0);
    transfer(&file, BUFFER + 8, IOVA + 0x1ff0, 16, DMA_TO_MEMORY);
    let mut bytes = [0; 16];
    machine.pages.memory().read(0x1ff0, &mut bytes);
    assert_eq!(&bytes, b"through the acce");
}

#[test]
fn there_is_never_a_domain() {
    let machine = Machine::new();
    let before = machine.iommu.domains().len();
    let file = machine.ready();
    transfer(&file, IOVA, BUFFER, 16, 0);
    assert_eq!(machine.iommu.domains().len(), before);
    assert!(machine.iommu.devices().is_empty());
}

#[test]
fn without_an_address_space_or_bus_mastering_nothing_moves_and_the_transfer_ends() {
    let machine = Machine::new();
    let file = machine.ready();
    machine.pages.memory().write(0, b"secret");
    let moved = |from: u64| {
        transfer(&file, from, BUFFER, 6, 0);
        transfer(&file, BUFFER, IOVA + 0x100, 6, DMA_TO_MEMORY);
        let mut bytes = [0; 6];
        machine.pages.memory().read(0x100, &mut bytes);
        bytes
    };
    assert_eq!(moved(IOVA + 0x10_0000), [0; 6], "not mapped");
    file.detach(None).unwrap();
    transfer(&file, IOVA, BUFFER, 6, 0);
    file.attach(machine.ioas, None).unwrap();
    set(&file, COMMAND, 2);
    transfer(&file, IOVA, BUFFER, 6, 0);
    set(&file, COMMAND, 2 | u32::from(BUS_MASTER));
    // What would have come in would come out.
    transfer(&file, BUFFER, IOVA + 0x100, 6, DMA_TO_MEMORY);
    let mut bytes = [0; 6];
    machine.pages.memory().read(0x100, &mut bytes);
    assert_eq!(bytes, [0; 6]);
    assert_eq!(moved(IOVA), *b"secret");
}

#[test]
fn in_a_container_it_reaches_what_the_container_maps_and_has_no_domain() {
    let machine = Machine::new();
    let device = machine.device();
    let group = device.group().open().unwrap();
    let container = Container::new(Context::new(&machine.iommu));
    group
        .set_container(ContainerFile::Container(Arc::clone(&container)))
        .unwrap();
    container.set_iommu(Version::V2).unwrap();
    let request = MapRequest {
        iova: IOVA,
        vaddr: 0,
        size: 0x2000,
        prot: Prot::RW,
        update: false,
    };
    let pages = || Ok::<_, Error>(Arc::new(machine.pages.clone()) as Arc<dyn PageSource>);
    container.map(Account::default(), &request, pages).unwrap();
    let file = group.open_device(UUID.as_bytes()).unwrap();
    set(&file, COMMAND, 2 | u32::from(BUS_MASTER));
    machine.pages.memory().write(0, b"by a container");
    transfer(&file, IOVA, BUFFER, 14, 0);
    transfer(&file, BUFFER, IOVA + 0x1000, 14, DMA_TO_MEMORY);
    let mut bytes = [0; 14];
    machine.pages.memory().read(0x1000, &mut bytes);
    assert_eq!(&bytes, b"by a container");
    assert!(machine.iommu.domains().is_empty());
}

#[test]
fn a_transfer_that_leaves_the_buffer_moves_nothing() {
    let machine = Machine::new();
    let file = machine.ready();
    machine.pages.memory().write(0, &[7; 0x2000]);
    for (at, count) in [
        (BUFFER + 4090, 7),
        (BUFFER - 1, 1),
        (BUFFER, 4097),
        (BUFFER, u64::MAX),
        (u64::MAX, 1),
        (BUFFER, 0),
    ] {
        transfer(&file, IOVA, at, count, 0);
    }
    transfer(&file, BUFFER, IOVA, 0x1000, DMA_TO_MEMORY);
    let mut bytes = [1; 0x1000];
    machine.pages.memory().read(0, &mut bytes);
    assert_eq!(bytes, [0; 0x1000]);
}

#[test]
fn pasids_are_refused_and_attaching_again_moves_it() {
    let machine = Machine::new();
    let file = machine.device().open().unwrap();
    file.bind(&machine.context).unwrap();
    let refused = file.user_pasids().map(drop);
    assert_eq!(refused, Err(AttachError::NoUserPasids));
    let missing = ObjectId::from_raw(0x7777);
    assert!(matches!(
        file.attach(missing, None),
        Err(Error::Iommufd(ioasid_iommufd::Error::Object(
            ioasid_iommufd::ObjectError::Missing(_)
        )))
    ));
    // Attached again, it moves from one address space to the other.
    assert_eq!(file.attach(machine.ioas, None), Ok(machine.ioas));
    let other = machine.context.ioas_alloc().unwrap();
    assert_eq!(file.attach(other, None), Ok(other));
    assert!(
        machine.context.destroy(machine.ioas).is_ok(),
        "nobody uses it"
    );
    assert!(machine.context.destroy(other).is_err(), "in use");
}

#[test]
fn a_closed_device_reaches_nothing_and_is_as_new() {
    let machine = Machine::new();
    let file = machine.ready();
    machine.pages.memory().write(0, b"of the first user");
    transfer(&file, IOVA, BUFFER, 17, 0);
    set(&file, offset::LIVENESS, 1);
    let device = Arc::clone(file.device());
    file.close();
    assert!(
        machine.context.destroy(machine.ioas).is_ok(),
        "nobody uses it"
    );

    let second = Context::new(&machine.iommu);
    let ioas = second.ioas_alloc().unwrap();
    let pages = OwnPages::new(machine.iommu.space(), 0x1000).unwrap();
    let args = MapArgs::fixed(IOVA, 0x1000, Prot::RW);
    second
        .ioas_map(ioas, Arc::new(pages.clone()), args)
        .unwrap();
    let file = device.open().unwrap();
    file.bind(&second).unwrap();
    file.attach(ioas, None).unwrap();
    set(&file, COMMAND, 2 | u32::from(BUS_MASTER));
    assert_eq!(get(&file, offset::LIVENESS), 0);
    transfer(&file, BUFFER, IOVA, 17, DMA_TO_MEMORY);
    let mut bytes = [1; 17];
    pages.memory().read(0, &mut bytes);
    assert_eq!(bytes, [0; 17], "nothing of the first user is left");
}

#[test]
fn registers_answer_as_the_specification_says() {
    let machine = Machine::new();
    let file = machine.ready();
    assert_eq!(get(&file, offset::IDENTIFICATION), IDENTIFICATION);
    set(&file, offset::LIVENESS, 0x1234_5678);
    assert_eq!(get(&file, offset::LIVENESS), !0x1234_5678);
    for (operand, result) in [
        (0, 1),
        (1, 1),
        (5, 120),
        (12, 479_001_600),
        (13, 1_932_053_504),
        (34, 0),
        (u32::MAX, 0),
    ] {
        set(&file, offset::FACTORIAL, operand);
        until(|| get(&file, offset::STATUS) & COMPUTING == 0);
        assert_eq!(get(&file, offset::FACTORIAL), result, "{operand}!");
    }
    let mut short = [0xff; 2];
    file.read(offset::IDENTIFICATION, &mut short).unwrap();
    assert_eq!(short, [0; 2], "registers are 4 bytes wide");
}

#[test]
fn interrupts_come_by_msi_and_stay_until_they_are_acknowledged() {
    let machine = Machine::new();
    let file = machine.ready();
    let counter = CountingIrq::new();
    let sink: Arc<dyn IrqSink> = counter.clone();
    file.set_irqs(&SetIrqs {
        index: IrqIndex::Msi,
        action: IrqAction::Trigger,
        start: 0,
        count: 1,
        data: IrqData::Eventfds(vec![Eventfd::Sink(sink)]),
    })
    .unwrap();
    set(&file, offset::STATUS, FACTORIAL_INTERRUPT);
    set(&file, offset::FACTORIAL, 3);
    until(|| counter.count() == 1);
    assert_eq!(get(&file, offset::INTERRUPT_STATUS), FACTORIAL_DONE);
    transfer(&file, IOVA, BUFFER, 4, DMA_INTERRUPT);
    until(|| counter.count() == 2);
    assert_eq!(
        get(&file, offset::INTERRUPT_STATUS),
        FACTORIAL_DONE | DMA_DONE
    );
    set(&file, offset::INTERRUPT_ACKNOWLEDGE, FACTORIAL_DONE);
    assert_eq!(get(&file, offset::INTERRUPT_STATUS), DMA_DONE);
    set(&file, offset::INTERRUPT_RAISE, 0x8000);
    assert_eq!(counter.count(), 3);
    file.reset().unwrap();
    assert_eq!(get(&file, offset::INTERRUPT_STATUS), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// What a hostile program may do is answered, and the device works afterwards.
    #[test]
    fn no_row_of_accesses_breaks_it(accesses in vec((0..0xb0_u64, 0..9_usize, any::<u64>(), any::<bool>()), 1..64)) {
        let machine = Machine::new();
        let file = machine.ready();
        for (offset, len, value, write) in accesses {
            let mut data = value.to_le_bytes();
            let data = &mut data[..len.min(8)];
            let _ = if write { file.write(offset, data) } else { file.read(offset, data) };
        }
        file.reset().unwrap();
        machine.pages.memory().write(0, b"still works");
        transfer(&file, IOVA, BUFFER, 11, 0);
        transfer(&file, BUFFER, IOVA + 0x1000, 11, DMA_TO_MEMORY);
        let mut bytes = [0; 11];
        machine.pages.memory().read(0x1000, &mut bytes);
        prop_assert_eq!(&bytes, b"still works");
    }

    #[test]
    fn a_device_that_moves_goes_on_with_every_register(
        writes in vec((0..0xb0_u64, prop::bool::ANY, any::<u64>()), 0..24),
        (from, count) in (0..3000_u64, 1..1000_u64),
        cut in any::<prop::sample::Index>(),
    ) {
        let machines = [Machine::new(), Machine::new()];
        let [source, destination] = machines.each_ref().map(Machine::ready);
        for machine in &machines {
            let bytes: Vec<u8> = (0..0x2000_u32).map(|at| (at * 7 / 8) as u8).collect();
            machine.pages.memory().write(0, &bytes);
        }
        transfer(&source, IOVA + 17, BUFFER, 4096, 0);
        for (offset, wide, value) in writes {
            // The one copy that may be under way at the move comes later.
            let (offset, len) = (offset & !7, if wide { 8 } else { 4 });
            if offset != offset::DMA_COMMAND {
                source.write(offset, &value.to_le_bytes()[..len]).unwrap();
            }
        }
        // One that begins before or behind the move.
        set_wide(&source, offset::DMA_SOURCE, BUFFER + from);
        set_wide(&source, offset::DMA_DESTINATION, IOVA + 0x1000);
        set_wide(&source, offset::DMA_COUNT, count);
        set_wide(&source, offset::DMA_COMMAND, DMA_TO_MEMORY | DMA_INTERRUPT | DMA_START);
        source.set_migration_state(MigrationState::StopCopy).unwrap();
        let saved = source.read_migration(usize::MAX).unwrap();
        let mut memory = vec![0; 0x2000];
        machines[0].pages.memory().read(0, &mut memory);
        machines[1].pages.memory().write(0, &memory);
        let restore = |state: &[u8]| {
            destination.set_migration_state(MigrationState::Resuming).unwrap();
            destination.write_migration(state).unwrap();
            destination.set_migration_state(MigrationState::Running).map(drop)
        };
        let cut = cut.index(saved.len() - 1) + 1;
        prop_assert_eq!(restore(&saved[..saved.len() - cut]), match cut == saved.len() {
            // Without a byte it stays as it is.
            true => Ok(()),
            false => Err(MigrationError::BadState(StateError).into()),
        });
        destination.reset().unwrap();
        let command = 2 | BUS_MASTER;
        destination.write(COMMAND, &command.to_le_bytes()).unwrap();
        prop_assert_eq!(restore(&saved), Ok(()));
        source.set_migration_state(MigrationState::Running).unwrap();
        let ended = |file: &DeviceFile| {
            u64::from(get(file, offset::DMA_COMMAND)) & DMA_START == 0
                && get(file, offset::STATUS) & COMPUTING == 0
        };
        until(|| ended(&source) && ended(&destination));
        for at in (0..0xa0).step_by(4) {
            prop_assert_eq!(get(&destination, at), get(&source, at), "{:#x}", at);
        }
        prop_assert!(get(&destination, offset::INTERRUPT_STATUS) & DMA_DONE != 0);
        let mut copies = [vec![0; 0x2000], vec![0; 0x2000]];
        for (machine, copy) in machines.iter().zip(&mut copies) {
            machine.pages.memory().read(0, copy);
        }
        prop_assert!(copies[0] == copies[1]);
    }
}

#[test]
fn a_parent_has_so_many_children_and_no_more() {
    let machine = Machine::new();
    let uuid = |number: u32| format!("5f2e6a9e-93a1-4f0a-9b3e-{number:012x}");
    assert_eq!(machine.parent.available_instances(TYPE_EDU), INSTANCES);
    for number in 0..INSTANCES {
        let made = machine
            .mdevs
            .create("edu", TYPE_EDU, uuid(number).as_bytes());
        assert!(made.is_ok());
    }
    let refused = machine.mdevs.create("edu", TYPE_EDU, uuid(99).as_bytes());
    assert!(matches!(refused, Err(MdevError::NoInstance { .. })));
    let first: Uuid = uuid(0).parse().unwrap();
    machine.mdevs.remove(first, Duration::ZERO).unwrap();
    assert_eq!(machine.parent.available_instances(TYPE_EDU), 1);
    let refused = machine.mdevs.create("edu", "edu-2", uuid(99).as_bytes());
    assert!(matches!(refused, Err(MdevError::NoSuchType { .. })));
}
