//! A file whose server stops answering: FUSE, served by a thread of the child itself. The mount is
//! one file, in a mount namespace of the thread that makes it.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, IntoRawFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{Mode, OFlags},
    mount::MountFlags,
    thread::UnshareFlags,
};

/// From now on nothing is answered.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Mounts the file over the existing file `target` and opens it for reading and writing.
pub(crate) fn open(target: &str) -> io::Result<i32> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    // SAFETY: this thread has no file system state that another one counts on.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    )?;
    let options = format!(
        "fd={},rootmode=100666,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount(
        "silent",
        target,
        "fuse",
        MountFlags::NOSUID,
        options.as_c_str(),
    )?;
    std::thread::spawn(move || serve(device));
    let file = |target: &Path| -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(
            target,
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    };
    // The first close teaches the kernel not to ask about closing: else this process, which is
    // client and server in one, could not be killed.
    drop(file(Path::new(target))?);
    // And a look teaches it the size, without which every page lies beyond the end.
    std::fs::metadata(target)?;
    Ok(file(Path::new(target))?.into_raw_fd())
}

pub(crate) fn fall_silent() {
    SILENT.store(true, Ordering::SeqCst);
}

/// Requests and answers of linux/fuse.h, as far as one file needs them.
fn serve(mut device: File) {
    const GETATTR: u32 = 3;
    const OPEN: u32 = 14;
    const RELEASE: u32 = 18;
    const INIT: u32 = 26;
    const ENOSYS: i32 = 38;
    let mut request = vec![0; 1 << 20];
    while let Ok(len) = device.read(&mut request) {
        assert!(len >= 40);
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let unique = request[8..16].to_vec();
        if SILENT.load(Ordering::SeqCst) {
            continue;
        }
        let (error, body) = match word(4) {
            INIT => {
                let mut body = vec![0; 64];
                body[..4].copy_from_slice(&7_u32.to_ne_bytes());
                body[4..8].copy_from_slice(&31_u32.to_ne_bytes());
                body[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
                (0, body)
            }
            GETATTR => {
                // Valid for no time, so that every look asks again.
                let mut body = vec![0; 16 + 88];
                body[16..24].copy_from_slice(&1_u64.to_ne_bytes());
                body[24..32].copy_from_slice(&(1_u64 << 20).to_ne_bytes());
                body[16 + 60..][..4].copy_from_slice(&0o100_666_u32.to_ne_bytes());
                body[16 + 64..][..4].copy_from_slice(&1_u32.to_ne_bytes());
                (0, body)
            }
            OPEN => (0, vec![0; 16]),
            RELEASE => (0, Vec::new()),
            _ => (-ENOSYS, Vec::new()),
        };
        let mut answer = Vec::new();
        answer.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
        answer.extend_from_slice(&i32::to_ne_bytes(error));
        answer.extend_from_slice(&unique);
        answer.extend_from_slice(&body);
        if device.write_all(&answer).is_err() {
            return;
        }
    }
}
