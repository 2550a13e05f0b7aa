//! A VFIO group, `/dev/vfio/N`: devices that can only be given away together
//! (`drivers/vfio/group.c`).
//!
//! Its file is open once at a time. It is put into a [`Container`], or given an iommufd in a
//! container's place, and then opens its devices by name. A device that is open through a container
//! keeps the group's file in use after its last descriptor is closed, and with it the group's place
//! in the container: files can be closed in any order.
//!
//! While the file is open, no device of the group can be bound through its own file under
//! `/dev/vfio/devices`, and the other way round.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use ioasid_core::sync::Mutex;
use ioasid_iommu::Group;
use ioasid_iommufd::Context;

use super::{device::VfioDevice, file::DeviceFile, name};
use crate::{
    base::{
        error::{GroupError, Result},
        uuid::Uuid,
    },
    container::Container,
    device::{binding::Binding, core::DeviceCore, usage::DeviceUse},
};

/// A group of devices.
pub struct VfioGroup {
    group: Arc<Group>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    devices: BTreeMap<u32, Weak<VfioDevice>>,
    /// What keeps the file in use: its descriptor, and each device that is open by a container.
    users: usize,
    /// Devices that are bound through files of their own.
    bound_alone: usize,
    behind: Behind,
    /// The devices that are open, by number.
    open: BTreeMap<u32, OpenDevice>,
    /// A PCI address that its child has for programs besides its name.
    presented: Option<String>,
}

/// Where the DMA of a group's devices goes.
#[derive(Clone, Debug, Default)]
enum Behind {
    /// Nowhere yet.
    #[default]
    Nothing,
    /// Into a container, with the number of the membership.
    Container(Arc<Container>, u64),
    /// To an iommufd that stands in for one.
    Iommufd(Arc<Context>),
}

impl Behind {
    /// Binds and attaches a device that is opened. Gives nothing if the device belongs to a container
    /// as long as its group does.
    fn open(&self, group: u32, core: &Arc<DeviceCore>) -> Result<Option<Binding>> {
        match self {
            Behind::Nothing => Err(GroupError::NoContainer { group }.into()),
            Behind::Container(container, _) => container.open_device(core),
            Behind::Iommufd(context) => {
                let binding = core.bind(context)?;
                binding.attach(context.vfio_ioas()?, None)?;
                Ok(Some(binding))
            }
        }
    }
}

/// A device that is open through its group: one use of it, however many files.
struct OpenDevice {
    use_: DeviceUse,
    files: usize,
    /// The group's file is in use as long as the device is open.
    pins_group: bool,
}

/// A file that a group can be put into (VFIO_GROUP_SET_CONTAINER).
#[derive(Clone, Debug)]
pub enum ContainerFile {
    /// `/dev/vfio/vfio`.
    Container(Arc<Container>),
    /// `/dev/iommu`.
    Iommufd(Arc<Context>),
}

/// What VFIO_GROUP_GET_STATUS says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// It could be used by a program, or is.
    pub viable: bool,
    /// It has a container.
    pub container_set: bool,
}

impl VfioGroup {
    pub(crate) fn new(group: Arc<Group>) -> Arc<Self> {
        Arc::new(VfioGroup {
            group,
            state: Mutex::default(),
        })
    }

    /// Its number, the name of its node.
    pub fn number(&self) -> u32 {
        self.group.id()
    }

    /// The IOMMU's group. A child has one of its own, with no device in it.
    pub fn iommu_group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Its devices, by number.
    pub fn devices(&self) -> Vec<Arc<VfioDevice>> {
        self.state.lock().devices()
    }

    /// The child whose group this is can be opened by this PCI address too.
    pub fn present_as(&self, address: String) {
        self.state.lock().presented = Some(address);
    }

    pub(crate) fn add(&self, device: &Arc<VfioDevice>) {
        let mut state = self.state.lock();
        state.devices.insert(device.index(), Arc::downgrade(device));
    }

    /// A device is gone; with the last one the group leaves its container.
    pub(crate) fn remove(&self, device: &VfioDevice) {
        let behind = {
            let mut state = self.state.lock();
            state.devices.remove(&device.index());
            if !state.devices.is_empty() {
                return;
            }
            std::mem::take(&mut state.behind)
        };
        Self::leave(behind);
    }

