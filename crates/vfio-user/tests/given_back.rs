//! What a client's mappings took is given back when it has gone. Alone in its process, whose memory is
//! looked at.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::*;
use ioasid_vfio_user::spec::{DmaMap, Header, MAX_DMA_MAPS, command};
use zerocopy::IntoBytes;

const PAGE: u64 = 4096;

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() << 10
}

/// A client comes, maps `maps` pages `distance` bytes from each other, and leaves. How much memory there
/// was in between.
fn visit(fixture: &Fixture, ram: Option<&OwnedFd>, maps: usize, distance: u64) -> u64 {
    let mut vmm = fixture.connect(PDEV);
    for number in 0..maps as u64 {
        let request = DmaMap {
            argsz: 32,
            flags: DmaMap::READ | DmaMap::WRITE,
            offset: number % 256 * PAGE,
            address: (1 << 32) + number * distance,
            size: PAGE,
        };
        let fds: Vec<_> = ram.iter().map(|fd| fd.as_fd()).collect();
        vmm.start_with(command::DMA_MAP, Header::NO_REPLY, request.as_bytes(), &fds);
    }
    vmm.map(ram, 0, 0, PAGE).unwrap();
    let most = resident();
    drop(vmm);
    // The next one is taken when nothing of this one is left.
    drop(fixture.connect(PDEV));
    fixture.released(PDEV);
    most
}

#[test]
fn memory_of_mappings_is_given_back() {
    let fixture = Fixture::new();
    let ram = memfd(256 * PAGE);
    visit(&fixture, Some(&ram), 10, 2 * PAGE);
    let before = resident();
    // Side by side, and each in table pages of its own; private memory has fewer windows.
    let patterns = [
        (Some(&ram), MAX_DMA_MAPS - 1, 2 * PAGE),
        (Some(&ram), 16_000, 1 << 30),
        (None, 16_000, 2 * PAGE),
    ];
    for (ram, maps, distance) in patterns {
        let most = visit(&fixture, ram, maps, distance);
        assert!(most > 2 * before, "{maps} mappings take {most} bytes");
        let after = resident();
        assert!(after <= 2 * before, "{before} bytes before, {after} after");
    }
}
