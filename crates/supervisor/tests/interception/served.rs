//! Claims about a served machine and the programs that join it.

use std::{
    fs,
    io::Write,
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use ioasid_core::inspect::Value;
use ioasid_supervisor::control;
use libtest_mimic::Failed;

use crate::claims::{Setting, User, check, executable, expect_line, part, succeeded, wait_for};

/// A machine served by that user; ends when dropped.
pub(crate) struct Served {
    child: Child,
    socket: PathBuf,
    directory: tempfile::TempDir,
}

impl Served {
    pub(crate) fn start(setting: Setting) -> Result<Self, Failed> {
        let directory = tempfile::tempdir()?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
        let socket = directory.path().join("m.sock");
        let mut child = part(setting, "part:serve")
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        expect_line(&mut child, "serving")?;
        Ok(Served {
            child,
            socket,
            directory,
        })
    }

    pub(crate) fn join(&self, setting: Setting, name: &str) -> Command {
        let exe = executable(setting);
        let mut command = part(setting, "part:join");
        command
            .arg(&self.socket)
            .arg("--")
            .arg(exe)
            .args(["part:client", name]);
        command
    }

    /// Contexts alive, and programs that are served.
    fn counts(&self) -> Result<(u64, usize), Failed> {
        let tree = control::inspect(&self.socket)?;
        match (tree.field("contexts"), tree.field("programs")) {
            (Some(Value::Count(contexts)), Some(Value::List(programs))) => {
                Ok((*contexts, programs.len()))
            }
            _ => Err(format!("{tree:?}").into()),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

pub(crate) fn served(setting: Setting) -> Result<(), Failed> {
    let machine = Served::start(setting)?;
    control::ping(&machine.socket)?;
    let start = |name: &str| machine.join(setting, name).stderr(Stdio::piped()).spawn();
    for _ in 0..3 {
        let programs = [start("objects")?, start("device")?, start("names")?];
        for program in programs {
            succeeded(&program.wait_with_output()?)?;
        }
    }
    wait_for("the programs to leave", || {
        machine.counts().is_ok_and(|c| c == (0, 0))
    })?;
    let output = part(setting, "part:join")
        .arg(&machine.socket)
        .args(["--vm", "vm9", "--", "true"])
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    check(stderr == "ioasid: the machine has no vm \"vm9\"\n", &stderr)?;
    let output = part(setting, "part:join")
        .arg(&machine.socket)
        .args(["--", "no-such-program-anywhere"])
        .output()?;
    check(output.status.code() == Some(127), &format!("{output:?}"))
}

pub(crate) fn killed(setting: Setting) -> Result<(), Failed> {
    let machine = Served::start(setting)?;
    let entries = |what: &str| {
        let path = format!("/proc/{}/{what}", machine.child.id());
        fs::read_dir(path).map_or(0, Iterator::count)
    };
    let mut before = (0, 0);
    for round in 0..10 {
        let holder = ["hold", "hold-group"][round % 2];
        let mut program = machine
            .join(setting, holder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        expect_line(&mut program, "holding")?;
        check(machine.counts()? == (1, 1), "held while it lives")?;
        // The program itself, not the `run` in front of it.
        let children = format!("/proc/{0}/task/{0}/children", program.id());
        let pid = fs::read_to_string(children)?;
        let pid = pid
            .trim()
            .parse()
            .map_err(|_| format!("children: {pid:?}"))?;
        let pid = rustix::process::Pid::from_raw(pid).ok_or("pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        let status = program.wait()?;
        check(status.code() == Some(137), &status.to_string())?;
        wait_for("everything to be closed", || {
            machine.counts().is_ok_and(|c| c == (0, 0))
        })?;
        // The first round warms up; afterwards nothing may pile up.
        if round == 0 {
            before = (entries("fd"), entries("task"));
        }
    }
    // A connection that has not ended yet may have been counted then, and none need be now.
    wait_for("descriptors and threads to be as before", || {
        entries("fd") <= before.0 && entries("task") <= before.1
    })
}

pub(crate) fn hostile_peer(setting: Setting) -> Result<(), Failed> {
    let machine = Served::start(setting)?;
    let mut idle = Vec::new();
    for text in [
        &b""[..],
        b"\n",
        b"{}\n",
        b"[[[[[[[[[[[[[[",
        b"{\"schema\":1,\"message\":{\"join\":{\"vm\":null,\"program\":\"x\"}}}\n",
        b"\xff\xff\xff\xff\n",
    ] {
        let mut peer = UnixStream::connect(&machine.socket)?;
        peer.write_all(text)?;
        idle.push(peer);
    }
    let mut channel = ioasid_supervisor::wire::Channel::new(UnixStream::connect(&machine.socket)?);
    channel.send(
        &ioasid_supervisor::wire::Request::Join {
            vm: None,
            program: "x".to_owned(),
        },
        None,
    )?;
    let refusal = match setting.user {
        User::Us => {
            // A listener that is none.
            channel.receive::<ioasid_supervisor::wire::Description>(1 << 20)?;
            let attach = ioasid_supervisor::wire::Attach {
                base: 896,
                mode: ioasid_supervisor::wire::Mode::Namespaces {
                    placeholders: Vec::new(),
                    sys: None,
                },
                mmio: ioasid_supervisor::Mmio::Auto,
                explain: false,
                pid: 0,
            };
            let null = fs::File::open("/dev/null")?;
            channel.send(&attach, Some(null.as_fd()))?;
            "not a seccomp listener"
        }
        // We are root here, and the machine is not.
        User::Nobody => "may not read the memory of a program of root",
    };
    let refused = channel.receive::<()>(1 << 20).err().ok_or("not refused")?;
    check(refused.to_string().contains(refusal), &refused.to_string())?;
    // It goes on.
    for _ in 0..5 {
        succeeded(&machine.join(setting, "objects").output()?)?;
    }
    drop(idle);
    wait_for("the peers to be gone", || {
        machine.counts().is_ok_and(|c| c == (0, 0))
    })
}

pub(crate) fn stale_socket(setting: Setting) -> Result<(), Failed> {
    let mut machine = Served::start(setting)?;
    let socket = machine.socket.clone();
    let serve_again = || part(setting, "part:serve").arg(&socket).output();
    let output = serve_again()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    check(
        output.status.code() == Some(125) && stderr.contains("already"),
        &stderr,
    )?;
    control::ping(&machine.socket)?;
    let pid = rustix::process::Pid::from_child(&machine.child);
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    machine.child.wait()?;
    check(machine.socket.exists(), "it left its socket")?;
    succeeded(&serve_again()?)?;
    check(!machine.socket.exists(), "the next one cleaned up")
}

pub(crate) fn served_daemon(setting: Setting) -> Result<(), Failed> {
    let machine = Served::start(setting)?;
    let result = machine.directory.path().join("result");
    let output = machine
        .join(setting, "daemon")
        .env("RESULT", &result)
        .output()?;
    succeeded(&output)?;
    check(machine.counts()? == (1, 1), "the daemon holds its file")?;
    fs::write(result.with_extension("go"), "")?;
    wait_for("the daemon", || result.exists())?;
    let found = fs::read_to_string(&result)?;
    check(found == "[2, 1]", &found)?;
    wait_for("the daemon to end", || {
        machine.counts().is_ok_and(|c| c == (0, 0))
    })
}
