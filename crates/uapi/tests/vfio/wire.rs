//! The structs and numbers agree with the kernel's header, as published in `vfio-bindings`.

use std::mem::offset_of;

use ioasid_uapi::spec::vfio as ours;
use vfio_bindings::bindings::vfio as theirs;

macro_rules! same_struct {
    ($ours:ident, $theirs:ident { $($field:ident),* $(,)? }) => {
        $(assert_eq!(
            offset_of!(ours::$ours, $field),
            offset_of!(theirs::$theirs, $field),
            concat!(stringify!($theirs), ".", stringify!($field)),
        );)*
        assert_eq!(size_of::<ours::$ours>(), size_of::<theirs::$theirs>());
    };
}

#[test]
fn structs_have_the_kernels_layout() {
    same_struct!(
        DeviceInfo,
        vfio_device_info {
            argsz,
            flags,
            num_regions,
            num_irqs,
            cap_offset,
        }
    );
    same_struct!(
        RegionInfo,
        vfio_region_info {
            argsz,
            flags,
            index,
            cap_offset,
            size,
            offset
        }
    );
    same_struct!(
        IrqInfo,
        vfio_irq_info {
            argsz,
            flags,
            index,
            count
        }
    );
    same_struct!(
        IrqSet,
        vfio_irq_set {
            argsz,
            flags,
            index,
            start,
            count
        }
    );
    same_struct!(CapHeader, vfio_info_cap_header { id, version, next });
    same_struct!(Feature, vfio_device_feature { argsz, flags });
    same_struct!(
        DmaLoggingControl,
        vfio_device_feature_dma_logging_control {
            page_size,
            num_ranges,
            ranges
        }
    );
    same_struct!(
        DmaLoggingRange,
        vfio_device_feature_dma_logging_range { iova, length }
    );
    same_struct!(
        DmaLoggingReport,
        vfio_device_feature_dma_logging_report {
            iova,
            length,
            page_size,
            bitmap
        }
    );
    same_struct!(
        BindIommufd,
        vfio_device_bind_iommufd {
            argsz,
            flags,
            iommufd,
            out_devid,
            token_uuid_ptr,
        }
    );
    same_struct!(
        AttachIommufdPt,
        vfio_device_attach_iommufd_pt {
            argsz,
            flags,
            pt_id,
            pasid
        }
    );
    same_struct!(
        DetachIommufdPt,
        vfio_device_detach_iommufd_pt {
            argsz,
            flags,
            pasid
        }
    );
    same_struct!(
        HotReset,
        vfio_pci_hot_reset {
            argsz,
            flags,
            count
        }
    );
}

#[test]
fn numbers_and_flags_are_the_kernels() {
    let base = u32::from(theirs::VFIO_TYPE) << 8 | theirs::VFIO_BASE;
    for (number, nr) in [
        (ours::DEVICE_GET_INFO, 7),
        (ours::DEVICE_GET_REGION_INFO, 8),
        (ours::DEVICE_GET_IRQ_INFO, 9),
        (ours::DEVICE_SET_IRQS, 10),
        (ours::DEVICE_RESET, 11),
        (ours::DEVICE_GET_PCI_HOT_RESET_INFO, 12),
        (ours::DEVICE_PCI_HOT_RESET, 13),
        (ours::DEVICE_FEATURE, 17),
        (ours::DEVICE_BIND_IOMMUFD, 18),
        (ours::DEVICE_ATTACH_IOMMUFD_PT, 19),
        (ours::DEVICE_DETACH_IOMMUFD_PT, 20),
    ] {
        assert_eq!(number, base + nr);
    }
    for (ours, theirs) in [
        (ours::DeviceInfo::RESET, theirs::VFIO_DEVICE_FLAGS_RESET),
        (ours::DeviceInfo::PCI, theirs::VFIO_DEVICE_FLAGS_PCI),
        (ours::RegionInfo::READ, theirs::VFIO_REGION_INFO_FLAG_READ),
        (ours::RegionInfo::WRITE, theirs::VFIO_REGION_INFO_FLAG_WRITE),
        (ours::RegionInfo::MMAP, theirs::VFIO_REGION_INFO_FLAG_MMAP),
        (ours::RegionInfo::CAPS, theirs::VFIO_REGION_INFO_FLAG_CAPS),
        (
            u32::from(ours::RegionInfo::CAP_MSIX_MAPPABLE),
            theirs::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
        ),
        (ours::IrqInfo::EVENTFD, theirs::VFIO_IRQ_INFO_EVENTFD),
        (ours::IrqInfo::MASKABLE, theirs::VFIO_IRQ_INFO_MASKABLE),
        (ours::IrqInfo::AUTOMASKED, theirs::VFIO_IRQ_INFO_AUTOMASKED),
        (ours::IrqInfo::NORESIZE, theirs::VFIO_IRQ_INFO_NORESIZE),
        (ours::IrqSet::DATA_NONE, theirs::VFIO_IRQ_SET_DATA_NONE),
        (ours::IrqSet::DATA_BOOL, theirs::VFIO_IRQ_SET_DATA_BOOL),
        (
            ours::IrqSet::DATA_EVENTFD,
            theirs::VFIO_IRQ_SET_DATA_EVENTFD,
        ),
        (ours::IrqSet::DATA_MASK, theirs::VFIO_IRQ_SET_DATA_TYPE_MASK),
        (ours::IrqSet::ACTION_MASK, theirs::VFIO_IRQ_SET_ACTION_MASK),
        (
            ours::IrqSet::ACTION_UNMASK,
            theirs::VFIO_IRQ_SET_ACTION_UNMASK,
        ),
        (
            ours::IrqSet::ACTION_TRIGGER,
            theirs::VFIO_IRQ_SET_ACTION_TRIGGER,
        ),
        (ours::IrqSet::ACTIONS, theirs::VFIO_IRQ_SET_ACTION_TYPE_MASK),
        (ours::Feature::NUMBER, theirs::VFIO_DEVICE_FEATURE_MASK),
        (ours::Feature::GET, theirs::VFIO_DEVICE_FEATURE_GET),
        (ours::Feature::SET, theirs::VFIO_DEVICE_FEATURE_SET),
        (ours::Feature::PROBE, theirs::VFIO_DEVICE_FEATURE_PROBE),
        (
            ours::BindIommufd::TOKEN,
            theirs::VFIO_DEVICE_BIND_FLAG_TOKEN,
        ),
        (
            ours::AttachIommufdPt::PASID,
            theirs::VFIO_DEVICE_ATTACH_PASID,
        ),
        (
            ours::DetachIommufdPt::PASID,
            theirs::VFIO_DEVICE_DETACH_PASID,
        ),
    ] {
        assert_eq!(ours, theirs);
    }
}
