//! The machine's `/dev` and `/sys` for a program that has no namespace with them.
//!
//! Each path of such a program's is walked here, component by component, in a tree in which our
//! entries lie over the host's. A directory that both have is the host's: what we add to it shows
//! in `getdents64`, and its own entries are reached past us. What only we have lies in a scratch
//! directory: links and files as such, nodes as empty placeholder files.
//!
//! Nothing is opened here but what lies in that scratch directory, whatever a path says: this
//! process may be allowed more than the program.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{MetadataExt, PermissionsExt, symlink},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, readlinkat, statat},
    io::Errno,
};

use crate::{
    entries::sysfs_tree::{Tree, plant, write_file},
    view::SysfsFile,
    wire::{Description, NodeName, Placeholder},
};

/// Links that are followed on the way, as in Linux (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Under this name in the scratch directory are the files that stand for links.
const LINKS: &[u8] = b"/.links";

/// What one of our paths is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Dir,
    File,
    Link(Vec<u8>),
    Node(NodeName),
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// To an entry of the machine, by its absolute path.
    Ours(Vec<u8>),
    /// To nowhere, in a way that only our entries explain.
    Nowhere(Errno),
    /// To the host's entry at this path, if there is one.
    Host(Vec<u8>),
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Overlay {
    /// By absolute path, such as `/dev/iommu`.
    entries: BTreeMap<Vec<u8>, Entry>,
    /// The directory under which the same paths lie as files.
    scratch: Vec<u8>,
    _directory: tempfile::TempDir,
}

impl Overlay {
    /// Makes the tree of what a machine describes.
    pub(crate) fn new(description: &Description) -> io::Result<Self> {
        let sys = plant(&description.sysfs).map_err(io::Error::other)?;
        let entries = fixed(description)?;
        // Everybody's to search, and ours alone to change.
        let directory = tempfile::Builder::new()
            .prefix("ioasid-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(std::env::temp_dir().canonicalize()?)?;
        let mut overlay = Overlay {
            entries,
            scratch: directory.path().as_os_str().as_bytes().to_vec(),
            _directory: directory,
        };
        make_directory_open(&overlay.in_scratch(b""))?;
        overlay.write_nodes()?;
        overlay.write(b"/sys", &sys)?;
        Ok(overlay)
    }

    /// Follows a new description, whose files are in the scratch directory already.
    pub(crate) fn replan(&mut self, description: &Description) -> io::Result<()> {
        let sys = plant(&description.sysfs).map_err(io::Error::other)?;
        self.entries = fixed(description)?;
        self.enter(b"/sys", &sys);
        Ok(())
    }

    fn enter(&mut self, directory: &[u8], tree: &BTreeMap<String, Tree>) {
        for (name, child) in tree {
            let path = join(directory, name.as_bytes());
            let entry = match child {
                Tree::Dir(_) => Entry::Dir,
                Tree::File(_) => Entry::File,
                Tree::Link(target) => Entry::Link(target.clone().into_bytes()),
            };
            self.entries.insert(path.clone(), entry);
            if let Tree::Dir(children) = child {
                self.enter(&path, children);
            }
        }
    }

    fn write_nodes(&self) -> io::Result<()> {
        // In the order of paths, so parents first.
        for (path, entry) in &self.entries {
            let at = self.in_scratch(path);
            match entry {
                Entry::Dir => make_directory(&at)?,
                _ => write_file(&at, &placeholder())?,
            }
        }
        Ok(())
    }

    fn write(&mut self, directory: &[u8], tree: &BTreeMap<String, Tree>) -> io::Result<()> {
        for (name, child) in tree {
            let path = join(directory, name.as_bytes());
            let at = self.in_scratch(&path);
            let entry = match child {
                Tree::Dir(_) => {
                    make_directory(&at)?;
                    Entry::Dir
                }
                Tree::File(file) => {
                    write_file(&at, file)?;
                    Entry::File
                }
                Tree::Link(target) => {
                    symlink(target, &at)?;
                    Entry::Link(target.clone().into_bytes())
                }
            };
            self.entries.insert(path.clone(), entry);
            if let Tree::Dir(children) = child {
                self.write(&path, children)?;
            }
        }
        Ok(())
    }

    /// The files that stand for nodes, by inode.
    pub(crate) fn placeholders(&self) -> Vec<Placeholder> {
        // Of the two names of `/dev/iommu`, the usual one first: `fstat` shows that.
        let nodes = self.entries.iter().rev().filter_map(|(path, entry)| {
            let Entry::Node(node) = entry else {
                return None;
            };
            let metadata = fs::symlink_metadata(self.in_scratch(path)).ok()?;
            Some(Placeholder {
                dev: metadata.dev(),
                ino: metadata.ino(),
                node: node.clone(),
            })
        });
        nodes.collect()
    }

    /// The file that stands for one of our paths.
    pub(crate) fn in_scratch(&self, path: &[u8]) -> PathBuf {
        let full = [self.scratch.as_slice(), path].concat();
        PathBuf::from(OsString::from_vec(full))
    }

    /// The path that a file in the scratch directory stands for.
    pub(crate) fn path_of(&self, file: &[u8]) -> Option<Vec<u8>> {
        let path = file.strip_prefix(self.scratch.as_slice())?;
        let path = path.strip_prefix(LINKS).unwrap_or(path);
        path.starts_with(b"/").then(|| path.to_vec())
    }

    /// An open file that stands for a link in this tree: the link itself, as `O_PATH | O_NOFOLLOW`
    /// opens it, is what no process can be given.
    pub(crate) fn open_link(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let file = self.in_scratch(&[LINKS, path].concat());
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        match write_file(&file, &SysfsFile::read_only("")) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok(File::open(&file)?.into())
    }

    pub(crate) fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// The names of our entries in the directory `path`, and what they are.
    pub(crate) fn children(&self, path: &[u8]) -> impl Iterator<Item = (&[u8], &Entry)> {
        let prefix = join(path, b"");
        let from = self.entries.range(prefix.clone()..);
        from.map_while(move |(path, entry)| Some((path.strip_prefix(prefix.as_slice())?, entry)))
            .filter(|(name, _)| !name.is_empty() && !name.contains(&b'/'))
    }

    /// Walks `path` from the directory `start`, an absolute path, in the root directory `root`.
    ///
    /// The last component is followed if it is a link and `follow` is set. `None` if the way leads
    /// through a link that means something else to the program than to us, as those of `/proc`.
    pub(crate) fn walk(
        &self,
        root: &OwnedFd,
        start: &[u8],
        path: &[u8],
        follow: bool,
    ) -> Option<Place> {
        let mut at = if path.starts_with(b"/") {
            Vec::new()
        } else {
            start.to_vec()
        };
        let mut follow = follow;
        if path.ends_with(b"/") {
            follow = true;
        }
        let mut ahead: Vec<Vec<u8>> = components(path);
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                let end = at.iter().rposition(|b| *b == b'/').unwrap_or(0);
                at.truncate(end);
                continue;
            }
            let next = join(&at, &name);
            let last = ahead.is_empty();
            let target = match self.get(&next) {
                Some(Entry::Link(target)) => Some(target.clone()),
                Some(Entry::Dir) => None,
                Some(_) if last => return Some(Place::Ours(next)),
                Some(_) => return Some(Place::Nowhere(Errno::NOTDIR)),
                None if next.starts_with(b"/proc/") => return None,
                None => match readlinkat(root, relative(&next), Vec::new()) {
                    Ok(target) => Some(target.into_bytes()),
                    Err(Errno::INVAL) => None,
                    // Nothing there: the kernel says so, to the rest of the path as well.
                    Err(_) => {
                        let rest = ahead.iter().rev();
                        let path = rest.fold(next, |path, name| join(&path, name));
                        return Some(Place::Host(path));
                    }
                },
            };
            match target {
                Some(_) if last && !follow => {
                    return Some(if self.get(&next).is_some() {
                        Place::Ours(next)
                    } else {
                        Place::Host(next)
                    });
                }
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Some(Place::Nowhere(Errno::LOOP));
                    }
                    if target.starts_with(b"/") {
                        at = Vec::new();
                    }
                    ahead.extend(components(&target));
                }
                None => at = next,
            }
        }
        let ours = self.get(&at).is_some() && !self.is_merged(root, &at);
        if at.is_empty() {
            at.push(b'/');
        }
        Some(if ours {
            Place::Ours(at)
        } else {
            Place::Host(at)
        })
    }

    /// Whether the host has this directory, too.
    pub(crate) fn is_merged(&self, root: &OwnedFd, path: &[u8]) -> bool {
        statat(root.as_fd(), relative(path), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }
}