    /// Opens its file.
    ///
    /// # Errors
    /// [`GroupError::Gone`] if it has no device any more; [`GroupError::Open`] if its file is in use;
    /// [`GroupError::DevicesBound`] if a device is bound through a file of its own.
    pub fn open(self: &Arc<Self>) -> Result<Arc<GroupFile>, GroupError> {
        let group = self.number();
        let mut state = self.state.lock();
        if state.devices.is_empty() {
            return Err(GroupError::Gone { group });
        }
        if state.users > 0 {
            return Err(GroupError::Open { group });
        }
        if state.bound_alone > 0 {
            let devices = state.bound_alone;
            return Err(GroupError::DevicesBound { group, devices });
        }
        state.users = 1;
        drop(state);
        Ok(Arc::new(GroupFile {
            group: Arc::clone(self),
            closed: AtomicBool::new(false),
        }))
    }

    /// A device of the group is to be bound through its own file: nobody can open the group's until
    /// the result is dropped.
    pub(crate) fn bind_alone(self: &Arc<Self>) -> Result<BoundAlone, GroupError> {
        let mut state = self.state.lock();
        if state.users > 0 {
            let group = self.number();
            return Err(GroupError::Open { group });
        }
        state.bound_alone += 1;
        drop(state);
        Ok(BoundAlone(Arc::clone(self)))
    }

    /// A file of a device that was opened through the group is closed.
    pub(crate) fn close_device(&self, device: &VfioDevice) {
        let last = {
            let mut state = self.state.lock();
            let Some(open) = state.open.get_mut(&device.index()) else {
                return;
            };
            open.files = open.files.saturating_sub(1);
            if open.files > 0 {
                return;
            }
            state.open.remove(&device.index())
        };
        if let Some(open) = last {
            // Waits for DMA: until that is over, the device is reserved and the file in use.
            drop(open.use_);
            if open.pins_group {
                self.put();
            }
        }
    }

    /// One user of the file less. The last one takes the group out of its container first.
    fn put(&self) {
        let behind = {
            let mut state = self.state.lock();
            if state.users > 1 {
                state.users -= 1;
                return;
            }
            std::mem::take(&mut state.behind)
        };
        Self::leave(behind);
        self.state.lock().users = 0;
    }

    /// Waits for DMA, so without the lock.
    fn leave(behind: Behind) {
        if let Behind::Container(container, member) = behind {
            container.leave(member);
        }
    }
}

impl State {
    fn devices(&self) -> Vec<Arc<VfioDevice>> {
        self.devices.values().filter_map(Weak::upgrade).collect()
    }

    /// Devices that are open by a container.
    fn pinned(&self) -> usize {
        self.open.values().filter(|open| open.pins_group).count()
    }
}

/// A device of the group is bound through its own file.
#[derive(Debug)]
pub(crate) struct BoundAlone(Arc<VfioGroup>);

impl Drop for BoundAlone {
    fn drop(&mut self) {
        self.0.state.lock().bound_alone -= 1;
    }
}

/// An open `/dev/vfio/N`. Dropping it closes it.
#[derive(Debug)]
pub struct GroupFile {
    group: Arc<VfioGroup>,
    closed: AtomicBool,
}

impl GroupFile {
    /// The group.
    pub fn group(&self) -> &Arc<VfioGroup> {
        &self.group
    }

    /// VFIO_GROUP_GET_STATUS.
    ///
    /// # Errors
    /// [`GroupError::Gone`] if the group has no device any more.
    pub fn status(&self) -> Result<GroupStatus, GroupError> {
        let state = self.group.state.lock();
        if state.devices.is_empty() {
            let group = self.group.number();
            return Err(GroupError::Gone { group });
        }
        let container_set = !matches!(state.behind, Behind::Nothing);
        let group = &self.group.group;
        Ok(GroupStatus {
            viable: container_set || (group.owner().is_none() && !group.dma_api_in_use()),
            container_set,
        })
    }

    /// Whether a container can be set, asked before it is known what file it would be.
    ///
    /// # Errors
    /// [`GroupError::ContainerSet`], [`GroupError::Gone`].
    pub fn expect_no_container(&self) -> Result<(), GroupError> {
        let state = self.group.state.lock();
        state.expect_no_container(self.group.number())
    }

    /// VFIO_GROUP_SET_CONTAINER. With a container the DMA of the group's devices belongs to it from
    /// now on; with an iommufd, which gets an IOAS for containers if it has none, each device is
    /// claimed when it is opened.
    ///
    /// # Errors
    /// [`GroupError::ContainerSet`]; [`GroupError::Gone`]; if somebody else has the DMA
    /// [`NotOwner`](ioasid_iommufd::AttachError::NotOwner) or
    /// [`GroupBusy`](ioasid_iommufd::AttachError::GroupBusy); if the container has an IOMMU backend, what
    /// attaching says, [`ContainerError::ReservedMapped`](crate::error::ContainerError::ReservedMapped)
    /// and [`ContainerError::AddressesInvalid`](crate::error::ContainerError::AddressesInvalid).
    pub fn set_container(&self, file: ContainerFile) -> Result<()> {
        let mut state = self.group.state.lock();
        state.expect_no_container(self.group.number())?;
        state.behind = match file {
            ContainerFile::Container(container) => {
                let presented = state.presented.is_some();
                let devices = state.devices();
                let cores: Vec<_> = devices.iter().map(|device| device.core()).collect();
                let member = container.join(&cores, presented)?;
                Behind::Container(container, member)
            }
            ContainerFile::Iommufd(context) => {
                context.vfio_ioas_or_new()?;
                Behind::Iommufd(context)
            }
        };
        Ok(())
    }

