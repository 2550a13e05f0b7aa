//! `[[inject]]`: failures that a test asks for.

use std::{fmt, time::Duration};

use ioasid_core::inject::{Failure, Point, When};
use serde::{Deserialize, Serialize};

/// `[[inject]]`: one failure, of one device or of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectSection {
    /// The device: its PCI address, or its UUID. A map is no device's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What fails.
    pub at: At,
    /// What happens then.
    pub action: Action,
    /// The nth time fails, from 1; the first by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nth: Option<u64>,
    /// Instead: each time fails with this chance in a hundred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance: Option<u8>,
    /// Which times those are; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Milliseconds of a delay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
}

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum At {
    /// A map of memory, by any program.
    Map,
    /// A descriptor of a device, or its transfer.
    Descriptor,
    /// An interrupt of a device.
    Interrupt,
}

/// What is to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A map is refused (ENOMEM); the first DMA of a descriptor is a fault.
    Fault,
    /// A descriptor is never completed, an interrupt never arrives.
    Lose,
    /// A descriptor begins later.
    Delay,
    /// The device is reset, by the host.
    Reset,
    /// The device is taken away, as by hot-unplug: its user is asked for it.
    Remove,
}

/// A failure that cannot be asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// It needs a device.
    #[error("at = \"{0}\" needs a device")]
    NoDevice(At),
    /// A map is no device's.
    #[error("at = \"map\" counts the maps of all programs: leave device out")]
    DeviceOfMap,
    /// The action does not go with what fails.
    #[error("at = \"{at}\" takes action = {known}, not \"{action}\"")]
    Action {
        /// What is to fail.
        at: At,
        /// What was asked for.
        action: Action,
        /// What can be.
        known: &'static str,
    },
    /// Two ways to say when.
    #[error("nth and chance exclude each other")]
    NthAndChance,
    /// There is no such time.
    #[error("nth counts from 1")]
    Nth,
    /// A chance of nothing, or of more than all.
    #[error("chance is 1 to 100, in a hundred, not {0}")]
    Chance(u8),
    /// A seed for nothing.
    #[error("seed needs chance")]
    SeedWithoutChance,
    /// A delay without its length, or a length without a delay.
    #[error("ms goes with action = \"delay\", and must be there then")]
    Milliseconds,
    /// Nothing of that name is there.
    #[error("there is no device {0}")]
    Unknown(String),
    /// The descriptors of a mediated device are its parent's.
    #[error("{0} is a mediated device: count the descriptors of its parent")]
    Mediated(String),
    /// The host has it.
    #[error("{0} is not a program's: the host's own driver has it")]
    OfHost(String),
}

impl InjectSection {
    /// Refuses what does not go together.
    ///
    /// # Errors
    /// See [`InjectError`].
    pub fn check(&self) -> Result<(), InjectError> {
        match (self.at, &self.device) {
            (At::Map, Some(_)) => return Err(InjectError::DeviceOfMap),
            (At::Map, None) | (_, Some(_)) => {}
            (at, None) => return Err(InjectError::NoDevice(at)),
        }
        let known = match self.at {
            At::Map => (self.action == Action::Fault, "\"fault\""),
            At::Descriptor => (true, ""),
            At::Interrupt => {
                let fits = !matches!(self.action, Action::Fault | Action::Delay);
                (fits, "\"lose\", \"reset\" or \"remove\"")
            }
        };
        if let (false, known) = known {
            return Err(InjectError::Action {
                at: self.at,
                action: self.action,
                known,
            });
        }
        match (self.nth, self.chance) {
            (Some(_), Some(_)) => return Err(InjectError::NthAndChance),
            (Some(0), _) => return Err(InjectError::Nth),
            (_, Some(chance)) if !(1..=100).contains(&chance) => {
                return Err(InjectError::Chance(chance));
            }
            _ => {}
        }
        if self.seed.is_some() && self.chance.is_none() {
            return Err(InjectError::SeedWithoutChance);
        }
        if self.ms.is_some() != (self.action == Action::Delay) {
            return Err(InjectError::Milliseconds);
        }
        Ok(())
    }

    pub(crate) fn point(&self) -> Point {
        match self.at {
            At::Map => Point::Map,
            At::Descriptor => Point::Descriptor,
            At::Interrupt => Point::Interrupt,
        }
    }

    pub(crate) fn when(&self) -> When {
        match self.chance {
            Some(percent) => When::Chance {
                percent,
                seed: self.seed.unwrap_or(0),
            },
            None => When::Nth(self.nth.unwrap_or(1)),
        }
    }

    pub(crate) fn failure(&self) -> Failure {
        match self.action {
            Action::Fault => Failure::Refuse,
            Action::Lose => Failure::Lose,
            Action::Delay => Failure::Delay(Duration::from_millis(self.ms.unwrap_or(0))),
            Action::Reset | Action::Remove => Failure::Nothing,
        }
    }
}

/// What is to happen, and when.
impl fmt::Display for InjectSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action)?;
        if let Some(ms) = self.ms {
            write!(f, " by {ms} ms")?;
        }
        match self.when() {
            When::Nth(1) => write!(f, " at the next {}", self.at)?,
            When::Nth(nth) => write!(f, " at {} {nth} from now on", self.at)?,
            When::Chance { percent, seed } => {
                write!(
                    f,
                    " at a {} with a chance of {percent} %, seed {seed}",
                    self.at
                )?;
            }
        }
        match &self.device {
            Some(device) => write!(f, " of {device}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            At::Map => "map",
            At::Descriptor => "descriptor",
            At::Interrupt => "interrupt",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Fault => "fault",
            Action::Lose => "lose",
            Action::Delay => "delay",
            Action::Reset => "reset",
            Action::Remove => "remove",
        })
    }
}
