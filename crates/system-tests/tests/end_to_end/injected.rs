//! Failures that a test asks for, seen by programs.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use ioasid_system_tests::{
    installation::{Client, Installation, User},
    process::{shown, succeed},
    served::Served,
};
use xtask::workspace::root;

/// The device of `[[inject]]` sections.
const DEVICE: &str = "device = \"0000:6a:01.0\"\n";
/// Longer than any interrupt takes that does arrive, and not long for one that never does.
const PATIENT: &str = "600";
const IMPATIENT: &str = "1";

/// Runs the program that copies three times on a machine with this injection.
fn three_copies(
    installation: &Installation,
    injection: &str,
    patience: &str,
) -> Result<(bool, String)> {
    let machine = installation.path("injected.toml");
    fs::write(
        &machine,
        format!("[[device]]\nmodel = \"edu\"\n{injection}"),
    )?;
    let script = installation.path("three_copies.py");
    fs::copy(root().join("docs/how-to/three_copies.py"), &script)?;
    let mut command = installation.ioasid(installation.weakest_user());
    command.args(["run", "--machine"]).arg(machine);
    command.args(["--", "python3"]).arg(script).arg(patience);
    let output = command.output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok((output.status.success(), text))
}

pub(super) fn transfers(installation: &Installation) -> Result<String> {
    let fine = "1: copied\n2: copied\n3: copied\n";
    let cases = [
        ("", "", PATIENT, fine),
        (
            DEVICE,
            "at = \"descriptor\"\naction = \"fault\"\nnth = 2\n",
            PATIENT,
            "1: copied\n2: an interrupt, and nothing copied\n3: copied\n",
        ),
        (
            DEVICE,
            "at = \"descriptor\"\naction = \"lose\"\nnth = 2\n",
            IMPATIENT,
            "1: copied\n2: no interrupt, and nothing copied\n   still busy: reset\n3: copied\n",
        ),
        (
            DEVICE,
            "at = \"interrupt\"\naction = \"lose\"\nnth = 3\n",
            IMPATIENT,
            "1: copied\n2: copied\n3: copied, and no interrupt\n",
        ),
        (
            DEVICE,
            "at = \"descriptor\"\naction = \"delay\"\nms = 20\n",
            PATIENT,
            fine,
        ),
    ];
    for (device, keys, patience, expected) in cases {
        let injection = match keys {
            "" => String::new(),
            keys => format!("[[inject]]\n{device}{keys}"),
        };
        let (success, text) = three_copies(installation, &injection, patience)?;
        ensure!(success && text == expected, "{injection}gave\n{text}");
    }
    let (success, text) = three_copies(
        installation,
        "[[inject]]\nat = \"map\"\naction = \"fault\"\n",
        PATIENT,
    )?;
    ensure!(
        !success && text.contains("[Errno 12] Cannot allocate memory"),
        "a map that is refused gave\n{text}"
    );
    Ok(format!("{} machines", cases.len() + 1))
}

pub(super) fn seeds(installation: &Installation) -> Result<String> {
    let with = |seed: u32| {
        let injection = format!(
            "[[inject]]\n{DEVICE}at = \"descriptor\"\naction = \"fault\"\nchance = 50\nseed = {seed}\n"
        );
        three_copies(installation, &injection, PATIENT)
    };
    let mut outcomes = Vec::new();
    for seed in 0..4 {
        let (first, second) = (with(seed)?, with(seed)?);
        ensure!(first == second, "seed {seed}: {first:?} and {second:?}");
        outcomes.push(first.1);
    }
    let first = outcomes.first().context("no outcome")?;
    ensure!(
        outcomes.iter().any(|other| other != first),
        "four seeds have one outcome: {first}"
    );
    Ok("four seeds, each twice".to_owned())
}

pub(super) fn accelerators(installation: &Installation) -> Result<String> {
    for (action, timeout, sentence) in [
        ("fault", "600", "ended with status 0x03"),
        ("lose", "1", "timed out"),
    ] {
        let machine = installation.path("injected-dsa.toml");
        let inject =
            format!("[[inject]]\n{DEVICE}at = \"descriptor\"\naction = \"{action}\"\nnth = 5\n");
        fs::write(&machine, format!("[[device]]\nmodel = \"dsa\"\n{inject}"))?;
        let mut command = installation.ioasid(installation.weakest_user());
        command.args(["run", "--machine"]).arg(&machine).arg("--");
        command.arg(installation.client(Client::Dynamic));
        let output = command
            .args(["--mib", "4", "--timeout", timeout])
            .output()?;
        let text = shown(&output);
        ensure!(
            !output.status.success() && text.contains(sentence),
            "{action}: {text}"
        );
    }
    Ok("a descriptor of a DSA refused, one lost: its client says so".to_owned())
}

pub(super) fn served(installation: &Installation) -> Result<String> {
    let served = Served::start(installation, User::Own, None, &[])?;
    let socket = served.socket().display().to_string();
    let inject = |words: &[&str]| {
        let mut command = installation.ioasid(User::Own);
        command.arg("inject").args(words);
        command.args(["--machine", &socket]);
        command
    };
    let script = installation.path("three_copies.py");
    fs::copy(root().join("docs/how-to/three_copies.py"), &script)?;
    let copies = |patience: &str| {
        let mut command = installation.ioasid(User::Own);
        command.args(["run", "--join", &socket, "--", "python3"]);
        command.arg(&script).arg(patience);
        succeed(&mut command)
    };
    let edu = "0000:69:01.0";
    succeed(&mut inject(&["fault", edu, "--nth", "3"]))?;
    let text = copies(PATIENT)?;
    ensure!(
        text.ends_with("3: an interrupt, and nothing copied\n"),
        "{text}"
    );
    succeed(&mut inject(&["irq", edu]))?;
    let text = copies(IMPATIENT)?;
    ensure!(text.starts_with("1: copied, and no interrupt\n"), "{text}");
    succeed(&mut inject(&["reset", edu]))?;
    ensure!(copies(PATIENT)?.ends_with("3: copied\n"), "after a reset");
    for (words, sentence) in [
        (&["fault", "0000:01:00.0"][..], "there is no device"),
        (&["reset", "0000:6a:01.0"], "the host's own driver has it"),
        (&["irq", edu, "--nth", "0"], "counts from 1"),
    ] {
        let output = inject(words).output()?;
        let text = shown(&output);
        ensure!(
            output.status.code() == Some(1) && text.contains(sentence),
            "{words:?}: {text}"
        );
    }
    succeed(&mut inject(&["remove", edu]))?;
    let mut list = installation.ioasid(User::Own);
    let list = list.args(["run", "--join", &socket, "--", "ls", "/sys/bus/pci/devices"]);
    let left = succeed(list)?;
    ensure!(!left.contains(edu), "a device that was removed is listed");
    Ok("a fault, a lost interrupt, a reset, a removal; three refusals".to_owned())
}
