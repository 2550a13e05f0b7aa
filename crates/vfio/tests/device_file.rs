//! What one open device file does: bind, use, attach, close.

mod common;

use std::sync::Arc;

use common::{CONFIG, Machine, PORTAL};
use ioasid_core::host::CountingIrq;
use ioasid_iommu::PasidError;
use ioasid_iommufd::{
    AttachError as IommufdAttachError, Context, Error as IommufdError, HwptAlloc, HwptFlags,
    ObjectId,
};
use ioasid_vfio::{
    DeviceFile, Error, Eventfd, IrqAction, IrqData, IrqIndex, MapRequest, Result, SetIrqs,
    VfioDevice,
    error::{AttachError, BindError, RegionError},
};

const PARENT: &str = "0000:6a:01.0";
const OTHER: &str = "0000:6b:01.0";

fn set_msix(file: &DeviceFile, fds: Vec<Eventfd>) -> Result<()> {
    file.set_irqs(&SetIrqs {
        index: IrqIndex::Msix,
        action: IrqAction::Trigger,
        start: 0,
        count: fds.len() as u32,
        data: IrqData::Eventfds(fds),
    })
}

fn bound(device: &Arc<VfioDevice>, context: &Arc<Context>) -> Arc<DeviceFile> {
    let file = device.open().expect("the device is not leaving");
    file.bind(context).expect("nobody else has it");
    file
}

#[test]
fn nothing_but_bind_works_on_a_file_that_is_not_bound() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let file = device.open().unwrap();
    let check = |file: &DeviceFile| {
        let no = Some(Error::from(BindError::NotBound));
        assert_eq!(file.info().err(), no);
        assert_eq!(file.region_info(0).err(), no);
        assert_eq!(file.irq_info(0).err(), no);
        assert_eq!(file.read(CONFIG, &mut [0; 4]).err(), no);
        assert_eq!(file.write(CONFIG, &[0; 4]).err(), no);
        assert_eq!(file.write(0, &[0; 8]).err(), no);
        assert_eq!(file.read(0, &mut []).err(), no);
        assert_eq!(file.reset().err(), no);
        assert_eq!(set_msix(file, vec![Eventfd::None]).err(), no);
        assert_eq!(file.attach(ObjectId::from_raw(1), None).err(), no);
        assert_eq!(file.detach(None).err().map(Error::from), no);
    };
    check(&file);
    let context = Context::new(&machine.iommu);
    file.bind(&context).unwrap();
    assert!(file.info().is_ok());
    file.close();
    check(&file);
    assert!(file.bind(&context).is_err(), "a closed file stays closed");
}

#[test]
fn a_device_is_bound_through_one_file_at_a_time() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let context = Context::new(&machine.iommu);
    let (first, second) = (device.open().unwrap(), device.open().unwrap());
    first.bind(&context).unwrap();
    assert_eq!(first.bind(&context), Err(BindError::AlreadyBound.into()));
    assert_eq!(second.bind(&context), Err(BindError::BoundElsewhere.into()));
    let gone = Err(Error::from(BindError::Gone));
    let error = second.bind_with(|| Err(BindError::Gone.into()));
    assert_eq!(error, gone, "looked up first");
    first.close();
    assert!(second.bind(&context).is_ok());
}

#[test]
fn a_whole_device_needs_the_ownership_and_a_child_works_beside_the_driver() {
    let machine = Machine::new();
    let parent = machine.dma(PARENT);
    let (device, _) = machine.whole(&parent);
    let (child, _) = machine.child(&parent);
    let context = Context::new(&machine.iommu);
    let driver = parent.use_dma_api().unwrap();
    let file = device.open().unwrap();
    let refused = file.bind(&context).unwrap_err();
    let not_owner = |error: &IommufdError| {
        matches!(error, IommufdError::Attach(IommufdAttachError::NotOwner(_)))
    };
    assert!(matches!(refused, Error::Iommufd(error) if not_owner(&error)));
    assert!(!device.is_bound(), "a refused bind leaves nothing behind");

    let child = bound(&child, &context);
    let ioas = context.ioas_alloc().unwrap();
    child.attach(ioas, None).unwrap();
    assert_eq!(
        parent.attachments().len(),
        2,
        "the driver's domain and the child's"
    );
    drop(driver);
    child.close();
    assert!(file.bind(&context).is_ok(), "without the driver");
}

