//! The structs and numbers agree with the kernel's header, as published in `iommufd-bindings`.

use std::mem::offset_of;

use ioasid_uapi::{
    iommufd::COMMANDS,
    spec::{container, iommufd as ours},
};
use iommufd_bindings::iommufd as theirs;

/// Fields with the same name, then those whose name differs.
macro_rules! same_struct {
    ($ours:ident, $theirs:ident {
        $($field:ident),* $(; $($renamed:ident = $other:ident),*)?
    }) => {
        $(assert_eq!(
            offset_of!(ours::$ours, $field),
            offset_of!(theirs::$theirs, $field),
            concat!(stringify!($theirs), ".", stringify!($field)),
        );)*
        $($(assert_eq!(
            offset_of!(ours::$ours, $renamed),
            offset_of!(theirs::$theirs, $other),
            concat!(stringify!($theirs), ".", stringify!($other)),
        );)*)?
        assert_eq!(size_of::<ours::$ours>(), size_of::<theirs::$theirs>());
    };
}

#[test]
fn structs_have_the_kernels_layout() {
    same_struct!(HwptInvalidate, iommu_hwpt_invalidate { size, hwpt_id, data_uptr, data_type, entry_len, entry_num; reserved = __reserved });
    same_struct!(
        FaultAlloc,
        iommu_fault_alloc {
            size,
            flags,
            out_fault_id,
            out_fault_fd
        }
    );
    same_struct!(ViommuAlloc, iommu_viommu_alloc { size, flags, dev_id, hwpt_id, out_viommu_id, data_len, data_uptr; kind = type_, reserved = __reserved });
    same_struct!(
        VdeviceAlloc,
        iommu_vdevice_alloc {
            size,
            viommu_id,
            dev_id,
            out_vdevice_id,
            virt_id
        }
    );
    same_struct!(VeventqAlloc, iommu_veventq_alloc { size, flags, viommu_id, veventq_depth, out_veventq_id, out_veventq_fd; kind = type_, reserved = __reserved });
    same_struct!(HwQueueAlloc, iommu_hw_queue_alloc { size, flags, viommu_id, index, out_hw_queue_id, nesting_parent_iova, length; kind = type_ });
    same_struct!(Destroy, iommu_destroy { size, id });
    same_struct!(
        IoasAlloc,
        iommu_ioas_alloc {
            size,
            flags,
            out_ioas_id
        }
    );
    same_struct!(IovaRange, iommu_iova_range { start, last });
    same_struct!(IoasIovaRanges, iommu_ioas_iova_ranges { size, ioas_id, num_iovas, allowed_iovas, out_iova_alignment; reserved = __reserved });
    same_struct!(IoasAllowIovas, iommu_ioas_allow_iovas { size, ioas_id, num_iovas, allowed_iovas; reserved = __reserved });
    same_struct!(IoasMap, iommu_ioas_map { size, flags, ioas_id, user_va, length, iova; reserved = __reserved });
    same_struct!(
        IoasMapFile,
        iommu_ioas_map_file {
            size,
            flags,
            ioas_id,
            fd,
            start,
            length,
            iova
        }
    );
    same_struct!(
        IoasCopy,
        iommu_ioas_copy {
            size,
            flags,
            dst_ioas_id,
            src_ioas_id,
            length,
            dst_iova,
            src_iova
        }
    );
    same_struct!(
        IoasUnmap,
        iommu_ioas_unmap {
            size,
            ioas_id,
            iova,
            length
        }
    );
    same_struct!(Opt, iommu_option { size, option_id, op, object_id, val64; reserved = __reserved });
    same_struct!(VfioIoas, iommu_vfio_ioas { size, ioas_id, op; reserved = __reserved });
    same_struct!(HwptAlloc, iommu_hwpt_alloc { size, flags, dev_id, pt_id, out_hwpt_id, data_type, data_len, data_uptr, fault_id; reserved = __reserved, reserved2 = __reserved2 });
    same_struct!(HwInfo, iommu_hw_info { size, flags, dev_id, data_len, data_uptr, out_max_pasid_log2, out_capabilities; data_type = __bindgen_anon_1, reserved = __reserved });
    same_struct!(HwInfoVtd, iommu_hw_info_vtd { flags, cap_reg, ecap_reg; reserved = __reserved });
    same_struct!(HwptSetDirtyTracking, iommu_hwpt_set_dirty_tracking { size, flags, hwpt_id; reserved = __reserved });
    same_struct!(HwptGetDirtyBitmap, iommu_hwpt_get_dirty_bitmap { size, hwpt_id, flags, iova, length, page_size, data; reserved = __reserved });
    same_struct!(IoasChangeProcess, iommu_ioas_change_process { size; reserved = __reserved });
}

