//! The claims. Each is made as this user and as an unprivileged one with no_new_privs, if we are
//! root and can become that; and by each of them with namespaces and where the host refuses them.

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{attributes, mapped, sanitized, served};

/// The user that runs the machine and its programs.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum User {
    Us,
    Nobody,
}

/// The user, and the host's permissions.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Setting {
    pub(crate) user: User,
    /// The host gives no namespaces.
    confined: bool,
}

pub(crate) type Claim = fn(Setting) -> Result<(), Failed>;

const CLAIMS: &[(&str, Claim)] = &[
    ("exit_status_is_the_programs_own", exit_status),
    ("objects_belong_to_the_open_file", |u| client(u, "objects")),
    ("a_node_is_known_by_its_inode_not_its_name", |u| {
        client(u, "names")
    }),
    ("a_device_node_is_a_character_device_that_works", |u| {
        client(u, "device")
    }),
    ("a_device_is_used_by_its_group_and_a_container", |u| {
        client(u, "groups")
    }),
    ("an_iommufd_stands_in_for_a_container", |u| {
        client(u, "compat-groups")
    }),
    ("memory_is_mapped_by_the_rules_of_linux", |u| {
        client(u, "memory")
    }),
    ("a_file_is_mapped_by_the_rules_of_linux", |u| {
        client(u, "memory-files")
    }),
    ("a_node_opened_for_reading_is_used_like_any_other", |u| {
        client(u, "opened-for-reading")
    }),
    ("reads_and_writes_look_at_the_access_mode", |u| {
        client(u, "access-modes")
    }),
    ("an_open_past_the_filter_is_an_open", |u| {
        client(u, "opened-past-the-filter")
    }),
    ("an_ioctl_names_open_files_alone", |u| {
        client(u, "named-by-an-ioctl")
    }),
    ("a_node_is_no_regular_file", |u| client(u, "not-regular")),
    ("a_device_works_on_any_number", |u| client(u, "any-number")),
    ("numbers_do_not_run_out", |u| client(u, "many")),
    ("sysfs_leads_to_the_device", |u| client(u, "sysfs")),
    ("a_path_tells_what_stands_there", |u| client(u, "stats")),
    ("a_node_is_the_node_wherever_it_is_put", |u| {
        client(u, "places")
    }),
    ("pseudo_terminals_work", terminals),
    ("everything_in_dev_is_as_on_the_host", dev),
    ("sysfs_is_told_as_sysfs", |u| client(u, "statfs")),
    ("a_fault_queue_is_a_file_of_events", |u| client(u, "events")),
    ("a_device_is_saved_and_restored_by_a_file", |u| {
        client(u, "migration")
    }),
    ("nobody_has_to_give_up_privileges_first", ordinary_user),
    ("a_run_leaves_no_files_behind", leaves_no_files),
    ("run_says_how_a_program_finds_its_files", says_its_mode),
    ("the_hosts_nodes_and_files_work_as_before", |u| {
        client(u, "host")
    }),
    ("a_program_without_our_files_is_left_alone", |u| {
        client(u, "bystander")
    }),
    ("questions_about_an_agent_may_come_from_anybody", |u| {
        client(u, "agent-questions")
    }),
    ("a_program_cannot_break_its_session", |u| {
        client(u, "hostile")
    }),
    ("a_vm_sees_what_it_owns", vm_sees_what_it_owns),
    ("the_program_keeps_its_uid_and_gains_nothing", keeps_its_uid),
    ("a_signal_storm_repeats_no_ioctl", |u| client(u, "storm")),
    ("no_signal_interrupts_an_ioctl", |u| {
        client(u, "storm-without-restart")
    }),
    (
        "without_the_library_a_call_that_failed_did_nothing",
        interrupted,
    ),
    ("a_child_of_vfork_is_served_in_its_parents_memory", |u| {
        client(u, "vfork")
    }),
    ("a_filter_of_the_programs_own_changes_nothing", |u| {
        client(u, "filtered")
    }),
    ("calls_of_the_32_bit_abi_are_not_answered", without_32_bits),
    ("a_number_is_what_is_open_there_now", |u| {
        client(u, "numbers-are-reused")
    }),
    ("a_thread_number_is_the_thread_that_has_it_now", |u| {
        client(u, "threads-come-and-go")
    }),
    (
        "a_program_that_is_closed_to_us_is_told_of_in_one_sentence",
        not_dumpable,
    ),
    (
        "a_daemon_goes_on_with_a_served_machine",
        served::served_daemon,
    ),
    ("a_run_inside_a_run_is_refused_in_one_sentence", nested),
    ("a_daemon_outlives_a_private_machine", daemon),
    ("a_signal_to_run_reaches_the_program", forwarded),
    ("two_programs_share_a_served_machine", served::served),
    ("a_killed_program_leaves_nothing_behind", served::killed),
    ("a_hostile_peer_costs_only_itself", served::hostile_peer),
    (
        "a_stale_socket_is_replaced_and_a_live_one_is_not",
        served::stale_socket,
    ),
];

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let all = CLAIMS.iter().chain(mapped::CLAIMS);
    let all = all.chain(sanitized::CLAIMS).chain(attributes::CLAIMS);
    for (name, claim) in all {
        for (user, confined, suffix) in [
            (User::Us, false, ""),
            (User::Us, true, "::without_namespaces"),
            (User::Nobody, false, "::unprivileged"),
            (User::Nobody, true, "::unprivileged_without_namespaces"),
        ] {
            let setting = Setting { user, confined };
            let impossible = user == User::Nobody && unprivileged().is_none();
            trials.push(
                Trial::test(format!("{name}{suffix}"), move || claim(setting))
                    .with_ignored_flag(impossible),
            );
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    mapped::clean_up();
    sanitized::clean_up();
    if let Some(copy) = unprivileged().and_then(Path::parent) {
        // A copy that stays behind in the temporary directory harms nobody.
        let _ = fs::remove_dir_all(copy);
    }
    conclusion.exit_code()
}

/// This executable where uid 65534 may execute it; `None` if we cannot become that uid.
fn unprivileged() -> Option<&'static Path> {
    static COPY: OnceLock<Option<PathBuf>> = OnceLock::new();
    COPY.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let directory = tempfile::Builder::new()
            .prefix("ioasid-claims-")
            .permissions(fs::Permissions::from_mode(0o777))
            .tempdir()
            .ok()?
            .keep();
        let copy = directory.join("claims");
        fs::copy(std::env::current_exe().ok()?, &copy).ok()?;
        let works = setpriv(Path::new("/bin/true")).status().ok()?.success();
        works.then_some(copy)
    })
    .as_deref()
}

