//! One small client where programs live.
//!
//! The client (`probe.c`) knows Linux alone: it opens the nodes, binds, attaches, maps memory, reads
//! configuration space, copies by DMA through mapped registers and waits for the interrupt. It runs
//! in namespaces, below other tools, built with sanitizers, and with descriptors that reached it in
//! unusual ways; as root also as an unprivileged user, with and without namespaces of `ioasid run`.
//! What a host does not let a program do without `ioasid` either is named as skipped.

mod private;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use ioasid_system_tests::{
    installation::{Installation, User},
    process::{shown, succeed},
    runner::{self, Test},
};
use libtest_mimic::Arguments;
use xtask::workspace::{ioasid, root};

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    arguments: Arguments,
    /// Use this `ioasid` instead of building one, optimised.
    #[arg(long, value_name = "PROGRAM")]
    ioasid: Option<PathBuf>,
}

/// How the client is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Build {
    Plain,
    Static,
    Address,
    Thread,
    Undefined,
}

impl Build {
    const ALL: [Build; 5] = [
        Build::Plain,
        Build::Static,
        Build::Address,
        Build::Thread,
        Build::Undefined,
    ];

    /// Its file.
    const fn name(self) -> &'static str {
        match self {
            Build::Plain => "probe",
            Build::Static => "probe-static",
            Build::Address => "probe-asan",
            Build::Thread => "probe-tsan",
            Build::Undefined => "probe-ubsan",
        }
    }

    /// What the compiler is told.
    const fn option(self) -> Option<&'static str> {
        match self {
            Build::Plain => None,
            Build::Static => Some("-static"),
            Build::Address => Some("-fsanitize=address"),
            Build::Thread => Some("-fsanitize=thread"),
            Build::Undefined => Some("-fsanitize=undefined"),
        }
    }
}

/// Where and how the client runs.
#[derive(Clone, Copy, Debug)]
struct Place {
    build: Build,
    /// The client's words after the address.
    words: &'static [&'static str],
    /// What starts the client, for root and for others. `ROOT` is an empty folder; the client follows, or
    /// stands where `CLIENT` is, as one word.
    before: [&'static [&'static str]; 2],
    /// Why it cannot work where `ioasid run` has no namespaces, if so.
    only_with_namespaces: Option<&'static str>,
}

const PLAIN: Place = Place {
    build: Build::Plain,
    words: &[],
    before: [&[], &[]],
    only_with_namespaces: None,
};

/// A whole file system below another folder, which becomes the root.
const BELOW: &str = "mount --rbind / ROOT && exec chroot ROOT \"$@\"";

const TESTS: &[(&str, Test<Installation>)] = &[
    ("nowhere special", |installation| {
        check(installation, &[PLAIN, with(&["group"]), with(&["pread"])])
    }),
    ("linked statically", |installation| {
        check(installation, &[built(Build::Static)])
    }),
    ("in a mount namespace of its own", |installation| {
        let before: [&[&str]; 2] = [&["unshare", "-m"], &["unshare", "-Urm"]];
        let group = with(&["group"]);
        check(
            installation,
            &[Place { before, ..PLAIN }, Place { before, ..group }],
        )
    }),
    ("in a user and mount namespace of its own", |installation| {
        check(installation, &[below(&["unshare", "-Urm"])])
    }),
    (
        "in a process namespace of its own, with its own /proc",
        |installation| {
            check(
                installation,
                &[below(&["unshare", "-Urmpf", "--mount-proc"])],
            )
        },
    ),
    ("under bubblewrap", |installation| {
        check(
            installation,
            &[below(&["bwrap", "--dev-bind", "/", "/", "--"])],
        )
    }),
    ("in another root", |installation| {
        let before: [&[&str]; 2] = [
            &["unshare", "-m", "sh", "-c", BELOW, "sh"],
            &["unshare", "-Urm", "sh", "-c", BELOW, "sh"],
        ];
        check(installation, &[Place { before, ..PLAIN }])
    }),
    ("built with gcc's sanitizers", |installation| {
        check(
            installation,
            &[Build::Address, Build::Thread, Build::Undefined].map(built),
        )
    }),
    ("under valgrind", |installation| {
        check(
            installation,
            &[below(&["valgrind", "-q", "--error-exitcode=9"])],
        )
    }),
    (
        "in a pseudo-terminal, and with one of its own",
        |installation| {
            let terminal = below(&["script", "-qefc", "CLIENT", "/dev/null"]);
            check(installation, &[terminal, with(&["pty"])])
        },
    ),
    (
        "with descriptors that another process sent",
        |installation| {
            check(
                installation,
                &[
                    with(&["passed"]),
                    with(&["passed", "group"]),
                    with(&["passed", "pread"]),
                ],
            )
        },
    ),
    ("with descriptors on other numbers", |installation| {
        check(
            installation,
            &[
                with(&["moved"]),
                with(&["moved", "group"]),
                with(&["moved", "pread"]),
            ],
        )
    }),
    (
        "with files opened for reading alone where they are only named",
        |installation| {
            check(
                installation,
                &[with(&["read-only"]), with(&["read-only", "group"])],
            )
        },
    ),
    ("with private memory, and an agent in it", private::check),
    ("with files that io_uring opened", |installation| {
        let only_with_namespaces = Some("io_uring is not trapped, so the open is ENOENT");
        let place = Place {
            only_with_namespaces,
            ..with(&["io-uring"])
        };
        let words = &["io-uring", "group"];
        check(installation, &[place, Place { words, ..place }])
    }),
];