#[test]
fn whole_device_and_child_get_one_page_table_from_one_ioas() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let (child, _) = machine.child(&machine.dma(PARENT));
    let context = Context::new(&machine.iommu);
    let (device, child) = (bound(&device, &context), bound(&child, &context));
    let ioas = context.ioas_alloc().unwrap();
    let first = device.attach(ioas, None).unwrap();
    let second = child.attach(ioas, None).unwrap();
    assert_eq!(first, second);
    assert_eq!(machine.iommu.paging_domains(), 1);
    device.detach(None).unwrap();
    device.detach(None).unwrap();
    child.close();
    assert_eq!(machine.iommu.paging_domains(), 0);
}

#[test]
fn a_second_attach_replaces_and_a_failed_one_changes_nothing() {
    let machine = Machine::new();
    let dma = machine.dma(OTHER);
    let (device, _) = machine.whole(&dma);
    let context = Context::new(&machine.iommu);
    let file = bound(&device, &context);
    let (first, second) = (context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap());
    let table = file.attach(first, None).unwrap();
    assert!(file.attach(ObjectId::from_raw(u32::MAX), None).is_err());
    assert_eq!(file.attach(first, None), Ok(table));
    assert_ne!(file.attach(second, None).unwrap(), table);
    assert_eq!(machine.iommu.paging_domains(), 1);
}

#[test]
fn pasids_of_the_users_choice_are_for_whole_devices() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let (child, _) = machine.child(&machine.dma(PARENT));
    let context = Context::new(&machine.iommu);
    let file = device.open().unwrap();
    let id = file.bind(&context).unwrap();
    let child = bound(&child, &context);
    let ioas = context.ioas_alloc().unwrap();
    let table = context
        .hwpt_alloc(HwptAlloc {
            device: id,
            parent: ioas,
            flags: HwptFlags::PASID,
            fault_id: 0,
        })
        .unwrap();
    let pasids = file.user_pasids().unwrap();
    let pasid = |number| Some(pasids.pasid(number));
    assert_eq!(file.attach(table, pasid(7)), Ok(table));
    assert!(
        file.attach(ioas, pasid(8)).is_err(),
        "an IOAS takes no PASID"
    );
    file.detach(pasid(7)).unwrap();
    let refused = child.user_pasids().map(drop);
    assert_eq!(refused, Err(AttachError::NoUserPasids));
}

#[test]
fn closing_a_child_quiesces_releases_detaches_and_frees_in_this_order() {
    let machine = Machine::new();
    let parent = machine.dma(PARENT);
    let (device, _) = machine.child(&parent);
    let context = Context::new(&machine.iommu);
    let file = bound(&device, &context);
    let ioas = context.ioas_alloc().unwrap();
    file.attach(ioas, None).unwrap();
    file.write(CONFIG + 4, &[0x06, 0]).unwrap();
    assert_eq!(machine.iommu.pasids().held(), 1);
    drop(file);
    assert_eq!(
        machine.take_journal(),
        [
            "quiesce, attached",
            "release, master false",
            "unbind, detached"
        ]
    );
    assert_eq!(machine.iommu.pasids().held(), 0);
    assert_eq!(device.open_files(), 0);
}

#[test]
fn no_access_reaches_the_device_once_close_has_returned() {
    let machine = Machine::new();
    let (device, model) = machine.whole(&machine.dma(OTHER));
    let context = Context::new(&machine.iommu);
    for _ in 0..50 {
        let file = bound(&device, &context);
        let stores = || model.stores.lock().len();
        let before = stores();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| while file.write(PORTAL, &[0; 64]).is_ok() {});
            while stores() < before + 10 {
                std::thread::yield_now();
            }
            file.close();
            let closed = stores();
            assert_eq!(writer.join().ok(), Some(()));
            assert_eq!(stores(), closed);
        });
    }
}

#[test]
fn a_child_that_gets_no_pasid_stays_unbound() {
    let machine = Machine::new();
    let parent = machine.dma(PARENT);
    let pasid = machine.child_pasid(&parent, 0);
    let model = common::Example::new(&machine.journal);
    let passthrough = ioasid_vfio::Passthrough::Child(pasid);
    let device = machine.vfio.add(model, passthrough);
    let file = device.open().unwrap();
    let refused = file.bind(&Context::new(&machine.iommu));
    assert_eq!(
        refused,
        Err(BindError::NoPasid(PasidError::OverQuota { limit: 0 }).into())
    );
    assert!(!device.is_bound() && !file.is_bound());
}

