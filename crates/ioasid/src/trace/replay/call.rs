//! One call of a trace, done again.
//!
//! Compared are the result or errno, and what the call writes to its program's memory, but for
//! * what devices and other programs write at their own pace: events, bitmaps of dirty pages, states of
//!   devices, registers;
//! * what is in the program's memory, which a replay does not have.
//!
//! A read of configuration space is compared; one of a BAR is done, and its value is not: a program that
//! polls a register finds it changed after as many reads as the machine was fast.

use std::sync::Arc;

use ioasid_core::failpoint;
use ioasid_iommufd::MmapRequest;
use ioasid_machine::Machine;
use ioasid_selftest::SelfTest;
use ioasid_trace::schema::{Bytes, Call, Exchange, Hex};
use ioasid_uapi::{self as uapi, CallError};
use ioasid_vfio::{DeviceFile, MapRequest, RegionIndex};
use serde_json::Value;

use super::{
    expected::{Difference, Expected},
    files::{Files, Object},
    memory::Memory,
    program::ReplayedProgram,
};

/// What a call of a replay works on.
pub(crate) struct Replayed<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) extension: Option<&'a SelfTest>,
    pub(crate) memory: &'a Arc<Memory>,
    pub(crate) expected: &'a Arc<Expected>,
    pub(crate) files: &'a mut Files,
    /// Whether the program can map regions of devices.
    pub(crate) maps_regions: bool,
}

impl Replayed<'_> {
    /// Does `call` again: what was different, if anything was.
    pub(crate) fn again(&mut self, call: &Call) -> Option<Difference> {
        match (&*call.name, call.request) {
            (_, Some(request)) => self.ioctl(call, request),
            ("open", _) => self.open(call),
            ("close", _) => {
                let file = self.files.remove(call.file?)?;
                file.close();
                None
            }
            // How a file was opened is the session's business.
            ("read" | "write" | "mmap", _) if call.errno.as_deref() == Some("EBADF") => None,
            ("mmap", _) if call.errno.as_deref() == Some("EACCES") => None,
            ("read" | "write", _) => self.transfer(call),
            ("mmap", _) => self.map(call),
            // What is left is the session's own.
            _ => None,
        }
    }

    fn object(&self, call: &Call) -> Option<Object> {
        call.file.and_then(|file| self.files.get(file))
    }

    fn open(&mut self, call: &Call) -> Option<Difference> {
        let node = call.args.get("node").and_then(Value::as_str).unwrap_or("");
        let opened = Object::open(self.machine, node, self.maps_regions);
        match (opened, call.file) {
            (None, Some(file)) => {
                self.files.insert(file, Object::Other);
                None
            }
            // A path that is none of the machine's; or the program was not allowed to see it.
            (None, None) => None,
            (Some(Ok(object)), Some(file)) => {
                self.files.insert(file, object);
                None
            }
            (Some(Ok(object)), None) => {
                object.close();
                Some(result(call, "a new file".to_owned()))
            }
            (Some(Err(error)), _) => compared(call, Err(&error), |_| true),
        }
    }

    fn ioctl(&mut self, call: &Call, request: Hex) -> Option<Difference> {
        let object = self.object(call)?;
        // What was destroyed was mapped no more. A trace does not have `munmap`.
        if call.name == "DESTROY" && call.errno.is_none() {
            self.files.forget_mapped();
        }
        let request = u32::try_from(request.0).ok()?;
        let argument = call.argument.map_or(0, |argument| argument.0);
        self.expected.begin(call);
        let program = ReplayedProgram {
            expected: self.expected,
            memory: self.memory,
            files: self.files,
        };
        let run = || -> Result<u64, CallError> {
            match &object {
                Object::Iommufd(context) => match self.extension {
                    Some(extension) => uapi::iommufd::extended_ioctl(
                        extension, context, request, argument, &program,
                    ),
                    None => uapi::iommufd::ioctl(context, request, argument, &program),
                },
                Object::Device(device) => {
                    uapi::vfio::device_ioctl(device, request, argument, &program)
                }
                Object::Container(container) => {
                    uapi::vfio::container_ioctl(container, request, argument, &program)
                }
                Object::Group(group) => uapi::vfio::group_ioctl(group, request, argument, &program),
                Object::Events(_) | Object::Other => Ok(call.result.unwrap_or(0)),
            }
        };
        let failing = call.exchange.iter().find_map(|step| match step {
            Exchange::Failing { allocation } => Some(*allocation),
            _ => None,
        });
        let returned = match failing {
            Some(allocation) => failpoint::counting_down(allocation, run).0,
            None => run(),
        };
        let (difference, given) = self.expected.end();
        let files = call.exchange.iter().filter_map(|step| match step {
            Exchange::Gave { file, .. } => *file,
            _ => None,
        });
        for (file, object) in files.zip(given) {
            self.files.insert(file, object);
        }
        let is_same = |value| call.result == Some(value);
        compared(call, returned.as_ref().copied(), is_same).or(difference)
    }

    fn transfer(&self, call: &Call) -> Option<Difference> {
        let start = call.argument.map_or(0, |argument| argument.0);
        match self.object(call)? {
            Object::Device(device) if call.name == "write" => compared(
                call,
                write(&device, start, call).as_ref().copied(),
                |value| call.result == Some(value),
            ),
            Object::Device(device) => read(&device, start, call),
            Object::Events(file) => {
                // Events come when they come: nothing is compared.
                for step in &call.exchange {
                    match step {
                        Exchange::Wrote { bytes, .. } => drop(file.read(bytes.0.len())),
                        Exchange::Read { bytes, .. } => drop(file.write(&bytes.0)),
                        _ => {}
                    }
                }
                None
            }
            _ => None,
        }
    }

    fn map(&mut self, call: &Call) -> Option<Difference> {
        let text = |name: &str| call.args.get(name).and_then(Value::as_str).unwrap_or("");
        let len = text("len").strip_prefix("0x").unwrap_or("0");
        let len = u64::from_str_radix(len, 16).unwrap_or(0);
        let offset = call.argument.map_or(0, |argument| argument.0);
        let shared = text("type").starts_with("SHARED");
        let mapped = match self.object(call)? {
            Object::Device(device) => {
                let mapped = device.mmap_check(MapRequest {
                    offset,
                    len,
                    shared,
                    writable: call.errno.is_none() || text("prot").contains("WRITE"),
                });
                mapped.map(|_| 0).map_err(CallError::from)
            }
            Object::Iommufd(context) => {
                let mapped = context.mmap(MmapRequest {
                    offset,
                    len,
                    shared,
                    executable: text("prot").contains("EXEC"),
                });
                mapped
                    .map(|mapped| {
                        self.files.keep_mapped(mapped);
                        0
                    })
                    .map_err(CallError::from)
            }
            _ => return None,
        };
        compared(call, mapped.as_ref().copied(), |_| true)
    }
}

