//! BAR0 as tables: which registers there are, how wide they are, and which of them software writes.

use ioasid_core::regmap::{RegMap, Register};

use super::registers as reg;

/// A register of the device itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum General {
    /// `CHANCNT`.
    ChanCnt,
    /// `XFERCAP`.
    XferCap,
    /// [`reg::IntrCtrl`].
    IntrCtrl,
    /// `ATTNSTATUS`.
    AttnStatus,
    /// `CBVER`.
    CbVer,
    /// `INTRDELAY`.
    IntrDelay,
    /// [`reg::DmaCap`].
    DmaCap,
}

/// The block of the device itself.
pub static GENERAL: RegMap<General> = RegMap::new(&[
    Register::read_only(reg::CHANCNT, 1, General::ChanCnt),
    Register::read_only(reg::XFERCAP, 1, General::XferCap),
    Register::read_write(reg::INTRCTRL, 1, General::IntrCtrl),
    Register::read_only(reg::ATTNSTATUS, 4, General::AttnStatus),
    Register::read_only(reg::CBVER, 1, General::CbVer),
    Register::read_write(reg::INTRDELAY, 2, General::IntrDelay),
    Register::read_only(reg::DMACAPABILITY, 4, General::DmaCap),
]);

/// A register of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chan {
    /// [`reg::ChanCtrl`].
    Ctrl,
    /// `DMA_COMP`.
    Compatibility,
    /// [`reg::ChanCmd`].
    Cmd,
    /// `DMACOUNT`.
    DmaCount,
    /// [`reg::ChanSts`].
    Status,
    /// `CHAINADDR`.
    ChainAddr,
    /// `CHANCMP`.
    CompletionAddr,
    /// `CDAR`.
    CurrentAddr,
    /// [`reg::ChanErr`].
    Error,
    /// Mask of [`reg::ChanErr`].
    ErrorMask,
    /// `DCACTRL`.
    DcaCtrl,
}

/// The block of one channel.
pub static CHANNEL: RegMap<Chan> = RegMap::new(&[
    Register::read_write(reg::CHANCTRL, 2, Chan::Ctrl),
    Register::read_only(reg::DMA_COMP, 2, Chan::Compatibility),
    Register::read_write(reg::CHANCMD, 1, Chan::Cmd),
    Register::read_write(reg::DMACOUNT, 2, Chan::DmaCount),
    Register::read_only(reg::CHANSTS, 8, Chan::Status),
    Register::read_write(reg::CHAINADDR, 8, Chan::ChainAddr),
    Register::read_write(reg::CHANCMP, 8, Chan::CompletionAddr),
    Register::read_only(reg::CDAR, 8, Chan::CurrentAddr),
    Register::read_write(reg::CHANERR, 4, Chan::Error),
    Register::read_write(reg::CHANERRMSK, 4, Chan::ErrorMask),
    Register::read_write(reg::DCACTRL, 4, Chan::DcaCtrl),
]);
