//! Describing a PCI function.

use super::{
    function::{Function, Parts},
    layout::{Bar, LayoutError, MsixLayout, SriovLayout},
    spec,
    vectors::Vectors,
};

/// Puts a [`Function`] together. Capabilities appear in the order of the calls.
#[derive(Debug)]
pub struct FunctionBuilder {
    values: Vec<u8>,
    writable: Vec<u8>,
    used: Vec<bool>,
    bars: [Option<Bar>; 6],
    msix: Option<MsixLayout>,
    pub(super) express: Option<usize>,
    power: Option<usize>,
    pub(super) msi: Option<usize>,
    pub(super) sriov: Option<(usize, SriovLayout)>,
    pub(super) is_virtual: bool,
    scratch: Vec<std::ops::Range<usize>>,
    standard: Chain,
    extended: Chain,
    error: Option<LayoutError>,
}

/// A list of capabilities under construction.
#[derive(Debug)]
struct Chain {
    next_free: usize,
    entries: Vec<ExtendedEntry>,
}

#[derive(Clone, Copy, Debug)]
struct ExtendedEntry {
    offset: usize,
    header: u32,
    hidden: bool,
}

impl FunctionBuilder {
    /// A PCI function of `vendor` and `device`, with nothing else.
    pub fn new(vendor: u16, device: u16) -> Self {
        let mut builder = FunctionBuilder {
            values: vec![0; spec::EXTENDED_CONFIG_SIZE],
            writable: vec![0; spec::EXTENDED_CONFIG_SIZE],
            used: vec![false; spec::EXTENDED_CONFIG_SIZE],
            bars: [None; 6],
            msix: None,
            express: None,
            power: None,
            msi: None,
            sriov: None,
            is_virtual: false,
            scratch: Vec::new(),
            standard: Chain {
                next_free: spec::FIRST_CAPABILITY,
                entries: Vec::new(),
            },
            extended: Chain {
                next_free: spec::FIRST_EXTENDED,
                entries: Vec::new(),
            },
            error: None,
        };
        builder.used[..spec::FIRST_CAPABILITY].fill(true);
        builder.set16(spec::VENDOR, vendor);
        builder.set16(spec::DEVICE, device);
        builder.set16(spec::COMMAND, spec::COMMAND_MEMORY);
        builder.writable16(
            spec::COMMAND,
            spec::COMMAND_MEMORY
                | spec::COMMAND_MASTER
                | spec::COMMAND_PARITY
                | spec::COMMAND_SERR
                | spec::COMMAND_INTX_DISABLE,
        );
        builder.writable[spec::CACHE_LINE] = 0xff;
        builder.writable[spec::INTERRUPT_LINE] = 0xff;
        builder
    }

    /// The class code (24 bits: class, subclass, interface) and the revision.
    #[must_use]
    pub fn class(mut self, class: u32, revision: u8) -> Self {
        self.set32(spec::REVISION, class << 8 | u32::from(revision));
        self
    }

    /// The subsystem.
    #[must_use]
    pub fn subsystem(mut self, vendor: u16, device: u16) -> Self {
        self.set16(spec::SUBSYSTEM_VENDOR, vendor);
        self.set16(spec::SUBSYSTEM, device);
        self
    }

    /// Memory behind BAR `index`.
    #[must_use]
    pub fn bar(mut self, index: u8, bar: Bar) -> Self {
        let slot = usize::from(index);
        let last = slot + usize::from(bar.is_64bit);
        let free = last < 6
            && self.bars[slot..=last].iter().all(Option::is_none)
            && !(slot > 0 && self.bars[slot - 1].is_some_and(|below| below.is_64bit));
        if !free {
            self.error
                .get_or_insert(LayoutError::BarTaken { bar: index });
            return self;
        }
        let limit: u64 = if bar.is_64bit { 1 << 39 } else { 1 << 31 };
        if !bar.size.is_power_of_two() || bar.size < 16 || bar.size > limit {
            self.error.get_or_insert(LayoutError::BarSize {
                bar: index,
                size: bar.size,
                limit,
            });
            return self;
        }
        let flags = bar.flags();
        let offset = spec::BAR0 + 4 * slot;
        let mask = !(bar.size - 1);
        self.set32(offset, flags);
        self.writable32(offset, mask as u32);
        if bar.is_64bit {
            self.writable32(offset + 4, (mask >> 32) as u32);
        }
        if bar.is_io {
            self.writable[spec::COMMAND] |= spec::COMMAND_IO as u8;
        }
        self.bars[slot] = Some(bar);
        self
    }

