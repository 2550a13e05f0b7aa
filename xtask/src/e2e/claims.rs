//! The claims.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::stage::{Client, Served, Stage, User, shown, succeed};
use crate::play::Claim;

/// All claims, by name.
pub(crate) const CLAIMS: &[(&str, Claim<Stage>)] = &[
    ("the demo passes for every user", demo),
    (
        "a program keeps its uid, its exit status and its signals",
        exit_status,
    ),
    (
        "bad input gets one clear sentence and the right status",
        bad_input,
    ),
    (
        "one domain, whatever is attached and detached first, by whatever page table",
        orders,
    ),
    (
        "the client passes for every user, linked dynamically and statically, with and without namespaces",
        clients,
    ),
    (
        "a whole device and a mediated one share a container, whoever comes and goes first",
        container,
    ),
    (
        "devices are saved and restored in the middle of their work",
        migrated,
    ),
    ("two programs join one machine at once", joined),
    ("a program that is stopped delays nobody else", stopped),
    (
        "a program killed in the middle of its DMA leaves nothing behind",
        killed,
    ),
    (
        "the limit of locked memory is enforced when that is asked for",
        memlock,
    ),
    ("mediated devices come and go while the machine runs", mdevs),
    (
        "an emulated device is an access object, and has no domain",
        emulated,
    ),
];

fn demo(stage: &Stage) -> Result<String> {
    let mut seconds = Vec::new();
    for user in stage.users() {
        let start = Instant::now();
        let output = succeed(stage.ioasid(user).arg("demo"))?;
        let last = output.lines().last().unwrap_or_default().to_owned();
        ensure!(
            last.ends_with(" passed, 0 failed"),
            "the demo's last line is `{last}`"
        );
        let wide = output.lines().find(|line| line.chars().count() > 80);
        ensure!(wide.is_none(), "a line is wider than 80 columns: {wide:?}");
        let json = succeed(stage.ioasid(user).args(["demo", "--json"]))?;
        let json: serde_json::Value = serde_json::from_str(&json)?;
        ensure!(
            json["failed"] == 0 && json["schema"] == 1,
            "the JSON form differs"
        );
        seconds.push(format!("{user:?} {:.1} s", start.elapsed().as_secs_f64()));
    }
    Ok(seconds.join(", "))
}

fn exit_status(stage: &Stage) -> Result<String> {
    let mut checked = 0;
    let not_executable = stage.path("not-executable");
    fs::write(&not_executable, "no program")?;
    let not_executable = not_executable.display().to_string();
    for user in stage.users() {
        for (program, expected) in [
            (vec!["true"], 0),
            (vec!["sh", "-c", "exit 7"], 7),
            (vec!["sh", "-c", "kill -TERM $$"], 128 + 15),
            (vec!["sh", "-c", "kill -KILL $$"], 128 + 9),
            (vec!["no-such-program-anywhere"], 127),
            (vec![&*not_executable], 126),
        ] {
            let output = stage
                .ioasid(user)
                .args(["run", "--"])
                .args(&program)
                .output()?;
            let found = output.status.code();
            ensure!(
                found == Some(expected),
                "{program:?} as {user:?}: {}",
                shown(&output)
            );
            checked += 1;
        }
        let uid = succeed(stage.ioasid(user).args(["run", "--", "id", "-u"]))?;
        let mut id = match user {
            User::Own => Command::new("id"),
            User::Nobody => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--clear-groups", "id"]);
                command
            }
        };
        let expected = succeed(id.arg("-u"))?;
        ensure!(
            uid == expected,
            "the program's uid is {uid}, not {expected}"
        );
    }
    Ok(format!("{checked} programs"))
}

