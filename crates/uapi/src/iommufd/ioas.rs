//! Commands on address spaces (drivers/iommu/iommufd/ioas.c).

use std::sync::Arc;

use ioasid_core::{
    AddrRange, Prot,
    host::FdError,
    memory::{Extent, MemoryGone, PAGE_SIZE, PageSource, PinError},
};
use ioasid_iommufd::{CopyArgs, MapArgs, MapError, ObjectId, RangeError, UnmapError};
use zerocopy::IntoBytes;

use super::{call::Call, supported};
use crate::{
    CallError,
    error::{FieldError, RequestError},
    fields::names,
    memory,
    spec::iommufd as spec,
};

/// Ranges that ALLOW_IOVAS takes. The kernel's limit is the memory that the program may use; an
/// IOAS here has at most this many.
const ALLOWED_RANGES: u32 = 1 << 16;

pub(super) fn alloc(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::IoasAlloc = call.args();
    supported(FieldError::zero("flags", args.flags))?;
    let id = call.context().ioas_alloc()?;
    args.out_ioas_id = id.get();
    call.reply_new(&args, id)
}

pub(super) fn iova_ranges(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::IoasIovaRanges = call.args();
    supported(FieldError::zero("reserved", args.reserved))?;
    let found = call
        .context()
        .ioas_iova_ranges(ObjectId::from_raw(args.ioas_id))?;
    let room = args.num_iovas as usize;
    let ranges: Vec<spec::IovaRange> = found
        .ranges
        .iter()
        .take(room)
        .map(|range| spec::IovaRange {
            start: range.start(),
            last: range.last(),
        })
        .collect();
    if !ranges.is_empty() {
        memory::write(call.program(), args.allowed_iovas, ranges.as_bytes())?;
    }
    args.num_iovas = u32::try_from(found.ranges.len()).unwrap_or(u32::MAX);
    args.out_iova_alignment = found.alignment;
    call.reply(&args)?;
    // The number that is needed and the ranges that fit are written all the same.
    if found.ranges.len() > room {
        return Err(RequestError::NoRoom {
            room: room as u64,
            needed: found.ranges.len() as u64,
        }
        .into());
    }
    Ok(0)
}

pub(super) fn allow_iovas(call: &Call<'_>) -> Result<u64, CallError> {
    let args: spec::IoasAllowIovas = call.args();
    supported(FieldError::zero("reserved", args.reserved))?;
    let ioas = ObjectId::from_raw(args.ioas_id);
    call.context().ioas_exists(ioas)?;
    let mut allowed = Vec::new();
    let mut chunk = [spec::IovaRange::default(); 64];
    let count = args.num_iovas as usize;
    while allowed.len() < count {
        if allowed.len() >= ALLOWED_RANGES as usize {
            return Err(RequestError::TooManyRanges {
                given: count as u64,
                limit: ALLOWED_RANGES.into(),
            }
            .into());
        }
        let room = chunk.len().min(count - allowed.len());
        let chunk = &mut chunk[..room];
        call.read_array(args.allowed_iovas, allowed.len(), chunk)?;
        for range in chunk {
            let spec::IovaRange { start, last } = *range;
            let range = AddrRange::new(start, last).filter(|_| start < last);
            allowed.push(range.ok_or(RangeError::Empty { start, last })?);
        }
    }
    call.context().ioas_allow_iovas(ioas, &allowed)?;
    Ok(0)
}

