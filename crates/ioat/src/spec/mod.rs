//! The hardware interface: registers and descriptors, as types. No behaviour.
//!
//! Sources: Intel Xeon Processor Scalable Family datasheet, volume 2 (Crystal Beach DMA registers),
//! and the names of Linux `drivers/dma/ioat/{registers,hw}.h`.

pub mod descriptor;
pub mod map;
pub mod registers;

pub use descriptor::{Control, DESCRIPTOR_SIZE, Descriptor, Opcode};
pub use registers::{ChanCmd, ChanCtrl, ChanErr, ChanSts, ChannelStatus, DmaCap, IntrCtrl};
