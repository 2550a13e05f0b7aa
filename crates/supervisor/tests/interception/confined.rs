//! A host that gives no namespaces, as a container or a hardened distribution: the calls that make
//! and fill them fail.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

/// `part:confined PART ...`: that part of this executable, on such a host.
pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    if let Err(error) = refuse(&[libc::SYS_unshare, libc::SYS_setns, libc::SYS_mount]) {
        eprintln!("cannot play a host without namespaces: {error}");
        return ExitCode::from(125);
    }
    let error = Command::new(std::env::current_exe().unwrap())
        .args(words)
        .exec();
    eprintln!("{error}");
    ExitCode::from(125)
}

/// Makes these calls fail with EPERM, in this process and all that come of it.
pub(crate) fn refuse(calls: &[libc::c_long]) -> io::Result<()> {
    let op = |code: u32, jt: usize, k: u32| libc::sock_filter {
        code: code as u16,
        jt: jt as u8,
        jf: 0,
        k,
    };
    let mut code = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (index, call) in calls.iter().enumerate() {
        let to_refusal = calls.len() - index;
        let test = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        code.push(op(test, to_refusal, *call as u32));
    }
    let ret = libc::BPF_RET | libc::BPF_K;
    code.push(op(ret, 0, libc::SECCOMP_RET_ALLOW));
    code.push(op(ret, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    let program = libc::sock_fprog {
        len: code.len() as u16,
        filter: code.as_mut_ptr(),
    };
    // SAFETY: the filter lives until the call returns; nothing else is passed by pointer. Without
    // no_new_privs only root may do this, and a claim about privileges must not set it for root.
    unsafe {
        if rustix::process::geteuid().as_raw() != 0 {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        }
        let mode = libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER);
        match libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