#[test]
fn numbers_sizes_and_least_sizes_are_the_kernels() {
    macro_rules! theirs {
        ($($number:ident $kind:ident . $last:ident),* $(,)?) => {
            [$((
                theirs::$number,
                size_of::<theirs::$kind>(),
                // The last field of the struct's first version.
                offset_of!(theirs::$kind, $last),
            )),*]
        };
    }
    let theirs = theirs![
        IOMMUFD_CMD_DESTROY iommu_destroy.id,
        IOMMUFD_CMD_IOAS_ALLOC iommu_ioas_alloc.out_ioas_id,
        IOMMUFD_CMD_IOAS_ALLOW_IOVAS iommu_ioas_allow_iovas.allowed_iovas,
        IOMMUFD_CMD_IOAS_COPY iommu_ioas_copy.src_iova,
        IOMMUFD_CMD_IOAS_IOVA_RANGES iommu_ioas_iova_ranges.out_iova_alignment,
        IOMMUFD_CMD_IOAS_MAP iommu_ioas_map.iova,
        IOMMUFD_CMD_IOAS_UNMAP iommu_ioas_unmap.length,
        IOMMUFD_CMD_OPTION iommu_option.val64,
        IOMMUFD_CMD_VFIO_IOAS iommu_vfio_ioas.__reserved,
        IOMMUFD_CMD_HWPT_ALLOC iommu_hwpt_alloc.__reserved,
        IOMMUFD_CMD_GET_HW_INFO iommu_hw_info.__reserved,
        IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING iommu_hwpt_set_dirty_tracking.__reserved,
        IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP iommu_hwpt_get_dirty_bitmap.data,
        IOMMUFD_CMD_HWPT_INVALIDATE iommu_hwpt_invalidate.__reserved,
        IOMMUFD_CMD_FAULT_QUEUE_ALLOC iommu_fault_alloc.out_fault_fd,
        IOMMUFD_CMD_IOAS_MAP_FILE iommu_ioas_map_file.iova,
        IOMMUFD_CMD_VIOMMU_ALLOC iommu_viommu_alloc.out_viommu_id,
        IOMMUFD_CMD_VDEVICE_ALLOC iommu_vdevice_alloc.virt_id,
        IOMMUFD_CMD_IOAS_CHANGE_PROCESS iommu_ioas_change_process.__reserved,
        IOMMUFD_CMD_VEVENTQ_ALLOC iommu_veventq_alloc.out_veventq_fd,
        IOMMUFD_CMD_HW_QUEUE_ALLOC iommu_hw_queue_alloc.length,
    ];
    assert_eq!(COMMANDS.len(), theirs.len());
    for (command, (number, size, last)) in COMMANDS.iter().zip(theirs) {
        assert_eq!(
            (command.request & 0xff, command.size),
            (number, size),
            "{}",
            command.name
        );
        // Fields are 1 to 8 bytes wide; the least size is the end of that one.
        let width = command.min_size - last;
        assert!((1..=8).contains(&width), "{}", command.name);
    }
    assert_eq!(ours::TYPE, u32::from(theirs::IOMMUFD_TYPE));
}

