//! A PCI function of the guest, by what the kernel shows of it in sysfs.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{mapping::Mapping, ram::noise};

/// Where the kernel shows them.
const FUNCTIONS: &str = "/sys/bus/pci/devices";
/// The command register: decode memory, be a bus master.
const COMMAND: u64 = 4;
const ENABLE: u16 = 6;
/// Bytes of configuration space.
const CONFIG: usize = 4096;

/// A function without a driver.
#[derive(Debug)]
pub(crate) struct Function {
    folder: PathBuf,
    config: File,
    /// Configuration space as it was found.
    found: Vec<u8>,
}

impl Function {
    /// The first one of Intel's with this device id. Its driver is sent away.
    ///
    /// # Errors
    /// If there is none, or it cannot be had.
    pub(crate) fn find(device: u16) -> Result<Self> {
        let mut folders = Vec::new();
        for entry in fs::read_dir(FUNCTIONS)? {
            folders.push(entry?.path());
        }
        folders.sort();
        let is = |folder: &Path, name: &str, value: u16| {
            fs::read_to_string(folder.join(name))
                .is_ok_and(|text| text.trim() == format!("{value:#06x}"))
        };
        let folder = folders
            .into_iter()
            .find(|folder| is(folder, "vendor", 0x8086) && is(folder, "device", device))
            .with_context(|| format!("there is no function 8086:{device:04x}"))?;
        let driver = folder.join("driver");
        if driver.exists() {
            let name = folder.file_name().unwrap_or_default();
            fs::write(driver.join("unbind"), name.as_encoded_bytes())
                .context("sending the driver away")?;
        }
        let config = OpenOptions::new()
            .read(true)
            .write(true)
            .open(folder.join("config"))
            .context("opening configuration space")?;
        let mut function = Self {
            folder,
            config,
            found: vec![0; CONFIG],
        };
        function.turn_on()?;
        function.config.read_exact_at(&mut function.found, 0)?;
        Ok(function)
    }

    /// Lets it decode addresses and be a bus master.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn turn_on(&self) -> Result<()> {
        Ok(self.config.write_all_at(&ENABLE.to_le_bytes(), COMMAND)?)
    }

    /// Forbids it both.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn turn_off(&self) -> Result<()> {
        Ok(self.config.write_all_at(&[0; 2], COMMAND)?)
    }

    /// Maps a BAR, all of it.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn bar(&self, index: usize) -> Result<Mapping> {
        let path = self.folder.join(format!("resource{index}"));
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        let len = usize::try_from(file.metadata()?.len())?;
        Mapping::of(&file, len).with_context(|| format!("mapping {}", path.display()))
    }

    /// Where BAR 0 is.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub(crate) fn bar_address(&self) -> Result<u64> {
        let resources = fs::read_to_string(self.folder.join("resource"))?;
        let first = resources.split_whitespace().next().unwrap_or_default();
        Ok(u64::from_str_radix(first.trim_start_matches("0x"), 16)?)
    }

    /// Has the kernel reset the function, by the register for that in configuration space.
    ///
    /// # Errors
    /// If it does not.
    pub(crate) fn reset(&self) -> Result<()> {
        fs::write(self.folder.join("reset"), "1").context("resetting the function")
    }

    /// Writes to each byte of configuration space, also where nothing is or nothing can be written: all,
    /// nothing and noise, by dwords, and by bytes where something is. Then puts back what was found.
    ///
    /// # Errors
    /// If the function is not as it was after that and a reset.
    pub(crate) fn scribble(&self, seed: u64) -> Result<u64> {
        let noise = noise(CONFIG, seed);
        let mut count = 0;
        for at in (0..CONFIG).step_by(4) {
            let widths: &[usize] = match self.found[at..at + 4] {
                [0, 0, 0, 0] => &[4],
                _ => &[1, 4],
            };
            for width in widths {
                for at in (at..at + 4).step_by(*width) {
                    for bytes in [
                        &[0xff; 4][..*width],
                        &[0; 4][..*width],
                        &noise[at..at + width],
                    ] {
                        // Whether the kernel lets it through does not matter.
                        let _ = self.config.write_at(bytes, at as u64);
                        count += 1;
                    }
                }
            }
        }
        self.put_back();
        self.reset()?;
        self.put_back();
        let mut now = vec![0; 64];
        self.config.read_exact_at(&mut now, 0)?;
        ensure!(
            now == self.found[..64],
            "the header of configuration space is another"
        );
        Ok(count)
    }

    fn put_back(&self) {
        // The command register last, when the BARs are where they were.
        for at in (8..CONFIG).step_by(4).chain([COMMAND as usize]) {
            let _ = self.config.write_at(&self.found[at..at + 4], at as u64);
        }
    }
}
