//! The ioctls of a VFIO container, `/dev/vfio/vfio`
//! (`drivers/vfio/{container,vfio_iommu_type1}.c`).
//!
//! Until the container has its IOMMU backend, everything but the first three commands is EINVAL, what
//! is not known too; then that is ENOTTY. Structs begin with `argsz`, the bytes that the program has,
//! of which a longer one than known is fine.

use std::mem::size_of;

use ioasid_core::{AddrRange, Prot};
use ioasid_vfio::{
    Container,
    container::{DirtyRange, Extension, MapRequest, UnmapRequest, Version},
    error::{ContainerError, MapError},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{copy, long_enough, valid};
use crate::{
    CallError, Program,
    error::{FieldError, RequestError},
    fields::{Described, names},
    memory,
    spec::container as spec,
    table::{self, Argument, File, Row},
};

mod bitmap;

use bitmap::DirtyBits;

type Handler = fn(&Container, u64, &dyn Program) -> Result<u64, CallError>;

type Command = table::Command<Handler>;

/// The commands that work on any container, by number.
const COMMANDS: &[Command] = &[
    Command::plain(
        spec::GET_API_VERSION,
        "GET_API_VERSION",
        Argument::None,
        |_, _, _| Ok(spec::API_VERSION),
    ),
    Command::plain(
        spec::CHECK_EXTENSION,
        "CHECK_EXTENSION",
        Argument::Number(names::EXTENSION),
        check_extension,
    ),
    Command::plain(
        spec::SET_IOMMU,
        "SET_IOMMU",
        Argument::Number(names::EXTENSION),
        set_iommu,
    ),
];

/// The commands of the type 1 backend, by number.
const TYPE1: &[Command] = &[
    Command::with::<spec::Info>(spec::IOMMU_GET_INFO, "IOMMU_GET_INFO", spec::INFO_MIN, info),
    command::<spec::DmaMap>(spec::IOMMU_MAP_DMA, "IOMMU_MAP_DMA", map),
    command::<spec::DmaUnmap>(spec::IOMMU_UNMAP_DMA, "IOMMU_UNMAP_DMA", unmap),
    command::<spec::DirtyBitmap>(spec::IOMMU_DIRTY_PAGES, "IOMMU_DIRTY_PAGES", dirty_pages),
];

const fn command<T: Described>(request: u32, name: &'static str, handler: Handler) -> Command {
    Command::with::<T>(request, name, size_of::<T>(), handler)
}

/// As documents show them.
pub(crate) fn rows() -> impl Iterator<Item = Row> {
    table::rows(File::Container, COMMANDS).chain(table::rows(File::Container, TYPE1))
}

/// Runs the ioctl `cmd` with the argument `arg` on a container, for `program`.
///
/// # Errors
/// What the kernel would answer.
pub fn ioctl(
    container: &Container,
    cmd: u32,
    arg: u64,
    program: &dyn Program,
) -> Result<u64, CallError> {
    if let Some(command) = table::find(COMMANDS, cmd) {
        return (command.handler)(container, arg, program);
    }
    if container.version().is_none() {
        return Err(ContainerError::NoBackend.into());
    }
    let command = table::find(TYPE1, cmd).ok_or(RequestError::UnknownCommand {
        file: File::Container,
        request: cmd,
    })?;
    (command.handler)(container, arg, program)
}

fn check_extension(container: &Container, arg: u64, _: &dyn Program) -> Result<u64, CallError> {
    let extension = match arg {
        spec::TYPE1_IOMMU | spec::TYPE1V2_IOMMU | spec::UNMAP_ALL => Extension::Always,
        spec::DMA_CC_IOMMU => Extension::DmaCoherent,
        spec::UPDATE_VADDR => Extension::UpdateVaddr,
        _ => return Ok(0),
    };
    Ok(container.has(extension).into())
}

fn set_iommu(container: &Container, arg: u64, _: &dyn Program) -> Result<u64, CallError> {
    let version = match arg {
        spec::TYPE1_IOMMU => Some(Version::V1),
        spec::TYPE1V2_IOMMU => Some(Version::V2),
        _ => None,
    };
    match version {
        Some(version) => container.set_iommu(version)?,
        None => container.refuse_iommu()?,
    }
    Ok(0)
}

/// The chain of capabilities goes behind the struct if all of it fits; else the program learns how
/// many bytes it needs.
fn info(container: &Container, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    const HEAD: usize = size_of::<spec::Info>();
    let given: spec::Info = copy::standard(program, arg, spec::INFO_MIN)?;
    let info = container.info()?;
    let mut chain = Vec::new();
    let migration = spec::CapMigration {
        header: spec::CapHeader::new(spec::CAP_MIGRATION),
        flags: 0,
        pad: 0,
        pgsize_bitmap: info.page_size,
        max_dirty_bitmap_size: spec::MAX_DIRTY_BITMAP,
    };
    let avail = spec::CapDmaAvail {
        header: spec::CapHeader::new(spec::CAP_DMA_AVAIL),
        avail: info.mappings_left,
    };
    push(&mut chain, &migration, true);
    push(&mut chain, &avail, info.iova_ranges.is_some());
    if let Some(ranges) = &info.iova_ranges {
        let cap = spec::CapIovaRange {
            header: spec::CapHeader::new(spec::CAP_IOVA_RANGE),
            nr_iovas: u32::try_from(ranges.len()).unwrap_or(u32::MAX),
            reserved: 0,
        };
        push(&mut chain, &cap, false);
        for range in ranges {
            let range = spec::IovaRange {
                start: range.start(),
                end: range.last(),
            };
            chain.extend_from_slice(range.as_bytes());
        }
    }
    let mut answer = spec::Info {
        argsz: given.argsz,
        flags: spec::INFO_PGSIZES | spec::INFO_CAPS,
        iova_pgsizes: info.page_sizes,
        cap_offset: 0,
        pad: 0,
    };
    let needed = HEAD + chain.len();
    if (given.argsz as usize) < needed {
        answer.argsz = u32::try_from(needed).unwrap_or(u32::MAX);
    } else {
        memory::write(program, copy::offset(arg, HEAD as u64)?, &chain)?;
        answer.cap_offset = HEAD as u32;
    }
    copy::write_back(program, arg, &answer, given.argsz as usize)?;
    Ok(0)
}

/// Adds a capability to a chain behind a [`spec::Info`], which links to the next if there is one.
fn push<T: IntoBytes + Immutable>(chain: &mut Vec<u8>, cap: &T, more: bool) {
    let here = chain.len();
    chain.extend_from_slice(cap.as_bytes());
    chain.resize(chain.len().next_multiple_of(size_of::<u64>()), 0);
    let next = (size_of::<spec::Info>() + chain.len()) as u32;
    let field = here + spec::CAP_NEXT;
    if let (true, Some(bytes)) = (more, chain.get_mut(field..field + 4)) {
        bytes.copy_from_slice(&next.to_ne_bytes());
    }
}

fn map(container: &Container, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    let args: spec::DmaMap = copy::standard(program, arg, size_of::<spec::DmaMap>())?;
    let has = |flag: u32| args.flags & flag != 0;
    valid(FieldError::flags("flags", args.flags, names::DMA_MAP))?;
    let request = MapRequest {
        iova: args.iova,
        vaddr: args.vaddr,
        size: args.size,
        prot: Prot {
            read: has(spec::MAP_READ),
            write: has(spec::MAP_WRITE),
        },
        update: has(spec::MAP_VADDR),
    };
    let pages = || {
        let pages = program.pages_or_registers(args.vaddr, args.size);
        let (address, len) = (args.vaddr, args.size);
        Ok(pages.map_err(|error| RequestError::Pages {
            address,
            len,
            error,
        })?)
    };
    container.map::<CallError>(program.account(), &request, pages)?;
    Ok(0)
}

fn unmap(container: &Container, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    const SIZE: usize = size_of::<spec::DmaUnmap>();
    let mut args: spec::DmaUnmap = copy::standard(program, arg, SIZE)?;
    let has = |flag: u32| args.flags & flag != 0;
    let others = spec::UNMAP_FLAG_ALL | spec::UNMAP_VADDR;
    valid(FieldError::flags("flags", args.flags, names::DMA_UNMAP))?;
    if has(spec::UNMAP_DIRTY) && has(others) {
        return Err(RequestError::Invalid(FieldError::Exclusive {
            field: "flags",
            value: args.flags.into(),
            known: names::DMA_UNMAP,
        })
        .into());
    }
    let mut bits = None;
    if has(spec::UNMAP_DIRTY) {
        long_enough(args.argsz, SIZE + size_of::<spec::Bitmap>())?;
        let bitmap = behind(program, arg, SIZE)?;
        bits = Some(DirtyBits::new(program, args.iova, args.size, &bitmap)?);
    }
    let request = UnmapRequest {
        iova: args.iova,
        size: args.size,
        all: has(spec::UNMAP_FLAG_ALL),
        vaddr: has(spec::UNMAP_VADDR),
        dirty: bits.as_ref().map(DirtyBits::page_size),
    };
    let set_bits = |mapping: AddrRange| match &bits {
        Some(bits) => bits.set(mapping),
        None => Ok(()),
    };
    args.size = container.unmap::<CallError>(&request, set_bits)?;
    copy::write_back(program, arg, &args, SIZE)?;
    Ok(0)
}

fn dirty_pages(container: &Container, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    const SIZE: usize = size_of::<spec::DirtyBitmap>();
    if container.version() == Some(Version::V1) {
        return Err(MapError::NoDirtyPages.into());
    }
    let args: spec::DirtyBitmap = copy::standard(program, arg, SIZE)?;
    match args.flags {
        spec::DIRTY_START => container.set_dirty_tracking(true)?,
        spec::DIRTY_STOP => container.set_dirty_tracking(false)?,
        spec::DIRTY_GET => {
            long_enough(args.argsz, SIZE + size_of::<spec::DirtyBitmapGet>())?;
            let get: spec::DirtyBitmapGet = behind(program, arg, SIZE)?;
            let (start, size) = (get.iova, get.size);
            if size == 0 {
                return Err(MapError::Empty { iova: start }.into());
            }
            AddrRange::from_len(start, size).ok_or(MapError::Overflow { start, size })?;
            let bits = DirtyBits::new(program, get.iova, get.size, &get.bitmap)?;
            let range = DirtyRange {
                iova: get.iova,
                size: get.size,
                page_size: get.bitmap.pgsize,
            };
            container.dirty::<CallError>(&range, |mapping| bits.set(mapping))?;
        }
        // The flags are one of three numbers: none, several or others are refused alike
        // (`vfio_iommu_type1_dirty_pages`).
        _ => {
            return Err(RequestError::Invalid(FieldError::OneOf {
                field: "flags",
                value: args.flags.into(),
                known: names::DIRTY_PAGES,
            })
            .into());
        }
    }
    Ok(0)
}

/// The struct that follows one of `size` bytes.
fn behind<T: FromBytes + IntoBytes>(
    program: &dyn Program,
    arg: u64,
    size: usize,
) -> Result<T, CallError> {
    let mut value = T::new_zeroed();
    let at = copy::offset(arg, size as u64)?;
    memory::read(program, at, value.as_mut_bytes())?;
    Ok(value)
}
