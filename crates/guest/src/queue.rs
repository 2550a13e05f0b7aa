//! A DSA device with one queue, driven by hand: what its registers can be made to do.
//!
//! No descriptor is submitted: that is one store of 64 bytes, which an emulated processor has not, and a
//! VMM hands no store of more than 8 to a device in another process.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ioasid_dsa::spec::{
    Cmd, CmdStatus, Command, CommandError,
    registers::{self as reg, DeviceState, GenStatus},
    tables::{GRPCFG_SIZE, WQCFG_SIZE, WqUse},
};

use crate::{
    claims::{Claim, wait},
    function::Function,
    mapping::Mapping,
    scan,
};

/// The dword of WQCFG with the PASID, and the one with the state.
const USE: u64 = 8;
const STATUS: u64 = 24;
/// `REQUEST_INT_HANDLE` and `RELEASE_INT_HANDLE` (section 9.2.12), which the model does not have.
const REQUEST_HANDLE: u8 = 13;
const RELEASE_HANDLE: u8 = 14;
/// PASIDs that somebody else may have, and those that nobody can have.
const PASIDS: [u32; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x1_0000, 0xf_fffe, 0xf_ffff];
/// How long each of them stays.
const SHOWN: Duration = Duration::from_millis(60);
/// Operands of commands: indices and sets of queues, windows of sets, PASIDs, vectors.
const OPERANDS: [u32; 12] = [
    0, 1, 2, 3, 4, 7, 8, 0xffff, 0x1_0001, 0x1_ffff, 0xf_0001, 0xf_ffff,
];

/// The claims, the one first that the others rest on.
pub(crate) const CLAIMS: &[(&str, Claim<Queue>)] = &[
    ("a queue is enabled", |queue, _| queue.works()),
    (
        "a forged PASID is refused, and none is shown",
        Queue::pasids,
    ),
    (
        "PASIDs of the interrupts' permissions lead nowhere",
        Queue::permissions,
    ),
    (
        "commands with forged queues, PASIDs and interrupt handles are refused",
        Queue::operands,
    ),
    (
        "resets, disables and drains in every order of three",
        Queue::orders,
    ),
    (
        "the tables of other queues and groups are not there",
        Queue::tables,
    ),
    ("no store to a portal is a descriptor", Queue::portals),
    ("all of a DSA's registers", Queue::scan),
    (
        "all of a DSA's configuration space, and resets",
        |queue, round| {
            let count = queue.function.scribble(round)?;
            Ok(count + queue.works()?)
        },
    ),
];

/// The device.
#[derive(Debug)]
pub(crate) struct Queue {
    function: Function,
    bar: Mapping,
    portals: Mapping,
}

impl Queue {
    /// The first one of the guest.
    ///
    /// # Errors
    /// If there is none, or it cannot be had.
    pub(crate) fn find() -> Result<Self> {
        let function = Function::find(reg::DEVICE)?;
        Ok(Self {
            bar: function.bar(0)?,
            portals: function.bar(2)?,
            function,
        })
    }

    fn load(&self, register: u64) -> u32 {
        self.bar.load(register as usize, 4) as u32
    }

    fn store(&self, register: u64, value: u32) {
        self.bar.store(register as usize, 4, value.into());
    }

    fn status(&self) -> CmdStatus {
        CmdStatus::from_bits(self.load(reg::CMDSTS))
    }

    /// Gives a command, by its number, and waits for its end: its error, 0 for success.
    fn raw_command(&self, code: u8, operand: u32) -> Result<u8> {
        let command = Cmd::new().with_code(code).with_operand(operand);
        self.store(reg::CMD, command.into_bits());
        let what = format!("command {code} of {operand:#x}");
        wait(&what, || !self.status().active())?;
        Ok(self.status().error())
    }

    fn command(&self, command: Command, operand: u32) -> Result<u8> {
        self.raw_command(command as u8, operand)
    }

