//! `run --explain`: programs with mistakes, and the line that each of them gets.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    path::PathBuf,
    process::{Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use ioasid_system_tests::{
    installation::{Installation, User},
    process::{shown, succeed},
    served::Served,
};

use crate::mistakes::MISTAKES;

/// What the programs with mistakes need.
const MACHINE: &str = r#"
[[device]]
model = "dsa"
address = "0000:6a:01.0"
driver = "host"

  [[device.queue]]
  owner = "host"

  [[device.queue]]
  owner = "mdev"
  uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01"

[[device]]
model = "dsa"
address = "0000:6b:01.0"
driver = "vfio"

[[device]]
model = "ioat"
address = "0000:6c:01.0"
driver = "vfio"
"#;

/// A file with the machine.
fn machine(installation: &Installation) -> Result<PathBuf> {
    let path = installation.path("mistakes.toml");
    fs::write(&path, MACHINE)?;
    Ok(path)
}

/// `text` begins with each of the mistakes' explanations, in their order, and no two are alike.
fn check_lines(printed: &str, text: &str) -> Result<()> {
    let mut lines = text.lines();
    let mut seen = BTreeSet::new();
    let mut printed = printed.lines();
    for (name, errno, number, said) in MISTAKES {
        let end = match number {
            0 => "fault".to_owned(),
            number => number.to_string(),
        };
        let wanted = format!("{name}: {end}");
        let found = printed.next().unwrap_or_default();
        ensure!(found == wanted, "the program met `{found}`, not `{wanted}`");
        let is_it = |line: &&str| {
            line.starts_with("ioasid: ")
                && line.contains(said)
                && (*number == 0 || line.contains(&format!(" -> {errno}: ")))
        };
        let line = lines.find(is_it);
        let line = line.with_context(|| format!("no line for {name} ({said}) in\n{text}"))?;
        ensure!(seen.insert(line), "{name} has the line of another: {line}");
    }
    ensure!(printed.next().is_none(), "the program met more");
    Ok(())
}

/// The seven mistakes of IOAS_MAP and more than thirty others, through a file and through standard error.
pub(super) fn mistakes(installation: &Installation) -> Result<String> {
    let machine = machine(installation)?;
    let program = installation.path("mistakes");
    let mut runs = 0;
    for user in installation.users() {
        let folder = installation.folder_of(user, &format!("explained-{user:?}"))?;
        let file = folder.join("lines");
        let option = format!("--explain={}", file.display());
        let mut command = installation.ioasid(user);
        command
            .args(["run", &option, "--machine"])
            .arg(&machine)
            .arg("--");
        let printed = succeed(command.arg(&program))?;
        check_lines(&printed, &fs::read_to_string(&file)?)?;
        let mut command = installation.ioasid(user);
        command
            .args(["run", "--explain", "--machine"])
            .arg(&machine)
            .arg("--");
        let output = command.arg(&program).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_lines(&String::from_utf8_lossy(&output.stdout), &stderr)?;
        runs += 2;
    }
    Ok(format!("{} mistakes, {runs} runs", MISTAKES.len()))
}

/// The same of a machine that is served.
pub(super) fn joined(installation: &Installation) -> Result<String> {
    let machine = machine(installation)?;
    let served = Served::start(installation, User::Own, Some(&machine), &[])?;
    let mut command = installation.ioasid(User::Own);
    command
        .args(["run", "--explain", "--join"])
        .arg(served.socket())
        .arg("--");
    let output = command.arg(installation.path("mistakes")).output()?;
    ensure!(output.status.success(), "{}", shown(&output));
    let stderr = String::from_utf8_lossy(&output.stderr);
    check_lines(&String::from_utf8_lossy(&output.stdout), &stderr)?;
    let planted = |mistake: &str| {
        let mut command = installation.ioasid(User::Own);
        command
            .args(["run", "--join"])
            .arg(served.socket())
            .arg("--");
        command
            .arg(installation.path("planted"))
            .arg(mistake)
            .output()
    };
    let output = planted("msi")?;
    ensure!(
        last_line(&output).ends_with("--explain says why"),
        "{}",
        shown(&output)
    );
    let output = planted("dma")?;
    let last = last_line(&output);
    ensure!(last.contains("1 DMA fault occurred"), "{last}");
    Ok("explained, and counted".to_owned())
}

fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().last().unwrap_or_default().to_owned()
}