/// What MAP, MAP_FILE and COPY check in common, before any id is looked up.
fn check_map(flags: u32, addresses: &[(&'static str, u64)]) -> Result<Prot, CallError> {
    supported(FieldError::flags("flags", flags, names::IOAS_MAP))?;
    if let Some((field, value)) = addresses.iter().find(|(_, value)| *value == u64::MAX) {
        let (field, value) = (*field, *value);
        return Err(RequestError::LastAddress { field, value }.into());
    }
    let prot = Prot {
        read: flags & spec::MAP_READABLE != 0,
        write: flags & spec::MAP_WRITEABLE != 0,
    };
    if prot == Prot::NONE {
        return Err(MapError::NoPermission.into());
    }
    Ok(prot)
}

/// The IOVA, unless one is to be chosen.
fn fixed(flags: u32, iova: u64) -> Option<u64> {
    (flags & spec::MAP_FIXED_IOVA != 0).then_some(iova)
}

pub(super) fn map(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::IoasMap = call.args();
    supported(FieldError::zero("reserved", args.reserved))?;
    let prot = check_map(args.flags, &[("iova", args.iova), ("length", args.length)])?;
    let ioas = ObjectId::from_raw(args.ioas_id);
    call.context().ioas_exists(ioas)?;
    check_end(args.user_va, args.length)?;
    let map = pages_of(
        args.user_va,
        args.length,
        fixed(args.flags, args.iova),
        prot,
    )?;
    let (address, len) = (args.user_va - map.offset, args.length + map.offset);
    let pages = call.program().pages(address, len);
    let pages = pages.map_err(|error| RequestError::Pages {
        address,
        len,
        error,
    })?;
    let account = call.program().account();
    let context = call.context();
    args.iova = context.ioas_map_for(account, ioas, pages, map)?;
    call.reply(&args)
}

pub(super) fn map_file(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::IoasMapFile = call.args();
    let prot = check_map(args.flags, &[("iova", args.iova), ("length", args.length)])?;
    let ioas = ObjectId::from_raw(args.ioas_id);
    call.context().ioas_exists(ioas)?;
    // The length before the file is looked up, as in the kernel (`iopt_map_file_pages`).
    let map = pages_of(args.start, args.length, fixed(args.flags, args.iova), prot)?;
    let file_range = AddrRange::from_len(args.start, args.length);
    file_range.ok_or(MapError::Overflow {
        start: args.start,
        len: args.length,
    })?;
    let offset = map.offset;
    let len = args.length.saturating_add(offset);
    let start = args.start - offset;
    let program = call.program();
    let pages = match program.event_file(args.fd) {
        Ok(file) => file.pages(start, len),
        Err(_) => program.file_pages(args.fd, start, len),
    };
    let pages: Arc<dyn PageSource> = match pages {
        Ok(pages) => pages,
        Err(FdError::WrongType | FdError::BeyondEnd) => Arc::new(NoPages { start, len }),
        Err(error) => {
            return Err(RequestError::FilePages {
                fd: args.fd,
                start,
                len,
                error,
            }
            .into());
        }
    };
    let account = call.program().account();
    let context = call.context();
    args.iova = context.ioas_map_for(account, ioas, pages, map)?;
    call.reply(&args)
}

/// The end of `len` bytes from `address` is an address too.
pub(super) fn check_end(start: u64, len: u64) -> Result<(), MapError> {
    let end = start.checked_add(len);
    end.map(drop).ok_or(MapError::Overflow { start, len })
}

/// The mapping of `len` bytes from `address` on, whose pages start at the page of `address`.
pub(super) fn pages_of(
    address: u64,
    len: u64,
    iova: Option<u64>,
    prot: Prot,
) -> Result<MapArgs, CallError> {
    if len == 0 {
        return Err(MapError::Empty.into());
    }
    if len > u64::MAX - PAGE_SIZE {
        return Err(MapError::TooLong { len }.into());
    }
    Ok(MapArgs {
        iova,
        len,
        offset: address % PAGE_SIZE,
        prot,
    })
}

/// A file that has no such pages. Linux looks only when the pages are needed: with no device
/// attached such a mapping can be made.
#[derive(Debug)]
struct NoPages {
    start: u64,
    len: u64,
}

impl PageSource for NoPages {
    fn size(&self) -> u64 {
        self.len
    }

    fn pin(&self, _offset: u64, _len: u64, _prot: Prot) -> Result<Vec<Extent>, PinError> {
        Err(PinError::OutOfRange)
    }

    fn alignment_hint(&self) -> u64 {
        self.start
    }

    fn is_file(&self) -> bool {
        true
    }

    fn read(&self, _offset: u64, _dst: &mut [u8]) -> Result<(), MemoryGone> {
        Err(MemoryGone { done: 0 })
    }

    fn write(&self, _offset: u64, _src: &[u8]) -> Result<(), MemoryGone> {
        Err(MemoryGone { done: 0 })
    }
}

pub(super) fn copy(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::IoasCopy = call.args();
    let addresses = [
        ("length", args.length),
        ("src_iova", args.src_iova),
        ("dst_iova", args.dst_iova),
    ];
    let prot = check_map(args.flags, &addresses)?;
    args.dst_iova = call.context().ioas_copy(CopyArgs {
        dst: ObjectId::from_raw(args.dst_ioas_id),
        src: ObjectId::from_raw(args.src_ioas_id),
        dst_iova: fixed(args.flags, args.dst_iova),
        src_iova: args.src_iova,
        len: args.length,
        prot,
    })?;
    call.reply(&args)
}

pub(super) fn unmap(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::IoasUnmap = call.args();
    let ioas = ObjectId::from_raw(args.ioas_id);
    args.length = if args.iova == 0 && args.length == u64::MAX {
        call.context().ioas_unmap_all(ioas)?
    } else {
        call.context().ioas_exists(ioas)?;
        if args.iova == u64::MAX || args.length == u64::MAX {
            return Err(UnmapError::Overflow {
                start: args.iova,
                len: args.length,
            }
            .into());
        }
        call.context().ioas_unmap(ioas, args.iova, args.length)?
    };
    call.reply(&args)
}
