//! The numbers that name things: PCI addresses, PASIDs, domains.

use std::{fmt, num::NonZeroU32, str::FromStr};

/// A requester id: bus, device and function as one 16-bit number (PCI Express base specification,
/// 2.2.6.2). Unique within one segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rid(pub u16);

impl fmt::Display for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{}",
            self.0 >> 8,
            (self.0 >> 3) & 0x1f,
            self.0 & 7
        )
    }
}

impl fmt::Debug for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A full PCI address, `segment:bus:device.function`, as sysfs prints it (`0000:6a:01.0`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// PCI segment group ("domain" in sysfs).
    pub segment: u16,
    /// The requester id within the segment.
    pub rid: Rid,
}

impl PciAddress {
    /// Bus number.
    pub const fn bus(self) -> u8 {
        (self.rid.0 >> 8) as u8
    }

    /// Device number, 0..=31.
    pub const fn device(self) -> u8 {
        ((self.rid.0 >> 3) & 0x1f) as u8
    }

    /// Function number, 0..=7.
    pub const fn function(self) -> u8 {
        (self.rid.0 & 7) as u8
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{}", self.segment, self.rid)
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a PCI address of the form `0000:6a:01.0`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a PCI address (expected the form 0000:6a:01.0)")]
pub struct ParsePciAddressError(String);

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let field = |text: &str, width: usize| {
                (text.len() == width && text.bytes().all(|b| b.is_ascii_hexdigit()))
                    .then(|| u16::from_str_radix(text, 16).ok())
                    .flatten()
            };
            let (segment, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let (bus, device, function) = (field(bus, 2)?, field(device, 2)?, field(function, 1)?);
            (device < 32 && function < 8).then_some(PciAddress {
                segment: field(segment, 4)?,
                rid: Rid(bus << 8 | device << 3 | function),
            })
        };
        parse().ok_or_else(|| ParsePciAddressError(text.to_owned()))
    }
}

/// A process address space id, 1..=2^20-1 (PCI Express base specification, 6.20). "No PASID" is
/// `Option::<Pasid>::None`, never a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pasid(NonZeroU32);

impl Pasid {
    /// One past the largest PASID that any device can use (`PASID_MAX`, include/linux/ioasid.h).
    pub const LIMIT: u32 = 1 << 20;

    /// The PASID `value`, if it is one: not 0 and below [`Pasid::LIMIT`].
    pub const fn new(value: u32) -> Option<Pasid> {
        match NonZeroU32::new(value) {
            Some(number) if value < Pasid::LIMIT => Some(Pasid(number)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pasid {}", self.0)
    }
}

/// The number of one domain; never 0, never [`DomainId::RESERVED`], never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainId(NonZeroU32);

impl DomainId {
    /// Not a domain: the in-flight marker of a reader that has not found its domain yet.
    pub const RESERVED: u32 = u32::MAX;

    /// The id `value`, unless it is 0 or reserved.
    pub const fn new(value: u32) -> Option<DomainId> {
        match NonZeroU32::new(value) {
            Some(number) if value != DomainId::RESERVED => Some(DomainId(number)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_print_as_they_parse() {
        let address: PciAddress = "0000:6a:01.0".parse().unwrap();
        assert_eq!(
            (address.bus(), address.device(), address.function()),
            (0x6a, 1, 0)
        );
        assert_eq!(address.to_string(), "0000:6a:01.0");
        for bad in [
            "",
            "6a:01.0",
            "0000:6a:20.0",
            "0000:6a:01.8",
            "0000:6a:1.0",
            "0000:+a:01.0",
        ] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn pasid_zero_and_the_limit_are_no_pasids() {
        assert!(Pasid::new(0).is_none() && Pasid::new(Pasid::LIMIT).is_none());
        assert_eq!(
            Pasid::new(Pasid::LIMIT - 1).map(Pasid::get),
            Some(Pasid::LIMIT - 1)
        );
    }
}
