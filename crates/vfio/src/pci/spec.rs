//! Offsets and bits of PCI configuration space (PCI Express base specification, chapter 7). All
//! offsets are in bytes.

/// Size of configuration space without PCI Express.
pub const CONFIG_SIZE: usize = 0x100;
/// Size of configuration space with PCI Express.
pub const EXTENDED_CONFIG_SIZE: usize = 0x1000;

/// Vendor id, 16 bits.
pub const VENDOR: usize = 0x00;
/// Device id, 16 bits.
pub const DEVICE: usize = 0x02;
/// Command register, 16 bits.
pub const COMMAND: usize = 0x04;
/// Status register, 16 bits.
pub const STATUS: usize = 0x06;
/// Revision, 8 bits, with the class code in the 24 bits above.
pub const REVISION: usize = 0x08;
/// Cache line size, 8 bits.
pub const CACHE_LINE: usize = 0x0c;
/// First of six base address registers of 32 bits.
pub const BAR0: usize = 0x10;
/// Subsystem vendor id, 16 bits.
pub const SUBSYSTEM_VENDOR: usize = 0x2c;
/// Subsystem id, 16 bits.
pub const SUBSYSTEM: usize = 0x2e;
/// Offset of the first capability, 8 bits.
pub const CAPABILITIES: usize = 0x34;
/// Interrupt line, 8 bits, for software's use.
pub const INTERRUPT_LINE: usize = 0x3c;
/// First byte that capabilities may use.
pub const FIRST_CAPABILITY: usize = 0x40;
/// Where the extended capabilities start.
pub const FIRST_EXTENDED: usize = 0x100;

/// Interrupt pin, 8 bits: 1 to 4 for INTA to INTD, 0 for none.
pub const INTERRUPT_PIN: usize = 0x3d;
/// Command: the function answers I/O accesses.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: the function answers memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may issue DMA and interrupts.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command: answer to parity errors.
pub const COMMAND_PARITY: u16 = 1 << 6;
/// Command: report system errors.
pub const COMMAND_SERR: u16 = 1 << 8;
/// Command: no wired interrupt.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status, low byte: the function asserts its wired interrupt.
pub const STATUS_INTERRUPT: u8 = 1 << 3;
/// Status: there is a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Base address register: I/O ports, not memory.
pub const BAR_IO: u32 = 1 << 0;
/// Base address register: 64 bits wide, in two registers.
pub const BAR_64BIT: u32 = 1 << 2;
/// Base address register: reads have no side effects.
pub const BAR_PREFETCHABLE: u32 = 1 << 3;

/// Capability: power management.
pub const CAP_PM: u8 = 0x01;
/// Capability: message signalled interrupts.
pub const CAP_MSI: u8 = 0x05;
/// Capability: of the vendor.
pub const CAP_VENDOR: u8 = 0x09;
/// Capability: PCI Express.
pub const CAP_EXPRESS: u8 = 0x10;
/// Capability: MSI-X.
pub const CAP_MSIX: u8 = 0x11;

/// Power management: control and status register, relative to the capability.
pub const PM_CONTROL: usize = 4;
/// Power management control: the power state D0..D3.
pub const PM_STATE: u8 = 0x3;
/// Power management control: no reset on the way from D3 to D0.
pub const PM_NO_SOFT_RESET: u16 = 1 << 3;

/// PCI Express: bytes of the capability, version 2.
pub const EXPRESS_SIZE: usize = 0x3c;
/// PCI Express capability register: version 2.
pub const EXPRESS_VERSION: u16 = 2;
/// PCI Express capability register: a root complex integrated endpoint.
pub const EXPRESS_INTEGRATED: u16 = 9 << 4;
/// PCI Express: device capabilities, 32 bits.
pub const EXPRESS_DEVICE_CAPABILITIES: usize = 0x04;
/// Device capabilities: payloads up to 256 bytes, role-based error reporting.
pub const DEVCAP_BASE: u32 = 1 | 1 << 15;
/// Device capabilities: function level reset.
pub const DEVCAP_FLR: u32 = 1 << 28;
/// PCI Express: device control, 16 bits.
pub const EXPRESS_DEVICE_CONTROL: usize = 0x08;
/// Device control: everything but phantom functions and the reset bit.
pub const DEVCTL_WRITABLE: u16 = 0x7dff;
/// Device control after reset: relaxed ordering, no snoop, reads of 512 bytes.
pub const DEVCTL_INITIAL: u16 = 0x2810;
/// Device control, high byte: starts a function level reset; reads as 0.
pub const DEVCTL_FLR_HIGH: u8 = 0x80;
/// PCI Express: device capabilities 2, 32 bits.
pub const EXPRESS_DEVICE_CAPABILITIES_2: usize = 0x24;
/// Device capabilities 2: the completion timeout can be switched off.
pub const DEVCAP2_TIMEOUT_DISABLE: u32 = 1 << 4;
/// PCI Express: device control 2, 16 bits.
pub const EXPRESS_DEVICE_CONTROL_2: usize = 0x28;
/// Device capabilities 2: completes atomic operations of 32, 64 and 128 bits.
pub const DEVCAP2_ATOMIC_32: u32 = 1 << 7;
/// Device capabilities 2: likewise, 64 bits.
pub const DEVCAP2_ATOMIC_64: u32 = 1 << 8;
/// Device capabilities 2: likewise, 128 bits.
pub const DEVCAP2_ATOMIC_128: u32 = 1 << 9;
/// Device control 2: completion timeout.
pub const DEVCTL2_WRITABLE: u16 = 0x1f;

