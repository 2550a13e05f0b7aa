//! The other side: this test program run again, as a process that does what it is told on its
//! standard input. Only what a hostile or ordinary client could do.

use std::{
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{self, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    ptr,
};

use rustix::{
    event::EventfdFlags,
    fs::MemfdFlags,
    io::Errno,
    mm::{MapFlags, ProtFlags},
};

const ROLE: &str = "IOASID_HOST_TEST_CHILD";

/// A running child. Killed on drop.
pub(crate) struct Child {
    process: process::Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Child {
    pub(crate) fn start() -> Self {
        let mut process = this_test("child::entry")
            .env(ROLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut child = Child {
            process,
            input,
            output,
        };
        assert_eq!(child.answer(), ["ready"]);
        child
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// Sends a command and gives the words of its answer.
    pub(crate) fn tell(&mut self, command: &str) -> Vec<String> {
        self.send(command);
        self.answer()
    }

    /// As [`Child::tell`], with one number for an answer.
    pub(crate) fn ask(&mut self, command: &str) -> u64 {
        let answer = self.tell(command);
        answer[0]
            .parse()
            .unwrap_or_else(|_| panic!("{command}: {answer:?}"))
    }

    pub(crate) fn send(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    fn answer(&mut self) -> Vec<String> {
        loop {
            let mut line = String::new();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "the child is gone"
            );
            // The test harness prints around us, even on the same line.
            if let Some((_, words)) = line.split_once('@') {
                return words.split_whitespace().map(str::to_owned).collect();
            }
        }
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This test program, about to run the one test `name`.
pub(crate) fn this_test(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command
}

#[test]
fn entry() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    say("ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let numbers: Vec<u64> = words[1..].iter().filter_map(|w| w.parse().ok()).collect();
        say(&obey(words[0], &numbers, &words));
    }
    process::exit(0);
}

fn say(words: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "@{words}").unwrap();
    out.flush().unwrap();
}

#[expect(clippy::too_many_lines, reason = "a decoder: one arm for each command")]
fn obey(command: &str, n: &[u64], words: &[&str]) -> String {
    let fd = |at: usize| {
        // SAFETY: numbers of descriptors that this process opened and keeps open.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(n[at] as i32) }
    };
    match command {
        // anon LEN: private memory, readable and writable
        "anon" => map(n[0], "rw", None).to_string(),
        // anon-ro LEN
        "anon-ro" => map(n[0], "r", None).to_string(),
        // anon-none LEN: neither
        "anon-none" => map(n[0], "", None).to_string(),
        // share LEN: memory that forked children share, and no descriptor leads to
        "share" => share(n[0]).to_string(),
        // memfd LEN -> fd
        "memfd" => {
            let file = rustix::fs::memfd_create(
                c"memory",
                MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
            )
            .unwrap();
            rustix::fs::ftruncate(&file, n[0]).unwrap();
            file.into_raw_fd().to_string()
        }
        // map FD LEN PROT
        "map" => map(n[1], words[3], Some(n[0] as i32)).to_string(),
        // map-at ADDRESS FD LEN: shared, over what is there
        "map-at" => {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: over memory of an earlier command, which nothing refers to.
            unsafe { rustix::mm::mmap(n[0] as *mut _, n[2] as usize, prot, flags, fd(1), 0) }
                .unwrap();
            "done".into()
        }
        // reopen-ro FD -> fd
        "reopen-ro" => {
            let file = std::fs::File::open(format!("/proc/self/fd/{}", n[0])).unwrap();
            OwnedFd::from(file).into_raw_fd().to_string()
        }
        // seal FD: no more writing
        "seal" => {
            rustix::fs::fcntl_add_seals(fd(0), rustix::fs::SealFlags::WRITE).unwrap();
            "done".into()
        }
        // open PATH
        "open" => {
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(words[1])
                .unwrap();
            file.set_len(1 << 20).ok();
            OwnedFd::from(file).into_raw_fd().to_string()
        }
        "truncate" => {
            rustix::fs::ftruncate(fd(0), n[1]).unwrap();
            "done".into()
        }
        "close" => {
            // SAFETY: opened by an earlier command, used by none later.
            drop(unsafe { OwnedFd::from_raw_fd(n[0] as i32) });
            "done".into()
        }
        "identity" => {
            let stat = rustix::fs::fstat(fd(0)).unwrap();
            format!("{} {}", stat.st_dev, stat.st_ino)
        }
        "munmap" => {
            // SAFETY: mapped by an earlier command.
            unsafe { rustix::mm::munmap(n[0] as *mut _, n[1] as usize) }.unwrap();
            "done".into()
        }
        // fill ADDRESS LEN BYTE
        "fill" => {
            // SAFETY: mapped writable by an earlier command.
            unsafe { ptr::write_bytes(n[0] as *mut u8, n[2] as u8, n[1] as usize) };
            "done".into()
        }
        // count ADDRESS LEN BYTE: how many bytes are BYTE
        "count" => (0..n[1])
            // SAFETY: mapped by an earlier command.
            .filter(|at| unsafe { ptr::read_volatile((n[0] + at) as *const u8) } == n[2] as u8)
            .count()
            .to_string(),
        // eventfd START [nonblock]
        "eventfd" => {
            let mut flags = EventfdFlags::CLOEXEC;
            flags.set(EventfdFlags::NONBLOCK, words.len() > 2);
            let eventfd = rustix::event::eventfd(0, flags).unwrap();
            if n[0] > 0 {
                rustix::io::write(&eventfd, &n[0].to_ne_bytes()).unwrap();
            }
            eventfd.into_raw_fd().to_string()
        }
        // read FD: eight bytes
        "read" => {
            let mut value = [0; 8];
            assert_eq!(rustix::io::read(fd(0), &mut value), Ok(8));
            u64::from_ne_bytes(value).to_string()
        }
        // userfault LEN: private memory whose faults nobody answers
        "userfault" => match userfault(map(n[0], "rw", None), n[0]) {
            Ok(address) => address.to_string(),
            Err(errno) => format!("refused {errno}"),
        },
        // userfault-at ADDRESS LEN: as userfault, memory of an earlier command
        "userfault-at" => match userfault(n[0], n[1]) {
            Ok(address) => address.to_string(),
            Err(errno) => format!("refused {errno}"),
        },
        // silent-file PATH -> fd: a file whose server answers until told not to
        "silent-file" => match crate::silent::open(words[1]) {
            Ok(fd) => fd.to_string(),
            Err(error) => format!("refused {error}"),
        },
        "fall-silent" => {
            crate::silent::fall_silent();
            "done".into()
        }
        // map-private FD LEN
        "map-private" => map(n[1], "rwp", Some(n[0] as i32)).to_string(),
        // thread -> id of a second thread
        "thread" => {
            let (send, receive) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                send.send(rustix::thread::gettid().as_raw_nonzero())
                    .unwrap();
                loop {
                    std::thread::park();
                }
            });
            receive.recv().unwrap().to_string()
        }
        // vfork -> a child that shares our memory, as long as it is not killed
        "vfork" => clone(libc::CLONE_VM).to_string(),
        // fork -> a child with a copy of our memory
        "fork" => clone(0).to_string(),
        "exec" => {
            let error = this_test("child::entry").exec();
            panic!("{error}");
        }
        // crash: a fault that no copy makes, with the handlers installed
        "crash" => {
            ioasid_host::RecoveringCopy::get().unwrap();
            // SAFETY: none; it is meant to fault.
            unsafe { ptr::write_volatile(ptr::without_provenance_mut(8), 1_u8) };
            "survived".into()
        }
        "undumpable" => {
            // SAFETY: takes no pointer.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
            "done".into()
        }
        _ => panic!("unknown command {command}"),
    }
}

fn map(len: u64, prot: &str, fd: Option<i32>) -> u64 {
    let kind = if prot.contains('p') {
        MapFlags::PRIVATE
    } else {
        MapFlags::SHARED
    };
    let mut flags = ProtFlags::empty();
    flags.set(ProtFlags::READ, prot.contains('r'));
    flags.set(ProtFlags::WRITE, prot.contains('w'));
    // SAFETY: new mappings.
    let base = unsafe {
        match fd {
            None => {
                rustix::mm::mmap_anonymous(ptr::null_mut(), len as usize, flags, MapFlags::PRIVATE)
            }
            Some(fd) => {
                let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
                rustix::mm::mmap(ptr::null_mut(), len as usize, flags, kind, fd, 0)
            }
        }
    };
    base.unwrap() as u64
}

/// Lets nobody answer the faults of `len` bytes at `address`.
fn userfault(address: u64, len: u64) -> Result<u64, Errno> {
    // UFFDIO_API and UFFDIO_REGISTER of linux/userfaultfd.h.
    const API: libc::c_ulong = 0xc018_aa3f;
    const REGISTER: libc::c_ulong = 0xc020_aa00;
    // SAFETY: no flag of it makes faults of others our business.
    let uffd = unsafe { rustix::mm::userfaultfd(rustix::mm::UserfaultfdFlags::CLOEXEC) }?;
    let mut api = [0xaa_u64, 0, 0];
    let mut register = [address, len, 1, 0];
    // SAFETY: both structs have the size that the command names.
    unsafe {
        assert_eq!(libc::ioctl(uffd.as_raw_fd(), API, &raw mut api), 0);
        assert_eq!(
            libc::ioctl(uffd.as_raw_fd(), REGISTER, &raw mut register),
            0
        );
    }
    let _ = uffd.into_raw_fd();
    Ok(address)
}

fn share(len: u64) -> u64 {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping.
    let base = unsafe {
        rustix::mm::mmap_anonymous(ptr::null_mut(), len as usize, prot, MapFlags::SHARED)
    };
    base.unwrap() as u64
}

/// A process that only waits, with a copy of our memory or, after `vfork`, our memory itself. Gives
/// its id.
fn clone(flags: libc::c_int) -> i32 {
    extern "C" fn run(_: *mut libc::c_void) -> libc::c_int {
        // SAFETY: neither takes a pointer. It must not outlive us, whatever becomes of the test.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            loop {
                libc::pause();
            }
        }
    }
    let stack = map(64 << 10, "rw", None) + (64 << 10);
    // SAFETY: the stack is fresh and stays; the child only pauses.
    let id = unsafe { libc::clone(run, stack as *mut _, flags | libc::SIGCHLD, ptr::null_mut()) };
    assert!(id > 0, "{}", std::io::Error::last_os_error());
    id
}