fn bad_input(stage: &Stage) -> Result<String> {
    let file = |name: &str, text: &str| -> Result<String> {
        let path = stage.path(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let unknown = file("unknown.toml", "[[device]]\nmodel = \"dsa\"\nengnies = 2\n")?;
    let empty = file("empty.toml", "")?;
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["run", "--machine", &unknown, "--", "true"],
            125,
            "did you mean `engines`?",
        ),
        (
            &["run", "--machine", &empty, "--", "true"],
            125,
            "no device",
        ),
        (
            &["run", "--machine", "/nowhere.toml", "--", "true"],
            125,
            "cannot read machine file",
        ),
        (
            &["run", "--device", "dsa,queus=1", "--", "true"],
            125,
            "did you mean `queues`?",
        ),
        (
            &["run", "--device", "disk", "--", "true"],
            125,
            "unknown variant",
        ),
        (
            &["run", "--vm", "vm9", "--", "true"],
            125,
            "it has vm1, vm2",
        ),
        (
            &["run", "--join", "nobody-serves-this", "--", "true"],
            125,
            "no machine",
        ),
        (&["run"], 125, "PROGRAM"),
        (&["serve", &unknown], 1, "line 3"),
        (&["inspect", "nobody-serves-this"], 1, "no machine"),
        (
            &["mdev", "list", "--machine", "nobody-serves-this"],
            1,
            "no machine",
        ),
        (&["fly"], 2, "unrecognized subcommand"),
    ];
    for (arguments, status, sentence) in cases {
        let output = stage.ioasid(User::Own).args(*arguments).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(*status),
            "{arguments:?}: {}",
            shown(&output)
        );
        ensure!(
            text.contains(sentence),
            "{arguments:?} said `{}`",
            text.trim()
        );
        ensure!(!text.contains("panicked"), "{arguments:?} panicked");
    }
    Ok(format!("{} command lines", cases.len()))
}

fn orders(stage: &Stage) -> Result<String> {
    let mut runs = 0;
    let memory: &[&str] = if stage.long {
        &["private", "file", "shared"]
    } else {
        &["file"]
    };
    for kind in memory {
        for tables in ["ioas", "manual-pdev", "manual-mdev", "manual-both"] {
            for attach in ["pdev", "mdev"] {
                for detach in ["pdev", "mdev"] {
                    succeed(
                        stage
                            .ioasid(User::Own)
                            .args(["run", "--vm", "vm1", "--"])
                            .arg(stage.client(Client::Dynamic))
                            .args(["--mib", "4", "--data", kind, "--page-tables", tables])
                            .args(["--attach", attach, "--detach", detach]),
                    )?;
                    runs += 1;
                }
            }
        }
    }
    Ok(format!(
        "{runs} orders, each with one page table and no fault"
    ))
}

fn clients(stage: &Stage) -> Result<String> {
    let times = stage.times(3, 100);
    let mut runs = 0;
    for user in stage.users() {
        for client in [Client::Dynamic, Client::Static] {
            for mode in [None, Some("--no-namespaces")] {
                for run in 0..times {
                    succeed(
                        stage
                            .ioasid(user)
                            .arg("run")
                            .args(mode)
                            .args(["--vm", "vm1", "--"])
                            .arg(stage.client(client)),
                    )
                    .with_context(|| format!("{client:?} as {user:?}, {mode:?}, run {run}"))?;
                    runs += 1;
                }
            }
        }
    }
    Ok(format!(
        "{runs} runs of 64 MiB through two devices, every byte, interrupt and fault right"
    ))
}

/// By groups and a container instead of `/dev/iommu`.
fn container(stage: &Stage) -> Result<String> {
    let mut runs = 0;
    for user in stage.users() {
        for mode in [None, Some("--no-namespaces")] {
            for attach in ["pdev", "mdev"] {
                for detach in ["pdev", "mdev"] {
                    let mut command = stage.ioasid(user);
                    command.arg("run").args(mode).args(["--vm", "vm1", "--"]);
                    command.arg(stage.client(Client::Dynamic));
                    command.args(["--container", "--mib", "8", "--pdev", "first"]);
                    command.args(["--mdev", "first", "--data", "shared"]);
                    succeed(command.args(["--attach", attach, "--detach", detach]))
                        .with_context(|| format!("{user:?}, {mode:?}, {attach}, {detach}"))?;
                    runs += 1;
                }
            }
        }
    }
    Ok(format!("{runs} runs through vfio-ioctls' own container"))
}

