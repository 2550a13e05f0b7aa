//! Claims about programs that run here, made with real programs.
//!
//! This executable is everything: the test harness, the process that holds a machine, the
//! launcher, and the programs that are run. It needs no C compiler and no other binary, so it can
//! be copied to where another user may execute it.

// UNSAFETY: a client of ioctls makes ioctls.
#![allow(unsafe_code)]
#![allow(clippy::print_stderr, clippy::print_stdout, clippy::unwrap_used)]

mod attributes;
mod check;
mod claims;
mod client;
mod confined;
mod descriptors;
mod entries;
mod groups;
mod hardship;
mod machine;
mod mapped;
mod memory;
mod migration;
mod places;
mod sanitized;
mod served;
mod uring;

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
};

use ioasid_supervisor::{ControlServer, Mmio, RunOptions, launch, run};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    match first.as_deref().and_then(|word| word.to_str()) {
        Some(launch::VERB) => launch::main(args),
        Some("part:run") => part_run(args.collect()),
        Some("part:serve") => part_serve(args.collect()),
        Some("part:join") => part_join(args.collect()),
        Some("part:confined") => confined::main(args.collect()),
        Some("part:facts") => part_facts(),
        Some("part:client") => client::main(args.collect()),
        _ => claims::main(),
    }
}

/// `part:run [--vm NAME] -- PROGRAM [ARG...]`: a private machine.
fn part_run(words: Vec<OsString>) -> ExitCode {
    log();
    let machine = machine::Example::new();
    report(run::run(machine, options(words)))
}

/// `part:join SOCKET [--vm NAME] -- PROGRAM [ARG...]`
fn part_join(mut words: Vec<OsString>) -> ExitCode {
    log();
    let socket = words.remove(0);
    report(run::join(socket.as_ref(), options(words)))
}

/// `part:serve SOCKET`: until stdin is closed.
fn part_serve(words: Vec<OsString>) -> ExitCode {
    log();
    let machine = machine::Example::new();
    let server = match ControlServer::start(machine, words[0].clone().into()) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(125);
        }
    };
    println!("serving");
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    drop(server);
    ExitCode::SUCCESS
}

/// What the host has in `/dev`, without what is the machine's in a program's: a line for each
/// entry.
fn part_facts() -> ExitCode {
    let listed = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let listed = listed.filter_map(|entry| entry.file_name().into_string().ok());
    for name in listed.chain(["net/tun".to_owned()]) {
        if matches!(&*name, "iommu" | "ioasid" | "vfio") || name.contains(' ') {
            continue;
        }
        let (kind, rdev, errno) = places::facts_of(&name);
        println!("{name} {kind} {rdev} {errno}");
    }
    ExitCode::SUCCESS
}

fn options(words: Vec<OsString>) -> RunOptions {
    let at = words.iter().position(|word| word == "--").unwrap();
    let mut options = RunOptions::new(&words[at + 1], &words[at + 2..]);
    if words[0] == "--vm" {
        options.vm = Some(words[1].to_str().unwrap().to_owned());
    }
    options.forward_signals = true;
    if let Some(libraries) = std::env::var_os("PROGRAM_PRELOADS") {
        options.env.push(("LD_PRELOAD".into(), libraries));
    }
    options.namespaces = std::env::var_os("NO_NAMESPACES").is_none();
    options.mmio = match std::env::var("MMIO").as_deref() {
        Ok("preload") => Mmio::Preload,
        Ok("ptrace") => Mmio::Ptrace,
        Ok("off") => Mmio::Off,
        _ => Mmio::Auto,
    };
    options
}

fn report(result: Result<i32, run::RunError>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            eprintln!("ioasid: {error}");
            ExitCode::from(125)
        }
    }
}

fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .try_init();
}

/// This executable, in a part.
fn part(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(name);
    command
}
