//! What the tests need: QEMU, a kernel and a file system where every user can read them, and a
//! machine.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{Model, Options, guest::Guest, initramfs};
use crate::{
    installation::{Installation, NOBODY, User},
    served::Served,
};
use xtask::{
    fetch::{Cache, bundle, kernel, qemu, tools},
    workspace::{cargo, ioasid, run as run_shown, target_directory},
};

/// Everything that guests need.
#[derive(Debug)]
pub struct Host {
    installation: Installation,
    /// What the guests are given.
    pub model: Model,
    verbose: bool,
    /// How long guests work in the tests of sustained work.
    pub work: Duration,
    /// How often a guest is killed at work.
    pub kills: u32,
    /// Who runs the guests and the machine.
    user: User,
    qemu_version: String,
    kernel_version: String,
}

/// A device of a guest.
#[derive(Clone, Copy, Debug)]
pub enum Given {
    /// A whole device, by its address on the host.
    Function(&'static str),
    /// A mediated device, by its UUID.
    Mdev(&'static str),
}

/// How a guest's devices are assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By `/dev/iommu`, all in one address space.
    Iommufd,
    /// By groups and a container.
    Container,
}

/// Where the memory of a guest is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// In a memfd: mapped as a file, or handed over.
    #[default]
    Shared,
    /// In QEMU alone: with vfio-user, each piece of DMA is a message.
    Private,
    /// In a file of whatever file system the build is on, which is handed over all the same.
    Disk,
}

/// The IOMMU that QEMU gives a guest, which its kernel uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Viommu {
    /// None.
    #[default]
    None,
    /// QEMU makes a mapping on the host of each one that the guest makes.
    Shadowed,
    /// The guest's own page tables are walked, nested on its memory.
    Nested {
        /// The option `pasid-bits`, if it is given: how many bits a PASID has.
        pasid_bits: Option<u32>,
    },
}

impl Viommu {
    /// The device of QEMU's, and what the guest's kernel is told.
    fn options(self) -> Option<(String, &'static str)> {
        // A real IOMMU would have to be told of every mapping: caching-mode has it reported.
        match self {
            Viommu::None => None,
            Viommu::Shadowed => Some((
                "intel-iommu,caching-mode=on,intremap=off".to_owned(),
                "intel_iommu=on iommu.strict=1",
            )),
            Viommu::Nested { pasid_bits } => {
                let mut device = "intel-iommu,scalable-mode=on,fsts=on,caching-mode=on".to_owned();
                if let Some(bits) = pasid_bits {
                    device += &format!(",pasid-bits={bits}");
                }
                Some((device, "intel_iommu=on,sm_on"))
            }
        }
    }
}

/// A guest beside its devices.
#[derive(Clone, Copy, Debug)]
pub struct Board {
    /// Where its memory is.
    pub memory: Memory,
    /// How many processors it has.
    pub processors: usize,
    /// More for its kernel's command line.
    pub words: &'static str,
    /// Megabytes of it.
    pub megabytes: u32,
    /// The device ids that QEMU shows for its devices instead of their own, in the devices' order.
    pub shown_as: &'static [Option<u16>],
    /// The IOMMU of its own that QEMU gives it.
    pub viommu: Viommu,
    /// Whether its devices are on the root bus, in the slots from [`Board::FIRST_SLOT`] on, instead of behind a
    /// port each. Those cannot be unplugged.
    pub on_root_bus: bool,
}

impl Board {
    /// The slot on the root bus of the first device.
    pub const FIRST_SLOT: usize = 0x10;

    /// What QEMU shows as the id of device `index`, if not its own.
    fn shown_as(self, index: usize) -> Option<u16> {
        self.shown_as.get(index).copied().flatten()
    }
}

impl Default for Board {
    fn default() -> Self {
        Self {
            memory: Memory::default(),
            processors: 1,
            words: "",
            megabytes: 256,
            shown_as: &[],
            viommu: Viommu::None,
            on_root_bus: false,
        }
    }
}