/// MSI: message control, 16 bits.
pub const MSI_CONTROL: usize = 2;
/// MSI message control: enabled.
pub const MSI_ENABLE: u8 = 1 << 0;
/// MSI message control: how many vectors the function has, as a power of two; from this bit on.
pub const MSI_CAPABLE_SHIFT: u8 = 1;
/// MSI message control: how many it was given, likewise.
pub const MSI_GIVEN_SHIFT: u8 = 4;
/// MSI message control: the field of the given vectors.
pub const MSI_GIVEN: u8 = 7 << MSI_GIVEN_SHIFT;
/// MSI message control: addresses of 64 bits.
pub const MSI_64BIT: u16 = 1 << 7;
/// MSI message control: vectors can be masked.
pub const MSI_MASKABLE: u16 = 1 << 8;
/// MSI with 64-bit addresses: bytes of the capability with masks.
pub const MSI_SIZE: usize = 24;
/// MSI: message address, 64 bits.
pub const MSI_ADDRESS: usize = 4;
/// MSI with 64-bit addresses: message data, 16 bits.
pub const MSI_DATA: usize = 12;
/// MSI with 64-bit addresses: mask register, 32 bits.
pub const MSI_MASK: usize = 16;
/// MSI with 64-bit addresses: pending register, 32 bits.
pub const MSI_PENDING: usize = 20;

/// MSI-X: message control, 16 bits.
pub const MSIX_CONTROL: usize = 2;
/// MSI-X message control, high byte: enabled.
pub const MSIX_ENABLE_HIGH: u8 = 0x80;
/// MSI-X: bytes of one table entry.
pub const MSIX_ENTRY: u64 = 16;

/// Extended capability: advanced error reporting.
pub const EXT_AER: u16 = 0x0001;
/// Extended capability: address translation services.
pub const EXT_ATS: u16 = 0x000f;
/// Extended capability: page request interface.
pub const EXT_PRI: u16 = 0x0013;
/// Extended capability: single root I/O virtualization.
pub const EXT_SRIOV: u16 = 0x0010;
/// SR-IOV: bytes of the capability.
pub const SRIOV_SIZE: usize = 0x40;
/// SR-IOV: control, 16 bits.
pub const SRIOV_CONTROL: usize = 0x08;
/// SR-IOV control: the virtual functions are there, and their memory answers.
pub const SRIOV_ENABLED: u16 = 1 | 1 << 3;
/// SR-IOV: virtual functions at first, 16 bits; the total number follows.
pub const SRIOV_INITIAL: usize = 0x0c;
/// SR-IOV: virtual functions that are to be there, 16 bits.
pub const SRIOV_COUNT: usize = 0x10;
/// SR-IOV: routing id of the first virtual function after the physical one, 16 bits.
pub const SRIOV_OFFSET: usize = 0x14;
/// SR-IOV: routing ids from one virtual function to the next, 16 bits.
pub const SRIOV_STRIDE: usize = 0x16;
/// SR-IOV: device id of the virtual functions, 16 bits.
pub const SRIOV_DEVICE: usize = 0x1a;
/// SR-IOV: supported page sizes, 32 bits, in units of 4 KiB; the size in use follows.
pub const SRIOV_PAGES: usize = 0x1c;
/// SR-IOV: first base address register of the virtual functions.
pub const SRIOV_BAR0: usize = 0x24;

/// Extended capability: PASID.
pub const EXT_PASID: u16 = 0x001b;

/// Advanced error reporting: bytes of the capability.
pub const AER_SIZE: usize = 0x48;
/// Advanced error reporting: mask of uncorrectable errors; the severity register follows.
pub const AER_UNCORRECTABLE_MASK: usize = 0x08;
/// Advanced error reporting: the uncorrectable errors that exist.
pub const AER_UNCORRECTABLE: u32 = 0x07df_f030;
/// Advanced error reporting: those that are fatal after reset.
pub const AER_SEVERITY_INITIAL: u32 = 0x0046_2030;
/// Advanced error reporting: mask of correctable errors.
pub const AER_CORRECTABLE_MASK: usize = 0x14;
/// Advanced error reporting: the correctable errors that exist.
pub const AER_CORRECTABLE: u32 = 0xf1c1;
/// Advanced error reporting: those that are masked after reset.
pub const AER_CORRECTABLE_INITIAL: u32 = 0x2000;

/// ATS capability register: requests are page aligned.
pub const ATS_PAGE_ALIGNED: u16 = 1 << 5;
/// ATS control register, relative to the capability.
pub const ATS_CONTROL: usize = 6;
/// ATS control register: enabled, as the host has it for every device with ATS.
pub const ATS_ENABLE: u16 = 1 << 15;
/// PASID control register: enabled, as the host has it for every device with PASIDs.
pub const PASID_ENABLE: u16 = 1 << 0;
/// PASID capability and control registers: requests to execute.
pub const PASID_EXEC: u16 = 1 << 1;
/// PASID capability and control registers: privileged requests.
pub const PASID_PRIV: u16 = 1 << 2;
