//! The commands of a VFIO container, on a `/dev/iommu` file (drivers/iommu/iommufd/vfio_compat.c).
//!
//! They work on the IOAS that IOMMU_VFIO_IOAS has set. GET_API_VERSION, CHECK_EXTENSION and SET_IOMMU
//! have no struct; the others start with `argsz`, the bytes that the program has, of which a longer
//! one than known is fine.

use std::{mem::size_of, sync::Arc};

use ioasid_core::Prot;
use ioasid_iommufd::{Context, Error, ObjectId};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::ioas::{check_end, pages_of};
use crate::{
    CallError, Program,
    error::{FieldError, RequestError},
    fields::{Described, names},
    memory,
    spec::container as spec,
    table::{self, Argument, File, Row},
};

type Handler = fn(&Container<'_>) -> Result<u64, CallError>;

type Command = table::Command<Handler>;

/// The commands, by number.
const COMMANDS: &[Command] = &[
    Command::plain(
        spec::GET_API_VERSION,
        "GET_API_VERSION",
        Argument::None,
        |_| Ok(spec::API_VERSION),
    ),
    Command::plain(
        spec::CHECK_EXTENSION,
        "CHECK_EXTENSION",
        Argument::Number(names::EXTENSION),
        |call| call.check_extension(),
    ),
    Command::plain(
        spec::SET_IOMMU,
        "SET_IOMMU",
        Argument::Number(names::EXTENSION),
        |call| call.set_iommu(),
    ),
    Command::with::<spec::Info>(
        spec::IOMMU_GET_INFO,
        "IOMMU_GET_INFO",
        spec::INFO_MIN,
        |call| call.get_info(),
    ),
    command::<spec::DmaMap>(spec::IOMMU_MAP_DMA, "IOMMU_MAP_DMA", |call| call.map_dma()),
    command::<spec::DmaUnmap>(spec::IOMMU_UNMAP_DMA, "IOMMU_UNMAP_DMA", |call| {
        call.unmap_dma()
    }),
];

const fn command<T: Described>(request: u32, name: &'static str, handler: Handler) -> Command {
    Command::with::<T>(request, name, size_of::<T>(), handler)
}

/// As documents show them. What Linux does not know on this file either is not among them.
pub(super) fn rows() -> impl Iterator<Item = Row> {
    table::rows(File::CompatContainer, COMMANDS)
}

/// Runs the command `cmd`.
pub(super) fn ioctl(
    context: &Arc<Context>,
    cmd: u32,
    arg: u64,
    program: &dyn Program,
) -> Result<u64, CallError> {
    let command = table::find(COMMANDS, cmd).ok_or_else(|| super::unknown(cmd))?;
    (command.handler)(&Container {
        context,
        arg,
        program,
    })
}

/// That a struct has at least `min` bytes.
fn long_enough(argsz: u32, min: usize) -> Result<(), RequestError> {
    let (size, min) = (argsz.into(), min as u64);
    match size < min {
        true => Err(RequestError::TooSmall { size, min }),
        false => Ok(()),
    }
}

/// One command in progress.
struct Container<'a> {
    context: &'a Arc<Context>,
    arg: u64,
    program: &'a dyn Program,
}

