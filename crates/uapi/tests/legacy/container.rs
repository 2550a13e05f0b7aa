//! Containers.

use std::mem::size_of;

use ioasid_uapi::{
    Errno,
    spec::{
        container::{
            Bitmap, CHECK_EXTENSION, DIRTY_GET, DIRTY_START, DIRTY_STOP, DirtyBitmap,
            DirtyBitmapGet, DmaMap, DmaUnmap, GET_API_VERSION, IOMMU_DIRTY_PAGES, IOMMU_GET_INFO,
            IOMMU_MAP_DMA, IOMMU_UNMAP_DMA, MAP_READ, MAP_VADDR, MAP_WRITE, SET_IOMMU, TYPE1_IOMMU,
            TYPE1V2_IOMMU, UNMAP_DIRTY, UNMAP_FLAG_ALL, UNMAP_VADDR,
        },
        group::{GET_DEVICE_FD, SET_CONTAINER, UNSET_CONTAINER},
    },
};
use zerocopy::IntoBytes;

use super::{
    common::{BASE, SIZE},
    machine::{CONTAINER, Machine, UUID},
};

const RW: u32 = MAP_READ | MAP_WRITE;
/// Memory of the program that can be mapped: behind its structs.
const MEMORY: u64 = BASE + 0x1000;
/// Where bitmaps go.
const BITS: u64 = BASE + 0x6000;

fn map_args(flags: u32, vaddr: u64, iova: u64, size: u64) -> DmaMap {
    DmaMap {
        argsz: size_of::<DmaMap>() as u32,
        flags,
        vaddr,
        iova,
        size,
    }
}

impl Machine {
    fn map(&self, flags: u32, vaddr: u64, iova: u64, size: u64) -> Result<u64, Errno> {
        let args = map_args(flags, vaddr, iova, size);
        self.container(IOMMU_MAP_DMA, args.as_bytes())
    }

    /// What the size is afterwards.
    fn unmap(&self, flags: u32, iova: u64, size: u64) -> Result<u64, Errno> {
        let args = DmaUnmap {
            argsz: size_of::<DmaUnmap>() as u32,
            flags,
            iova,
            size,
        };
        let result = self.container(IOMMU_UNMAP_DMA, args.as_bytes());
        let after = self.program.long(BASE + 16);
        match result {
            Ok(_) => Ok(after),
            Err(errno) => {
                assert_eq!(after, size, "an error leaves the struct as it was");
                Err(errno)
            }
        }
    }

    fn get_dirty(&self, iova: u64, size: u64, bitmap: Bitmap) -> Result<u64, Errno> {
        let head = DirtyBitmap {
            argsz: (size_of::<DirtyBitmap>() + size_of::<DirtyBitmapGet>()) as u32,
            flags: DIRTY_GET,
        };
        let get = DirtyBitmapGet { iova, size, bitmap };
        let bytes = [head.as_bytes(), get.as_bytes()].concat();
        self.container(IOMMU_DIRTY_PAGES, &bytes)
    }

    fn dirty(&self, flags: u32) -> Result<u64, Errno> {
        let args = DirtyBitmap { argsz: 8, flags };
        self.container(IOMMU_DIRTY_PAGES, args.as_bytes())
    }
}

const fn bitmap(size: u64) -> Bitmap {
    Bitmap {
        pgsize: 4096,
        size,
        data: BITS,
    }
}

#[test]
fn extensions_are_known_before_and_after_set_iommu() {
    let machine = Machine::new();
    let check = |arg| machine.container_at(CHECK_EXTENSION, arg).unwrap();
    let all = || (0..16).filter(|arg| check(*arg) == 1).collect::<Vec<_>>();
    assert_eq!(machine.container_at(GET_API_VERSION, 0), Ok(0));
    assert_eq!(all(), [1, 3, 9]);
    machine.set_container(CONTAINER).unwrap();
    machine.container_at(SET_IOMMU, TYPE1V2_IOMMU).unwrap();
    assert_eq!(all(), [1, 3, 4, 9, 10]);
    machine
        .child(SET_CONTAINER, &CONTAINER.to_ne_bytes())
        .unwrap();
    assert_eq!(all(), [1, 3, 4, 9], "no new addresses with an mdev");
}

