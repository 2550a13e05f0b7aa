//! The commands of a client, one function each: payload in, payload out.

use std::sync::Arc;

use ioasid_host::ReceivedFd;
use ioasid_uapi::{
    error::RequestError,
    spec::vfio::{self as ioctl, DeviceInfo, Feature, IrqInfo, IrqSet, RegionInfo},
};
use ioasid_vfio::{
    DeviceFile, RegionIndex,
    error::RegionError,
    region::{INDEX_SHIFT, REGIONS},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    error::{Error, MessageError, Result},
    payload,
    spec::{DmaMap, DmaUnmap, MAX_DATA_XFER_SIZE, RegionAccess, RegionIoFds, SmallWrite, command},
    vm::Vm,
    wire::{MAX_FDS, Message},
};

/// Most vectors of one SET_IRQS: those of MSI-X (PCI local bus specification 3.0, 6.8.2).
const MAX_VECTORS: u32 = 2048;

/// Bytes of a feature's reply that are looked after.
const MAX_FEATURE: usize = 64 * 1024;

/// What a connection works on.
#[derive(Debug)]
pub(crate) struct Target {
    /// The number of the connection.
    pub(crate) number: u64,
    pub(crate) file: Arc<DeviceFile>,
    pub(crate) vm: Arc<Vm>,
}

/// `bytes` are not what a command needs.
pub(crate) fn size(bytes: usize, needed: usize) -> Error {
    MessageError::Size { bytes, needed }.into()
}

/// A payload that is nothing but a `T`.
pub(crate) fn whole<T: FromBytes + KnownLayout + Immutable>(payload: &[u8]) -> Result<T> {
    let whole = T::read_from_bytes(payload).ok();
    whole.ok_or(size(payload.len(), size_of::<T>()))
}

/// A `T`, and what follows it.
pub(crate) fn prefix<T: FromBytes + KnownLayout + Immutable>(payload: &[u8]) -> Result<(T, &[u8])> {
    let prefix = T::read_from_prefix(payload).ok();
    prefix.ok_or(size(payload.len(), size_of::<T>()))
}

/// The payload is a struct of at least `size` bytes, and so says the size that it begins with: that of
/// the struct itself, or the room that there is for the answer.
fn expect_argsz(payload: &[u8], needed: usize) -> Result<()> {
    let (argsz, _) = prefix::<u32>(payload)?;
    match payload.len().min(argsz as usize) {
        bytes if bytes < needed => Err(size(bytes, needed)),
        _ => Ok(()),
    }
}

/// Whether the command may wait for DMA of the device to end, for which its client may be needed.
pub(crate) fn may_wait(message: &Message) -> bool {
    match message.header.command {
        command::DMA_UNMAP | command::DEVICE_RESET | command::DEVICE_FEATURE => true,
        // Bus mastering and function level reset are in configuration space.
        command::REGION_WRITE => RegionAccess::read_from_prefix(&message.payload)
            .is_ok_and(|(access, _)| access.region == RegionIndex::Config.number()),
        command::REGION_WRITE_MULTI => true,
        _ => false,
    }
}

impl Target {
    /// Carries out a command; appends the payload of its reply to `reply`. A register's access
    /// allocates nothing once `reply` has had room for one.
    pub(crate) fn execute(&self, message: &mut Message, reply: &mut Vec<u8>) -> Result<()> {
        if message.descriptors.too_many {
            let limit = MAX_FDS;
            return Err(MessageError::TooManyDescriptors { limit }.into());
        }
        match message.header.command {
            command::REGION_READ => self.region_read(&message.payload, reply),
            command::REGION_WRITE => self.region_write(&message.payload, reply),
            _ => {
                reply.extend(self.answer(message)?);
                Ok(())
            }
        }
    }

    /// The commands that are rare.
    fn answer(&self, message: &mut Message) -> Result<Vec<u8>> {
        let payload = std::mem::take(&mut message.payload);
        let fds = std::mem::take(&mut message.descriptors.fds);
        match message.header.command {
            command::DMA_MAP => self.dma_map(&payload, fds),
            command::DMA_UNMAP => self.dma_unmap(&payload),
            command::DEVICE_GET_INFO => self.device_info(&payload),
            command::DEVICE_GET_REGION_INFO => self.region_info(&payload),
            command::DEVICE_GET_REGION_IO_FDS => self.region_io_fds(&payload),
            command::DEVICE_GET_IRQ_INFO => self.irq_info(payload),
            command::DEVICE_SET_IRQS => self.set_irqs(payload, fds),
            command::REGION_WRITE_MULTI => self.region_write_multi(&payload),
            command::DEVICE_RESET => self.reset(&payload),
            command::DEVICE_FEATURE => self.feature(payload),
            command::MIG_DATA_READ => self.migration_read(&payload),
            command::MIG_DATA_WRITE => self.migration_write(&payload),
            command::VERSION => Err(MessageError::OutOfTurn.into()),
            number => Err(MessageError::Command { number }.into()),
        }
    }

