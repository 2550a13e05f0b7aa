//! The commands of a VFIO container on `/dev/iommu`.

use ioasid_iommufd::ObjectId;
use ioasid_uapi::{
    Errno,
    spec::{container as spec, iommufd},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::machine::*;

const IOVA: u64 = 0x10_0000;

fn with_ioas() -> (Machine, u32) {
    let m = Machine::new();
    let ioas = m.ioas();
    let set = iommufd::VfioIoas {
        ioas_id: ioas,
        op: iommufd::VFIO_IOAS_SET,
        ..Default::default()
    };
    assert_eq!(m.result("VFIO_IOAS", set), Ok(0));
    (m, ioas)
}

fn run<T>(m: &Machine, command: u32, args: T) -> (Result<u64, Errno>, T)
where
    T: FromBytes + IntoBytes + Immutable,
{
    m.put(BASE, args.as_bytes());
    (m.at(command, BASE), m.get(BASE))
}

fn map_args(iova: u64, size: u64) -> spec::DmaMap {
    spec::DmaMap {
        argsz: size_of::<spec::DmaMap>() as u32,
        flags: spec::MAP_READ | spec::MAP_WRITE,
        vaddr: DATA,
        iova,
        size,
    }
}

fn map(m: &Machine, args: spec::DmaMap) -> Result<u64, Errno> {
    run(m, spec::IOMMU_MAP_DMA, args).0
}

fn unmap_args(iova: u64, size: u64) -> spec::DmaUnmap {
    spec::DmaUnmap {
        argsz: size_of::<spec::DmaUnmap>() as u32,
        flags: 0,
        iova,
        size,
    }
}

/// The result, and the size that was written back.
fn unmap(m: &Machine, args: spec::DmaUnmap) -> (Result<u64, Errno>, u64) {
    let (result, reply) = run(m, spec::IOMMU_UNMAP_DMA, args);
    (result, reply.size)
}

#[test]
fn extensions_are_those_of_the_compatibility_code() {
    let m = Machine::new();
    let check = |extension| m.at(spec::CHECK_EXTENSION, extension);
    assert_eq!(m.at(spec::GET_API_VERSION, 0), Ok(0));
    for there in [spec::TYPE1_IOMMU, spec::TYPE1V2_IOMMU, spec::UNMAP_ALL] {
        assert_eq!(check(there), Ok(1));
    }
    for not_there in [0, 2, 5, 6, 7, 8, 10, u64::MAX] {
        assert_eq!(check(not_there), Ok(0));
    }
    assert_eq!(check(spec::DMA_CC_IOMMU), Err(Errno::ENODEV));
    let (m, ioas) = with_ioas();
    assert_eq!(m.at(spec::CHECK_EXTENSION, spec::DMA_CC_IOMMU), Ok(1));
    let toy = m.toy();
    toy.attach(ObjectId::from_raw(ioas)).unwrap();
    let incoherent = m.at(spec::CHECK_EXTENSION, spec::DMA_CC_IOMMU);
    assert_eq!(incoherent, Ok(0));
}

#[test]
fn without_an_ioas_there_is_no_device() {
    let m = Machine::new();
    assert_eq!(m.at(spec::SET_IOMMU, 2), Err(Errno::EINVAL));
    assert_eq!(m.at(spec::SET_IOMMU, 8), Err(Errno::EINVAL));
    assert_eq!(m.at(spec::SET_IOMMU, 3), Err(Errno::ENODEV));
    let info = spec::Info {
        argsz: 24,
        ..Default::default()
    };
    let info = run(&m, spec::IOMMU_GET_INFO, info).0;
    assert_eq!(info, Err(Errno::ENODEV));
    assert_eq!(map(&m, map_args(IOVA, PAGE)), Err(Errno::ENODEV));
    assert_eq!(unmap(&m, unmap_args(IOVA, PAGE)).0, Err(Errno::ENODEV));
    // The struct is looked at first.
    let short = spec::DmaMap {
        argsz: 31,
        ..map_args(IOVA, PAGE)
    };
    assert_eq!(map(&m, short), Err(Errno::EINVAL));
    assert_eq!(m.at(spec::IOMMU_MAP_DMA, 0), Err(Errno::EFAULT));
    assert_eq!(m.at(spec::IOMMU_UNMAP_DMA, 0), Err(Errno::EFAULT));
    assert_eq!(m.at(spec::IOMMU_GET_INFO, 0), Err(Errno::EFAULT));
}

#[test]
fn map_is_refused_in_the_kernels_order() {
    let (m, ioas) = with_ioas();
    let good = map_args(IOVA, PAGE);
    let flags = spec::DmaMap { flags: 4, ..good };
    assert_eq!(map(&m, flags), Err(Errno::EINVAL));
    assert_eq!(map(&m, map_args(IOVA, 0)), Err(Errno::EINVAL));
    let wraps = spec::DmaMap {
        vaddr: u64::MAX,
        size: 2,
        ..good
    };
    assert_eq!(map(&m, wraps), Err(Errno::EOVERFLOW));
    assert_eq!(map(&m, map_args(u64::MAX, PAGE)), Err(Errno::EOVERFLOW));
    let longer = spec::DmaMap { argsz: 99, ..good };
    assert_eq!(map(&m, longer), Ok(0), "a longer struct is fine");
    assert_eq!(map(&m, good), Err(Errno::EEXIST));
    let odd = spec::DmaMap {
        vaddr: DATA + 1,
        iova: 2 * IOVA + 1,
        size: 3,
        ..good
    };
    assert_eq!(map(&m, odd), Ok(0), "any byte until a device is attached");
    assert_eq!(unmap(&m, unmap_args(odd.iova, 3)), (Ok(0), 3));
    let pdev = m.pdev();
    pdev.attach(ObjectId::from_raw(ioas)).unwrap();
    assert_eq!(map(&m, odd), Err(Errno::EINVAL));
    assert_eq!(map(&m, map_args(0xfee0_0000, PAGE)), Err(Errno::EINVAL));
    let nothing_there = spec::DmaMap {
        vaddr: 0,
        iova: 3 * IOVA,
        ..good
    };
    assert_eq!(map(&m, nothing_there), Err(Errno::EFAULT));
}

#[test]
fn version_2_unmaps_whole_mappings() {
    let (m, _) = with_ioas();
    assert_eq!(m.at(spec::SET_IOMMU, spec::TYPE1V2_IOMMU), Ok(0));
    map(&m, map_args(IOVA, 4 * PAGE)).unwrap();
    let half = unmap_args(IOVA, 2 * PAGE);
    assert_eq!(unmap(&m, half), (Err(Errno::ENOENT), 0));
    assert_eq!(unmap(&m, unmap_args(0, PAGE)), (Ok(0), 0), "nothing there");
    map(&m, map_args(2 * IOVA, PAGE)).unwrap();
    // The first goes before the edge that cuts the second is met.
    let both = unmap_args(IOVA, IOVA + PAGE / 2);
    assert_eq!(unmap(&m, both), (Err(Errno::ENOENT), 4 * PAGE));
    assert_eq!(unmap(&m, unmap_args(IOVA, 0)), (Err(Errno::EINVAL), 0));
    let wraps = unmap_args(u64::MAX, 2);
    assert_eq!(unmap(&m, wraps), (Err(Errno::EOVERFLOW), 0));
    for flags in [1, 4, 1 | 2] {
        let unknown = spec::DmaUnmap {
            flags,
            ..unmap_args(0, 0)
        };
        assert_eq!(unmap(&m, unknown).0, Err(Errno::EINVAL));
    }
}

#[test]
fn everything_goes_by_a_flag_and_no_range() {
    let (m, _) = with_ioas();
    map(&m, map_args(IOVA, PAGE)).unwrap();
    map(&m, map_args(2 * IOVA, 2 * PAGE)).unwrap();
    let all = |iova, size| spec::DmaUnmap {
        flags: spec::UNMAP_FLAG_ALL,
        ..unmap_args(iova, size)
    };
    assert_eq!(unmap(&m, all(1, 0)), (Err(Errno::EINVAL), 0));
    assert_eq!(unmap(&m, all(0, 1)), (Err(Errno::EINVAL), 1), "unwritten");
    assert_eq!(unmap(&m, all(0, 0)), (Ok(0), 3 * PAGE));
    assert_eq!(unmap(&m, all(0, 0)), (Ok(0), 0));
}

#[test]
fn version_1_cuts_mappings() {
    let (m, ioas) = with_ioas();
    assert_eq!(m.at(spec::SET_IOMMU, spec::TYPE1_IOMMU), Ok(0));
    assert_eq!(m.at(spec::SET_IOMMU, spec::TYPE1_IOMMU), Ok(0), "again");
    let pdev = m.pdev();
    pdev.attach(ObjectId::from_raw(ioas)).unwrap();
    map(&m, map_args(IOVA, 4 * PAGE)).unwrap();
    let middle = unmap_args(IOVA + PAGE, 2 * PAGE);
    assert_eq!(unmap(&m, middle), (Ok(0), 2 * PAGE));
    let odd = unmap_args(IOVA, PAGE / 2);
    let unwritten = (Err(Errno::EINVAL), PAGE / 2);
    assert_eq!(unmap(&m, odd), unwritten, "a cut inside a page");
    assert_eq!(unmap(&m, unmap_args(0, 2 * IOVA)), (Ok(0), 2 * PAGE));
}

#[test]
fn large_pages_in_use_cannot_become_version_1() {
    let (m, ioas) = with_ioas();
    let pdev = m.pdev();
    pdev.attach(ObjectId::from_raw(ioas)).unwrap();
    map(&m, map_args(IOVA, PAGE)).unwrap();
    let set = m.at(spec::SET_IOMMU, spec::TYPE1_IOMMU);
    assert_eq!(set, Err(Errno::EINVAL));
    assert_eq!(m.at(spec::SET_IOMMU, spec::TYPE1V2_IOMMU), Ok(0));
}

#[test]
fn info_fills_what_there_is_room_for_and_tells_what_it_needs() {
    let (m, ioas) = with_ioas();
    let pdev = m.pdev();
    pdev.attach(ObjectId::from_raw(ioas)).unwrap();
    let ranges = m
        .context
        .ioas_iova_ranges(ObjectId::from_raw(ioas))
        .unwrap()
        .ranges;
    let total = 24 + 16 + 16 + 16 * ranges.len();
    for argsz in 0..total + 32 {
        m.put(BASE, &vec![0xaa; total + 64]);
        m.put(BASE, &(argsz as u32).to_ne_bytes());
        let result = m.at(spec::IOMMU_GET_INFO, BASE);
        if argsz < spec::INFO_MIN {
            assert_eq!(result, Err(Errno::EINVAL));
            continue;
        }
        assert_eq!(result, Ok(0));
        let info: spec::Info = m.get(BASE);
        assert_eq!(info.argsz as usize, total);
        assert_eq!(info.flags, spec::INFO_PGSIZES | spec::INFO_CAPS);
        let sizes = 1 << 12 | 1 << 21 | 1 << 30;
        assert_eq!(info.iova_pgsizes, sizes);
        if argsz >= 20 {
            let offset = if argsz >= total { 24 } else { 0 };
            let there = argsz >= 24;
            assert!(!there || info.cap_offset == offset);
        }
        let rest: Vec<u8> = (argsz..total + 64)
            .map(|at| m.get::<u8>(BASE + at as u64))
            .collect();
        assert!(rest.iter().all(|byte| *byte == 0xaa), "{argsz}: not ours");
    }
    let avail: spec::CapDmaAvail = m.get(BASE + 24);
    assert_eq!((avail.header.id, avail.header.version), (3, 1));
    assert_eq!((avail.header.next, avail.avail), (40, u32::MAX));
    let cap: spec::CapIovaRange = m.get(BASE + 40);
    assert_eq!((cap.header.id, cap.header.next), (1, 0));
    assert_eq!(cap.nr_iovas as usize, ranges.len());
    for (index, range) in ranges.iter().enumerate() {
        let shown: spec::IovaRange = m.get(BASE + 56 + 16 * index as u64);
        assert_eq!((shown.start, shown.end), (range.start(), range.last()));
    }
}

#[test]
fn commands_that_the_compatibility_code_lacks_are_unknown() {
    let (m, _) = with_ioas();
    // DIRTY_PAGES, and those of groups.
    for command in [0x3b75, 0x3b67, 0x3b68] {
        assert_eq!(m.at(command, BASE), Err(Errno::ENOTTY));
    }
}
