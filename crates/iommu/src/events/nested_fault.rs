//! Why the two stages of a nested domain gave no translation, with VT-d's numbers.

use std::fmt;

use ioasid_pgtable::FirstStageFault;

/// Why an access through a nested domain was refused, and by which stage: the guest's first-stage table, or
/// the parent, which is the second stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NestedFault {
    /// The guest's table refused it.
    FirstStage(FirstStageFault),
    /// No memory is behind the guest's top table.
    RootGone,
    /// No memory is behind another table of the guest.
    TableGone,
    /// A table of the guest lies beyond the addresses that the parent translates.
    TableAddressWidth,
    /// The parent gives no right to read the guest's top table.
    RootRead,
    /// The parent gives no right to read another table of the guest.
    TableRead,
    /// An accessed or dirty bit must be set in a table of the guest, and the parent gives no right to write
    /// it.
    TableWrite,
    /// The parent maps nothing at the guest-physical address that the first stage gave.
    NotMapped,
    /// The guest-physical address lies beyond those that the parent translates.
    AddressWidth,
    /// The parent maps the page without the right to write.
    Write,
    /// The parent maps the page without the right to read.
    Read,
    /// The guest-physical address lies in the interrupt window.
    InterruptWindow,
    /// An accessed or dirty bit could not be set.
    MarkFailed,
}

impl NestedFault {
    /// The fault reason of VT-d in scalable mode (Intel VT-d specification, 7.1.3; the texts of
    /// drivers/iommu/intel/dmar.c in Linux 7.2, which end with 0x90: 0x91 is QEMU's
    /// `VTD_FR_FS_BIT_UPDATE_FAILED`). Of a page that the parent does not map, dmar.c's texts of 0x79, 0x85 and
    /// 0x86 all speak: here 0x79 stands for no mapping, the others for a right that a mapping lacks.
    pub const fn code(self) -> u8 {
        match self {
            NestedFault::FirstStage(fault) => match fault {
                FirstStageFault::NotCanonical => 0x80,
                FirstStageFault::NotPresent => 0x71,
                FirstStageFault::Reserved => 0x72,
                FirstStageFault::SupervisorRequest => 0x5d,
                FirstStageFault::User => 0x81,
                FirstStageFault::Write => 0x85,
            },
            NestedFault::RootGone => 0x73,
            NestedFault::TableGone => 0x70,
            NestedFault::TableAddressWidth => 0x74,
            NestedFault::RootRead => 0x75,
            NestedFault::TableRead => 0x76,
            NestedFault::TableWrite => 0x77,
            NestedFault::NotMapped => 0x79,
            NestedFault::AddressWidth => 0x84,
            NestedFault::Write => 0x85,
            NestedFault::Read => 0x86,
            NestedFault::InterruptWindow => 0x87,
            NestedFault::MarkFailed => 0x91,
        }
    }

    /// In a few words.
    pub const fn name(self) -> &'static str {
        match self {
            NestedFault::FirstStage(fault) => match fault {
                FirstStageFault::NotCanonical => "first stage: not canonical",
                FirstStageFault::NotPresent => "first stage: not mapped",
                FirstStageFault::Reserved => "first stage: reserved bit set",
                FirstStageFault::SupervisorRequest => {
                    "first stage: supervisor requests not enabled"
                }
                FirstStageFault::User => "first stage: a supervisor page",
                FirstStageFault::Write => "first stage: not writable",
            },
            NestedFault::RootGone => "second stage: no memory behind the top table",
            NestedFault::TableGone => "second stage: no memory behind a table",
            NestedFault::TableAddressWidth => "second stage: a table outside the address width",
            NestedFault::RootRead => "second stage: top table not readable",
            NestedFault::TableRead => "second stage: a table not readable",
            NestedFault::TableWrite => "second stage: a table not writable",
            NestedFault::NotMapped => "second stage: not mapped",
            NestedFault::AddressWidth => "second stage: outside the address width",
            NestedFault::Write => "second stage: not writable",
            NestedFault::Read => "second stage: not readable",
            NestedFault::InterruptWindow => "first stage: leads to the interrupt window",
            NestedFault::MarkFailed => "first stage: a bit could not be set",
        }
    }

    /// Whether a page request could make the access succeed.
    pub const fn is_recoverable(self) -> bool {
        matches!(
            self,
            NestedFault::FirstStage(
                FirstStageFault::NotPresent | FirstStageFault::User | FirstStageFault::Write
            ) | NestedFault::NotMapped
                | NestedFault::Write
                | NestedFault::Read
        )
    }
}

impl fmt::Display for NestedFault {
    /// With the number that VT-d's fault log would have.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (VT-d fault reason {:#x})", self.name(), self.code())
    }
}
