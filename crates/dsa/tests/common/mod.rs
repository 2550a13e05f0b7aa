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

use ioasid_core::{
    host::{CountingIrq, StdSpawner},
    inspect::{Inspect, Value},
    sync::Mutex,
};
use ioasid_dsa::{
    DsaConfig, DsaDevice,
    spec::{
        Cmd, CmdStatus, Command, CompletionRecord, Descriptor,
        completion::RECORD_SIZE,
        registers::{self as reg, PORTAL_STRIDE},
        tables::{GRPCFG_SIZE, WQCFG_SIZE, WqLimits, WqUse},
    },
};
use ioasid_iommu::{
    Device, DeviceConfig, DmaSource, Domain, DomainConfig, FaultLog, FaultSink, Iommu, IommuConfig,
    PageRequest, PageRequestHandler,
};
pub use ioasid_testing::{Area, PATIENCE, add_device, eventually, new_domain, new_iommu, pattern};
use ioasid_vfio::DeviceModel;

pub fn new_dsa(iommu: &Arc<Iommu>, device: &Arc<Device>, config: DsaConfig) -> Arc<DsaDevice> {
    DsaDevice::new(iommu, Arc::clone(device), config, &StdSpawner).unwrap()
}

/// A device that can send privileged requests, or cannot.
pub fn new_device(privileged_mode: bool) -> (Arc<Iommu>, Arc<Device>) {
    let iommu = new_iommu();
    let mut config = DeviceConfig::new("0000:6b:01.0".parse().unwrap());
    config.pasid_privileged = privileged_mode;
    let device = iommu.add_device(config).unwrap();
    (iommu, device)
}

/// Completion records in memory.
pub trait Records {
    /// The record at `iova` as it is now.
    fn record(&self, iova: u64) -> CompletionRecord;

    /// Waits until the descriptor with this record is done.
    fn wait(&self, iova: u64) -> CompletionRecord;
}

impl Records for Area {
    fn record(&self, iova: u64) -> CompletionRecord {
        let status = self.read(iova, 1);
        fence(Ordering::Acquire);
        let mut bytes = [0; RECORD_SIZE];
        bytes.copy_from_slice(&self.read(iova, RECORD_SIZE));
        bytes[0] = status[0];
        CompletionRecord::from_bytes(&bytes)
    }

    fn wait(&self, iova: u64) -> CompletionRecord {
        eventually("a completion record", || self.read(iova, 1)[0] != 0);
        self.record(iova)
    }
}

/// A driver of whatever has the registers of a DSA.
#[derive(Clone)]
pub struct Driver {
    pub model: Arc<dyn DeviceModel>,
}

impl Driver {
    pub fn new(model: Arc<dyn DeviceModel>) -> Self {
        let driver = Driver { model };
        driver
            .model
            .function()
            .write_config(4, &[6, 0])
            .map(drop)
            .unwrap();
        driver
    }