fn setpriv(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
        ])
        .arg(program)
        .env("PATH", "/usr/bin:/bin")
        .env("TMPDIR", "/tmp")
        .env_remove("XDG_RUNTIME_DIR")
        .current_dir("/");
    command
}

/// The executable as that user sees it.
pub(crate) fn executable(setting: Setting) -> PathBuf {
    match setting.user {
        User::Us => std::env::current_exe().unwrap(),
        User::Nobody => unprivileged().unwrap().to_owned(),
    }
}

pub(crate) fn part(setting: Setting, name: &str) -> Command {
    let mut command = match setting.user {
        User::Us => Command::new(executable(setting)),
        User::Nobody => setpriv(&executable(setting)),
    };
    if setting.confined {
        command.arg("part:confined").env("CONFINED", "1");
    }
    command.arg(name).stdin(Stdio::null());
    command
}

fn run(setting: Setting, words: &[&str]) -> Output {
    part(setting, "part:run")
        .arg("--")
        .args(words)
        .output()
        .unwrap()
}

pub(crate) fn client(setting: Setting, name: &str) -> Result<(), Failed> {
    let exe = executable(setting);
    let output = run(setting, &[exe.to_str().unwrap(), "part:client", name]);
    succeeded(&output)
}

/// The part runs with `facts` of the host, taken as the same user.
fn client_with(setting: Setting, name: &str, fact: (&str, String)) -> Result<(), Failed> {
    let exe = executable(setting);
    let output = part(setting, "part:run")
        .env(fact.0, fact.1)
        .arg("--")
        .args([exe.to_str().unwrap(), "part:client", name])
        .output()?;
    succeeded(&output)
}

/// What `part:facts` of a user says of the host.
fn facts(setting: Setting) -> Result<String, Failed> {
    let output = part(setting, "part:facts").output()?;
    succeeded(&output)?;
    Ok(String::from_utf8(output.stdout)?)
}

