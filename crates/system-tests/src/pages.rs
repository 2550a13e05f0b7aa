//! Pages of the documentation whose commands are run, and whose programs are files of the checkout.
//!
//! The rule, for every page in [`PAGES`]:
//! * A block of `console` is a session in a shell. A line that begins with `$ ` is typed (lines that
//!   begin with `> ` go on with it); the lines below are what it prints, on both streams.
//! * In what is printed, a line `...` stands for any number of lines, and `...` inside a line for any
//!   text.
//! * A command must succeed, unless the next one is `echo $?`.
//! * A command that ends with ` &` goes on in the background until the page ends. The next command is
//!   typed when it has printed what the page says.
//! * A block of any language after a line that is only a file's name, such as `` `name.toml`: ``, is
//!   that file: one of the checkout, if it is below `docs/` or `crates/`, else one that the reader
//!   makes in the folder where the commands are typed.
//!
//! All commands of a page are typed in one fresh folder, in which `docs` and `crates` are those of the
//! checkout and `target` has the programs that the pages name; `ioasid` is in the `PATH`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ioasid_testing::PATIENCE;
use xtask::{
    page::blocks,
    workspace::{root, target_directory},
};

use crate::installation::{Installation, User};

/// The pages, from the root of the checkout.
pub const PAGES: &[&str] = &[
    "docs/tutorial.md",
    "docs/how-to/inject.md",
    "docs/how-to/why-a-call-failed.md",
    "docs/trace.md",
    "docs/concepts.md",
    "docs/troubleshooting.md",
];

/// What stands for any text.
const ANY: &str = "...";

/// The folder where machines of a page keep their sockets.
const RUNTIME: &str = ".runtime";

/// A page, as far as it is run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    parts: Vec<Part>,
}

/// What a page asks for, in its order.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// A file of this name and content.
    File(String, String),
    /// A command, and the lines that it prints.
    Command(String, Vec<String>),
}

impl Page {
    fn read(text: &str) -> Result<Self> {
        let mut page = Page::default();
        for block in blocks(text) {
            if let Some(name) = block.file {
                page.parts.push(Part::File(name.to_owned(), block.text()));
            } else if block.language == "console" {
                page.session(&block.lines)?;
            }
        }
        Ok(page)
    }

    fn session(&mut self, block: &[&str]) -> Result<()> {
        for line in block {
            if let Some(command) = line.strip_prefix("$ ") {
                let command = Part::Command(command.to_owned(), Vec::new());
                self.parts.push(command);
                continue;
            }
            let Some(Part::Command(command, prints)) = self.parts.last_mut() else {
                bail!("`{line}` is printed by no command");
            };
            match line.strip_prefix("> ") {
                Some(more) if prints.is_empty() => {
                    command.push('\n');
                    command.push_str(more);
                }
                _ => prints.push((*line).to_owned()),
            }
        }
        Ok(())
    }

    fn commands(&self) -> usize {
        let is_command = |part: &&Part| matches!(part, Part::Command(..));
        self.parts.iter().filter(is_command).count()
    }
}

/// Runs all pages.
///
/// # Errors
/// The first command that does not do what its page says, with what it did.
pub fn run(installation: &Installation) -> Result<String> {
    let said: Result<Vec<_>> = PAGES
        .iter()
        .map(|name| follow(installation, name, &[]))
        .collect();
    Ok(said?.join("; "))
}

/// Runs the page `name`, in a folder that has links to these files of the `installation` beside the usual ones.
///
/// # Errors
/// As for [`run`].
pub fn follow(installation: &Installation, name: &str, files: &[&str]) -> Result<String> {
    let text = fs::read_to_string(root().join(name)).context(name.to_owned())?;
    let page = Page::read(&text).context(name.to_owned())?;
    // A page that lost its blocks must not pass.
    ensure!(page.commands() > 0, "{name} has no command");
    let folder = tempfile::tempdir().context("making a folder")?;
    for file in files {
        symlink(installation.path(file), folder.path().join(file))?;
    }
    Shell::new(installation, folder.path())?
        .follow(&page)
        .context(name.to_owned())?;
    Ok(format!("{name}: {} commands", page.commands()))
}

/// Where the commands of one page are typed.
struct Shell<'a> {
    installation: &'a Installation,
    folder: &'a Path,
    /// Of the last command.
    status: i32,
    background: Vec<Child>,
}

impl<'a> Shell<'a> {
    fn new(installation: &'a Installation, folder: &'a Path) -> Result<Self> {
        for name in ["docs", "crates"] {
            symlink(root().join(name), folder.join(name))?;
        }
        symlink(target_directory(), folder.join("target"))?;
        Ok(Shell {
            installation,
            folder,
            status: 0,
            background: Vec::new(),
        })
    }

