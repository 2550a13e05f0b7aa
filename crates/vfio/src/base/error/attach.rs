//! Attachments to page tables.

/// Why a device cannot be attached or detached. What the address space layer says is
/// [`Error::Iommufd`](super::Error::Iommufd).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// A PASID of the user's choice on a mediated device, which has none to choose (EOPNOTSUPP).
    #[error("a mediated device takes no PASID of its user's choice")]
    NoUserPasids,
}
