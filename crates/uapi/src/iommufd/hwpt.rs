//! Commands on page tables and devices (drivers/iommu/iommufd/{hw_pagetable,device}.c).

use ioasid_iommufd::{AllocError, HwData, HwptAlloc, HwptFlags, ObjectId};
use zerocopy::IntoBytes;

use super::{call::Call, supported};
use crate::{CallError, error::FieldError, fields::names, memory, spec::iommufd as spec};

pub(super) fn alloc(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::HwptAlloc = call.args();
    supported(FieldError::zero("reserved", args.reserved))?;
    let has_data = args.data_type != spec::HWPT_DATA_NONE;
    if has_data != (args.data_len != 0) {
        return Err(AllocError::DataLength {
            kind: args.data_type,
            len: args.data_len,
        }
        .into());
    }
    let data = has_data.then(|| call.user_data(args.data_type, args.data_uptr, args.data_len));
    let request = HwptAlloc {
        device: ObjectId::from_raw(args.dev_id),
        parent: ObjectId::from_raw(args.pt_id),
        flags: HwptFlags::from_raw(args.flags),
        fault_id: args.fault_id,
    };
    let id = call.context().hwpt_alloc_with(request, data.as_ref())?;
    args.out_hwpt_id = id.get();
    call.reply_new(&args, id)
}

pub(super) fn hw_info(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::HwInfo = call.args();
    supported(FieldError::flags("flags", args.flags, names::HW_INFO_FLAGS))?;
    let [first, second, third] = args.reserved;
    let reserved = u32::from_le_bytes([first, second, third, 0]);
    supported(FieldError::zero("reserved", reserved))?;
    if args.flags & spec::HW_INFO_FLAG_INPUT_TYPE == 0 {
        args.data_type = spec::HW_INFO_TYPE_DEFAULT;
    }
    let info = call.context().hw_info(ObjectId::from_raw(args.dev_id))?;
    let wanted = args.data_type;
    let (kind, data) = match info.data {
        HwData::Vtd(vtd) => {
            let data = spec::HwInfoVtd {
                cap_reg: vtd.cap,
                ecap_reg: vtd.ecap,
                ..Default::default()
            };
            (spec::HW_INFO_TYPE_INTEL_VTD, data.as_bytes().to_vec())
        }
        HwData::Other { kind, bytes } => (kind, bytes),
        HwData::None => (spec::HW_INFO_TYPE_DEFAULT, Vec::new()),
    };
    if wanted != spec::HW_INFO_TYPE_DEFAULT && wanted != kind {
        return Err(AllocError::TypeNotSupported(wanted).into());
    }
    let room = args.data_len as usize;
    let copied = data.len().min(room);
    if copied > 0 {
        memory::write(call.program(), args.data_uptr, &data[..copied])?;
    }
    // A program that knows a longer struct finds zeros in the rest of it.
    if room > copied {
        call.clear(
            memory::address(args.data_uptr, copied as u64)?,
            (room - copied) as u64,
        )?;
    }
    args.data_len = data.len() as u32;
    args.data_type = kind;
    args.out_max_pasid_log2 = info.max_pasid_log2;
    let capabilities = [
        (info.dirty_tracking, spec::HW_CAP_DIRTY_TRACKING),
        (info.pasid_execute, spec::HW_CAP_PCI_PASID_EXEC),
        (info.pasid_privileged, spec::HW_CAP_PCI_PASID_PRIV),
        (!info.ats, spec::HW_CAP_PCI_ATS_NOT_SUPPORTED),
    ];
    let present = capabilities.iter().filter(|(present, _)| *present);
    args.out_capabilities = present.fold(0, |bits, (_, bit)| bits | bit);
    call.reply(&args)
}