    fn follow(&mut self, page: &Page) -> Result<()> {
        let mut parts = page.parts.iter().peekable();
        while let Some(part) = parts.next() {
            match part {
                Part::File(name, text) => self.file(name, text)?,
                Part::Command(command, prints) => {
                    let asks =
                        |part: &&Part| matches!(part, Part::Command(next, _) if next == "echo $?");
                    let may_fail = parts.peek().is_some_and(asks);
                    self.type_in(command, prints, may_fail)
                        .with_context(|| format!("$ {command}"))?;
                }
            }
        }
        Ok(())
    }

    fn file(&self, name: &str, text: &str) -> Result<()> {
        if name.starts_with("docs/") || name.starts_with("crates/") {
            let file = fs::read_to_string(root().join(name)).context(name.to_owned())?;
            ensure!(file == text, "the page's {name} is not the file");
            return Ok(());
        }
        fs::write(self.folder.join(name), text).context(name.to_owned())
    }

    fn type_in(&mut self, command: &str, prints: &[String], may_fail: bool) -> Result<()> {
        let in_background = command.strip_suffix(" &");
        let script = match in_background {
            // The shell becomes the program, so that it can be ended.
            Some(program) => format!("exec {program}"),
            // What `$?` says.
            None => format!("(exit {}); {command}", self.status),
        };
        let output = tempfile::NamedTempFile::new().context("making a file")?;
        let mut child = self.shell(&script, output.as_file())?;
        let printed = || fs::read_to_string(output.path()).context("what was printed");
        let differ = |printed: String| format!("printed\n{printed}and not\n{}", prints.join("\n"));
        if in_background.is_some() {
            let deadline = Instant::now() + PATIENCE;
            while !is_like(prints, &printed()?) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.background.push(child);
            let printed = printed()?;
            ensure!(is_like(prints, &printed), differ(printed));
            return Ok(());
        }
        let status = child.wait()?;
        self.status = status.code().unwrap_or(-1);
        let printed = printed()?;
        ensure!(is_like(prints, &printed), differ(printed));
        ensure!(may_fail || status.success(), "{status}:\n{printed}");
        Ok(())
    }

    fn shell(&self, script: &str, output: &fs::File) -> Result<Child> {
        let runtime = self.folder.join(RUNTIME);
        fs::create_dir_all(&runtime)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", self.installation.path("").display());
        let mut shell = self.installation.command(User::Own, "bash");
        shell
            .args(["-c", script])
            .current_dir(self.folder)
            .env("XDG_RUNTIME_DIR", runtime)
            .env("PATH", path)
            .stdout(Stdio::from(output.try_clone()?))
            .stderr(Stdio::from(output.try_clone()?));
        shell.spawn().context("starting a shell")
    }
}

impl Drop for Shell<'_> {
    fn drop(&mut self) {
        for child in &mut self.background {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

/// Whether `text` is what the lines `expected` say.
fn is_like(expected: &[String], text: &str) -> bool {
    let text: Vec<&str> = text.lines().collect();
    are_like(expected, &text)
}

fn are_like(expected: &[String], lines: &[&str]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == ANY => {
            (0..=lines.len()).any(|skipped| are_like(rest, &lines[skipped..]))
        }
        Some((first, rest)) => lines
            .split_first()
            .is_some_and(|(line, lines)| is_line_like(first, line) && are_like(rest, lines)),
    }
}

fn is_line_like(expected: &str, line: &str) -> bool {
    let mut parts = expected.split(ANY);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn like(expected: &str, text: &str) -> bool {
        let expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        is_like(&expected, text)
    }

    #[test]
    fn dots_stand_for_any_text_and_any_lines_and_nothing_else_does() {
        assert!(like("one\ntwo", "one\ntwo\n"));
        assert!(!like("one", "one\ntwo\n"));
        assert!(!like("one\ntwo", "one\n"));
        assert!(like("one\n...\nfour", "one\ntwo\nthree\nfour\n"));
        assert!(like("...", ""));
        assert!(!like("", "something\n"));
        assert!(like("took ... ms", "took 17 ms\n"));
        assert!(like("a ... b ... c", "a 1 b 2 b 3 c"));
        assert!(!like("took ... ms", "took 17 s\n"));
        assert!(!like("a...a", "a"));
    }

    #[test]
    fn a_page_is_its_files_and_sessions() -> Result<()> {
        let page = Page::read(
            "# Title\n\n`a.toml`:\n\n```toml\nx = 1\n```\n\n```console\n$ one \\\n> two\nsaid\n\n$ echo $?\n0\n```\n\n```sh\nnot run\n```\n",
        )?;
        let command = |text: &str, prints: &[&str]| {
            let prints = prints.iter().map(|line| (*line).to_owned()).collect();
            Part::Command(text.to_owned(), prints)
        };
        let expected = vec![
            Part::File("a.toml".to_owned(), "x = 1\n".to_owned()),
            command("one \\\ntwo", &["said", ""]),
            command("echo $?", &["0"]),
        ];
        assert_eq!(page.parts, expected);
        assert_eq!(page.commands(), 2);
        assert!(Page::read("```console\nsaid by nobody\n```\n").is_err());
        Ok(())
    }
}