fn terminals(setting: Setting) -> Result<(), Failed> {
    let facts = facts(setting)?;
    let works = facts
        .lines()
        .any(|fact| fact.starts_with("ptmx ") && fact.ends_with(" 0"));
    let name = if works { "TERMINALS" } else { "NO_TERMINALS" };
    client_with(setting, "terminals", (name, String::new()))
}

fn dev(setting: Setting) -> Result<(), Failed> {
    client_with(setting, "dev", ("HOST", facts(setting)?))
}

pub(crate) fn succeeded(output: &Output) -> Result<(), Failed> {
    if output.status.success() {
        // What a host refuses is not left out in silence.
        let said = String::from_utf8_lossy(&output.stdout);
        let skipped = said.lines().filter(|line| line.starts_with("skipped: "));
        skipped.for_each(|line| eprintln!("{line}"));
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {stderr}", output.status).into())
}

pub(crate) fn check(test: bool, what: &str) -> Result<(), Failed> {
    if test { Ok(()) } else { Err(what.into()) }
}

fn interrupted(setting: Setting) -> Result<(), Failed> {
    let output = part(setting, "part:run")
        .arg("--")
        .arg(executable(setting))
        .args(["part:client", "storm-without-restart"])
        .env("MMIO", "ptrace")
        .output()?;
    succeeded(&output)
}

fn exit_status(setting: Setting) -> Result<(), Failed> {
    let table: &[(&[&str], i32)] = &[
        (&["true"], 0),
        (&["false"], 1),
        (&["/bin/sh", "-c", "exit 42"], 42),
        (&["/bin/sh", "-c", "exit 255"], 255),
        (&["/bin/sh", "-c", "kill -KILL $$"], 137),
        (&["/bin/sh", "-c", "kill -TERM $$"], 143),
        (&["/bin/sh", "-c", "kill -SEGV $$"], 139),
        (&["/nonexistent/program"], 127),
        (&["no-such-program-anywhere"], 127),
        (&["/etc/passwd"], 126),
        (&["/tmp"], 126),
    ];
    for (words, expected) in table {
        let output = run(setting, words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let found = output.status.code();
        check(
            found == Some(*expected),
            &format!("{words:?}: {found:?}, not {expected}: {stderr}"),
        )?;
        let lines = stderr.lines().count();
        let silent = !matches!(expected, 126 | 127);
        check(
            if silent { lines == 0 } else { lines == 1 },
            &format!("{words:?} says: {stderr}"),
        )?;
    }
    Ok(())
}

/// Without `no_new_privs` the kernel takes filters from the privileged only.
fn ordinary_user(setting: Setting) -> Result<(), Failed> {
    let exe = executable(setting);
    let mut command = match setting.user {
        User::Us => Command::new(&exe),
        User::Nobody => {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .arg(&exe)
                .env("TMPDIR", "/tmp")
                .current_dir("/");
            command
        }
    };
    if setting.confined {
        command.env("NO_NAMESPACES", "1");
    }
    command.args(["part:run", "--"]).arg(&exe);
    succeeded(&command.args(["part:client", "objects"]).output()?)
}

fn leaves_no_files(setting: Setting) -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777))?;
    for words in [&["true"][..], &["no-such-program-anywhere"]] {
        part(setting, "part:run")
            .arg("--")
            .args(words)
            .env("TMPDIR", scratch.path())
            .output()?;
        let left = fs::read_dir(scratch.path())?.count();
        check(left == 0, &format!("{words:?} left {left} files"))?;
    }
    Ok(())
}

fn says_its_mode(setting: Setting) -> Result<(), Failed> {
    let output = part(setting, "part:run")
        .args(["--", "true"])
        .env("RUST_LOG", "info")
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let expected = if setting.confined {
        "no namespace, every path is trapped: this host does not let us make a user namespace"
    } else {
        "a mount namespace of its own"
    };
    check(stderr.contains(expected), &stderr)
}

fn vm_sees_what_it_owns(setting: Setting) -> Result<(), Failed> {
    let exe = executable(setting);
    let exe = exe.to_str().unwrap();
    for (vm, name) in [("vm1", "device"), ("vm2", "no-device")] {
        let output = part(setting, "part:run")
            .args(["--vm", vm, "--", exe, "part:client", name])
            .output()?;
        succeeded(&output)?;
    }
    let output = part(setting, "part:run")
        .args(["--vm", "vm9", "--", "true"])
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    check(
        output.status.code() == Some(125) && stderr == "ioasid: the machine has no vm \"vm9\"\n",
        &stderr,
    )
}