    fn dma_map(&self, payload: &[u8], fds: Vec<ReceivedFd>) -> Result<Vec<u8>> {
        let (request, _) = prefix::<DmaMap>(payload)?;
        expect_argsz(payload, size_of::<DmaMap>())?;
        if fds.len() > 1 {
            return Err(descriptors(fds.len(), 1));
        }
        self.vm.map(self.number, &request, fds.into_iter().next())?;
        Ok(Vec::new())
    }

    fn dma_unmap(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let (request, _) = prefix::<DmaUnmap>(payload)?;
        expect_argsz(payload, size_of::<DmaUnmap>())?;
        self.vm.unmap(self.number, &request)?;
        let reply = DmaUnmap {
            argsz: size_of::<DmaUnmap>() as u32,
            ..request
        };
        Ok(reply.as_bytes().to_vec())
    }

    fn ioctl(&self, request: u32, payload: Vec<u8>, fds: Vec<ReceivedFd>) -> Result<Vec<u8>> {
        let client = self.vm.client();
        Ok(payload::ioctl(&self.file, request, payload, fds, client)?)
    }

    /// The answer is always the same 16 bytes, also where the client has room for more.
    fn device_info(&self, payload: &[u8]) -> Result<Vec<u8>> {
        expect_argsz(payload, DeviceInfo::MIN)?;
        let mut payload = vec![0; DeviceInfo::MIN];
        set_argsz(&mut payload, DeviceInfo::MIN);
        self.ioctl(ioctl::DEVICE_GET_INFO, payload, Vec::new())
    }

    /// No region can be mapped: its registers are not memory, and a store must reach the device in
    /// the order of the messages.
    fn region_info(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let (request, _) = prefix::<RegionInfo>(payload)?;
        expect_argsz(payload, RegionInfo::MIN)?;
        if request.index >= REGIONS {
            let index = request.index;
            return Err(RegionError::NoSuchIndex { index }.into());
        }
        // A region that no PCI device here has is one of size 0.
        let size = self
            .file
            .region_info(request.index)
            .map_or(0, |region| region.size);
        let flags = if size > 0 {
            RegionInfo::READ | RegionInfo::WRITE
        } else {
            0
        };
        let reply = RegionInfo {
            argsz: RegionInfo::MIN as u32,
            flags,
            index: request.index,
            cap_offset: 0,
            size,
            offset: 0,
        };
        Ok(reply.as_bytes().to_vec())
    }

    /// No part of a region is reached by a descriptor.
    fn region_io_fds(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let (request, _) = prefix::<RegionIoFds>(payload)?;
        expect_argsz(payload, size_of::<RegionIoFds>())?;
        let (flags, index) = (request.flags, request.index);
        if flags != 0 {
            return Err(field("flags", flags.into()));
        }
        if index >= REGIONS {
            return Err(field("index", index.into()));
        }
        let reply = RegionIoFds {
            argsz: size_of::<RegionIoFds>() as u32,
            flags: 0,
            index: request.index,
            count: 0,
        };
        Ok(reply.as_bytes().to_vec())
    }

    fn irq_info(&self, mut payload: Vec<u8>) -> Result<Vec<u8>> {
        expect_argsz(&payload, IrqInfo::MIN)?;
        payload.truncate(IrqInfo::MIN);
        set_argsz(&mut payload, IrqInfo::MIN);
        self.ioctl(ioctl::DEVICE_GET_IRQ_INFO, payload, Vec::new())
    }

    /// The ioctl has the numbers of its eventfds behind the struct; here they come along with the
    /// message, as many as there are vectors, or none at all to disconnect them.
    fn set_irqs(&self, mut payload: Vec<u8>, fds: Vec<ReceivedFd>) -> Result<Vec<u8>> {
        let (request, _) = prefix::<IrqSet>(&payload)?;
        expect_argsz(&payload, IrqSet::MIN)?;
        let eventfds = request.flags & IrqSet::DATA_MASK == IrqSet::DATA_EVENTFD;
        if eventfds {
            payload.truncate(IrqSet::MIN);
            // More vectors than there can be are refused without a look at their data.
            let count = request.count.min(MAX_VECTORS);
            if !fds.is_empty() && fds.len() != request.count as usize {
                return Err(descriptors(fds.len(), request.count as usize));
            }
            for index in 0..count as i32 {
                let number = if fds.is_empty() { -1 } else { index };
                payload.extend(number.to_ne_bytes());
            }
        } else if !fds.is_empty() {
            return Err(descriptors(fds.len(), 0));
        }
        let len = payload.len();
        set_argsz(&mut payload, len);
        self.ioctl(ioctl::DEVICE_SET_IRQS, payload, fds)?;
        Ok(Vec::new())
    }

    fn region_read(&self, payload: &[u8], reply: &mut Vec<u8>) -> Result<()> {
        let access: RegionAccess = whole(payload)?;
        let (at, count) = place(&access)?;
        reply.extend_from_slice(access.as_bytes());
        let here = reply.len();
        reply.resize(here + count, 0);
        let data = reply.get_mut(here..).unwrap_or_default();
        expect_all(self.file.read(at, data)?, count)
    }