/// The directories and nodes, by absolute path.
fn fixed(description: &Description) -> io::Result<BTreeMap<Vec<u8>, Entry>> {
    let mut entries = BTreeMap::new();
    let node = |path: &str, name| (path.as_bytes().to_vec(), Entry::Node(name));
    for path in ["/dev", "/dev/vfio", "/dev/vfio/devices", "/sys"] {
        entries.insert(path.as_bytes().to_vec(), Entry::Dir);
    }
    for (name, fixed) in NodeName::FIXED {
        entries.extend([node(&format!("/dev/{name}"), fixed)]);
    }
    for group in &description.groups {
        entries.extend([node(&format!("/dev/vfio/{group}"), NodeName::Group(*group))]);
    }
    for name in &description.nodes {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let path = format!("/dev/vfio/devices/{name}");
        entries.extend([node(&path, NodeName::Device(name.clone()))]);
    }
    Ok(entries)
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    make_directory_open(path)
}

/// Everybody may search it, whatever the umask says.
fn make_directory_open(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// What stands for a node: an empty file that every user may open.
fn placeholder() -> SysfsFile {
    SysfsFile {
        bytes: Vec::new(),
        mode: 0o666,
        size: 0,
    }
}

/// The components, the last first, without those that go nowhere.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|b| *b == b'/').rev();
    parts
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    [directory, name].join(&b'/')
}

/// An absolute path, as seen from a descriptor of the root directory.
fn relative(path: &[u8]) -> &[u8] {
    match path.strip_prefix(b"/") {
        Some(b"") | None => b".",
        Some(path) => path,
    }
}
