//! Files of a program's `/sys` that are kept current: configuration space, and what follows it.
//!
//! Such a file is an ordinary one, so a read of it is not trapped, on whatever descriptor. It is
//! written anew when the function is changed, before the call that asked for the change is
//! answered: by this session, another one or a server of virtual machines. The files are opened
//! before the program runs, so nothing that the program does to its `/sys` leads elsewhere.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::{Arc, Mutex, PoisonError, Weak},
};

use ioasid_vfio::pci::FunctionWatch;
use rustix::fs::{AtFlags, statat};

use crate::{
    session::identity::Identity,
    view::{LiveFile, SysfsEntry, SysfsKind},
};

/// The files of one program tree.
#[derive(Debug, Default)]
pub(crate) struct Current {
    /// They were looked for.
    attached: bool,
    kept: Vec<Arc<Kept>>,
    /// Files that stand for the memory of a BAR, which is not in them.
    bars: Vec<Identity>,
    /// That they cannot be mapped was logged.
    reported: bool,
}

/// One file.
#[derive(Debug)]
struct Kept {
    source: LiveFile,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    file: File,
    bytes: Vec<u8>,
}

impl FunctionWatch for Kept {
    fn changed(&self) {
        // Held while the source is read, so that the last to write has read the newest.
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.source.read();
        if bytes == written.bytes {
            return;
        }
        let result = written.file.write_all_at(&bytes, 0).and_then(|()| {
            if bytes.len() < written.bytes.len() {
                written.file.set_len(bytes.len() as u64)?;
            }
            Ok(())
        });
        match result {
            Ok(()) => written.bytes = bytes,
            Err(error) => {
                let path = self.source.path();
                tracing::warn!(path, %error, "an entry of a program's /sys is not current");
            }
        }
    }
}

impl Current {
    /// Whether the files were looked for.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached
    }

    /// They were, in vain.
    pub(crate) fn give_up(&mut self) {
        self.attached = true;
    }

    /// Looks for `files` below `sys`, which has `entries`, and keeps them current from here on.
    /// `open` opens one to write it.
    pub(crate) fn attach(
        &mut self,
        sys: &OwnedFd,
        files: Vec<LiveFile>,
        entries: &[SysfsEntry],
        open: impl Fn(&OwnedFd, &str) -> io::Result<OwnedFd>,
    ) {
        self.attached = true;
        self.kept.clear();
        for source in files {
            let file = match open(sys, source.path()) {
                Ok(file) => File::from(file),
                Err(error) => {
                    let path = source.path();
                    tracing::debug!(path, %error, "an entry cannot be kept current");
                    continue;
                }
            };
            let written = Mutex::new(Written {
                file,
                bytes: Vec::new(),
            });
            let kept = Arc::new(Kept { source, written });
            let watcher: Weak<Kept> = Arc::downgrade(&kept);
            kept.source.watch(watcher);
            // It may have changed since it was described.
            kept.changed();
            self.kept.push(kept);
        }
        let bars = entries.iter().filter(|entry| stands_for_memory(entry));
        let bars = bars.filter_map(|entry| {
            let stat = statat(sys.as_fd(), entry.path.as_str(), AtFlags::SYMLINK_NOFOLLOW);
            stat.ok().map(|stat| (stat.st_dev, stat.st_ino))
        });
        self.bars = bars.collect();
    }

    /// Whether the file stands for memory that is not in it. That it cannot be mapped is logged
    /// once.
    pub(crate) fn is_bar(&mut self, identity: Identity) -> bool {
        let is_bar = self.bars.contains(&identity);
        if is_bar && !std::mem::replace(&mut self.reported, true) {
            tracing::warn!(
                "resourceN of a function cannot be mapped: a BAR is mapped through the device's VFIO file"
            );
        }
        is_bar
    }
}

/// Whether more is said to be in a file than is.
fn stands_for_memory(entry: &SysfsEntry) -> bool {
    matches!(&entry.kind, SysfsKind::File(file) if file.size > 0)
}