impl Container<'_> {
    fn read<T: FromBytes + IntoBytes>(&self) -> Result<T, CallError> {
        let mut args = T::new_zeroed();
        memory::read(self.program, self.arg, args.as_mut_bytes())?;
        Ok(args)
    }

    /// Writes at `offset` from the struct's start.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), CallError> {
        let at = memory::address(self.arg, offset)?;
        Ok(memory::write(self.program, at, bytes)?)
    }

    fn check_extension(&self) -> Result<u64, CallError> {
        match self.arg {
            spec::TYPE1_IOMMU | spec::TYPE1V2_IOMMU | spec::UNMAP_ALL => Ok(1),
            spec::DMA_CC_IOMMU => {
                let ioas = self.context.vfio_ioas()?;
                Ok(self.context.ioas_is_coherent(ioas)?.into())
            }
            _ => Ok(0),
        }
    }

    fn set_iommu(&self) -> Result<u64, CallError> {
        if !matches!(self.arg, spec::TYPE1_IOMMU | spec::TYPE1V2_IOMMU) {
            return Err(RequestError::Invalid(FieldError::Value {
                field: "the type of IOMMU",
                value: self.arg,
                known: names::IOMMU_TYPE,
            })
            .into());
        }
        let ioas = self.context.vfio_ioas()?;
        if self.arg == spec::TYPE1_IOMMU {
            // Version 1 may unmap any part of a mapping: none has leaves that could not be cut.
            self.context.set_ioas_huge_pages(ioas, false)?;
        }
        Ok(0)
    }

    fn map_dma(&self) -> Result<u64, CallError> {
        let args: spec::DmaMap = self.read()?;
        long_enough(args.argsz, size_of::<spec::DmaMap>())?;
        let checked = FieldError::flags("flags", args.flags, names::COMPAT_DMA_MAP);
        checked.map_err(RequestError::Invalid)?;
        let prot = Prot {
            read: args.flags & spec::MAP_READ != 0,
            write: args.flags & spec::MAP_WRITE != 0,
        };
        let ioas = self.context.vfio_ioas()?;
        check_end(args.vaddr, args.size)?;
        let map = pages_of(args.vaddr, args.size, Some(args.iova), prot)?;
        let start = args.vaddr - map.offset;
        let len = args.size + map.offset;
        let pages = self.program.pages(start, len);
        let pages = pages.map_err(|error| RequestError::Pages {
            address: start,
            len,
            error,
        })?;
        let account = self.program.account();
        self.context.vfio_map(account, ioas, pages, map)?;
        Ok(0)
    }

    fn unmap_dma(&self) -> Result<u64, CallError> {
        let mut args: spec::DmaUnmap = self.read()?;
        long_enough(args.argsz, size_of::<spec::DmaUnmap>())?;
        let checked = FieldError::flags("flags", args.flags, names::COMPAT_DMA_UNMAP);
        checked.map_err(RequestError::Invalid)?;
        let ioas = self.context.vfio_ioas()?;
        let (bytes, result) = if args.flags & spec::UNMAP_FLAG_ALL != 0 {
            if args.iova != 0 || args.size != 0 {
                return Err(ioasid_vfio::error::MapError::RangeWithAll.into());
            }
            self.context.vfio_unmap_all(ioas)?
        } else {
            self.cut(ioas, &args)?;
            self.context.vfio_unmap(ioas, args.iova, args.size)?
        };
        // What was unmapped before an error is reported as well.
        args.size = bytes;
        self.write(0, args.as_bytes())?;
        result?;
        Ok(0)
    }

    /// Version 1: cuts mappings at the edges of what is to be unmapped.
    fn cut(&self, ioas: ObjectId, args: &spec::DmaUnmap) -> Result<(), Error> {
        if self.context.ioas_huge_pages(ioas)? {
            return Ok(());
        }
        let last = args.iova.wrapping_add(args.size).wrapping_sub(1);
        self.context.ioas_cut_after(ioas, last)?;
        match args.iova.checked_sub(1) {
            Some(before) => self.context.ioas_cut_after(ioas, before),
            None => Ok(()),
        }
    }

    /// The chain of capabilities goes behind the struct as far as it fits; the program learns how
    /// many bytes all of it needs.
    fn get_info(&self) -> Result<u64, CallError> {
        let mut info = spec::Info::default();
        let (head, _) = info.as_mut_bytes().split_at_mut(spec::INFO_MIN);
        memory::read(self.program, self.arg, head)?;
        let room = info.argsz as usize;
        long_enough(info.argsz, spec::INFO_MIN)?;
        let ioas = self.context.vfio_ioas()?;
        info.flags = spec::INFO_PGSIZES | spec::INFO_CAPS;
        info.iova_pgsizes = self.context.ioas_page_sizes(ioas)?;
        let mut total = size_of::<spec::Info>();
        let avail = spec::CapDmaAvail {
            header: spec::CapHeader::new(spec::CAP_DMA_AVAIL),
            avail: u32::MAX,
        };
        let first = total;
        self.write_cap(room, first, &avail)?;
        total += size_of::<spec::CapDmaAvail>().next_multiple_of(size_of::<u64>());
        if room >= total {
            let next = first + spec::CAP_NEXT;
            self.write(next as u64, (total as u32).as_bytes())?;
        }
        total += self.write_iova_ranges(ioas, room, total)?;
        info.cap_offset = if room >= total { first as u32 } else { 0 };
        info.argsz = u32::try_from(total).unwrap_or(u32::MAX);
        let part = room.min(size_of::<spec::Info>());
        self.write(0, info.as_bytes().get(..part).unwrap_or_default())?;
        Ok(0)
    }

    /// Writes a capability at `at`, if the program has room for it.
    fn write_cap<T: IntoBytes + Immutable>(
        &self,
        room: usize,
        at: usize,
        cap: &T,
    ) -> Result<(), CallError> {
        if room.saturating_sub(at) >= size_of::<T>() {
            self.write(at as u64, cap.as_bytes())?;
        }
        Ok(())
    }

    /// Writes the ranges that fit; the capability's head only if all do. Returns its bytes.
    fn write_iova_ranges(
        &self,
        ioas: ObjectId,
        room: usize,
        at: usize,
    ) -> Result<usize, CallError> {
        let ranges = self.context.ioas_iova_ranges(ioas)?.ranges;
        let head = size_of::<spec::CapIovaRange>();
        let mut bytes = head;
        for range in &ranges {
            let range = spec::IovaRange {
                start: range.start(),
                end: range.last(),
            };
            self.write_cap(room, at + bytes, &range)?;
            bytes += size_of::<spec::IovaRange>();
        }
        if room.saturating_sub(at) >= bytes {
            let cap = spec::CapIovaRange {
                header: spec::CapHeader::new(spec::CAP_IOVA_RANGE),
                nr_iovas: u32::try_from(ranges.len()).unwrap_or(u32::MAX),
                reserved: 0,
            };
            self.write_cap(room, at, &cap)?;
        }
        Ok(bytes)
    }
}
