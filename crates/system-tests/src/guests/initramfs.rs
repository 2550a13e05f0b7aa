//! The first file system of a guest: busybox, a few modules, a script and a program of ours, in the kernel's own archive
//! format (Documentation/driver-api/early-userspace/buffer-format.rst: `newc`).

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use xtask::fetch::{kernel::Kernel, tools::Tool};

/// What the guest's first program does.
const SCRIPT: &str = include_str!("guest.sh");

/// Modules that are loaded at the start, in this order: each after those that it needs.
const MODULES: [&str; 2] = ["dca", "ioatdma"];

/// The same for those of a RAID-5 on disks in memory, loaded on an order.
const RAID: [&str; 10] = [
    "xor",
    "raid6_pq",
    "async_tx",
    "async_memcpy",
    "async_xor",
    "async_pq",
    "async_raid6_recov",
    "md-mod",
    "raid456",
    "brd",
];

/// The same for DSA.
const IDXD: [&str; 2] = ["idxd_bus", "idxd"];

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive under construction.
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.entries = self.entries.saturating_add(1);
        let fields = [
            self.entries, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // time
            u32::try_from(data.len()).context("a file is too big for the archive")?,
            0, // device of the file system
            0,
            0, // device number
            0,
            u32::try_from(name.len().saturating_add(1)).context("a name is too long")?,
            0, // checksum: none
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        let len = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(len, 0);
    }
}

/// Writes the file system for `kernel`, with `tools` and the program `hostile` in it, to `path`.
pub(super) fn write(kernel: &Kernel, tools: &[Tool], hostile: &Path, path: &Path) -> Result<()> {
    let mut archive = Archive {
        bytes: Vec::new(),
        entries: 0,
    };
    for folder in [
        "bin",
        "dev",
        "etc",
        "lib",
        "lib/x86_64-linux-gnu",
        "lib64",
        "modules",
        "proc",
        "run",
        "sys",
        "tmp",
    ] {
        archive.add(folder, DIRECTORY, &[])?;
    }
    for tool in tools {
        let data =
            fs::read(&tool.file).with_context(|| format!("reading {}", tool.file.display()))?;
        archive.add(&tool.place, PROGRAM, &data)?;
    }
    let busybox = fs::read(&kernel.busybox)
        .with_context(|| format!("reading {}", kernel.busybox.display()))?;
    archive.add("bin/busybox", PROGRAM, &busybox)?;
    let hostile = fs::read(hostile).with_context(|| format!("reading {}", hostile.display()))?;
    archive.add("bin/hostile", PROGRAM, &hostile)?;
    for name in MODULES.into_iter().chain(RAID).chain(IDXD) {
        let file = kernel.module(name)?;
        let unpacked = Command::new("xz")
            .args(["-dc"])
            .arg(&file)
            .output()
            .context("`xz` could not be run; install it")?;
        ensure!(
            unpacked.status.success(),
            "`xz` could not unpack {}",
            file.display()
        );
        archive.add(&format!("modules/{name}.ko"), PROGRAM, &unpacked.stdout)?;
    }
    let script = SCRIPT
        .replace("@MODULES@", &MODULES.join(" "))
        .replace("@RAID@", &RAID.join(" "))
        .replace("@IDXD@", &IDXD.join(" "));
    archive.add("init", PROGRAM, script.as_bytes())?;
    archive.add("TRAILER!!!", 0, &[])?;
    fs::write(path, &archive.bytes).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_say_their_sizes() {
        let mut archive = Archive {
            bytes: Vec::new(),
            entries: 0,
        };
        archive.add("init", PROGRAM, b"hello").unwrap();
        let text = String::from_utf8(archive.bytes.clone()).unwrap();
        assert!(text.starts_with("07070100000001000081ed"));
        // Size of the data and of the name with its end.
        assert_eq!(&text[54..62], "00000005");
        assert_eq!(&text[94..102], "00000005");
        assert_eq!(archive.bytes.len() % 4, 0);
        assert!(text.trim_end_matches('\0').ends_with("hello"));
    }
}
