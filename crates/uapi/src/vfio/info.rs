//! What a device has: GET_INFO, GET_REGION_INFO, GET_IRQ_INFO.

use ioasid_vfio::DeviceFile;
use zerocopy::IntoBytes;

use super::copy;
use crate::{CallError, Program, memory, spec::vfio as spec};

pub(super) fn device(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    let given: spec::DeviceInfo = copy::standard(program, arg, spec::DeviceInfo::MIN)?;
    let info = file.info()?;
    let reset = if info.reset {
        spec::DeviceInfo::RESET
    } else {
        0
    };
    let mut answer = spec::DeviceInfo {
        argsz: given.argsz,
        flags: spec::DeviceInfo::PCI | reset,
        num_regions: info.regions,
        num_irqs: info.irqs,
        cap_offset: 0,
        pad: 0,
    };
    if info.atomics != 0 {
        let size = size_of::<spec::DeviceInfo>();
        let data = spec::AtomicCompletion {
            flags: info.atomics,
            reserved: 0,
        };
        let mut caps = Vec::new();
        let id = spec::DeviceInfo::CAP_ATOMIC_COMPLETION;
        push_cap(&mut caps, size, id, 1, data.as_bytes());
        answer.flags |= spec::DeviceInfo::CAPS;
        if (given.argsz as usize) < size + caps.len() {
            answer.argsz = (size + caps.len()) as u32;
        } else {
            memory::write(program, copy::offset(arg, size as u64)?, &caps)?;
            answer.cap_offset = size as u32;
        }
    }
    copy::write_back(program, arg, &answer, given.argsz as usize)?;
    Ok(0)
}

pub(super) fn region(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    use spec::RegionInfo;
    let mut info: RegionInfo = copy::standard(program, arg, RegionInfo::MIN)?;
    let region = file.region_info(info.index)?;
    info.size = region.size;
    info.offset = region.offset;
    info.flags = 0;
    if region.size > 0 {
        info.flags |= RegionInfo::READ | RegionInfo::WRITE;
    }
    if region.mmap {
        info.flags |= RegionInfo::MMAP;
    }
    let mut caps = Vec::new();
    if region.msix_mappable {
        push_cap(
            &mut caps,
            RegionInfo::MIN,
            RegionInfo::CAP_MSIX_MAPPABLE,
            1,
            &[],
        );
    }
    if !caps.is_empty() {
        let needed = RegionInfo::MIN + caps.len();
        info.flags |= RegionInfo::CAPS;
        if (info.argsz as usize) < needed {
            info.argsz = needed as u32;
            info.cap_offset = 0;
        } else {
            memory::write(program, copy::offset(arg, RegionInfo::MIN as u64)?, &caps)?;
            info.cap_offset = RegionInfo::MIN as u32;
        }
    }
    copy::write_back(program, arg, &info, RegionInfo::MIN)?;
    Ok(0)
}

/// Adds a capability to a chain that will stand right behind a struct of `start` bytes: the one before
/// it gets its offset, counted from the start of that struct.
fn push_cap(chain: &mut Vec<u8>, start: usize, id: u16, version: u16, data: &[u8]) {
    const NEXT: usize = 4;
    let here = (start + chain.len()) as u32;
    let mut last = None;
    let mut at = 0;
    while let Some(next) = chain.get(at + NEXT..at + NEXT + 4) {
        last = Some(at + NEXT);
        match next.first_chunk().map(|next| u32::from_ne_bytes(*next)) {
            None | Some(0) => break,
            Some(next) => at = (next as usize).saturating_sub(start),
        }
    }
    if let Some(next) = last.and_then(|last| chain.get_mut(last..last + 4)) {
        next.copy_from_slice(&here.to_ne_bytes());
    }
    let header = spec::CapHeader {
        id,
        version,
        next: 0,
    };
    chain.extend_from_slice(header.as_bytes());
    chain.extend_from_slice(data);
    chain.resize(chain.len().next_multiple_of(8), 0);
}

pub(super) fn irq(file: &DeviceFile, arg: u64, program: &dyn Program) -> Result<u64, CallError> {
    use spec::IrqInfo;
    let mut info: IrqInfo = copy::standard(program, arg, IrqInfo::MIN)?;
    let irq = file.irq_info(info.index)?;
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    info.flags = IrqInfo::EVENTFD
        | flag(irq.maskable, IrqInfo::MASKABLE)
        | flag(irq.automasked, IrqInfo::AUTOMASKED)
        | flag(irq.no_resize, IrqInfo::NORESIZE);
    info.count = irq.count;
    copy::write_back(program, arg, &info, IrqInfo::MIN)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_link_from_the_start_of_the_struct() {
        let mut chain = Vec::new();
        push_cap(&mut chain, 32, 3, 1, &[]);
        push_cap(&mut chain, 32, 2, 1, &[1, 2, 3, 4, 5, 6, 7, 8]);
        push_cap(&mut chain, 32, 1, 1, &[]);
        let next = |at: usize| u32::from_ne_bytes(chain[at + 4..at + 8].try_into().unwrap());
        assert_eq!((next(0), next(8), next(24)), (40, 56, 0));
    }
}
