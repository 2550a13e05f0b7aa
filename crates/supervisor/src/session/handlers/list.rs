//! Listings of directories, for a program that has no namespace with the machine's entries.

use std::os::fd::AsFd;

use rustix::{
    fs::{AtFlags, CWD, statat},
    io::Errno,
};

use crate::{
    session::{
        answer::{Answer, Outcome, Pending},
        paths::{
            Paths,
            overlay::{Entry, Overlay},
            proc::{link_of, relative, root_of, within_root},
        },
    },
    system::process::getdents64,
};

/// Most bytes of one `getdents64`.
const MAX_LISTING: u64 = 1 << 20;

/// `getdents64`: adds the machine's entries to a directory of the host's, and corrects their types.
pub(crate) fn list(
    paths: &Paths,
    call: Pending<'_>,
    fd: i32,
    (buffer, size): (u64, u64),
) -> Outcome {
    let Some(listing) = listing(paths, call, fd, size) else {
        return Ok(Answer::Proceed);
    };
    match listing {
        Ok(listing) => {
            call.write(buffer, &listing)?;
            Ok(Answer::Value(listing.len() as u64))
        }
        Err(errno) => Ok(Answer::Fails(errno)),
    }
}

fn listing(paths: &Paths, call: Pending<'_>, fd: i32, size: u64) -> Option<Result<Vec<u8>, Errno>> {
    let overlay = paths.overlay()?;
    let (root, _) = root_of(call.tid).ok().filter(|(_, foreign)| !foreign)?;
    let link = link_of(call.tid, &format!("fd/{fd}"))?;
    let scratch = overlay.path_of(&link);
    let merged = scratch.is_none();
    let path = match scratch {
        Some(path) => path,
        None => within_root(call.tid, link)?,
    };
    if overlay.get(&path) != Some(&Entry::Dir) {
        return None;
    }
    let directory = call.process.get_fd(fd).ok()?;
    // At the start, as after a rewind: what is added comes with the first piece.
    let start = rustix::fs::tell(&directory) == Ok(0);
    if merged && !start {
        return None;
    }
    let mut added_entries = Vec::new();
    if merged {
        for (name, entry) in overlay.children(&path) {
            let full = [path.as_slice(), name].join(&b'/');
            if statat(&root, relative(&full), AtFlags::SYMLINK_NOFOLLOW).is_err() {
                added_entries.push((name, entry, inode(overlay, &full)));
            }
        }
    }
    let added: usize = added_entries
        .iter()
        .map(|(name, ..)| record_len(name))
        .sum();
    let room = usize::try_from(size.min(MAX_LISTING)).ok()?;
    let mut listing = vec![0; room.checked_sub(added)?];
    let read = match getdents64(directory.as_fd(), &mut listing) {
        Ok(read) => read,
        Err(error) => return Some(Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
    };
    listing.truncate(read);
    let offset = each_record(&mut listing, |name, kind| {
        if let Some(entry @ Entry::Node(_)) = overlay.get(&[&path, name].join(&b'/')) {
            *kind = type_of(entry);
        }
    });
    for (name, entry, inode) in added_entries {
        push_record(&mut listing, name, type_of(entry), inode, offset);
    }
    Some(Ok(listing))
}

fn inode(overlay: &Overlay, path: &[u8]) -> u64 {
    let stat = statat(CWD, overlay.in_scratch(path), AtFlags::SYMLINK_NOFOLLOW);
    stat.map_or(1, |stat| stat.st_ino)
}

/// `DT_*` of an entry.
fn type_of(entry: &Entry) -> u8 {
    match entry {
        Entry::Node(_) => libc::DT_CHR,
        Entry::Dir => libc::DT_DIR,
        Entry::File => libc::DT_REG,
        Entry::Link(_) => libc::DT_LNK,
    }
}

/// Offsets in `struct linux_dirent64`: inode, offset, length of the record, type, name.
const OFFSET: usize = 8;
const LENGTH: usize = 16;
const TYPE: usize = 18;
const NAME: usize = 19;

fn record_len(name: &[u8]) -> usize {
    (NAME + name.len() + 1).next_multiple_of(8)
}

fn push_record(listing: &mut Vec<u8>, name: &[u8], kind: u8, inode: u64, offset: u64) {
    let end = listing.len() + record_len(name);
    listing.extend(inode.to_ne_bytes());
    listing.extend(offset.to_ne_bytes());
    listing.extend((record_len(name) as u16).to_ne_bytes());
    listing.push(kind);
    listing.extend(name);
    listing.resize(end, 0);
}

/// Shows each name to `see`, which may change the type; returns the offset in the last record.
fn each_record(listing: &mut [u8], mut see: impl FnMut(&[u8], &mut u8)) -> u64 {
    let mut offset = 0;
    let mut rest = listing;
    while let Some((head, _)) = rest.split_first_chunk::<NAME>() {
        let length = usize::from(u16::from_ne_bytes([head[LENGTH], head[LENGTH + 1]]));
        let (_, tail) = head.split_at(OFFSET);
        offset = tail.first_chunk().map_or(0, |o| u64::from_ne_bytes(*o));
        if length < NAME || length > rest.len() {
            break;
        }
        let (record, others) = rest.split_at_mut(length);
        let (head, name) = record.split_at_mut(NAME);
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        see(&name[..end], &mut head[TYPE]);
        rest = others;
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_are_written() {
        let mut listing = Vec::new();
        push_record(&mut listing, b"iommu", libc::DT_REG, 7, 42);
        push_record(&mut listing, b"a-longer-name", libc::DT_DIR, 8, 43);
        assert_eq!(listing.len() % 8, 0);
        let mut names = Vec::new();
        let last = each_record(&mut listing, |name, kind| {
            names.push((name.to_vec(), *kind));
            *kind = libc::DT_CHR;
        });
        assert_eq!(last, 43);
        assert_eq!(names[0], (b"iommu".to_vec(), libc::DT_REG));
        assert_eq!(names[1], (b"a-longer-name".to_vec(), libc::DT_DIR));
        each_record(&mut listing, |_, kind| assert_eq!(*kind, libc::DT_CHR));
    }
}