const fn with(words: &'static [&'static str]) -> Place {
    Place { words, ..PLAIN }
}

const fn built(build: Build) -> Place {
    Place { build, ..PLAIN }
}

const fn below(before: &'static [&'static str]) -> Place {
    Place {
        before: [before, before],
        ..PLAIN
    }
}

/// The device of the machine that the client uses.
const ADDRESS: &str = "0000:6a:01.0";
/// What the client says at its end.
const SUCCESS: &str = "bytes by DMA, an interrupt each time";
/// The machine, and the folder for another root, as files of the installation.
const MACHINE: &str = "machine.toml";
const ROOT: &str = "root";

fn main() -> ExitCode {
    let CommandLine { arguments, ioasid } = CommandLine::parse();
    runner::run(arguments, TESTS, move || set_up(ioasid.as_deref()))
}

/// `ioasid` and every build of the client where every user can run them.
fn set_up(given: Option<&Path>) -> Result<Installation> {
    let installation = Installation::bare(&ioasid(given)?)?;
    fs::create_dir(installation.path(ROOT)).context("making a folder")?;
    let machine = root().join("conformance/machines/vfio-ioat.toml");
    fs::copy(&machine, installation.path(MACHINE)).context("copying the machine file")?;
    for build in Build::ALL {
        let failed = compile(&installation, "probe.c", build.name(), build.option())?;
        if let (Some(why), Build::Plain) = (failed, build) {
            bail!("the client does not compile: {why}");
        }
    }
    for (name, option) in private::BUILDS {
        if let Some(why) = compile(&installation, "private.c", name, option)? {
            bail!("the client with private memory does not compile: {why}");
        }
    }
    Ok(installation)
}

/// Builds a client; what the compiler says if it cannot: it may have no libraries for this build.
fn compile(
    installation: &Installation,
    source: &str,
    name: &str,
    option: Option<&str>,
) -> Result<Option<String>> {
    let output = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-O1", "-g"])
        .args(option)
        .arg("-o")
        .arg(installation.path(name))
        .arg(root().join("crates/system-tests/tests/places").join(source))
        .args(["-lutil", "-lpthread"])
        .output()
        .context("`cc` could not be run; install a C compiler")?;
    Ok((!output.status.success()).then(|| shown(&output)))
}

/// Runs the client in each of these places: which users and modes passed, and what was skipped.
fn check(installation: &Installation, places: &[Place]) -> Result<String> {
    let (mut passed, mut skipped, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for place in places {
        for user in installation.users() {
            let name = format!("{} as {user:?}", place.shown());
            if let Err(refused) = rehearse(installation, user, place) {
                skipped.push(format!("{name} ({refused:#})"));
                continue;
            }
            for option in [None, Some("--no-namespaces")] {
                let name = format!("{name}{}", option.map_or("", |_| " without namespaces"));
                if let (Some(why), Some(_)) = (place.only_with_namespaces, option) {
                    skipped.push(format!("{name} ({why})"));
                    continue;
                }
                let mut command = installation.ioasid(user);
                command.arg("run").args(option).arg("--machine");
                command.arg(installation.path(MACHINE)).arg("--");
                command.args(place.command(installation, user, &[]));
                match succeed(&mut command) {
                    Ok(said) if said.contains(SUCCESS) => passed.push(name),
                    Ok(said) => failed.push(format!("{name}: the client said {said:?}")),
                    Err(error) => failed.push(format!("{name}: {error:#}")),
                }
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n       "));
    let mut said = passed.join(", ");
    if !skipped.is_empty() {
        said += &format!("\n       SKIPPED: {}", skipped.join(", "));
    }
    Ok(said)
}

/// Whether the host lets `user` do without `ioasid` what the place is about.
fn rehearse(installation: &Installation, user: User, place: &Place) -> Result<()> {
    if !installation.path(place.build.name()).exists() {
        bail!("the compiler has no library for it");
    }
    let words = place.command(installation, user, &["rehearsal"]);
    let mut command = installation.command(user, &words[0]);
    succeed(command.args(&words[1..])).map(drop)
}

impl Place {
    /// The place in a word or two.
    fn shown(&self) -> String {
        let mut words = vec![self.build.name()];
        words.extend(self.words);
        words.join(" ")
    }

    /// The client with what starts it.
    fn command(&self, installation: &Installation, user: User, more: &[&str]) -> Vec<String> {
        let mut client = vec![installation.path(self.build.name()).display().to_string()];
        client.push(ADDRESS.to_owned());
        client.extend(self.words.iter().chain(more).map(|word| (*word).to_owned()));
        let mut command = Vec::new();
        let folder = installation.path(ROOT).display().to_string();
        let mut stands = false;
        for word in self.before[usize::from(user == User::Nobody)] {
            stands |= *word == "CLIENT";
            let word = word.replace("ROOT", &folder);
            // None of the client's words needs quotes.
            command.push(word.replace("CLIENT", &client.join(" ")));
        }
        if !stands {
            command.extend(client);
        }
        command
    }
}
