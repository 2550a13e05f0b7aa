//! A file that never answers: FUSE, served by a process of its own, which has this test's user. The
//! mount is one file, in a mount namespace of that process.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    mount::MountFlags,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
    process::Signal,
};

/// What is said to the server. It answers with the number of requests that wait.
const LOOK: u8 = 0;
const ANSWER: u8 = 1;
const HANG: u8 = 2;

/// Where the process that serves the file is to connect to.
const SOCKET: &str = "IOASID_HANGING_FILE";

/// A file whose server answers nothing. Dropping it ends the server, and then those that wait for it.
///
/// No process can be started while it is open: what is closed before `exec` waits as well.
pub struct Hanging {
    pub fd: Arc<OwnedFd>,
    process: Child,
    socket: UnixStream,
}

impl Hanging {
    /// `test` is the full name of a test that calls [`serve`]. `None` if this host has no FUSE for us.
    pub fn open(test: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let root = rustix::process::geteuid().is_root();
        let mut process = Command::new("unshare")
            .arg(if root { "-m" } else { "-Urm" })
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--test-threads=1"])
            .env(SOCKET, &path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        // It connects, or ends.
        let ended = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(&process),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap();
        let mut fds = [
            PollFd::new(&listener, PollFlags::IN),
            PollFd::new(&ended, PollFlags::IN),
        ];
        poll(&mut fds, None).unwrap();
        let [connected, _] = fds;
        if connected.revents().is_empty() {
            process.wait().unwrap();
            return None;
        }
        let (socket, _) = listener.accept().unwrap();
        let Some(fd) = take(&socket) else {
            process.wait().unwrap();
            return None;
        };
        let mut hanging = Hanging {
            fd: Arc::new(fd),
            process,
            socket,
        };
        // The other side has closed its own.
        hanging.socket.read_exact(&mut [0]).unwrap();
        hanging.set_answering(false);
        Some(hanging)
    }

    /// How many requests wait for the server: those that it has read, and not answered.
    pub fn waiting(&mut self) -> usize {
        self.ask(LOOK)
    }

    /// From now on it answers, also those that wait already; or it does not.
    pub fn set_answering(&mut self, answering: bool) {
        self.ask(if answering { ANSWER } else { HANG });
    }

    fn ask(&mut self, what: u8) -> usize {
        self.socket.write_all(&[what]).unwrap();
        let mut count = [0; 8];
        self.socket.read_exact(&mut count).unwrap();
        usize::from_ne_bytes(count)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // Its end is the end of the file system: all that wait learn of it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn take(socket: &UnixStream) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// What the process of [`Hanging`] does; nothing in any other.
pub fn serve() {
    if let Some(path) = std::env::var_os(SOCKET) {
        // The thread of the test that started it may end without a word, and leave threads that wait.
        let killed = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        killed.unwrap();
        // Where it cannot be had the connection ends without a file.
        let mut socket = UnixStream::connect(path).unwrap();
        let served = mount().and_then(|(device, target)| answer(device, &target, &mut socket));
        std::process::exit(i32::from(served.is_err()));
    }
}

fn mount() -> io::Result<(File, tempfile::NamedTempFile)> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let target = tempfile::NamedTempFile::new()?;
    let options = format!(
        "fd={},rootmode=100666,user_id={},group_id={}",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let options = std::ffi::CString::new(options)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("hanging", target.path(), "fuse", flags, options.as_c_str())?;
    Ok((device, target))
}

/// Has a thread open the file and send it; then does what is said. Ends with the test.
fn answer(
    mut device: File,
    target: &tempfile::NamedTempFile,
    socket: &mut UnixStream,
) -> io::Result<()> {
    let path = target.path().to_owned();
    let sender = socket.try_clone()?;
    std::thread::spawn(move || open_and_send(&path, &sender));
    let mut answering = true;
    let mut waiting: Vec<Vec<u8>> = Vec::new();
    let mut request = vec![0; 1 << 20];
    loop {
        let mut fds = [
            PollFd::new(&device, PollFlags::IN),
            PollFd::new(&*socket, PollFlags::IN),
        ];
        poll(&mut fds, None)?;
        let (asked, ordered) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if asked {
            let len = device.read(&mut request)?;
            waiting.push(request[..len.min(64)].to_vec());
        }
        if ordered {
            let mut what = [0];
            socket.read_exact(&mut what)?;
            answering = what == [ANSWER] || answering && what != [HANG];
        }
        for request in waiting.extract_if(.., |request| answering || is_news(request)) {
            reply(&mut device, &request)?;
        }
        if ordered {
            socket.write_all(&waiting.len().to_ne_bytes())?;
        }
    }
}

/// The file is closed here again while that is still answered: a process that holds it could not end.
fn open_and_send(path: &Path, socket: &UnixStream) {
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let fds = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let parts = [IoSlice::new(&[0])];
    sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL).unwrap();
    drop(file);
    (&*socket).write_all(&[0]).unwrap();
}

// Requests of linux/fuse.h.
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;

fn word(request: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(request[at..at + 4].try_into().unwrap())
}

/// Whether nobody waits for an answer.
fn is_news(request: &[u8]) -> bool {
    matches!(word(request, 4), FORGET | INTERRUPT | RELEASE)
}

fn reply(device: &mut File, request: &[u8]) -> io::Result<()> {
    let body = match word(request, 4) {
        INIT => {
            let mut body = vec![0; 64];
            body[..4].copy_from_slice(&7_u32.to_ne_bytes());
            body[4..8].copy_from_slice(&31_u32.to_ne_bytes());
            body[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
            body
        }
        OPEN => vec![0; 16],
        GETATTR => {
            // Valid for no time, so that every look asks again.
            let mut body = vec![0; 16 + 88];
            body[16..24].copy_from_slice(&1_u64.to_ne_bytes());
            body[24..32].copy_from_slice(&(1_u64 << 20).to_ne_bytes());
            body[16 + 60..][..4].copy_from_slice(&0o100_666_u32.to_ne_bytes());
            body[16 + 64..][..4].copy_from_slice(&1_u32.to_ne_bytes());
            body
        }
        FORGET | INTERRUPT => return Ok(()),
        _ => Vec::new(),
    };
    let mut answer = Vec::new();
    answer.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
    answer.extend_from_slice(&[0; 4]);
    answer.extend_from_slice(&request[8..16]);
    answer.extend_from_slice(&body);
    // Its asker may have ended meanwhile.
    match device.write_all(&answer) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