/// What the published crates make of a mistake, and the line that says what it was.
const PLANTED: &[(&str, &str)] = &[
    ("msi", "IOAS_MAP ioas=1 iova=0xfee00000 len=0x10000 "),
    (
        "msi",
        "EINVAL: overlaps the MSI window 0xfee00000-0xfeefffff of 0000:6a:01.0; IOAS_IOVA_RANGES",
    ),
    (
        "unaligned",
        "EINVAL: the IOVA 0x100008 is no multiple of 0x1000",
    ),
    (
        "twice",
        "EEXIST: the range 0x101000..=0x110fff overlaps the mapping 0x100000..=0x10ffff",
    ),
    (
        "cut",
        "ENOENT: the range 0x100000..=0x100fff cuts the mapping 0x100000..=0x10ffff",
    ),
    ("attach", "ENOENT: object 99 does not exist"),
    ("destroy", "EBUSY: object 1 is in use"),
    ("hwpt", "EOPNOTSUPP: the flags 0x40 are unknown"),
    (
        "irq",
        "EINVAL: the descriptor for vector 0 is no eventfd: not the kind of file",
    ),
    (
        "region",
        "EFAULT: 4 bytes at 0xffe pass the end of configuration space at 0x1000",
    ),
    (
        "dma",
        "DMA fault: 0000:6a:01.0: write at 0x900000: nothing is mapped at this address",
    ),
];

/// A program on published crates with one planted mistake of each kind.
pub(super) fn published(installation: &Installation) -> Result<String> {
    for (mistake, said) in PLANTED {
        let run = |options: &[&str]| -> Result<Output> {
            let mut command = installation.ioasid(User::Own);
            command.args(options);
            command.args(["--device", "dsa,driver=vfio", "--"]);
            Ok(command
                .arg(installation.path("planted"))
                .arg(mistake)
                .output()?)
        };
        let explained = run(&["run", "--explain"])?;
        ensure!(
            explained.status.code() == Some(1),
            "{mistake}: {}",
            shown(&explained)
        );
        let text = String::from_utf8_lossy(&explained.stderr);
        let lines = text
            .lines()
            .filter(|line| line.starts_with("ioasid: ") && line.contains(said));
        ensure!(
            lines.count() == 1,
            "{mistake}: not one line with `{said}` in\n{text}"
        );
        let counted = run(&["run"])?;
        let last = last_line(&counted);
        ensure!(
            last.starts_with("ioasid: ") && last.ends_with(": --explain says why"),
            "{mistake} ends with `{last}`"
        );
        let quiet = run(&["-q", "run"])?;
        let text = String::from_utf8_lossy(&quiet.stderr);
        ensure!(!text.contains("ioasid: "), "{mistake} with -q: {text}");
    }
    Ok(format!("{} lines", PLANTED.len()))
}

/// A terminal or pipe that takes no lines holds nobody up; what was lost is counted.
/// The group of the default machine's parent, which the host's own driver has.
const OPEN_THE_PARENT: &str = "\
import os
group = os.path.basename(os.readlink('/sys/bus/pci/devices/0000:6a:01.0/iommu_group'))
try:
    os.open('/dev/vfio/' + group, os.O_RDWR)
except FileNotFoundError:
    print('ENOENT')";

pub(super) fn parent(installation: &Installation) -> Result<String> {
    for user in installation.users() {
        let mut command = installation.ioasid(user);
        command.args(["run", "--explain", "--", "python3", "-c", OPEN_THE_PARENT]);
        let output = command.output()?;
        ensure!(
            output.stdout == b"ENOENT\n",
            "the parent's group: {}",
            shown(&output)
        );
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            text.contains("-> ENOENT: no device that a program may open is /dev/vfio/")
                && text.contains("/dev/vfio/devices/vfio0 (0000:69:01.0)")
                && !text.contains("(0000:6a:01.0)"),
            "said of it: {text}"
        );
    }
    Ok("ENOENT, and which are free".to_owned())
}

pub(super) fn unread(installation: &Installation) -> Result<String> {
    let machine = machine(installation)?;
    let served = Served::start(installation, User::Own, Some(&machine), &[])?;
    let mut lost = 0;
    for (option, place) in [("--join", served.socket()), ("--machine", &machine)] {
        let mut command = installation.ioasid(User::Own);
        command
            .args(["run", "--explain", option])
            .arg(place)
            .arg("--");
        command.arg(installation.path("mistakes")).arg("flood");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stderr = child.stderr.take().context("no pipe")?;
        // Nothing is read until the program has ended.
        let mut printed = String::new();
        child
            .stdout
            .take()
            .context("no pipe")?
            .read_to_string(&mut printed)?;
        ensure!(printed == "done\n", "the program printed {printed:?}");
        let mut text = String::new();
        stderr.read_to_string(&mut text)?;
        ensure!(child.wait()?.success(), "it failed");
        let line = text
            .lines()
            .filter(|line| line.starts_with("ioasid: DESTROY"));
        let lines = line.count();
        ensure!(lines > 100 && lines < 20_000, "{lines} lines");
        lost += 20_000 - lines;
    }
    Ok(format!("{lost} lines were not read"))
}
