//! What the tests share: a machine, memory, and a driver as a program would write it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses its own part"
)]
#![allow(unreachable_pub, reason = "shared by several test binaries")]

use std::sync::{
    Arc,
    atomic::{Ordering, fence},
};

use ioasid_core::host::{CountingIrq, StdSpawner};
use ioasid_ioat::{
    IoatConfig, IoatDevice,
    spec::{
        ChanErr, ChanSts, ChannelStatus, DESCRIPTOR_SIZE, Descriptor,
        registers::{self as reg, CHANNEL_STRIDE},
    },
};
use ioasid_iommu::{DeviceConfig, DmaSource, Domain, FaultLog, FaultSink, Iommu};
pub use ioasid_testing::{Area, eventually, new_domain, new_iommu, pattern};
use ioasid_vfio::DeviceModel;

/// `CHANCMD` values as a program writes them.
pub const RESET: u8 = 0x20;
pub const SUSPEND: u8 = 0x04;
pub const RESUME: u8 = 0x10;
/// Rearm, and report errors by word and interrupt (`IOAT_CHANCTRL_RUN`).
pub const RUN: u16 = 0x1d;

/// An IOMMU and a device behind it with `channels` channels, all but the first for children.
pub fn new_ioat(iommu: &Arc<Iommu>, address: &str, channels: usize) -> Arc<IoatDevice> {
    let device = iommu.add_device(DeviceConfig::new(address.parse().unwrap()));
    let mut config = IoatConfig::with_channels(channels);
    for channel in &mut config.channels[1..] {
        channel.mdev = true;
    }
    IoatDevice::new(iommu, device.unwrap(), config, &StdSpawner).unwrap()
}

/// Bytes of a test's memory.
pub const AREA_SIZE: u64 = 8 << 20;

/// [`AREA_SIZE`] bytes of memory in `domain`.
pub fn new_area(iommu: &Iommu, domain: &Domain) -> Area {
    Area::mapped(iommu, domain, AREA_SIZE as usize)
}

/// What a channel reads and writes in memory.
pub trait Chains {
    /// The completion word at `at`.
    fn word(&self, at: u64) -> ChanSts;

    /// Writes `descriptors` from `at` on, each linked to the one behind it.
    fn write_chain(&self, at: u64, descriptors: &[Descriptor]);
}

impl Chains for Area {
    fn word(&self, at: u64) -> ChanSts {
        let bytes = self.read(at, 8);
        fence(Ordering::Acquire);
        ChanSts::from_bits(u64::from_le_bytes(bytes.try_into().unwrap()))
    }

    fn write_chain(&self, at: u64, descriptors: &[Descriptor]) {
        for (descriptor, at) in descriptors.iter().zip((at..).step_by(DESCRIPTOR_SIZE)) {
            let linked = descriptor.with_next(at + DESCRIPTOR_SIZE as u64);
            self.write(at, &linked.to_bytes());
        }
    }
}

/// A program's driver of one channel of whatever has the registers of an I/OAT device.
#[derive(Clone)]
pub struct Driver {
    pub model: Arc<dyn DeviceModel>,
    pub channel: u64,
}

impl Driver {
    /// The first channel, with bus mastering and vectors of the channels on.
    pub fn new(model: Arc<dyn DeviceModel>) -> Self {
        let _ = model.function().write_config(4, &[6, 0]).unwrap();
        model.write(0, reg::INTRCTRL, &[0x08]);
        Driver { model, channel: 0 }
    }

    /// The same for another channel of the same device.
    pub fn with_channel(&self, channel: u64) -> Self {
        Driver {
            channel,
            ..self.clone()
        }
    }

    pub fn get<const N: usize>(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.model.read(0, offset, &mut bytes[..N]);
        u64::from_le_bytes(bytes)
    }

    /// A register of the channel.
    pub fn read<const N: usize>(&self, register: u64) -> u64 {
        self.get::<N>((self.channel + 1) * CHANNEL_STRIDE + register)
    }

    pub fn write(&self, register: u64, bytes: &[u8]) {
        let at = (self.channel + 1) * CHANNEL_STRIDE + register;
        self.model.write(0, at, bytes);
    }