    /// Gives a command that must succeed.
    fn order(&self, command: Command, operand: u32) -> Result<()> {
        let error = self.command(command, operand)?;
        ensure!(error == 0, "{command:?} fails with {error:#x}");
        Ok(())
    }

    fn queue_is_enabled(&self) -> bool {
        self.load(reg::WQCFG + STATUS) >> 30 == 1
    }

    /// What every other claim rests on: the same steps succeed with what is the guest's own.
    pub(crate) fn works(&self) -> Result<u64> {
        self.order(Command::ResetDevice, 0)?;
        ensure!(
            !self.queue_is_enabled(),
            "the queue is enabled after a reset"
        );
        self.order(Command::EnableDevice, 0)?;
        self.order(Command::EnableWq, 0)?;
        let state = GenStatus::from_bits(self.load(reg::GENSTS)).state();
        ensure!(
            state == DeviceState::Enabled && self.queue_is_enabled(),
            "the device is {state:?}, its queue enabled: {}",
            self.queue_is_enabled()
        );
        let usage = WqUse::from_bits(self.load(reg::WQCFG + USE));
        ensure!(
            usage.pasid() == 0 && !usage.pasid_en(),
            "the guest reads a PASID: {usage:?}"
        );
        Ok(1)
    }

    /// PASIDs in WQCFG.
    fn pasids(&self, _round: u64) -> Result<u64> {
        let mut count = 0;
        for pasid in PASIDS {
            for (enabled, privileged) in
                [(true, false), (true, true), (false, true), (false, false)]
            {
                self.order(Command::ResetDevice, 0)?;
                let forged = WqUse::new()
                    .with_pasid(pasid)
                    .with_pasid_en(enabled)
                    .with_privileged(privileged);
                self.store(reg::WQCFG + USE, forged.into_bits());
                self.order(Command::EnableDevice, 0)?;
                let error = self.command(Command::EnableWq, 0)?;
                let wanted = if enabled {
                    CommandError::PasidEnable as u8
                } else {
                    0
                };
                ensure!(error == wanted, "PASID {pasid:#x}: {error:#x}");
                ensure!(
                    self.queue_is_enabled() != enabled,
                    "PASID {pasid:#x} has an effect"
                );
                let seen = WqUse::from_bits(self.load(reg::WQCFG + USE));
                ensure!(
                    seen.pasid() == pasid,
                    "{:#x} is read where {pasid:#x} was written",
                    seen.pasid()
                );
                // And while it is enabled.
                self.store(reg::WQCFG + USE, u32::MAX);
                count += 2;
            }
            // Whoever looks at the parent sees whose PASID is there.
            std::thread::sleep(SHOWN);
        }
        self.works()?;
        Ok(count)
    }

    /// PASIDs in the table of those that may ask for an interrupt.
    fn permissions(&self, _round: u64) -> Result<u64> {
        self.works()?;
        let mut count = 0;
        for (index, at) in (reg::MSIXPERM..reg::MSIX_TABLE).step_by(8).enumerate() {
            let pasid = PASIDS[index % PASIDS.len()];
            for flags in [1 << 3, 1 << 3 | 1 << 2, 0] {
                self.store(at, pasid << 12 | flags);
                self.store(at + 4, u32::MAX);
                count += 2;
            }
        }
        ensure!(self.queue_is_enabled(), "the queue is disabled");
        Ok(count)
    }

    /// Every command with operands that mean others.
    fn operands(&self, _round: u64) -> Result<u64> {
        let mut count = 0;
        let offered = self.load(reg::CMDCAP);
        for code in [
            Command::DrainPasid as u8,
            Command::AbortPasid as u8,
            REQUEST_HANDLE,
            RELEASE_HANDLE,
        ] {
            ensure!(offered & 1 << code == 0, "command {code} is offered");
        }
        for code in 0..32_u8 {
            for operand in OPERANDS {
                self.works()?;
                let error = self.raw_command(code, operand)?;
                let what = || format!("command {code} of {operand:#x} ends with {error:#x}");
                let wanted = match Command::from_code(code).filter(|_| offered & 1 << code != 0) {
                    None => Some(CommandError::InvalidCommand as u8),
                    Some(Command::EnableWq) if operand != 0 => {
                        Some(CommandError::InvalidQueue as u8)
                    }
                    Some(
                        Command::DisableWq | Command::DrainWq | Command::AbortWq | Command::ResetWq,
                    ) if operand != 1 => Some(CommandError::InvalidQueue as u8),
                    Some(_) => None,
                };
                if let Some(wanted) = wanted {
                    ensure!(error == wanted && self.queue_is_enabled(), what());
                }
                count += 1;
            }
        }
        self.works()?;
        Ok(count)
    }