#[test]
fn flags_are_the_kernels() {
    assert_eq!(
        [
            ours::MAP_FIXED_IOVA,
            ours::MAP_WRITEABLE,
            ours::MAP_READABLE
        ],
        [
            theirs::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
            theirs::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
            theirs::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
        ]
    );
    assert_eq!(
        [ours::OPTION_RLIMIT_MODE, ours::OPTION_HUGE_PAGES],
        [
            theirs::iommufd_option_IOMMU_OPTION_RLIMIT_MODE,
            theirs::iommufd_option_IOMMU_OPTION_HUGE_PAGES,
        ]
    );
    assert_eq!(
        [
            ours::HW_INFO_TYPE_DEFAULT,
            ours::HW_INFO_TYPE_INTEL_VTD,
            ours::HW_INFO_FLAG_INPUT_TYPE
        ],
        [
            theirs::iommu_hw_info_type_IOMMU_HW_INFO_TYPE_DEFAULT,
            theirs::iommu_hw_info_type_IOMMU_HW_INFO_TYPE_INTEL_VTD,
            theirs::iommufd_hw_info_flags_IOMMU_HW_INFO_FLAG_INPUT_TYPE,
        ]
    );
}

/// Offsets of fields that have the same name in a struct of ours and of the kernel's.
macro_rules! same_container_struct {
    ($ours:ident, $theirs:ident { $($field:ident),* }) => {
        $(assert_eq!(
            offset_of!(container::$ours, $field),
            offset_of!(vfio::$theirs, $field),
            concat!(stringify!($theirs), ".", stringify!($field)),
        );)*
    };
}

#[test]
fn containers_have_the_kernels_layout_and_numbers() {
    use vfio_bindings::bindings::vfio;
    same_container_struct!(
        DmaMap,
        vfio_iommu_type1_dma_map {
            argsz,
            flags,
            vaddr,
            iova,
            size
        }
    );
    same_container_struct!(
        DmaUnmap,
        vfio_iommu_type1_dma_unmap {
            argsz,
            flags,
            iova,
            size
        }
    );
    same_container_struct!(
        Info,
        vfio_iommu_type1_info {
            argsz,
            flags,
            iova_pgsizes,
            cap_offset
        }
    );
    same_container_struct!(CapHeader, vfio_info_cap_header { id, version, next });
    same_container_struct!(
        CapDmaAvail,
        vfio_iommu_type1_info_dma_avail { header, avail }
    );
    same_container_struct!(
        CapIovaRange,
        vfio_iommu_type1_info_cap_iova_range {
            header,
            nr_iovas,
            reserved
        }
    );
    same_container_struct!(IovaRange, vfio_iova_range { start, end });
    assert_eq!(
        size_of::<container::Info>(),
        size_of::<vfio::vfio_iommu_type1_info>()
    );
    assert_eq!(
        size_of::<container::CapDmaAvail>(),
        size_of::<vfio::vfio_iommu_type1_info_dma_avail>()
    );
    let extensions = [
        (container::TYPE1_IOMMU, vfio::VFIO_TYPE1_IOMMU),
        (container::TYPE1V2_IOMMU, vfio::VFIO_TYPE1v2_IOMMU),
        (container::DMA_CC_IOMMU, vfio::VFIO_DMA_CC_IOMMU),
        (container::UNMAP_ALL, vfio::VFIO_UNMAP_ALL),
    ];
    for (ours, theirs) in extensions {
        assert_eq!(ours, u64::from(theirs));
    }
    let base = ours::TYPE << 8 | vfio::VFIO_BASE;
    let commands = [
        container::GET_API_VERSION,
        container::CHECK_EXTENSION,
        container::SET_IOMMU,
        container::IOMMU_GET_INFO,
        container::IOMMU_MAP_DMA,
        container::IOMMU_UNMAP_DMA,
    ];
    assert_eq!(
        commands.map(|command| command - base),
        [0, 1, 2, 12, 13, 14]
    );
}
