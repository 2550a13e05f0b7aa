//! What each verb does, apart from the demo.

use anyhow::{Context as _, Result, bail};
use ioasid_core::inspect::{Node, Value};
use ioasid_host::{confine, prepare_received, service};
use ioasid_machine::{Machine, MachineFile, Models};
use ioasid_supervisor::{
    ControlServer, RunOptions, control,
    run::{Ended, start, start_joined},
    view::MdevRequest,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    CALLS_SHOWN, catalog,
    cli::{MdevArgs, MdevVerb, RunArgs, ServeArgs},
    demo, explain,
    find::{chosen, machine_name, socket},
    guests::Guests,
    look::tree,
    machines,
    stdio::{print, say},
    trace::{self, Subject, Tracing},
    view,
};

/// `ioasid run`: the program's exit status.
pub(crate) fn run(args: RunArgs, models: &Models, verbose: u8, quiet: bool) -> Result<u8> {
    if let Some(help) = catalog::help(&args.machine.devices.device, models)? {
        print(&help)?;
        return Ok(0);
    }
    let mut words = args.program.iter();
    let program = words
        .next()
        .context("no program given: ioasid run [OPTIONS] -- PROGRAM...")?;
    let mut options = RunOptions::new(program, words);
    options.vm.clone_from(&args.vm);
    options.forward_signals = true;
    options.namespaces = !args.no_namespaces;
    options.mmio = args.mmio;
    let explains = args.explain.is_some();
    options.explain = args.explain.as_deref().map(explain::open).transpose()?;
    let ended = match &args.join {
        Some(machine) => start_joined(&socket(machine)?, options)?.finish()?,
        None => run_private(&args, models, options, verbose >= CALLS_SHOWN)?,
    };
    if ended.status != 0
        && !quiet
        && !explains
        && let Some(line) = explain::summary(ended.counts)
    {
        say(&line);
    }
    Ok(u8::try_from(ended.status).unwrap_or(u8::MAX))
}

/// Runs a program on a machine of its own. The machine is gone when this returns.
fn run_private(
    args: &RunArgs,
    models: &Models,
    options: RunOptions,
    calls_shown: bool,
) -> Result<Ended> {
    let devices = &args.machine.devices.device;
    let mut file = machines::file(args.machine.machine.as_deref(), devices, models)?;
    file.iommu.enforce_memlock |= args.enforce_memlock;
    let machine = machines::build("private", &file)?;
    for line in machine.outline() {
        tracing::info!("{line}");
    }
    known_vm(&machine, options.vm.as_deref())?;
    let subject = Subject {
        program: &args.program,
        machine: trace::source(args.machine.machine.as_deref(), devices)?,
        selftest: args.selftest,
        enforce_memlock: args.enforce_memlock,
    };
    let tracing = Tracing::start(args.trace.as_deref(), calls_shown, &machine, subject)?;
    // Other terminals may look at it; a program does not depend on it.
    let name = format!("run-{}", std::process::id());
    let server =
        control::socket_path(&name).and_then(|path| ControlServer::start(view::of(&machine), path));
    if let Err(error) = &server {
        tracing::info!("this machine cannot be inspected: {error}");
    }
    let view = if args.selftest {
        view::with_selftest(&machine, tracing.as_ref())
    } else {
        view::traced(&machine, tracing.as_ref())
    };
    let ended = start(view, options).and_then(|running| {
        if let (Ok(server), Some(session)) = (&server, running.session()) {
            server.show(&session.shown());
        }
        running.finish()
    });
    // Nothing happens any more when the machine is gone.
    drop(server);
    drop(machine);
    let traced = tracing.map_or(Ok(()), Tracing::finish);
    let ended = ended?;
    match traced {
        Err(error) if ended.status == 0 => return Err(error),
        Err(error) => say(&format!("ioasid: {error:#}")),
        Ok(()) => {}
    }
    Ok(ended)
}

fn known_vm(machine: &Machine, vm: Option<&str>) -> Result<()> {
    match vm {
        Some(vm) if !machine.has_vm(vm) => {
            let known = machine.vms();
            if known.is_empty() {
                bail!("the machine has no vm `{vm}`: nothing in it belongs to a vm");
            }
            bail!("the machine has no vm `{vm}`; it has {}", known.join(", "))
        }
        _ => Ok(()),
    }
}

