//! A VFIO container, `/dev/vfio/vfio` (`drivers/vfio/{container,vfio_iommu_type1}.c`).
//!
//! Groups are put into it, then it is given an IOMMU backend, one of the two versions of *type 1*.
//! Behind that stands an IOAS of an iommufd context of its own: pages, areas and page tables are
//! those of `/dev/iommu`; what is here is which mappings there are and the rules of their own that
//! type 1 has for them. All devices of a container stand on one address space, and so on one domain
//! where their IOMMU allows it.
//!
//! A whole device is claimed when its group is put into the container and attached when that has a
//! backend. A default-PASID child is bound and attached while it is open: its PASID is there as long
//! as its user.
//!
//! When the last group leaves, the backend goes and everything is unmapped.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use ioasid_core::{AddrRange, host::Account, memory::PageSource, sync::Mutex};
use ioasid_iommufd::{Context, ObjectId};

use crate::{
    base::error::{ContainerError, Error, Result},
    device::{binding::Binding, core::DeviceCore},
};

mod type1;

use type1::Type1;
pub use type1::{DirtyRange, MapRequest, UnmapRequest};

/// A version of the type 1 IOMMU backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// An unmap takes mappings that start in its range, whole (`VFIO_TYPE1_IOMMU`).
    V1,
    /// An unmap may not cut a mapping (`VFIO_TYPE1v2_IOMMU`).
    V2,
}

/// What a container can be asked about (VFIO_CHECK_EXTENSION).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// A version of the backend, and unmapping everything at once.
    Always,
    /// All page tables make DMA coherent with the processor's caches.
    DmaCoherent,
    /// Mappings can get other addresses of the program's.
    UpdateVaddr,
}

/// What VFIO_IOMMU_GET_INFO says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Sizes of pages, as a bitmap.
    pub page_sizes: u64,
    /// The smallest of them, in bytes: what mappings and dirty bits are multiples of.
    pub page_size: u64,
    /// Mappings that there can be beyond those there are.
    pub mappings_left: u32,
    /// Where mappings can be, unless the container has mediated devices alone.
    pub iova_ranges: Option<Vec<AddrRange>>,
}

/// A container.
pub struct Container {
    context: Arc<Context>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The groups, the last one first.
    members: Vec<Member>,
    /// The number of the last one that came.
    last_member: u64,
    backend: Option<Type1>,
}

/// A group in the container.
struct Member {
    number: u64,
    /// Its whole devices.
    whole: Vec<(Weak<DeviceCore>, Binding)>,
    has_child: bool,
    /// It shows as a PCI function, so programs expect to learn where mappings can be.
    has_function: bool,
}

impl Member {
    fn attach(&self, ioas: ObjectId) -> Result<()> {
        self.whole
            .iter()
            .try_for_each(|(_, device)| attach(device, ioas))
    }
}

fn attach(device: &Binding, ioas: ObjectId) -> Result<()> {
    match device.attach(ioas, None) {
        Ok(_) => Ok(()),
        // What the device reserves is in the way of a mapping.
        Err(Error::Iommufd(error)) if error.is_range_conflict() => {
            Err(ContainerError::ReservedMapped(error).into())
        }
        Err(error) => Err(error),
    }
}

