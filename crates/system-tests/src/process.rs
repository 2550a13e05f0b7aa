//! Running a program that has to succeed.

use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use ioasid_testing::PATIENCE;

/// Runs a command that must succeed, and end within [`PATIENCE`].
pub fn succeed(command: &mut Command) -> Result<String> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + PATIENCE;
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
            bail!("{command:?} does not end");
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
pub fn shown(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let last: Vec<_> = text.lines().rev().take(3).collect();
    format!(
        "{}: {}",
        output.status,
        last.into_iter().rev().collect::<Vec<_>>().join(" / ")
    )
}