#[test]
fn the_next_user_finds_the_device_pristine() {
    let machine = Machine::new();
    let (device, model) = machine.whole(&machine.dma(OTHER));
    let context = Context::new(&machine.iommu);
    let file = bound(&device, &context);
    let counter = CountingIrq::new();
    set_msix(&file, vec![Eventfd::Sink(counter.clone())]).unwrap();
    file.write(0, &7_u64.to_le_bytes()).unwrap();
    file.write(CONFIG + 4, &[0x06, 0x04]).unwrap();
    file.write(CONFIG + 0x10, &[0xff; 4]).unwrap();
    file.close();
    ioasid_vfio::DeviceModel::function(&*model)
        .vectors()
        .signal(0);
    assert_eq!(counter.count(), 0, "no interrupt after close");

    let file = bound(&device, &context);
    let mut register = [0xff; 8];
    assert_eq!(file.read(0, &mut register), Ok(8));
    assert_eq!(register, [0; 8]);
    let mut command = [0; 2];
    file.read(CONFIG + 4, &mut command).unwrap();
    assert_eq!(command, [0x02, 0], "memory on, bus mastering off");
    let mut bar = [0; 4];
    file.read(CONFIG + 0x10, &mut bar).unwrap();
    assert_eq!(u32::from_le_bytes(bar), 0xc);
}

#[test]
fn reset_keeps_command_bars_interrupts_and_attachments() {
    let machine = Machine::new();
    let dma = machine.dma(OTHER);
    let (device, model) = machine.whole(&dma);
    let context = Context::new(&machine.iommu);
    let file = bound(&device, &context);
    let ioas = context.ioas_alloc().unwrap();
    file.attach(ioas, None).unwrap();
    let counter = CountingIrq::new();
    set_msix(&file, vec![Eventfd::Sink(counter.clone())]).unwrap();
    file.write(0, &7_u64.to_le_bytes()).unwrap();
    file.write(CONFIG + 4, &[0x06, 0x04]).unwrap();
    file.write(CONFIG + 0x10, &[0xff; 4]).unwrap();
    file.reset().unwrap();
    let mut register = [0xff; 8];
    file.read(0, &mut register).unwrap();
    assert_eq!(register, [0; 8]);
    let (mut command, mut bar) = ([0; 2], [0; 4]);
    file.read(CONFIG + 4, &mut command).unwrap();
    file.read(CONFIG + 0x10, &mut bar).unwrap();
    assert_eq!((command, bar), ([0x06, 0x04], [0x0c, 0xc0, 0xff, 0xff]));
    ioasid_vfio::DeviceModel::function(&*model)
        .vectors()
        .signal(0);
    assert_eq!(counter.count(), 1);
    assert_eq!(machine.iommu.paging_domains(), 1);
}

#[test]
fn function_level_reset_through_configuration_space_resets() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let file = bound(&device, &Context::new(&machine.iommu));
    file.write(0, &7_u64.to_le_bytes()).unwrap();
    let mut at = [0; 1];
    file.read(CONFIG + 0x34, &mut at).unwrap();
    let control = CONFIG + u64::from(at[0]) + 8;
    file.write(control + 1, &[0x80]).unwrap();
    assert_eq!(machine.take_journal(), ["reset"]);
    let mut register = [0xff; 8];
    file.read(0, &mut register).unwrap();
    assert_eq!(register, [0; 8]);
}

#[test]
fn a_64_byte_store_to_a_portal_is_one_store() {
    let machine = Machine::new();
    let (device, model) = machine.whole(&machine.dma(OTHER));
    let file = bound(&device, &Context::new(&machine.iommu));
    assert_eq!(file.write(PORTAL + 0x1040, &[1; 64]), Ok(64));
    assert_eq!(file.write(PORTAL + 4, &[1; 12]), Ok(12));
    assert_eq!(file.write(PORTAL + 0x3ffe, &[1; 64]), Ok(2), "clipped");
    let stores = std::mem::take(&mut *model.stores.lock());
    assert_eq!(stores, [(0x1040, 64), (4, 4), (8, 8), (0x3ffe, 2)]);
}

