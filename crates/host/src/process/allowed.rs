//! Which memory of a process a device may be given: the rules of Linux for pages that are pinned
//! for long (`check_vma_flags` and `writable_file_mapping_allowed` in mm/gup.c, with
//! FOLL_LONGTERM).
//!
//! | mapping | read by devices | written by devices |
//! |---|---|---|
//! | any | the process can read it | the process can write it |
//! | registers, `[vvar]`: VM_IO or VM_PFNMAP | never | never |
//! | shared, of a file system that keeps track of dirty pages | yes | never |
//! | secretmem | never | never |
//! | a page behind the end of its file | never | never |
//!
//! What is not allowed is [`PinError::Fault`]. The kernel does not show all of this of another
//! process's mappings at the price of a look-up. So what is ordinary is recognised first, by the
//! device of the file, and only a mapping that is left over is looked up in `/proc/PID/smaps`.

use ioasid_core::{
    access::Prot,
    memory::{PAGE_SIZE, PinError},
    range::AddrRange,
};

use super::process::Process;
use crate::{memory::maps::Vma, system::filesystem::Filesystem};

/// The rules for memory of one process.
pub(super) struct Rules<'a> {
    pub(super) process: &'a Process,
    /// Whether VFIO's type 1 IOMMU pins, and not `/dev/iommu`.
    pub(super) type_1: bool,
}

impl Rules<'_> {
    /// Whether the process itself may do with `range` of `vma` what devices are to be allowed.
    pub(super) fn check_permission(
        &self,
        vma: &Vma,
        range: AddrRange,
        prot: Prot,
    ) -> Result<(), PinError> {
        // Who may write need not be able to read.
        let allowed = if prot.write {
            vma.writable
        } else {
            // /dev/iommu pins without a look at the mapping where the processor's page tables have
            // the page (`gup_fast`), and what can be written can be read there. Type 1 always
            // looks.
            vma.readable || (vma.writable && !self.type_1 && self.process.dir().is_present(range))
        };
        if allowed {
            Ok(())
        } else {
            Err(PinError::Fault)
        }
    }

    /// Whether `range` of `vma`, which has no file, is memory.
    pub(super) fn check_anonymous(&self, vma: &Vma, range: AddrRange) -> Result<(), PinError> {
        // The few mappings of the kernel's own cannot be written, which spares the rest the
        // question.
        if vma.writable {
            return Ok(());
        }
        let name = self.process.memory().name(range.start());
        // VM_IO and, in older kernels, VM_PFNMAP. The code in `[vdso]` is ordinary memory.
        let special = ["[vvar", "[uprobes]", "[vsyscall]"];
        if special.iter().any(|special| name.starts_with(special)) {
            return Err(PinError::Fault);
        }
        Ok(())
    }

    /// Whether `range` of `vma`, which has a file on `filesystem`, may be pinned.
    pub(super) fn check_file(
        &self,
        filesystem: Filesystem,
        vma: &Vma,
        range: AddrRange,
        prot: Prot,
    ) -> Result<(), PinError> {
        let written = prot.write && vma.shared;
        match filesystem {
            Filesystem::Other => return self.check_other(vma, written),
            Filesystem::Disk | Filesystem::Server if written => return Err(PinError::Fault),
            Filesystem::Server => return Ok(()),
            Filesystem::Memory | Filesystem::Ram | Filesystem::Disk => {}
        }
        // A file ends once: if the last page is there, so are those before it.
        let page = range.last() / PAGE_SIZE * PAGE_SIZE;
        if self.process.memory().read(page, &mut [0]).is_ok() || self.waits_for_a_handler(vma) {
            Ok(())
        } else {
            Err(PinError::Fault)
        }
    }

    /// Whether faults in `vma` are a userfaultfd handler's, for which Linux would wait: then it is
    /// not known here what is there.
    fn waits_for_a_handler(&self, vma: &Vma) -> bool {
        let details = self.process.dir().details(vma.range.start());
        details.is_some_and(|details| has_flag(&details, &["um", "ui"]))
    }

    /// Devices, objects of the kernel, file systems that the process does not see.
    fn check_other(&self, vma: &Vma, written: bool) -> Result<(), PinError> {
        let details = self.process.dir().details(vma.range.start());
        let details = details.ok_or(PinError::Fault)?;
        let name = details.lines().next().unwrap_or_default();
        let name = name.split_ascii_whitespace().nth(5).unwrap_or_default();
        let refused = has_flag(&details, &["io", "pf"])
            || name.starts_with("/secretmem")
            || (written && is_tracked(name));
        if refused {
            Err(PinError::Fault)
        } else {
            Ok(())
        }
    }
}

/// Whether the line `VmFlags` of `details` has one of `flags` (proc_pid_smaps(5)).
fn has_flag(details: &str, flags: &[&str]) -> bool {
    let line = details
        .lines()
        .find_map(|line| line.strip_prefix("VmFlags:"));
    line.is_some_and(|set| {
        set.split_ascii_whitespace()
            .any(|flag| flags.contains(&flag))
    })
}

/// Whether somebody keeps track of dirty pages of a file with this name, which is on no file system
/// that is known: a file does, a device node or an object of the kernel does not - but for those
/// whose `page_mkwrite` says so.
fn is_tracked(name: &str) -> bool {
    match name.strip_prefix('/') {
        Some(path) => !path.starts_with("dev/") && !path.starts_with("dmabuf:"),
        None => name == "anon_inode:[perf_event]",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_from_their_line_alone() {
        let details = "7f00-8f00 rw-s 00000000 00:10 33561 anon_inode:[io_uring]\n\
                       Size:  4 kB\nVmFlags: rd wr sh mr mw ms de pf ";
        assert!(has_flag(details, &["io", "pf"]));
        assert!(!has_flag(details, &["io"]));
        assert!(!has_flag("7f00-8f00 rw-s 00000000 00:10 1 pf", &["pf"]));
    }

    #[test]
    fn what_has_no_file_system_is_tracked_by_its_name() {
        for (name, tracked) in [
            ("anon_inode:[io_uring]", false),
            ("anon_inode:[perf_event]", true),
            ("socket:[4711]", false),
            ("/dev/zero", false),
            ("/dmabuf:", false),
            ("/sys/kernel/debug/x", true),
            ("/[aio]", true),
            ("/elsewhere/file", true),
        ] {
            assert_eq!(is_tracked(name), tracked, "{name}");
        }
    }
}
