//! Messages in whatever pieces they come, and whose the descriptors are.

use std::{io::Write, os::fd::BorrowedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};

use super::*;

fn pair() -> (UnixStream, Receiver) {
    let (near, far) = UnixStream::pair().unwrap();
    (near, Receiver::new(Arc::new(far), Closer::new("test")))
}

fn message(id: u16, payload: usize) -> Vec<u8> {
    let header = Header {
        id,
        size: (Header::SIZE + payload) as u32,
        ..Header::default()
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend((0..payload).map(|at| (at as u8) ^ (id as u8)));
    bytes
}

/// One send, with this number of descriptors.
fn send(socket: &UnixStream, bytes: &[u8], fds: usize) {
    let fd: BorrowedFd<'_> = socket.as_fd();
    let fds = vec![fd; fds];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let parts = [IoSlice::new(bytes)];
    let sent = sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, bytes.len());
}

/// The next message must be this one, with this number of descriptors.
fn expect(receiver: &mut Receiver, id: u16, payload: usize, fds: usize) {
    let mut received = Message::default();
    let what = receiver.receive(&mut received).unwrap();
    assert_eq!(what, Incoming::Message);
    assert_eq!(received.header.id, id);
    assert_eq!(received.payload, message(id, payload)[Header::SIZE..]);
    assert_eq!(
        (
            received.descriptors.fds.len(),
            received.descriptors.too_many
        ),
        (fds, false),
        "message {id}"
    );
}

#[test]
fn a_read_ends_with_the_piece_that_brought_descriptors() {
    let (near, far) = UnixStream::pair().unwrap();
    for (byte, fds) in [(1, 0), (2, 0), (3, 1), (4, 0), (5, 2), (6, 1)] {
        send(&near, &[byte; 10], fds);
    }
    let mut reads = Vec::new();
    while reads.len() < 3 {
        let (mut bytes, mut came) = ([0; 4096], Descriptors::default());
        let closer = Closer::new("test");
        let count = read(&far, &closer, &mut bytes, RecvFlags::empty(), &mut came).unwrap();
        reads.push((bytes[count - 1], count, came.fds.len()));
    }
    assert_eq!(reads, [(3, 30, 1), (5, 20, 2), (6, 10, 1)]);
}

#[test]
fn descriptors_are_of_the_message_that_they_were_sent_with() {
    let (near, mut receiver) = pair();
    let fds = [0, 1, 0, 0, 2, 1, 16, 0];
    for (id, fds) in fds.iter().enumerate() {
        send(&near, &message(id as u16, 10 * id), *fds);
    }
    for (id, fds) in fds.iter().enumerate() {
        expect(&mut receiver, id as u16, 10 * id, *fds);
    }
}

#[test]
fn a_message_may_come_in_pieces_with_descriptors_in_each() {
    let (near, mut receiver) = pair();
    send(&near, &message(1, 4), 0);
    let bytes = message(2, 40);
    send(&near, &bytes[..7], 1);
    send(&near, &bytes[7..16], 0);
    send(&near, &bytes[16..30], 2);
    send(&near, &bytes[30..], 1);
    send(&near, &message(3, 0), 1);
    expect(&mut receiver, 1, 4, 0);
    expect(&mut receiver, 2, 40, 4);
    expect(&mut receiver, 3, 0, 1);
}

#[test]
fn messages_of_every_size_follow_each_other() {
    let sizes = [
        0,
        1,
        BUFFER - 16,
        BUFFER - 15,
        BUFFER,
        BUFFER + 1,
        3 * BUFFER,
        MAX_PAYLOAD,
        5,
    ];
    let (mut near, mut receiver) = pair();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for (id, size) in sizes.into_iter().enumerate() {
                send(&near, &message(100, 8), 1);
                near.write_all(&message(id as u16, size)).unwrap();
            }
        });
        for (id, size) in sizes.into_iter().enumerate() {
            expect(&mut receiver, 100, 8, 1);
            expect(&mut receiver, id as u16, size, 0);
        }
    });
}

#[test]
fn too_many_descriptors_are_told_and_belong_to_nobody_else() {
    let (near, mut receiver) = pair();
    let mut received = Message::default();
    send(&near, &message(1, 4), MAX_FDS + 1);
    let bytes = message(2, 4);
    send(&near, &bytes[..18], MAX_FDS);
    send(&near, &bytes[18..], 1);
    send(&near, &message(3, 4), 1);
    for id in [1, 2] {
        receiver.receive(&mut received).unwrap();
        assert_eq!(received.header.id, id);
        assert!(received.descriptors.too_many, "message {id}");
        assert!(received.descriptors.fds.len() <= MAX_FDS);
    }
    expect(&mut receiver, 3, 4, 1);
}

#[test]
fn a_message_that_is_too_long_goes_with_its_descriptors() {
    let (near, mut receiver) = pair();
    let sender = std::thread::spawn(move || {
        let long = message(7, MAX_PAYLOAD + 1);
        send(&near, &long[..100], 3);
        send(&near, &long[100..], 2);
        send(&near, &message(8, 2), 1);
        near
    });
    let mut received = Message::default();
    let what = receiver.receive(&mut received).unwrap();
    assert!(matches!(what, Incoming::TooLong(header) if header.id == 7));
    assert!(received.descriptors.fds.is_empty() && !received.descriptors.too_many);
    expect(&mut receiver, 8, 2, 1);
    drop(sender.join().unwrap());
}

#[test]
fn the_memory_of_a_payload_is_used_again() {
    let (near, mut receiver) = pair();
    let mut received = Message::default();
    let mut places = Vec::new();
    for id in 0..8 {
        send(&near, &message(id, 32), 0);
        receiver.receive(&mut received).unwrap();
        places.push(received.payload.as_ptr());
    }
    places.dedup();
    assert_eq!(places.len(), 1, "each needed memory of its own");
    received.payload = Vec::with_capacity(1 << 20);
    send(&near, &message(9, 32), 0);
    receiver.receive(&mut received).unwrap();
    assert!(
        received.payload.capacity() <= KEPT,
        "much of it is given back"
    );
}
