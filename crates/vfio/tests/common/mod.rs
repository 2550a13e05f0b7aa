//! A small device, whole or as a child, on a real IOMMU.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ioasid_core::{Pasid, sync::Mutex};
use ioasid_iommu::{Device, DeviceConfig, Iommu, IommuConfig, PasidHandle, PasidQuota};
use ioasid_vfio::{
    DefaultPasid, DeviceModel, Passthrough, Vfio, VfioDevice,
    error::BindError,
    pci::{Bar, Function, FunctionBuilder, MsixLayout},
};

/// File offset of configuration space.
pub const CONFIG: u64 = 7 << 40;
/// File offset of BAR 2, the one with wide stores.
pub const PORTAL: u64 = 2 << 40;

/// What happened, in order.
pub type Journal = Arc<Mutex<Vec<String>>>;

/// One register at 0 of BAR 0, and a BAR 2 that remembers its stores.
#[derive(Debug)]
pub struct Example {
    function: Function,
    register: AtomicU64,
    pub stores: Mutex<Vec<(u64, usize)>>,
    pub journal: Journal,
}

impl Example {
    pub fn new(journal: &Journal) -> Arc<Self> {
        let function = FunctionBuilder::new(0x1b36, 0x0005)
            .class(0x00_ff00, 1)
            .bar(0, Bar::memory64(0x4000))
            .bar(2, Bar::memory64(0x4000).with_wide_stores())
            .express()
            .msix(MsixLayout::new(0, 0x2000, 0x3000, 2))
            .power_management()
            .scratch(0xf0, 4)
            .pasid(20, 6)
            .build()
            .unwrap();
        Arc::new(Example {
            function,
            register: AtomicU64::new(0),
            stores: Mutex::default(),
            journal: Arc::clone(journal),
        })
    }
}

impl DeviceModel for Example {
    fn function(&self) -> &Function {
        &self.function
    }

    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, 0, Ok(data)) = (bar, offset, <&mut [u8; 8]>::try_from(data)) {
            *data = self.register.load(Ordering::SeqCst).to_le_bytes();
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        match (bar, offset, <[u8; 8]>::try_from(data)) {
            (0, 0, Ok(value)) => self
                .register
                .store(u64::from_le_bytes(value), Ordering::SeqCst),
            (2, ..) => self.stores.lock().push((offset, data.len())),
            _ => {}
        }
    }

    fn reset(&self) {
        self.register.store(0, Ordering::SeqCst);
        self.journal.lock().push("reset".to_owned());
    }

    fn release(&self) {
        self.register.store(0, Ordering::SeqCst);
        let master = self.function.bus_master();
        self.journal
            .lock()
            .push(format!("release, master {master}"));
    }
}

/// A child of `parent` with a PASID of the machine's pool.
#[derive(Debug)]
pub struct Child {
    parent: Arc<Device>,
    iommu: Arc<Iommu>,
    quota: Arc<PasidQuota>,
    pasid: Mutex<Option<PasidHandle>>,
    journal: Journal,
}

impl Child {
    fn attached(&self) -> bool {
        let pasid = self.pasid.lock().as_ref().map(PasidHandle::pasid);
        let attachments = self.parent.attachments();
        attachments
            .iter()
            .any(|(found, _)| pasid.is_some() && *found == pasid)
    }

    fn note(&self, what: &str) {
        let attached = if self.attached() {
            "attached"
        } else {
            "detached"
        };
        self.journal.lock().push(format!("{what}, {attached}"));
    }
}

impl DefaultPasid for Child {
    fn bind(&self) -> Result<(Arc<Device>, Pasid), BindError> {
        let pool = self.iommu.pasids();
        let handle = pool.alloc(&self.quota).map_err(BindError::NoPasid)?;
        let pasid = handle.pasid();
        *self.pasid.lock() = Some(handle);
        Ok((Arc::clone(&self.parent), pasid))
    }

    fn quiesce(&self) {
        self.note("quiesce");
    }

    fn unbind(&self) {
        self.note("unbind");
        *self.pasid.lock() = None;
    }
}

/// A machine of examples.
pub struct Machine {
    pub iommu: Arc<Iommu>,
    pub vfio: Arc<Vfio>,
    pub journal: Journal,
}

impl Machine {
    pub fn new() -> Self {
        let iommu = Iommu::new(IommuConfig::default());
        Machine {
            vfio: Vfio::new(&iommu),
            iommu,
            journal: Journal::default(),
        }
    }

    pub fn dma(&self, address: &str) -> Arc<Device> {
        let config = DeviceConfig::new(address.parse().unwrap());
        self.iommu.add_device(config).unwrap()
    }

    pub fn whole(&self, dma: &Arc<Device>) -> (Arc<VfioDevice>, Arc<Example>) {
        let model = Example::new(&self.journal);
        let passthrough = Passthrough::Whole(Arc::clone(dma));
        (self.vfio.add(model.clone(), passthrough), model)
    }

    pub fn child_pasid(&self, parent: &Arc<Device>, limit: u32) -> Arc<Child> {
        Arc::new(Child {
            parent: Arc::clone(parent),
            iommu: Arc::clone(&self.iommu),
            quota: PasidQuota::new(limit),
            pasid: Mutex::default(),
            journal: Arc::clone(&self.journal),
        })
    }

    pub fn child(&self, parent: &Arc<Device>) -> (Arc<VfioDevice>, Arc<Example>) {
        let model = Example::new(&self.journal);
        let passthrough = Passthrough::Child(self.child_pasid(parent, 1));
        (self.vfio.add(model.clone(), passthrough), model)
    }

    pub fn take_journal(&self) -> Vec<String> {
        std::mem::take(&mut *self.journal.lock())
    }
}
