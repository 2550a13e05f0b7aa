//! Failures that a test asks for, of a running machine.

use std::sync::{Arc, mpsc::channel};

use ioasid_core::{
    PciAddress,
    host::{Spawner, StdSpawner},
    inject::{Injections, Tell},
};
use ioasid_vfio::{VfioDevice, mdev::Uuid};

use super::running::{Machine, REMOVE_PATIENCE};
use crate::file::{
    MachineFile,
    inject::{Action, At, InjectError, InjectSection},
};

impl Machine {
    /// Asks for the failures that the file names.
    pub(super) fn inject_all(self: &Arc<Self>, file: &MachineFile) -> Result<(), InjectError> {
        file.inject
            .iter()
            .try_for_each(|section| self.inject(section))
    }

    /// Asks for one failure; it is counted from now on.
    ///
    /// # Errors
    /// See [`InjectError`].
    pub fn inject(self: &Arc<Self>, section: &InjectSection) -> Result<(), InjectError> {
        section.check()?;
        let Some(name) = &section.device else {
            self.add(self.iommu.injections(), section, None);
            return Ok(());
        };
        let tell = self.teller(name, section.action)?;
        match (section.at, name.parse::<PciAddress>()) {
            (At::Descriptor, Ok(address)) => {
                let device = self.iommu.device(address);
                let device = device.ok_or_else(|| InjectError::Unknown(name.clone()))?;
                self.add(device.injections(), section, tell);
            }
            (At::Descriptor, Err(_)) => {
                self.node_of(name)?;
                return Err(InjectError::Mediated(name.clone()));
            }
            (At::Map | At::Interrupt, Ok(address)) => {
                let mut devices = self.devices.iter();
                let device = devices.find(|device| device.address == address);
                let device = device.ok_or_else(|| InjectError::Unknown(name.clone()))?;
                let vectors = device.whole.function().vectors();
                self.add(vectors.injections(), section, tell);
            }
            (At::Map | At::Interrupt, Err(_)) => {
                let node = self.node_of(name)?;
                let vectors = node.model().function().vectors();
                self.add(vectors.injections(), section, tell);
            }
        }
        Ok(())
    }

    /// Does `action`, a reset or a removal, at once.
    ///
    /// # Errors
    /// One sentence: there is no such device, or its user keeps it.
    pub fn act(&self, name: &str, action: Action) -> Result<(), String> {
        let node = self.node_of(name).map_err(|error| error.to_string())?;
        match action {
            Action::Reset => node.reset_by_host(),
            Action::Remove if name.parse::<Uuid>().is_ok() => {
                self.remove_mdev(name).map_err(|error| {
                    match std::error::Error::source(&error) {
                        Some(source) => format!("{error}: {source}"),
                        None => error.to_string(),
                    }
                })?;
            }
            Action::Remove => {
                let removed = self.vfio.remove(&node, REMOVE_PATIENCE);
                removed.map_err(|error| format!("{name}: {error}"))?;
                self.removed.lock().insert(node.name().to_owned());
                self.has_changed();
            }
            other => return Err(format!("{other} happens at something: name it")),
        }
        Ok(())
    }

    fn add(&self, injections: &Injections, section: &InjectSection, tell: Option<Tell>) {
        injections.add(section.point(), section.when(), section.failure(), tell);
    }

    /// For an action that waits for the device: a thread that does it when it is told to.
    fn teller(self: &Arc<Self>, name: &str, action: Action) -> Result<Option<Tell>, InjectError> {
        if !matches!(action, Action::Reset | Action::Remove) {
            return Ok(None);
        }
        self.node_of(name)?;
        let (told, wait) = channel();
        let (machine, name) = (Arc::downgrade(self), name.to_owned());
        let work = move || {
            // Ends with the machine, whose injections hold the other end.
            for () in wait {
                let Some(machine) = machine.upgrade() else {
                    return;
                };
                if let Err(error) = machine.act(&name, action) {
                    tracing::warn!("injected {action}: {error}");
                }
            }
        };
        let spawned = StdSpawner.spawn("inject", Box::new(work));
        if let Err(error) = spawned {
            tracing::warn!("no thread for an injected {action}: {error}");
        }
        Ok(Some(Box::new(move || {
            // The thread is there as long as this is.
            let _ = told.send(());
        })))
    }

    /// The device `name`, if programs can have it.
    fn node_of(&self, name: &str) -> Result<Arc<VfioDevice>, InjectError> {
        let exports = self.exports().into_iter();
        let mut named = exports.filter(|one| one.name.eq_ignore_ascii_case(name));
        if let Some(export) = named.next() {
            return Ok(export.device);
        }
        let address = name.parse::<PciAddress>();
        let is_of_host = address.is_ok_and(|address| {
            let mut devices = self.devices.iter();
            devices.any(|device| device.address == address && device.vfio.is_none())
        });
        Err(match is_of_host {
            true => InjectError::OfHost(name.to_owned()),
            false => InjectError::Unknown(name.to_owned()),
        })
    }
}