    pub fn read32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.model.read(0, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn read64(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.model.read(0, offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub fn write32(&self, offset: u64, value: u32) {
        self.model.write(0, offset, &value.to_le_bytes());
    }

    pub fn write64(&self, offset: u64, value: u64) {
        self.model.write(0, offset, &value.to_le_bytes());
    }

    /// Starts a command.
    pub fn start(&self, command: Command, operand: u32) {
        let cmd = Cmd::new().with_code(command as u8).with_operand(operand);
        self.write32(reg::CMD, cmd.into_bits());
    }

    pub fn command_status(&self) -> CmdStatus {
        CmdStatus::from_bits(self.read32(reg::CMDSTS))
    }

    /// Runs a command and gives its error code.
    pub fn command(&self, command: Command, operand: u32) -> u8 {
        self.start(command, operand);
        eventually("the end of a command", || !self.command_status().active());
        self.command_status().error()
    }

    /// Configures a whole device: every queue and engine in one group, `sizes` for the queues, with
    /// Block On Fault allowed; enables the device.
    pub fn configure(&self, sizes: &[u16]) {
        assert_eq!(self.command(Command::ResetDevice, 0), 0);
        self.write64(reg::GRPCFG, (1 << sizes.len()) - 1);
        let engines = self.read64(reg::ENGCAP) & 0xff;
        self.write64(reg::GRPCFG + GRPCFG_SIZE / 2, (1 << engines) - 1);
        for (queue, size) in (0..).zip(sizes) {
            self.configure_queue(queue, *size, usage());
        }
        assert_eq!(self.command(Command::EnableDevice, 0), 0);
    }

    pub fn configure_queue(&self, queue: u64, size: u16, usage: WqUse) {
        let limits = WqLimits::new()
            .with_max_xfer_shift(21)
            .with_max_batch_shift(10);
        let entry = reg::WQCFG + queue * WQCFG_SIZE;
        self.write32(entry, size.into());
        self.write32(entry + 8, usage.into_bits());
        self.write32(entry + 12, limits.into_bits());
    }

    pub fn submit(&self, queue: u64, descriptor: Descriptor) {
        let portal = queue * PORTAL_STRIDE;
        self.model.write(2, portal, &descriptor.to_bytes());
    }

    /// Submits as `ENQCMD` does, in the name of `pasid`; whether the device took it.
    pub fn enqueue(&self, portal: u64, pasid: u32, descriptor: Descriptor) -> bool {
        let descriptor = Descriptor {
            pasid,
            ..descriptor
        };
        self.model.enqueue(2, portal, &descriptor.to_bytes())
    }

    /// Listens to `vector`.
    pub fn listen(&self, vector: u32) -> Arc<CountingIrq> {
        let irq = CountingIrq::new();
        self.model
            .function()
            .vectors()
            .connect(vector, Some(irq.clone()));
        irq
    }

    /// Valid bit and error code of SWERR.
    pub fn software_error(&self) -> Option<u8> {
        let info = self.read64(reg::SWERR);
        (info & 1 != 0).then_some((info >> 8) as u8)
    }
}

/// A dedicated queue with Block On Fault and without a PASID.
pub fn usage() -> WqUse {
    WqUse::new()
        .with_dedicated(true)
        .with_block_on_fault(true)
        .with_priority(10)
}

/// A whole device, configured and enabled with its first queue, and memory in its domain.
pub struct Whole {
    pub iommu: Arc<Iommu>,
    pub device: Arc<Device>,
    pub dsa: Arc<DsaDevice>,
    pub domain: Arc<Domain>,
    pub faults: Arc<FaultLog>,
    pub area: Area,
    pub driver: Driver,
}

impl Whole {
    /// Mapped bytes.
    pub const SIZE: u64 = 8 << 20;

    pub fn new(queue_size: u16) -> Self {
        let iommu = new_iommu();
        let device = add_device(&iommu, "0000:6b:01.0");
        let mut config = DsaConfig::with_queues(4);
        for queue in &mut config.queues {
            queue.size = queue_size;
        }
        let dsa = new_dsa(&iommu, &device, config);
        let domain = new_domain(&iommu, &device);
        let area = Area::new(&iommu, Self::SIZE as usize);
        area.map(&domain, Self::SIZE);
        let faults = FaultLog::new(1024);
        let sink: Arc<dyn FaultSink> = faults.clone();
        DmaSource::new(&device, None)
            .attach(&domain, &sink)
            .unwrap();
        let driver = Driver::new(dsa.clone());
        driver.configure(&[queue_size; 4]);
        assert_eq!(driver.command(Command::EnableWq, 0), 0);
        Whole {
            iommu,
            device,
            dsa,
            domain,
            faults,
            area,
            driver,
        }
    }

    /// Runs one descriptor on queue 0; its record is the first 32 bytes of the area.
    pub fn run(&self, mut descriptor: Descriptor) -> CompletionRecord {
        self.area.write(Area::BASE, &[0; RECORD_SIZE]);
        descriptor.record_addr = Area::BASE;
        self.driver.submit(0, descriptor);
        self.area.wait(Area::BASE)
    }
}

/// Keeps page requests for the test to answer.
#[derive(Debug, Default)]
pub struct Requests(Mutex<Vec<PageRequest>>);

impl PageRequestHandler for Requests {
    fn request(&self, request: PageRequest) {
        self.0.lock().push(request);
    }
}

impl Requests {
    pub fn install(domain: &Domain) -> Arc<Self> {
        let requests = Arc::new(Requests::default());
        domain.set_page_request_handler(Some(requests.clone()));
        requests
    }

    pub fn next(&self) -> PageRequest {
        eventually("a page request", || !self.is_empty());
        self.0.lock().remove(0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

pub fn queue_field(dsa: &dyn Inspect, queue: usize, field: &str) -> Value {
    let node = dsa.inspect();
    let Some(Value::List(queues)) = node.field("queues") else {
        panic!("queues are listed")
    };
    let Value::Node(queue) = &queues[queue] else {
        panic!("a queue is a node")
    };
    queue.field(field).unwrap().clone()
}
