//! The memory files behind descriptors of the machine.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::{
    fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
};

use crate::wire::NodeName;

/// An empty memory file that can be sealed.
pub(crate) fn memfd(name: &str) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // A host with vm.memfd_noexec=2 wants the flag; a kernel before 6.3 does not know it.
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => Ok(memfd_create(name, flags)?),
        other => Ok(other?),
    }
}

/// A file for an open of `node` with `flags`, reopened: its last close is reported by inotify.
pub(crate) fn reopened_memfd(node: &NodeName, flags: OFlags) -> io::Result<OwnedFd> {
    let name = match node {
        NodeName::Iommu => "iommu",
        NodeName::Container => "vfio-container",
        NodeName::Group(_) => "vfio-group",
        NodeName::Device(name) => name.as_str(),
    };
    let memfd = memfd(name)?;
    let seals = match node {
        NodeName::Iommu => SealFlags::SHRINK,
        _ => SealFlags::GROW | SealFlags::SHRINK,
    };
    fcntl_add_seals(&memfd, seals | SealFlags::SEAL)?;
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let file = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use rustix::fs::inotify;

    use super::*;

    /// An object without a machine cannot be made, so this tests the file behind it.
    #[test]
    fn the_last_close_is_seen_at_once_and_a_dup_holds_it_open() {
        let inotify =
            inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        let file = reopened_memfd(&NodeName::Iommu, OFlags::RDWR).unwrap();
        inotify::add_watch(
            &inotify,
            format!("/proc/self/fd/{}", file.as_raw_fd()),
            inotify::WatchFlags::CLOSE_WRITE,
        )
        .unwrap();
        let closed = || {
            let mut buffer = [MaybeUninit::uninit(); 256];
            inotify::Reader::new(&inotify, &mut buffer).next().is_ok()
        };
        let duplicate = file.try_clone().unwrap();
        drop(file);
        assert!(!closed());
        drop(duplicate);
        assert!(closed());
    }

    #[test]
    fn a_write_past_the_filter_is_refused() {
        let file = reopened_memfd(&NodeName::Device("vfio0".to_owned()), OFlags::RDWR).unwrap();
        assert_eq!(rustix::io::pwrite(&file, b"x", 0), Err(Errno::PERM));
    }
}