    pub fn command(&self, command: u8) {
        self.write(reg::CHANCMD, &[command]);
    }

    pub fn control(&self, control: u16) {
        self.write(reg::CHANCTRL, &control.to_le_bytes());
    }

    pub fn status(&self) -> ChanSts {
        ChanSts::from_bits(self.read::<8>(reg::CHANSTS))
    }

    pub fn errors(&self) -> ChanErr {
        ChanErr::from_bits(self.read::<4>(reg::CHANERR) as u32)
    }

    pub fn count(&self, count: u16) {
        self.write(reg::DMACOUNT, &count.to_le_bytes());
    }

    /// Stops the channel and makes it ready for a chain.
    pub fn reset(&self) {
        self.write(reg::CHANERR, &u32::MAX.to_le_bytes());
        self.command(RESET);
        let command = || self.read::<1>(reg::CHANCMD);
        eventually("the end of a reset", || command() & u64::from(RESET) == 0);
        assert!(self.status().is(ChannelStatus::Halted));
    }

    /// Starts a chain of `count` descriptors.
    pub fn start(&self, chain: u64, count: u16) {
        self.write(reg::CHAINADDR, &chain.to_le_bytes());
        self.count(count);
    }

    pub fn set_completion(&self, at: u64) {
        self.write(reg::CHANCMP, &at.to_le_bytes());
    }

    /// Waits until the channel is in `status`.
    pub fn wait_for(&self, status: ChannelStatus) {
        eventually("a status of the channel", || self.status().is(status));
    }

    /// Waits until nothing goes on, and says how it ended.
    pub fn wait_for_end(&self) -> ChanErr {
        eventually("the end of the chain", || {
            !self.status().is(ChannelStatus::Active)
        });
        self.errors()
    }

    /// Listens to `vector`.
    pub fn listen(&self, vector: u32) -> Arc<CountingIrq> {
        let irq = CountingIrq::new();
        let vectors = self.model.function().vectors();
        vectors.connect(vector, Some(irq.clone()));
        irq
    }
}

/// A whole device, its memory, and a driver of its first channel.
pub struct Whole {
    pub iommu: Arc<Iommu>,
    pub ioat: Arc<IoatDevice>,
    pub domain: Arc<Domain>,
    pub faults: Arc<FaultLog>,
    pub area: Area,
    pub driver: Driver,
}

/// Where a test's chain, its completion word and its data lie.
pub const CHAIN: u64 = Area::BASE;
pub const WORD: u64 = Area::BASE + 0x8_0000;
pub const SRC: u64 = Area::BASE + 0x10_0000;
pub const DST: u64 = Area::BASE + 0x40_0000;
/// The first byte that is not mapped.
pub const END: u64 = Area::BASE + AREA_SIZE;

impl Whole {
    pub fn new() -> Self {
        let iommu = new_iommu();
        let ioat = new_ioat(&iommu, "0000:6b:01.0", 4);
        let domain = new_domain(&iommu, ioat.device());
        let area = new_area(&iommu, &domain);
        let faults = FaultLog::new(1024);
        let sink: Arc<dyn FaultSink> = faults.clone();
        DmaSource::new(ioat.device(), None)
            .attach(&domain, &sink)
            .unwrap();
        let driver = Driver::new(ioat.clone());
        driver.set_completion(WORD);
        driver.control(RUN);
        Whole {
            iommu,
            ioat,
            domain,
            faults,
            area,
            driver,
        }
    }

    /// Runs a chain from a fresh channel to its end.
    pub fn run(&self, descriptors: &[Descriptor]) -> ChanErr {
        self.driver.reset();
        self.driver.set_completion(WORD);
        self.driver.control(RUN);
        self.area.write_chain(CHAIN, descriptors);
        self.area.write(WORD, &[0; 8]);
        self.driver.start(CHAIN, descriptors.len() as u16);
        self.driver.wait_for_end()
    }
}

/// A descriptor that interrupts and writes the completion word.
pub fn reporting(descriptor: Descriptor) -> Descriptor {
    descriptor.with_control(|control| {
        control.set_int_en(true);
        control.set_compl_write(true);
    })
}
