//! The program as its operator meets it: what it prints where, its exit status, and what it refuses.

// A test that cannot go on has failed.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::{Child, ChildStderr, Command, Output, Stdio},
};

/// Where machines of a test have their sockets.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn ioasid(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ioasid"));
        command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.0.path())
            .env_remove("IOASID_LOG")
            .stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.ioasid(arguments).output().unwrap()
    }

    /// What a command that works prints.
    fn printed(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command says that ends with `status`.
    fn refused(&self, arguments: &[&str], status: i32) -> String {
        let output = self.output(arguments);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {output:?}"
        );
        String::from_utf8(output.stderr).unwrap()
    }

    /// A machine that is served until it is dropped.
    fn serve(&self, arguments: &[&str]) -> Serving {
        let mut command = self.ioasid(&["serve"]);
        Serving::start(command.args(arguments))
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.path().join("ioasid").join(format!("{name}.sock"))
    }
}

/// `ioasid serve` that runs.
struct Serving {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Serving {
    fn start(command: &mut Command) -> Serving {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut serving = Serving { child, stderr };
        serving.until("look:");
        serving
    }

    /// Reads lines of its standard error up to one with `words`, which is returned.
    fn until(&mut self, words: &str) -> String {
        let mut said = String::new();
        loop {
            let mut line = String::new();
            let read = self.stderr.read_line(&mut line).unwrap();
            said.push_str(&line);
            assert!(read > 0, "ended without {words:?}:\n{said}");
            if line.contains(words) {
                return line;
            }
        }
    }

