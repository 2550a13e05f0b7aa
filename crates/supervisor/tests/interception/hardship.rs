//! Programs that make it hard: signals, filters of their own, shared and closed memory, other ABIs.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::FileExt,
    },
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use crate::{
    check::{ensure, ensure_eq},
    client::{Check, Client, IOAS_ALLOC, alloc, destroy, errno, iommu, vfio},
    confined,
};

pub(crate) const CLIENTS: &[Client] = &[
    ("agent-questions", agent_questions),
    ("storm", || storm(libc::SA_RESTART)),
    ("storm-without-restart", || storm(0)),
    ("vfork", vfork),
    ("filtered", filtered),
    ("not-dumpable", not_dumpable),
    ("i386", i386),
    ("daemon", daemon),
    ("threads-come-and-go", threads_come_and_go),
    ("numbers-are-reused", numbers_are_reused),
];

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Under 5000 signals a second there are as many objects as calls that succeeded, and all succeed
/// if the handler restarts calls.
fn storm(flags: libc::c_int) -> Check {
    let count: u32 = std::env::var("IOASID_STORM").map_or(Ok(5000), |n| n.parse())?;
    let handler: extern "C" fn(libc::c_int) = count_signal;
    // SAFETY: the handler only counts.
    let target = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = flags;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        libc::pthread_self()
    };
    let file = iommu()?;
    let done = AtomicBool::new(false);
    let mut tried = 0u32;
    let made = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                // SAFETY: the thread lives until `done` is seen.
                unsafe { libc::pthread_kill(target, libc::SIGUSR1) };
                thread::sleep(Duration::from_micros(150));
            }
        });
        let mut made = 0;
        // As many as it takes on a machine whose other threads seldom run.
        let enough = || SIGNALS.load(Ordering::Relaxed) > 100;
        let calls = (0..).take_while(|call| *call < count || !enough());
        let result = calls
            .inspect(|_| tried += 1)
            .try_for_each(|_| match alloc(&file) {
                Ok(id) => {
                    made += 1;
                    if id == made {
                        Ok(())
                    } else {
                        Err(io::ErrorKind::InvalidData.into())
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                Err(error) => Err(error),
            });
        done.store(true, Ordering::Release);
        result.map(|()| made)
    })?;
    // The library in the program makes an interrupted call again.
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let never = flags != 0 || maps.contains("libioasid-mmio");
    println!("{} of {tried} calls interrupted", tried - made);
    ensure!(!never || made == tried);
    let next = loop {
        match alloc(&file) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    ensure_eq!(next, made + 1);
    Ok(())
}

/// A child that borrows its parent's memory until it ends or calls `exec`.
fn vfork() -> Check {
    extern "C" fn child(file: *mut libc::c_void) -> libc::c_int {
        let fd = *unsafe {
            // SAFETY: the parent waits, and its number lives as long.
            &*file.cast::<libc::c_int>()
        };
        for _ in 0..3 {
            let mut argument = [12u32, 0, 0];
            // SAFETY: the structure that the request names.
            if unsafe { libc::ioctl(fd, IOAS_ALLOC as _, argument.as_mut_ptr()) } != 0 {
                return 1;
            }
        }
        let path = c"/bin/true".as_ptr();
        let words = [path, std::ptr::null()];
        // SAFETY: words that end with 0, in a list that does.
        unsafe { libc::execv(path, words.as_ptr()) };
        2
    }
    let file = iommu()?;
    let mut fd = file.as_raw_fd();
    ensure_eq!(alloc(&file)?, 1);
    for round in 0..3 {
        let mut stack = vec![0u8; 64 << 10];
        let mut status = 0;
        // SAFETY: the child has a stack of its own, and we wait until it has left our memory.
        unsafe {
            let top = stack.as_mut_ptr().add(stack.len()).cast();
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            let pid = libc::clone(child, top, flags, (&raw mut fd).cast());
            ensure!(pid > 0);
            libc::waitpid(pid, &mut status, 0);
        }
        ensure_eq!(status, 0);
        ensure_eq!(alloc(&file)?, 5 + 4 * round);
    }
    Ok(())
}

/// A program with a filter of its own.
fn filtered() -> Check {
    let before = iommu()?;
    ensure_eq!(alloc(&before)?, 1);
    // SAFETY: takes no pointer.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    confined::refuse(&[libc::SYS_ptrace, libc::SYS_process_vm_readv])?;
    ensure_eq!(alloc(&before)?, 2);
    let after = iommu()?;
    ensure_eq!(alloc(&after)?, 1);
    ensure!(vfio()?.metadata().is_ok());
    Ok(())
}

/// A program that nobody may look into is refused as if there were nothing: its open finds what
/// stands in for the node, or no node. Prints what it got.
fn not_dumpable() -> Check {
    // SAFETY: takes no pointer.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    let error = match iommu() {
        Ok(file) => errno(alloc(&file)),
        Err(error) => error.raw_os_error().unwrap_or(0),
    };
    println!("{error}");
    Ok(())
}

/// The calls of the 32-bit ABI are not answered.
#[cfg(target_arch = "x86_64")]
fn i386() -> Check {
    let file = iommu()?;
    ensure_eq!(alloc(&file)?, 1);
    // `ioctl` is number 54 there. The memory must lie where 32 bits reach it, so there is none.
    let result: i32;
    // SAFETY: a system call with numbers only; it changes no memory and keeps all registers.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "mov ebx, {fd:e}",
            "int 0x80",
            "pop rbx",
            fd = in(reg) file.as_raw_fd(),
            inlateout("eax") 54 => result,
            in("ecx") IOAS_ALLOC as u32,
            in("edx") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // A kernel without that ABI ends the program with a signal, and the claim says so.
    ensure_eq!(result, -libc::ENOTTY);
    ensure_eq!(alloc(&file)?, 2);
    Ok(())
}

