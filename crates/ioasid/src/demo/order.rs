//! What the demo tells its VM processes to do, one JSON line each, and what they answer.

use serde::{Deserialize, Serialize};

/// Which of a VM's two devices.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Which {
    /// The whole device.
    Pdev,
    /// The mediated device.
    Mdev,
}

/// One thing to do, with nothing but the ABI.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Order {
    /// Open /dev/iommu and allocate an IOAS.
    Open,
    /// Open the device, bind it and attach it to the IOAS. Answers [`Answer::Number`]: the page
    /// table's id.
    Attach(Which),
    /// Detach the device and close it.
    Detach(Which),
    /// Map `len` zeroed bytes of new shared memory at `iova`.
    Map {
        /// First IOVA.
        iova: u64,
        /// Bytes.
        len: usize,
    },
    /// Map the bytes at `from` once more at `to` (IOMMU_IOAS_COPY).
    CopyMapping {
        /// IOVA of the existing mapping.
        from: u64,
        /// IOVA of the new one.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// Unmap `len` bytes at `iova`. Answers [`Answer::Number`]: bytes unmapped.
    Unmap {
        /// First IOVA.
        iova: u64,
        /// Bytes.
        len: u64,
    },
    /// Bring the device up, with its completion records in the area at `records`.
    BringUp {
        /// The device.
        which: Which,
        /// IOVA of an area that is mapped.
        records: u64,
        /// Offset of the first record in it.
        first: u64,
    },
    /// Write the pattern of `seed` to memory.
    Pattern {
        /// IOVA of the first byte.
        iova: u64,
        /// Bytes.
        len: u64,
        /// The pattern.
        seed: u64,
    },
    /// Check the pattern of `seed`. Answers [`Answer::Difference`].
    Check {
        /// IOVA of the first byte.
        iova: u64,
        /// Bytes.
        len: u64,
        /// The pattern.
        seed: u64,
    },
    /// Copy `len` bytes in many descriptors. Answers [`Answer::Copied`].
    Copy {
        /// The device.
        which: Which,
        /// Destination IOVA.
        to: u64,
        /// Source IOVA.
        from: u64,
        /// Bytes.
        len: u64,
    },
    /// One copy descriptor, with fields that a driver would not use. Answers [`Answer::Job`].
    Job {
        /// The device.
        which: Which,
        /// Destination IOVA.
        to: u64,
        /// Source IOVA.
        from: u64,
        /// Bytes.
        len: u32,
        /// The descriptor's PASID field.
        pasid: u32,
    },
    /// Write a 32-bit register of BAR 0.
    WriteRegister {
        /// The device.
        which: Which,
        /// Offset.
        offset: u64,
        /// Value.
        value: u32,
    },
    /// Read a 32-bit register of BAR 0. Answers [`Answer::Number`].
    ReadRegister {
        /// The device.
        which: Which,
        /// Offset.
        offset: u64,
    },
    /// Run a device command. Answers [`Answer::Number`]: the error code of CMDSTS, 0 for success.
    Command {
        /// The device.
        which: Which,
        /// Number of the command.
        command: u8,
        /// Its operand.
        operand: u32,
    },
    /// Bring the device up again after a reset.
    BringUpAgain(Which),
    /// Submit large copies for ever, never looking at a record, until killed. Answers once the first
    /// descriptors are submitted.
    Flood {
        /// The device.
        which: Which,
        /// Destination IOVA.
        to: u64,
        /// Source IOVA.
        from: u64,
        /// Bytes of each copy.
        len: u32,
    },
    /// Answer, then exit with status 0.
    Exit,
}

/// What came of an [`Order`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Answer {
    /// Done.
    Done,
    /// A number; the order says of what.
    Number(u64),
    /// Offset of the first byte that differs, if one does.
    Difference(Option<u64>),
    /// A long copy.
    Copied {
        /// Descriptors.
        descriptors: u64,
        /// Nanoseconds.
        nanoseconds: u64,
        /// Interrupts taken.
        interrupts: u64,
    },
    /// A completion record.
    Job {
        /// Status byte.
        status: u8,
        /// Bytes done.
        done: u32,
        /// Fault address.
        fault_address: u64,
    },
    /// It failed: one sentence, and the errno if there was one.
    Failed {
        /// What went wrong.
        sentence: String,
        /// The errno.
        errno: Option<i32>,
    },
}
