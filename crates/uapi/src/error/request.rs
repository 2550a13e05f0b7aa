//! What is refused before any object is asked: the number of an ioctl, its struct, its descriptors.

use std::fmt;

use ioasid_core::{host::FdError, memory::PinError};

use crate::{fields::Names, table::File};

/// Why an ioctl was refused for what the program handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No ioctl of this kind of file has the number (ENOTTY).
    #[error("{file} knows no ioctl {request:#x}")]
    UnknownCommand {
        /// What it was issued on.
        file: File,
        /// The number.
        request: u32,
    },
    /// A known number in a request that otherwise differs (ENOTTY).
    #[error("{request:#x} has the number of {name}, which is {known:#x} as a whole")]
    OtherRequest {
        /// What was issued.
        request: u32,
        /// The whole request.
        known: u32,
        /// Its name.
        name: &'static str,
    },
    /// The command is for a device that was opened by its own node (ENOTTY).
    #[error("{name} is not for a device that was opened by its group: its container attaches it")]
    OpenedByGroup {
        /// The command.
        name: &'static str,
    },
    /// No device has this feature (ENOTTY).
    #[error("no device here has the feature {number}")]
    UnknownFeature {
        /// Its number.
        number: u32,
    },
    /// The flags select no action, or several (ENOTTY).
    #[error("{0}")]
    NoHandler(FieldError),
    /// A field has a value that nothing is known of, in a command of `/dev/iommu` (EOPNOTSUPP).
    #[error("{0}")]
    NotSupported(FieldError),
    /// A field has a value that it cannot have, in a command of VFIO (EINVAL).
    #[error("{0}")]
    Invalid(FieldError),
    /// The struct is shorter than the least that the command needs (EINVAL).
    #[error("the struct says that it has {size} bytes, and {min} are needed at least")]
    TooSmall {
        /// What the program says in `size` or `argsz`.
        size: u64,
        /// The least.
        min: u64,
    },
    /// The struct is longer than it is known, and what is beyond is not 0 (E2BIG).
    #[error("byte {offset} of the struct is not 0: only {known} bytes are known")]
    UnknownBytes {
        /// Offset of the first such byte.
        offset: u64,
        /// Bytes that are known.
        known: u64,
    },
    /// Memory of the program cannot be read (EFAULT).
    #[error("{len} bytes at the program's address {address:#x} cannot be read")]
    Unreadable {
        /// Where they are.
        address: u64,
        /// Bytes.
        len: u64,
    },
    /// Memory of the program cannot be written (EFAULT).
    #[error("{len} bytes at the program's address {address:#x} cannot be written")]
    Unwritable {
        /// Where they are.
        address: u64,
        /// Bytes.
        len: u64,
    },
    /// An array or struct of the program passes the end of all addresses (EFAULT).
    #[error("byte {offset:#x} of what is at {base:#x} is beyond the end of all addresses")]
    BeyondMemory {
        /// Where it starts.
        base: u64,
        /// Which byte of it.
        offset: u64,
    },
    /// The memory to map cannot be had: not mapped with the permission (EFAULT), no memory or over a
    /// limit (ENOMEM), outside its object (EINVAL), taken back (ENODEV).
    #[error("{len:#x} bytes at the program's address {address:#x} cannot be pinned: {error}")]
    Pages {
        /// Where they are.
        address: u64,
        /// Bytes.
        len: u64,
        /// Why not.
        error: PinError,
    },
    /// The range of a file to map cannot be had (as [`FdError`], EINVAL for a wrong type).
    #[error("{len:#x} bytes from offset {start:#x} of descriptor {fd} cannot be mapped: {error}")]
    FilePages {
        /// The descriptor.
        fd: i32,
        /// First byte.
        start: u64,
        /// Bytes.
        len: u64,
        /// Why not.
        error: FdError,
    },
    /// A descriptor that the struct names cannot be used (as [`FdError`], EINVAL for a wrong type).
    #[error("descriptor {fd} cannot be used as {wanted}: {error}")]
    Descriptor {
        /// The descriptor.
        fd: i32,
        /// What it must be.
        wanted: Wanted,
        /// Why not.
        error: FdError,
    },
    /// A descriptor that the struct names is another kind of file (EBADFD).
    #[error("descriptor {fd} is not {wanted}")]
    WrongFile {
        /// The descriptor.
        fd: i32,
        /// What it must be.
        wanted: Wanted,
    },
    /// The program can be given no descriptor (EMFILE, ENOMEM).
    #[error("the program can be given no descriptor: {0}")]
    NoDescriptor(FdError),
    /// The array is too short for the answer; what fits, and the number, were written (EMSGSIZE).
    #[error("the array has room for {room} elements, and there are {needed}")]
    NoRoom {
        /// Elements of the array.
        room: u64,
        /// Elements that there are.
        needed: u64,
    },
    /// More ranges than an IOAS can have (ENOMEM).
    #[error("{given} ranges are more than the {limit} that an IOAS can allow")]
    TooManyRanges {
        /// Ranges given.
        given: u64,
        /// The most.
        limit: u64,
    },
    /// An address or length of 2^64-1, with which no range ends (EOVERFLOW).
    #[error("{field} is {value:#x}: the range would pass the end of the address space")]
    LastAddress {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The name of a device has no end (EINVAL).
    #[error("the name of the device does not end within {limit} bytes")]
    NameTooLong {
        /// The most, with the 0 at its end.
        limit: u64,
    },
    /// A dirty bitmap that passes the end of what a program can address (EINVAL).
    #[error("a bitmap of {size:#x} bytes cannot be at the program's address {address:#x}")]
    BitmapAddress {
        /// Where it is said to be.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// A dirty bitmap that is too small for its range, or too large for any (EINVAL).
    #[error(
        "a dirty bitmap of {size:#x} bytes is not in {needed:#x} to {limit:#x}, for {pages} pages"
    )]
    BitmapSize {
        /// Bytes of the bitmap.
        size: u64,
        /// Bytes that the range needs.
        needed: u64,
        /// The most.
        limit: u64,
        /// Pages of the range.
        pages: u64,
    },
    /// A feature that can only be got, or only set (EINVAL).
    #[error("the feature {number} cannot be {}", if *set { "set, only got" } else { "got, only set" })]
    FeatureWay {
        /// Its number.
        number: u32,
        /// Whether it was to be set.
        set: bool,
    },
    /// Information on pre-copy needs a device in a state that none here has (EINVAL).
    #[error("no device here has a pre-copy state, which MIG_PRECOPY_INFOv2 is about")]
    NoPrecopy,
    /// An endpoint inside the root complex has neither a slot nor a bus to reset (ENODEV).
    #[error("the device has neither a slot nor a bus of its own to reset: use VFIO_DEVICE_RESET")]
    NoHotReset,
}

