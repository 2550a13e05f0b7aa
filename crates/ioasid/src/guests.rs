//! The vfio-user sockets of a served machine: where they are, and what options a VMM needs for them.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder},
    os::{
        fd::OwnedFd,
        unix::{fs::DirBuilderExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use ioasid_machine::{ExportedDevice, Machine};
use ioasid_vfio_user::{Export, Server, listen};

use crate::stdio::say;

/// The devices of a machine, offered to VMMs.
#[derive(Debug)]
pub(crate) struct Guests {
    server: Arc<Server>,
    /// What is printed of each device, in the order of VMs.
    devices: Vec<Shown>,
    /// The sockets' files that were made here.
    made: Vec<PathBuf>,
}

#[derive(Debug)]
struct Shown {
    name: String,
    vm: Option<String>,
    path: PathBuf,
}

impl Guests {
    /// Offers every device of `machine` that a VM can use: at a socket that the service manager has
    /// `passed`, or at one of its own in `dir`.
    pub(crate) fn start(
        machine: &Arc<Machine>,
        dir: &Path,
        passed: Vec<(String, OwnedFd)>,
    ) -> Result<Self> {
        let contexts = Arc::clone(machine);
        let new_context = Box::new(move || contexts.new_context());
        let space = Arc::clone(machine.iommu().space());
        let server = Server::new(space, new_context).context("starting the vfio-user server")?;
        let mut guests = Guests {
            server: Arc::new(server),
            devices: Vec::new(),
            made: Vec::new(),
        };
        let mut exports = machine.exports();
        exports.sort_by(|a, b| (&a.vm, &a.name).cmp(&(&b.vm, &b.name)));
        for (device, socket) in assign(exports, passed) {
            let (listener, path) = match socket {
                Some(fd) => passed_socket(fd)?,
                None => {
                    let path = dir.join(format!("{}.sock", device.name));
                    make_private(dir)?;
                    let listener = listen(&path)
                        .with_context(|| format!("listening at {}", path.display()))?;
                    guests.made.push(path.clone());
                    (listener, path)
                }
            };
            guests.devices.push(Shown {
                name: device.name.clone(),
                vm: device.vm.clone(),
                path: path.clone(),
            });
            let export = Export {
                name: device.name,
                vm: device.vm,
                device: device.device,
                listener,
                path,
            };
            guests.server.export(export).context("serving a device")?;
        }
        Ok(guests)
    }

    /// The server, for its part of `inspect`.
    pub(crate) fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Prints how each device is given to a VMM.
    pub(crate) fn announce(&self) {
        let mut last = None;
        for device in &self.devices {
            if last != Some(&device.vm) {
                last = Some(&device.vm);
                match &device.vm {
                    Some(vm) => say(&format!("  vm {vm}:")),
                    None => say("  for any vm:"),
                }
                say("    qemu:   -machine q35,memory-backend=mem \
                     -object memory-backend-memfd,id=mem,size=1G,share=on");
                say("    cloud-hypervisor:   --memory size=1G,shared=on");
            }
            let path = device.path.display().to_string();
            say(&format!("    {}:", device.name));
            say(&format!("      qemu:   -device '{}'", qemu_device(&path)));
            say(&format!(
                "      cloud-hypervisor:   --user-device socket={path}"
            ));
        }
    }

    /// Releases every device, after the messages that were sent.
    pub(crate) fn stop(self) {
        self.server.stop();
        for path in &self.made {
            // A process that has confined itself leaves them to the next one.
            let _ = fs::remove_file(path);
            let _ = path.parent().map(fs::remove_dir);
        }
    }
}

/// The value of QEMU's `-device` for the socket at `path`, which only its JSON form takes.
fn qemu_device(path: &str) -> String {
    let socket = serde_json::json!({"type": "unix", "path": path});
    serde_json::json!({"driver": "vfio-user-pci", "socket": socket}).to_string()
}

/// Which device gets which of the sockets that were passed: those that are named for a device (its
/// name, or `vfioN`) go there, the others to the devices that are left, in order.
fn assign(
    devices: Vec<ExportedDevice>,
    passed: Vec<(String, OwnedFd)>,
) -> Vec<(ExportedDevice, Option<OwnedFd>)> {
    let mut assigned: Vec<_> = devices.into_iter().map(|device| (device, None)).collect();
    let mut unnamed = VecDeque::new();
    for (name, fd) in passed {
        let named = assigned.iter_mut().find(|(device, socket)| {
            socket.is_none() && (device.name == name || device.device.name() == name)
        });
        match named {
            Some((_, socket)) => *socket = Some(fd),
            None => unnamed.push_back(fd),
        }
    }
    for (_, socket) in &mut assigned {
        if socket.is_none() {
            *socket = unnamed.pop_front();
        }
    }
    assigned
}

fn passed_socket(fd: OwnedFd) -> Result<(UnixListener, PathBuf)> {
    let listener = UnixListener::from(fd);
    let address = listener.local_addr();
    let address = address.context("a socket that was passed is no UNIX socket")?;
    let path = address.as_pathname().unwrap_or(Path::new("(unnamed)"));
    let path = path.to_owned();
    Ok((listener, path))
}

/// The directory of the sockets, which its owner alone can enter.
fn make_private(dir: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("making {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_takes_the_device_as_json() {
        assert_eq!(
            qemu_device("/run/a \"b\".sock"),
            r#"{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/run/a \"b\".sock"}}"#
        );
    }
}