fn keeps_its_uid(setting: Setting) -> Result<(), Failed> {
    let exe = executable(setting);
    let words = [exe.to_str().unwrap(), "part:client", "identity"];
    let output = run(setting, &words);
    succeeded(&output)?;
    let inside = String::from_utf8_lossy(&output.stdout).into_owned();
    let outside = fs::read_to_string("/proc/self/status")?;
    let expected = |name: &str| outside.lines().find(|l| l.starts_with(name)).unwrap();
    match setting.user {
        User::Us => check(
            ["Uid:", "Gid:", "CapEff:", "NoNewPrivs:"]
                .iter()
                .all(|name| inside.contains(expected(name))),
            &inside,
        ),
        User::Nobody => check(
            inside.contains("Uid:\t65534\t65534\t65534\t65534")
                && inside.contains("Gid:\t65534\t65534\t65534\t65534")
                && inside.contains("CapEff:\t0000000000000000")
                && inside.contains("NoNewPrivs:\t1"),
            &inside,
        ),
    }
}

/// Only where this kernel has that ABI at all.
fn without_32_bits(setting: Setting) -> Result<(), Failed> {
    let exe = executable(setting);
    let output = run(setting, &[exe.to_str().unwrap(), "part:client", "i386"]);
    if output.status.code() == Some(128 + libc::SIGSEGV) {
        return Ok(());
    }
    succeeded(&output)
}

fn not_dumpable(setting: Setting) -> Result<(), Failed> {
    let exe = executable(setting);
    let output = part(setting, "part:run")
        .arg("--")
        .arg(exe)
        .args(["part:client", "not-dumpable"])
        .env("RUST_LOG", "warn")
        .output()?;
    succeeded(&output)?;
    let errno = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let closed = stderr.contains("cannot use the machine: its memory is closed to us");
    match (setting.user, errno.trim().parse()) {
        // Root may look into everything.
        (User::Us, Ok(0)) => check(!closed, &stderr),
        (_, Ok(libc::ENOTTY | libc::ENOENT)) => {
            check(closed && stderr.lines().count() == 1, &stderr)
        }
        _ => Err(format!("errno {errno}: {stderr}").into()),
    }
}

fn nested(setting: Setting) -> Result<(), Failed> {
    let exe = executable(setting);
    let output = run(setting, &[exe.to_str().unwrap(), "part:run", "--", "true"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    check(
        output.status.code() == Some(125)
            && stderr.contains("ioasid run inside ioasid run is not possible")
            && stderr.lines().count() == 1,
        &stderr,
    )
}

fn daemon(setting: Setting) -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777))?;
    let (go, done) = (scratch.path().join("go"), scratch.path().join("done"));
    // The daemon waits until the machine is gone, then opens a file for reading and writing.
    let script = format!(
        "(while ! test -e {go}; do sleep 0.01; done; echo x 1<> {done}) >/dev/null 2>&1 & exit 3",
        go = go.display(),
        done = done.display()
    );
    let output = run(setting, &["/bin/sh", "-c", &script]);
    check(output.status.code() == Some(3), &format!("{output:?}"))?;
    fs::write(&go, "")?;
    wait_for("the daemon's file", || {
        fs::read_to_string(&done).is_ok_and(|text| text == "x\n")
    })
}

fn forwarded(setting: Setting) -> Result<(), Failed> {
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done";
    let mut child = part(setting, "part:run")
        .args(["--", "/bin/sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()?;
    expect_line(&mut child, "ready")?;
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = child.wait()?;
    check(status.code() == Some(9), &status.to_string())
}

pub(crate) fn expect_line(child: &mut Child, expected: &str) -> Result<(), Failed> {
    let mut line = Vec::new();
    let stdout = child.stdout.as_mut().ok_or("no pipe")?;
    let mut byte = [0];
    while line.last() != Some(&b'\n') && stdout.read(&mut byte)? == 1 {
        line.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&line);
    check(line.trim_end() == expected, &format!("it said {line:?}"))
}

pub(crate) fn wait_for(what: &str, mut test: impl FnMut() -> bool) -> Result<(), Failed> {
    let start = Instant::now();
    while !test() {
        if start.elapsed() > Duration::from_secs(600) {
            return Err(format!("waited in vain for {what}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
