//! `mount` of a sysfs on `/sys`: what is mounted shows the machine's devices, too.

use rustix::io::Errno as HostErrno;

use crate::{
    launch::remount::{self, Outcome as Mounted},
    session::{
        answer::{Answer, Outcome, Pending},
        paths::lookup,
        state::State,
    },
};

/// Flags of calls that mount nothing new (include/uapi/linux/mount.h).
const CHANGES: u64 = libc::MS_REMOUNT
    | libc::MS_BIND
    | libc::MS_MOVE
    | libc::MS_SHARED
    | libc::MS_PRIVATE
    | libc::MS_SLAVE
    | libc::MS_UNBINDABLE;

/// `CAP_SYS_ADMIN` in the sets of `/proc/PID/status`.
const SYS_ADMIN: u64 = 1 << 21;

/// A mount on `/sys` itself; any other is the kernel's.
pub(crate) fn mount(
    state: &mut State,
    call: Pending<'_>,
    [source, target, filesystem]: [u64; 3],
    flags: u64,
) -> Outcome {
    if !state.paths.has_sys() || flags & CHANGES != 0 || filesystem == 0 {
        return Ok(Answer::Proceed);
    }
    let text = |address| lookup::read_path(call.process, address)?.into_string().ok();
    let is_sysfs = text(filesystem).as_deref() == Some("sysfs")
        && text(target).is_some_and(|path| path.trim_end_matches('/') == "/sys");
    // Without the right to mount, the kernel says no.
    if !is_sysfs || !may_mount(call.tid) {
        return Ok(Answer::Proceed);
    }
    let source = text(source).unwrap_or_else(|| "sysfs".to_owned());
    let flags = flags as u32;
    let entries = state.paths.sysfs();
    match remount::mount_sysfs(call.tid, source, flags, entries) {
        Ok(Mounted::Done(device)) => {
            state.paths.add_sys(device);
            Ok(Answer::Value(0))
        }
        Ok(Mounted::Bare(reason)) => {
            tracing::warn!(
                program = %state.program.name,
                reason,
                "a sysfs that a program has mounted shows none of the machine's devices"
            );
            Ok(Answer::Value(0))
        }
        Ok(Mounted::Refused(errno)) => Ok(Answer::Fails(HostErrno::from_raw_os_error(errno))),
        Err(error) => {
            tracing::warn!(
                program = %state.program.name,
                %error,
                "a sysfs that a program mounts will show none of the machine's devices"
            );
            Ok(Answer::Proceed)
        }
    }
}

fn may_mount(tid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status"));
    let effective = status.ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    effective.is_some_and(|set| set & SYS_ADMIN != 0)
}
