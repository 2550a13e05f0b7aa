//! Claims about programs that map registers, made with a program in C (`mapped.c`): linked
//! dynamically, so that it can load the library, and statically, so that it is traced.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use libtest_mimic::Failed;

use crate::claims::{Claim, Setting, check, part, succeeded};

pub(crate) const CLAIMS: &[(&str, Claim)] = &[
    ("an_access_reaches_a_register_as_it_was_made", |u| {
        everywhere(u, "accesses")
    }),
    ("what_cannot_be_mapped_is_refused", |u| {
        everywhere(u, "refused")
    }),
    ("a_mapping_keeps_the_device_open", |u| {
        everywhere(u, "outlives")
    }),
    ("a_programs_own_signals_are_its_own", |u| {
        everywhere(u, "own-handlers")
    }),
    ("threads_and_signals_lose_no_access", |u| {
        everywhere(u, "concurrent")
    }),
    ("no_submission_is_lost", |u| everywhere(u, "submissions")),
    ("children_have_what_was_mapped", |u| {
        everywhere(u, "children")
    }),
    (
        "accesses_that_follow_one_another_closely_are_all_made",
        |u| everywhere(u, "rapidly"),
    ),
    ("a_shared_page_full_of_lies_harms_its_program_alone", |u| {
        everywhere(u, "hostile")
    }),
    ("without_traps_nothing_can_be_mapped", |u| {
        succeeded(&run(u, Binary::Dynamic, "off", &["off"]))
    }),
    ("a_program_under_strace_maps_registers", under_strace),
    ("a_program_under_gdb_maps_registers", under_gdb),
    (
        "a_traced_program_that_is_static_is_told_of",
        static_under_strace,
    ),
];

#[derive(Clone, Copy, Debug)]
enum Binary {
    Dynamic,
    Static,
}

/// The program, where everybody may execute it; `None` if it cannot be linked so.
fn binary(binary: Binary) -> Option<&'static Path> {
    directory().map(|(dynamic, fixed)| match binary {
        Binary::Dynamic => Some(dynamic.as_path()),
        Binary::Static => fixed.as_deref(),
    })?
}

type Built = (PathBuf, Option<PathBuf>);

static BUILT: OnceLock<Option<Built>> = OnceLock::new();

fn directory() -> Option<&'static Built> {
    BUILT
        .get_or_init(|| {
            let directory = tempfile::Builder::new()
                .prefix("ioasid-mapped-")
                .permissions(fs::Permissions::from_mode(0o755))
                .tempdir()
                .ok()?
                .keep();
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interception/mapped.c");
            let build = |name: &str, how: &[&str]| {
                let path = directory.join(name);
                let mut cc = Command::new("cc");
                cc.args(["-O2", "-pthread", "-o"]).arg(&path).arg(&source);
                let status = cc.args(how).status().ok()?;
                status.success().then_some(path)
            };
            Some((build("mapped", &[])?, build("mapped-static", &["-static"])))
        })
        .as_ref()
}

pub(crate) fn clean_up() {
    if let Some(Some((program, _))) = BUILT.get()
        && let Some(directory) = program.parent()
    {
        // What stays behind in the temporary directory harms nobody.
        let _ = fs::remove_dir_all(directory);
    }
}

fn run(setting: Setting, which: Binary, mmio: &str, words: &[&str]) -> Output {
    let program = binary(which).expect("a C compiler");
    part(setting, "part:run")
        .arg("--")
        .arg(program)
        .args(words)
        .env("MMIO", mmio)
        .env("RUST_LOG", "ioasid_supervisor=debug")
        .output()
        .unwrap()
}

const BY_LIBRARY: &str = "caught by the library in the program";
const BY_PTRACE: &str = "caught by ptrace";

/// By the library, by ptrace because there is no library, and by ptrace because that was asked for.
fn everywhere(setting: Setting, name: &str) -> Result<(), Failed> {
    for (which, mmio, how) in [
        (Binary::Dynamic, "auto", BY_LIBRARY),
        (Binary::Static, "auto", BY_PTRACE),
        (Binary::Dynamic, "ptrace", BY_PTRACE),
    ] {
        if binary(which).is_none() {
            eprintln!("no static C library: not tried");
            continue;
        }
        let output = run(setting, which, mmio, &[name]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        check(
            output.status.success(),
            &format!("{which:?} {mmio}: {}: {stderr}", output.status),
        )?;
        let other = if how == BY_LIBRARY {
            BY_PTRACE
        } else {
            BY_LIBRARY
        };
        check(
            stderr.contains(how) && !stderr.contains(other),
            &format!("{which:?} {mmio}: {stderr}"),
        )?;
    }
    Ok(())
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

fn under(setting: Setting, which: Binary, words: &[&str]) -> Output {
    part(setting, "part:run")
        .arg("--")
        .args(words)
        .arg(binary(which).expect("a C compiler"))
        .env("RUST_LOG", "ioasid_supervisor=debug")
        .arg("accesses")
        .output()
        .unwrap()
}

fn under_strace(setting: Setting) -> Result<(), Failed> {
    if !is_installed("strace") {
        return Ok(());
    }
    let output = under(setting, Binary::Dynamic, &["strace", "-f"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    check(output.status.success(), &stderr)?;
    check(stderr.contains(BY_LIBRARY), &stderr)
}

fn under_gdb(setting: Setting) -> Result<(), Failed> {
    if !is_installed("gdb") {
        return Ok(());
    }
    let words = [
        "gdb",
        "-nx",
        "-batch",
        "-ex",
        "handle SIGBUS SIGILL SIGSEGV nostop noprint pass",
        "-ex",
        "run",
        "--args",
    ];
    let output = under(setting, Binary::Dynamic, &words);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    check(
        stdout.contains("exited normally") && stderr.contains(BY_LIBRARY),
        &format!("{stdout}{stderr}"),
    )
}

/// Two cannot trace one program: the registers do not answer, and somebody says why.
fn static_under_strace(setting: Setting) -> Result<(), Failed> {
    if !is_installed("strace") || binary(Binary::Static).is_none() {
        return Ok(());
    }
    let output = under(setting, Binary::Static, &["strace", "-f"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    check(
        stderr.contains("a debugger has it already") && stderr.contains("SIGBUS"),
        &stderr,
    )?;
    check(!output.status.success(), &stderr)
}
