//! The system call that asks the session for one access: `ioctl(-1, ACCESS, address, shape, value,
//! buffer)`.
//!
//! Descriptor -1 is never open, so a program without a session gets EBADF. Arguments 3 to 5
//! are none of `ioctl`'s, and the filter shows them to the session all the same: a store of up to 8
//! bytes and a load of up to 4 touch no memory of the program's.
//!
//! | kind | `value` | `buffer` | returns |
//! |---|---|---|---|
//! | load, up to 8 bytes | - | 8 bytes | the value; [`IN_BUFFER`] if it looks like an error |
//! | load, 16 to 64 bytes | - | that many | 0, the bytes are in the buffer |
//! | store, up to 8 bytes | the value | - | 0 |
//! | store, 16 to 64 bytes | - | that many | 0 |
//! | enqueue, 64 bytes | - | 64 bytes | 0 taken, 1 retry |
//! | refuse, up to 15 bytes | - | the instruction | an error: the program gets its signal |
//! | share, 1 byte | - | - | a descriptor of the page to ask in ([`crate::page`]), to be mapped and closed |
//! | node, 1 byte | `st_dev`; the address is `st_ino` | - | major and minor number, 32 bits each; an error if it is no node |
//! | await, 1 byte | - | - | 0 once what the session carries out for the page is done |
//! | errands, 1 byte | - | - | a descriptor of the page in which the session asks for copies ([`crate::errands`]) |
//! | agent, 1 byte | - | - | 0: the agent of the process that started this one may go to work ([`crate::agent`]) |
//!
//! Any other error means that the address is no register of a device that is served, or does not
//! answer now.

/// The request number: the type byte of VFIO, with a number that no ioctl of Linux has.
pub const ACCESS: u32 = (b';' as u32) << 8 | 0xfd;

/// The errno (EOVERFLOW) that says that the value of a load is in the buffer.
pub const IN_BUFFER: i32 = 75;

/// What is done. The numbers are those of the system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes from a register.
    Load = 0,
    /// Bytes to a register.
    Store = 1,
    /// A deferrable store of 64 bytes.
    Enqueue = 2,
    /// Nothing: an instruction on a register is not emulated, which the session is to log.
    Refuse = 3,
    /// Nothing: the process wants a page to ask in.
    Share = 4,
    /// Nothing: a thread waits for the answer to a question in the page.
    Await = 5,
    /// Nothing: asks which node a file stands for.
    Node = 6,
    /// Nothing: the process has memory that devices reach, and takes a page of errands.
    Errands = 7,
    /// Nothing: an agent is ready.
    Agent = 8,
}

/// Kind and size, as argument 3 has them: the kind in bits 0 to 7, the size in bytes in bits 8 to
/// 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What is done.
    pub kind: Kind,
    /// Bytes: 1 to 64.
    pub size: usize,
}

impl Shape {
    /// As argument 3.
    pub fn encode(self) -> u64 {
        self.kind as u64 | (self.size as u64) << 8
    }

    /// From argument 3; `None` if it is none.
    pub fn decode(word: u64) -> Option<Self> {
        let kind = match word & 0xff {
            0 => Kind::Load,
            1 => Kind::Store,
            2 => Kind::Enqueue,
            3 => Kind::Refuse,
            4 => Kind::Share,
            5 => Kind::Await,
            6 => Kind::Node,
            7 => Kind::Errands,
            8 => Kind::Agent,
            _ => return None,
        };
        let size = usize::try_from(word >> 8).ok()?;
        (1..=64).contains(&size).then_some(Shape { kind, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_survives_the_call_and_others_are_refused() {
        for kind in [
            Kind::Load,
            Kind::Store,
            Kind::Enqueue,
            Kind::Refuse,
            Kind::Share,
            Kind::Await,
            Kind::Node,
            Kind::Errands,
            Kind::Agent,
        ] {
            for size in [1, 8, 64] {
                let shape = Shape { kind, size };
                assert_eq!(Shape::decode(shape.encode()), Some(shape));
            }
        }
        for bad in [9 | 8 << 8, 0, 65 << 8, u64::MAX] {
            assert_eq!(Shape::decode(bad), None, "{bad:#x}");
        }
    }
}