impl Container {
    /// An empty one, on a context of its own.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Container {
            context,
            state: Mutex::default(),
        })
    }

    /// The context that its address space is in.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The version of its backend, if it has one.
    pub fn version(&self) -> Option<Version> {
        Some(self.state.lock().backend.as_ref()?.version())
    }

    /// VFIO_CHECK_EXTENSION, as far as it depends on the container.
    pub fn has(&self, extension: Extension) -> bool {
        let state = self.state.lock();
        match (extension, &state.backend) {
            (Extension::Always, _) => true,
            (_, None) => false,
            (Extension::UpdateVaddr, Some(_)) => !state.has_child(),
            (Extension::DmaCoherent, Some(backend)) => backend.is_coherent(),
        }
    }

    /// VFIO_SET_IOMMU: gives the container its backend and attaches what is in it.
    ///
    /// # Errors
    /// [`ContainerError::NoGroup`], [`ContainerError::BackendSet`]; what attaching says.
    pub fn set_iommu(&self, version: Version) -> Result<()> {
        let mut state = self.state.lock();
        state.expect_group_alone()?;
        let backend = Type1::new(&self.context, version)?;
        for member in &state.members {
            if let Err(error) = member.attach(backend.ioas()) {
                state.detach();
                return Err(error);
            }
        }
        state.backend = Some(backend);
        Ok(())
    }

    /// VFIO_SET_IOMMU with a type that no backend is of.
    ///
    /// # Errors
    /// Always: as [`Container::set_iommu`], else [`ContainerError::NoSuchBackend`].
    pub fn refuse_iommu(&self) -> Result<()> {
        self.state.lock().expect_group_alone()?;
        Err(ContainerError::NoSuchBackend.into())
    }

    /// VFIO_IOMMU_GET_INFO.
    ///
    /// # Errors
    /// [`ContainerError::NoBackend`].
    pub fn info(&self) -> Result<Info> {
        let state = self.state.lock();
        let backend = state.backend()?;
        let any_function = state.members.iter().any(|member| member.has_function);
        let page_sizes = backend.page_sizes()?;
        Ok(Info {
            page_sizes,
            page_size: type1::smallest(page_sizes),
            mappings_left: backend.mappings_left(),
            iova_ranges: any_function.then(|| backend.iova_ranges()).transpose()?,
        })
    }

    /// VFIO_IOMMU_MAP_DMA. `pages` is called when everything else is found right.
    ///
    /// # Errors
    /// In this order: [`ContainerError::NoBackend`], `MapError::Empty`, `MapError::Overflow`,
    /// `MapError::Permissions`, `MapError::Misaligned`, then for new addresses of an old mapping
    /// `MapError::NotFound` and `MapError::NotInvalid`; else `MapError::Exists`, `MapError::TooMany`,
    /// the error of `pages`, and [`Error::Iommufd`].
    pub fn map<E: From<Error>>(
        &self,
        account: Account,
        request: &MapRequest,
        pages: impl FnOnce() -> std::result::Result<Arc<dyn PageSource>, E>,
    ) -> std::result::Result<(), E> {
        let mut state = self.state.lock();
        let backend = state.backend_mut()?;
        backend.map(account, request, pages)
    }

    /// VFIO_IOMMU_UNMAP_DMA; returns the bytes unmapped (or made invalid). `dirty` is called for each
    /// mapping before it goes, if the request asks for dirty pages; an error of its ends the request.
    ///
    /// # Errors
    /// [`ContainerError::NoBackend`], [`ContainerError::AddressesNeeded`], `MapError`,
    /// [`Error::Iommufd`].
    pub fn unmap<E: From<Error>>(
        &self,
        request: &UnmapRequest,
        dirty: impl FnMut(AddrRange) -> std::result::Result<(), E>,
    ) -> std::result::Result<u64, E> {
        let mut state = self.state.lock();
        if request.vaddr && state.backend.is_some() && state.has_child() {
            return Err(Error::from(ContainerError::AddressesNeeded).into());
        }
        let backend = state.backend_mut()?;
        backend.unmap(request, dirty)
    }

    /// VFIO_IOMMU_DIRTY_PAGES: starts or stops tracking.
    ///
    /// # Errors
    /// [`ContainerError::NoBackend`], `MapError::NoDirtyPages`, `MapError::TooLargeForBitmap`.
    pub fn set_dirty_tracking(&self, on: bool) -> Result<()> {
        let mut state = self.state.lock();
        let backend = state.backend_mut()?;
        backend.set_tracking(on)
    }

    /// VFIO_IOMMU_DIRTY_PAGES: which mappings in a range may have been written. As in Linux with a
    /// device that has an IOMMU, that is all of each.
    ///
    /// # Errors
    /// [`ContainerError::NoBackend`], `MapError`; and what `dirty` says.
    pub fn dirty<E: From<Error>>(
        &self,
        range: &DirtyRange,
        dirty: impl FnMut(AddrRange) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let state = self.state.lock();
        let backend = state.backend()?;
        backend.dirty(range, dirty)
    }

    /// Puts a group in: its whole devices are claimed, and attached if there is a backend. A child
    /// that is `presented` has a PCI address for programs. Gives the number of the membership.
    pub(crate) fn join(&self, devices: &[&Arc<DeviceCore>], presented: bool) -> Result<u64> {
        let mut state = self.state.lock();
        let (children, whole): (Vec<_>, Vec<_>) =
            devices.iter().partition(|device| device.is_child());
        let bind = |device: &Arc<DeviceCore>| {
            let binding = device.bind(&self.context)?;
            Ok((Arc::downgrade(device), binding))
        };
        let member = Member {
            number: state.last_member + 1,
            has_function: presented || !whole.is_empty(),
            whole: whole.into_iter().map(bind).collect::<Result<_>>()?,
            has_child: !children.is_empty(),
        };
        if let Some(backend) = &state.backend {
            match backend.invalid_addresses() {
                0 => {}
                mappings => return Err(ContainerError::AddressesInvalid { mappings }.into()),
            }
            member.attach(backend.ioas())?;
        }
        state.last_member = member.number;
        state.members.insert(0, member);
        Ok(state.last_member)
    }

    /// Takes a group out, by the number that [`Container::join`] gave: its devices are detached and
    /// given back when this returns.
    pub(crate) fn leave(&self, number: u64) {
        let mut state = self.state.lock();
        state.members.retain(|member| member.number != number);
        if state.members.is_empty() {
            state.backend = None;
        }
    }

    /// A device of a group in here is opened. What must stay as long as it is open is returned.
    pub(crate) fn open_device(&self, device: &Arc<DeviceCore>) -> Result<Option<Binding>> {
        let state = self.state.lock();
        let backend = state.backend()?;
        let mut claimed = state.members.iter().flat_map(|member| &member.whole);
        let own = Arc::downgrade(device);
        if claimed.any(|(claimed, _)| claimed.ptr_eq(&own)) {
            return Ok(None);
        }
        let binding = device.bind(&self.context)?;
        attach(&binding, backend.ioas())?;
        Ok(Some(binding))
    }
}

impl State {
    fn backend(&self) -> Result<&Type1> {
        Ok(self.backend.as_ref().ok_or(ContainerError::NoBackend)?)
    }

    fn backend_mut(&mut self) -> Result<&mut Type1> {
        Ok(self.backend.as_mut().ok_or(ContainerError::NoBackend)?)
    }

    /// A backend can be given: there is a group, and no backend yet.
    fn expect_group_alone(&self) -> Result<(), ContainerError> {
        if self.members.is_empty() {
            return Err(ContainerError::NoGroup);
        }
        match self.backend {
            Some(_) => Err(ContainerError::BackendSet),
            None => Ok(()),
        }
    }

    fn has_child(&self) -> bool {
        self.members.iter().any(|member| member.has_child)
    }

    fn detach(&self) {
        for (_, device) in self.members.iter().flat_map(|member| &member.whole) {
            device.detach(None);
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let state = std::mem::take(&mut *self.state.lock());
        drop(state.members);
        drop(state.backend);
        self.context.close();
    }
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").finish_non_exhaustive()
    }
}
