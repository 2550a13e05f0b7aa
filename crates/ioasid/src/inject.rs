//! `ioasid inject`: failures of a running machine, on purpose.

use anyhow::Result;
use clap::{Args, Subcommand};
use ioasid_supervisor::{
    control,
    view::{Action, At, InjectRequest, InjectSection},
};

use crate::{find::chosen, stdio::say};

/// `inject`.
#[derive(Args, Debug)]
pub(crate) struct InjectArgs {
    /// The machine: its name or the path of its socket; may be left out if only one runs.
    #[arg(long, value_name = "NAME|SOCKET", global = true)]
    machine: Option<String>,
    /// What is to fail.
    #[command(subcommand)]
    what: What,
}

/// `inject ...`. A DEVICE is its PCI address, such as 0000:69:01.0, or its UUID.
#[derive(Debug, Subcommand)]
enum What {
    /// A descriptor (a transfer) of DEVICE is refused: its first DMA is a fault.
    Fault {
        /// Its PCI address.
        device: String,
        #[command(flatten)]
        when: When,
    },
    /// A descriptor of DEVICE is never completed.
    Lose {
        /// Its PCI address.
        device: String,
        #[command(flatten)]
        when: When,
    },
    /// A descriptor of DEVICE begins later; its engine waits meanwhile.
    Delay {
        /// Its PCI address.
        device: String,
        /// How much later, in milliseconds.
        #[arg(long)]
        ms: u64,
        #[command(flatten)]
        when: When,
    },
    /// An interrupt of DEVICE never arrives.
    Irq {
        /// Its PCI address or UUID.
        device: String,
        #[command(flatten)]
        when: When,
    },
    /// A map of memory, by any program, fails with ENOMEM.
    Map {
        #[command(flatten)]
        when: When,
    },
    /// The host resets DEVICE now.
    Reset {
        /// Its PCI address or UUID.
        device: String,
    },
    /// DEVICE is taken away now, as by hot-unplug: its user is asked for it, and has five seconds.
    Remove {
        /// Its PCI address or UUID.
        device: String,
    },
}

/// When it fails.
#[derive(Args, Debug)]
struct When {
    /// The nth time from now on, from 1.
    #[arg(long, default_value_t = 1, conflicts_with = "chance")]
    nth: u64,
    /// Each time, with this chance in a hundred.
    #[arg(long, value_name = "PERCENT")]
    chance: Option<u8>,
    /// Which times those are: the same seed gives the same ones.
    #[arg(long, requires = "chance", default_value_t = 0)]
    seed: u64,
}

impl When {
    fn section(self, device: Option<String>, at: At, action: Action) -> InjectSection {
        InjectSection {
            device,
            at,
            action,
            nth: self.chance.is_none().then_some(self.nth),
            chance: self.chance,
            seed: self.chance.map(|_| self.seed),
            ms: None,
        }
    }
}

impl What {
    fn request(self) -> InjectRequest {
        let section = match self {
            What::Fault { device, when } => {
                when.section(Some(device), At::Descriptor, Action::Fault)
            }
            What::Lose { device, when } => when.section(Some(device), At::Descriptor, Action::Lose),
            What::Delay { device, ms, when } => InjectSection {
                ms: Some(ms),
                ..when.section(Some(device), At::Descriptor, Action::Delay)
            },
            What::Irq { device, when } => when.section(Some(device), At::Interrupt, Action::Lose),
            What::Map { when } => when.section(None, At::Map, Action::Fault),
            What::Reset { device } => {
                return InjectRequest::Now {
                    device,
                    action: Action::Reset,
                };
            }
            What::Remove { device } => {
                return InjectRequest::Now {
                    device,
                    action: Action::Remove,
                };
            }
        };
        InjectRequest::Later(section)
    }
}

/// `ioasid inject`.
pub(crate) fn run(args: InjectArgs) -> Result<u8> {
    let path = chosen(args.machine.as_deref())?;
    let request = args.what.request();
    let done = match &request {
        InjectRequest::Later(section) => format!("will fail: {section}"),
        InjectRequest::Now { device, action } => format!("{device}: {action} done"),
    };
    control::inject(&path, request)?;
    say(&format!("ioasid: {done}"));
    Ok(0)
}
