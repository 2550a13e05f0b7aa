//! A client with first-stage tables of its own: what it reaches through them, the reasons for which it is
//! refused, and the domains of the machine meanwhile.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::PathBuf,
    process::Stdio,
};

use anyhow::{Context as _, Result, bail, ensure};
use ioasid_system_tests::{
    installation::{Installation, User},
    process::succeed,
    served::{Served, list},
};
use serde_json::Value as Json;

/// What it needs: two whole devices and a mediated one.
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
model = "dsa"
address = "0000:6c:01.0"
driver = "vfio"
"#;
const PARENT: &str = "0000:6a:01.0";
const WHOLE: &str = "0000:6b:01.0";

/// Where a line tells the reason of a fault of a nested domain.
const REASON: &str = "(VT-d fault reason ";

/// A file with the machine.
fn machine(installation: &Installation) -> Result<PathBuf> {
    let path = installation.path("nested.toml");
    fs::write(&path, MACHINE)?;
    Ok(path)
}

/// What one DMA finds, and which faults it meets; each of them is explained, with its number.
pub(super) fn reasons(installation: &Installation) -> Result<String> {
    let machine = machine(installation)?;
    let mut faults = 0;
    for user in installation.users() {
        let folder = installation.folder_of(user, &format!("nested-{user:?}"))?;
        for memory in ["shared", "private"] {
            let file = folder.join(memory);
            let mut command = installation.ioasid(user);
            command.arg("run");
            command.arg(format!("--explain={}", file.display()));
            command.arg("--machine").arg(&machine).arg("--");
            command.arg(installation.path("nested"));
            command.args([memory, "levels", "rights", "privilege", "tables"]);
            command.args(["marks", "pasids", "page-requests", "dirty", "lifetimes"]);
            let printed =
                succeed(&mut command).with_context(|| format!("{memory} memory of {user:?}"))?;
            let expected: Vec<&str> = printed
                .lines()
                .filter_map(|line| line.strip_prefix("fault "))
                .collect();
            let explained = fs::read_to_string(&file)?;
            let reason = |line: &'_ str| -> Option<String> {
                let (_, rest) = line.split_once(REASON)?;
                Some(rest.split_once(')')?.0.to_owned())
            };
            let found: Vec<String> = explained.lines().filter_map(reason).collect();
            ensure!(
                found == expected,
                "the faults of {memory} memory were {found:?}, not {expected:?}"
            );
            faults += found.len();
        }
    }
    ensure!(faults > 0, "there was no fault");
    Ok(format!("{faults} faults, each for its reason"))
}

/// What changes while a device works: no byte through what was taken away.
pub(super) fn changes(installation: &Installation) -> Result<String> {
    let machine = machine(installation)?;
    let rounds = installation.times(50, 2000);
    for memory in ["shared", "private"] {
        let mut command = installation.ioasid(installation.weakest_user());
        command.env("NESTED_ROUNDS", rounds.to_string());
        command.args(["run", "--machine"]).arg(&machine).arg("--");
        command.arg(installation.path("nested"));
        command.args([memory, "invalidation", "unmap", "replace"]);
        succeed(&mut command).with_context(|| format!("{memory} memory"))?;
    }
    Ok(format!("{rounds} rounds of each, twice"))
}

/// A page table by hand for a whole device and the IOAS for a mediated one are one domain, in every order;
/// the tables of the guest are domains on it.
pub(super) fn one_domain(installation: &Installation) -> Result<String> {
    let machine = machine(installation)?;
    let mut looks = 0;
    for memory in ["shared", "private"] {
        let served = Served::start(installation, User::Own, Some(&machine), &[])?;
        let mut command = installation.ioasid(User::Own);
        command
            .args(["run", "--join"])
            .arg(served.socket())
            .arg("--");
        command.arg(installation.path("nested"));
        command.args([memory, "one-domain"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let mut answers = child.stdin.take().context("its input")?;
        let said = BufReader::new(child.stdout.take().context("its output")?);
        for line in said.lines() {
            let line = line?;
            if let Some(name) = line.strip_prefix("look ") {
                let tree = served.inspect(installation)?;
                check(name, &tree).with_context(|| format!("at `{name}`, {memory} memory"))?;
                looks += 1;
                answers.write_all(b"\n")?;
            }
        }
        let mut stderr = String::new();
        let pipe = child.stderr.take().context("its errors")?;
        BufReader::new(pipe).read_to_string(&mut stderr)?;
        ensure!(child.wait()?.success(), "{memory} memory: {stderr}");
        served.wait_until_released(installation)?;
    }
    Ok(format!("{looks} looks at the machine"))
}

/// Domains of a kind, each with its routes.
fn domains<'t>(tree: &'t Json, kind: &str) -> Vec<(&'t Json, Vec<String>)> {
    let shown = |route: &Json| {
        let device = route["device"].as_str().unwrap_or_default();
        match route["pasid"].as_u64() {
            None => device.to_owned(),
            // The default PASID of the mediated device is whatever was free.
            Some(_) if device == PARENT => format!("{device} PASID"),
            Some(pasid) => format!("{device} PASID {pasid}"),
        }
    };
    list(&tree["iommu"]["domains"])
        .filter(|domain| domain["kind"] == kind)
        .map(|domain| {
            let mut routes: Vec<String> = list(&domain["routes"]).map(shown).collect();
            routes.sort_unstable();
            (domain, routes)
        })
        .collect()
}

/// The tree is as it must be where the client says `look`.
fn check(name: &str, tree: &Json) -> Result<()> {
    let mdev = format!("{PARENT} PASID");
    let (whole, by_pasid) = (WHOLE.to_owned(), format!("{WHOLE} PASID 5"));
    let unmanaged = domains(tree, "unmanaged");
    let nested = domains(tree, "nested");
    let (expected, expected_nested) = match name {
        "one-domain" => (vec![mdev, whole], vec![]),
        "nested" => (vec![mdev], vec![whole, by_pasid]),
        "mediated-alone" => (vec![mdev], vec![]),
        "whole-alone" => (vec![], vec![whole, by_pasid]),
        "nothing" => {
            ensure!(
                unmanaged.is_empty() && nested.is_empty(),
                "domains are left"
            );
            return Ok(());
        }
        other => bail!("an unknown look `{other}`"),
    };
    let [(parent, routes)] = &unmanaged[..] else {
        bail!("{} domains hold guest-physical addresses", unmanaged.len());
    };
    ensure!(
        routes == &expected,
        "its routes are {routes:?}, not {expected:?}"
    );
    match (&nested[..], expected_nested.is_empty()) {
        ([], true) => {}
        ([(domain, routes)], false) => {
            ensure!(
                routes == &expected_nested && domain["parent"] == parent["id"],
                "the nested domain has {routes:?}, and is on {}",
                domain["parent"]
            );
        }
        (all, _) => bail!("{} nested domains", all.len()),
    }
    Ok(())
}
