//! Bytes become messages: eight for a step, the first of which says what it is. The others choose from
//! tables, so that most of what comes out is a command that a server has to take seriously, and most of
//! what is changed by a bit is another one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ioasid_vfio_user::spec::{
    DmaMap, DmaUnmap, Header, MigData, RegionAccess, RegionIoFds, SmallWrite, command,
};
use zerocopy::IntoBytes;

use crate::client::{Client, Manners};

/// Bytes of a step.
pub(crate) const STEP: usize = 8;

/// Bytes of the file that is mapped.
pub(crate) const MEMORY: u64 = 1 << 20;

/// DMA address of private memory in the phrases.
const PRIVATE: u64 = 1 << 21;

/// What a step is: the low five bits of its first byte. The others are [`Damage`].
pub(crate) const MAP: u8 = 0;
pub(crate) const MAP_PRIVATE: u8 = 1;
pub(crate) const UNMAP: u8 = 2;
pub(crate) const INFO: u8 = 3;
pub(crate) const SET_IRQS: u8 = 4;
pub(crate) const READ: u8 = 5;
pub(crate) const WRITE: u8 = 6;
pub(crate) const WRITE_MULTI: u8 = 7;
pub(crate) const CONFIG: u8 = 8;
pub(crate) const DSA_COMMAND: u8 = 9;
pub(crate) const DSA_SUBMIT: u8 = 10;
pub(crate) const IOAT_START: u8 = 11;
pub(crate) const POKE: u8 = 12;
pub(crate) const RESET: u8 = 13;
pub(crate) const FEATURE: u8 = 14;
pub(crate) const STATE: u8 = 15;
pub(crate) const STATE_READ: u8 = 16;
pub(crate) const STATE_WRITE: u8 = 17;
pub(crate) const OTHER: u8 = 18;
pub(crate) const SYNC: u8 = 19;
const FORGED_REPLY: u8 = 20;
pub(crate) const LEAVE: u8 = 21;
pub(crate) const LOG: u8 = 22;

/// Three bits of the first byte.
pub(crate) const NO_REPLY: u8 = 4;
const CUT: u8 = 5;
const SIZE_LIES: u8 = 6;
const FLAGS_LIE: u8 = 7;

/// What the client has to give away.
pub(crate) struct Belongings {
    pub(crate) memory: OwnedFd,
    pub(crate) eventfd: OwnedFd,
    pub(crate) pipe: OwnedFd,
    /// A file that is not in memory.
    pub(crate) disk: OwnedFd,
}

impl Belongings {
    fn fds(&self, kind: u8, count: usize) -> Vec<BorrowedFd<'_>> {
        let fd = match kind % 8 {
            5 => self.disk.as_fd(),
            6 => self.pipe.as_fd(),
            7 => self.eventfd.as_fd(),
            _ => self.memory.as_fd(),
        };
        vec![fd; count.min(20)]
    }
}

/// Whether the conversation goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Next,
    Finish,
    HangUp,
}

/// A command as it goes out.
struct Message<'a> {
    command: u16,
    payload: Vec<u8>,
    fds: Vec<BorrowedFd<'a>>,
}

/// An address that a device may know, or is on the edge of something.
fn address(x: u8) -> u64 {
    let x = u64::from(x);
    match x {
        0..=159 => x << 11,
        160..=199 => PRIVATE + ((x - 160) << 10),
        200..=215 => 0xfee0_0000 - 0x4000 + ((x - 200) << 11),
        216..=231 => (1 << 48) - 0x4000 + ((x - 216) << 11),
        _ => 0_u64.wrapping_sub((256 - x) << 11),
    }
}

fn size(x: u8) -> u64 {
    const SIZES: [u64; 32] = [
        MEMORY,
        MEMORY,
        0x1000,
        0x2000,
        0x1_0000,
        0x20_0000,
        0,
        1,
        2,
        3,
        4,
        8,
        12,
        16,
        20,
        24,
        32,
        36,
        40,
        48,
        64,
        100,
        128,
        0x1001,
        0xfff,
        0x8_0000,
        1 << 30,
        1 << 32,
        1 << 40,
        1 << 47,
        1 << 63,
        u64::MAX,
    ];
    SIZES[usize::from(x) % SIZES.len()]
}

