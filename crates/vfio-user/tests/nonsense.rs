//! Whatever a client sends, the server goes on: the next client is served, and nothing is left behind.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{io::Write, os::fd::AsFd, sync::LazyLock, time::Duration};

use common::*;
use ioasid_vfio_user::spec::{Header, command};
use proptest::prelude::*;
use zerocopy::IntoBytes;

static STAGE: LazyLock<Fixture> = LazyLock::new(Fixture::new);

/// One message: its header may lie about anything, and its payload is made of numbers that matter.
#[derive(Clone, Debug)]
struct Step {
    command: u16,
    flags: u32,
    words: Vec<u32>,
    odd: usize,
    size: Option<u32>,
    fds: usize,
}

fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0_u32),
        Just(1),
        Just(2),
        Just(7),
        Just(16),
        Just(20),
        Just(24),
        Just(32),
        Just(0x24),
        Just(0x1000),
        Just(0x2_0000),
        Just(0x8000_0000),
        Just(u32::MAX),
        any::<u32>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![
        20 => Just(None),
        1 => (0_u32..64).prop_map(Some),
        1 => any::<u32>().prop_map(Some),
    ];
    let flags = prop_oneof![
        8 => Just(0_u32),
        2 => Just(Header::NO_REPLY),
        1 => Just(Header::REPLY),
        1 => any::<u32>(),
    ];
    (
        0_u16..20,
        flags,
        proptest::collection::vec(word(), 0..16),
        0_usize..4,
        size,
        0_usize..4,
    )
        .prop_map(|(command, flags, words, odd, size, fds)| Step {
            command,
            flags,
            words,
            odd,
            size,
            fds,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_message_stops_the_server(
        greets in prop::bool::weighted(0.9),
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        STAGE.released(PDEV);
        let ram = memfd(1 << 20);
        let stream = STAGE.stream(PDEV);
        let mut vmm = Vmm::new(stream);
        if greets {
            vmm.version();
        }
        // It reads nothing, so it may not wait either.
        vmm.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        for step in steps {
            let mut payload = step.words.as_bytes().to_vec();
            payload.truncate(payload.len().saturating_sub(step.odd));
            let size = step.size.unwrap_or((Header::SIZE + payload.len()) as u32);
            let header = Header { id: 7, command: step.command, size, flags: step.flags, error: 0 };
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend(&payload);
            let fds = vec![ram.as_fd(); step.fds];
            if send(&vmm, &bytes, &fds).is_err() {
                break;
            }
        }
        drop(vmm);
        STAGE.released(PDEV);
        let mut next = STAGE.connect(PDEV);
        prop_assert!(next.call(command::DEVICE_RESET, &[]).is_ok());
        next.map(Some(&ram), 0, 0, 1 << 20).unwrap();
        prop_assert_eq!(STAGE.machine.ledger().pinned(0), 1 << 20, "nothing is left behind");
        drop(next);
    }

    #[test]
    fn raw_bytes_do_not_stop_the_server(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let fixture = Fixture::new();
        let mut stream = fixture.stream(MDEV2);
        let _ = stream.write_all(&bytes);
        drop(stream);
        let mut next = fixture.connect(MDEV2);
        prop_assert!(next.call(command::DEVICE_RESET, &[]).is_ok());
    }
}

fn send(vmm: &Vmm, bytes: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let parts = [std::io::IoSlice::new(bytes)];
    sendmsg(&vmm.stream, &parts, &mut control, SendFlags::NOSIGNAL)
}
