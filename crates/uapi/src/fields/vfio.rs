//! The structs of `vfio.h`, and the data behind them.

use super::{
    Described, Field,
    Form::{self, Flags, Hex, Name, Number, Reserved, Signed, Size},
    Named, Value, Way, described,
    field::{Tail, number},
    names,
};
use crate::spec::{container, group, vfio as spec};

/// Descriptors or bytes of SET_IRQS that are shown.
const SHOWN: usize = 32;

described! {
    spec::DeviceInfo {
        out "flags" = flags, Flags(names::DEVICE);
        out "regions" = num_regions, Number;
        out "irqs" = num_irqs, Number;
        out "cap_offset" = cap_offset, Number;
        both "argsz" = argsz, Size;
    }
    spec::RegionInfo {
        in "index" = index, Name(names::REGION_INDEX);
        out "flags" = flags, Flags(names::REGION);
        out "size" = size, Hex;
        out "offset" = offset, Hex;
        out "cap_offset" = cap_offset, Number;
        both "argsz" = argsz, Size;
    }
    spec::IrqInfo {
        in "index" = index, Name(names::IRQ_INDEX);
        out "flags" = flags, Flags(names::IRQ);
        out "count" = count, Number;
        in "argsz" = argsz, Size;
    }
    spec::IrqSet {
        in "index" = index, Name(names::IRQ_INDEX);
        in "start" = start, Number;
        in "count" = count, Number;
        in "flags" = flags, Flags(names::IRQ_SET);
        in "argsz" = argsz, Size;
    } + irq_data
    spec::HotReset {
        in "flags" = flags, Flags(names::NONE);
        in "count" = count, Number;
        in "argsz" = argsz, Size;
    }
    spec::Ioeventfd {
        in "offset" = offset, Hex;
        in "bytes" = flags, Number;
        in "data" = data, Hex;
        in "fd" = fd, Signed;
        in "reserved" = reserved, Reserved;
        in "argsz" = argsz, Size;
    }
    spec::BindIommufd {
        in "iommufd" = iommufd, Signed;
        in "flags" = flags, Flags(names::BIND);
        in "token" = token_uuid_ptr, Hex, if spec::BindIommufd::TOKEN;
        out "devid" = out_devid, Number;
        in "argsz" = argsz, Size;
    }
    spec::AttachIommufdPt {
        both "pt" = pt_id, Number;
        in "pasid" = pasid, Number, if spec::AttachIommufdPt::PASID;
        in "flags" = flags, Flags(names::PASID);
        in "argsz" = argsz, Size;
    }
    spec::DetachIommufdPt {
        in "pasid" = pasid, Number, if spec::DetachIommufdPt::PASID;
        in "flags" = flags, Flags(names::PASID);
        in "argsz" = argsz, Size;
    }
    spec::MigState {
        both "state" = device_state, Name(names::MIGRATION_STATE);
        out "data_fd" = data_fd, Signed;
    }
    spec::LowPowerWakeup {
        in "wakeup_eventfd" = wakeup_eventfd, Signed;
    }
    spec::DmaLoggingControl {
        both "page_size" = page_size, Hex;
        in "num_ranges" = num_ranges, Number;
        in "ranges" = ranges, Hex;
    }
    spec::DmaLoggingReport {
        in "iova" = iova, Hex;
        in "len" = length, Hex;
        in "page_size" = page_size, Hex;
        in "bitmap" = bitmap, Hex;
    }
    container::Info {
        out "flags" = flags, Flags(names::IOMMU_INFO);
        out "pgsizes" = iova_pgsizes, Hex;
        out "cap_offset" = cap_offset, Number;
        both "argsz" = argsz, Size;
    }
    container::DmaMap {
        in "iova" = iova, Hex;
        in "len" = size, Hex;
        in "va" = vaddr, Hex;
        in "flags" = flags, Flags(names::DMA_MAP);
        in "argsz" = argsz, Size;
    }
    container::DmaUnmap {
        in "iova" = iova, Hex;
        both "len" = size, Hex;
        in "flags" = flags, Flags(names::DMA_UNMAP);
        in "argsz" = argsz, Size;
    } + unmap_bitmap
    container::DirtyBitmap {
        in "flags" = flags, Flags(names::DIRTY_PAGES);
        in "argsz" = argsz, Size;
    } + dirty_bitmap
    container::Bitmap {
        in "pgsize" = pgsize, Hex;
        in "bitmap_size" = size, Hex;
        in "bitmap" = data, Hex;
    }
    group::GroupStatus {
        out "flags" = flags, Flags(names::GROUP);
        in "argsz" = argsz, Size;
    }
}

/// SET_CONTAINER: the descriptor that the argument points at.
impl Described for i32 {
    const FIELDS: &'static [Field] = &[Field {
        name: "container",
        offset: 0,
        width: 4,
        form: Signed,
        way: Way::In,
        when: None,
    }];
    const GROWS: bool = false;
}