/// A program stops its devices again and again, reads their state from a file, and writes it back.
fn migrated(stage: &Stage) -> Result<String> {
    let mib = stage.times(32, 1024).to_string();
    let mut runs = 0;
    for user in stage.users() {
        for mode in [None, Some("--no-namespaces")] {
            for data in ["private", "shared"] {
                let mut command = stage.ioasid(user);
                command.arg("run").args(mode).args(["--vm", "vm1", "--"]);
                command.arg(stage.client(Client::Dynamic));
                command.args(["--migrate", "--exact-interrupts", "--mib", &mib]);
                succeed(command.args(["--pdev", "first", "--mdev", "first", "--data", data]))
                    .with_context(|| format!("{user:?}, {mode:?}, {data}"))?;
                runs += 1;
            }
        }
    }
    Ok(format!("{runs} runs of {mib} MiB through two devices"))
}

fn joined(stage: &Stage) -> Result<String> {
    let times = stage.times(3, 100);
    let mut runs = 0;
    for user in stage.users() {
        let served = stage.serve(user, None)?;
        for run in 0..times {
            let start = |vm: &str, arguments: &[&str]| {
                let mut command = served.join(stage, vm);
                command.arg(stage.client(Client::Dynamic)).args(arguments);
                command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
            };
            let first = start(
                "vm1",
                &["--pdev", "first", "--mdev", "first", "--mib", "16"],
            )?;
            let second = start("vm2", &["--pdev", "none", "--mdev", "first", "--mib", "16"])?;
            for child in [first, second] {
                let output = child.wait_with_output()?;
                ensure!(
                    output.status.success(),
                    "run {run} as {user:?}: {}",
                    shown(&output)
                );
            }
            runs += 1;
        }
        served.settle(stage)?;
    }
    Ok(format!("{runs} pairs"))
}

