//! The two devices that the client uses.

use std::fmt;

/// Which of the two devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A whole PCI device.
    Pdev,
    /// A one-queue child of a shared parent.
    Mdev,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Pdev => "pdev",
            Role::Mdev => "mdev",
        })
    }
}