#[test]
fn set_iommu_wants_a_group_a_type_and_no_backend() {
    let machine = Machine::new();
    for kind in [1, 3, 6, 77] {
        let set = machine.container_at(SET_IOMMU, kind);
        assert_eq!(set, Err(Errno::EINVAL), "{kind}");
    }
    machine.set_container(CONTAINER).unwrap();
    for kind in [0, 2, 6, 7, 8, u64::MAX] {
        let set = machine.container_at(SET_IOMMU, kind);
        assert_eq!(set, Err(Errno::ENODEV), "{kind}");
    }
    machine.container_at(SET_IOMMU, TYPE1_IOMMU).unwrap();
    for kind in [1, 3, 6] {
        let set = machine.container_at(SET_IOMMU, kind);
        assert_eq!(set, Err(Errno::EINVAL), "{kind}");
    }
}

#[test]
fn without_a_backend_everything_else_is_einval_and_with_one_the_unknown_is_enotty() {
    let machine = Machine::new();
    let commands = [
        0x3b6b,
        IOMMU_GET_INFO,
        IOMMU_MAP_DMA,
        IOMMU_UNMAP_DMA,
        0x3b73,
        0x3b75,
    ];
    for cmd in commands {
        assert_eq!(machine.container_at(cmd, 1), Err(Errno::EINVAL), "{cmd:#x}");
    }
    machine.set_container(CONTAINER).unwrap();
    machine.container_at(SET_IOMMU, TYPE1V2_IOMMU).unwrap();
    for cmd in [0x3b6b, 0x3b73, 0x3b67, 0x3b80] {
        assert_eq!(machine.container_at(cmd, 1), Err(Errno::ENOTTY), "{cmd:#x}");
    }
    for cmd in [
        IOMMU_GET_INFO,
        IOMMU_MAP_DMA,
        IOMMU_UNMAP_DMA,
        IOMMU_DIRTY_PAGES,
    ] {
        assert_eq!(machine.container_at(cmd, 1), Err(Errno::EFAULT), "{cmd:#x}");
        let short = machine.container(cmd, &[7, 0, 0, 0]);
        assert_eq!(short, Err(Errno::EINVAL), "{cmd:#x}");
    }
    machine.group_at(UNSET_CONTAINER, 0).unwrap();
    assert_eq!(
        machine.container_at(IOMMU_GET_INFO, BASE),
        Err(Errno::EINVAL)
    );
}

#[test]
fn info_comes_with_its_chain_if_there_is_room_for_all_of_it() {
    // Migration 32, mappings left 16, two ranges 16 + 32.
    const NEEDED: u32 = 24 + 32 + 16 + 48;
    let machine = Machine::with_iommu(TYPE1V2_IOMMU);
    let info = |argsz: u32| {
        let mut bytes = [0xee; 256];
        bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
        machine.container(IOMMU_GET_INFO, &bytes).unwrap();
    };
    let word = |at: u64| machine.program.word(BASE + at);
    let long = |at: u64| machine.program.long(BASE + at);
    info(16);
    assert_eq!((word(0), word(4)), (NEEDED, 3));
    assert_eq!(long(8), 0x4020_1000, "4 KiB, 2 MiB, 1 GiB");
    assert_eq!(word(16), 0xeeee_eeee, "not beyond what the program has");
    for short in [24, NEEDED - 1] {
        info(short);
        assert_eq!((word(0), word(16)), (NEEDED, 0), "argsz {short}");
        assert_eq!(word(24), 0xeeee_eeee);
    }
    info(NEEDED + 8);
    assert_eq!((word(0), word(16)), (NEEDED + 8, 24));
    assert_eq!((word(24), word(28)), (2 | 1 << 16, 56), "MIGRATION");
    assert_eq!((word(32), long(40), long(48)), (0, 4096, 1 << 28));
    assert_eq!((word(56), word(60)), (3 | 1 << 16, 72), "DMA_AVAIL");
    assert_eq!(word(64), 65535);
    assert_eq!((word(72), word(76)), (1 | 1 << 16, 0), "IOVA_RANGE");
    assert_eq!(word(80), 2);
    assert_eq!((long(88), long(96)), (0, 0xfedf_ffff));
    assert_eq!(long(104), 0xfef0_0000);
    assert_eq!(u64::from(word(NEEDED.into())), 0xeeee_eeee);

    machine.map(RW, MEMORY, 0, 4096).unwrap();
    info(NEEDED);
    assert_eq!(word(64), 65534);
    *machine.program.memory.writable.lock() = 60;
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&NEEDED.to_ne_bytes());
    let short = machine.container(IOMMU_GET_INFO, &bytes);
    assert_eq!(short, Err(Errno::EFAULT));
}

