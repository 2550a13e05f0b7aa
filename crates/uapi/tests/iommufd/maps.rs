//! IOAS commands: flags, foreign ids, wrapping ranges, and what is written back.

use ioasid_iommufd::ObjectId;
use ioasid_uapi::{Errno, spec::iommufd as spec};
use zerocopy::IntoBytes;

use crate::machine::*;

const RW: u32 = spec::MAP_READABLE | spec::MAP_WRITEABLE;
const FIXED: u32 = RW | spec::MAP_FIXED_IOVA;
const UNKNOWN: u32 = 1 << 3;
const MAX: u64 = u64::MAX;

fn map(ioas_id: u32) -> spec::IoasMap {
    spec::IoasMap {
        flags: FIXED,
        ioas_id,
        user_va: DATA,
        length: PAGE,
        iova: 0x1_0000,
        ..Default::default()
    }
}

fn map_file(ioas_id: u32) -> spec::IoasMapFile {
    spec::IoasMapFile {
        flags: FIXED,
        ioas_id,
        fd: FILE,
        length: PAGE,
        iova: 0x1_0000,
        ..Default::default()
    }
}

#[test]
fn map_checks_flags_then_numbers_then_the_id() {
    let m = Machine::new();
    let ioas = m.ioas();
    let nobody = map(NOBODY);
    let run = |args| m.result("IOAS_MAP", args);
    let bad = spec::IoasMap {
        flags: UNKNOWN,
        iova: MAX,
        ..nobody
    };
    assert_eq!(run(bad), Err(Errno::EOPNOTSUPP));
    assert_eq!(
        run(spec::IoasMap { reserved: 1, ..bad }),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        run(spec::IoasMap {
            iova: MAX,
            flags: 0,
            ..nobody
        }),
        Err(Errno::EOVERFLOW)
    );
    assert_eq!(
        run(spec::IoasMap {
            length: MAX,
            ..nobody
        }),
        Err(Errno::EOVERFLOW)
    );
    assert_eq!(
        run(spec::IoasMap {
            flags: spec::MAP_FIXED_IOVA,
            ..nobody
        }),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        run(spec::IoasMap {
            length: 0,
            ..nobody
        }),
        Err(Errno::ENOENT)
    );
    let good = map(ioas);
    assert_eq!(run(spec::IoasMap { length: 0, ..good }), Err(Errno::EINVAL));
    assert_eq!(
        run(spec::IoasMap {
            user_va: MAX - 5,
            ..good
        }),
        Err(Errno::EOVERFLOW)
    );
    assert_eq!(
        run(spec::IoasMap {
            iova: MAX - 5,
            ..good
        }),
        Err(Errno::EOVERFLOW)
    );
    assert_eq!(
        run(spec::IoasMap {
            length: MAX - 1,
            user_va: 0,
            iova: 0,
            ..good
        }),
        Err(Errno::EINVAL)
    );
    assert_eq!(run(good), Ok(0));
    assert_eq!(run(good), Err(Errno::EEXIST));
    assert_eq!(
        run(spec::IoasMap {
            iova: 1 << 20,
            user_va: 1,
            ..good
        }),
        Ok(0),
        "no page table yet"
    );
}

#[test]
fn map_without_an_address_tells_where() {
    let m = Machine::new();
    let ioas = m.ioas();
    let anywhere = spec::IoasMap {
        flags: RW,
        iova: 77,
        length: 2 << 20,
        user_va: 0x4000_0000,
        ..map(ioas)
    };
    let (result, reply) = m.run("IOAS_MAP", anywhere);
    assert_eq!((result, reply.iova), (Ok(0), 2 << 20));
    let small = spec::IoasMap {
        length: 16,
        user_va: DATA + 0x120,
        ..anywhere
    };
    let (result, reply) = m.run("IOAS_MAP", small);
    assert_eq!(
        (result, reply.iova),
        (Ok(0), 0x1120),
        "the offset in the page is kept"
    );
}