    /// Ends it, and reads the rest of what it said.
    fn end(mut self) -> String {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}");
        said
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_second_serve_of_a_machine_names_the_first_and_leaves_it_alone() {
    let place = Place::new();
    let mut first = place.serve(&["--name", "twin"]);
    let said = place.refused(&["serve", "--name", "twin"], 1);
    let owner = format!("machine `twin` (pid {}) is being served", first.child.id());
    assert!(said.contains(&owner), "{said}");
    let shown = place.printed(&["inspect", "twin"]);
    assert!(shown.starts_with("machine twin"), "{shown}");
    // What a process that was killed leaves behind keeps nobody away.
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(place.socket("twin").exists());
    let third = place.serve(&["--name", "twin"]);
    let shown = place.printed(&["inspect", "twin"]);
    assert!(shown.starts_with("machine twin"), "{shown}");
    third.end();
}

#[test]
fn an_error_says_its_cause_once() {
    let place = Place::new();
    fs::create_dir(place.0.path().join("ioasid")).unwrap();
    // There is something, and nobody listens.
    drop(UnixListener::bind(place.socket("gone")).unwrap());
    for arguments in [
        &["inspect", "gone"][..],
        &["mdev", "list", "--machine", "gone"],
        &["run", "--join", "gone", "--", "true"],
        &["run", "--machine", "/nowhere.toml", "--", "true"],
    ] {
        let output = place.output(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.matches("os error").count(), 1, "{arguments:?}: {said}");
    }
}

#[test]
fn output_that_does_not_arrive_is_an_error_and_a_reader_that_left_needs_no_words() {
    let place = Place::new();
    let serving = place.serve(&["--name", "m"]);
    for arguments in [
        &["inspect"][..],
        &["inspect", "--json"],
        &["ls"],
        &["graph", "--svg"],
        &["mdev", "list"],
        &["--help"],
        &["inspect", "--help"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = place.ioasid(arguments).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        let reason = "cannot write to standard output: No space left";
        assert!(said.contains(reason), "{said}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = place.ioasid(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(141), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    serving.end();
}

#[test]
fn nothing_is_coloured_outside_of_a_terminal() {
    let place = Place::new();
    let mut command = place.ioasid(&["serve", "-vv", "--name", "m"]);
    let mut serving = Serving::start(command.env("IOASID_LOG", "trace"));
    // A bad message is logged.
    let mut stream = UnixStream::connect(place.socket("m")).unwrap();
    stream.write_all(b"nonsense\n").unwrap();
    let line = serving.until("a connection was dropped");
    assert!(!line.contains('\x1b'), "{line:?}");
    for arguments in [&["fly"][..], &["--help"], &["inspect"]] {
        let output = place.output(arguments);
        let all = [output.stdout, output.stderr].concat();
        assert!(!all.contains(&b'\x1b'), "{arguments:?}");
    }
    assert!(!serving.end().contains('\x1b'));
}

#[test]
fn the_exit_status_says_whose_fault_it_was_wherever_it_is_found() {
    let place = Place::new();
    let bad = place.0.path().join("bad.toml");
    fs::write(&bad, "[[device]]\nmodel = \"dsa\"\nengins = 1\n").unwrap();
    let bad = bad.to_str().unwrap();
    for (arguments, status) in [
        (&["run"][..], 125),
        (&["-v", "run"], 125),
        (&["run", "--bogus", "--", "true"], 125),
        (&["run", "--machine", bad, "--", "true"], 125),
        (&["run", "--machine", "/nowhere.toml", "--", "true"], 125),
        (&["run", "--device", "dsa,queus=1", "--", "true"], 125),
        (&["run", "--join", "nobody", "--", "true"], 125),
        (&["run", "--vm", "nobody", "--", "true"], 125),
        (&["run", "--mmio", "magic", "--", "true"], 125),
        (&["run", "--", "/nowhere/program"], 127),
        (&["run", "--", "/etc/passwd"], 126),
        (&["serve", bad], 1),
        (&["serve", "--name", "a/b"], 2),
        (&["serve", "--name", ""], 2),
        (&["serve", "--bogus"], 2),
        (&["inspect", "nobody"], 1),
        (&["inspect"], 1),
        (&["ls"], 1),
        (&["ls", "--machine", bad], 1),
        (&["inspect", "--all", "--path", "name"], 2),
        (&["top", "--every", "0"], 2),
        (&["fly"], 2),
        (&[], 2),
    ] {
        let said = place.refused(arguments, status);
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        assert!(!said.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_wrong_filter_of_the_log_is_refused_with_what_a_right_one_is() {
    let place = Place::new();
    for (arguments, status) in [(&["ls"][..], 2), (&["run", "--", "true"], 125)] {
        let mut command = place.ioasid(arguments);
        let output = command.env("IOASID_LOG", "ioasid=loud").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{said}");
        for words in ["IOASID_LOG", "info,ioasid_iommu=trace"] {
            assert!(said.contains(words), "{said}");
        }
    }
    let mut command = place.ioasid(&["ls", "--device", "dsa,driver=vfio"]);
    let right = command.env("IOASID_LOG", "info,ioasid_iommu=trace");
    assert!(right.output().unwrap().status.success());
    assert!(place.printed(&["--help"]).contains("IOASID_LOG"));
}

#[test]
fn a_socket_that_cannot_be_made_is_refused_with_the_reason() {
    let place = Place::new();
    let said = place.refused(&["serve", "--socket", "/nowhere/else/m.sock"], 1);
    assert!(said.contains("there is no folder /nowhere/else"), "{said}");
    let file = place.0.path().join("file");
    fs::write(&file, "mine").unwrap();
    let said = place.refused(&["serve", "--socket", file.to_str().unwrap()], 1);
    assert!(said.contains("exists and is not a socket"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    let said = place.refused(&["serve", "--name", "a/b"], 2);
    assert!(said.contains("--socket"), "{said}");
}

#[test]
fn mediated_devices_are_created_listed_and_removed_by_what_is_printed() {
    let place = Place::new();
    let serving = place.serve(&["--name", "m"]);
    let list = || -> serde_json::Value {
        serde_json::from_str(&place.printed(&["mdev", "list", "--json"])).unwrap()
    };
    let count = || list()["devices"].as_array().unwrap().len();
    let parent = list()["types"][0]["parent"].as_str().unwrap().to_owned();
    let said = place.refused(&["mdev", "create", &parent, "--vm", "nobody"], 1);
    assert!(said.contains("no vm `nobody`; it has "), "{said}");
    let before = count();
    let printed = place.printed(&["mdev", "create", &parent, "--vm", "vm1"]);
    let uuid = printed.trim_end();
    assert_eq!(
        (uuid.len(), printed.lines().count()),
        (36, 1),
        "{printed:?}"
    );
    assert_eq!(count(), before + 1);
    let is_new = |device: &serde_json::Value| device["uuid"] == uuid && device["vm"] == "vm1";
    assert!(list()["devices"].as_array().unwrap().iter().any(is_new));
    assert!(place.printed(&["ls"]).contains(uuid));
    assert_eq!(place.printed(&["mdev", "remove", uuid]), "");
    assert_eq!(count(), before);
    serving.end();
}

#[test]
fn a_machine_that_does_not_run_is_listed_too() {
    let place = Place::new();
    let text = place.printed(&["ls", "--device", "dsa,queues=2,driver=vfio"]);
    let devices: Vec<_> = text.lines().skip(1).collect();
    assert_eq!(devices.len(), 1, "{text}");
    assert!(
        devices[0].contains("/dev/vfio/devices/vfio0  free"),
        "{text}"
    );
}

#[test]
fn the_live_view_wants_a_terminal_and_says_what_does_not() {
    let place = Place::new();
    let serving = place.serve(&["--name", "m"]);
    let said = place.refused(&["top"], 1);
    assert!(said.contains("`ioasid inspect`"), "{said}");
    serving.end();
}

#[test]
fn serve_says_who_joins_who_leaves_and_why_a_client_was_dropped() {
    let place = Place::new();
    let mut serving = place.serve(&["-v", "--name", "m"]);
    place.printed(&["run", "--join", "m", "--vm", "vm1", "--", "true"]);
    let joined = serving.until("a program uses the machine");
    for words in ["program=true", "pid=", "vm=\"vm1\""] {
        assert!(joined.contains(words), "{joined}");
    }
    let left = serving.until("the program has left");
    let pid = |line: &str| {
        let pid = line.split("pid=").nth(1).unwrap();
        pid.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(pid(&left), pid(&joined));
    place.refused(&["run", "--join", "m", "--vm", "vm9", "--", "true"], 125);
    let refused = serving.until("a program was refused");
    assert!(refused.contains("vm9"), "{refused}");
    // A VMM that speaks another language: a message of no bytes.
    let list = place.printed(&["ls", "m"]);
    let mut rows = list.lines().map(str::split_whitespace);
    let mut owned = rows.find(|row| row.clone().nth(3) == Some("vm1")).unwrap();
    let device = owned.next().unwrap();
    let folder = place.socket("m").with_extension("vm");
    let socket = folder.join(format!("{device}.sock"));
    let mut client = UnixStream::connect(socket).unwrap();
    client.write_all(&[0; 64]).unwrap();
    let me = format!("pid={}", std::process::id());
    assert!(serving.until("a client connects").contains(&me));
    let dropped = serving.until("a client was dropped");
    for words in ["error=", &me, "vm="] {
        assert!(dropped.contains(words), "{dropped}");
    }
    serving.end();
}
