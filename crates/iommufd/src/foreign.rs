//! Objects that a back end keeps in the object table: they have an id, and go by DESTROY or with the
//! file, like every other object. What they are is their owner's business.

use std::{any::Any, fmt, sync::Arc};

use ioasid_core::AddrRange;

use crate::{
    context::Context,
    error::Error,
    object::{Object, ObjectId},
};

/// An object of a back end. When it is taken out of the table it is dropped, with no lock held: it may
/// hold bound devices.
pub trait ForeignObject: Any + Send + Sync + fmt::Debug {}

/// An id that names nothing yet. Dropping it gives the id back.
pub struct ReservedId {
    context: Arc<Context>,
    id: ObjectId,
    named: bool,
}

impl Context {
    /// Takes the lowest free id, for an object that is still being made.
    ///
    /// # Errors
    /// [`Error::NoIds`], [`Error::Closed`].
    pub fn reserve_id(self: &Arc<Self>) -> Result<ReservedId, Error> {
        let id = self.open_objects()?.reserve()?;
        Ok(ReservedId {
            context: Arc::clone(self),
            id,
            named: false,
        })
    }

    /// Keeps a range of an IOAS unmapped for good, as hardware may ask for. It may overlap others.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::AddressInUse`].
    pub fn ioas_reserve(&self, ioas: ObjectId, range: AddrRange) -> Result<(), Error> {
        let ioas = self.ioas(ioas)?;
        let _change = ioas.change.lock();
        ioas.state.lock().space.reserve_for_good(range)
    }

    /// Whether there is such an object, of whatever type.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn object_exists(&self, id: ObjectId) -> Result<(), Error> {
        let object = self.objects.lock().object(id);
        object.map(drop).ok_or(Error::NoObject(id))
    }

    /// The back end's object `id`.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn foreign(&self, id: ObjectId) -> Result<Arc<dyn ForeignObject>, Error> {
        match self.objects.lock().object(id) {
            Some(Object::Foreign(object)) => Ok(object),
            _ => Err(Error::NoObject(id)),
        }
    }
}

impl ReservedId {
    /// The id.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Lets it name `object`.
    pub fn install(self, object: Arc<dyn ForeignObject>) -> ObjectId {
        self.name(Object::Foreign(object))
    }

    pub(crate) fn name(mut self, object: Object) -> ObjectId {
        self.named = true;
        let mut objects = self.context.objects.lock();
        objects.install(self.id, object);
        self.id
    }
}

impl Drop for ReservedId {
    fn drop(&mut self) {
        if !self.named {
            self.context.objects.lock().forget(self.id);
        }
    }
}

impl fmt::Debug for ReservedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReservedId({})", self.id)
    }
}
