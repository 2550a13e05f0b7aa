//! `mmap` of files of ours.
//!
//! The registers of a device: the kernel maps the memfd behind the descriptor, in which nothing is, past
//! its end, so that every access raises a signal ([`super::mmio`]).
//!
//! What a virtual IOMMU shares with the owner of a `/dev/iommu` file: the kernel maps the memfd
//! likewise, into which the bytes are put first. Whether the mapping is still there is seen in the maps of the processes, when somebody
//! wants to destroy the virtual IOMMU: it cannot go before.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    sync::Arc,
};

use ioasid_host::Process;
use ioasid_iommufd::{Mapped, MmapRequest};
use ioasid_uapi::Errno;
use ioasid_vfio::MapRequest;

use super::{
    Server,
    calls::{Answer, Outcome},
    files::{Identity, Object, OpenFile},
};
use crate::listener::Request;

/// A part of a file that a program has mapped, or is about to.
#[derive(Debug)]
pub(super) struct Mapping {
    file: Identity,
    offset: u64,
    len: u64,
    _held: Mapped,
}

impl Server {
    pub(super) fn mmap(&mut self, request: &Request, process: &Arc<Process>) -> Outcome {
        let [_, len, prot, flags, fd, offset] = request.args;
        let Some(found) = self.identity(process, fd) else {
            return Ok(Answer::Proceed);
        };
        let Some(identity) = self.bound_as(request, process, fd, found)? else {
            // As on a kernel that is locked down.
            return match self.current.is_bar(found) {
                true => Err(Errno::EPERM),
                false => Ok(Answer::Proceed),
            };
        };
        let file = self.files.get(identity);
        if let Some(file) = file {
            let stores = is_shared(flags) && prot & libc::PROT_WRITE as u64 != 0;
            if !file.is_readable() || (stores && !file.is_writable()) {
                return Err(Errno::EACCES);
            }
        }
        let writable = file.is_some_and(OpenFile::is_writable);
        match file.map(|file| &file.object) {
            None => Ok(Answer::Proceed),
            Some(
                Object::Container(_)
                | Object::Group(_)
                | Object::Event(_)
                | Object::FailNth(_)
                | Object::Attribute(_),
            ) => Err(Errno::ENODEV),
            Some(Object::Device(device)) => {
                let device = Arc::clone(device);
                device.mmap_check(MapRequest {
                    offset,
                    len,
                    shared: is_shared(flags),
                    writable,
                })?;
                self.traps.prepare(process, identity, &device)?;
                Ok(Answer::Proceed)
            }
            Some(Object::Iommufd(context)) => {
                let context = Arc::clone(context);
                let wanted = MmapRequest {
                    offset,
                    len,
                    shared: is_shared(flags),
                    executable: prot & libc::PROT_EXEC as u64 != 0,
                };
                let held = context.mmap(wanted)?;
                self.fill(process, fd, identity, offset, &held)?;
                self.mappings.push(Mapping {
                    file: identity,
                    offset,
                    len,
                    _held: held,
                });
                Ok(Answer::Proceed)
            }
        }
    }

    /// Puts the bytes where the kernel will map them, unless they are there already.
    fn fill(
        &self,
        process: &Process,
        fd: u64,
        identity: Identity,
        offset: u64,
        held: &Mapped,
    ) -> Result<(), Errno> {
        let mut mapped = self.mappings.iter().filter(|m| m.file == identity);
        if mapped.any(|mapping| mapping.offset == offset) {
            return Ok(());
        }
        let file = File::from(process.get_fd(fd as i32)?);
        let mut bytes = vec![0; held.memory().bytes().len()];
        held.memory().read(0, &mut bytes);
        // Makes the file larger where it is too small.
        let written = file.write_all_at(&bytes, offset);
        written.map_err(|_| Errno::ENOMEM)
    }

    /// Lets go of the mappings of files that are closed.
    pub(super) fn forget_mappings_of_closed_files(&mut self) {
        let files = &self.files;
        self.mappings
            .retain(|mapping| files.get(mapping.file).is_some());
    }

    /// Lets go of the mappings of `file` that no process has any more.
    pub(super) fn forget_mappings(&mut self, file: Identity) {
        if self.mappings.iter().any(|mapping| mapping.file == file) {
            let maps = all_maps();
            let is_gone = |mapping: &Mapping| !maps.iter().any(|text| mapping.is_in(text));
            self.mappings
                .retain(|mapping| mapping.file != file || !is_gone(mapping));
        }
    }
}

fn is_shared(flags: u64) -> bool {
    let kind = flags & libc::MAP_TYPE as u64;
    kind == libc::MAP_SHARED as u64 || kind == libc::MAP_SHARED_VALIDATE as u64
}

impl Mapping {
    /// Whether a process with these maps has any of it.
    fn is_in(&self, maps: &str) -> bool {
        maps.lines().any(|line| {
            parse(line).is_some_and(|(file, offset, len)| {
                file == self.file
                    && offset < self.offset.saturating_add(self.len)
                    && self.offset < offset.saturating_add(len)
            })
        })
    }
}

/// The maps of every process that we may look into.
fn all_maps() -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let maps = processes.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name();
        let number = name.to_str()?.bytes().all(|b| b.is_ascii_digit());
        let text = number.then(|| fs::read(entry.path().join("maps")))?;
        Some(String::from_utf8_lossy(&text.ok()?).into_owned())
    });
    maps.collect()
}

/// File, offset and length of a line of `/proc/PID/maps`.
fn parse(line: &str) -> Option<(Identity, u64, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let len = hex(end)?.checked_sub(hex(start)?)?;
    let offset = hex(fields.nth(1)?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let dev = rustix::fs::makedev(
        u32::from_str_radix(major, 16).ok()?,
        u32::from_str_radix(minor, 16).ok()?,
    );
    let ino = fields.next()?.parse().ok()?;
    Some(((dev, ino), offset, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_tells_file_offset_and_length() {
        let line = "7f0000000000-7f0000002000 rw-s 00001000 00:01 1042   /memfd:iommu (deleted)";
        assert_eq!(parse(line), Some(((1, 1042), 0x1000, 0x2000)));
        assert_eq!(parse("7f0000000000-7f0000002000 rw-s"), None);
    }
}