impl Host {
    /// Builds and fetches everything.
    ///
    /// # Errors
    /// If a package or a build is missing.
    pub fn new(options: &Options) -> Result<Self> {
        // Guests use none of what the cache's lock is for, unless something is to be fetched.
        let cache = Cache::with(|cache| {
            qemu::is_there(cache) && kernel::is_there(cache) && tools::is_there(cache)
        })?;
        let qemu = qemu::fetch(&cache, &options.origin, false)?;
        let kernel = kernel::fetch(&cache, &options.origin, false)?;
        let tools = tools::fetch(&cache, &options.origin, false)?;
        let ioasid = ioasid(options.ioasid.as_deref())?;
        let installation = Installation::bare(&ioasid)?;
        bundle::copy(&qemu.folder, &installation.path("qemu"))?;
        symlink(
            "qemu/qemu-system-x86_64",
            installation.path("qemu-system-x86_64"),
        )?;
        fs::copy(&kernel.image, installation.path("vmlinuz")).context("copying the kernel")?;
        let hostile = build_hostile()?;
        initramfs::write(&kernel, &tools, &hostile, &installation.path("initramfs"))?;
        // For guests that are started by hand.
        let by_hand = cache.folder("guest-boot")?;
        for name in ["vmlinuz", "initramfs"] {
            let file = installation.path(name);
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
            fs::copy(&file, by_hand.join(name)).with_context(|| format!("keeping {name}"))?;
        }
        drop(cache);
        let user = installation.weakest_user();
        installation.folder_of(user, "sockets")?;
        let host = Self {
            installation,
            model: options.model,
            verbose: options.verbose,
            work: Duration::from_secs(options.seconds),
            kills: options.kills,
            user,
            qemu_version: qemu.version,
            kernel_version: kernel.version,
        };
        println!(
            "vm: {}, guests with Linux {}, as {}",
            host.qemu_version,
            host.kernel_version,
            match host.user {
                User::Own => "the caller",
                User::Nobody => "user 65534",
            }
        );
        Ok(host)
    }

    /// Where the programs are.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// Serves the machine that `text` describes.
    pub fn serve(&self, text: &str) -> Result<Served> {
        let file = self.machine(text)?;
        Served::start(&self.installation, self.user, Some(&file), &[])
    }

    /// As [`Self::serve`], with the parent's own driver at work.
    pub fn serve_busy(&self, text: &str) -> Result<Served> {
        let file = self.machine(text)?;
        Served::start(&self.installation, self.user, Some(&file), &["--busy"])
    }

    /// As [`Self::serve_busy`], for virtual machines alone: the process confines itself.
    pub fn serve_sockets(&self, text: &str) -> Result<Served> {
        let file = self.machine(text)?;
        let folder = self.vm_sockets().display().to_string();
        let options = ["--busy", "--no-join", "--socket-dir", &folder];
        Served::start(&self.installation, self.user, Some(&file), &options)
    }

    /// Where the vfio-user sockets of [`Self::serve_sockets`] are.
    fn vm_sockets(&self) -> PathBuf {
        self.installation.path("sockets/vm")
    }

    fn machine(&self, text: &str) -> Result<PathBuf> {
        let file = self.installation.path("machine.toml");
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        Ok(file)
    }

    /// `ioasid run` with a machine of its own.
    pub fn run(&self, text: &str) -> Result<Command> {
        let mut command = self.installation.ioasid(self.user);
        command.args(["run", "--machine"]).arg(self.machine(text)?);
        command.arg("--");
        Ok(command)
    }

    /// Adds a QEMU with `devices` to `command`, which shall run it, and starts it. A device has the
    /// names `dev0`, `dev1` ... in the monitor and is alone on the bus of that number plus 1.
    pub fn guest(
        &self,
        name: &str,
        mut command: Command,
        mode: Mode,
        devices: &[Given],
    ) -> Result<Guest> {
        let board = Board {
            memory: Memory::Private,
            ..Board::default()
        };
        self.guest_on(name, board, &mut command, mode, devices)
    }

    /// As [`Self::guest`], whose memory is QEMU's own, on another board.
    pub fn guest_on(
        &self,
        name: &str,
        board: Board,
        command: &mut Command,
        mode: Mode,
        devices: &[Given],
    ) -> Result<Guest> {
        command.arg(self.installation.path("qemu/qemu-system-x86_64"));
        let monitor = self.board(name, board, command);
        let backend = match mode {
            Mode::Iommufd => {
                command.args(["-object", "iommufd,id=iommufd0"]);
                ",iommufd=iommufd0"
            }
            Mode::Container => "",
        };
        for (index, device) in devices.iter().enumerate() {
            let which = match device {
                Given::Function(address) => format!("host={address}"),
                Given::Mdev(uuid) => format!("sysfsdev=/sys/bus/mdev/devices/{uuid}"),
            };
            let shown = match board.shown_as(index) {
                Some(id) => format!(",x-pci-device-id={id:#x}"),
                None => String::new(),
            };
            let bus = if board.on_root_bus {
                let slot = Board::FIRST_SLOT.saturating_add(index);
                format!("bus=pcie.0,addr={slot:#x}")
            } else {
                let port = format!("pcie-root-port,id=port{index},chassis={index}");
                command.arg("-device").arg(port);
                format!("bus=port{index}")
            };
            command.arg("-device").arg(format!(
                "vfio-pci,id=dev{index},{bus},{which}{shown}{backend}"
            ));
        }
        if self.verbose {
            println!("{command:?}");
        }
        Guest::begin(name, command, &monitor, self.verbose)
    }

