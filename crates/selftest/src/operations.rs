//! The operations of `IOMMU_TEST_CMD` (drivers/iommu/iommufd/selftest.c), one function each, with
//! the kernel's order of checks.

use std::sync::Arc;

use ioasid_core::{Access, AddrRange, memory::PAGE_SIZE};
use ioasid_iommufd::{Context, ObjectId, PageFault};
use ioasid_uapi::{Errno, Program, iommufd::Call};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    access::AccessFile,
    device::MockDevice,
    dmabuf::DmabufFile,
    hardware::{MockIommu, MockNested},
    program::page_at,
    spec::{self, TestCmd, access_flag, op},
    table,
};

type Operation = fn(&Request<'_>) -> Result<u64, Errno>;

/// Every operation, by number from 1.
const OPERATIONS: [(u32, Operation); 23] = [
    (op::ADD_RESERVED, add_reserved),
    (op::MOCK_DOMAIN, mock_domain),
    (op::MD_CHECK_MAP, check_map),
    (op::MD_CHECK_REFS, check_refs),
    (op::CREATE_ACCESS, create_access),
    (op::DESTROY_ACCESS_PAGES, destroy_access_pages),
    (op::ACCESS_PAGES, access_pages),
    (op::ACCESS_RW, access_rw),
    (op::SET_TEMP_MEMORY_LIMIT, set_memory_limit),
    (op::MOCK_DOMAIN_REPLACE, mock_domain_replace),
    (op::ACCESS_REPLACE_IOAS, access_replace_ioas),
    (op::MOCK_DOMAIN_FLAGS, mock_domain_flags),
    (op::DIRTY, dirty),
    (op::MD_CHECK_IOTLB, check_iotlb),
    (op::TRIGGER_IOPF, trigger_iopf),
    (op::DEV_CHECK_CACHE, check_cache),
    (op::TRIGGER_VEVENT, trigger_vevent),
    (op::PASID_ATTACH, pasid_attach),
    (op::PASID_REPLACE, pasid_replace),
    (op::PASID_DETACH, pasid_detach),
    (op::PASID_CHECK_HWPT, pasid_check),
    (op::DMABUF_GET, dmabuf_get),
    (op::DMABUF_REVOKE, dmabuf_revoke),
];

/// Carries one operation out.
pub(crate) fn run(call: &Call<'_>) -> Result<u64, Errno> {
    let cmd: TestCmd = call.args();
    let mut operations = OPERATIONS.iter();
    let (_, operation) = operations
        .find(|(number, _)| *number == cmd.op)
        .ok_or(Errno::EOPNOTSUPP)?;
    operation(&Request { call, cmd })
}

/// One operation in progress.
struct Request<'a> {
    call: &'a Call<'a>,
    cmd: TestCmd,
}

impl Request<'_> {
    fn context(&self) -> &Arc<Context> {
        self.call.context()
    }

    fn program(&self) -> &dyn Program {
        self.call.program()
    }

    /// The object that the operation is about.
    fn id(&self) -> ObjectId {
        ObjectId::from_raw(self.cmd.id)
    }

    /// The operation's own part of the struct.
    fn args<T: FromBytes>(&self) -> T {
        let args = T::read_from_prefix(self.cmd.args.as_bytes());
        args.map_or_else(|_| T::new_zeroed(), |(args, _)| args)
    }

    /// Writes the struct back with another part of that kind.
    fn reply<T: IntoBytes + Immutable>(&self, args: &T) -> Result<u64, Errno> {
        let mut cmd = self.cmd;
        let bytes = args.as_bytes();
        if let Some(place) = cmd.args.as_mut_bytes().get_mut(..bytes.len()) {
            place.copy_from_slice(bytes);
        }
        Ok(self.call.reply(&cmd)?)
    }
}

fn add_reserved(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::AddReserved = request.args();
    if args.length == 0 {
        return Err(Errno::EINVAL);
    }
    let range = AddrRange::from_len(args.start, args.length).ok_or(Errno::EOVERFLOW)?;
    request.context().ioas_reserve(request.id(), range)?;
    Ok(0)
}

fn mock_domain(request: &Request<'_>) -> Result<u64, Errno> {
    make_device(request, 0)
}

fn mock_domain_flags(request: &Request<'_>) -> Result<u64, Errno> {
    make_device(request, request.args::<spec::MockDomain>().dev_flags)
}

fn make_device(request: &Request<'_>, flags: u32) -> Result<u64, Errno> {
    let made = MockDevice::attach_new(request.context(), flags, request.id())?;
    let replied = request.reply(&spec::MockDomain {
        stdev_id: made.stdev.get(),
        hwpt_id: made.hwpt.get(),
        idev_id: made.idev.get(),
        ..request.args()
    });
    if replied.is_err() {
        // Nobody knows the ids: the kernel takes the device back as well.
        let _ = request.context().destroy(made.stdev);
    }
    replied
}