/// FEATURE: which feature is in the low half of the flags, what is wished in the high one.
impl Described for spec::Feature {
    const FIELDS: &'static [Field] = &[
        FEATURE_HALF,
        Field {
            name: "op",
            form: Form::Flags(names::FEATURE_WISH),
            offset: 4,
            width: 4,
            way: Way::In,
            when: None,
        },
        Field {
            name: "argsz",
            form: Size,
            offset: 0,
            width: 4,
            way: Way::In,
            when: None,
        },
    ];
    const TAIL: Option<Tail> = Some(feature_data);
}

const FEATURE_HALF: Field = Field {
    name: "feature",
    form: Name(names::FEATURE),
    offset: 4,
    width: 2,
    way: Way::In,
    when: None,
};

/// The fields of a `T` that begins at `at`.
fn read_behind<T: Described>(
    bytes: &[u8],
    at: usize,
    wanted: &dyn Fn(Way) -> bool,
    into: &mut Vec<Named>,
) {
    let Some(rest) = bytes.get(at..) else {
        return;
    };
    let fields = T::FIELDS.iter().filter(|field| wanted(field.way));
    into.extend(fields.filter_map(|field| field.read(rest, size_of::<T>())));
}

fn irq_data(bytes: &[u8], wanted: &dyn Fn(Way) -> bool, into: &mut Vec<Named>) {
    use spec::IrqSet;
    let (Some(flags), Some(count)) = (number(bytes, 4, 4), number(bytes, 16, 4)) else {
        return;
    };
    let (name, width) = match flags as u32 & IrqSet::DATA_MASK {
        IrqSet::DATA_BOOL => ("data", 1),
        IrqSet::DATA_EVENTFD => ("fds", 4),
        _ => return,
    };
    if !wanted(Way::In) {
        return;
    }
    let count = usize::try_from(count).unwrap_or(SHOWN).min(SHOWN);
    let elements = (0..count).map_while(|at| number(bytes, IrqSet::MIN + at * width, width));
    let value = |raw: u64| match width {
        4 => Value::Signed((raw as u32).cast_signed().into()),
        _ => Value::Number(raw),
    };
    into.push(Named {
        name,
        value: Value::List(elements.map(value).collect()),
        usual: false,
    });
}

fn feature_data(bytes: &[u8], wanted: &dyn Fn(Way) -> bool, into: &mut Vec<Named>) {
    use spec::Feature;
    let Some(flags) = number(bytes, 4, 4).map(|flags| flags as u32) else {
        return;
    };
    // The op is what is left of the flags when the number is taken away.
    if let Some(op) = into.iter_mut().find(|field| field.name == "op")
        && let Value::Flags { bits, .. } = &mut op.value
    {
        *bits &= !u64::from(Feature::NUMBER);
    }
    // The size depends on the data: what matters is whether it was too short, which the error says.
    if let Some(size) = into.iter_mut().find(|field| field.name == "argsz") {
        size.usual = true;
    }
    if flags & Feature::PROBE != 0 {
        return;
    }
    match flags & Feature::NUMBER {
        Feature::MIG_DEVICE_STATE => {
            read_behind::<spec::MigState>(bytes, Feature::MIN, wanted, into);
        }
        Feature::LOW_POWER_ENTRY_WITH_WAKEUP => {
            read_behind::<spec::LowPowerWakeup>(bytes, Feature::MIN, wanted, into);
        }
        Feature::DMA_LOGGING_START => {
            read_behind::<spec::DmaLoggingControl>(bytes, Feature::MIN, wanted, into);
        }
        Feature::DMA_LOGGING_REPORT => {
            read_behind::<spec::DmaLoggingReport>(bytes, Feature::MIN, wanted, into);
        }
        _ => {}
    }
}

fn unmap_bitmap(bytes: &[u8], wanted: &dyn Fn(Way) -> bool, into: &mut Vec<Named>) {
    if number(bytes, 4, 4).is_some_and(|flags| flags & u64::from(container::UNMAP_DIRTY) != 0) {
        let at = size_of::<container::DmaUnmap>();
        read_behind::<container::Bitmap>(bytes, at, wanted, into);
    }
}

fn dirty_bitmap(bytes: &[u8], wanted: &dyn Fn(Way) -> bool, into: &mut Vec<Named>) {
    let head = size_of::<container::DirtyBitmap>();
    if number(bytes, 4, 4) != Some(u64::from(container::DIRTY_GET)) || !wanted(Way::In) {
        return;
    }
    for (name, at) in [("iova", head), ("len", head + 8)] {
        if let Some(raw) = number(bytes, at, 8) {
            into.push(Named {
                name,
                value: Value::Hex(raw),
                usual: false,
            });
        }
    }
    read_behind::<container::Bitmap>(bytes, head + 16, wanted, into);
}
