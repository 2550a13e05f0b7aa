//! Registers of BAR0. Offsets are bytes, from the start of BAR0 or, for those of a channel, from
//! the start of its block.

use bitfield_struct::bitfield;

/// PCI vendor: Intel.
pub const VENDOR: u16 = 0x8086;
/// PCI device: I/OAT of the Xeon Scalable family (`PCI_DEVICE_ID_INTEL_IOAT_SKX`).
pub const DEVICE: u16 = 0x2021;
/// PCI class code: base system peripheral, other (0x088000).
pub const CLASS: u32 = 0x08_80_00;
/// DMA uncorrectable error status, 32 bits of configuration space (`DMAUNCERRSTS`).
pub const CONFIG_DMAUNCERRSTS: usize = 0x148;
/// Channel error interrupt status and mask, 64 bits of configuration space (`CHANERR_INT`,
/// `CHANERRMSK_INT`).
pub const CONFIG_CHANERR_INT: usize = 0x180;

/// Number of channels, 8 bits, read-only.
pub const CHANCNT: u64 = 0x00;
/// Largest transfer of one descriptor, as a power of two, 8 bits, read-only.
pub const XFERCAP: u64 = 0x01;
/// [`IntrCtrl`], 8 bits.
pub const INTRCTRL: u64 = 0x03;
/// Channels with an interrupt that has not been rearmed, one bit each, 32 bits, read-only.
pub const ATTNSTATUS: u64 = 0x04;
/// Version: major in bits 7..=4, minor in bits 3..=0, 8 bits, read-only.
pub const CBVER: u64 = 0x08;
/// Interrupt delay in microseconds in bits 13..=0, 16 bits. Bit 15, coalescing, reads 0: the delay
/// is kept and has no effect.
pub const INTRDELAY: u64 = 0x0c;
/// [`DmaCap`], 32 bits, read-only.
pub const DMACAPABILITY: u64 = 0x10;
/// End of the device's own registers.
pub const GENERAL_END: u64 = 0x80;

/// [`CBVER`] of this model: 3.3.
pub const VERSION: u8 = 0x33;
/// Bits of [`INTRDELAY`] that are kept.
pub const INTRDELAY_MASK: u16 = 0x3fff;

/// Bytes of a channel's block; that of channel n starts at (n + 1) times as many.
pub const CHANNEL_STRIDE: u64 = 0x80;
/// [`ChanCtrl`], 16 bits.
pub const CHANCTRL: u64 = 0x00;
/// Compatibility, 16 bits, read-only.
pub const DMA_COMP: u64 = 0x02;
/// [`ChanCmd`], 8 bits.
pub const CHANCMD: u64 = 0x04;
/// Descriptors to do since the chain address was written, modulo 2^16: the doorbell, 16 bits.
pub const DMACOUNT: u64 = 0x06;
/// [`ChanSts`], 64 bits, read-only.
pub const CHANSTS: u64 = 0x08;
/// Address of the first descriptor, 64 bits.
pub const CHAINADDR: u64 = 0x10;
/// Address of the completion word, 64 bits, a multiple of 8.
pub const CHANCMP: u64 = 0x18;
/// Address of the current descriptor, 64 bits, read-only.
pub const CDAR: u64 = 0x20;
/// [`ChanErr`], 32 bits, write 1 to clear.
pub const CHANERR: u64 = 0x28;
/// Mask of [`ChanErr`], 32 bits.
pub const CHANERRMSK: u64 = 0x2c;
/// Direct cache access, 32 bits: kept, without effect.
pub const DCACTRL: u64 = 0x30;

/// [`DMA_COMP`] of this model: compatible with version 2.
pub const COMPATIBILITY: u16 = 2;

/// MSI-X table, 16 bytes per vector: behind the registers, on pages of its own, because drivers
/// without the MSIX_MAPPABLE capability map around its page.
pub const MSIX_TABLE: u64 = 0x2000;
/// MSI-X pending bits.
pub const MSIX_PBA: u64 = 0x3000;
/// Size of BAR0 in bytes.
pub const BAR0_SIZE: u64 = 0x4000;

/// Interrupt control, `INTRCTRL`.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct IntrCtrl {
    /// Vector 0 is used while set. Reading the register clears it.
    pub master_int_en: bool,
    /// A channel wants attention; read-only.
    pub int_status: bool,
    /// Both of the above; read-only.
    pub int: bool,
    /// Each channel uses the MSI-X vector of its own number, whatever the bits above say.
    pub msix_vector_control: bool,
    #[bits(4)]
    __: u8,
}

/// Capabilities, `DMACAPABILITY`.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DmaCap {
    /// Transfers that break at pages.
    pub page_break: bool,
    /// CRC generation.
    pub crc: bool,
    /// Marker skipping.
    pub marker_skip: bool,
    __: bool,
    /// Direct cache access.
    pub dca: bool,
    /// Move with CRC.
    pub crc_move: bool,
    /// Block fill.
    pub fill_block: bool,
    /// APIC id tags.
    pub apic: bool,
    /// XOR of several sources.
    pub xor: bool,
    /// P and Q parity of several sources.
    pub pq: bool,
    #[bits(3)]
    __: u8,
    /// Error status is written back to the descriptor.
    pub dwbes: bool,
    #[bits(3)]
    __: u8,
    /// Parity of 16 sources.
    pub raid16ss: bool,
    #[bits(14)]
    __: u32,
}