#[test]
fn with_a_device_memory_must_be_there_and_whole_pages() {
    let m = Machine::new();
    let pdev = m.pdev();
    let ioas = m.ioas();
    pdev.attach(ObjectId::from_raw(ioas)).unwrap();
    let run = |args| m.result("IOAS_MAP", args);
    let good = map(ioas);
    assert_eq!(
        run(spec::IoasMap { user_va: 0, ..good }),
        Err(Errno::EFAULT)
    );
    assert_eq!(
        run(spec::IoasMap {
            user_va: READ_ONLY,
            ..good
        }),
        Err(Errno::EFAULT)
    );
    let readable = spec::MAP_READABLE | spec::MAP_FIXED_IOVA;
    assert_eq!(
        run(spec::IoasMap {
            user_va: READ_ONLY,
            flags: readable,
            ..good
        }),
        Ok(0)
    );
    assert_eq!(
        run(spec::IoasMap {
            length: 100,
            ..good
        }),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        run(spec::IoasMap {
            iova: 0x2_0800,
            ..good
        }),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        run(spec::IoasMap {
            user_va: DATA + 8,
            iova: 0x2_0000,
            ..good
        }),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        run(spec::IoasMap {
            iova: 0xfee0_0000,
            ..good
        }),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        run(spec::IoasMap {
            iova: 0x2_0000,
            ..good
        }),
        Ok(0)
    );
    let (result, reply) = m.run("IOAS_MAP", spec::IoasMap { flags: RW, ..good });
    assert_eq!((result, reply.iova), (Ok(0), 0x1000));
    let mut byte = [0];
    m.put(DATA + 5, &[42]);
    let mut port = pdev.device().port();
    assert!(port.enter(None).read(0x1005, &mut byte).stop.is_none());
    assert_eq!(byte, [42], "the device reads the program's memory");
}

#[test]
fn files_are_looked_up_at_once_and_looked_into_when_needed() {
    let m = Machine::new();
    let ioas = m.ioas();
    let run = |args| m.result("IOAS_MAP_FILE", args);
    assert_eq!(
        run(spec::IoasMapFile {
            flags: UNKNOWN,
            ..map_file(NOBODY)
        }),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        run(spec::IoasMapFile {
            length: MAX,
            ..map_file(NOBODY)
        }),
        Err(Errno::EOVERFLOW)
    );
    assert_eq!(
        run(spec::IoasMapFile {
            flags: 0,
            ..map_file(NOBODY)
        }),
        Err(Errno::EINVAL)
    );
    assert_eq!(run(map_file(NOBODY)), Err(Errno::ENOENT));
    let good = map_file(ioas);
    assert_eq!(
        run(spec::IoasMapFile {
            start: MAX - 5,
            ..good
        }),
        Err(Errno::EOVERFLOW)
    );
    for fd in [-1, 99, i32::MIN] {
        assert_eq!(run(spec::IoasMapFile { fd, ..good }), Err(Errno::EBADF));
        let nothing = spec::IoasMapFile {
            fd,
            length: 0,
            ..good
        };
        assert_eq!(run(nothing), Err(Errno::EINVAL), "the length comes first");
    }
    let pipe = spec::IoasMapFile { fd: PIPE, ..good };
    let beyond = spec::IoasMapFile {
        start: FILE_SIZE,
        ..good
    };
    for odd in [pipe, beyond] {
        assert_eq!(run(odd), Ok(0), "nobody needs the pages yet");
        assert_eq!(m.context.ioas_unmap_all(ObjectId::from_raw(ioas)), Ok(PAGE));
    }
    let pdev = m.pdev();
    pdev.attach(ObjectId::from_raw(ioas)).unwrap();
    assert_eq!(run(pipe), Err(Errno::EINVAL));
    assert_eq!(run(beyond), Err(Errno::EINVAL));
    assert_eq!(run(good), Ok(0));
    let (result, reply) = m.run("IOAS_MAP_FILE", spec::IoasMapFile { flags: RW, ..good });
    assert_eq!((result, reply.iova), (Ok(0), 0x1000));
}