fn mock_domain_replace(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::MockDomainReplace = request.args();
    let device = MockDevice::find(request.context(), request.id())?;
    let pt_id = device.replace(ObjectId::from_raw(args.pt_id))?.get();
    request.reply(&spec::MockDomainReplace { pt_id })
}

/// Whether the memory at an address of the program is what the page table maps.
fn check_map(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::CheckMap = request.args();
    let domain = request.context().hwpt_domain(request.id())?;
    if !table::is_mock(&domain) {
        return Err(Errno::EINVAL);
    }
    let sizes = domain.page_sizes();
    let page = sizes & sizes.wrapping_neg();
    let aligned = |value: u64| value.is_multiple_of(page);
    if !(aligned(args.iova) && aligned(args.length) && aligned(args.uptr)) {
        return Err(Errno::EINVAL);
    }
    args.uptr.checked_add(args.length).ok_or(Errno::EINVAL)?;
    let mut known: Option<(u64, u64)> = None;
    for offset in (0..args.length).step_by(page as usize) {
        let address = args.uptr + offset;
        let inside = address % PAGE_SIZE;
        let frame = address - inside;
        let spa = match known {
            Some((known, spa)) if known == frame => spa,
            _ => page_at(request.program(), frame)?,
        };
        known = Some((frame, spa));
        let found = domain.iova_to_phys(args.iova.wrapping_add(offset));
        if found.is_none_or(|found| found.spa != spa + inside) {
            return Err(Errno::EINVAL);
        }
    }
    Ok(0)
}

/// Whether every page is pinned as often as the program thinks.
fn check_refs(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::CheckRefs = request.args();
    let aligned = |value: u64| value.is_multiple_of(PAGE_SIZE);
    if !aligned(args.length) || !aligned(args.uptr) {
        return Err(Errno::EINVAL);
    }
    let end = args.uptr.checked_add(args.length).ok_or(Errno::EINVAL)?;
    for address in (args.uptr..end).step_by(PAGE_SIZE as usize) {
        let spa = page_at(request.program(), address)?;
        let page = AddrRange::from_len(spa, PAGE_SIZE).ok_or(Errno::EFAULT)?;
        if request.context().pins_of(page) != args.refs as usize {
            return Err(Errno::EIO);
        }
    }
    Ok(0)
}

fn create_access(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::CreateAccess = request.args();
    if args.flags & !access_flag::NEEDS_PIN_PAGES != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let pins = args.flags & access_flag::NEEDS_PIN_PAGES != 0;
    let file = AccessFile::create(request.context(), request.id(), pins)?;
    let fd = request.program().install_event_file(file, true);
    let fd = fd.map_err(|_| Errno::ENOMEM)?;
    request.reply(&spec::CreateAccess {
        access_fd: fd.cast_unsigned(),
        ..args
    })
}

fn destroy_access_pages(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::DestroyAccessPages = request.args();
    AccessFile::find(request.program(), request.cmd.id)?.unpin(args.pages_id)?;
    Ok(0)
}

fn access_pages(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::AccessPages = request.args();
    if args.length > spec::ACCESS_MAX {
        return Err(Errno::ENOMEM);
    }
    if args.flags & !access_flag::WRITE != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let file = AccessFile::find(request.program(), request.cmd.id)?;
    let pages_id = file.pin(request.program(), &args)?;
    let replied = request.reply(&spec::AccessPages { pages_id, ..args });
    if replied.is_err() {
        let _ = file.unpin(pages_id);
    }
    replied
}

fn access_rw(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::AccessRw = request.args();
    if args.length > spec::ACCESS_MAX {
        return Err(Errno::ENOMEM);
    }
    if args.flags & !(access_flag::WRITE | access_flag::SLOW_PATH) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    AccessFile::find(request.program(), request.cmd.id)?.copy(request.program(), &args)?;
    Ok(0)
}

fn access_replace_ioas(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::AccessReplaceIoas = request.args();
    let file = AccessFile::find(request.program(), request.cmd.id)?;
    file.replace(ObjectId::from_raw(args.ioas_id))?;
    Ok(0)
}

/// The size of the kernel's batches of pages: there are none here.
fn set_memory_limit(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::MemoryLimit = request.args();
    if args.limit < spec::MEMORY_LIMIT_MIN {
        return Err(Errno::EINVAL);
    }
    Ok(0)
}

