//! Files of events: fault queues, events of virtual IOMMUs, and what else a program reads or
//! writes.

/// Why a read or write of a file of events was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// A read or write whose length is no multiple of a record (ESPIPE).
    #[error("{len} bytes are no whole records, which have {record} bytes each")]
    PartialRecord {
        /// Bytes of the read or write.
        len: usize,
        /// Bytes of a record.
        record: usize,
    },
    /// The buffer of a read is too short for the first event (EINVAL).
    #[error("{len} bytes are too short for the first event, which has {needed}")]
    ReadTooShort {
        /// Bytes of the buffer.
        len: usize,
        /// Bytes of the event.
        needed: usize,
    },
    /// An answer names no fault that waits for one (EINVAL).
    #[error("no fault with the cookie {0} waits for an answer")]
    NoSuchFault(u32),
    /// An answer that there is not (EINVAL).
    #[error("{0} is no answer to a fault")]
    NoSuchAnswer(u32),
    /// This kind of file has no events (EINVAL).
    #[error("nothing can be read from this kind of file")]
    NotReadable,
    /// This kind of file takes no answers (EINVAL).
    #[error("nothing can be written to this kind of file")]
    NotWritable,
    /// A read of a file that is open for writing alone, or the other way round (EBADF).
    #[error("the file is not open for that direction")]
    WrongMode,
}