#[test]
fn with_mdevs_alone_there_are_no_iova_ranges_and_memory_is_pinned_at_the_open() {
    let machine = Machine::new();
    let set = machine.child(SET_CONTAINER, &CONTAINER.to_ne_bytes());
    set.unwrap();
    machine.container_at(SET_IOMMU, TYPE1_IOMMU).unwrap();
    machine.container(IOMMU_GET_INFO, &[24, 0, 0, 0]).unwrap();
    assert_eq!(machine.program.word(BASE), 24 + 32 + 16);
    assert_eq!(machine.program.long(BASE + 8), !0xfff, "any size of page");
    assert_eq!(
        machine.unmap(UNMAP_FLAG_ALL | UNMAP_VADDR, 0, 0),
        Err(Errno::EBUSY)
    );
    machine.map(RW, 0x7000_0000, 0, 4096).unwrap();
    let name = [UUID.as_bytes(), b"\0"].concat();
    assert_eq!(machine.child(GET_DEVICE_FD, &name), Err(Errno::EFAULT));
    assert_eq!(machine.unmap(0, 0, 4096), Ok(4096));
    assert!(machine.child(GET_DEVICE_FD, &name).is_ok());
    assert_eq!(machine.map(RW, 0x7000_0000, 0, 4096), Err(Errno::EFAULT));
}

#[test]
fn map_checks_in_the_kernels_order() {
    let machine = Machine::with_iommu(TYPE1V2_IOMMU);
    let map = |flags, vaddr, iova, size| machine.map(flags, vaddr, iova, size);
    let far = 0u64.wrapping_sub(4096);
    assert_eq!(map(8, MEMORY, 0, 0), Err(Errno::EINVAL), "an unknown flag");
    assert_eq!(map(RW, MEMORY, 0, 0), Err(Errno::EINVAL), "no bytes");
    assert_eq!(map(RW, MEMORY, far, 8192), Err(Errno::EOVERFLOW));
    assert_eq!(map(RW, far, 0, 8192), Err(Errno::EOVERFLOW));
    assert_eq!(
        map(0, far, 0, 8192),
        Err(Errno::EOVERFLOW),
        "before the flags"
    );
    assert_eq!(map(0, MEMORY, 0, 4096), Err(Errno::EINVAL), "no permission");
    assert_eq!(map(RW | MAP_VADDR, MEMORY, 0, 4096), Err(Errno::EINVAL));
    for (vaddr, iova, size) in [(1, 0, 0), (0, 1, 0), (0, 0, 1)] {
        let unaligned = map(RW, MEMORY + vaddr, iova, 4096 + size);
        assert_eq!(unaligned, Err(Errno::EINVAL));
    }
    assert_eq!(map(RW, MEMORY, 0x1000, 8192), Ok(0));
    for (iova, size) in [(0x1000, 4096), (0x2000, 8192), (0, 8192), (0, 0x10000)] {
        let overlap = map(RW, 0x7000_0000, iova, size);
        assert_eq!(overlap, Err(Errno::EEXIST), "before the memory");
    }
    assert_eq!(map(RW, MEMORY, 0xfee0_0000, 4096), Err(Errno::EINVAL));
    assert_eq!(map(RW, MEMORY, 0xfedf_f000, 8192), Err(Errno::EINVAL));
    assert_eq!(
        map(RW, MEMORY, far, 4096),
        Err(Errno::EINVAL),
        "no such IOVA"
    );
    assert_eq!(map(RW, 0x7000_0000, 0x10000, 4096), Err(Errno::EFAULT));
    assert_eq!(
        map(RW, BASE + SIZE as u64 - 4096, 0x10000, 8192),
        Err(Errno::EFAULT)
    );
    assert_eq!(
        machine.unmap(UNMAP_FLAG_ALL, 0, 0),
        Ok(8192),
        "all or nothing"
    );
    assert_eq!(map(MAP_READ, MEMORY, 0xfedf_f000, 4096), Ok(0));
    assert_eq!(map(MAP_WRITE, MEMORY, 0xfef0_0000, 4096), Ok(0));
}