/// Writes by DMA, as far as dirty tracking can see.
fn dirty(request: &Request<'_>) -> Result<u64, Errno> {
    const MOST_BITS: u64 = 1 << 27;
    let args: spec::Dirty = request.args();
    let multiple = |value: u64| value.is_multiple_of(args.page_size);
    if args.page_size == 0
        || args.length == 0
        || args.uptr == 0
        || !multiple(args.iova)
        || !multiple(args.length)
    {
        return Err(Errno::EINVAL);
    }
    let bits = args.length / args.page_size;
    if bits > MOST_BITS {
        return Err(Errno::EOVERFLOW);
    }
    let domain = request.context().hwpt_domain(request.id())?;
    let table = domain.page_table().filter(|table| table.dirty_tracking());
    let table = table.ok_or(Errno::EINVAL)?;
    let mut bitmap = vec![0; bits.div_ceil(8) as usize];
    request.program().read(args.uptr, &mut bitmap)?;
    let mut nr_dirty = 0;
    for bit in 0..bits {
        let byte = bitmap.get((bit / 8) as usize).copied().unwrap_or(0);
        if byte & 1 << (bit % 8) == 0 {
            continue;
        }
        nr_dirty += 1;
        // What is not mapped is counted all the same.
        let address = args.iova.wrapping_add(bit * args.page_size);
        let _ = table.translate(address, Access::Write);
    }
    request.reply(&spec::Dirty { nr_dirty, ..args })
}

fn check_iotlb(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::CheckEntry = request.args();
    let nested = request.context().hwpt_nested(request.id())?;
    let nested: &dyn std::any::Any = &*nested;
    let nested = nested.downcast_ref::<MockNested>().ok_or(Errno::EINVAL)?;
    same(nested.entry(args.id), args.value)
}

fn check_cache(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::CheckEntry = request.args();
    with_mock(request, request.id(), |mock| {
        same(mock.cache(args.id), args.value)
    })
}

fn same(found: Option<u32>, expected: u32) -> Result<u64, Errno> {
    if found == Some(expected) {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}

/// The mock IOMMU in front of the bound device `id`.
fn with_mock<R>(
    request: &Request<'_>,
    id: ObjectId,
    then: impl FnOnce(&MockIommu) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let ops = request.context().device_ops(id)?;
    let ops: &dyn std::any::Any = &*ops;
    then(ops.downcast_ref::<MockIommu>().ok_or(Errno::EINVAL)?)
}

/// A page request, whose answer nobody waits for. That there is nobody to take it is no error.
fn trigger_iopf(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::TriggerIopf = request.args();
    let device = ObjectId::from_raw(args.dev_id);
    with_mock(request, device, |_| Ok(()))?;
    let fault = PageFault {
        pasid: (args.pasid != 0).then_some(args.pasid),
        group: args.group,
        perm: args.perm,
        address: args.address,
    };
    let _ = request
        .context()
        .report_page_fault(device, fault, Box::new(|_| {}));
    Ok(0)
}

fn trigger_vevent(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::TriggerVevent = request.args();
    let device = ObjectId::from_raw(args.dev_id);
    with_mock(request, device, |mock| Ok(mock.trigger_event()?))?;
    Ok(0)
}

fn pasid_attach(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::PasidArgs = request.args();
    let device = MockDevice::find(request.context(), request.id())?;
    let hwpt = device.attach_pasid(args.pasid, ObjectId::from_raw(args.pt_id))?;
    let replied = request.reply(&spec::PasidArgs {
        pt_id: hwpt.get(),
        ..args
    });
    if replied.is_err() {
        device.detach_pasid(args.pasid);
    }
    replied
}

fn pasid_replace(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::PasidArgs = request.args();
    let device = MockDevice::find(request.context(), request.id())?;
    let hwpt = device.replace_pasid(args.pasid, ObjectId::from_raw(args.pt_id))?;
    request.reply(&spec::PasidArgs {
        pt_id: hwpt.get(),
        ..args
    })
}

fn pasid_detach(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::PasidArgs = request.args();
    MockDevice::find(request.context(), request.id())?.detach_pasid(args.pasid);
    Ok(0)
}

/// Whether a PASID is attached to this page table, or to none for 0.
fn pasid_check(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::PasidArgs = request.args();
    let device = MockDevice::find(request.context(), request.id())?;
    let attached = device.attached(args.pasid);
    let expected = match args.pt_id {
        0 => None,
        id => {
            let id = ObjectId::from_raw(id);
            request.context().object_exists(id)?;
            Some(id)
        }
    };
    if attached == expected {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}

/// The result is the new descriptor.
fn dmabuf_get(request: &Request<'_>) -> Result<u64, Errno> {
    /// `O_CLOEXEC`.
    const CLOSE_ON_EXEC: u32 = 0o2_000_000;
    let args: spec::DmabufGet = request.args();
    let space = request.context().iommu().space();
    let file = DmabufFile::create(space, args.length)?;
    let cloexec = args.open_flags & CLOSE_ON_EXEC != 0;
    let fd = request.program().install_event_file(file, cloexec)?;
    Ok(u64::from(fd.cast_unsigned()))
}

fn dmabuf_revoke(request: &Request<'_>) -> Result<u64, Errno> {
    let args: spec::DmabufRevoke = request.args();
    DmabufFile::find(request.program(), args.fd)?.revoke(args.revoked != 0);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_its_number() {
        for (index, (number, _)) in OPERATIONS.iter().enumerate() {
            assert_eq!(*number as usize, index + 1);
        }
    }
}