    /// VFIO_GROUP_UNSET_CONTAINER.
    ///
    /// # Errors
    /// [`GroupError::NoContainer`], [`GroupError::DevicesOpen`] if devices are open by the container.
    /// Devices that are open by an iommufd stay with it.
    pub fn unset_container(&self) -> Result<(), GroupError> {
        let group = self.group.number();
        let behind = {
            let mut state = self.group.state.lock();
            match state.behind {
                Behind::Nothing => return Err(GroupError::NoContainer { group }),
                Behind::Container(..) if state.pinned() > 0 => {
                    let devices = state.pinned();
                    return Err(GroupError::DevicesOpen { group, devices });
                }
                _ => std::mem::take(&mut state.behind),
            }
        };
        VfioGroup::leave(behind);
        Ok(())
    }

    /// VFIO_GROUP_GET_DEVICE_FD: opens the device called `name`, which is its bus address, for a PCI
    /// device with options behind it (`0000:6b:01.0 vf_token=UUID`). What is opened again is the same
    /// open device.
    ///
    /// # Errors
    /// In this order: [`GroupError::NoSuchDevice`]; [`GroupError::DeviceName`];
    /// [`BindError::Gone`](crate::error::BindError::Gone); [`GroupError::NoContainer`];
    /// [`ContainerError::NoBackend`](crate::error::ContainerError::NoBackend);
    /// [`BindError::BoundElsewhere`](crate::error::BindError::BoundElsewhere), and what binding and
    /// attaching to an iommufd say.
    pub fn open_device(&self, name: &[u8]) -> Result<Arc<DeviceFile>> {
        let group = &self.group;
        let number = group.number();
        let mut state = group.state.lock();
        let device = state.find(number, name)?;
        let file = device.open()?;
        if matches!(state.behind, Behind::Nothing) {
            return Err(GroupError::NoContainer { group: number }.into());
        }
        match state.open.get_mut(&device.index()) {
            Some(open) => open.files += 1,
            None => {
                let core = device.core();
                let open = OpenDevice {
                    use_: DeviceUse::open(core, file.number(), || state.behind.open(number, core))?,
                    files: 1,
                    pins_group: matches!(state.behind, Behind::Container(..)),
                };
                if open.pins_group {
                    state.users += 1;
                }
                state.open.insert(device.index(), open);
            }
        }
        file.enter_group(group);
        Ok(file)
    }

    /// Closes the file; the group stays in its container as long as devices are open by it. Does
    /// nothing the second time.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        {
            let mut state = self.group.state.lock();
            if let Behind::Iommufd(_) = state.behind {
                state.behind = Behind::Nothing;
            }
        }
        self.group.put();
    }
}

impl Drop for GroupFile {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    fn expect_no_container(&self, group: u32) -> Result<(), GroupError> {
        match self.behind {
            Behind::Nothing if self.devices.is_empty() => Err(GroupError::Gone { group }),
            Behind::Nothing => Ok(()),
            _ => Err(GroupError::ContainerSet { group }),
        }
    }

    /// The device that `name` means, if its options are right. A PCI function has options, a mediated
    /// device under its UUID none.
    fn find(&self, group: u32, name: &[u8]) -> Result<Arc<VfioDevice>> {
        for device in self.devices() {
            let own = device.bus_name();
            let address = if device.is_child() {
                if own.as_bytes() == name {
                    return Ok(device);
                }
                self.presented.as_deref()
            } else {
                Some(own)
            };
            let Some(address) = address else {
                continue;
            };
            let parsed = name::parse(address.as_bytes(), name).map_err(GroupError::from)?;
            if let Some(token) = parsed {
                let token = token.map(Uuid::to_bytes);
                device.check_token(token.as_ref())?;
                return Ok(device);
            }
        }
        let name = String::from_utf8_lossy(name).into_owned();
        Err(GroupError::NoSuchDevice { group, name }.into())
    }
}

impl fmt::Debug for VfioGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioGroup")
            .field("number", &self.number())
            .finish_non_exhaustive()
    }
}
