//! HWPT_ALLOC.

use super::*;

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn page_tables_are_refused_in_the_order_of_linux() {
    let s = scene();
    let (good, on_ioas) = (s.on_parent(), s.on_ioas());
    let dev_id = NOBODY;
    let [first, amd] = [&s.first, &s.amd].map(|device| device.id().get());
    let rows = [
        (
            "the reserved field, before all",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                reserved: 1,
                data_len: 0,
                dev_id,
                ..good
            },
        ),
        (
            "data without a type, before the device",
            Errno::EINVAL,
            spec::HwptAlloc {
                data_type: 0,
                dev_id,
                ..good
            },
        ),
        (
            "a type without data, before the device",
            Errno::EINVAL,
            spec::HwptAlloc {
                data_len: 0,
                dev_id,
                ..good
            },
        ),
        (
            "the device, before what it is on",
            Errno::ENOENT,
            spec::HwptAlloc {
                dev_id,
                pt_id: NOBODY,
                ..good
            },
        ),
        (
            "what it is on, before the flags",
            Errno::EINVAL,
            spec::HwptAlloc {
                pt_id: NOBODY,
                flags: !0,
                ..good
            },
        ),
        (
            "on a device, before the flags",
            Errno::EINVAL,
            spec::HwptAlloc {
                pt_id: s.pdev.id().get(),
                flags: !0,
                ..good
            },
        ),
        (
            "on a nested page table, before the flags",
            Errno::EINVAL,
            spec::HwptAlloc {
                pt_id: s.nested,
                flags: !0,
                ..good
            },
        ),
        (
            "an unknown flag, before the parent",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                pt_id: s.plain,
                flags: 1 << 4,
                ..good
            },
        ),
        (
            "a flag of paging ones, before the parent",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                pt_id: s.automatic,
                flags: NEST_PARENT,
                ..good
            },
        ),
        (
            "dirty tracking",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                flags: DIRTY,
                ..good
            },
        ),
        (
            "no data, before the parent",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                pt_id: s.plain,
                data_type: 0,
                data_len: 0,
                ..good
            },
        ),
        (
            "an IOMMU that knows no nesting, before the parent",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                dev_id: amd,
                pt_id: s.plain,
                ..good
            },
        ),
        (
            "on a page table without NEST_PARENT, before the driver's checks",
            Errno::EINVAL,
            spec::HwptAlloc {
                dev_id: first,
                pt_id: s.plain,
                data_type: 9,
                ..good
            },
        ),
        (
            "on an automatic page table, before the driver's checks",
            Errno::EINVAL,
            spec::HwptAlloc {
                pt_id: s.automatic,
                data_type: 9,
                ..good
            },
        ),
        (
            "an IOMMU with one stage, before the data",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                dev_id: first,
                data_len: 1,
                data_uptr: UNREADABLE,
                ..good
            },
        ),
        (
            "data of another type, before its length",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                data_type: 2,
                data_len: 1,
                data_uptr: UNREADABLE,
                ..good
            },
        ),
        (
            "data too short, before it is read",
            Errno::EINVAL,
            spec::HwptAlloc {
                data_len: LEN - 1,
                data_uptr: UNREADABLE,
                ..good
            },
        ),
        (
            "data too long, before it is read",
            Errno::EINVAL,
            spec::HwptAlloc {
                data_len: LEN + 1,
                data_uptr: UNREADABLE,
                ..good
            },
        ),
        (
            "data too long, with zeros behind",
            Errno::EINVAL,
            spec::HwptAlloc {
                data_len: 64,
                ..good
            },
        ),
        (
            "data that is not there, before the fault queue",
            Errno::EFAULT,
            spec::HwptAlloc {
                data_uptr: UNREADABLE,
                flags: FAULTS,
                fault_id: NOBODY,
                ..good
            },
        ),
        (
            "the fault queue, last",
            Errno::ENOENT,
            spec::HwptAlloc {
                flags: FAULTS | PASID,
                fault_id: NOBODY,
                ..good
            },
        ),
        (
            "NEST_PARENT with a fault queue",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                flags: NEST_PARENT | FAULTS,
                fault_id: NOBODY,
                ..on_ioas
            },
        ),
        (
            "NEST_PARENT with data",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                flags: NEST_PARENT,
                pt_id: s.ioas,
                ..good
            },
        ),
        (
            "NEST_PARENT of first-stage tables",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                flags: NEST_PARENT,
                dev_id: first,
                ..on_ioas
            },
        ),
        (
            "NEST_PARENT of another kind of IOMMU",
            Errno::EOPNOTSUPP,
            spec::HwptAlloc {
                flags: NEST_PARENT | PASID,
                dev_id: amd,
                ..on_ioas
            },
        ),
    ];
    let before = s.state();
    for (row, errno, args) in rows {
        s.refused(row, s.m.result("HWPT_ALLOC", args), errno, &before);
    }
    let no_queue = spec::HwptAlloc {
        data_uptr: NOISY,
        fault_id: NOBODY,
        ..good
    };
    let noisy = s.made(no_queue);
    let noisy = ObjectId::from_raw(noisy);
    assert_eq!(s.pdev.attach(noisy), Ok(noisy), "the noise means nothing");
}