#[test]
fn disabled_memory_is_an_error_but_the_msix_table_is_not_memory() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let file = bound(&device, &Context::new(&machine.iommu));
    file.write(CONFIG + 4, &[0, 0]).unwrap();
    assert_eq!(
        file.read(0, &mut [0; 8]),
        Err(RegionError::MemoryDisabled.into())
    );
    assert_eq!(
        file.write(PORTAL, &[0; 64]),
        Err(RegionError::MemoryDisabled.into())
    );
    let mut table = [0; 32];
    assert_eq!(file.read(0x2000, &mut table), Ok(32));
    assert_eq!(table, [0xff; 32]);
    assert_eq!(
        file.read(0x3000, &mut [0; 8]),
        Err(RegionError::MemoryDisabled.into())
    );
    file.write(CONFIG + 4, &[2, 0]).unwrap();
    let mut pending = [0xff; 8];
    assert_eq!(file.read(0x3000, &mut pending), Ok(8));
    assert_eq!(pending, [0; 8]);
}

#[test]
fn accesses_beyond_a_region_say_so() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let file = bound(&device, &Context::new(&machine.iommu));
    let read = |offset, len: usize| file.read(offset, &mut vec![0; len]);
    let beyond = RegionError::BeyondEnd {
        index: 0,
        offset: 0x4000,
        size: 0x4000,
    };
    assert_eq!(read(0x4000, 1), Err(beyond.into()));
    let absent = |index| Err(RegionError::Absent { index }.into());
    let none = |index| Err(RegionError::NoSuchIndex { index }.into());
    assert_eq!(read(0x3ffc, 8), Ok(4));
    assert_eq!(read(1 << 40, 1), absent(1), "the upper half");
    assert_eq!(read(6 << 40, 1), absent(6), "no ROM");
    assert_eq!(read(8 << 40, 1), absent(8), "no VGA");
    assert_eq!(read(9 << 40, 1), none(9));
    assert_eq!(read(u64::MAX, 1), none(0xff_ffff));
    assert_eq!(read(u64::MAX, 0), Ok(0));
    assert_eq!(
        read(CONFIG + 4093, 4),
        Err(RegionError::BeyondConfig {
            offset: 4093,
            len: 4,
            size: 4096,
        }
        .into())
    );
    assert_eq!(read(CONFIG + 4092, 4), Ok(4));
}

#[test]
fn the_request_interrupt_asks_the_user_for_the_device() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let file = bound(&device, &Context::new(&machine.iommu));
    let counter = CountingIrq::new();
    file.set_irqs(&SetIrqs {
        index: IrqIndex::Request,
        action: IrqAction::Trigger,
        start: 0,
        count: 1,
        data: IrqData::Eventfds(vec![Eventfd::Sink(counter.clone())]),
    })
    .unwrap();
    let patience = std::time::Duration::ZERO;
    let refused = machine.vfio.remove(&device, patience);
    assert_eq!(refused, Err(BindError::StillOpen { open: 1 }));
    assert_eq!(counter.count(), 1);
    file.close();
    machine.vfio.remove(&device, patience).unwrap();
    assert!(machine.vfio.devices().is_empty());
    assert_eq!(device.open().unwrap_err(), BindError::Gone);
}

#[test]
fn groups_and_numbers_are_each_devices_own() {
    let machine = Machine::new();
    let parent = machine.dma(PARENT);
    let (device, _) = machine.whole(&parent);
    let (child, _) = machine.child(&parent);
    assert_eq!(device.group_number(), parent.group().id());
    assert_ne!(child.group_number(), device.group_number());
    assert_eq!((device.name(), child.name()), ("vfio0", "vfio1"));
    assert!(
        machine
            .vfio
            .find("vfio1")
            .is_some_and(|found| found.is_child())
    );
}

fn shared(offset: u64, len: u64) -> MapRequest {
    MapRequest {
        offset,
        len,
        shared: true,
        writable: true,
    }
}