    /// A PCI Express capability, version 2, of an endpoint inside the root complex, with function
    /// level reset. Without it the function has no extended configuration space.
    #[must_use]
    pub fn express(mut self) -> Self {
        if let Some(offset) = self.standard(spec::CAP_EXPRESS, spec::EXPRESS_SIZE) {
            self.set16(offset + 2, spec::EXPRESS_VERSION | spec::EXPRESS_INTEGRATED);
            self.set32(
                offset + spec::EXPRESS_DEVICE_CAPABILITIES,
                spec::DEVCAP_BASE | spec::DEVCAP_FLR,
            );
            self.set16(offset + spec::EXPRESS_DEVICE_CONTROL, spec::DEVCTL_INITIAL);
            self.writable16(offset + spec::EXPRESS_DEVICE_CONTROL, spec::DEVCTL_WRITABLE);
            self.set32(
                offset + spec::EXPRESS_DEVICE_CAPABILITIES_2,
                spec::DEVCAP2_TIMEOUT_DISABLE,
            );
            self.writable16(
                offset + spec::EXPRESS_DEVICE_CONTROL_2,
                spec::DEVCTL2_WRITABLE,
            );
            self.express = Some(offset);
        }
        self
    }

    /// A power management capability with D0 and D3 and without PME.
    #[must_use]
    pub fn power_management(mut self) -> Self {
        if let Some(offset) = self.standard(spec::CAP_PM, 8) {
            self.set16(offset + 2, 3);
            self.set16(offset + spec::PM_CONTROL, spec::PM_NO_SOFT_RESET);
            self.writable[offset + spec::PM_CONTROL] = spec::PM_STATE;
            self.power = Some(offset);
        }
        self
    }

    /// An MSI-X capability.
    #[must_use]
    pub fn msix(mut self, layout: MsixLayout) -> Self {
        if let Some(offset) = self.standard(spec::CAP_MSIX, 12) {
            self.set16(offset + spec::MSIX_CONTROL, layout.count.wrapping_sub(1));
            self.set32(offset + 4, layout.table as u32 | u32::from(layout.bar));
            self.set32(offset + 8, layout.pending as u32 | u32::from(layout.bar));
            self.msix = Some(MsixLayout {
                capability: offset,
                ..layout
            });
        }
        self
    }

    /// Advanced error reporting.
    #[must_use]
    pub fn advanced_error_reporting(mut self) -> Self {
        if let Some(offset) = self.extended(spec::EXT_AER, 2, spec::AER_SIZE, false) {
            for register in [
                spec::AER_UNCORRECTABLE_MASK,
                spec::AER_UNCORRECTABLE_MASK + 4,
            ] {
                self.writable32(offset + register, spec::AER_UNCORRECTABLE);
            }
            self.set32(
                offset + spec::AER_UNCORRECTABLE_MASK + 4,
                spec::AER_SEVERITY_INITIAL,
            );
            self.set32(
                offset + spec::AER_CORRECTABLE_MASK,
                spec::AER_CORRECTABLE_INITIAL,
            );
            self.writable32(offset + spec::AER_CORRECTABLE_MASK, spec::AER_CORRECTABLE);
        }
        self
    }

    /// Address translation services, which the host has enabled. Read-only for programs.
    #[must_use]
    pub fn address_translation(mut self) -> Self {
        if let Some(offset) = self.extended(spec::EXT_ATS, 1, 8, false) {
            self.set16(offset + 4, spec::ATS_PAGE_ALIGNED);
            self.set16(offset + spec::ATS_CONTROL, spec::ATS_ENABLE);
        }
        self
    }

    /// PASIDs of `bits` bits, with the `features` [`spec::PASID_EXEC`] and [`spec::PASID_PRIV`]; the host
    /// has enabled them all (`pci_enable_pasid`). Unlinked in the view of programs.
    #[must_use]
    pub fn pasid(mut self, bits: u8, features: u16) -> Self {
        if let Some(offset) = self.extended(spec::EXT_PASID, 1, 8, true) {
            let width = u16::from(bits & 0x1f) << 8;
            self.set16(offset + 4, width | features);
            self.set16(offset + 6, spec::PASID_ENABLE | features);
            self.writable16(offset + 6, spec::PASID_ENABLE | features);
        }
        self
    }

