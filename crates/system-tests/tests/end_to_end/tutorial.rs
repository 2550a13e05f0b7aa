//! The first DMA of the tutorial.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use ioasid_system_tests::{installation::Installation, process::succeed};
use xtask::workspace::root;

pub(super) fn first_dma(installation: &Installation) -> Result<String> {
    let said = "the device copied: hello\n";
    let mut sizes = Vec::new();
    for (file, lines) in [
        (
            "docs/tutorial/first_dma.py",
            lines_of_python as fn(&str) -> usize,
        ),
        ("crates/client/examples/first_dma.rs", lines_of_rust),
    ] {
        let lines = lines(&fs::read_to_string(root().join(file)).context(file)?);
        ensure!((1..=20).contains(&lines), "{file} has {lines} lines");
        sizes.push(format!("{file}: {lines}"));
    }
    let script = installation.path("first_dma.py");
    fs::copy(root().join("docs/tutorial/first_dma.py"), &script)?;
    let script = script.display().to_string();
    let rust = installation.path("first_dma").display().to_string();
    for user in installation.users() {
        for program in [&["python3", &*script][..], &[&*rust]] {
            let mut command = installation.ioasid(user);
            let output = succeed(command.args(["run", "--"]).args(program))?;
            ensure!(output == said, "{program:?} as {user:?} says {output}");
        }
        // Alone it is at the first address of all.
        let mut command = installation.ioasid(user);
        let command = command.args(["run", "--device", "edu", "--", "python3", &script]);
        let output = succeed(command)?;
        ensure!(output == said, "as {user:?} it says {output}");
    }
    Ok(sizes.join(", "))
}

/// Lines that are not empty.
fn lines_of_python(text: &str) -> usize {
    text.lines().filter(|line| !line.trim().is_empty()).count()
}

/// The lines inside `main`.
fn lines_of_rust(text: &str) -> usize {
    let body = text.lines().skip_while(|line| !line.starts_with("fn main"));
    let body = body.skip(1).take_while(|line| *line != "}");
    body.filter(|line| !line.trim().is_empty()).count()
}
