//! Traces of ordinary programs: what is in them, what is told of them, and running them again.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use ioasid_system_tests::{
    installation::{Client, Installation, User},
    process::{shown, succeed},
};
use serde_json::Value;
use tempfile::TempDir;
use xtask::workspace::root;

/// A folder that every user can write to.
fn folder() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    Ok(folder)
}

/// A trace of the client, which copies through two devices and has faults on purpose.
fn traced(installation: &Installation, user: User, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(format!("{user:?}.trace"));
    let mut command = installation.ioasid(user);
    command.args(["run", "--vm", "vm1", "--trace"]).arg(&path);
    succeed(command.arg("--").arg(installation.client(Client::Dynamic)))?;
    Ok(path)
}

fn lines(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path)?;
    let lines = text.lines().map(serde_json::from_str);
    Ok(lines.collect::<Result<_, _>>()?)
}

fn count(lines: &[Value], is_it: impl Fn(&Value) -> bool) -> usize {
    lines.iter().filter(|line| is_it(line)).count()
}

pub(super) fn told(installation: &Installation) -> Result<String> {
    let folder = folder()?;
    let schema = fs::read_to_string(root().join("docs/trace.schema.json"))?;
    let schema = jsonschema::validator_for(&serde_json::from_str(&schema)?)?;
    let mut checked = 0;
    for user in installation.users() {
        let path = traced(installation, user, folder.path())?;
        let lines = lines(&path)?;
        for (number, line) in (1..).zip(&lines) {
            if let Err(error) = schema.validate(line) {
                bail!("line {number}: {error}: {line}");
            }
        }
        let kinds = [
            "header",
            "start",
            "call",
            "dma",
            "fault",
            "interrupt",
            "route",
            "map",
            "unmap",
        ];
        for kind in kinds
            .into_iter()
            .chain(["register", "submit", "work", "exit"])
        {
            let found = count(&lines, |line| line["kind"] == kind);
            ensure!(found > 0, "{user:?}: no line of kind {kind}");
        }
        verbs(installation, user, &path, &lines)?;
        checked += lines.len();
    }
    Ok(format!("{checked} lines"))
}

/// Each verb tells what the lines say.
fn verbs(installation: &Installation, user: User, path: &Path, lines: &[Value]) -> Result<()> {
    let trace = |verb: &str, more: &[&str]| -> Result<String> {
        succeed(
            installation
                .ioasid(user)
                .args(["trace", verb])
                .arg(path)
                .args(more),
        )
    };
    let is_call = |line: &Value| line["kind"] == "call";
    let failed = count(lines, |line| line["errno"].is_string());
    let text = trace("show", &[])?;
    ensure!(
        text.lines().count() == lines.len() - 1,
        "show has a line for each"
    );
    let text = trace("show", &["--errno", "any"])?;
    ensure!(
        text.lines().count() == failed && text.lines().all(|line| line.contains(") = -1 E")),
        "show --errno any: {text}"
    );
    let attach = trace("show", &["--kind", "call", "--object", "device"])?;
    ensure!(
        attach.contains(" ATTACH_IOMMUFD_PT("),
        "no attach in {attach}"
    );
    let none = trace("show", &["--device", "0000:00:00.0"])?;
    ensure!(none.is_empty(), "{none}");

    let summary = trace("summary", &[])?;
    let maps = count(lines, |line| is_call(line) && line["name"] == "IOAS_MAP");
    let row = summary
        .lines()
        .find(|line| line.split_whitespace().nth(5) == Some("IOAS_MAP"));
    let calls = row.and_then(|row| row.split_whitespace().nth(3));
    ensure!(
        maps > 0 && calls == Some(&*maps.to_string()),
        "{maps} calls of IOAS_MAP: {summary}"
    );

    let device = "0000:6b:01.0";
    let stats = trace("stats", &["--device", device])?;
    let done = |line: &Value| line["end"] == "done" && line["device"] == device;
    let done = count(lines, done);
    ensure!(
        done > 0 && stats.contains(&format!(", {done} done, ")),
        "{done} descriptors done: {stats}"
    );

    let out = path.with_extension("json");
    let out = out.to_str().context("a path is text")?;
    trace("export", &["--chrome", out])?;
    let exported: Value = serde_json::from_str(&fs::read_to_string(out)?)?;
    let events = exported["traceEvents"].as_array().context("no events")?;
    for phase in ["M", "X", "i", "s", "f"] {
        let found = count(events, |event| event["ph"] == phase);
        ensure!(found > 0, "no event of phase {phase}");
    }
    let arrows = |phase: &str| count(events, |event| event["ph"] == phase);
    ensure!(arrows("s") == arrows("f"), "an arrow without an end");
    Ok(())
}

