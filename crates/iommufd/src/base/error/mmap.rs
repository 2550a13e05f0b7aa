//! mmap on the file.

/// Why nothing of the file was mapped, or nothing can be offered to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MmapError {
    /// Only whole pages can be mapped (EINVAL).
    #[error("{len:#x} bytes are not whole pages")]
    NotWholePages {
        /// Bytes.
        len: u64,
    },
    /// Only shared mappings are possible (EINVAL).
    #[error("the pages can only be mapped shared")]
    Private,
    /// Nothing of the file can be executed (EPERM).
    #[error("the pages cannot be mapped executable")]
    Executable,
    /// Nothing to map starts there, or it has another length (ENXIO).
    #[error("nothing with {len:#x} bytes is to be mapped at offset {offset:#x}")]
    NoSuchOffset {
        /// The offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// No offsets are left for a back end's memory (ENOSPC).
    #[error("no offsets are left for {len:#x} bytes to be mapped")]
    NoSpace {
        /// Bytes.
        len: u64,
    },
}