fn stopped(stage: &Stage) -> Result<String> {
    let served = stage.serve(User::Own, None)?;
    let mut hostage = served
        .join(stage, "vm2")
        .arg(stage.client(Client::Dynamic))
        .args(["--pdev", "none", "--mib", "65536"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait_for_dma(stage, &served, 0)?;
    signal_program(hostage.id(), "STOP")?;
    let start = Instant::now();
    let result = succeed(
        served
            .join(stage, "vm1")
            .arg(stage.client(Client::Dynamic))
            .args(["--mib", "16"]),
    );
    let took = start.elapsed();
    served.inspect(stage)?;
    signal_program(hostage.id(), "KILL")?;
    hostage.wait()?;
    result?;
    served.settle(stage)?;
    Ok(format!(
        "the other program took {} ms meanwhile",
        took.as_millis()
    ))
}

fn killed(stage: &Stage) -> Result<String> {
    let times = stage.times(20, 200);
    let served = stage.serve(User::Own, None)?;
    let mut baseline = None;
    for run in 0..times {
        let kind = ["private", "file", "shared"][run % 3];
        // The mediated device alone, or the whole one of the same VM first.
        let pdev = ["none", "first"][run % 2];
        let before = jobs(stage, &served)?;
        let mut victim = served
            .join(stage, "vm1")
            .arg(stage.client(Client::Dynamic))
            .args([
                "--mib",
                "65536",
                "--data",
                kind,
                "--records",
                kind,
                "--pdev",
                pdev,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        wait_for_dma(stage, &served, before)?;
        // Anywhere in a batch: a different moment each time.
        std::thread::sleep(Duration::from_micros(137 * (run as u64 % 41)));
        signal_program(victim.id(), "KILL")?;
        let status = victim.wait()?;
        ensure!(
            status.code() == Some(128 + 9),
            "run {run}: `run` ended with {status}"
        );
        served.settle(stage).with_context(|| format!("run {run}"))?;
        // Threads of allocators and caches are there after the first few.
        if run == 5 {
            baseline = Some(served.holdings()?);
        }
    }
    succeed(
        served
            .join(stage, "vm1")
            .arg(stage.client(Client::Dynamic))
            .args(["--mib", "16"]),
    )?;
    served.settle(stage)?;
    let before = baseline.context("too few runs")?;
    let after = served.holdings()?;
    // A connection of the last inspection may still be closing.
    let close = |before: usize, after: usize| after <= before + 2;
    ensure!(
        close(before.descriptors, after.descriptors)
            && close(before.threads, after.threads)
            && after.mappings <= before.mappings + 16,
        "the machine holds {after:?}, {before:?} before"
    );
    Ok(format!("{times} kills; {before:?} before, {after:?} after"))
}

fn memlock(stage: &Stage) -> Result<String> {
    // The client maps 8 MiB of data; 1 MiB may be locked. Root's capability lifts the limit.
    let user = stage.weakest_user();
    let run = |options: &[&str]| {
        let mut command = stage.ioasid(user);
        let client = stage.client(Client::Dynamic).display().to_string();
        command
            .arg("run")
            .args(options)
            .args(["--vm", "vm1", "--", "sh", "-c"]);
        command.arg(format!("ulimit -l 1024; exec {client} --mib 4 --data file"));
        command
    };
    succeed(&mut run(&[]))?;
    let output = run(&["--enforce-memlock"]).output()?;
    let text = shown(&output);
    ensure!(
        !output.status.success() && text.contains("os error 12"),
        "8 MiB were mapped with a limit of 1 MiB: {text}"
    );
    Ok("8 MiB with `ulimit -l 1024`: counted by default, ENOMEM when enforced".to_owned())
}

fn emulated(stage: &Stage) -> Result<String> {
    let machine = stage.path("edu.toml");
    let uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a09";
    let section = format!("[[emulated]]\nmodel = \"edu\"\nuuid = \"{uuid}\"\n");
    fs::write(&machine, section)?;
    for user in stage.users() {
        let mut command = stage.ioasid(user);
        let command = command.args(["run", "--machine"]).arg(&machine);
        let output = succeed(command.arg("--").arg(stage.path("edu")))?;
        ensure!(output.ends_with("passed\n"), "it says {output}");
    }
    Ok("bound, attached, copied in and out, refused after an unmap".to_owned())
}

fn mdevs(stage: &Stage) -> Result<String> {
    let served = stage.serve(User::Own, None)?;
    let socket = served.socket().display().to_string();
    let mdev = |words: &[&str]| {
        let mut command = stage.ioasid(User::Own);
        command.arg("mdev").args(words).args(["--machine", &socket]);
        command
    };
    let uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a0f";
    let parent = "0000:6a:01.0";
    succeed(&mut mdev(&["create", parent, uuid, "--vm", "vm3"]))?;
    let listed = succeed(&mut mdev(&["list"]))?;
    ensure!(
        listed.contains(uuid),
        "the new device is not listed: {listed}"
    );
    for (words, sentence) in [
        (["create", parent, uuid], "exists"),
        (["create", parent, "5f2e6a9e"], "UUID"),
        (
            ["create", parent, "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2aff"],
            "no ",
        ),
    ] {
        let output = mdev(&words).output()?;
        let text = String::from_utf8_lossy(&output.stderr).to_lowercase();
        let said = text.contains(&sentence.to_lowercase());
        ensure!(
            !output.status.success() && said,
            "{words:?}: {}",
            shown(&output)
        );
    }
    succeed(
        served
            .join(stage, "vm3")
            .arg(stage.client(Client::Dynamic))
            .args(["--pdev", "none", "--mdev", "first", "--mib", "4"]),
    )?;
    succeed(&mut mdev(&["remove", uuid]))?;
    let listed = succeed(&mut mdev(&["list"]))?;
    ensure!(!listed.contains(uuid), "the device is still listed");
    Ok("created, listed, used by a program, removed; three refusals".to_owned())
}

/// Descriptors that programs' queues have done so far.
fn jobs(stage: &Stage, served: &Served) -> Result<u64> {
    let tree = served.inspect(stage)?;
    let devices = tree["devices"].as_array().cloned().unwrap_or_default();
    let queues = devices
        .iter()
        .filter_map(|device| device["dsa"]["queues"].as_array());
    let queues = queues.flatten().filter(|queue| queue["owner"] != "kernel");
    Ok(queues.filter_map(|queue| queue["jobs"].as_u64()).sum())
}

/// Waits until programs' queues have done more than `before` descriptors.
fn wait_for_dma(stage: &Stage, served: &Served, before: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while jobs(stage, served)? <= before {
        ensure!(Instant::now() < deadline, "no DMA within 20 s");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Sends a signal to the program inside `run`: its only child.
fn signal_program(run: u32, signal: &str) -> Result<()> {
    let children = fs::read_to_string(format!("/proc/{run}/task/{run}/children"))?;
    let program = children
        .split_whitespace()
        .next()
        .context("`run` has no program")?;
    succeed(Command::new("kill").args([&format!("-{signal}"), program])).map(drop)
}
