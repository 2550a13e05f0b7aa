//! A whole device on one page, and a program that uses it. docs/how-to/write-a-device.md walks
//! through it; `cargo run -p ioasid-vfio --example adder` runs it.
#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
};

use ioasid_core::{
    Prot,
    host::{CountingIrq, IrqSink},
    memory::OwnPages,
    sync::Mutex,
};
use ioasid_iommu::{Device, DeviceConfig, DmaPort, Iommu, IommuConfig, Stop};
use ioasid_iommufd::{Context, MapArgs};
use ioasid_vfio::{
    DeviceModel, Eventfd, IrqAction, IrqData, IrqIndex, Passthrough, SetIrqs, Vfio,
    pci::{Bar, Function, FunctionBuilder, LayoutError, MsixLayout},
};

// The device.

/// Register 0 of BAR 0, 8 bytes. Writing an address adds one to the 8 bytes of memory there; vector 0
/// says when it is done.
const DOORBELL: u64 = 0;

#[derive(Debug)]
struct Adder {
    function: Function,
    /// Orders for the engine: an address, and how many resets there had been.
    orders: Sender<(u64, u64)>,
    resets: AtomicU64,
    /// Held while the engine reaches memory.
    port: Mutex<DmaPort>,
}

impl Adder {
    fn new(device: &Arc<Device>) -> Result<Arc<Self>, LayoutError> {
        let function = FunctionBuilder::new(0x1b36, 0x0005)
            .class(0x00ff00, 1)
            .bar(0, Bar::memory64(0x4000))
            .express()
            .msix(MsixLayout::new(0, 0x2000, 0x3000, 1))
            .build()?;
        let (orders, engine) = channel();
        let (resets, port) = (AtomicU64::new(0), Mutex::new(device.port()));
        let adder = Arc::new(Adder {
            function,
            orders,
            resets,
            port,
        });
        let weak = Arc::downgrade(&adder);
        std::thread::spawn(move || {
            for (address, resets) in engine {
                weak.upgrade()
                    .inspect(|adder| adder.add_one(address, resets));
            }
        });
        Ok(adder)
    }

    /// On the engine's thread, which serves one user at a time: memory may block it.
    fn add_one(&self, address: u64, resets: u64) {
        let mut port = self.port.lock();
        if resets != self.resets.load(Ordering::Acquire) || !self.function.bus_master() {
            return;
        }
        let (mut guard, mut bytes) = (port.enter_blocking(None), [0; 8]);
        let mut stop = guard.read(address, &mut bytes).stop;
        if stop.is_none() {
            let sum = u64::from_le_bytes(bytes).wrapping_add(1);
            stop = guard.write(address, &sum.to_le_bytes()).stop;
        }
        if let Some(Stop::Fault(fault)) = &stop {
            guard.report(fault);
        }
        drop(guard);
        self.function.vectors().signal(0);
    }
}

impl DeviceModel for Adder {
    fn function(&self) -> &Function {
        &self.function
    }

    fn read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _bar: u8, offset: u64, data: &[u8]) {
        if let (DOORBELL, Ok(address)) = (offset, data.try_into()) {
            let resets = self.resets.load(Ordering::Acquire);
            // The engine is there as long as the device is.
            let _ = self.orders.send((u64::from_le_bytes(address), resets));
        }
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::AcqRel);
        // What the engine has begun is done when the port is free.
        drop(self.port.lock());
    }
}

// The machine that it is in, and a program that uses it as it would through /dev/vfio.

fn main() -> Result<(), Box<dyn Error>> {
    let iommu = Iommu::new(IommuConfig::default());
    let dma = iommu.add_device(DeviceConfig::new("0000:6b:01.0".parse()?))?;
    let device = Vfio::new(&iommu).add(Adder::new(&dma)?, Passthrough::Whole(dma));

    let context = Context::new(&iommu);
    let ioas = context.ioas_alloc()?;
    let memory = OwnPages::new(iommu.space(), 0x1000)?;
    memory.memory().write(0x10, &41_u64.to_le_bytes());
    context.ioas_map(
        ioas,
        Arc::new(memory.clone()),
        MapArgs::fixed(0x4000_0000, 0x1000, Prot::RW),
    )?;

    let file = device.open()?;
    file.bind(&context)?;
    file.attach(ioas, None)?;
    let done = CountingIrq::new();
    file.set_irqs(&SetIrqs {
        index: IrqIndex::Msix,
        action: IrqAction::Trigger,
        start: 0,
        count: 1,
        data: IrqData::Eventfds(vec![Eventfd::Sink(done.clone() as Arc<dyn IrqSink>)]),
    })?;
    // PCI_COMMAND: memory and bus mastering on.
    file.write((7 << 40) + 4, &6_u16.to_le_bytes())?;

    file.write(DOORBELL, &0x4000_0010_u64.to_le_bytes())?;
    while done.count() < 1 {
        std::thread::yield_now();
    }
    let mut sum = [0; 8];
    memory.memory().read(0x10, &mut sum);
    println!("the device says {}", u64::from_le_bytes(sum));
    assert_eq!(u64::from_le_bytes(sum), 42);

    // Where nothing is mapped the device is refused, and the fault is in the log of its user.
    file.write(DOORBELL, &0x5000_0000_u64.to_le_bytes())?;
    while done.count() < 2 {
        std::thread::yield_now();
    }
    println!(
        "and of an address that is not mapped: {} fault",
        device.faults().total()
    );
    assert_eq!(device.faults().total(), 1);
    Ok(())
}

#[test]
fn it_does_what_it_says() -> Result<(), Box<dyn Error>> {
    main()
}