/// Ends at once and leaves a daemon behind, which works with our files and writes what it found to
/// the file that RESULT names.
fn daemon() -> Check {
    let result = std::env::var("RESULT")?;
    let inherited = iommu()?;
    ensure_eq!(alloc(&inherited)?, 1);
    // SAFETY: one thread; the children go on as this program.
    unsafe {
        if libc::fork() != 0 {
            return Ok(());
        }
        libc::setsid();
        if libc::fork() != 0 {
            libc::_exit(0);
        }
        // Its first parent's pipes are not to be kept open.
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        for fd in 0..3 {
            libc::dup2(null, fd);
        }
    }
    // Orphaned for certain before it asks.
    while rustix::process::getppid().is_some_and(|p| p.as_raw_pid() > 1)
        && !Path::new(&result).with_extension("go").exists()
    {
        thread::sleep(Duration::from_millis(5));
    }
    while !Path::new(&result).with_extension("go").exists() {
        thread::sleep(Duration::from_millis(5));
    }
    let found = [
        alloc(&inherited).unwrap_or(0),
        iommu().and_then(|file| alloc(&file)).unwrap_or(0),
    ];
    fs::write(
        Path::new(&result).with_extension("tmp"),
        format!("{found:?}"),
    )?;
    fs::rename(Path::new(&result).with_extension("tmp"), &result)?;
    Ok(())
}

/// Thread numbers come and go, and are used again by other processes.
fn threads_come_and_go() -> Check {
    let file = iommu()?;
    let mut made = 0;
    for _ in 0..100 {
        let ids: Vec<u32> = thread::scope(|scope| {
            let work = || alloc(&file).unwrap();
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        made += ids.len() as u32;
        ensure_eq!(ids.iter().copied().max(), Some(made));
        // SAFETY: the child makes system calls only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let own = iommu().and_then(|own| alloc(&own));
            // SAFETY: ends the child without its parent's destructors.
            unsafe { libc::_exit(i32::from(own.ok() != Some(1))) };
        }
        let mut status = 0;
        // SAFETY: waits for the child just made.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        ensure_eq!(status, 0);
    }
    Ok(())
}

/// A number stands for what is open there now, however it got there.
fn numbers_are_reused() -> Check {
    let (a, b) = (iommu()?, iommu()?);
    for _ in 0..3 {
        alloc(&a)?;
    }
    ensure_eq!(alloc(&b)?, 1);
    // SAFETY: the numbers are ours.
    unsafe {
        // Another file of ours, then one of the host's, then none.
        let number = libc::dup(a.as_raw_fd());
        ensure_eq!(alloc(&number)?, 4);
        ensure_eq!(libc::dup2(b.as_raw_fd(), number), number);
        ensure_eq!(alloc(&number)?, 2);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
        ensure_eq!(libc::dup3(null, number, libc::O_CLOEXEC), number);
        ensure_eq!(errno(alloc(&number)), libc::ENOTTY);
        ensure_eq!(libc::dup2(a.as_raw_fd(), number), number);
        ensure_eq!(alloc(&number)?, 5);
        ensure_eq!(libc::syscall(libc::SYS_close_range, number, number, 0), 0);
        ensure_eq!(errno(alloc(&number)), libc::EBADF);
        // Closed by one thread and used by another.
        for round in 0..200 {
            let number = libc::dup(b.as_raw_fd());
            alloc(&number)?;
            thread::spawn(move || libc::close(number))
                .join()
                .map_err(|_| "join")?;
            let again = libc::dup(a.as_raw_fd());
            ensure_eq!(again, number);
            ensure_eq!(alloc(&again)?, 6 + round);
            libc::close(again);
        }
    }
    ensure_eq!(errno(destroy(&b, 500)), libc::ENOENT);
    Ok(())
}

/// What the library in a program asks about its agent, asked by whoever likes.
fn agent_questions() -> Check {
    const ERRANDS: u64 = 7;
    const AGENT: u64 = 8;
    let ask = |kind: u64| {
        let (request, shape) = (0x3bfd_u64, kind | 1 << 8);
        // SAFETY: no descriptor, and no pointer that is not null.
        let ret = unsafe { libc::syscall(libc::SYS_ioctl, -1, request, 0, shape, 0, 0) };
        match ret {
            0.. => Ok(ret as i32),
            _ => Err(io::Error::last_os_error()),
        }
    };
    ensure_eq!(errno(ask(AGENT)), libc::ENOENT);
    let page = ask(ERRANDS)?;
    ensure_eq!(errno(ask(ERRANDS)), libc::EBUSY);
    // Spoilt from the start, and not to be made smaller or larger.
    // SAFETY: the descriptor is ours from now on.
    let page = unsafe { File::from_raw_fd(page) };
    ensure_eq!(errno(page.set_len(0)), libc::EPERM);
    page.write_all_at(&[0xff; 4096], 0)?;
    // Nobody is its own agent, and one that ends at once is none.
    ensure_eq!(errno(ask(AGENT)), libc::ENOENT);
    for _ in 0..3 {
        // SAFETY: the child makes system calls only.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = match (ask(AGENT), errno(ask(AGENT))) {
                (Ok(0), libc::EBUSY) => 0,
                _ => 1,
            };
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        let mut status = 1;
        // SAFETY: a live local.
        ensure_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        ensure_eq!(status, 0);
    }
    Ok(())
}