pub(super) fn replayed(installation: &Installation) -> Result<String> {
    let folder = folder()?;
    let mut calls = 0;
    for user in installation.users() {
        let client = traced(installation, user, folder.path())?;
        let demo = folder.path().join(format!("{user:?}.demo"));
        succeed(
            installation
                .ioasid(user)
                .args(["demo", "--trace"])
                .arg(&demo),
        )?;
        for path in [&client, &demo] {
            let said = succeed(installation.ioasid(user).arg("replay").arg(path))?;
            let words: Vec<_> = said.split_whitespace().collect();
            let ["no", "difference", "in", count, "calls", ..] = words[..] else {
                bail!("{said}");
            };
            calls += count.parse::<usize>()?;
        }
    }
    Ok(format!("{calls} calls"))
}

pub(super) fn changed(installation: &Installation) -> Result<String> {
    let folder = folder()?;
    let trace = traced(installation, User::Own, folder.path())?;
    let mut told = 0;
    // The call that is changed, how, and what the difference says then.
    type Change = fn(&mut Value);
    let changes: [(&str, Change, &str, &str); 3] = [
        ("IOAS_ALLOC", fail, "EXDEV", "0"),
        ("ATTACH_IOMMUFD_PT", fail, "EXDEV", "0"),
        ("IOAS_ALLOC", write_differently, "", ""),
    ];
    for (call, change, expected, got) in changes {
        let mut lines = lines(&trace)?;
        let line = lines.iter_mut().find(|line| line["name"] == call);
        change(line.with_context(|| format!("the trace has no {call}"))?);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let changed = folder.path().join("changed.trace");
        fs::write(&changed, text)?;
        let output = installation
            .ioasid(User::Own)
            .arg("replay")
            .arg(&changed)
            .output()?;
        ensure!(
            output.status.code() == Some(1),
            "{call}: {}",
            shown(&output)
        );
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            said.contains(&format!(" differs: {call}\n"))
                && said.contains(&format!("  expected: {expected}"))
                && said.contains(&format!("  got:      {got}")),
            "{call}: {said}"
        );
        told += 1;
    }
    Ok(format!("{told} changes found"))
}

/// The call failed with an errno that none has.
fn fail(call: &mut Value) {
    call["result"] = Value::Null;
    call["errno"] = "EXDEV".into();
}

/// The call wrote another last byte into its program's memory.
fn write_differently(call: &mut Value) {
    let steps = call["exchange"].as_array_mut().into_iter().flatten();
    for step in steps.filter(|step| step["did"] == "wrote") {
        let bytes = step["bytes"].as_str().unwrap_or_default();
        let kept = bytes.get(..bytes.len().saturating_sub(2));
        step["bytes"] = format!("{}7f", kept.unwrap_or_default()).into();
    }
}

pub(super) fn broken(installation: &Installation) -> Result<String> {
    let folder = folder()?;
    let trace = traced(installation, User::Own, folder.path())?;
    let text = fs::read_to_string(&trace)?;
    let cut = text.get(..text.len() - 10).context("a trace is text")?;
    let last = text.lines().count();
    let newer = text.replacen(r#""schema":1"#, r#""schema":99"#, 1);
    let broken = [
        (
            cut,
            format!("line {last}: the trace breaks off in the middle of this line"),
        ),
        (
            &newer,
            "line 1: the trace has schema 99, and this ioasid reads schema 1".to_owned(),
        ),
        ("no trace\n", "line 1: this is no trace".to_owned()),
        ("", "line 1: the file is empty, and no trace".to_owned()),
    ];
    let mut checked = 0;
    for (text, expected) in &broken {
        let path = folder.path().join("broken.trace");
        fs::write(&path, text)?;
        for words in [
            &["trace", "show"][..],
            &["trace", "summary"],
            &["trace", "stats"],
            &["replay"],
        ] {
            let output = installation
                .ioasid(User::Own)
                .args(words)
                .arg(&path)
                .output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.code() == Some(1) && said.contains(expected),
                "{words:?} of {expected}: {}",
                shown(&output)
            );
            checked += 1;
        }
    }
    let mut full = installation.ioasid(User::Own);
    let output = full
        .args(["run", "--trace", "/dev/full", "--", "true"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(125) && said.contains("No space left on device"),
        "a full disk: {}",
        shown(&output)
    );
    Ok(format!("{checked} errors, each with its line"))
}

pub(super) fn shown_live(installation: &Installation) -> Result<String> {
    let mut command = installation.ioasid(User::Own);
    command.args(["-vv", "run", "--vm", "vm1", "--"]);
    let output = command.arg(installation.client(Client::Dynamic)).output()?;
    ensure!(output.status.success(), "{}", shown(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    for call in [
        " IOAS_ALLOC(",
        " BIND_IOMMUFD(",
        " ATTACH_IOMMUFD_PT(",
        " SET_IRQS(",
    ] {
        ensure!(said.contains(call), "-vv shows no{call}...)");
    }
    Ok(format!("{} lines", said.lines().count()))
}
