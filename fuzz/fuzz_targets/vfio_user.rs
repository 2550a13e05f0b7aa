//! Clients of the vfio-user server: messages that lie, or bytes that are none.
//!
//! The first byte of an input chooses: raw bytes, raw bytes behind VERSION, or a row of steps, most of which
//! are well-formed commands to one of four kinds of devices. Replies are checked, and whatever happens, a
//! device is released when its client has gone and nothing of the client's memory is left.
//!
//! At its end it says how many messages the server has read for sure: those whose reply came, and those
//! before them; a row of raw bytes, or what follows a header that lies, is one.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a panic is the finding")]

#[path = "../vfio_user/client.rs"]
mod client;
#[path = "../vfio_user/phrases.rs"]
mod phrases;
#[path = "../vfio_user/steps.rs"]
mod steps;

use std::{
    path::PathBuf,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use client::{ACCEPTED, Client};
use ioasid_core::host::StdSpawner;
use ioasid_machine::{ExportedDevice, Machine, MachineFile};
use ioasid_vfio_user::{Export, Server, listen, spec::command};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use phrases::PHRASES;
use steps::{After, Belongings, MEMORY, STEP, play};

/// Devices of every kind, each in a VM of its own.
const MACHINE: &str = r#"
[[device]]
model = "dsa"
driver = "host"
engines = 1
  [[device.queue]]
  owner = "mdev"
  uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01"
[[device]]
model = "dsa"
driver = "vfio"
engines = 1
[[device]]
model = "ioat"
driver = "host"
engines = 1
  [[device.channel]]
  owner = "mdev"
  uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a02"
[[device]]
model = "ioat"
driver = "vfio"
engines = 1
"#;

/// What a client says first.
const GREETING: &[u8] =
    b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":4096,\
    \"write_multiple\":true,\"migration\":{\"pgsize\":4096}}}\0";

/// Connections of one input.
const CONVERSATIONS: usize = 8;

/// A client's things are gone by then, whatever other builds do.
const PATIENCE: Duration = Duration::from_secs(60);

static MESSAGES: AtomicU64 = AtomicU64::new(0);
static TALKS: AtomicU64 = AtomicU64::new(0);

struct Stage {
    machine: Arc<Machine>,
    _server: Server,
    devices: Vec<(ExportedDevice, PathBuf)>,
    own: Belongings,
}

/// One machine for all inputs.
static STAGE: LazyLock<Stage> = LazyLock::new(|| {
    let file: MachineFile = MACHINE.parse().unwrap();
    let machine = Machine::build("fuzz", &file, &StdSpawner).unwrap();
    let contexts = Arc::clone(&machine);
    let new_context = Box::new(move || contexts.new_context());
    let server = Server::new(Arc::clone(machine.iommu().space()), new_context).unwrap();
    let mut devices = Vec::new();
    for (number, device) in machine.exports().into_iter().enumerate() {
        let name = format!("ioasid-fuzz-{}-{number}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let export = Export {
            name: device.name.clone(),
            vm: device.vm.clone(),
            device: Arc::clone(&device.device),
            listener: listen(&path).unwrap(),
            path: path.clone(),
        };
        server.export(export).unwrap();
        devices.push((device, path));
    }
    let memory = rustix::fs::memfd_create(c"fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, MEMORY).unwrap();
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    let own = Belongings {
        memory,
        eventfd: rustix::event::eventfd(0, flags).unwrap(),
        pipe: std::io::pipe().unwrap().0.into(),
        disk: std::fs::File::open("/proc/self/maps").unwrap().into(),
    };
    at_end();
    Stage {
        machine,
        _server: server,
        devices,
        own,
    }
});

unsafe extern "C" {
    safe fn atexit(function: extern "C" fn()) -> std::ffi::c_int;
}

fn at_end() {
    extern "C" fn tell() {
        let (messages, talks) = (
            MESSAGES.load(Ordering::Relaxed),
            TALKS.load(Ordering::Relaxed),
        );
        eprintln!("vfio_user: {messages} messages in {talks} conversations");
        for (number, accepted) in (0..).zip(&ACCEPTED) {
            match accepted.load(Ordering::Relaxed) {
                0 => {}
                accepted => eprintln!("  {accepted} {} carried out", command::name(number)),
            }
        }
        for (_, path) in &STAGE.devices {
            let _ = std::fs::remove_file(path);
        }
    }
    atexit(tell);
}

/// The saved state that went over the socket last, for the next device too.
static KEPT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// One conversation with device `number`; returns the steps that are left.
fn talk(number: usize, steps: &[u8]) -> &[u8] {
    let stage = &*STAGE;
    let (_, path) = &stage.devices[number % stage.devices.len()];
    let mut kept = KEPT.lock().unwrap();
    let mut client = Client::connect(path, &mut kept);
    client.command(command::VERSION, 0, GREETING, &[]);
    let mut rest = steps;
    let mut after = After::Finish;
    while let Some((step, more)) = rest.split_first_chunk::<STEP>() {
        rest = more;
        after = play(&mut client, &stage.own, step, more);
        if after != After::Next || !client.is_in_step() {
            break;
        }
    }
    let read = match after {
        After::HangUp => client.hang_up(),
        _ => client.finish(),
    };
    MESSAGES.fetch_add(read, Ordering::Relaxed);
    TALKS.fetch_add(1, Ordering::Relaxed);
    rest
}

fn raw(number: usize, greet: bool, bytes: &[u8]) {
    let stage = &*STAGE;
    let (_, path) = &stage.devices[number % stage.devices.len()];
    let mut kept = Vec::new();
    let mut client = Client::connect(path, &mut kept);
    if greet {
        client.command(command::VERSION, 0, GREETING, &[]);
        client.sync();
    }
    client.raw(bytes);
    MESSAGES.fetch_add(client.finish(), Ordering::Relaxed);
    TALKS.fetch_add(1, Ordering::Relaxed);
}

/// Nobody has the device any more, and nothing of its client is left.
fn released() {
    let stage = &*STAGE;
    let until = Instant::now() + PATIENCE;
    loop {
        let open: usize = stage
            .devices
            .iter()
            .map(|(device, _)| device.device.open_files())
            .sum();
        let pinned = stage.machine.ledger().pinned(0);
        if open == 0 && pinned == 0 {
            return;
        }
        assert!(
            Instant::now() < until,
            "{open} devices and {pinned} bytes are left behind"
        );
        std::thread::yield_now();
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, mut rest)) = data.split_first() else {
        return;
    };
    let mut number = usize::from(kind >> 4);
    match kind & 0xf {
        0xf => raw(number, false, rest),
        0xe => raw(number, true, rest),
        _ => {
            for _ in 0..CONVERSATIONS {
                rest = talk(number, rest);
                if rest.len() < STEP {
                    break;
                }
                number += 1;
            }
        }
    }
    released();
});

// Beside what libFuzzer does: phrases are put in, and steps move or are there twice.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut state = u64::from(seed) | 1 << 40;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below.max(1)
    };
    let choice = random(8);
    if choice > 3 {
        return fuzzer_mutate(data, size, max_size);
    }
    let mut steps = data[..size].to_vec();
    if steps.is_empty() {
        steps.push((random(16) << 4) as u8);
    }
    let count = (steps.len() - 1) / STEP;
    let at = 1 + random(count + 1) * STEP;
    match choice {
        0 if count > 0 => {
            let from = 1 + random(count) * STEP;
            let until = (from + STEP * (1 + random(16))).min(1 + count * STEP);
            let row = steps[from..until].to_vec();
            steps.splice(at..at, row);
        }
        1 if count > 0 => {
            let from = 1 + random(count) * STEP;
            steps[from + random(STEP)] = random(256) as u8;
        }
        _ => {
            for _ in 0..=random(4) {
                let phrase = PHRASES[random(PHRASES.len())].as_flattened();
                steps.splice(at..at, phrase.iter().copied());
            }
        }
    }
    let len = steps.len().min(max_size).min(data.len());
    data[..len].copy_from_slice(&steps[..len]);
    len
});
