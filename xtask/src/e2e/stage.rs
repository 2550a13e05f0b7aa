//! What the claims stand on: built programs in a place that every user can read, and a served
//! machine.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value as Json;

use crate::{root, run as checked};

/// A user without any privilege: `nobody`.
pub(crate) const NOBODY: u32 = 65534;

/// Programs, and how often to run them.
#[derive(Debug)]
pub(crate) struct Stage {
    directory: PathBuf,
    /// The full number of repetitions.
    pub(crate) long: bool,
}

/// Who runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// Whoever runs this.
    Own,
    /// uid 65534, no capabilities, no_new_privs.
    Nobody,
}

/// The two builds of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// Linked dynamically.
    Dynamic,
    /// Linked statically.
    Static,
}

impl Stage {
    /// Builds everything and copies it to a directory of its own.
    pub(crate) fn build(long: bool) -> Result<Self> {
        checked(
            Command::new("cargo")
                .args([
                    "build",
                    "--release",
                    "-p",
                    "ioasid",
                    "-p",
                    "passthrough-client",
                    "--bins",
                    "--example",
                    "edu",
                ])
                .current_dir(root()),
        )?;
        // crt-static needs an explicit target, or proc macros would be built with it as well.
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        checked(
            Command::new("cargo")
                .args([
                    "build",
                    "--release",
                    "-p",
                    "passthrough-client",
                    "--target",
                    &target,
                ])
                .arg("--target-dir")
                .arg(target_directory().join("static"))
                .env("RUSTFLAGS", "-C target-feature=+crt-static")
                .current_dir(root()),
        )?;
        let stage = Stage::empty(long)?;
        let built = target_directory();
        for (from, to) in [
            (built.join("release/ioasid"), "ioasid"),
            (built.join("release/passthrough-client"), "client"),
            (built.join("release/examples/edu"), "edu"),
            (
                built
                    .join("static")
                    .join(target)
                    .join("release/passthrough-client"),
                "client-static",
            ),
        ] {
            stage.add(&from, to)?;
        }
        Ok(stage)
    }

    /// A stage with this `ioasid` and nothing else.
    pub(crate) fn bare(ioasid: &Path) -> Result<Self> {
        let stage = Stage::empty(false)?;
        stage.add(ioasid, "ioasid")?;
        Ok(stage)
    }

    fn empty(long: bool) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("ioasid-e2e-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        Ok(Stage { directory, long })
    }