    /// The page request interface, with room for `requests`. Read-only for programs.
    #[must_use]
    pub fn page_requests(mut self, requests: u32) -> Self {
        if let Some(offset) = self.extended(spec::EXT_PRI, 1, 16, false) {
            self.set32(offset + 8, requests);
        }
        self
    }

    /// `len` bytes at `offset` that belong to no capability and that programs may read and write.
    #[must_use]
    pub fn scratch(mut self, offset: usize, len: usize) -> Self {
        let end = offset.saturating_add(len);
        match self.used.get_mut(offset..end) {
            Some(bytes) if !bytes.contains(&true) => {
                bytes.fill(true);
                self.writable[offset..end].fill(0xff);
                self.scratch.push(offset..end);
            }
            _ => {
                self.error.get_or_insert(LayoutError::Full { offset, len });
            }
        }
        self
    }

    /// The function.
    ///
    /// # Errors
    /// The first [`LayoutError`] of the description.
    pub fn build(mut self) -> Result<Function, LayoutError> {
        self.check_msix()?;
        if let Some(error) = self.error {
            return Err(error);
        }
        self.link_standard();
        let host_headers = self.link_extended();
        if self.express.is_none() {
            self.values.truncate(spec::CONFIG_SIZE);
            self.writable.truncate(spec::CONFIG_SIZE);
        }
        let count = self.msix.map_or(0, |msix| msix.count);
        let msi = self.msi.map_or(0, |at| {
            let control = self
                .values
                .get(at + spec::MSI_CONTROL)
                .copied()
                .unwrap_or(0);
            1 << (control >> spec::MSI_CAPABLE_SHIFT & 7)
        });
        if self.is_virtual {
            self.values[spec::INTERRUPT_PIN] = 0;
        }
        Ok(Function::new(Parts {
            values: self.values,
            writable: self.writable,
            host_headers,
            bars: self.bars,
            msix: self.msix,
            express: self.express,
            power: self.power,
            msi: self.msi,
            sriov: self.sriov,
            is_virtual: self.is_virtual,
            scratch: self.scratch,
            vectors: Vectors::new(count.max(msi)),
        }))
    }

    fn check_msix(&self) -> Result<(), LayoutError> {
        let Some(msix) = self.msix else {
            return Ok(());
        };
        let bar = self.bars.get(usize::from(msix.bar)).copied().flatten();
        Ok(msix.check(bar)?)
    }

    /// Writes the list of standard capabilities.
    fn link_standard(&mut self) {
        let entries = std::mem::take(&mut self.standard.entries);
        let mut link = spec::CAPABILITIES;
        for entry in &entries {
            self.values[link] = entry.offset as u8;
            self.values[entry.offset] = entry.header as u8;
            link = entry.offset + 1;
        }
        if !entries.is_empty() {
            self.set16(spec::STATUS, spec::STATUS_CAPABILITIES);
        }
    }

