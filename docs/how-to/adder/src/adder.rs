//! The device: one register, and DMA.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
    mpsc::{Sender, channel},
};

use ioasid::{
    ModelError,
    core::{
        host::Spawner,
        inspect::{Inspect, Node},
        sync::Mutex,
    },
    iommu::{Device, DmaPort, Stop},
    vfio::{
        DeviceModel,
        pci::{Bar, Function, FunctionBuilder, MsixLayout},
    },
};

/// Register 0 of BAR 0, 8 bytes. Writing an address adds to the 8 bytes of memory there; vector 0
/// says when that is done.
const DOORBELL: u64 = 0;

/// A device that adds.
#[derive(Debug)]
pub struct Adder {
    function: Function,
    /// What it adds.
    step: u64,
    /// Orders for the engine: an address, and how many resets there had been.
    orders: Sender<(u64, u64)>,
    resets: AtomicU64,
    sums: AtomicU64,
    /// Held while the engine reaches memory.
    port: Mutex<DmaPort>,
}

impl Adder {
    /// A device that adds `step`, at `device` behind the IOMMU.
    pub fn new(
        device: &Arc<Device>,
        step: u64,
        spawner: &dyn Spawner,
    ) -> Result<Arc<Self>, ModelError> {
        let function = FunctionBuilder::new(0x1b36, 0x0005)
            .class(0x00ff00, 1)
            .bar(0, Bar::memory64(0x4000))
            .express()
            .msix(MsixLayout::new(0, 0x2000, 0x3000, 1))
            .build()?;
        let (orders, engine) = channel();
        let adder = Arc::new(Adder {
            function,
            step,
            orders,
            resets: AtomicU64::new(0),
            sums: AtomicU64::new(0),
            port: Mutex::new(device.port()),
        });
        let weak = Arc::downgrade(&adder);
        let work = move || {
            // Ends when the device is gone.
            for (address, resets) in engine {
                weak.upgrade().inspect(|adder| adder.add(address, resets));
            }
        };
        spawner.spawn("adder", Box::new(work))?;
        Ok(adder)
    }

    /// On the engine's thread, which serves one user at a time: memory may block it.
    fn add(&self, address: u64, resets: u64) {
        let mut port = self.port.lock();
        if resets != self.resets.load(Ordering::Acquire) || !self.function.bus_master() {
            return;
        }
        let (mut guard, mut bytes) = (port.enter_blocking(None), [0; 8]);
        let mut stop = guard.read(address, &mut bytes).stop;
        if stop.is_none() {
            let sum = u64::from_le_bytes(bytes).wrapping_add(self.step);
            stop = guard.write(address, &sum.to_le_bytes()).stop;
        }
        match &stop {
            None => drop(self.sums.fetch_add(1, Ordering::Relaxed)),
            Some(Stop::Fault(fault)) => guard.report(fault),
            Some(_) => {}
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

/// What `ioasid inspect` shows of it.
impl Inspect for Adder {
    fn inspect(&self) -> Node {
        Node::new()
            .with("step", self.step)
            .with("sums", self.sums.load(Ordering::Relaxed))
    }
}