#[test]
fn unmap_tells_how_much() {
    let m = Machine::new();
    let ioas = m.ioas();
    let unmap = |iova, length| {
        let args = spec::IoasUnmap {
            ioas_id: ioas,
            iova,
            length,
            ..Default::default()
        };
        let (result, reply) = m.run("IOAS_UNMAP", args);
        result.map(|_| reply.length)
    };
    assert_eq!(unmap(0, MAX), Ok(0), "everything of nothing");
    assert_eq!(m.result("IOAS_MAP", map(ioas)), Ok(0));
    assert_eq!(unmap(0x1_0000, PAGE - 1), Err(Errno::ENOENT));
    assert_eq!(unmap(0x1_0000, 0), Err(Errno::EINVAL));
    assert_eq!(unmap(MAX, 1), Err(Errno::EOVERFLOW));
    assert_eq!(unmap(1, MAX), Err(Errno::EOVERFLOW));
    assert_eq!(unmap(MAX - 1, PAGE), Err(Errno::EOVERFLOW));
    assert_eq!(unmap(0x5000, PAGE), Err(Errno::ENOENT));
    assert_eq!(unmap(0, 1 << 40), Ok(PAGE), "more than is there");
    assert_eq!(m.result("IOAS_MAP", map(ioas)), Ok(0));
    assert_eq!(unmap(0, MAX), Ok(PAGE));
    let nobody = spec::IoasUnmap {
        ioas_id: NOBODY,
        iova: MAX,
        ..Default::default()
    };
    assert_eq!(m.result("IOAS_UNMAP", nobody), Err(Errno::ENOENT));
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one case after another, each on what the last one left"
)]
fn copy_checks_flags_then_numbers_then_the_ids() {
    let m = Machine::new();
    let (src, dst) = (m.ioas(), m.ioas());
    assert_eq!(m.result("IOAS_MAP", map(src)), Ok(0));
    let run = |args| m.run("IOAS_COPY", args);
    let good = spec::IoasCopy {
        flags: RW,
        dst_ioas_id: dst,
        src_ioas_id: src,
        length: PAGE,
        src_iova: 0x1_0000,
        ..Default::default()
    };
    let nobody = spec::IoasCopy {
        src_ioas_id: NOBODY,
        dst_ioas_id: NOBODY,
        ..good
    };
    assert_eq!(
        run(spec::IoasCopy {
            flags: UNKNOWN,
            length: MAX,
            ..nobody
        })
        .0,
        Err(Errno::EOPNOTSUPP)
    );
    for wraps in [
        spec::IoasCopy {
            length: MAX,
            flags: 0,
            ..nobody
        },
        spec::IoasCopy {
            src_iova: MAX,
            flags: 0,
            ..nobody
        },
        spec::IoasCopy {
            dst_iova: MAX,
            flags: 0,
            ..nobody
        },
    ] {
        assert_eq!(run(wraps).0, Err(Errno::EOVERFLOW));
    }
    assert_eq!(
        run(spec::IoasCopy { flags: 0, ..nobody }).0,
        Err(Errno::EINVAL)
    );
    assert_eq!(run(nobody).0, Err(Errno::ENOENT));
    assert_eq!(
        run(spec::IoasCopy { length: 0, ..good }).0,
        Err(Errno::EINVAL)
    );
    assert_eq!(
        run(spec::IoasCopy {
            src_iova: MAX - 5,
            ..good
        })
        .0,
        Err(Errno::EOVERFLOW)
    );
    assert_eq!(
        run(spec::IoasCopy {
            length: 2 * PAGE,
            ..good
        })
        .0,
        Err(Errno::ENOENT)
    );
    assert_eq!(
        run(spec::IoasCopy {
            dst_ioas_id: NOBODY,
            ..good
        })
        .0,
        Err(Errno::ENOENT)
    );
    let (result, reply) = run(good);
    assert_eq!((result, reply.dst_iova), (Ok(0), 0x1000));
    assert_eq!(
        run(spec::IoasCopy {
            flags: FIXED,
            dst_iova: 0x1000,
            ..good
        })
        .0,
        Err(Errno::EEXIST)
    );
    let read_only = spec::MAP_READABLE | spec::MAP_FIXED_IOVA;
    let args = spec::IoasMap {
        flags: read_only,
        iova: 0x2_0000,
        ..map(src)
    };
    assert_eq!(m.result("IOAS_MAP", args), Ok(0));
    assert_eq!(
        run(spec::IoasCopy {
            src_iova: 0x2_0000,
            ..good
        })
        .0,
        Err(Errno::EPERM)
    );
}

