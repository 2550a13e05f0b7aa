//! Descriptors of access objects.

use ioasid_selftest::spec::{self, access_flag, op};
use ioasid_uapi::Errno;

use crate::machine::*;

fn create(m: &Machine, ioas: u32, flags: u32) -> u32 {
    let args = spec::CreateAccess {
        flags,
        ..spec::CreateAccess::default()
    };
    let (result, args) = m.test(op::CREATE_ACCESS, ioas, args);
    assert_eq!(result, Ok(0));
    args.access_fd
}

fn pin(m: &Machine, fd: u32, iova: u64, length: u64, uptr: u64) -> Result<u32, Errno> {
    let args = spec::AccessPages {
        iova,
        length,
        uptr,
        ..spec::AccessPages::default()
    };
    let (result, args) = m.test(op::ACCESS_PAGES, fd, args);
    result.map(|_| args.pages_id)
}

fn unpin(m: &Machine, fd: u32, pages_id: u32) -> Result<u64, Errno> {
    m.check(
        op::DESTROY_ACCESS_PAGES,
        fd,
        spec::DestroyAccessPages { pages_id },
    )
}

#[test]
fn pinned_pages_are_those_of_the_program_and_have_numbers_from_0() {
    let m = Machine::new();
    let ioas = m.ioas();
    m.map(ioas, BUFFER, 4 * PAGE, START).unwrap();
    let fd = create(&m, ioas, access_flag::NEEDS_PIN_PAGES);
    assert_eq!(pin(&m, fd, START, 2 * PAGE, BUFFER), Ok(0));
    assert_eq!(pin(&m, fd, START, PAGE, BUFFER + PAGE), Err(Errno::EBADE));
    assert_eq!(pin(&m, fd, START + PAGE, PAGE, 0), Ok(1));
    assert_eq!(pin(&m, fd, START + 4 * PAGE, PAGE, 0), Err(Errno::ENOENT));
    assert_eq!(
        pin(&m, fd, START, spec::ACCESS_MAX + 1, 0),
        Err(Errno::ENOMEM)
    );
    assert_eq!(m.check_refs(BUFFER, 2 * PAGE, 1), Ok(0));
    assert_eq!(unpin(&m, fd, 0), Ok(0));
    assert_eq!(unpin(&m, fd, 0), Err(Errno::ENOENT));
    assert_eq!(m.check_refs(BUFFER, PAGE, 0), Ok(0));
    assert_eq!(pin(&m, fd, START, PAGE, 0), Ok(2), "never again");
}

#[test]
fn unmap_takes_pinned_pages_back() {
    let m = Machine::new();
    let ioas = m.ioas();
    m.map(ioas, BUFFER, PAGE, START).unwrap();
    let fd = create(&m, ioas, access_flag::NEEDS_PIN_PAGES);
    let pages = pin(&m, fd, START, PAGE, BUFFER).unwrap();
    assert_eq!(m.unmap(ioas, START, PAGE), Ok(0));
    assert_eq!(unpin(&m, fd, pages), Err(Errno::ENOENT));
}

#[test]
fn bytes_go_both_ways() {
    let m = Machine::new();
    let ioas = m.ioas();
    m.map(ioas, BUFFER, PAGE, START).unwrap();
    let fd = create(&m, ioas, 0);
    let copy = |flags, iova| {
        let args = spec::AccessRw {
            iova,
            length: 4,
            uptr: OTHER,
            flags,
            padding: 0,
        };
        m.check(op::ACCESS_RW, fd, args)
    };
    m.put(OTHER, b"ping");
    assert_eq!(copy(access_flag::WRITE, START + 9), Ok(0));
    assert_eq!(&m.get::<[u8; 4]>(BUFFER + 9), b"ping");
    m.put(BUFFER + 9, b"pong");
    assert_eq!(copy(access_flag::SLOW_PATH, START + 9), Ok(0));
    assert_eq!(&m.get::<[u8; 4]>(OTHER), b"pong");
    assert_eq!(copy(0, START + PAGE), Err(Errno::ENOENT));
    assert_eq!(copy(1 << 1, START), Err(Errno::EOPNOTSUPP));
    assert_eq!(
        pin(&m, fd, START, PAGE, 0),
        Err(Errno::EOPNOTSUPP),
        "of the other kind"
    );
}

#[test]
fn the_object_lives_as_long_as_its_descriptor() {
    let m = Machine::new();
    let (old, new) = (m.ioas(), m.ioas());
    let fd = create(&m, old, access_flag::NEEDS_PIN_PAGES);
    assert_eq!(m.destroy(old), Err(Errno::EBUSY));
    let replace = |ioas_id| {
        m.check(
            op::ACCESS_REPLACE_IOAS,
            fd,
            spec::AccessReplaceIoas { ioas_id },
        )
    };
    assert_eq!(replace(NOBODY), Err(Errno::ENOENT));
    assert_eq!(replace(new), Ok(0));
    assert_eq!(m.destroy(old), Ok(0));
    m.context.close();
    assert_eq!(replace(new), Ok(0), "it keeps the file's objects");
    m.program.close(fd as i32);
    assert_eq!(replace(new), Err(Errno::EBADFD));
    assert_eq!(m.destroy(new), Err(Errno::ENOENT));
    assert_eq!(unpin(&m, 77, 0), Err(Errno::EBADFD));
}