#[test]
fn there_are_at_most_65535_mappings() {
    let machine = Machine::with_iommu(TYPE1_IOMMU);
    for page in 0..65535 {
        machine.map(RW, MEMORY, page << 12, 4096).unwrap();
    }
    assert_eq!(machine.map(RW, MEMORY, 0, 4096), Err(Errno::EEXIST));
    assert_eq!(
        machine.map(RW, 0x7000_0000, 65535 << 12, 4096),
        Err(Errno::ENOSPC)
    );
    assert_eq!(machine.unmap(0, 5 << 12, 4096), Ok(4096));
    assert_eq!(machine.map(RW, MEMORY, 65535 << 12, 4096), Ok(0));
    assert_eq!(machine.unmap(UNMAP_FLAG_ALL, 0, 0), Ok(65535 << 12));
}

#[test]
fn unmap_checks_in_the_kernels_order() {
    let machine = Machine::with_iommu(TYPE1V2_IOMMU);
    let unmap = |flags, iova, size| machine.unmap(flags, iova, size);
    machine.map(RW, MEMORY, 0x1000, 0x2000).unwrap();
    assert_eq!(
        unmap(8, 0x1000, 0x2000),
        Err(Errno::EINVAL),
        "an unknown flag"
    );
    for others in [UNMAP_FLAG_ALL, UNMAP_VADDR] {
        assert_eq!(unmap(UNMAP_DIRTY | others, 0, 0), Err(Errno::EINVAL));
    }
    assert_eq!(
        unmap(UNMAP_DIRTY, 0x1000, 0x2000),
        Err(Errno::EINVAL),
        "argsz"
    );
    assert_eq!(unmap(0, 0x1001, 0x2000), Err(Errno::EINVAL));
    assert_eq!(unmap(0, 0x1000, 0), Err(Errno::EINVAL));
    assert_eq!(unmap(0, 0x1000, 0x1fff), Err(Errno::EINVAL));
    assert_eq!(unmap(UNMAP_FLAG_ALL, 0x1000, 0), Err(Errno::EINVAL));
    assert_eq!(unmap(UNMAP_FLAG_ALL, 0, 0x1000), Err(Errno::EINVAL));
    let far = 0u64.wrapping_sub(4096);
    assert_eq!(unmap(0, far, 8192), Err(Errno::EOVERFLOW));
    assert_eq!(unmap(0, far, 4096), Ok(0), "the last page can be named");
    assert_eq!(
        unmap(0, 0x1000, 0x1000),
        Err(Errno::EINVAL),
        "cuts at its end"
    );
    assert_eq!(unmap(0, 0x2000, 0x1000), Err(Errno::EINVAL), "at its start");
    assert_eq!(unmap(0, 0x5000, 0x1000), Ok(0), "nothing there is no error");
    assert_eq!(unmap(0, 0, 0x10000), Ok(0x2000));
    assert_eq!(unmap(UNMAP_FLAG_ALL, 0, 0), Ok(0));
}