/// What is wrong with a field of a struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// A flag is set that is not known.
    Flags {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The flags that are known.
        known: Names,
    },
    /// A field that must be 0 is not.
    NotZero {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The value is none of those known.
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The values that are known.
        known: Names,
    },
    /// Not exactly one of the flags is set.
    OneOf {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The flags.
        known: Names,
    },
    /// Two flags are set of which each excludes the other.
    Exclusive {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The flags.
        known: Names,
    },
    /// A descriptor is negative.
    Negative {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i32,
    },
    /// The default type, where one must be chosen.
    NoType {
        /// The field.
        field: &'static str,
    },
}

impl FieldError {
    /// That only the flags in `known` are set.
    pub(crate) fn flags(
        field: &'static str,
        value: impl Into<u64>,
        known: Names,
    ) -> Result<(), FieldError> {
        let value = value.into();
        let bits = known.iter().fold(0, |bits, (bit, _)| bits | bit);
        match value & !bits {
            0 => Ok(()),
            _ => Err(FieldError::Flags {
                field,
                value,
                known,
            }),
        }
    }

    /// That the field is 0.
    pub(crate) fn zero(field: &'static str, value: impl Into<u64>) -> Result<(), FieldError> {
        match value.into() {
            0 => Ok(()),
            value => Err(FieldError::NotZero { field, value }),
        }
    }

    /// That a type was chosen.
    pub(crate) fn chosen(field: &'static str, value: u32) -> Result<(), FieldError> {
        match value {
            0 => Err(FieldError::NoType { field }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            FieldError::Flags {
                field,
                value,
                known,
            } => {
                let bits = known.iter().fold(0, |bits, (bit, _)| bits | bit);
                let unknown = value & !bits;
                write!(f, "{field} {value:#x} has the unknown bits {unknown:#x}")?;
                match known {
                    [] => f.write_str(": it must be 0"),
                    known => write!(f, ": known are {}", Listed(known)),
                }
            }
            FieldError::NotZero { field, value } => {
                write!(f, "{field} is {value:#x} and must be 0")
            }
            FieldError::Value {
                field,
                value,
                known,
            } => {
                write!(f, "{field} is {value:#x}, which is none of ")?;
                for (at, (value, name)) in known.iter().enumerate() {
                    let comma = if at > 0 { ", " } else { "" };
                    write!(f, "{comma}{name} ({value})")?;
                }
                Ok(())
            }
            FieldError::OneOf {
                field,
                value,
                known,
            } => write!(
                f,
                "{field} {value:#x} must have exactly one of {}",
                Listed(known)
            ),
            FieldError::Exclusive {
                field,
                value,
                known,
            } => write!(
                f,
                "{field} {value:#x} has more than one of {}",
                Listed(known)
            ),
            FieldError::Negative { field, value } => {
                write!(f, "{field} is {value}, which is no descriptor")
            }
            FieldError::NoType { field } => {
                write!(f, "{field} is 0, the default: a type must be chosen")
            }
        }
    }
}

/// The names of flags or values.
struct Listed(Names);

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (_, name)) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

/// What a descriptor that a struct names must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// An open `/dev/iommu`.
    Iommufd,
    /// A container, or `/dev/iommu` in its place.
    Container,
    /// An eventfd.
    Eventfd,
    /// Any file of the machine.
    OfMachine,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wanted::Iommufd => "an open /dev/iommu",
            Wanted::Container => "an open /dev/vfio/vfio or /dev/iommu",
            Wanted::Eventfd => "an eventfd",
            Wanted::OfMachine => "a file of the machine",
        })
    }
}