#[test]
fn a_bar_is_mapped_shared_and_writable_within_its_pages_and_nothing_else_is() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    let file = device.open().unwrap();
    assert_eq!(
        file.mmap_check(shared(0, 4096)),
        Err(BindError::NotBound.into())
    );
    file.bind(&Context::new(&machine.iommu)).unwrap();
    let no = |request: MapRequest| {
        let (offset, len) = (request.offset, request.len);
        Err(RegionError::NotMappable { offset, len }.into())
    };
    let early = file.mmap_check(shared(0, 4096));
    assert_eq!(early, no(shared(0, 4096)), "mappings are not served");
    device.set_mappable(true);
    let range = file.mmap_check(shared(PORTAL + 0x1000, 0x2001)).unwrap();
    assert_eq!((range.bar, range.offset, range.len), (2, 0x1000, 0x3000));
    let msix = file.mmap_check(shared(0x2000, 0x1000)).unwrap();
    assert_eq!(msix.offset, 0x2000);
    for bad in [
        shared(PORTAL, 0x4001),
        shared(PORTAL + 0x4000, 1),
        shared(PORTAL, u64::MAX),
        shared(PORTAL + 8, 8),
        shared(1 << 40, 4096),
        shared(CONFIG, 4096),
        shared(6 << 40, 4096),
        shared(u64::MAX << 12, 4096),
    ] {
        assert_eq!(file.mmap_check(bad), no(bad), "{bad:?}");
    }
    for private in [
        MapRequest {
            shared: false,
            ..shared(0, 4096)
        },
        MapRequest {
            writable: false,
            ..shared(0, 4096)
        },
    ] {
        let refused = file.mmap_check(private);
        assert_eq!(refused, Err(RegionError::PrivateMapping.into()));
    }
}

#[test]
fn one_access_to_a_mapping_is_one_access_of_the_model() {
    let machine = Machine::new();
    let (device, model) = machine.whole(&machine.dma(OTHER));
    device.set_mappable(true);
    let file = bound(&device, &Context::new(&machine.iommu));
    for size in [1, 2, 4, 8, 64] {
        file.mapped_write(PORTAL + 0x40, &[0; 64][..size]).unwrap();
        assert_eq!(
            std::mem::take(&mut *model.stores.lock()),
            [(0x40, size)],
            "{size} bytes"
        );
    }
    file.mapped_write(PORTAL, &[0; 16]).unwrap();
    file.mapped_write(PORTAL + 3, &[0; 4]).unwrap();
    let split = [(0, 8), (8, 8), (3, 1), (4, 2), (6, 1)];
    assert_eq!(*model.stores.lock(), split);
    file.mapped_write(0, &7_u64.to_le_bytes()).unwrap();
    let mut value = [0; 8];
    file.mapped_read(0, &mut value).unwrap();
    assert_eq!(u64::from_le_bytes(value), 7);
    assert_eq!(file.mapped_enqueue(PORTAL, &[0; 64]), Ok(false));
}

#[test]
fn a_mapped_msix_table_looks_as_after_a_reset() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    device.set_mappable(true);
    let file = bound(&device, &Context::new(&machine.iommu));
    file.mapped_write(0x2000, &[0xff; 8]).unwrap();
    let mut entry = [0xaa; 16];
    file.mapped_read(0x2010, &mut entry).unwrap();
    let mut masked = [0; 16];
    masked[12] = 1;
    assert_eq!(entry, masked);
}

#[test]
fn a_mapping_of_memory_that_does_not_answer_faults() {
    let machine = Machine::new();
    let (device, _) = machine.whole(&machine.dma(OTHER));
    device.set_mappable(true);
    let file = bound(&device, &Context::new(&machine.iommu));
    file.write(CONFIG + 4, &[0, 0]).unwrap();
    let off = Err(RegionError::MemoryDisabled.into());
    assert_eq!(file.mapped_read(0, &mut [0; 4]), off);
    assert_eq!(file.mapped_write(0, &[0; 4]), off);
    assert_eq!(file.mapped_read(0x2000, &mut [0; 4]), off, "the table too");
    file.write(CONFIG + 4, &[2, 0]).unwrap();
    file.mapped_read(0, &mut [0; 4]).unwrap();
    let not_mapped = |offset, len| Err(RegionError::NotMapped { offset, len }.into());
    assert_eq!(file.mapped_read(0x3ffc, &mut [0; 8]), not_mapped(0x3ffc, 8));
    assert_eq!(file.mapped_read(CONFIG, &mut [0; 4]), not_mapped(CONFIG, 4));
    file.close();
    assert_eq!(
        file.mapped_read(0, &mut [0; 4]),
        Err(BindError::NotBound.into())
    );
}