    /// Starts a QEMU without `ioasid run` that has the devices at these sockets, by vfio-user.
    pub fn guest_at_sockets(&self, name: &str, board: Board, devices: &[&str]) -> Result<Guest> {
        let mut command = Command::new(self.installation.path("qemu/qemu-system-x86_64"));
        if self.user == User::Nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        let monitor = self.board(name, board, &mut command);
        for (index, device) in devices.iter().enumerate() {
            let path = self.vm_sockets().join(format!("{device}.sock"));
            let mut options = serde_json::json!({
                "driver": "vfio-user-pci",
                "id": format!("dev{index}"),
                "bus": format!("port{index}"),
                "socket": { "type": "unix", "path": path },
            });
            if let Some(id) = board.shown_as(index) {
                options["x-pci-device-id"] = id.into();
            }
            command
                .arg("-device")
                .arg(format!("pcie-root-port,id=port{index},chassis={index}"))
                .arg("-device")
                .arg(options.to_string());
        }
        if self.verbose {
            println!("{command:?}");
        }
        Guest::begin(name, &mut command, &monitor, self.verbose)
    }

    /// Whether a file of [`Memory::Disk`] is in memory after all: then it is one that is mapped.
    pub fn disk_is_memory(&self) -> Result<bool> {
        const TMPFS_MAGIC: i64 = 0x0102_1994;
        Ok(rustix::fs::statfs(self.installation.path("sockets"))?.f_type == TMPFS_MAGIC)
    }

    /// The machine, with its memory.
    fn memory(&self, board: Board, command: &mut Command) {
        let backend = match board.memory {
            Memory::Private => {
                command.args(["-M", "q35"]);
                return;
            }
            Memory::Shared => format!(
                "memory-backend-memfd,id=memory,size={}M,share=on",
                board.megabytes
            ),
            Memory::Disk => format!(
                "memory-backend-file,id=memory,size={}M,share=on,mem-path={}",
                board.megabytes,
                self.installation.path("sockets").display()
            ),
        };
        command.args(["-M", "q35,memory-backend=memory", "-object", &backend]);
    }

    /// What every guest has; returns the path of its monitor.
    fn board(&self, name: &str, board: Board, command: &mut Command) -> PathBuf {
        let monitor = self
            .installation
            .path("sockets")
            .join(format!("{name}.qmp"));
        // A guest of an earlier test.
        let _ = fs::remove_file(&monitor);
        let mut words = format!(
            "console=ttyS0 quiet panic=-1 no_timer_check {}",
            board.words
        );
        self.memory(board, command);
        if let Some((device, more)) = board.viommu.options() {
            command.arg("-device").arg(device);
            words = format!("{words} {more}");
        }
        command
            .args(["-accel", "tcg", "-cpu", "max"])
            .args(["-m", &format!("{}M", board.megabytes)])
            .args(["-smp", &board.processors.to_string()])
            .args(["-nodefaults", "-nographic", "-no-reboot"])
            .args(["-serial", "stdio"])
            .arg("-qmp")
            .arg(socket(&monitor))
            .arg("-kernel")
            .arg(self.installation.path("vmlinuz"))
            .arg("-initrd")
            .arg(self.installation.path("initramfs"))
            .arg("-append")
            .arg(words);
        monitor
    }
}

fn socket(path: &Path) -> String {
    format!("unix:{},server=on,wait=off", path.display())
}

/// Builds the program of a hostile guest, for any guest: without a dynamic linker and libraries.
fn build_hostile() -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["rustc", "--release", "--package", "hostile-guest", "--"]);
    // For this program alone: what runs while others are built would not take it.
    cargo.args(["-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    run_shown(&mut cargo)?;
    Ok(target_directory().join("release/hostile-guest"))
}
