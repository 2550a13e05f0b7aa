//! HWPT_INVALIDATE.

use super::*;

fn entry(address: u64, pages: u64, flags: u32, reserved: u32) -> Vec<u8> {
    stage_one(address, pages, flags, reserved)
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn invalidation_is_refused_in_the_order_of_linux() {
    let s = scene();
    let (page, all) = (entry(0x7000, 1, 1, 0), entry(0, u64::MAX, 0, 0));
    let unaligned_and_unknown = entry(0x123, 1, 2, 0);
    let good = spec::HwptInvalidate {
        hwpt_id: s.nested,
        data_uptr: ENTRIES,
        data_type: 0,
        entry_len: LEN,
        ..Default::default()
    };
    let before = s.state();
    for (row, expected, args, entries) in [
        ("all good", (Ok(0), 3), good, vec![&page, &all, &page]),
        (
            "the third",
            (Err(Errno::EOPNOTSUPP), 2),
            good,
            vec![&page, &page, &unaligned_and_unknown],
        ),
        (
            "a reserved bit",
            (Err(Errno::EOPNOTSUPP), 0),
            good,
            vec![&entry(0, 1, 0, 1), &page],
        ),
        (
            "inside of a page",
            (Err(Errno::EINVAL), 1),
            good,
            vec![&page, &entry(0x7008, 1, 0, 0)],
        ),
        (
            "all pages but from 0",
            (Err(Errno::EINVAL), 0),
            good,
            vec![&entry(0x1000, u64::MAX, 0, 0)],
        ),
        (
            "another type, before the entries",
            (Err(Errno::EINVAL), 0),
            spec::HwptInvalidate {
                data_type: 1,
                ..good
            },
            vec![&page, &unaligned_and_unknown],
        ),
        (
            "a short entry, before it is read",
            (Err(Errno::EINVAL), 0),
            spec::HwptInvalidate {
                entry_len: LEN - 1,
                data_uptr: UNREADABLE,
                ..good
            },
            vec![&page],
        ),
        (
            "a long entry",
            (Err(Errno::EINVAL), 0),
            spec::HwptInvalidate {
                entry_len: LEN + 8,
                ..good
            },
            vec![&page],
        ),
        (
            "entries that are not there",
            (Err(Errno::EFAULT), 0),
            spec::HwptInvalidate {
                data_uptr: UNREADABLE,
                ..good
            },
            vec![&unaligned_and_unknown],
        ),
        (
            "the parent",
            (Err(Errno::EINVAL), 0),
            spec::HwptInvalidate {
                hwpt_id: s.parent,
                ..good
            },
            vec![&page],
        ),
        (
            "nothing",
            (Err(Errno::ENOENT), 0),
            spec::HwptInvalidate {
                hwpt_id: NOBODY,
                ..good
            },
            vec![&page],
        ),
        ("a probe", (Ok(0), 0), good, vec![]),
        (
            "a probe for another type",
            (Err(Errno::EINVAL), 0),
            spec::HwptInvalidate {
                data_type: 1,
                ..good
            },
            vec![],
        ),
    ] {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_vec()).collect();
        s.m.put(ENTRIES, &bytes);
        let args = spec::HwptInvalidate {
            entry_num: entries.len() as u32,
            ..args
        };
        let (result, reply) = s.m.run("HWPT_INVALIDATE", args);
        assert_eq!((result, reply.entry_num), expected, "{row}");
        assert_eq!(s.state(), before, "{row}");
    }
    // The last entry reaches into what cannot be read: those before it are done.
    let end = BASE + SIZE as u64;
    let (result, reply) = s.m.run(
        "HWPT_INVALIDATE",
        spec::HwptInvalidate {
            data_uptr: end - 8 - u64::from(LEN),
            entry_num: 2,
            ..good
        },
    );
    assert_eq!((result, reply.entry_num), (Err(Errno::EFAULT), 1));
}
