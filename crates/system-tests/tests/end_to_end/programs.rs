//! The tests.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use ioasid_system_tests::{
    installation::{Client, Installation, User},
    process::{shown, succeed},
    served::Served,
};
use ioasid_testing::PATIENCE;
use xtask::workspace::root;

pub(super) fn demo(installation: &Installation) -> Result<String> {
    let mut seconds = Vec::new();
    for user in installation.users() {
        let start = Instant::now();
        let output = succeed(installation.ioasid(user).arg("demo"))?;
        let last = output.lines().last().unwrap_or_default().to_owned();
        ensure!(
            last.ends_with(" passed, 0 failed"),
            "the demo's last line is `{last}`"
        );
        let wide = output.lines().find(|line| line.chars().count() > 80);
        ensure!(wide.is_none(), "a line is wider than 80 columns: {wide:?}");
        let json = succeed(installation.ioasid(user).args(["demo", "--json"]))?;
        let json: serde_json::Value = serde_json::from_str(&json)?;
        ensure!(
            json["failed"] == 0 && json["schema"] == 1,
            "the JSON form differs"
        );
        seconds.push(format!("{user:?} {:.1} s", start.elapsed().as_secs_f64()));
    }
    Ok(seconds.join(", "))
}

pub(super) fn exit_status(installation: &Installation) -> Result<String> {
    let mut checked = 0;
    let not_executable = installation.path("not-executable");
    fs::write(&not_executable, "no program")?;
    let not_executable = not_executable.display().to_string();
    for user in installation.users() {
        for (program, expected) in [
            (vec!["true"], 0),
            (vec!["sh", "-c", "exit 7"], 7),
            (vec!["sh", "-c", "kill -TERM $$"], 128 + 15),
            (vec!["sh", "-c", "kill -KILL $$"], 128 + 9),
            (vec!["no-such-program-anywhere"], 127),
            (vec![&*not_executable], 126),
        ] {
            let output = installation
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
        let uid = succeed(installation.ioasid(user).args(["run", "--", "id", "-u"]))?;
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

pub(super) fn bad_input(installation: &Installation) -> Result<String> {
    let file = |name: &str, text: &str| -> Result<String> {
        let path = installation.path(name);
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
            "unknown model `disk`, expected one of `dsa`, `ioat`, `edu`\n",
        ),
        (&["run", "--device", "edv,help"], 125, "did you mean `edu`?"),
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
        let output = installation.ioasid(User::Own).args(*arguments).output()?;
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

pub(super) fn orders(installation: &Installation) -> Result<String> {
    let mut runs = 0;
    let memory: &[&str] = if installation.long {
        &["private", "file", "shared"]
    } else {
        &["file"]
    };
    for kind in memory {
        for tables in ["ioas", "manual-pdev", "manual-mdev", "manual-both"] {
            for attach in ["pdev", "mdev"] {
                for detach in ["pdev", "mdev"] {
                    succeed(
                        installation
                            .ioasid(User::Own)
                            .args(["run", "--vm", "vm1", "--"])
                            .arg(installation.client(Client::Dynamic))
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

pub(super) fn clients(installation: &Installation) -> Result<String> {
    let times = installation.times(3, 100);
    let mut runs = 0;
    for user in installation.users() {
        for client in [Client::Dynamic, Client::Static] {
            for mode in [None, Some("--no-namespaces")] {
                for run in 0..times {
                    succeed(
                        installation
                            .ioasid(user)
                            .arg("run")
                            .args(mode)
                            .args(["--vm", "vm1", "--"])
                            .arg(installation.client(client)),
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
pub(super) fn container(installation: &Installation) -> Result<String> {
    let mut runs = 0;
    for user in installation.users() {
        for mode in [None, Some("--no-namespaces")] {
            for attach in ["pdev", "mdev"] {
                for detach in ["pdev", "mdev"] {
                    let mut command = installation.ioasid(user);
                    command.arg("run").args(mode).args(["--vm", "vm1", "--"]);
                    command.arg(installation.client(Client::Dynamic));
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
pub(super) fn migrated(installation: &Installation) -> Result<String> {
    let mib = installation.times(32, 1024).to_string();
    let mut runs = 0;
    for user in installation.users() {
        for mode in [None, Some("--no-namespaces")] {
            for data in ["private", "shared"] {
                let mut command = installation.ioasid(user);
                command.arg("run").args(mode).args(["--vm", "vm1", "--"]);
                command.arg(installation.client(Client::Dynamic));
                command.args(["--migrate", "--exact-interrupts", "--mib", &mib]);
                succeed(command.args(["--pdev", "first", "--mdev", "first", "--data", data]))
                    .with_context(|| format!("{user:?}, {mode:?}, {data}"))?;
                runs += 1;
            }
        }
    }
    Ok(format!("{runs} runs of {mib} MiB through two devices"))
}

pub(super) fn joined(installation: &Installation) -> Result<String> {
    let times = installation.times(3, 100);
    let mut runs = 0;
    for user in installation.users() {
        let served = Served::start(installation, user, None, &[])?;
        for run in 0..times {
            let start = |vm: &str, arguments: &[&str]| {
                let mut command = served.join(installation, vm);
                command
                    .arg(installation.client(Client::Dynamic))
                    .args(arguments);
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
        served.wait_until_released(installation)?;
    }
    Ok(format!("{runs} pairs"))
}

pub(super) fn stopped(installation: &Installation) -> Result<String> {
    let served = Served::start(installation, User::Own, None, &[])?;
    let mut hostage = served
        .join(installation, "vm2")
        .arg(installation.client(Client::Dynamic))
        .args(["--pdev", "none", "--mib", "65536"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait_for_dma(installation, &served, 0)?;
    signal_program(hostage.id(), "STOP")?;
    let start = Instant::now();
    let result = succeed(
        served
            .join(installation, "vm1")
            .arg(installation.client(Client::Dynamic))
            .args(["--mib", "16"]),
    );
    let took = start.elapsed();
    served.inspect(installation)?;
    signal_program(hostage.id(), "KILL")?;
    hostage.wait()?;
    result?;
    served.wait_until_released(installation)?;
    Ok(format!(
        "the other program took {} ms meanwhile",
        took.as_millis()
    ))
}

pub(super) fn killed(installation: &Installation) -> Result<String> {
    let times = installation.times(20, 200);
    let served = Served::start(installation, User::Own, None, &[])?;
    let mut baseline = None;
    for run in 0..times {
        let kind = ["private", "file", "shared"][run % 3];
        // The mediated device alone, or the whole one of the same VM first.
        let pdev = ["none", "first"][run % 2];
        let before = jobs(installation, &served)?;
        let mut victim = served
            .join(installation, "vm1")
            .arg(installation.client(Client::Dynamic))
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
        wait_for_dma(installation, &served, before)?;
        // Anywhere in a batch: a different moment each time.
        std::thread::sleep(Duration::from_micros(137 * (run as u64 % 41)));
        signal_program(victim.id(), "KILL")?;
        let status = victim.wait()?;
        ensure!(
            status.code() == Some(128 + 9),
            "run {run}: `run` ended with {status}"
        );
        served
            .wait_until_released(installation)
            .with_context(|| format!("run {run}"))?;
        // Threads of allocators and caches are there after the first few.
        if run == 5 {
            baseline = Some(served.holdings()?);
        }
    }
    succeed(
        served
            .join(installation, "vm1")
            .arg(installation.client(Client::Dynamic))
            .args(["--mib", "16"]),
    )?;
    served.wait_until_released(installation)?;
    let before = baseline.context("too few runs")?;
    // A connection of the last inspection may still be closing.
    let close = |before: usize, after: usize| after <= before + 2;
    let after = served
        .wait_until_it_holds(|after| {
            close(before.descriptors, after.descriptors)
                && close(before.threads, after.threads)
                && after.mappings <= before.mappings + 16
        })
        .with_context(|| format!("{before:?} before"))?;
    Ok(format!("{times} kills; {before:?} before, {after:?} after"))
}

pub(super) fn memlock(installation: &Installation) -> Result<String> {
    // The client maps 8 MiB of data; 1 MiB may be locked. Root's capability lifts the limit.
    let user = installation.weakest_user();
    let run = |options: &[&str]| {
        let mut command = installation.ioasid(user);
        let client = installation.client(Client::Dynamic).display().to_string();
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

pub(super) fn emulated(installation: &Installation) -> Result<String> {
    let machine = installation.path("edu.toml");
    let uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a09";
    let section = format!("[[emulated]]\nmodel = \"edu\"\nuuid = \"{uuid}\"\n");
    fs::write(&machine, section)?;
    for user in installation.users() {
        let mut command = installation.ioasid(user);
        let command = command.args(["run", "--machine"]).arg(&machine);
        let output = succeed(command.arg("--").arg(installation.path("edu")))?;
        ensure!(output.ends_with("passed\n"), "it says {output}");
    }
    Ok("bound, attached, copied in and out, refused after an unmap".to_owned())
}

pub(super) fn check(installation: &Installation) -> Result<String> {
    let ioasid = installation.path("ioasid").display().to_string();
    for user in installation.users() {
        let mut command = installation.ioasid(user);
        let text = succeed(command.args(["check", "--device", "dsa,queues=2,vm=a"]))?;
        let device = "  0000:6a:01.0 dsa: /dev/vfio/devices/vfio0, of a; 2 engines, 2 queues\n";
        ensure!(
            text.contains(device) && text.ends_with("It can be run here.\n"),
            "as {user:?} it says {text}"
        );
        // There is one obstacle that every host has: a listener that is there already.
        let mut command = installation.ioasid(user);
        let output = command.args(["run", "--", &ioasid, "check"]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.code() == Some(1)
                && text.contains("  no    ioasid run inside ioasid run is not possible")
                && text.ends_with("It cannot be run here.\n"),
            "as {user:?}, inside of a run, it says {text}"
        );
        let mut command = installation.ioasid(user);
        let output = command.args(["run", "-v", "--", "true"]).output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            text.contains("0000:6a:01.0 dsa: not for programs"),
            "as {user:?}, `run -v` says {text}"
        );
    }
    Ok("a machine that can be run, and one that cannot".to_owned())
}

pub(super) fn accel_config(installation: &Installation) -> Result<String> {
    let config = installation.path("saved.json");
    let example = root().join("crates/machine/tests/accel/two_groups.json");
    fs::copy(&example, &config).with_context(|| format!("copying {}", example.display()))?;
    let machine = installation.path("accel.toml");
    let section = format!(
        "[[device]]\nmodel = \"dsa\"\ndriver = \"host\"\nconfig = \"{}\"\n",
        config.display()
    );
    fs::write(&machine, section)?;
    let served = Served::start(installation, User::Own, Some(&machine), &["--busy"])?;
    let socket = served.socket().display().to_string();
    let uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a0c";
    let mut command = installation.ioasid(User::Own);
    command.args(["mdev", "create", "0000:6a:01.0", uuid, "--machine", &socket]);
    succeed(&mut command)?;
    let mut command = installation.ioasid(User::Own);
    command.args(["run", "--join", &socket, "--"]);
    command.arg(installation.client(Client::Dynamic));
    succeed(command.args(["--pdev", "none", "--mdev", "first", "--mib", "4"]))?;
    Ok(
        "two groups with the host's driver at work, and a program on the queue of type mdev"
            .to_owned(),
    )
}

pub(super) fn mdevs(installation: &Installation) -> Result<String> {
    let served = Served::start(installation, User::Own, None, &[])?;
    let socket = served.socket().display().to_string();
    let mdev = |words: &[&str]| {
        let mut command = installation.ioasid(User::Own);
        command.arg("mdev").args(words).args(["--machine", &socket]);
        command
    };
    let uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a0f";
    let parent = "0000:6a:01.0";
    let unknown = mdev(&["create", parent, uuid, "--vm", "vm3"]).output()?;
    ensure!(
        unknown.status.code() == Some(1) && shown(&unknown).contains("has no vm `vm3`"),
        "a VM that is not there: {}",
        shown(&unknown)
    );
    succeed(&mut mdev(&["create", parent, uuid, "--vm", "vm2"]))?;
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
            .join(installation, "vm2")
            .arg(installation.client(Client::Dynamic))
            .args(["--pdev", "none", "--mib", "4", "--mdev"])
            .arg(format!("/sys/bus/mdev/devices/{uuid}")),
    )?;
    succeed(&mut mdev(&["remove", uuid]))?;
    let listed = succeed(&mut mdev(&["list"]))?;
    ensure!(!listed.contains(uuid), "the device is still listed");
    Ok("created, listed, used by a program, removed; four refusals".to_owned())
}

/// Descriptors that programs' queues have done so far.
fn jobs(installation: &Installation, served: &Served) -> Result<u64> {
    let tree = served.inspect(installation)?;
    let devices = tree["devices"].as_array().cloned().unwrap_or_default();
    let queues = devices
        .iter()
        .filter_map(|device| device["dsa"]["queues"].as_array());
    let queues = queues.flatten().filter(|queue| queue["owner"] != "kernel");
    Ok(queues.filter_map(|queue| queue["jobs"].as_u64()).sum())
}

/// Waits until programs' queues have done more than `before` descriptors.
fn wait_for_dma(installation: &Installation, served: &Served, before: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while jobs(installation, served)? <= before {
        ensure!(Instant::now() < deadline, "there is no DMA");
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