#[test]
fn version_1_unmaps_what_starts_in_the_range_whole() {
    let machine = Machine::with_iommu(TYPE1_IOMMU);
    let unmap = |iova, size| machine.unmap(0, iova, size);
    machine.map(RW, MEMORY, 0x1000, 0x3000).unwrap();
    machine.map(RW, MEMORY, 0x4000, 0x2000).unwrap();
    assert_eq!(unmap(0x2000, 0x1000), Ok(0), "inside of a mapping");
    assert_eq!(unmap(0x3000, 0x8000), Ok(0), "the second is not reached");
    assert_eq!(unmap(0x4000, 0x1000), Ok(0x2000));
    assert_eq!(unmap(0, 0x2000), Ok(0x3000));
}

#[test]
fn addresses_are_made_invalid_and_updated() {
    let machine = Machine::with_iommu(TYPE1V2_IOMMU);
    machine.map(RW, MEMORY, 0x1000, 0x1000).unwrap();
    machine.map(RW, MEMORY, 0x2000, 0x1000).unwrap();
    let update = |iova, size| machine.map(MAP_VADDR, MEMORY, iova, size);
    assert_eq!(update(0x1000, 0x1000), Err(Errno::EINVAL), "it is valid");
    assert_eq!(update(0x9000, 0x1000), Err(Errno::ENOENT));
    assert_eq!(machine.unmap(UNMAP_VADDR, 0x1000, 0x1000), Ok(0x1000));
    let again = machine.unmap(UNMAP_VADDR | UNMAP_FLAG_ALL, 0, 0);
    assert_eq!(again, Err(Errno::EINVAL));
    // The second one is as it was.
    assert_eq!(update(0x2000, 0x1000), Err(Errno::EINVAL));
    assert_eq!(update(0x1000, 0x2000), Err(Errno::EINVAL), "not exact");
    let join = machine.child(SET_CONTAINER, &CONTAINER.to_ne_bytes());
    assert_eq!(join, Err(Errno::EBUSY));
    assert_eq!(update(0x1000, 0x1000), Ok(0));
    assert_eq!(
        machine.unmap(UNMAP_VADDR | UNMAP_FLAG_ALL, 0, 0),
        Ok(0x2000)
    );
    assert_eq!(machine.unmap(UNMAP_FLAG_ALL, 0, 0), Ok(0x2000));
    let join = machine.child(SET_CONTAINER, &CONTAINER.to_ne_bytes());
    assert_eq!(join, Ok(0), "they went");
}

#[test]
fn version_1_has_no_dirty_pages() {
    let machine = Machine::with_iommu(TYPE1_IOMMU);
    for flags in [DIRTY_START, DIRTY_STOP, DIRTY_GET, 0, 99] {
        assert_eq!(machine.dirty(flags), Err(Errno::EACCES), "{flags}");
    }
    let before = machine.container_at(IOMMU_DIRTY_PAGES, 1);
    assert_eq!(before, Err(Errno::EACCES), "before the struct is read");
}

