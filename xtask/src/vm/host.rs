//! What the scenes stand on: QEMU, a kernel and a file system where every user can read them, and a
//! machine.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{Model, Vm, guest::Guest, hostile, initramfs};
use crate::{
    e2e::stage::{NOBODY, Served, Stage, User},
    fetch::{Cache, bundle, kernel, qemu, tools},
};

/// Everything that guests need.
#[derive(Debug)]
pub(super) struct Host {
    stage: Stage,
    pub(super) model: Model,
    verbose: bool,
    /// How long guests work in the scenes of sustained work.
    pub(super) work: Duration,
    /// How often a guest is killed at work.
    pub(super) kills: u32,
    /// Who runs the guests and the machine.
    user: User,
    qemu_version: String,
    kernel_version: String,
}

/// A device of a guest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Given {
    /// A whole device, by its address on the host.
    Function(&'static str),
    /// A mediated device, by its UUID.
    Mdev(&'static str),
}

/// How a guest's devices are assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// By `/dev/iommu`, all in one address space.
    Iommufd,
    /// By groups and a container.
    Container,
}

/// Where the memory of a guest is that has its devices by vfio-user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Memory {
    /// In a file that it hands over.
    #[default]
    Shared,
    /// In QEMU alone: each piece of DMA is a message.
    Private,
    /// In a file of whatever file system the build is on, which is handed over all the same.
    Disk,
}

/// A guest beside its devices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Board {
    /// Where its memory is.
    pub(super) memory: Memory,
    /// How many processors it has.
    pub(super) processors: usize,
    /// More for its kernel's command line.
    pub(super) words: &'static str,
    /// Megabytes of it.
    pub(super) megabytes: u32,
    /// The device ids that QEMU shows for its devices instead of their own, in the devices' order.
    pub(super) shown_as: &'static [Option<u16>],
    /// Whether QEMU gives it an IOMMU of its own, which its kernel uses.
    pub(super) viommu: bool,
}

impl Board {
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
            viommu: false,
        }
    }
}

