//! Descriptors of access objects: what stands for an emulated device in the self-test.

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::{AddrRange, failpoint, memory::PAGE_SIZE, sync::Mutex};
use ioasid_iommufd::{
    Access, AccessKind, AccessUser, Context, Error, EventError, EventFile, Notify, ObjectId,
    PinnedPages,
};
use ioasid_uapi::{Errno, Program};

use crate::{program::page_at, spec};

/// What a program has pinned through one access object.
#[derive(Debug, Default)]
struct Items {
    pinned: BTreeMap<u32, PinnedPages>,
    next: u32,
}

/// The user of the access object: lets go of everything that it is asked for.
#[derive(Debug, Default)]
struct PinUser(Mutex<Items>);

impl AccessUser for PinUser {
    fn unmap(&self, range: AddrRange) {
        let mut items = self.0.lock();
        items
            .pinned
            .retain(|_, pinned| !pinned.range().overlaps(range));
    }
}

/// The file behind a descriptor of an access object. It has neither read nor write; the object goes
/// with the last descriptor.
#[derive(Debug)]
pub(crate) struct AccessFile {
    user: Arc<PinUser>,
    pins: bool,
    access: Mutex<Option<Arc<Access>>>,
}

impl AccessFile {
    /// A new access object on `ioas`, and its file.
    pub(crate) fn create(
        context: &Arc<Context>,
        ioas: ObjectId,
        pins: bool,
    ) -> Result<Arc<Self>, Error> {
        failpoint::allocation()?;
        let user = Arc::<PinUser>::default();
        let kind = if pins {
            AccessKind::Pins(Arc::clone(&user) as Arc<dyn AccessUser>)
        } else {
            AccessKind::Copies
        };
        let access = context.create_access(kind)?;
        access.attach(ioas)?;
        Ok(Arc::new(AccessFile {
            user,
            pins,
            access: Mutex::new(Some(Arc::new(access))),
        }))
    }

    /// The file behind descriptor `fd` of the program.
    pub(crate) fn find(program: &dyn Program, fd: u32) -> Result<Arc<AccessFile>, Errno> {
        let fd = i32::try_from(fd).map_err(|_| Errno::EBADFD)?;
        let file = program.event_file(fd).map_err(|_| Errno::EBADFD)?;
        let file: Arc<dyn std::any::Any + Send + Sync> = file;
        file.downcast().map_err(|_| Errno::EBADFD)
    }

    fn access(&self) -> Result<Arc<Access>, Errno> {
        self.access.lock().clone().ok_or(Errno::EBADFD)
    }

    /// Pins pages; at `address` of the program there must be the same ones, unless it is 0.
    pub(crate) fn pin(
        &self,
        program: &dyn Program,
        args: &spec::AccessPages,
    ) -> Result<u32, Errno> {
        if !self.pins {
            return Err(Errno::EOPNOTSUPP);
        }
        let access = self.access()?;
        // Held over the pin: an unmap that follows finds it among the items.
        let mut items = self.user.0.lock();
        let write = args.flags & spec::access_flag::WRITE != 0;
        let pinned = access.pin(args.iova, args.length, write)?;
        if args.uptr != 0 {
            let mut address = args.uptr.wrapping_sub(args.iova % PAGE_SIZE);
            for (spa, len) in pinned.pieces() {
                for offset in (0..len).step_by(PAGE_SIZE as usize) {
                    if page_at(program, address)? != spa + offset {
                        return Err(Errno::EBADE);
                    }
                    address = address.wrapping_add(PAGE_SIZE);
                }
            }
        }
        failpoint::allocation()?;
        let id = items.next;
        items.next += 1;
        items.pinned.insert(id, pinned);
        Ok(id)
    }

    /// Unpins what [`AccessFile::pin`] has given.
    pub(crate) fn unpin(&self, id: u32) -> Result<(), Errno> {
        let item = self.user.0.lock().pinned.remove(&id);
        item.map(drop).ok_or(Errno::ENOENT)
    }

    /// Copies between the IOAS and a buffer of the program.
    pub(crate) fn copy(&self, program: &dyn Program, args: &spec::AccessRw) -> Result<(), Errno> {
        let access = self.access()?;
        let len = usize::try_from(args.length).map_err(|_| Errno::ENOMEM)?;
        failpoint::allocation()?;
        let mut buffer = vec![0; len];
        if args.flags & spec::access_flag::WRITE != 0 {
            program.read(args.uptr, &mut buffer)?;
            access.write(args.iova, &buffer)?;
        } else {
            access.read(args.iova, &mut buffer)?;
            program.write(args.uptr, &buffer)?;
        }
        Ok(())
    }

    /// Leaves the IOAS for another one.
    pub(crate) fn replace(&self, ioas: ObjectId) -> Result<(), Errno> {
        Ok(self.access()?.replace(ioas)?)
    }
}

impl EventFile for AccessFile {
    fn read(&self, _count: usize) -> Result<Vec<u8>, Error> {
        Err(EventError::NotReadable.into())
    }

    fn write(&self, _bytes: &[u8]) -> Result<usize, Error> {
        Err(EventError::NotWritable.into())
    }

    fn is_readable(&self) -> bool {
        false
    }

    fn set_notify(&self, _notify: Notify) {
        // Nothing ever changes.
    }

    fn closed(&self) {
        self.user.unmap(AddrRange::ALL);
        let access = self.access.lock().take();
        drop(access);
    }

    fn name(&self) -> &'static str {
        "[iommufd_test_staccess]"
    }
}
