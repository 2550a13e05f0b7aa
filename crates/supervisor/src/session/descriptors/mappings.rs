//! What programs have mapped of `/dev/iommu` files: the pages that a virtual IOMMU shares with the
//! owner of the file.
//!
//! The kernel maps the memfd behind the descriptor, into which the bytes are put first. Whether the
//! mapping is still there is seen in the maps of the processes, when the virtual IOMMU is to be
//! destroyed: it cannot be before.

use std::fs;

use ioasid_iommufd::Mapped;

use crate::session::identity::Identity;

/// A part of a file that a program has mapped, or is about to.
#[derive(Debug)]
struct Mapping {
    file: Identity,
    offset: u64,
    len: u64,
    _held: Mapped,
}

/// All mappings of one program tree.
#[derive(Debug, Default)]
pub(crate) struct Mappings(Vec<Mapping>);

impl Mappings {
    /// Whether the bytes at `offset` of `file` are mapped, so they are in the memfd.
    pub(crate) fn has(&self, file: Identity, offset: u64) -> bool {
        let mut mapped = self.0.iter().filter(|mapping| mapping.file == file);
        mapped.any(|mapping| mapping.offset == offset)
    }

    /// The kernel will map `len` bytes at `offset` of `file`, which keep `held`.
    pub(crate) fn add(&mut self, file: Identity, offset: u64, len: u64, held: Mapped) {
        self.0.push(Mapping {
            file,
            offset,
            len,
            _held: held,
        });
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps the mappings of files that are open.
    pub(crate) fn keep(&mut self, is_open: impl Fn(Identity) -> bool) {
        self.0.retain(|mapping| is_open(mapping.file));
    }

    /// Forgets the mappings of `file` that no process has any more.
    pub(crate) fn forget_unmapped(&mut self, file: Identity) {
        if self.0.iter().any(|mapping| mapping.file == file) {
            let maps = all_maps();
            let is_gone = |mapping: &Mapping| !maps.iter().any(|text| mapping.is_in(text));
            self.0
                .retain(|mapping| mapping.file != file || !is_gone(mapping));
        }
    }
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
    fn a_line_of_maps_has_file_offset_and_length() {
        let line = "7f0000000000-7f0000002000 rw-s 00001000 00:01 1042   /memfd:iommu (deleted)";
        assert_eq!(parse(line), Some(((1, 1042), 0x1000, 0x2000)));
        assert_eq!(parse("7f0000000000-7f0000002000 rw-s"), None);
    }
}