    /// Each three commands that change what is under way, one after the other, and without waiting.
    fn orders(&self, round: u64) -> Result<u64> {
        let commands = &Command::ALL[..10];
        let operand = |command| match command {
            Command::DisableWq | Command::DrainWq | Command::AbortWq | Command::ResetWq => 1,
            _ => 0,
        };
        let mut count = 0;
        for first in commands {
            for second in commands {
                for third in commands {
                    for command in [*first, *second, *third] {
                        if round.is_multiple_of(2) {
                            self.command(command, operand(command))?;
                        } else {
                            let forced = Cmd::new().with_code(command as u8);
                            self.store(reg::CMD, forced.with_operand(operand(command)).into_bits());
                        }
                        count += 1;
                    }
                }
            }
        }
        wait("a command", || !self.status().active())?;
        self.works()?;
        Ok(count)
    }

    /// Entries of groups and queues that the device does not have, and fields of its own that it must
    /// not change; while it is enabled and while it is not.
    fn tables(&self, _round: u64) -> Result<u64> {
        let mut count = 0;
        for disabled in [false, true] {
            self.works()?;
            if disabled {
                self.order(Command::DisableDevice, 0)?;
            }
            let own = |at: &u64| {
                (reg::GRPCFG..reg::GRPCFG + GRPCFG_SIZE).contains(at)
                    || (reg::WQCFG..reg::WQCFG + WQCFG_SIZE).contains(at)
            };
            let fixed = |at: &u64| *at != reg::WQCFG + USE;
            let places = || (reg::GRPCFG..reg::MSIXPERM).step_by(4);
            let kept: Vec<u32> = places()
                .filter(own)
                .filter(fixed)
                .map(|at| self.load(at))
                .collect();
            for at in places() {
                for value in [u32::MAX, 1, 0x3 << 28 | 1 << 8] {
                    self.store(at, value);
                    count += 1;
                }
            }
            let now: Vec<u32> = places()
                .filter(own)
                .filter(fixed)
                .map(|at| self.load(at))
                .collect();
            ensure!(now == kept, "the device's own tables have changed");
            for at in places().filter(|at| !own(at)) {
                let found = self.load(at);
                ensure!(found == 0, "{found:#x} is at {at:#x}");
            }
        }
        self.works()?;
        Ok(count)
    }

    /// Stores of what might be a descriptor, as wide as they get.
    fn portals(&self, round: u64) -> Result<u64> {
        self.works()?;
        let count = scan::stores(&self.portals, self.portals.len(), 0..0, round);
        for at in (0..self.portals.len()).step_by(8) {
            let found = self.portals.load(at, 8);
            ensure!(found == 0, "{found:#x} is at {at:#x} of the portals");
        }
        ensure!(self.queue_is_enabled(), "the queue is disabled");
        ensure!(self.load(reg::SWERR) & 1 == 0, "an error of a descriptor");
        Ok(count)
    }

    /// Stores of every width to every place.
    fn scan(&self, round: u64) -> Result<u64> {
        self.works()?;
        let (table, end) = (reg::MSIX_TABLE as usize, reg::MSIX_PBA as usize + 0x1000);
        let count = scan::stores(&self.bar, end, table..end, round);
        wait("a command", || !self.status().active())?;
        self.works().context("after all")?;
        Ok(count)
    }
}