#[test]
fn dirty_pages_are_asked_for_by_one_flag_and_a_bitmap_that_fits() {
    let machine = Machine::with_iommu(TYPE1V2_IOMMU);
    for flags in [0, 3, 5, 6, 7, 8, 1 << 31] {
        assert_eq!(machine.dirty(flags), Err(Errno::EINVAL), "{flags}");
    }
    assert_eq!(machine.dirty(DIRTY_GET), Err(Errno::EINVAL), "no range");
    machine.map(RW, MEMORY, 0x1000, 0x2000).unwrap();
    let get = |iova, size, bits| machine.get_dirty(iova, size, bits);
    assert_eq!(get(0x1000, 0x2000, bitmap(8)), Err(Errno::EINVAL), "off");
    for _ in 0..2 {
        assert_eq!(machine.dirty(DIRTY_START), Ok(0));
    }
    assert_eq!(get(0x1000, 0x2000, bitmap(8)), Ok(0));
    assert_eq!(machine.program.long(BITS), 3);
    assert_eq!(get(0x1000, 0, bitmap(8)), Err(Errno::EINVAL));
    assert_eq!(get(!0xfff, 0x2000, bitmap(8)), Err(Errno::EOVERFLOW));
    assert_eq!(get(0x1000, 0x2000, bitmap(7)), Err(Errno::EINVAL));
    assert_eq!(get(0x1000, 0x2000, bitmap(0)), Err(Errno::EINVAL));
    assert_eq!(
        get(0x1000, 0x2000, bitmap((1 << 28) + 1)),
        Err(Errno::EINVAL)
    );
    for pgsize in [0, 1, 2048, 8192, 4096 + 1, 1 << 63] {
        let bits = Bitmap {
            pgsize,
            ..bitmap(4096)
        };
        assert_eq!(get(0x1000, 0x2000, bits), Err(Errno::EINVAL), "{pgsize}");
    }
    for data in [1 << 47, u64::MAX - 3] {
        let bits = Bitmap { data, ..bitmap(8) };
        assert_eq!(get(0x1000, 0x2000, bits), Err(Errno::EINVAL));
    }
    let nowhere = Bitmap {
        data: 0x7000_0000,
        ..bitmap(8)
    };
    assert_eq!(get(0x1000, 0x2000, nowhere), Err(Errno::EFAULT));
    assert_eq!(get(0x1800, 0x2000, bitmap(8)), Err(Errno::EINVAL));
    assert_eq!(get(0x1000, 0x2800, bitmap(8)), Err(Errno::EINVAL));
    assert_eq!(get(0x2000, 0x1000, bitmap(8)), Err(Errno::EINVAL), "cuts");
    assert_eq!(get(0, 0x2000, bitmap(8)), Err(Errno::EINVAL), "cuts");
    assert_eq!(machine.dirty(DIRTY_STOP), Ok(0));
    assert_eq!(
        get(0x1000, 0x2000, bitmap(8)),
        Err(Errno::EINVAL),
        "off again"
    );
}

#[test]
fn bits_before_a_mapping_stay_and_those_behind_it_in_its_last_word_go() {
    let machine = Machine::with_iommu(TYPE1V2_IOMMU);
    machine.dirty(DIRTY_START).unwrap();
    machine.map(RW, MEMORY, 0x2000, 0x1000).unwrap();
    machine.map(RW, MEMORY, 70 << 12, 0x3000).unwrap();
    let all = u64::MAX.to_ne_bytes();
    for word in 0..4 {
        machine.program.put(BITS + 8 * word, &all);
    }
    machine.get_dirty(0, 192 << 12, bitmap(24)).unwrap();
    assert_eq!(
        machine.program.long(BITS),
        0b111,
        "bit 2 and what was before"
    );
    assert_eq!(machine.program.long(BITS + 8), 0x1ff);
    assert_eq!(
        machine.program.long(BITS + 16),
        u64::MAX,
        "no mapping there"
    );
    assert_eq!(machine.program.long(BITS + 24), u64::MAX);
}

#[test]
fn an_unmap_tells_the_dirty_pages_of_what_it_unmaps() {
    let machine = Machine::with_iommu(TYPE1V2_IOMMU);
    machine.map(RW, MEMORY, 0x1000, 0x1000).unwrap();
    machine.map(RW, MEMORY, 0x4000, 0x2000).unwrap();
    let unmap = |bits: Bitmap| {
        let args = DmaUnmap {
            argsz: (size_of::<DmaUnmap>() + size_of::<Bitmap>()) as u32,
            flags: UNMAP_DIRTY,
            iova: 0,
            size: 0x8000,
        };
        let bytes = [args.as_bytes(), bits.as_bytes()].concat();
        let result = machine.container(IOMMU_UNMAP_DMA, &bytes);
        result.map(|_| machine.program.long(BASE + 16))
    };
    machine.program.put(BITS, &[0; 8]);
    assert_eq!(unmap(bitmap(8)), Err(Errno::EINVAL), "nothing is tracked");
    machine.dirty(DIRTY_START).unwrap();
    let larger = Bitmap {
        pgsize: 8192,
        ..bitmap(8)
    };
    assert_eq!(unmap(larger), Err(Errno::EINVAL));
    assert_eq!(unmap(bitmap(0)), Err(Errno::EINVAL));
    assert_eq!(unmap(bitmap(8)), Ok(0x3000));
    assert_eq!(machine.program.long(BITS), 0b11_0010);
    assert_eq!(unmap(bitmap(8)), Ok(0));
}
