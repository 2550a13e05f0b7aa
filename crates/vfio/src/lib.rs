//! Floor 4: VFIO devices, whole ones and children with a default PASID, without the bytes of their
//! ioctls.
//!
//! * [`DeviceModel`]: what the author of a device writes; [`DefaultPasid`]: what a parent writes so
//!   that one of its queues can be a device of its own.
//! * [`pci`]: a PCI function without its registers: configuration space as VFIO shows it, BARs,
//!   MSI-X vectors.
//! * [`Vfio`]: the devices of one machine; [`VfioDevice`]: one of them; [`DeviceFile`]: one open
//!   `/dev/vfio/devices/vfioN`, with the operations of a bound device.
//! * [`VfioGroup`], [`GroupFile`]: the devices of one IOMMU group and the open `/dev/vfio/N`;
//!   [`Container`]: `/dev/vfio/vfio` with the type 1 IOMMU, over an IOAS.
//! * [`region`], [`irq`]: what the region and interrupt indexes of a device are.
//! * [`mdev`]: mediated devices: UUIDs, parents, and the registry that creates and removes children.
//! * [`error`]: every cause of a refusal, by subject.
//!
//! What never lives here: ioctl structs, file descriptor numbers and errno numbers (the `uapi`
//! crate); registers of any particular device; and, below this floor, any notion of a mediated
//! device. A child is a parent's device and a PASID, and attaches by the same code as a whole device.
//!
//! Inside, from the lowest floor: `base` (errors, UUIDs, saved states), `dma` (copies and write logs),
//! [`pci`], [`model`], [`device`] (the parts of one device, a type each), [`container`], `nodes` (what
//! programs open: devices, groups, and the files of both) and [`mdev`].
//!
//! Two invariants hold. *Exclusive use*: a device is bound through one file at a time; until a file
//! is bound, nothing but bind works on it. *Close never fails*: it stops the device's DMA, makes the
//! device pristine, detaches it and gives back its PASID, in this order, and when it returns no
//! access and no interrupt of the old user can happen any more.
//!
//! # A device
//! A counter that interrupts on vector 0 when it is written:
//! ```
//! use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
//! use ioasid_vfio::{
//!     DeviceModel,
//!     pci::{Bar, Function, FunctionBuilder, LayoutError, MsixLayout},
//! };
//!
//! /// Register 0 of BAR 0, 8 bytes: adds what is written, reads the sum.
//! const SUM: u64 = 0;
//!
//! #[derive(Debug)]
//! struct Adder {
//!     function: Function,
//!     sum: AtomicU64,
//! }
//!
//! impl Adder {
//!     fn new() -> Result<Arc<Self>, LayoutError> {
//!         let function = FunctionBuilder::new(0x1b36, 0x0005)
//!             .class(0x00ff00, 1)
//!             .bar(0, Bar::memory64(0x4000))
//!             .express()
//!             .msix(MsixLayout::new(0, 0x2000, 0x3000, 1))
//!             .build()?;
//!         Ok(Arc::new(Adder { function, sum: AtomicU64::new(0) }))
//!     }
//! }
//!
//! impl DeviceModel for Adder {
//!     fn function(&self) -> &Function {
//!         &self.function
//!     }
//!
//!     fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
//!         data.fill(0);
//!         if let (0, SUM, Ok(data)) = (bar, offset, data.try_into()) {
//!             let data: &mut [u8; 8] = data;
//!             *data = self.sum.load(Ordering::Acquire).to_le_bytes();
//!         }
//!     }
//!
//!     fn write(&self, bar: u8, offset: u64, data: &[u8]) {
//!         if let (0, SUM, Ok(data)) = (bar, offset, data.try_into()) {
//!             self.sum.fetch_add(u64::from_le_bytes(data), Ordering::AcqRel);
//!             self.function.vectors().signal(0);
//!         }
//!     }
//!
//!     fn reset(&self) {
//!         self.sum.store(0, Ordering::Release);
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Offered whole to programs:
//! use ioasid_iommu::{DeviceConfig, Iommu, IommuConfig};
//! use ioasid_vfio::{Passthrough, Vfio};
//! let iommu = Iommu::new(IommuConfig::default());
//! let dma = iommu.add_device(DeviceConfig::new("0000:6b:01.0".parse()?))?;
//! let vfio = Vfio::new(&iommu);
//! let device = vfio.add(Adder::new()?, Passthrough::Whole(dma));
//! let file = device.open()?;
//! assert_eq!(device.name(), "vfio0");
//!
//! // A program binds it to its /dev/iommu file and uses it:
//! let context = ioasid_iommufd::Context::new(&iommu);
//! assert!(file.read(0, &mut [0; 8]).is_err(), "nothing works before bind");
//! file.bind(&context)?;
//! file.write(SUM, &41_u64.to_le_bytes())?;
//! file.write(SUM, &1_u64.to_le_bytes())?;
//! let mut sum = [0; 8];
//! file.read(SUM, &mut sum)?;
//! assert_eq!(u64::from_le_bytes(sum), 42);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod base;
pub mod container;
pub mod device;
mod dma;
pub mod mdev;
pub mod model;
mod nodes;
pub mod pci;

pub use base::{
    attribute::AttributeError,
    error::{self, Error, Result},
    saved,
};
pub use container::Container;
pub use device::{
    Feature, MapRange, MapRequest, MigrationState, StoreRequest, Token, UserPasid, UserPasids,
    irq::{self, Eventfd, IrqAction, IrqData, IrqIndex, IrqInfo, SetIrqs},
    region::{self, RegionIndex, RegionInfo},
};
pub use dma::{
    emulated::EmulatedDma,
    write_log::{self, LogRanges},
};
pub use model::{DefaultPasid, DeviceModel, Migrate, Passthrough, StateError};
pub use nodes::{
    device::{DeviceInfo, VfioDevice},
    file::DeviceFile,
    group::{self, ContainerFile, GroupFile, VfioGroup},
    vfio::Vfio,
};
