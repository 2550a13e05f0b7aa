//! A log of what a device writes: whose it is, and when it ends.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::Machine;
use ioasid_core::{AddrRange, Pasid, Prot, memory::OwnPages};
use ioasid_iommu::{Device, DmaSource, Domain, DomainConfig, FaultLog, FaultSink};
use ioasid_iommufd::Context;
use ioasid_vfio::{
    DeviceFile, EmulatedDma, Error, Feature, LogRanges, Passthrough,
    error::{BindError, DmaLogError, FeatureError},
};

const LEN: u64 = 1 << 20;

fn bytes(start: u64, len: u64) -> AddrRange {
    AddrRange::from_len(start, len).unwrap()
}

/// A domain with memory at 0, attached at a route.
fn attach(
    machine: &Machine,
    device: &Arc<Device>,
    pasid: Option<Pasid>,
) -> (Arc<Domain>, OwnPages) {
    let config = DomainConfig::unmanaged(device.format());
    let domain = machine.iommu.alloc_domain(config).unwrap();
    let pages = OwnPages::new(machine.iommu.space(), LEN as usize).unwrap();
    domain.map(0, pages.spa(), LEN, Prot::RW).unwrap();
    let faults = FaultLog::new(4) as Arc<dyn FaultSink>;
    let device = Arc::clone(device);
    DmaSource { device, pasid }
        .attach(&domain, &faults)
        .unwrap();
    (domain, pages)
}

fn write(device: &Arc<Device>, pasid: Option<Pasid>, iova: u64, len: usize) {
    let mut port = device.port();
    assert!(port.enter(pasid).write(iova, &vec![1; len]).is_complete());
}

/// Lets the device write.
fn master(file: &DeviceFile) {
    file.write(common::CONFIG + 4, &[6]).unwrap();
}

fn start(file: &DeviceFile) -> Result<u64, Error> {
    let mut ranges = LogRanges::new(4096);
    ranges.add(0, LEN).unwrap();
    file.start_dma_log(ranges)
}

fn report(file: &DeviceFile, range: AddrRange) -> Result<Vec<AddrRange>, Error> {
    let mut found = Vec::new();
    file.report_dma_log(range, &mut |run| found.push(run))?;
    Ok(found)
}

#[test]
fn a_whole_devices_log_has_all_its_pasids() {
    let machine = Machine::new();
    let dma = machine.dma("0000:6b:01.0");
    let (device, _) = machine.whole(&dma);
    let file = device.open().unwrap();
    assert_eq!(start(&file), Err(BindError::NotBound.into()));
    file.bind(&Context::new(&machine.iommu)).unwrap();
    master(&file);
    let tag = Pasid::new(7);
    let _kept = [None, tag].map(|pasid| attach(&machine, &dma, pasid));
    write(&dma, None, 0, 1);
    assert_eq!(
        report(&file, bytes(0, LEN)),
        Err(DmaLogError::NotStarted.into())
    );
    assert_eq!(start(&file), Ok(4096));
    assert_eq!(start(&file), Err(DmaLogError::Started.into()));
    write(&dma, None, 0x2fff, 2);
    write(&dma, tag, 0x8000, 4096);
    let expected = vec![bytes(0x2000, 0x2000), bytes(0x8000, 4096)];
    assert_eq!(report(&file, bytes(0, LEN)), Ok(expected));
    assert_eq!(report(&file, bytes(0, LEN)), Ok(Vec::new()));
    let beyond = report(&file, bytes(LEN - 4096, 8192));
    let range = bytes(LEN - 4096, 8192);
    assert_eq!(beyond, Err(DmaLogError::NotLogged { range }.into()));
}

#[test]
fn a_childs_log_is_its_own_and_not_its_parents_or_the_next_users() {
    let machine = Machine::new();
    let parent = machine.dma("0000:6a:01.0");
    let (device, _) = machine.child(&parent);
    let context = Context::new(&machine.iommu);
    let file = device.open().unwrap();
    file.bind(&context).unwrap();
    master(&file);
    // The parent's own requests are withheld by nobody here: it has no function.
    let ioas = context.ioas_alloc().unwrap();
    file.attach(ioas, None).unwrap();
    let attachments = parent.attachments();
    let (pasid, _) = attachments
        .iter()
        .find(|(pasid, _)| pasid.is_some())
        .unwrap();
    file.detach(None).unwrap();
    let _kept = [None, Pasid::new(0xffff), *pasid].map(|pasid| attach(&machine, &parent, pasid));
    assert_eq!(start(&file), Ok(4096));
    write(&parent, None, 0x1000, 1);
    write(&parent, Pasid::new(0xffff), 0x2000, 1);
    write(&parent, *pasid, 0x3000, 1);
    file.reset().unwrap();
    assert_eq!(report(&file, bytes(0, LEN)), Ok(vec![bytes(0x3000, 4096)]));
    write(&parent, *pasid, 0x4000, 1);
    file.stop_dma_log().unwrap();
    file.stop_dma_log().unwrap();
    assert_eq!(
        report(&file, bytes(0, LEN)),
        Err(DmaLogError::NotStarted.into())
    );
    assert_eq!(start(&file), Ok(4096));
    assert_eq!(report(&file, bytes(0, LEN)), Ok(Vec::new()), "a new log");
    write(&parent, *pasid, 0x4000, 1);
    file.close();
    let file = device.open().unwrap();
    file.bind(&context).unwrap();
    assert_eq!(
        report(&file, bytes(0, LEN)),
        Err(DmaLogError::NotStarted.into())
    );
    assert_eq!(start(&file), Ok(4096));
    assert_eq!(report(&file, bytes(0, LEN)), Ok(Vec::new()));
}

#[test]
fn software_that_copies_has_no_dma_to_log() {
    let machine = Machine::new();
    let model = common::Example::new(&machine.journal);
    let passthrough = Passthrough::Emulated(EmulatedDma::new());
    let file = machine.vfio.add(model, passthrough).open().unwrap();
    file.bind(&Context::new(&machine.iommu)).unwrap();
    assert!(!file.has_feature(Feature::DmaLog));
    assert_eq!(
        start(&file),
        Err(FeatureError::Absent(Feature::DmaLog).into())
    );
}
