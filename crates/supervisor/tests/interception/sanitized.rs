//! Claims about programs that bring a runtime or a library of their own: sanitizers, and
//! `LD_PRELOAD`.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use libtest_mimic::Failed;

use crate::claims::{Claim, Setting, check, part};

pub(crate) const CLAIMS: &[(&str, Claim)] = &[
    ("a_sanitized_program_runs_and_is_checked", sanitizers),
    ("a_sanitized_program_has_its_own_options", options),
    ("a_library_of_the_programs_own_stays_around_ours", preloads),
];

/// A way to build the program: compiler, words, and whether its runtime looks for leaks.
const BUILDS: &[(&str, &[&str], bool)] = &[
    ("cc", &[], false),
    ("cc", &["-fsanitize=address"], true),
    ("cc", &["-fsanitize=undefined"], false),
    ("cc", &["-fsanitize=leak"], true),
    ("cc", &["-fsanitize=thread"], false),
    ("cc", &["-fsanitize=address", "-static-libasan"], true),
    ("clang", &["-fsanitize=address"], true),
    ("clang", &["-fsanitize=undefined"], false),
    ("clang", &["-fsanitize=leak"], true),
    ("clang", &["-fsanitize=thread"], false),
    ("clang", &["-fsanitize=memory"], false),
];

const SANITIZERS_OF_RUST: &[&str] = &["address", "leak", "thread"];

/// A program that was built.
#[derive(Debug)]
struct Sanitized {
    how: String,
    path: PathBuf,
    leaks: bool,
    /// Whether it is tried how the runtime tells of signals.
    tells: bool,
}

/// The programs, where everybody may execute them.
#[derive(Debug)]
struct Built {
    directory: PathBuf,
    programs: Vec<Sanitized>,
}

static BUILT: OnceLock<Built> = OnceLock::new();

fn built() -> &'static Built {
    BUILT.get_or_init(|| {
        let directory = tempfile::Builder::new()
            .prefix("ioasid-sanitized-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .unwrap()
            .keep();
        let mut programs = Vec::new();
        let mut build = |compiler: &str, words: &[&str], name: &str, leaks: bool| {
            let path = directory.join(programs.len().to_string());
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interception");
            let mut command = Command::new(compiler);
            command.args(words).arg("-o").arg(&path);
            let output = command.arg(source.join(name)).output();
            let how = format!("{compiler} {}", words.join(" "));
            if !output.is_ok_and(|output| output.status.success()) {
                eprintln!("{how}: not here, not tried");
                return;
            }
            let tells =
                name.ends_with(".c") && (how.contains("=address") || how.contains("=thread"));
            programs.push(Sanitized {
                how,
                path,
                leaks,
                tells,
            });
        };
        for (compiler, words, leaks) in BUILDS {
            let words = [&["-g", "-O1", "-pthread"], *words].concat();
            build(compiler, &words, "sanitized.c", *leaks);
        }
        for sanitizer in SANITIZERS_OF_RUST {
            let flag = format!("-Zsanitizer={sanitizer}");
            let words = [
                "+nightly",
                &flag,
                "-Cunsafe-allow-abi-mismatch=sanitizer",
                "--edition=2024",
                "--target=x86_64-unknown-linux-gnu",
            ];
            build("rustc", &words, "sanitized_rust.rs", false);
        }
        Built {
            directory,
            programs,
        }
    })
}

pub(crate) fn clean_up() {
    if let Some(built) = BUILT.get() {
        // What stays behind in the temporary directory harms nobody.
        let _ = fs::remove_dir_all(&built.directory);
    }
}

fn run(setting: Setting, program: &Path, words: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = part(setting, "part:run");
    command.arg("--");
    // As the program's own, and not that of the process that starts it.
    if !environment.is_empty() {
        command.arg("env");
        command.args(
            environment
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
    }
    command.arg(program).args(words);
    command.env("RUST_LOG", "ioasid_supervisor=debug");
    command.output().unwrap()
}

/// Whether it got to its end, by the library, with the exit status `expected` or any other than 0.
fn done(output: &Output, fails: bool, what: &str) -> Result<(), Failed> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    check(
        stdout == "done\n"
            && output.status.success() != fails
            && stderr.contains("caught by the library in the program"),
        &format!("{what}: {}: {stdout}{stderr}", output.status),
    )
}

fn says(output: &Output, text: &str) -> Result<(), Failed> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    check(stderr.contains(text), &format!("no {text:?}: {stderr}"))
}

fn sanitizers(setting: Setting) -> Result<(), Failed> {
    for Sanitized {
        how,
        path,
        leaks,
        tells,
    } in &built().programs
    {
        done(&run(setting, path, &[], &[]), false, how)?;
        if *leaks {
            let output = run(setting, path, &["leak"], &[]);
            done(&output, true, how)?;
            says(&output, "100 byte(s) leaked in 1 allocation(s)")?;
        }
        if how.contains("=thread") && *tells {
            let output = run(setting, path, &["spoil"], &[]);
            done(&output, true, how)?;
            says(&output, "signal handler spoils errno")?;
        }
        if *tells {
            // A signal that is none of ours is the runtime's.
            let output = run(setting, path, &["bus"], &[]);
            done(&output, true, how)?;
            says(&output, "BUS on unknown address")?;
        }
    }
    Ok(())
}

/// Options replace those that a supervisor could set.
fn options(setting: Setting) -> Result<(), Failed> {
    let address = |program: &&Sanitized| program.how.contains("=address") && program.leaks;
    for Sanitized { path, .. } in built().programs.iter().filter(address) {
        for options in [
            "verify_asan_link_order=1:detect_leaks=1",
            "handle_sigbus=2:handle_segv=2:handle_sigill=2:allow_user_segv_handler=0",
        ] {
            let environment = [("ASAN_OPTIONS", options)];
            done(&run(setting, path, &[], &environment), false, options)?;
        }
    }
    Ok(())
}

/// Libraries that are often preloaded, where the host has them.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libeatmydata.so",
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
];

fn preloads(setting: Setting) -> Result<(), Failed> {
    let plain = |program: &&Sanitized| !program.how.contains("sanitize");
    let Some(Sanitized { path, .. }) = built().programs.iter().find(plain) else {
        return Ok(());
    };
    for library in LIBRARIES {
        if !Path::new(library).exists() {
            eprintln!("{library}: not here, not tried");
            continue;
        }
        // Set when the program is started: both are loaded.
        let mut command = part(setting, "part:run");
        command.arg("--").arg(path);
        command.env("RUST_LOG", "ioasid_supervisor=debug");
        command.env("PROGRAM_PRELOADS", library);
        done(&command.output()?, false, library)?;
        // Set by the program for another one: it is traced instead.
        let output = run(setting, path, &[], &[("LD_PRELOAD", library)]);
        check(output.status.success(), library)?;
        says(&output, "caught by ptrace")?;
    }
    Ok(())
}