fn word(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// A descriptor of a DSA.
fn dsa_descriptor(step: &[u8; STEP]) -> [u8; 64] {
    const OPCODES: [u8; 12] = [3, 3, 3, 4, 5, 6, 9, 16, 1, 2, 0, 32];
    let [_, opcode, flags, record, source, destination, len, more] = *step;
    let opcode = match opcode {
        0..=191 => OPCODES[usize::from(opcode) % OPCODES.len()],
        other => other,
    };
    // A record is wanted and there, unless told otherwise.
    let flags = u32::from(flags) ^ 0xc | u32::from(more & 0xf0) << 12;
    let first = u64::from(flags) << 32 | u64::from(opcode) << 56 | u64::from(more) << 2;
    let record = address(record).wrapping_add(u64::from(more & 7) * 32);
    let words = [
        first,
        record,
        address(source),
        address(destination),
        size(len) & 0x1_ffff | u64::from(more & 3) << 32,
        address(more),
        address(more.wrapping_add(9)),
        0,
    ];
    let mut bytes = [0; 64];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// A descriptor of an I/OAT channel.
fn ioat_descriptor(step: &[u8; STEP]) -> [u8; 64] {
    const OPCODES: [u8; 8] = [0, 0, 0, 1, 0x87, 0x88, 0x89, 0x8a];
    let [_, opcode, control, _, source, destination, len, next] = *step;
    let opcode = OPCODES[usize::from(opcode) % OPCODES.len()];
    let control = u32::from(control) ^ 0x9 | u32::from(opcode) << 24;
    let words = [
        (size(len) & 0x1_ffff) | u64::from(control) << 32,
        address(source),
        address(destination),
        address(next),
        address(source.wrapping_add(1)),
        address(source.wrapping_add(2)),
        0,
        0,
    ];
    let mut bytes = [0; 64];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn region_write(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let access = RegionAccess {
        offset,
        region,
        count: data.len() as u32,
    };
    [access.as_bytes(), data].concat()
}

/// Where an access goes: mostly to something.
fn place(region: u8, offset: u8, more: u8) -> (u32, u64) {
    let region = match region {
        0..=95 => 0,
        96..=127 => 2,
        128..=191 => 7,
        other => u32::from(other % 12),
    };
    let base = match more >> 4 {
        0..=5 => 0,
        6 => 0x400,
        7 => 0x800,
        8 => 0x1000,
        9 => 0x2000,
        10 => 0x3000,
        11 => 0x4000,
        12 => 0xff00,
        13 => 0x1_0000,
        14 => 1 << 39,
        _ => u64::MAX - 0x100,
    };
    (region, base.wrapping_add(offset.into()))
}

fn feature(number: u32, flags: u32, argsz: u32, data: &[u8]) -> Vec<u8> {
    let head = [argsz, number | flags << 16];
    [head.as_bytes(), data].concat()
}

/// One step; `more` are the bytes behind it, which some take their data from.
pub(crate) fn play(
    client: &mut Client<'_>,
    own: &Belongings,
    step: &[u8; STEP],
    more: &[u8],
) -> After {
    let [op, a, b, c, d, e, f, g] = *step;
    let mut fds = Vec::new();
    let (command, payload) = match op & 0x1f {
        MAP | MAP_PRIVATE => {
            let request = DmaMap {
                argsz: 32,
                flags: u32::from(d) ^ 3,
                offset: size(c ^ 6),
                address: address(a).wrapping_add(f.into()),
                size: size(b).wrapping_add(g.into()),
            };
            if op & 0x1f == MAP {
                fds = own.fds(e, if e < 240 { 1 } else { usize::from(e - 240) });
            }
            (command::DMA_MAP, request.as_bytes().to_vec())
        }
        UNMAP => {
            let request = DmaUnmap {
                argsz: 24 ^ u32::from(d),
                flags: u32::from(c),
                address: address(a).wrapping_add(f.into()),
                size: size(b).wrapping_add(g.into()),
            };
            (command::DMA_UNMAP, request.as_bytes().to_vec())
        }
        INFO => match a % 4 {
            0 => {
                let words = [16 ^ u32::from(b), 0, 0, 0];
                (command::DEVICE_GET_INFO, words.as_bytes().to_vec())
            }
            1 => {
                let words = [32_u32, 0, b.into(), 0, 0, 0, 0, 0];
                (command::DEVICE_GET_REGION_INFO, words.as_bytes().to_vec())
            }
            2 => {
                let request = RegionIoFds {
                    argsz: 16,
                    index: b.into(),
                    ..RegionIoFds::default()
                };
                (
                    command::DEVICE_GET_REGION_IO_FDS,
                    request.as_bytes().to_vec(),
                )
            }
            _ => {
                let words = [16_u32, 0, b.into(), 0];
                (command::DEVICE_GET_IRQ_INFO, words.as_bytes().to_vec())
            }
        },
        SET_IRQS => {
            const FLAGS: [u32; 8] = [0x24, 0x24, 0x21, 0x22, 0x09, 0x11, 0x0c, 0x14];
            let flags = if d < 0xe0 {
                FLAGS[usize::from(d) % 8]
            } else {
                d.into()
            };
            let count = if e < 0xf0 {
                u32::from(e % 20)
            } else {
                word(&[e, f, g, e])
            };
            let words = [20, flags, u32::from(a % 6), b.into(), count];
            let mut payload = words.as_bytes().to_vec();
            match flags & 7 {
                4 if f < 0xc0 => fds = own.fds(if f < 0xb0 { 7 } else { f }, count as usize),
                2 => payload.extend(vec![c; count.min(2048) as usize]),
                _ => {}
            }
            (command::DEVICE_SET_IRQS, payload)
        }
        READ => {
            let (region, offset) = place(a, b, c);
            let count = if d < 0xc0 {
                1 << (d % 4)
            } else {
                size(d) as u32
            };
            let request = RegionAccess {
                offset,
                region,
                count,
            };
            (command::REGION_READ, request.as_bytes().to_vec())
        }
        WRITE => {
            let (region, offset) = place(a, b, c);
            let value = [e, f, g, 0, 0, 0, 0, 0];
            let data = match d {
                0..=0xbf => value[..1 << (d % 4)].to_vec(),
                _ => more
                    .iter()
                    .copied()
                    .take(usize::from(d - 0xc0) * 8)
                    .collect(),
            };
            (command::REGION_WRITE, region_write(region, offset, &data))
        }
        WRITE_MULTI => {
            let count = u64::from(a % 8) + if a > 0xf0 { 1 << 40 } else { 0 };
            let mut payload = count.as_bytes().to_vec();
            for n in 0..a % 8 {
                let (region, offset) = place(b, c.wrapping_add(n.wrapping_mul(d)), e);
                let access = RegionAccess {
                    offset,
                    region,
                    count: 1 << (f % 5),
                };
                let data = [g, n, 0, 0, 0, 0, 0, 0];
                payload.extend(SmallWrite { access, data }.as_bytes());
            }
            (command::REGION_WRITE_MULTI, payload)
        }
        CONFIG => {
            // The command register, or what is behind it.
            let data = [a ^ 6, b];
            (
                command::REGION_WRITE,
                region_write(7, 4 + u64::from(c), &data),
            )
        }
        DSA_COMMAND => {
            let value = word(&[b, c, 0, 0]) | u32::from(a % 32) << 20 | u32::from(d & 1) << 31;
            (
                command::REGION_WRITE,
                region_write(0, 0xa0, value.as_bytes()),
            )
        }
        DSA_SUBMIT => {
            let data = dsa_descriptor(step);
            (command::REGION_WRITE, region_write(2, 0, &data))
        }
        IOAT_START => {
            // Chain, completion word, doorbell: as one message.
            let block = 0x80 * (1 + u64::from(a % 5));
            let writes = [
                (block + 0x10, 8, address(b)),
                (block + 0x18, 8, address(c)),
                (block + 0x06, 2, d.into()),
                (block + 0x04, 1, e.into()),
            ];
            let mut payload = 4_u64.as_bytes().to_vec();
            for (offset, count, value) in writes {
                let access = RegionAccess {
                    offset,
                    region: 0,
                    count,
                };
                let data = value.to_ne_bytes();
                payload.extend(SmallWrite { access, data }.as_bytes());
            }
            (command::REGION_WRITE_MULTI, payload)
        }
        POKE => {
            let descriptor = match c & 1 {
                0 => dsa_descriptor(step),
                _ => ioat_descriptor(step),
            };
            let at = u64::from(c >> 1) * 64;
            rustix::io::pwrite(&own.memory, &descriptor, at).unwrap();
            return After::Next;
        }
        RESET => (command::DEVICE_RESET, Vec::new()),
        FEATURE => {
            let argsz = if c < 0xe0 {
                8 + u32::from(d % 64)
            } else {
                word(&[d, e, f, g])
            };
            let data: Vec<u8> = match c % 4 {
                0 => vec![e; usize::from(d % 64)],
                _ => more.iter().copied().take(d.into()).collect(),
            };
            (
                command::DEVICE_FEATURE,
                feature((a % 16).into(), (b % 8).into(), argsz, &data),
            )
        }
        STATE => {
            let state = if a < 0xf0 {
                u32::from(a % 6)
            } else {
                word(&[a, b, c, d])
            };
            let data = [state, u32::MAX];
            (command::DEVICE_FEATURE, feature(2, 2, 16, data.as_bytes()))
        }
        STATE_READ => {
            if b & 1 == 1 {
                client.forget();
            }
            let size = size(a) as u32;
            let argsz = size.wrapping_add(8).wrapping_add(u32::from(c & d & 1));
            let request = MigData { argsz, size };
            (command::MIG_DATA_READ, request.as_bytes().to_vec())
        }
        STATE_WRITE => {
            client.sync();
            let mut data = match g & 7 {
                7 => more.to_vec(),
                _ => client.kept().to_vec(),
            };
            if let Some(byte) = data.get_mut(usize::from(a) | usize::from(b) << 8) {
                *byte ^= c;
            }
            data.truncate(data.len().saturating_sub(d.into()));
            let size = data.len() as u32;
            let argsz = (size + 8).wrapping_add(u32::from(e & f & 1));
            let request = MigData { argsz, size };
            (
                command::MIG_DATA_WRITE,
                [request.as_bytes(), &data].concat(),
            )
        }
        SYNC => {
            client.manners = match a {
                0..=0xdf => Manners::Answers,
                0xe0..=0xef => Manners::Refuses,
                _ => Manners::Lies,
            };
            client.sync();
            return After::Next;
        }
        FORGED_REPLY => {
            let payload: Vec<u8> = more.iter().copied().take(b.into()).collect();
            let header = Header {
                id: word(&[c, d]) as u16,
                command: if a & 1 == 0 {
                    command::DMA_READ
                } else {
                    command::DMA_WRITE
                },
                size: (Header::SIZE + payload.len()) as u32,
                flags: Header::REPLY | if e & 1 == 0 { 0 } else { Header::ERROR },
                error: f.into(),
            };
            client.lie(&header, &payload, &[]);
            return After::Next;
        }
        LEAVE if a & 1 == 0 => return After::Finish,
        LEAVE => return After::HangUp,
        LOG => {
            let (number, data) = log(step);
            let argsz = 8 + data.len() as u32 + u32::from(g) * 8;
            let flags = if number == 8 { 1 } else { 2 };
            (
                command::DEVICE_FEATURE,
                feature(number, flags, argsz, &data),
            )
        }
        _ => {
            fds = own.fds(c, usize::from(b & c & d));
            let payload: Vec<u8> = more.iter().copied().take(usize::from(e)).collect();
            ((a % 24).into(), payload)
        }
    };
    let message = Message {
        command,
        payload,
        fds,
    };
    send(client, message, step);
    After::Next
}

/// A feature of DMA logging: its number and data.
fn log(step: &[u8; STEP]) -> (u32, Vec<u8>) {
    let [_, kind, a, b, c, d, e, _] = *step;
    let page = if e < 0xf0 {
        0x1000 << (e % 3)
    } else {
        u64::from(e)
    };
    match kind % 8 {
        0..=2 => {
            let count = u32::from(d % 4);
            let mut data = page.as_bytes().to_vec();
            data.extend([count, 0].as_bytes());
            for n in 0..d % 4 {
                data.extend([address(a.wrapping_add(n.wrapping_mul(c))), size(b)].as_bytes());
            }
            (6, data)
        }
        3 => (7, Vec::new()),
        _ => (8, [address(a), size(b), page, 0].as_bytes().to_vec()),
    }
}

/// Sends a message, as it is or damaged.
fn send(client: &mut Client<'_>, message: Message<'_>, step: &[u8; STEP]) {
    let [op, .., f, g] = *step;
    let Message {
        command,
        mut payload,
        fds,
    } = message;
    let size = (Header::SIZE + payload.len()) as u32;
    let header = Header {
        id: 7,
        command,
        size,
        flags: 0,
        error: f.into(),
    };
    match op >> 5 {
        NO_REPLY => client.command(command, Header::NO_REPLY, &payload, &fds),
        CUT => {
            let len = usize::from(g) % 40;
            payload.resize(
                if f & 1 == 0 {
                    payload.len().saturating_sub(len)
                } else {
                    payload.len() + len
                },
                0,
            );
            client.command(command, 0, &payload, &fds);
        }
        SIZE_LIES => {
            let size = match f % 4 {
                0 => g.into(),
                1 => size.wrapping_sub(g.into()),
                2 => size.wrapping_add(g.into()),
                _ => u32::from(g) << 24,
            };
            client.lie(&Header { size, ..header }, &payload, &fds);
        }
        FLAGS_LIE => {
            let flags = word(&[g, 0, f, 0]);
            client.lie(&Header { flags, ..header }, &payload, &fds);
        }
        _ => client.command(command, 0, &payload, &fds),
    }
}
