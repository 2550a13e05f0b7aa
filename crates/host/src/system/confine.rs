//! Confines this process for good: no new privileges, and a seccomp filter that lets pass what a
//! server needs that has opened everything already.
//!
//! It may move bytes on descriptors that it has, take connections and descriptors that peers send,
//! map memory that is not executable, run threads, and end. It may not open or change a file, make
//! a socket, look at another process, execute, or gain anything. What is refused fails with EPERM
//! and does not end the process: it serves several peers, and a library that probes must not cost
//! them.
// UNSAFETY: the seccomp system call, which rustix does not have.
#![allow(unsafe_code)]

use std::io;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS,
};

/// x86-64 in `AUDIT_ARCH_*`.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Bit of the numbers of x32 calls (`__X32_SYSCALL_BIT`).
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The low half of argument `index`.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// Calls that pass whatever their arguments are.
const ALLOWED: &[libc::c_long] = &[
    // Bytes and descriptors, on what is open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // What a received descriptor is.
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    // Memory; `mmap` and `mprotect` are below.
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_brk,
    // Threads, time, signals to oneself, the end.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Calls that pass unless the memory is to be executable (argument 2 has `PROT_EXEC`).
const NOT_EXECUTABLE: [libc::c_long; 2] = [libc::SYS_mmap, libc::SYS_mprotect];

/// Operations of `prctl` that pass: names of threads and of memory.
const PRCTL: [u32; 2] = [libc::PR_SET_NAME as u32, libc::PR_SET_VMA as u32];

fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// The filter, instruction by instruction.
fn filter() -> Vec<libc::sock_filter> {
    const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
    const EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
    const ANY_BIT: u32 = BPF_JMP | BPF_JSET | BPF_K;
    const RETURN: u32 = BPF_RET | BPF_K;
    let allow = statement(RETURN, SECCOMP_RET_ALLOW);
    let refuse = statement(RETURN, SECCOMP_RET_ERRNO | libc::EPERM as u32);
    let mut code = vec![
        statement(LOAD, ARCH),
        jump(EQUAL, AUDIT_ARCH_X86_64, 1, 0),
        // Numbers mean something else there: nothing in this workspace makes such a call.
        statement(RETURN, SECCOMP_RET_KILL_PROCESS),
        statement(LOAD, NUMBER),
        jump(ANY_BIT, X32, 0, 1),
        refuse,
    ];
    for &number in ALLOWED {
        code.extend([jump(EQUAL, number as u32, 0, 1), allow]);
    }
    for number in NOT_EXECUTABLE {
        code.extend([
            jump(EQUAL, number as u32, 0, 4),
            statement(LOAD, argument(2)),
            jump(ANY_BIT, libc::PROT_EXEC as u32, 0, 1),
            refuse,
            allow,
        ]);
    }
    code.extend([
        jump(EQUAL, libc::SYS_prctl as u32, 0, 1 + 2 * PRCTL.len() as u8),
        statement(LOAD, argument(0)),
    ]);
    for operation in PRCTL {
        code.extend([jump(EQUAL, operation, 0, 1), allow]);
    }
    code.push(refuse);
    code
}

/// Confines this process, all threads of it, now and for ever.
///
/// # Errors
/// What the kernel says; nothing has changed then, except that no privileges can be gained.
pub fn confine() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let mut code = filter();
    let len = u16::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog {
        len,
        filter: code.as_mut_ptr(),
    };
    // SAFETY: `program` points to `len` instructions that live until the call returns; the kernel
    // copies and checks them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            std::ptr::from_ref(&program),
        )
    };
    match result {
        0 => Ok(()),
        // A thread, by its id, that has a filter of its own.
        1.. => Err(io::Error::other("a thread has another filter already")),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter returns for a call, computed as the kernel does.
    fn verdict(number: libc::c_long, arguments: [u64; 6]) -> u32 {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&(number as u32).to_ne_bytes());
        data[4..8].copy_from_slice(&AUDIT_ARCH_X86_64.to_ne_bytes());
        for (index, value) in arguments.iter().enumerate() {
            data[16 + 8 * index..][..8].copy_from_slice(&value.to_ne_bytes());
        }
        let code = filter();
        let (mut at, mut a) = (0, 0u32);
        loop {
            let instruction = code[at];
            at += 1;
            let (jt, jf) = (usize::from(instruction.jt), usize::from(instruction.jf));
            match u32::from(instruction.code) {
                c if c == BPF_LD | BPF_W | BPF_ABS => {
                    let bytes = &data[instruction.k as usize..][..4];
                    a = u32::from_ne_bytes(bytes.try_into().unwrap());
                }
                c if c == BPF_JMP | BPF_JEQ | BPF_K => {
                    at += if a == instruction.k { jt } else { jf };
                }
                c if c == BPF_JMP | BPF_JSET | BPF_K => {
                    at += if a & instruction.k != 0 { jt } else { jf };
                }
                _ => return instruction.k,
            }
        }
    }

    #[test]
    fn what_a_server_needs_passes_and_what_opens_does_not() {
        let refused = SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for number in [libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_exit_group] {
            assert_eq!(verdict(number, [0; 6]), SECCOMP_RET_ALLOW);
        }
        let outside = [
            libc::SYS_openat,
            libc::SYS_open,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_execve,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_unlink,
            libc::SYS_kill,
            libc::SYS_ioctl,
            libc::SYS_bpf,
            libc::SYS_recvmsg | i64::from(X32),
        ];
        for number in outside {
            assert_eq!(verdict(number, [0; 6]), refused, "{number}");
        }
    }

    #[test]
    fn memory_is_never_executable_and_prctl_only_names() {
        let refused = SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for number in NOT_EXECUTABLE {
            let plain = (libc::PROT_READ | libc::PROT_WRITE) as u64;
            assert_eq!(verdict(number, [0, 0, plain, 0, 0, 0]), SECCOMP_RET_ALLOW);
            let code = (libc::PROT_READ | libc::PROT_EXEC) as u64;
            assert_eq!(verdict(number, [0, 0, code, 0, 0, 0]), refused);
        }
        let operation = |operation: i32| [operation as u64, 0, 0, 0, 0, 0];
        let name = operation(libc::PR_SET_NAME);
        assert_eq!(verdict(libc::SYS_prctl, name), SECCOMP_RET_ALLOW);
        let dumpable = operation(libc::PR_SET_DUMPABLE);
        assert_eq!(verdict(libc::SYS_prctl, dumpable), refused);
    }
}
