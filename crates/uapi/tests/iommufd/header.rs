//! What every ioctl does with the size of its struct.

use ioasid_uapi::{Errno, iommufd::COMMANDS};

use crate::machine::*;

/// A struct of `size` bytes whose other bytes are 0, placed so that it ends at `end`.
fn zeroed(m: &Machine, size: usize, end: u64) -> u64 {
    let address = end - size as u64;
    m.put(address, &vec![0; size]);
    m.put(address, &(size as u32).to_ne_bytes());
    address
}

#[test]
fn unknown_numbers_are_enotty_and_their_argument_is_not_touched() {
    let m = Machine::new();
    for request in [
        0,
        0x3b00,
        0x3b63,
        0x3b67,
        0x3b75,
        0x3b7f,
        0x3b95,
        0x3ba0,
        0x3bff,
        u32::MAX,
    ] {
        assert_eq!(m.at(request, 0), Err(Errno::ENOTTY), "{request:#x}");
        assert_eq!(m.at(request, BASE), Err(Errno::ENOTTY), "{request:#x}");
    }
}

#[test]
fn a_known_number_in_another_request_is_enotty_after_the_size_was_read() {
    let m = Machine::new();
    let address = zeroed(&m, 64, DATA);
    for command in COMMANDS {
        let direction = 0xc000_0000 | command.request;
        let other_type = command.request & 0xff | 0x4100;
        for request in [direction, other_type, command.request | 0x8_0000] {
            assert_eq!(
                m.at(request, address),
                Err(Errno::ENOTTY),
                "{}",
                command.name
            );
            assert_eq!(m.at(request, 0), Err(Errno::EFAULT), "{}", command.name);
        }
    }
}

#[test]
fn sizes_are_checked_in_the_kernels_order() {
    let m = Machine::new();
    let end = READ_ONLY;
    for command in COMMANDS {
        let run = |address| m.at(command.request, address);
        let name = command.name;
        for bad in [0, BASE - 1, BASE + SIZE as u64 - 3, u64::MAX, u64::MAX - 3] {
            assert_eq!(run(bad), Err(Errno::EFAULT), "{name}: size");
        }
        for short in [4, command.min_size - 1] {
            assert_eq!(
                run(zeroed(&m, short, end)),
                Err(Errno::EINVAL),
                "{name}: short"
            );
        }
        // Known fields beyond the end of memory.
        let cut = BASE + SIZE as u64 - 4;
        let address = zeroed(&m, command.size, end);
        assert_eq!(
            m.at(command.request, cut),
            Err(Errno::EINVAL),
            "{name}: read-only zeros"
        );
        m.put(address, &(command.size as u32).to_ne_bytes());
        // Bytes that nobody knows must be 0, however many.
        for extra in [1, 8, 5000] {
            let address = zeroed(&m, command.size + extra, end);
            m.put(end - 1, &[1]);
            assert_eq!(run(address), Err(Errno::E2BIG), "{name}: {extra} more");
            m.put(end - 1, &[0]);
            let grown = run(zeroed(&m, command.size + extra, end));
            let known = run(zeroed(&m, command.size, end));
            assert_eq!(grown, known, "{name}: {extra} zeros more");
            let _ = m.context.destroy(ioasid_iommufd::ObjectId::from_raw(1));
            let _ = m.context.destroy(ioasid_iommufd::ObjectId::from_raw(2));
        }
        let address = zeroed(&m, command.size, DATA);
        m.put(address, &u32::MAX.to_ne_bytes());
        let endless = run(address);
        assert!(
            matches!(endless, Err(Errno::E2BIG | Errno::EFAULT)),
            "{name}: {endless:?}"
        );
    }
}

#[test]
fn a_reply_is_as_much_as_the_program_has() {
    let m = Machine::new();
    let pdev = m.pdev();
    let ioas = m.ioas();
    // A HWPT_ALLOC of the first version: 24 bytes, and what is behind them is the program's.
    let words = [24u32, 0, pdev.id().get(), ioas, 0, 0];
    for (at, word) in words.iter().enumerate() {
        m.put(DATA + 4 * at as u64, &word.to_ne_bytes());
    }
    m.put(DATA + 24, &[0xaa; 24]);
    assert_eq!(m.at(request("HWPT_ALLOC"), DATA), Ok(0));
    assert_eq!(m.get::<u32>(DATA + 16), 3, "the page table's id");
    assert_eq!(m.get::<[u8; 24]>(DATA + 24), [0xaa; 24]);
}

#[test]
fn an_object_whose_id_cannot_be_told_is_not_made() {
    let m = Machine::new();
    let pdev = m.pdev();
    // In memory that can be read but not written there are zeros: a size of 0.
    assert_eq!(m.at(request("IOAS_ALLOC"), READ_ONLY), Err(Errno::EINVAL));
    let ioas = m.ioas();
    assert_eq!((pdev.id().get(), ioas), (1, 2));
    // A struct that ends in the last writable byte, but for what is to be written.
    let address = READ_ONLY - 8;
    m.put(address, &12u32.to_ne_bytes());
    m.put(address + 4, &[0; 4]);
    assert_eq!(m.at(request("IOAS_ALLOC"), address), Err(Errno::EFAULT));
    assert_eq!(m.ioas(), 3, "the id is free again");
}
