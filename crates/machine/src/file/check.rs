//! What more than one key, or more than one section, must agree on.

use std::collections::BTreeSet;

use ioasid_core::{PciAddress, Rid};
use ioasid_vfio::mdev::Uuid;

use super::{
    DeviceSection, MachineFile,
    error::{DeviceError, MachineFileError, Place},
};
use crate::model::{Driver, ModelError};

/// What is taken already.
#[derive(Default)]
struct Taken {
    addresses: BTreeSet<PciAddress>,
    uuids: BTreeSet<Uuid>,
}

impl Taken {
    fn address(&mut self, address: PciAddress) -> Result<(), MachineFileError> {
        match self.addresses.insert(address) {
            true => Ok(()),
            false => Err(MachineFileError::AddressTwice(address)),
        }
    }

    fn uuid(&mut self, place: Place, uuid: Uuid) -> Result<(), MachineFileError> {
        match self.uuids.insert(uuid) {
            true => Ok(()),
            false => Err(MachineFileError::UuidTwice { place, uuid }),
        }
    }
}

impl MachineFile {
    /// Gives every device an address, and refuses what cannot be built.
    pub(super) fn checked(mut self) -> Result<Self, MachineFileError> {
        if self.device.is_empty() && self.emulated.is_empty() {
            return Err(MachineFileError::NoDevice);
        }
        for (number, section) in (1..).zip(&self.inject) {
            let checked = section.check();
            checked.map_err(|source| MachineFileError::Inject { number, source })?;
        }
        let mut taken = Taken::default();
        self.check_emulated(&mut taken)?;
        for device in &self.device {
            let mdevs = device.own.mdevs().into_iter();
            let presented = mdevs.filter_map(|mdev| mdev.present_as);
            for address in device.address.into_iter().chain(presented) {
                taken.address(address)?;
            }
        }
        let mut free = (0x6a_u16..=0xff).map(|bus| PciAddress {
            segment: 0,
            rid: Rid(bus << 8 | 1 << 3),
        });
        for device in &mut self.device {
            let address = match device.address {
                Some(address) => address,
                None => free
                    .find(|address| taken.addresses.insert(*address))
                    .ok_or(MachineFileError::NoAddress)?,
            };
            device.address = Some(address);
            device
                .check()
                .map_err(|source| MachineFileError::Device { address, source })?;
            if let Some(functions) = device.own.virtual_functions() {
                for index in 0..functions.total {
                    let own = functions.address(address, index);
                    own.and_then(|own| taken.address(own).ok())
                        .ok_or(MachineFileError::NoVirtualAddress { address, index })?;
                }
            }
            for mdev in device.own.mdevs() {
                taken.uuid(Place::Device(address), mdev.uuid)?;
            }
        }
        Ok(self)
    }

    fn check_emulated(&self, taken: &mut Taken) -> Result<(), MachineFileError> {
        let mut parents = BTreeSet::new();
        for section in &self.emulated {
            let model = section.model;
            if !parents.insert(model) && section.has_keys {
                return Err(MachineFileError::EmulatedKeys { model });
            }
            if section.uuid.is_none() && (section.vm.is_some() || section.present_as.is_some()) {
                return Err(MachineFileError::EmulatedWithoutUuid);
            }
            if let Some(uuid) = section.uuid {
                taken.uuid(Place::Emulated, uuid)?;
            }
            if let Some(address) = section.present_as {
                taken.address(address)?;
            }
        }
        Ok(())
    }
}

impl DeviceSection {
    fn check(&self) -> Result<(), ModelError> {
        self.own.check(self.driver)?;
        if self.driver == Driver::Host {
            if self.vm.is_some() {
                return Err(DeviceError::VmOfHost.into());
            }
            if self.host_driver.is_none() {
                return Err(DeviceError::NoHostDriver { model: self.model }.into());
            }
        }
        Ok(())
    }
}