    /// Writes the list of extended capabilities as programs see it and returns the headers that
    /// the host sees instead. A hidden capability that is the first one keeps its place in the list,
    /// with id 0: the list starts at a fixed offset.
    fn link_extended(&mut self) -> Vec<(usize, u32)> {
        let entries = std::mem::take(&mut self.extended.entries);
        let mut host = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let after = entries.get(index + 1..).unwrap_or_default();
            let next = after.first().map_or(0, |next| next.offset as u32);
            host.push((entry.offset, entry.header | next << 20));
            let next = after
                .iter()
                .find(|next| !next.hidden)
                .map_or(0, |next| next.offset as u32);
            let header = match (index, entry.hidden) {
                (_, false) => entry.header | next << 20,
                (0, true) => next << 20,
                // Not in the list, but its bytes can be read.
                (_, true) => host.last().map_or(0, |(_, header)| *header),
            };
            self.set32(entry.offset, header);
        }
        host
    }

    pub(super) fn standard(&mut self, id: u8, size: usize) -> Option<usize> {
        let offset = self.place(self.standard.next_free, size, spec::CONFIG_SIZE)?;
        self.standard.next_free = offset + size;
        self.standard.entries.push(ExtendedEntry {
            offset,
            header: u32::from(id),
            hidden: false,
        });
        Some(offset)
    }

    pub(super) fn extended(
        &mut self,
        id: u16,
        version: u32,
        size: usize,
        hidden: bool,
    ) -> Option<usize> {
        let offset = self.place(self.extended.next_free, size, spec::EXTENDED_CONFIG_SIZE)?;
        self.extended.next_free = offset + size;
        self.extended.entries.push(ExtendedEntry {
            offset,
            header: u32::from(id) | version << 16,
            hidden,
        });
        Some(offset)
    }

    /// Takes the first free `size` bytes from `from` on, aligned to 4.
    fn place(&mut self, from: usize, size: usize, end: usize) -> Option<usize> {
        let fits = |offset: &usize| {
            self.used
                .get(*offset..offset + size)
                .is_some_and(|bytes| offset + size <= end && !bytes.contains(&true))
        };
        let Some(offset) = (from.next_multiple_of(4)..end).step_by(4).find(fits) else {
            self.error.get_or_insert(LayoutError::Full {
                offset: from,
                len: size,
            });
            return None;
        };
        self.used[offset..offset + size].fill(true);
        Some(offset)
    }

    pub(super) fn set8(&mut self, offset: usize, value: u8) {
        self.values[offset] = value;
    }

    pub(super) fn set16(&mut self, offset: usize, value: u16) {
        self.values[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }

    pub(super) fn set32(&mut self, offset: usize, value: u32) {
        self.values[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(super) fn writable16(&mut self, offset: usize, mask: u16) {
        self.writable[offset..offset + 2].copy_from_slice(&mask.to_le_bytes());
    }

    pub(super) fn writable32(&mut self, offset: usize, mask: u32) {
        self.writable[offset..offset + 4].copy_from_slice(&mask.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::{super::layout::MsixError, *};

    fn built(builder: FunctionBuilder) -> Result<(), LayoutError> {
        builder.build().map(drop)
    }

    #[test]
    fn a_bar_must_be_a_power_of_two_and_its_register_free() {
        let new = || FunctionBuilder::new(1, 2);
        let bad_size = new().bar(1, Bar::memory64(0x3000));
        assert_eq!(
            built(bad_size),
            Err(LayoutError::BarSize {
                bar: 1,
                size: 0x3000,
                limit: 1 << 39,
            })
        );
        let upper_half = new()
            .bar(0, Bar::memory64(0x1000))
            .bar(1, Bar::memory64(0x1000));
        assert_eq!(built(upper_half), Err(LayoutError::BarTaken { bar: 1 }));
        let past_the_last = new().bar(5, Bar::memory64(0x1000));
        assert_eq!(built(past_the_last), Err(LayoutError::BarTaken { bar: 5 }));
    }

    #[test]
    fn the_msix_table_must_lie_in_its_bar() {
        let with = |layout| {
            FunctionBuilder::new(1, 2)
                .bar(0, Bar::memory64(0x4000))
                .msix(layout)
        };
        assert_eq!(built(with(MsixLayout::new(0, 0x2000, 0x3000, 9))), Ok(()));
        let beyond = |end| {
            let size = 0x4000;
            MsixError::BeyondBar { end, size }
        };
        let misaligned = MsixError::Misaligned {
            table: 0x2004,
            pending: 0x3000,
        };
        let new = MsixLayout::new;
        for (bad, error) in [
            (new(0, 0x2000, 0x2080, 9), MsixError::Overlap),
            (new(0, 0x3ff8, 0x3000, 9), beyond(0x4088)),
            (new(0, u64::MAX - 7, 0x3000, 9), beyond(u64::MAX)),
            (new(0, 0x2004, 0x3000, 9), misaligned),
            (new(1, 0x2000, 0x3000, 9), MsixError::NoBar { bar: 1 }),
            (new(9, 0x2000, 0x3000, 9), MsixError::NoBar { bar: 9 }),
            (new(0, 0x2000, 0x3000, 0), MsixError::Count { count: 0 }),
            (new(0, 0, 0x9000, 2049), MsixError::Count { count: 2049 }),
        ] {
            assert_eq!(built(with(bad)), Err(error.into()), "{bad:?}");
        }
    }

    #[test]
    fn scratch_bytes_do_not_overlap_a_capability() {
        let builder = || FunctionBuilder::new(1, 2).express();
        assert_eq!(built(builder().scratch(0x148, 4)), Ok(()));
        assert_eq!(
            built(builder().scratch(0x44, 4)),
            Err(LayoutError::Full {
                offset: 0x44,
                len: 4,
            })
        );
        let past = builder().scratch(4095, 2);
        assert_eq!(
            built(past),
            Err(LayoutError::Full {
                offset: 4095,
                len: 2,
            })
        );
    }
}