    fn region_write(&self, payload: &[u8], reply: &mut Vec<u8>) -> Result<()> {
        let (access, data) = prefix::<RegionAccess>(payload)?;
        self.write(&access, data)?;
        reply.extend_from_slice(access.as_bytes());
        Ok(())
    }

    fn write(&self, access: &RegionAccess, data: &[u8]) -> Result<()> {
        let (at, count) = place(access)?;
        if data.len() != count {
            return Err(size(data.len(), count));
        }
        expect_all(self.file.write(at, data)?, count)
    }

    /// The writes that were done are counted; the first that fails ends them.
    fn region_write_multi(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let (count, rest) = prefix::<u64>(payload)?;
        let (writes, after) = rest.as_chunks::<{ size_of::<SmallWrite>() }>();
        if !after.is_empty() || u64::try_from(writes.len()) != Ok(count) {
            let needed = usize::try_from(count).unwrap_or(usize::MAX);
            let needed = needed.saturating_mul(size_of::<SmallWrite>());
            return Err(size(rest.len(), needed));
        }
        let mut done = 0_u64;
        for bytes in writes {
            let write: SmallWrite = whole(bytes)?;
            let data = write.data.get(..write.access.count as usize);
            let result = data.ok_or(too_much(write.access.count.into(), write.data.len() as u64));
            match result.and_then(|data| self.write(&write.access, data)) {
                Ok(()) => done += 1,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done.to_ne_bytes().to_vec())
    }

    fn reset(&self, payload: &[u8]) -> Result<Vec<u8>> {
        if !payload.is_empty() {
            return Err(size(payload.len(), 0));
        }
        self.ioctl(ioctl::DEVICE_RESET, Vec::new(), Vec::new())
    }

    /// A feature whose struct has neither a pointer nor a descriptor is the ioctl's; others have a form
    /// of their own over a socket, except for the dma-buf, which is not there.
    fn feature(&self, mut payload: Vec<u8>) -> Result<Vec<u8>> {
        let (request, _) = prefix::<Feature>(&payload)?;
        let argsz = request.argsz as usize;
        if argsz < Feature::MIN {
            return Err(size(argsz, Feature::MIN));
        }
        if payload.len() > MAX_FEATURE {
            return Err(size(payload.len(), MAX_FEATURE));
        }
        let feature = request.flags & Feature::NUMBER;
        if matches!(
            feature,
            Feature::MIGRATION | Feature::MIG_DEVICE_STATE | Feature::MIG_DATA_SIZE
        ) {
            return self.migration(&payload);
        }
        if matches!(
            feature,
            Feature::DMA_LOGGING_START | Feature::DMA_LOGGING_STOP | Feature::DMA_LOGGING_REPORT
        ) {
            return self.logging(&payload);
        }
        if feature == Feature::DMA_BUF {
            let number = feature;
            return Err(RequestError::UnknownFeature { number }.into());
        }
        let sent = payload.len();
        let gets = request.flags & (Feature::GET | Feature::PROBE) == Feature::GET;
        let room = if gets { argsz.min(MAX_FEATURE) } else { sent };
        payload.resize(room.max(sent), 0);
        let len = payload.len();
        set_argsz(&mut payload, len);
        self.ioctl(ioctl::DEVICE_FEATURE, payload, Vec::new())
    }
}

/// The reply to a feature request: its header, and `data`.
pub(crate) fn feature_reply(request: &Feature, data: &[u8]) -> Vec<u8> {
    let mut reply = [request.as_bytes(), data].concat();
    let len = reply.len();
    set_argsz(&mut reply, len);
    reply
}

fn descriptors(given: usize, expected: usize) -> Error {
    MessageError::Descriptors { given, expected }.into()
}

fn field(field: &'static str, value: u64) -> Error {
    MessageError::Field { field, value }.into()
}

/// More bytes than one access moves.
pub(crate) fn too_much(bytes: u64, limit: u64) -> Error {
    MessageError::TooMuch { bytes, limit }.into()
}

/// An access that passes the end of a region is no access of a device's driver.
fn expect_all(done: usize, bytes: usize) -> Result<()> {
    match done == bytes {
        true => Ok(()),
        false => Err(MessageError::BeyondRegion { bytes, done }.into()),
    }
}

/// The device file's offset of an access, and its bytes.
fn place(access: &RegionAccess) -> Result<(u64, usize)> {
    if access.count > MAX_DATA_XFER_SIZE {
        return Err(too_much(access.count.into(), MAX_DATA_XFER_SIZE.into()));
    }
    if access.offset >> INDEX_SHIFT != 0 {
        return Err(field("offset", access.offset));
    }
    let region = RegionIndex::new(access.region)?;
    Ok((region.offset() + access.offset, access.count as usize))
}

/// All structs of VFIO begin with their size.
pub(crate) fn set_argsz(payload: &mut [u8], size: usize) {
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    if let Some(argsz) = payload.first_chunk_mut() {
        *argsz = size.to_ne_bytes();
    }
}