    /// Adds a copy of the program `from` under the name `to`.
    pub(crate) fn add(&self, from: &Path, to: &str) -> Result<()> {
        fs::copy(from, self.path(to)).with_context(|| format!("copying {}", from.display()))?;
        fs::set_permissions(self.path(to), fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// A file of the stage.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The client's file.
    pub(crate) fn client(&self, client: Client) -> PathBuf {
        self.path(match client {
            Client::Dynamic => "client",
            Client::Static => "client-static",
        })
    }

    /// `short`, or `long` in the long form.
    pub(crate) fn times(&self, short: usize, long: usize) -> usize {
        if self.long { long } else { short }
    }

    /// The users to try: as root also an unprivileged one.
    pub(crate) fn users(&self) -> Vec<User> {
        let is_root = fs::read_to_string("/proc/self/status")
            .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")));
        if is_root {
            vec![User::Own, User::Nobody]
        } else {
            vec![User::Own]
        }
    }

    /// The least privileged of them.
    pub(crate) fn weakest_user(&self) -> User {
        self.users().pop().unwrap_or(User::Own)
    }

    /// A folder of the stage that is `user`'s.
    pub(crate) fn folder_of(&self, user: User, name: &str) -> Result<PathBuf> {
        let folder = self.path(name);
        fs::create_dir_all(&folder)?;
        if user == User::Nobody {
            chown(&folder, Some(NOBODY), Some(NOBODY)).context("giving a folder away")?;
        }
        Ok(folder)
    }

    /// `ioasid` as `user`.
    pub(crate) fn ioasid(&self, user: User) -> Command {
        self.command(user, self.path("ioasid"))
    }

    /// `program` as `user`.
    pub(crate) fn command(&self, user: User, program: impl AsRef<OsStr>) -> Command {
        let mut command = match user {
            User::Own => Command::new(program),
            User::Nobody => {
                let mut command = Command::new("setpriv");
                command
                    .args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")])
                    .args(["--clear-groups", "--no-new-privs", "--"])
                    .arg(program.as_ref());
                command
            }
        };
        command
            .current_dir("/")
            .env_remove("XDG_RUNTIME_DIR")
            // What every user may search: a program that is nowhere must not look forbidden.
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .stdin(Stdio::null());
        command
    }

    /// Starts `ioasid serve` on `machine` (a file; the default machine without one).
    pub(crate) fn serve(&self, user: User, machine: Option<&Path>) -> Result<Served> {
        self.serve_with(user, machine, &[])
    }

    /// As [`Self::serve`], with further options.
    pub(crate) fn serve_with(
        &self,
        user: User,
        machine: Option<&Path>,
        options: &[&str],
    ) -> Result<Served> {
        let socket = self.path(&format!("{user:?}-{:x}.sock", machine.is_some() as u8));
        // The directory is not the other user's: a socket of its own place.
        let socket = match user {
            User::Own => socket,
            User::Nobody => {
                std::env::temp_dir().join(format!("ioasid-{}.sock", std::process::id()))
            }
        };
        let mut command = self.ioasid(user);
        command
            .arg("serve")
            .args(options)
            .args(machine)
            .arg("--socket")
            .arg(&socket)
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("starting `ioasid serve`")?;
        let mut stderr = BufReader::new(child.stderr.take().context("stderr of `ioasid serve`")?);
        let mut first = String::new();
        stderr.read_line(&mut first)?;
        if !first.contains("machine `") {
            let _ = stderr.read_to_string(&mut first);
            let _ = child.kill();
            bail!("`ioasid serve` said: {first}");
        }
        // Its further lines must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Ok(Served {
            child,
            socket,
            user,
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A machine that is being served.
#[derive(Debug)]
pub(crate) struct Served {
    child: Child,
    socket: PathBuf,
    user: User,
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// Open file descriptors.
    pub(crate) descriptors: usize,
    /// Threads.
    pub(crate) threads: usize,
    /// Mappings.
    pub(crate) mappings: usize,
}

impl Served {
    /// `ioasid run --join` on this machine.
    pub(crate) fn join(&self, stage: &Stage, vm: &str) -> Command {
        let mut command = stage.ioasid(self.user);
        command
            .args(["run", "--join"])
            .arg(&self.socket)
            .args(["--vm", vm, "--"]);
        command
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What `ioasid inspect --json` shows.
    pub(crate) fn inspect(&self, stage: &Stage) -> Result<Json> {
        let output = stage
            .ioasid(self.user)
            .args(["inspect", "--json"])
            .arg(&self.socket)
            .output()?;
        ensure!(output.status.success(), "inspect: {}", shown(&output));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Waits until no program holds anything: no iommufd is open, only the parents' domains are left,
    /// every queue of an mdev is as at the start, no PASID is held or pending.
    pub(crate) fn settle(&self, stage: &Stage) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let tree = self.inspect(stage)?;
            let left = leftovers(&tree);
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "after 20 s there is still {}",
                left.join(", ")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the serving process holds.
    pub(crate) fn holdings(&self) -> Result<Holdings> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let count = |name: &str| -> Result<usize> { Ok(fs::read_dir(process.join(name))?.count()) };
        Ok(Holdings {
            descriptors: count("fd")?,
            threads: count("task")?,
            mappings: fs::read_to_string(process.join("maps"))?.lines().count(),
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// The elements of an array that `inspect` shows; none if there is no array.
pub(crate) fn list(node: &Json) -> impl Iterator<Item = &Json> {
    node.as_array().into_iter().flatten()
}

/// What is left of programs in a machine's tree, in words.
fn leftovers(tree: &Json) -> Vec<String> {
    let mut left = Vec::new();
    let contexts = tree["iommufds"].as_array().map_or(0, Vec::len);
    if contexts > 0 {
        left.push(format!("{contexts} open iommufds"));
    }
    let domains = tree["iommu"]["paging_domains"].as_u64().unwrap_or(u64::MAX);
    let parents = list(&tree["devices"]);
    let parents = parents.filter(|device| !device["host_queues"].is_null());
    if domains != parents.count() as u64 {
        left.push(format!("{domains} domains"));
    }
    for name in ["held", "pending"] {
        let count = tree["iommu"]["pasids"][name].as_u64().unwrap_or(u64::MAX);
        if count != 0 {
            left.push(format!("{count} PASIDs {name}"));
        }
    }
    for device in list(&tree["devices"]) {
        for queue in list(&device["dsa"]["queues"]) {
            let is_child = queue["owner"] == "mdev";
            let pristine = queue["pasid_enabled"] == false
                && queue["occupancy"] == 0
                && queue["under_way"] == 0
                && queue["state"] == "locked";
            if is_child && !pristine {
                left.push(format!("a queue {queue}"));
            }
        }
    }
    left
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => root().join(path),
        None => root().join("target"),
    }
}

/// Runs a command that must succeed within two minutes.
pub(crate) fn succeed(command: &mut Command) -> Result<String> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(120);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    // Read beside the wait: a program that fills a pipe would never end.
    let stdout = std::thread::spawn(move || read_all(out));
    let stderr = std::thread::spawn(move || read_all(err));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} did not end within two minutes");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let output = Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    };
    ensure!(output.status.success(), "{command:?}: {}", shown(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn read_all(pipe: Option<impl std::io::Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What was read before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

/// The end of what a command said, and its status.
pub(crate) fn shown(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let last: Vec<_> = text.lines().rev().take(3).collect();
    format!(
        "{}: {}",
        output.status,
        last.into_iter().rev().collect::<Vec<_>>().join(" / ")
    )
}
