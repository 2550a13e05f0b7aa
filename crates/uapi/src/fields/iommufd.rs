//! The structs of `iommufd.h`.

use super::{
    Form::{Flags, Hex, Name, Number, Reserved, Signed, Size},
    described, names,
};
use crate::spec::iommufd::{self as spec, MAP_FIXED_IOVA};

/// Flag of HWPT_ALLOC: there is a fault queue (`IOMMU_HWPT_FAULT_ID_VALID`).
const FAULT_ID_VALID: u32 = 1 << 2;

described! {
    spec::Destroy {
        in "id" = id, Number;
        in "size" = size, Size;
    }
    spec::IoasAlloc {
        in "flags" = flags, Flags(names::NONE);
        out "ioas" = out_ioas_id, Number;
        in "size" = size, Size;
    }
    spec::IoasIovaRanges {
        in "ioas" = ioas_id, Number;
        both "num_iovas" = num_iovas, Number;
        in "allowed_iovas" = allowed_iovas, Hex;
        out "iova_alignment" = out_iova_alignment, Hex;
        in "reserved" = reserved, Reserved;
        in "size" = size, Size;
    }
    spec::IoasAllowIovas {
        in "ioas" = ioas_id, Number;
        in "num_iovas" = num_iovas, Number;
        in "allowed_iovas" = allowed_iovas, Hex;
        in "reserved" = reserved, Reserved;
        in "size" = size, Size;
    }
    spec::IoasMap {
        in "ioas" = ioas_id, Number;
        in "iova" = iova, Hex, if MAP_FIXED_IOVA;
        out "iova" = iova, Hex;
        in "len" = length, Hex;
        in "va" = user_va, Hex;
        in "flags" = flags, Flags(names::IOAS_MAP);
        in "reserved" = reserved, Reserved;
        in "size" = size, Size;
    }
    spec::IoasMapFile {
        in "ioas" = ioas_id, Number;
        in "iova" = iova, Hex, if MAP_FIXED_IOVA;
        out "iova" = iova, Hex;
        in "len" = length, Hex;
        in "fd" = fd, Signed;
        in "start" = start, Hex;
        in "flags" = flags, Flags(names::IOAS_MAP);
        in "size" = size, Size;
    }
    spec::IoasCopy {
        in "dst_ioas" = dst_ioas_id, Number;
        in "src_ioas" = src_ioas_id, Number;
        in "dst_iova" = dst_iova, Hex, if MAP_FIXED_IOVA;
        out "dst_iova" = dst_iova, Hex;
        in "src_iova" = src_iova, Hex;
        in "len" = length, Hex;
        in "flags" = flags, Flags(names::IOAS_MAP);
        in "size" = size, Size;
    }
    spec::IoasUnmap {
        in "ioas" = ioas_id, Number;
        in "iova" = iova, Hex;
        both "len" = length, Hex;
        in "size" = size, Size;
    }
    spec::Opt {
        in "option" = option_id, Name(names::OPTION);
        in "op" = op, Name(names::OPTION_OP);
        in "object" = object_id, Number;
        both "value" = val64, Hex;
        in "reserved" = reserved, Reserved;
        in "size" = size, Size;
    }
    spec::VfioIoas {
        in "op" = op, Name(names::VFIO_IOAS);
        both "ioas" = ioas_id, Number;
        in "reserved" = reserved, Reserved;
        in "size" = size, Size;
    }
    spec::HwptAlloc {
        in "dev" = dev_id, Number;
        in "pt" = pt_id, Number;
        in "flags" = flags, Flags(names::HWPT_ALLOC);
        in "data_type" = data_type, Name(names::HWPT_DATA);
        in "data_len" = data_len, Number;
        in "data" = data_uptr, Hex;
        in "fault" = fault_id, Number, if FAULT_ID_VALID;
        out "hwpt" = out_hwpt_id, Number;
        in "reserved" = reserved, Reserved;
        in "reserved2" = reserved2, Reserved;
        in "size" = size, Size;
    }
    spec::HwInfo {
        in "dev" = dev_id, Number;
        in "flags" = flags, Flags(names::HW_INFO_FLAGS);
        both "data_len" = data_len, Number;
        in "data" = data_uptr, Hex;
        in "data_type" = data_type, Name(names::HW_INFO_TYPE), if spec::HW_INFO_FLAG_INPUT_TYPE;
        out "data_type" = data_type, Name(names::HW_INFO_TYPE);
        out "max_pasid_log2" = out_max_pasid_log2, Number;
        out "capabilities" = out_capabilities, Flags(names::HW_CAPABILITIES);
        in "size" = size, Size;
    }
    spec::HwptSetDirtyTracking {
        in "hwpt" = hwpt_id, Number;
        in "flags" = flags, Flags(names::DIRTY_TRACKING);
        in "reserved" = reserved, Reserved;
        in "size" = size, Size;
    }
    spec::HwptGetDirtyBitmap {
        in "hwpt" = hwpt_id, Number;
        in "iova" = iova, Hex;
        in "len" = length, Hex;
        in "page_size" = page_size, Hex;
        in "data" = data, Hex;
        in "flags" = flags, Flags(names::DIRTY_BITMAP);
        in "reserved" = reserved, Reserved;
        in "size" = size, Size;
    }
    spec::HwptInvalidate {
        in "hwpt" = hwpt_id, Number;
        in "data_type" = data_type, Number;
        in "entry_len" = entry_len, Number;
        both "entry_num" = entry_num, Number;
        in "data" = data_uptr, Hex;
        in "reserved" = reserved, Reserved;
        in "size" = size, Size;
    }
    spec::FaultAlloc {
        in "flags" = flags, Flags(names::NONE);
        out "fault" = out_fault_id, Number;
        out "fd" = out_fault_fd, Signed;
        in "size" = size, Size;
    }
    spec::ViommuAlloc {
        in "type" = kind, Number;
        in "dev" = dev_id, Number;
        in "hwpt" = hwpt_id, Number;
        in "flags" = flags, Flags(names::NONE);
        in "data_len" = data_len, Number;
        in "data" = data_uptr, Hex;
        out "viommu" = out_viommu_id, Number;
        in "reserved" = reserved, Reserved;
        in "size" = size, Size;
    }
    spec::VdeviceAlloc {
        in "viommu" = viommu_id, Number;
        in "dev" = dev_id, Number;
        in "virt_id" = virt_id, Hex;
        out "vdevice" = out_vdevice_id, Number;
        in "size" = size, Size;
    }
    spec::VeventqAlloc {
        in "viommu" = viommu_id, Number;
        in "type" = kind, Number;
        in "depth" = veventq_depth, Number;
        in "flags" = flags, Flags(names::NONE);
        out "veventq" = out_veventq_id, Number;
        out "fd" = out_veventq_fd, Signed;
        in "reserved" = reserved, Reserved;
        in "size" = size, Size;
    }
    spec::HwQueueAlloc {
        in "viommu" = viommu_id, Number;
        in "type" = kind, Number;
        in "index" = index, Number;
        in "iova" = nesting_parent_iova, Hex;
        in "len" = length, Hex;
        in "flags" = flags, Flags(names::NONE);
        out "hw_queue" = out_hw_queue_id, Number;
        in "size" = size, Size;
    }
    spec::IoasChangeProcess {
        in "reserved" = reserved, Reserved;
        in "size" = size, Size;
    }
}
