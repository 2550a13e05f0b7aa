//! The lines of a trace: one JSON object each, told apart by `kind`. The first is a [`Header`].
//!
//! Stable types: counts, ids, times and durations (nanoseconds) are numbers below 2^53. What may pass
//! that - addresses, lengths, values of registers - is a string in hexadecimal with `0x` ([`Hex`]).
//! Bytes are a string of two digits each ([`Bytes`]). What is absent is left out.
//!
//! A change that an older reader would misunderstand gets a new [`VERSION`].

mod call;
pub mod errors;
mod header;
mod machine;
mod value;

pub use call::{Call, Exchange, Extent, Object};
pub use header::{Header, Host, MachineSource};
pub use machine::{Dma, Fault, Interrupt, Map, Register, Route, RouteChange, Submit, Unmap, Work};
pub use value::{Bytes, Hex, Name, Word};

use serde::{Deserialize, Serialize};

/// The version of the schema that this crate writes and reads.
pub const VERSION: u32 = 1;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Line {
    /// What was traced, and where.
    Header(Header),
    /// A program has started.
    Start(Start),
    /// A program has ended, and everything that it held is closed.
    Exit(Exit),
    /// A call of a program.
    Call(Box<Call>),
    /// An access to a register or to configuration space.
    Register(Box<Register>),
    /// DMA of a device.
    Dma(Dma),
    /// A refused access of a device.
    Fault(Fault),
    /// A device raised an interrupt.
    Interrupt(Interrupt),
    /// A source of DMA was attached, replaced or detached.
    Route(Route),
    /// A domain has a new mapping.
    Map(Map),
    /// Mappings of a domain are gone.
    Unmap(Unmap),
    /// A device took descriptors in.
    Submit(Submit),
    /// An engine worked on a descriptor.
    Work(Work),
    /// Lines are missing here.
    Lost(Lost),
}

/// A program has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Start {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// The number of the program in this trace, from 1.
    pub program: u32,
    /// Its name.
    pub name: String,
    /// Whether it can map regions of devices.
    pub maps_regions: bool,
    /// The VM that it is limited to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
}

/// A program has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Exit {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// The number of the program in this trace.
    pub program: u32,
}

/// What is missing: it came faster than it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Lost {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// Lines that could not be kept.
    pub lines: u64,
    /// Accesses to registers after the last that was written, which were counted only.
    pub accesses: u64,
}

impl Line {
    /// The word that `kind` has.
    pub const fn kind(&self) -> &'static str {
        match self {
            Line::Header(_) => "header",
            Line::Start(_) => "start",
            Line::Exit(_) => "exit",
            Line::Call(_) => "call",
            Line::Register(_) => "register",
            Line::Dma(_) => "dma",
            Line::Fault(_) => "fault",
            Line::Interrupt(_) => "interrupt",
            Line::Route(_) => "route",
            Line::Map(_) => "map",
            Line::Unmap(_) => "unmap",
            Line::Submit(_) => "submit",
            Line::Work(_) => "work",
            Line::Lost(_) => "lost",
        }
    }

    /// The words that `kind` can have.
    pub const KINDS: [&'static str; 14] = [
        "header",
        "start",
        "exit",
        "call",
        "register",
        "dma",
        "fault",
        "interrupt",
        "route",
        "map",
        "unmap",
        "submit",
        "work",
        "lost",
    ];

    /// When it happened, or began, in nanoseconds since the trace began.
    pub const fn time(&self) -> u64 {
        match self {
            Line::Header(_) => 0,
            Line::Start(line) => line.t,
            Line::Exit(line) => line.t,
            Line::Call(line) => line.t,
            Line::Register(line) => line.t,
            Line::Dma(line) => line.t,
            Line::Fault(line) => line.t,
            Line::Interrupt(line) => line.t,
            Line::Route(line) => line.t,
            Line::Map(line) => line.t,
            Line::Unmap(line) => line.t,
            Line::Submit(line) => line.t,
            Line::Work(line) => line.t,
            Line::Lost(line) => line.t,
        }
    }

    /// The device that it is about.
    pub const fn device(&self) -> Option<&Name> {
        match self {
            Line::Call(line) => line.device.as_ref(),
            Line::Register(line) => Some(&line.device),
            Line::Dma(line) => Some(&line.device),
            Line::Fault(line) => Some(&line.device),
            Line::Interrupt(line) => Some(&line.device),
            Line::Route(line) => Some(&line.device),
            Line::Submit(line) => Some(&line.device),
            Line::Work(line) => Some(&line.device),
            Line::Header(_)
            | Line::Start(_)
            | Line::Exit(_)
            | Line::Map(_)
            | Line::Unmap(_)
            | Line::Lost(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
