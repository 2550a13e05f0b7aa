//! A client whose memory is private (`private.c`), with the agent that copies in it, and what may happen
//! to both in the middle of DMA.

use std::{fs, os::unix::process::ExitStatusExt as _, path::PathBuf, process::Output};

use anyhow::{Context as _, Result, bail, ensure};
use ioasid_system_tests::{
    installation::{Installation, User},
    process::shown,
};

use super::{ADDRESS, MACHINE};

/// The client, and how it is built.
pub(super) const BUILDS: [(&str, Option<&str>); 2] =
    [("private", None), ("private-static", Some("-static"))];

/// What the client does with its agent; see the head of `private.c`.
const MODES: [&str; 10] = [
    "plain", "unshare", "pid", "fork", "stop", "kill", "protect", "exec", "exit", "abort",
];

/// The client's status where the host does not let it try.
const SKIPPED: i32 = 77;

/// Every mode, as each user; and where there is to be no agent.
pub(super) fn check(installation: &Installation) -> Result<String> {
    let (mut passed, mut skipped, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    let mut note = |name: String, result: Result<Option<String>>| match result {
        Ok(None) => passed.push(name),
        Ok(Some(why)) => skipped.push(format!("{name} ({why})")),
        Err(error) => failed.push(format!("{name}: {error:#}")),
    };
    for user in installation.users() {
        for mode in MODES {
            let result = run(installation, user, &[], "private", mode);
            note(format!("{mode} as {user:?}"), result);
        }
        let result = run(installation, user, &["--no-namespaces"], "private", "plain");
        note(format!("plain as {user:?} without namespaces"), result);
        let result = run(installation, user, &[], "private-static", "none");
        note(format!("static as {user:?}"), result);
        let result = run(installation, user, &["--mmio=ptrace"], "private", "none");
        note(format!("without the library as {user:?}"), result);
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n       "));
    let mut said = passed.join(", ");
    if !skipped.is_empty() {
        said += &format!("\n       SKIPPED: {}", skipped.join(", "));
    }
    Ok(said)
}

/// Runs the client; `Some` says why it could not try.
fn run(
    installation: &Installation,
    user: User,
    options: &[&str],
    build: &str,
    mode: &str,
) -> Result<Option<String>> {
    let mut command = installation.ioasid(user);
    command.arg("run").args(options).arg("--machine");
    command.arg(installation.path(MACHINE)).arg("--");
    command.arg(installation.path(build)).args([ADDRESS, mode]);
    let output = command.output().context("starting `ioasid`")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code() == Some(SKIPPED) {
        return Ok(Some(said.trim().to_owned()));
    }
    match mode {
        "exit" | "abort" => has_gone(&output, mode)?,
        _ => {
            ensure!(output.status.success(), "{}", shown(&output));
            ensure!(
                said.contains(&format!("private: {mode}")),
                "it said {said:?}"
            );
        }
    }
    Ok(None)
}

/// The client ended as it was to, and its agent with it.
fn has_gone(output: &Output, mode: &str) -> Result<()> {
    let killed = output.status.signal() == Some(9) || output.status.code() == Some(128 + 9);
    let ended = match mode {
        "abort" => killed,
        _ => output.status.success(),
    };
    ensure!(ended, "{}", shown(output));
    let said = String::from_utf8_lossy(&output.stdout);
    let agent = said
        .lines()
        .find_map(|line| line.strip_prefix("private: agent "));
    let agent = agent.with_context(|| format!("it said {said:?}"))?;
    let status = PathBuf::from("/proc").join(agent).join("status");
    match fs::read_to_string(status) {
        Ok(status) if status.starts_with("Name:\tioasid-agent\n") => {
            bail!("the agent {agent} is there still:\n{status}")
        }
        _ => Ok(()),
    }
}