/// Channel control, `CHANCTRL`.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct ChanCtrl {
    /// Reads 1 from an interrupt on: no further one until 1 is written here (`INT_REARM`).
    pub int_disable: bool,
    __: bool,
    /// Write the completion word when the channel halts.
    pub err_completion_en: bool,
    /// Halt on any error. This model always does.
    pub any_err_abort_en: bool,
    /// Interrupt when the channel halts.
    pub err_int_en: bool,
    /// Snoop control of descriptors; no effect.
    pub snoop_control: bool,
    #[bits(2)]
    __: u8,
    /// The channel is in use; no effect.
    pub in_use: bool,
    /// Direct cache access for the completion word; no effect.
    pub compl_dca_en: bool,
    #[bits(2)]
    __: u8,
    /// Priority; no effect.
    #[bits(4)]
    pub priority: u8,
}

impl ChanCtrl {
    /// Bits that keep what is written to them.
    pub const KEPT: u16 = 0xf33c;
    /// Those, and the one that an interrupt sets.
    pub const STATE: u16 = ChanCtrl::KEPT | 1;
}

/// Channel command, `CHANCMD`: one bit at a time. Those of version 1 are errors here.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct ChanCmd {
    /// Version 1.
    pub start: bool,
    /// Version 1.
    pub append: bool,
    /// Stop after the current descriptor.
    pub suspend: bool,
    /// Version 1.
    pub abort: bool,
    /// Go on after a suspend.
    pub resume: bool,
    /// Stop at once; reads 1 until the channel is reset.
    pub reset: bool,
    #[bits(2)]
    __: u8,
}

/// What a channel is doing: bits 2..=0 of [`ChanSts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ChannelStatus {
    /// Descriptors are under way.
    Active = 0,
    /// As many descriptors as asked for are done.
    Done = 1,
    /// Stopped by a command between two descriptors.
    Suspended = 2,
    /// Reset, or stopped by an error.
    Halted = 3,
    /// A chain address is set and nothing done yet.
    Armed = 4,
}

impl ChannelStatus {
    /// The status of this number.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => ChannelStatus::Active,
            1 => ChannelStatus::Done,
            2 => ChannelStatus::Suspended,
            3 => ChannelStatus::Halted,
            4 => ChannelStatus::Armed,
            _ => return None,
        })
    }
}

/// Channel status, `CHANSTS`, which is also what the completion word holds.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ChanSts {
    /// [`ChannelStatus`].
    #[bits(3)]
    pub status: u8,
    /// An error of no channel.
    pub unaffiliated_err: bool,
    /// A correctable error.
    pub soft_err: bool,
    __: bool,
    /// Bits 63..=6 of the address of the last descriptor that was done; 0 before the first.
    #[bits(58)]
    pub completed: u64,
}

impl ChanSts {
    /// The register after the descriptor at `completed` was done.
    pub fn at(completed: u64, status: ChannelStatus) -> Self {
        ChanSts::new()
            .with_completed(completed >> 6)
            .with_status(status as u8)
    }

    /// Address of the last descriptor that was done.
    pub fn completed_address(self) -> u64 {
        self.completed() << 6
    }

    /// Whether the channel is in `status`.
    pub fn is(self, status: ChannelStatus) -> bool {
        self.status() == status as u8
    }
}

/// Channel errors, `CHANERR`.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ChanErr {
    /// Illegal source address.
    pub src_addr: bool,
    /// Illegal destination address.
    pub dest_addr: bool,
    /// The next descriptor's address is not a multiple of 64.
    pub next_addr: bool,
    /// A descriptor could not be read.
    pub descriptor: bool,
    /// The chain address is not a multiple of 64.
    pub chain_addr: bool,
    /// An invalid command.
    pub chancmd: bool,
    /// Uncorrectable data error of the chipset.
    pub chipset_data: bool,
    /// Uncorrectable data error of the device.
    pub dma_data: bool,
    /// A source could not be read.
    pub read_data: bool,
    /// A destination could not be written.
    pub write_data: bool,
    /// An operation or control bit that the device does not have.
    pub control: bool,
    /// A transfer of 0 bytes, or of more than the device can.
    pub length: bool,
    /// The completion word could not be written, or its address is not a multiple of 8.
    pub completion_addr: bool,
    /// An interrupt was asked for and none is set up.
    pub int_config: bool,
    /// A correctable error.
    pub soft: bool,
    /// An error of no channel.
    pub unaffiliated: bool,
    /// The XOR or P of a check is wrong.
    pub xor_p_or_crc: bool,
    /// The Q of a check is wrong.
    pub xor_q: bool,
    /// The count ends between a descriptor and its extension.
    pub descriptor_count: bool,
    #[bits(13)]
    __: u32,
}

impl ChanErr {
    /// Errors that a mask keeps from halting the channel: results of checks, not failures.
    pub const MASKABLE: ChanErr = ChanErr::new().with_xor_p_or_crc(true).with_xor_q(true);
    /// All errors, as bits.
    pub const ALL: u32 = (1 << 19) - 1;
}