/// Writes to a device what the program wrote.
fn write(device: &DeviceFile, start: u64, call: &Call) -> Result<u64, CallError> {
    let mut done = 0;
    for step in &call.exchange {
        if let Exchange::Read { bytes, .. } = step {
            uapi::vfio::check_access(device, start + done, bytes.0.len() as u64)?;
            match uapi::vfio::pwrite(device, start + done, &bytes.0) {
                Ok(count) => done += count as u64,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
    }
    if done == 0 && call.errno.is_some() {
        let len = call.args.get("len").and_then(Value::as_u64).unwrap_or(0);
        uapi::vfio::check_access(device, start, len)?;
    }
    Ok(done)
}

/// Reads from a device as much as the program read.
fn read(device: &DeviceFile, start: u64, call: &Call) -> Option<Difference> {
    let is_config = matches!(RegionIndex::at(start), Ok((RegionIndex::Config, _)));
    let mut done = 0;
    for step in &call.exchange {
        let Exchange::Wrote { bytes, .. } = step else {
            continue;
        };
        let mut found = vec![0; bytes.0.len()];
        let at = start.saturating_add(done);
        match uapi::vfio::pread(device, at, &mut found) {
            Ok(count) if is_config && *found != *bytes.0 => {
                return Some(Difference {
                    expected: format!("{count} bytes read at {}: {bytes}", Hex(at)),
                    got: Bytes::from(&found[..]).to_string(),
                });
            }
            Ok(count) => done += count as u64,
            Err(error) => return compared(call, Err(&error), |_| true),
        }
    }
    let len = call.args.get("len").and_then(Value::as_u64).unwrap_or(0);
    let failed = call.errno.is_some() && done == 0;
    let refused = failed.then(|| {
        uapi::vfio::check_access(device, start, len)?;
        uapi::vfio::pread(device, start, &mut vec![0; len.min(4096) as usize])
    });
    match refused {
        Some(refused) => {
            let refused = refused.map(|count| count as u64);
            compared(call, refused.as_ref().copied(), |_| false)
        }
        None => compared(call, Ok(done), |value| call.result == Some(value)),
    }
}

/// What is different in the result of a call; one that did not fail is right if `is_same`.
fn compared(
    call: &Call,
    returned: Result<u64, &CallError>,
    is_same: impl FnOnce(u64) -> bool,
) -> Option<Difference> {
    match (&call.errno, returned) {
        (None, Ok(value)) if is_same(value) => None,
        (Some(errno), Err(error)) if *errno == error.errno().to_string() => None,
        (_, Ok(value)) => Some(result(call, value.to_string())),
        (_, Err(error)) => Some(result(call, format!("{}: {error}", error.errno()))),
    }
}

fn result(call: &Call, got: String) -> Difference {
    let expected = match (&call.errno, call.result) {
        (Some(errno), _) => match &call.cause {
            Some(cause) => format!("{errno}: {cause}"),
            None => errno.to_string(),
        },
        (None, Some(value)) => value.to_string(),
        (None, None) => "an answer".to_owned(),
    };
    Difference { expected, got }
}
