//! `ioasid replay`: the calls of a trace, against a fresh machine.
//!
//! * `files`: open files, by their numbers in the trace. `memory`: anonymous memory in the place of the
//!   program's. `program`: answers each call as the traced program did. `expected`: what that was, and
//!   what is different.
//! * `call`: one call, and what is compared of it.
//!
//! The machine is built in this process as the header says, and each call goes to the functions that
//! the session of a program calls. What a call reads of its program's memory is what it read then; what
//! it writes there is compared with what it wrote then. Ids are the machine's own, and come out the
//! same if all is well.

mod call;
mod expected;
mod files;
mod memory;
mod program;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use ioasid_core::host::StdSpawner;
use ioasid_machine::{Machine, MachineFile, Models};
use ioasid_selftest::SelfTest;
use ioasid_trace::{
    Reader,
    schema::{Call, Header, Line, MachineSource, Register},
};

use ioasid_vfio::region::INDEX_SHIFT;

use self::{
    expected::{Difference, Expected},
    files::Files,
    memory::Memory,
};
use super::ReplayArgs;
use crate::stdio::print;

/// `ioasid replay`: 0 if every call did what it did in the trace.
pub(crate) fn run(args: &ReplayArgs, models: &Models) -> Result<u8> {
    let path = args.file.display();
    let reader = Reader::open(&args.file).with_context(|| path.to_string())?;
    let mut replay = Replay::new(reader.header(), models)?;
    let mut end = Ok(());
    for line in reader {
        let (number, line) = match line {
            Ok(read) => read,
            Err(error) => {
                // What could be read has been replayed.
                end = Err(error).with_context(|| path.to_string());
                break;
            }
        };
        if let Line::Start(start) = &line {
            replay.programs.insert(start.program, start.maps_regions);
        }
        let wanted = |program: u32| args.program.is_none_or(|only| only == program);
        let difference = match &line {
            Line::Call(call) if wanted(call.program) => replay.call(call),
            Line::Register(register) => {
                replay.register(register);
                None
            }
            Line::Lost(lost) => {
                replay.lost += lost.lines;
                None
            }
            _ => None,
        };
        if let (Some(difference), Line::Call(call)) = (difference, &line) {
            print(&format!(
                "call {} of program {} (line {number}) differs: {}\n  expected: {}\n  got:      {}\n",
                replay.calls[&call.program],
                call.program,
                call.name,
                difference.expected,
                difference.got,
            ))?;
            replay.say_what_is_missing()?;
            return Ok(1);
        }
    }
    let calls: u64 = replay.calls.values().sum();
    if let (Some(program), 0) = (args.program, calls) {
        bail!("the trace has no call of a program {program}");
    }
    print(&format!("no difference in {calls} calls\n"))?;
    replay.say_what_is_missing()?;
    end?;
    Ok(0)
}

/// A machine, and what the programs of a trace have of it.
struct Replay {
    machine: Arc<Machine>,
    selftest: bool,
    memory: Arc<Memory>,
    expected: Arc<Expected>,
    /// By the number of the program.
    files: HashMap<u32, Files>,
    /// Which programs there are, and whether they can map regions.
    programs: HashMap<u32, bool>,
    /// Calls so far, by the number of the program.
    calls: BTreeMap<u32, u64>,
    /// Accesses to registers that the trace has counted only.
    left_out: u64,
    /// Lines that the trace has lost.
    lost: u64,
}

impl Replay {
    fn new(header: &Header, models: &Models) -> Result<Self> {
        let mut file = match &header.machine {
            MachineSource::File(text) => MachineFile::parse(text, models)?,
            MachineSource::Devices(devices) => MachineFile::from_device_strings(devices, models)?,
        };
        file.iommu.enforce_memlock |= header.enforce_memlock;
        let machine = Machine::build("replay", &file, &StdSpawner);
        let machine = machine.context("building the machine of the trace")?;
        Ok(Replay {
            memory: Memory::new(machine.iommu().space()),
            machine,
            selftest: header.selftest,
            expected: Arc::default(),
            files: HashMap::new(),
            programs: HashMap::new(),
            calls: BTreeMap::new(),
            left_out: 0,
            lost: 0,
        })
    }

    /// Does a call again: what was different, if anything was.
    fn call(&mut self, call: &Call) -> Option<Difference> {
        *self.calls.entry(call.program).or_default() += 1;
        let maps_regions = self.programs.get(&call.program).copied();
        call::Replayed {
            machine: &self.machine,
            extension: self.selftest.then_some(&SelfTest),
            memory: &self.memory,
            expected: &self.expected,
            files: self.files.entry(call.program).or_default(),
            maps_regions: maps_regions.unwrap_or(true),
        }
        .again(call)
    }

    /// Does an access to a mapped register again. What a load finds is the device's business.
    fn register(&mut self, register: &Register) {
        self.left_out += register.left_out;
        let device = register.device.to_string();
        let mut files = self.files.values();
        let Some(file) = files.find_map(|files| files.device(&device)) else {
            return;
        };
        let offset = u64::from(register.region) << INDEX_SHIFT;
        let offset = offset.saturating_add(register.offset.0);
        // It may be refused: the program has seen SIGBUS then, and no value is compared.
        let _ = match &*register.access {
            "store" => file.mapped_write(offset, &register.value.0),
            "load" => file.mapped_read(offset, &mut vec![0; register.value.0.len()]),
            _ => Ok(()),
        };
    }

    /// What the trace does not have, and so cannot have been done again.
    fn say_what_is_missing(&self) -> Result<()> {
        if self.left_out > 0 {
            let left_out = self.left_out;
            print(&format!(
                "{left_out} accesses to registers are not in the trace\n"
            ))?;
        }
        if self.lost > 0 {
            let lost = self.lost;
            print(&format!(
                "{lost} lines are lost from the trace, calls perhaps\n"
            ))?;
        }
        Ok(())
    }
}
