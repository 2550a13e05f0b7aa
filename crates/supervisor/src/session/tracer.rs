//! The calls of a program as lines of a trace.

use std::sync::Arc;

use ioasid_trace::{
    Recorder,
    record::nanoseconds,
    schema::{Bytes, Call, Exit, Hex, Line, Object, Start, Word},
};
use ioasid_uapi::{
    Errno,
    decode::{Decoded, Value},
};
use serde_json::{Map, Value as Json};

use super::observe::{CallObserver, CallResult, CalledFile, FinishedCall, KeptIoctl};
use crate::{view::MachineView, wire::Mmio};

/// Tells the calls of one program to the recorder of its machine.
#[derive(Debug)]
pub(crate) struct CallTracer {
    recorder: Arc<Recorder>,
    program: u32,
}

impl CallTracer {
    /// For a program that starts, if its machine is traced.
    pub(crate) fn start(
        view: &dyn MachineView,
        name: &str,
        vm: Option<&str>,
        mmio: Mmio,
    ) -> Option<Arc<dyn CallObserver>> {
        let recorder = view.recorder()?;
        let program = recorder.number_program();
        recorder.push(Line::Start(Start {
            t: recorder.now(),
            program,
            name: name.to_owned(),
            maps_regions: mmio != Mmio::Off,
            vm: vm.map(str::to_owned),
        }));
        Some(Arc::new(CallTracer { recorder, program }))
    }
}

impl CallObserver for CallTracer {
    fn wants_all(&self) -> bool {
        true
    }

    fn wants_steps(&self) -> bool {
        true
    }

    fn finished(&self, call: &FinishedCall<'_>) {
        let t = self.recorder.at(call.began);
        if let Some(line) = line(self.program, t, call) {
            self.recorder.push(line);
        }
    }

    fn kept(&self, ioctl: &Arc<KeptIoctl>) {
        let (program, t) = (self.program, self.recorder.at(ioctl.began));
        let ioctl = Arc::clone(ioctl);
        self.recorder
            .push_later(move || ioctl.decoded(|call| line(program, t, call)));
    }

    fn closed(&self, file: u64) {
        self.recorder.push(Line::Call(Box::new(Call {
            t: self.recorder.now(),
            program: self.program,
            file: Some(file),
            name: "close".into(),
            result: Some(0),
            ..Call::default()
        })));
    }

    fn ended(&self) {
        self.recorder.push(Line::Exit(Exit {
            t: self.recorder.now(),
            program: self.program,
        }));
    }
}

/// The line of a call; none if something else says it.
fn line(program: u32, t: u64, call: &FinishedCall<'_>) -> Option<Line> {
    let (result, errno, cause) = match call.result {
        // The kernel maps it, since the machine allows that.
        CallResult::Proceeds if call.call.name == "mmap" => (None, None, None),
        CallResult::Proceeds => return None,
        // The device tells every access.
        CallResult::Value(_) if call.is_register_access() => return None,
        CallResult::Value(value) => (Some(value), None, None),
        CallResult::Descriptor(fd) => (u64::try_from(fd).ok(), None, None),
        CallResult::Host(errno) => (None, Some(format!("errno {errno}").into()), None),
        CallResult::Refused(error) => {
            let errno = errno_word(error.errno());
            (None, Some(errno), Some(error.to_string()))
        }
    };
    let mut args = fields(&call.call);
    if let Some(node) = call.file.as_ref().and_then(node)
        && call.call.name == "open"
    {
        args.insert("node".to_owned(), node.into());
    }
    let again = call.again.cloned().unwrap_or_default();
    let duration = nanoseconds(call.took);
    let is_open = matches!(call.result, CallResult::Descriptor(_));
    let argument = call.request.is_some() || again.argument != 0;
    Some(Line::Call(Box::new(Call {
        t,
        duration,
        program,
        pid: u32::try_from(call.process).unwrap_or(0),
        tid: call.thread,
        fd: call.fd.filter(|_| !is_open),
        file: again.file,
        object: call.file.as_ref().map(object),
        device: again.device.as_ref().map(Into::into),
        name: name(call),
        request: call.request.map(|request| Hex(request.into())),
        argument: argument.then_some(Hex(again.argument)),
        args,
        reply: call.reply.as_ref().map(fields).unwrap_or_default(),
        result,
        errno,
        cause,
        exchange: again.steps,
    })))
}

fn errno_word(errno: Errno) -> Word {
    match errno.name() {
        Some(name) => name.into(),
        None => errno.to_string().into(),
    }
}

/// The ioctl, or what the call does, whichever of its variants it is.
fn name(call: &FinishedCall<'_>) -> Word {
    let name = &call.call.name;
    if call.request.is_some() {
        return name.clone();
    }
    let variants = ["read", "write", "mmap"].into_iter();
    let mut known = variants.filter(|known| name.contains(known));
    known.next().map_or_else(|| name.clone(), Word::from)
}

/// The node below `/dev` that a file was opened by.
fn node(file: &CalledFile) -> Option<String> {
    match file {
        CalledFile::Iommu => Some("iommu".to_owned()),
        CalledFile::Container => Some("vfio/vfio".to_owned()),
        CalledFile::Group(number) => Some(format!("vfio/{number}")),
        CalledFile::Device(name) => Some(format!("vfio/devices/{name}")),
        CalledFile::Events | CalledFile::Attribute(_) | CalledFile::FailNth => None,
    }
}

fn object(file: &CalledFile) -> Object {
    match file {
        CalledFile::Iommu => Object::Iommufd,
        CalledFile::Container => Object::Container,
        CalledFile::Group(_) => Object::Group,
        CalledFile::Device(_) => Object::Device,
        CalledFile::Events => Object::Events,
        CalledFile::Attribute(_) | CalledFile::FailNth => Object::Other,
    }
}

fn fields(decoded: &Decoded) -> Map<String, Json> {
    let fields = decoded.fields.iter().filter(|field| !field.usual);
    fields
        .map(|field| (field.name.to_owned(), json(&field.value)))
        .collect()
}

/// Numbers that people count with are numbers; all else is a text.
fn json(value: &Value) -> Json {
    match value {
        Value::Number(number) if *number < 1 << 53 => (*number).into(),
        Value::Signed(number) => (*number).into(),
        Value::Number(number) | Value::Hex(number) => Hex(*number).to_string().into(),
        Value::Text(text) => text.as_str().into(),
        Value::Bytes(bytes) => Bytes::from(&bytes[..]).to_string().into(),
        Value::List(values) => values.iter().map(json).collect(),
        Value::Flags { .. } | Value::Name { .. } => value.to_string().into(),
    }
}