#[test]
fn iova_ranges_say_what_they_need_even_when_there_is_no_room() {
    let m = Machine::new();
    let (pdev, ioas) = (m.pdev(), m.ioas());
    let args = |num_iovas| spec::IoasIovaRanges {
        ioas_id: ioas,
        num_iovas,
        allowed_iovas: DATA,
        ..Default::default()
    };
    let run = |args| m.run("IOAS_IOVA_RANGES", args);
    let (result, reply) = run(args(1));
    assert_eq!(
        (result, reply.num_iovas, reply.out_iova_alignment),
        (Ok(0), 1, 1)
    );
    let whole = spec::IovaRange {
        start: 0,
        last: MAX,
    };
    assert_eq!(m.get::<spec::IovaRange>(DATA), whole);
    pdev.attach(ObjectId::from_raw(ioas)).unwrap();
    let (result, reply) = run(spec::IoasIovaRanges {
        allowed_iovas: 0,
        ..args(0)
    });
    assert_eq!((result, reply.num_iovas), (Err(Errno::EMSGSIZE), 2));
    assert_eq!(reply.out_iova_alignment, PAGE);
    let below = spec::IovaRange {
        start: 0,
        last: 0xfedf_ffff,
    };
    m.put(DATA, &[0xaa; 48]);
    let (result, reply) = run(args(1));
    assert_eq!((result, reply.num_iovas), (Err(Errno::EMSGSIZE), 2));
    assert_eq!(
        m.get::<spec::IovaRange>(DATA),
        below,
        "the first range is there"
    );
    assert_eq!(m.get::<[u8; 32]>(DATA + 16), [0xaa; 32], "and no more");
    let (result, reply) = run(args(u32::MAX));
    assert_eq!((result, reply.num_iovas), (Ok(0), 2));
    assert_eq!(m.get::<u64>(DATA + 16), 0xfef0_0000);
    let unwritable = spec::IoasIovaRanges {
        allowed_iovas: READ_ONLY,
        ..args(2)
    };
    assert_eq!(run(unwritable).0, Err(Errno::EFAULT));
    assert_eq!(
        run(spec::IoasIovaRanges {
            reserved: 1,
            ioas_id: NOBODY,
            ..args(2)
        })
        .0,
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        run(spec::IoasIovaRanges {
            ioas_id: NOBODY,
            ..args(2)
        })
        .0,
        Err(Errno::ENOENT)
    );
}

#[test]
fn allowed_ranges_come_in_an_array_that_may_not_be_there() {
    let m = Machine::new();
    let ioas = m.ioas();
    let args = spec::IoasAllowIovas {
        ioas_id: ioas,
        num_iovas: 2,
        allowed_iovas: DATA,
        ..Default::default()
    };
    let allow = |ranges: [(u64, u64); 2]| {
        let ranges = ranges.map(|(start, last)| spec::IovaRange { start, last });
        m.put(DATA, ranges.as_bytes());
        m.result("IOAS_ALLOW_IOVAS", args)
    };
    assert_eq!(allow([(0x1000, 0x1fff), (0x8000, 0x8fff)]), Ok(0));
    assert_eq!(
        allow([(0x1000, 0x1fff), (0x1fff, 0x8fff)]),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        allow([(0x1000, 0x1000), (0x2000, 0x8fff)]),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        allow([(0x2000, 0x1000), (0x4000, 0x8fff)]),
        Err(Errno::EINVAL)
    );
    let run = |args| m.result("IOAS_ALLOW_IOVAS", args);
    assert_eq!(
        run(spec::IoasAllowIovas {
            allowed_iovas: 0,
            ..args
        }),
        Err(Errno::EFAULT)
    );
    assert_eq!(
        run(spec::IoasAllowIovas {
            allowed_iovas: MAX,
            ..args
        }),
        Err(Errno::EFAULT)
    );
    assert_eq!(
        run(spec::IoasAllowIovas {
            num_iovas: 0,
            allowed_iovas: 0,
            ..args
        }),
        Ok(0)
    );
    assert_eq!(
        run(spec::IoasAllowIovas {
            reserved: 1,
            ioas_id: NOBODY,
            ..args
        }),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        run(spec::IoasAllowIovas {
            allowed_iovas: 0,
            ioas_id: NOBODY,
            ..args
        }),
        Err(Errno::ENOENT)
    );
}