impl Host {
    pub(super) fn new(arguments: &Vm) -> Result<Self> {
        // Guests use none of what the cache's lock is for, unless something is to be fetched.
        let cache = Cache::with(|cache| {
            qemu::is_there(cache) && kernel::is_there(cache) && tools::is_there(cache)
        })?;
        let qemu = qemu::fetch(&cache, &arguments.origin, false)?;
        let kernel = kernel::fetch(&cache, &arguments.origin, false)?;
        let tools = tools::fetch(&cache, &arguments.origin, false)?;
        drop(cache);
        let ioasid = match &arguments.ioasid {
            Some(path) => path.clone(),
            None => crate::conformance::build_ioasid()?,
        };
        let stage = Stage::bare(&ioasid)?;
        bundle::copy(&qemu.folder, &stage.path("qemu"))?;
        fs::copy(&kernel.image, stage.path("vmlinuz")).context("copying the kernel")?;
        let hostile = hostile::build()?;
        initramfs::write(&kernel, &tools, &hostile, &stage.path("initramfs"))?;
        for name in ["vmlinuz", "initramfs"] {
            fs::set_permissions(stage.path(name), fs::Permissions::from_mode(0o644))?;
        }
        let user = stage.weakest_user();
        stage.folder_of(user, "sockets")?;
        let host = Self {
            stage,
            model: arguments.model,
            verbose: arguments.verbose,
            work: Duration::from_secs(arguments.seconds),
            kills: arguments.kills,
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

    pub(super) fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Serves the machine that `text` describes, with the model's name for `MODEL`.
    pub(super) fn serve(&self, text: &str) -> Result<Served> {
        let file = self.machine(self.model, text)?;
        self.stage.serve(self.user, Some(&file))
    }

    /// As [`Self::serve`], with the parent's own driver at work.
    pub(super) fn serve_busy(&self, text: &str) -> Result<Served> {
        let file = self.machine(self.model, text)?;
        self.stage.serve_with(self.user, Some(&file), &["--busy"])
    }

    /// As [`Self::serve_busy`], for virtual machines alone: the process confines itself.
    pub(super) fn serve_sockets(&self, text: &str) -> Result<Served> {
        self.serve_sockets_of(self.model, text)
    }

    /// As [`Self::serve_sockets`], with another model's name for `MODEL`.
    pub(super) fn serve_sockets_of(&self, model: Model, text: &str) -> Result<Served> {
        let file = self.machine(model, text)?;
        let folder = self.vm_sockets().display().to_string();
        let options = ["--busy", "--no-join", "--socket-dir", &folder];
        self.stage.serve_with(self.user, Some(&file), &options)
    }

    /// Where the vfio-user sockets of [`Self::serve_sockets`] are.
    fn vm_sockets(&self) -> PathBuf {
        self.stage.path("sockets/vm")
    }

    fn machine(&self, model: Model, text: &str) -> Result<PathBuf> {
        let model = match model {
            Model::Ioat => "ioat",
            Model::Dsa => "dsa",
        };
        let file = self.stage.path("machine.toml");
        fs::write(&file, text.replace("MODEL", model))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        Ok(file)
    }

    /// `ioasid run` with a machine of its own.
    pub(super) fn run(&self, text: &str) -> Result<Command> {
        let mut command = self.stage.ioasid(self.user);
        command
            .args(["run", "--machine"])
            .arg(self.machine(self.model, text)?);
        command.arg("--");
        Ok(command)
    }

    /// Adds a QEMU with `devices` to `command`, which shall run it, and starts it. A device has the
    /// names `dev0`, `dev1` ... in the monitor and is alone on the bus of that number plus 1.
    pub(super) fn guest(
        &self,
        name: &str,
        mut command: Command,
        mode: Mode,
        devices: &[Given],
    ) -> Result<Guest> {
        self.guest_on(name, Board::default(), &mut command, mode, devices)
    }

    /// As [`Self::guest`], on another board; its memory is QEMU's own.
    pub(super) fn guest_on(
        &self,
        name: &str,
        board: Board,
        command: &mut Command,
        mode: Mode,
        devices: &[Given],
    ) -> Result<Guest> {
        command
            .arg(self.stage.path("qemu/qemu-system-x86_64"))
            .args(["-M", "q35"]);
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
            command
                .arg("-device")
                .arg(format!("pcie-root-port,id=port{index},chassis={index}"))
                .arg("-device")
                .arg(format!(
                    "vfio-pci,id=dev{index},bus=port{index},{which}{shown}{backend}"
                ));
        }
        if self.verbose {
            println!("{command:?}");
        }
        Guest::begin(name, command, &monitor, self.verbose)
    }

    /// Starts a QEMU without `ioasid run` that has the devices at these sockets, by vfio-user.
    pub(super) fn guest_at_sockets(
        &self,
        name: &str,
        board: Board,
        devices: &[&str],
    ) -> Result<Guest> {
        let mut command = Command::new(self.stage.path("qemu/qemu-system-x86_64"));
        if self.user == User::Nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        match board.memory {
            Memory::Shared => command
                .args(["-M", "q35,memory-backend=memory", "-object"])
                .arg(format!(
                    "memory-backend-memfd,id=memory,size={}M,share=on",
                    board.megabytes
                )),
            Memory::Disk => command
                .args(["-M", "q35,memory-backend=memory", "-object"])
                .arg(format!(
                    "memory-backend-file,id=memory,size={}M,share=on,mem-path={}",
                    board.megabytes,
                    self.stage.path("sockets").display()
                )),
            Memory::Private => command.args(["-M", "q35"]),
        };
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
    pub(super) fn disk_is_memory(&self) -> Result<bool> {
        const TMPFS_MAGIC: i64 = 0x0102_1994;
        Ok(rustix::fs::statfs(self.stage.path("sockets"))?.f_type == TMPFS_MAGIC)
    }

    /// What every guest has; returns the path of its monitor.
    fn board(&self, name: &str, board: Board, command: &mut Command) -> PathBuf {
        let monitor = self.stage.path("sockets").join(format!("{name}.qmp"));
        // A guest of an earlier scene.
        let _ = fs::remove_file(&monitor);
        let mut words = format!(
            "console=ttyS0 quiet panic=-1 no_timer_check {}",
            board.words
        );
        if board.viommu {
            // A real IOMMU would have to be told of every mapping: QEMU has it reported.
            command.args(["-device", "intel-iommu,caching-mode=on,intremap=off"]);
            words += " intel_iommu=on iommu=strict";
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
            .arg(self.stage.path("vmlinuz"))
            .arg("-initrd")
            .arg(self.stage.path("initramfs"))
            .arg("-append")
            .arg(words);
        monitor
    }
}

fn socket(path: &Path) -> String {
    format!("unix:{},server=on,wait=off", path.display())
}
