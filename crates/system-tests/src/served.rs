//! A machine that `ioasid serve` offers to programs.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ioasid_testing::PATIENCE;
use serde_json::Value as Json;

use crate::{
    installation::{Installation, User},
    process::shown,
};

/// A machine that is being served.
#[derive(Debug)]
pub struct Served {
    child: Child,
    socket: PathBuf,
    user: User,
    schema: jsonschema::Validator,
}

/// The schema of what `inspect --json` prints.
const SCHEMA: &str = include_str!("../../../docs/inspect.schema.json");

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings.
    pub mappings: usize,
    /// Those of them that have a file behind them, such as the memory of a guest.
    pub mapped_files: usize,
}

impl Served {
    /// Starts `ioasid serve` on `machine` (a file; the default machine without one), with further
    /// options.
    ///
    /// # Errors
    /// If it cannot be started or refuses the machine.
    pub fn start(
        installation: &Installation,
        user: User,
        machine: Option<&Path>,
        options: &[&str],
    ) -> Result<Served> {
        let socket = installation.path(&format!("{user:?}-{:x}.sock", machine.is_some() as u8));
        // The directory is not the other user's: a socket of its own place.
        let socket = match user {
            User::Own => socket,
            User::Nobody => {
                std::env::temp_dir().join(format!("ioasid-{}.sock", std::process::id()))
            }
        };
        let mut command = installation.ioasid(user);
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
            schema: jsonschema::draft202012::new(&serde_json::from_str(SCHEMA)?)?,
        })
    }
    /// `ioasid run --join` on this machine.
    pub fn join(&self, installation: &Installation, vm: &str) -> Command {
        let mut command = installation.ioasid(self.user);
        command
            .args(["run", "--join"])
            .arg(&self.socket)
            .args(["--vm", vm, "--"]);
        command
    }

    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What `ioasid inspect --json` shows, which must be as its schema says.
    pub fn inspect(&self, installation: &Installation) -> Result<Json> {
        let output = installation
            .ioasid(self.user)
            .args(["inspect", "--json"])
            .arg(&self.socket)
            .output()?;
        ensure!(output.status.success(), "inspect: {}", shown(&output));
        let tree = serde_json::from_slice(&output.stdout)?;
        if let Some(error) = self.schema.iter_errors(&tree).next() {
            bail!("inspect: {}: {error}", error.instance_path());
        }
        Ok(tree)
    }

    /// Waits until no program holds anything: no iommufd is open, only the parents' domains are left,
    /// every queue of an mdev is as at the start, no PASID is held or pending.
    pub fn wait_until_released(&self, installation: &Installation) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tree = self.inspect(installation)?;
            let left = leftovers(&tree);
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "there is still {}",
                left.join(", ")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the serving process holds what is `good`: what a program had goes a moment after it. What
    /// it holds then.
    ///
    /// # Errors
    /// If it holds something else to the end, which is said.
    pub fn wait_until_it_holds(&self, good: impl Fn(&Holdings) -> bool) -> Result<Holdings> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.holdings()?;
            if good(&now) {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "the machine holds {now:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the serving process holds.
    pub fn holdings(&self) -> Result<Holdings> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let count = |name: &str| -> Result<usize> { Ok(fs::read_dir(process.join(name))?.count()) };
        let maps = fs::read_to_string(process.join("maps"))?;
        Ok(Holdings {
            descriptors: count("fd")?,
            threads: count("task")?,
            mappings: maps.lines().count(),
            mapped_files: maps.lines().filter(|line| line.contains('/')).count(),
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
pub fn list(node: &Json) -> impl Iterator<Item = &Json> {
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
