//! `cargo xtask how-to`: types `docs/how-to/write-a-device.md` into a fresh project and runs it.
//!
//! The page is the script. A code block after a line that names a file, such as
//! `` `src/main.rs`: ``, is that file; a block of `sh` is typed, and the block of `text` after it is
//! what it prints. The project is made in a temporary folder, outside the workspace, and depends on
//! this checkout by path. The same files are in `docs/how-to/adder`, for readers who want to open
//! them: they must be what the page says.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::{
    page::blocks,
    workspace::{cargo, root, run as checked},
};

/// The page.
const PAGE: &str = "docs/how-to/write-a-device.md";
/// The same project for readers.
const FOLDER: &str = "docs/how-to/adder";
/// The checkout, as the project in the folder sees it.
const CHECKOUT: &str = "../../..";

/// Checks the folder, types the page and uses what it makes.
pub(crate) fn run() -> Result<()> {
    let text = fs::read_to_string(root().join(PAGE)).context(PAGE)?;
    let page = Page::read(&text)?;
    compare(&page.files)?;
    println!(
        "  ok   {FOLDER} is what {PAGE} says: {} files",
        page.files.len()
    );
    let sources = page.files.keys().filter(|name| name.ends_with(".rs"));
    let sources = sources.map(|name| Path::new(FOLDER).join(name));
    let mut format = Command::new("rustfmt");
    checked(
        format
            .args(["--check", "--edition", "2024"])
            .args(sources)
            .current_dir(root()),
    )?;
    checked(cargo().args(["fetch", "--locked"]))?;
    let project = tempfile::tempdir().context("making a folder")?;
    make(project.path(), &page.files)?;
    for session in &page.sessions {
        session.type_in(project.path())?;
    }
    served(project.path())?;
    println!("\n{PAGE}: {} sessions as it says", page.sessions.len());
    Ok(())
}

/// What a reader of the page types.
#[derive(Debug, Default)]
struct Page {
    /// The files of the project, by path.
    files: BTreeMap<String, String>,
    sessions: Vec<Session>,
}

/// Commands, and the lines that they print.
#[derive(Debug, Default)]
struct Session {
    commands: String,
    prints: Vec<String>,
}

impl Page {
    fn read(text: &str) -> Result<Self> {
        let mut page = Page::default();
        for block in blocks(text) {
            match (block.language, block.file) {
                (_, Some(file)) => {
                    let again = page.files.insert(file.to_owned(), block.text());
                    ensure!(again.is_none(), "{PAGE} has {file} twice");
                }
                ("sh", None) => page.sessions.push(Session {
                    commands: block.text(),
                    prints: Vec::new(),
                }),
                ("text", None) => {
                    let session = page.sessions.last_mut();
                    let session = session.context("a block of text without commands before it")?;
                    session.prints = block.lines.into_iter().map(str::to_owned).collect();
                }
                (other, None) => bail!("{PAGE} has a block of {other} that is no file"),
            }
        }
        ensure!(
            !page.files.is_empty() && !page.sessions.is_empty(),
            "{PAGE} has no project"
        );
        Ok(page)
    }
}

impl Session {
    /// Types the commands in `project`.
    fn type_in(&self, project: &Path) -> Result<()> {
        print!("{}", self.commands);
        let output = Command::new("bash")
            .args(["-euc", &self.commands])
            .current_dir(project)
            // The versions of the lock file, which have been fetched.
            .env("CARGO_NET_OFFLINE", "true")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("starting bash")?;
        let printed = String::from_utf8_lossy(&output.stdout);
        print!("{printed}");
        ensure!(output.status.success(), "it ended with {}", output.status);
        let mut found = printed.lines();
        for expected in &self.prints {
            ensure!(
                found.any(|line| line == expected),
                "it does not print `{expected}`"
            );
        }
        Ok(())
    }
}

/// The files of the folder, which must be those of the page.
fn compare(files: &BTreeMap<String, String>) -> Result<()> {
    let folder = root().join(FOLDER);
    let mut found = BTreeMap::new();
    collect(&folder, &folder, &mut found)?;
    for (name, text) in files {
        match found.remove(name) {
            Some(own) if own == *text => {}
            Some(_) => bail!("{FOLDER}/{name} and {PAGE} differ"),
            None => bail!("{PAGE} has {name}, {FOLDER} has not"),
        }
    }
    match found.keys().next() {
        Some(name) => bail!("{FOLDER} has {name}, {PAGE} has not"),
        None => Ok(()),
    }
}

fn collect(top: &Path, folder: &Path, found: &mut BTreeMap<String, String>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        let name = path.strip_prefix(top)?.display().to_string();
        // What a build leaves behind.
        if ["target", "Cargo.lock"].contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            collect(top, &path, found)?;
        } else {
            let text = fs::read_to_string(&path).with_context(|| name.clone())?;
            found.insert(name, text);
        }
    }
    Ok(())
}

/// Makes the project, with the versions of the workspace and a target folder that stays.
fn make(project: &Path, files: &BTreeMap<String, String>) -> Result<()> {
    let root = root();
    for (name, text) in files {
        let path = project.join(name);
        let text = match name.as_str() {
            "Cargo.toml" => text.replace(CHECKOUT, &root.display().to_string()),
            _ => text.clone(),
        };
        fs::create_dir_all(path.parent().unwrap_or(project))?;
        fs::write(&path, text).with_context(|| name.clone())?;
    }
    fs::copy(root.join("Cargo.lock"), project.join("Cargo.lock")).context("Cargo.lock")?;
    let target = root.join("target/how-to");
    fs::create_dir_all(&target)?;
    std::os::unix::fs::symlink(target, project.join("target")).context("linking the target folder")
}

/// The program serves its machine file: programs join it, each with its VM's devices.
fn served(project: &Path) -> Result<()> {
    let program = project.join("target/debug/adder");
    let socket = project.join("machine.sock");
    let serve = Command::new(&program)
        .args(["serve", "machine.toml", "--socket"])
        .arg(&socket)
        .current_dir(project)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut serve = Running(serve.context("starting the server")?);
    let lines = BufReader::new(serve.0.stderr.take().context("no standard error")?).lines();
    // The last line before it is ready to be looked at.
    let mut lines = lines.map_while(std::result::Result::ok);
    ensure!(
        lines.any(|line| line.starts_with("  look:")),
        "the server ended"
    );
    // What it says from now on has a reader.
    std::thread::spawn(move || lines.for_each(drop));
    for (vm, sum) in [
        (None, "40 has become 42"),
        (Some("vm1"), "40 has become 100"),
    ] {
        let mut join = Command::new(&program);
        join.args(["run", "--join"]).arg(&socket);
        join.args(vm.map(|vm| ["--vm", vm]).into_iter().flatten());
        join.arg("--").arg(project.join("target/debug/use-adder"));
        let printed = printed(&mut join)?;
        ensure!(printed.contains(sum), "{vm:?} printed {printed:?}");
        println!("  ok   joined, {}: {sum}", vm.unwrap_or("without a VM"));
    }
    let inspected = printed(Command::new(&program).arg("inspect").arg(&socket))?;
    ensure!(inspected.contains("adder"), "inspect shows {inspected}");
    println!("  ok   inspect shows the model's own tree");
    Ok(())
}

/// A server, which ends with its user.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `command` prints, if it succeeds.
fn printed(command: &mut Command) -> Result<String> {
    let program = PathBuf::from(command.get_program());
    let shown = program.display().to_string();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| shown.clone())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown} failed: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