/// `ioasid serve`: until a signal ends it.
pub(crate) fn serve(args: ServeArgs, models: &Models, verbose: u8) -> Result<u8> {
    // Before anything else has a descriptor.
    let passed = service::listen_fds();
    service::raise_descriptor_limit();
    let manager = service::Manager::from_env();
    let (file, default_name) = match &args.machine {
        Some(path) => {
            let stem = path
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned());
            (
                MachineFile::load(path, models)?,
                stem.unwrap_or_else(|| "machine".to_owned()),
            )
        }
        None => (MachineFile::default_machine(), "default".to_owned()),
    };
    let name = args.name.unwrap_or(default_name);
    let path = match args.socket {
        Some(path) => path,
        None => control::socket_path(&name)?,
    };
    control::check_free(&path)?;
    let machine = machines::build(&name, &file)?;
    let subject = Subject {
        program: &[],
        machine: trace::source(args.machine.as_deref(), &[])?,
        selftest: false,
        enforce_memlock: false,
    };
    let shown = verbose >= CALLS_SHOWN;
    let tracing = Tracing::start(args.trace.as_deref(), shown, &machine, subject)?;
    let busy = match args.busy {
        true => demo::parent::keep_busy(&machine)?,
        false => Vec::new(),
    };
    let mut end = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("waiting for signals")?;
    let sockets = args.socket_dir.unwrap_or_else(|| path.with_extension("vm"));
    let guests = Guests::start(&machine, &sockets, passed)?;
    let view = view::serving(&machine, tracing.as_ref(), guests.server());
    let server = ControlServer::start_with(view, path, !args.no_join)?;
    let shown = server.path().display();
    say(&format!("ioasid: machine `{name}` at {shown}"));
    let vms = if args.no_join {
        prepare_received().context("preparing for clients")?;
        confine().context("confining this process")?;
        say("  confined: serves virtual machines only");
        Vec::new()
    } else {
        machine.vms()
    };
    if vms.is_empty() && !args.no_join {
        say(&format!("  join it:  ioasid run --join {shown} -- PROGRAM"));
    }
    for vm in vms {
        say(&format!(
            "  join it:  ioasid run --join {shown} --vm {vm} -- PROGRAM"
        ));
    }
    say(&format!("  look:     ioasid inspect {shown}"));
    guests.announce();
    manager.notify("READY=1");
    end.forever().next();
    manager.notify("STOPPING=1");
    guests.stop();
    drop(server);
    for parent in busy {
        let work = parent.stop();
        if work.errors > 0 || work.faults > 0 {
            bail!(
                "of {} jobs of the parent's own driver, {} failed, {} by a fault",
                work.jobs,
                work.errors,
                work.faults
            );
        }
    }
    drop(machine);
    tracing.map_or(Ok(()), Tracing::finish)?;
    Ok(0)
}

/// Prints a tree on standard output.
fn show(node: Node, json: bool) -> Result<()> {
    let text = match json {
        true => tree::to_json_text(&node),
        false => tree::to_text(&node),
    };
    Ok(print(&text)?)
}

/// `ioasid mdev`.
pub(crate) fn mdev(args: MdevArgs) -> Result<u8> {
    let path = chosen(args.machine.as_deref())?;
    let ask = |request| {
        let answer = control::mdev(&path, request);
        answer.with_context(|| format!("machine `{}`", machine_name(&path)))
    };
    match args.verb {
        MdevVerb::Create {
            parent,
            uuid,
            type_name,
            vm,
        } => {
            let created = ask(MdevRequest::Create {
                parent,
                kind: type_name,
                uuid: uuid.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
                vm,
            })?;
            match created.field("uuid") {
                Some(Value::Text(uuid)) => print(&format!("{uuid}\n"))?,
                _ => bail!("the machine does not say what it has created"),
            }
        }
        MdevVerb::List { json } => show(ask(MdevRequest::List)?, json)?,
        MdevVerb::Remove { uuid } => drop(ask(MdevRequest::Remove { uuid })?),
    }
    Ok(0)
}
