//! Descriptors: 64 bytes at a multiple of 64 (`struct ioat_dma_descriptor` and its relatives).

use bitfield_struct::bitfield;

/// Bytes of a descriptor, and of an extension.
pub const DESCRIPTOR_SIZE: usize = 64;
/// Most sources of a parity operation.
pub const MAX_SOURCES: usize = 8;

/// Fields of a descriptor and of its extension in which an XOR finds its sources.
const XOR_SOURCES: [(bool, usize); MAX_SOURCES] = [
    (false, 1),
    (false, 4),
    (false, 5),
    (false, 6),
    (false, 7),
    (true, 0),
    (true, 1),
    (true, 2),
];
/// The same for P and Q.
const PQ_SOURCES: [(bool, usize); MAX_SOURCES] = [
    (false, 1),
    (false, 4),
    (false, 5),
    (true, 0),
    (true, 1),
    (true, 2),
    (true, 4),
    (true, 5),
];

/// Operations of this model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Copy.
    Copy = 0x00,
    /// Fill with the 64-bit pattern in the source field.
    Fill = 0x01,
    /// The XOR of the sources to the destination.
    Xor = 0x87,
    /// Whether the XOR of the sources is at the destination.
    XorVal = 0x88,
    /// P and Q of the sources to two destinations.
    Pq = 0x89,
    /// Whether P and Q of the sources are at two destinations.
    PqVal = 0x8a,
}

impl Opcode {
    /// The operation of this code, if the model has it.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Opcode::Copy,
            0x01 => Opcode::Fill,
            0x87 => Opcode::Xor,
            0x88 => Opcode::XorVal,
            0x89 => Opcode::Pq,
            0x8a => Opcode::PqVal,
            _ => return None,
        })
    }

    /// Its name in a word.
    pub const fn name(self) -> &'static str {
        match self {
            Opcode::Copy => "copy",
            Opcode::Fill => "fill",
            Opcode::Xor => "xor",
            Opcode::XorVal => "xor-val",
            Opcode::Pq => "pq",
            Opcode::PqVal => "pq-val",
        }
    }

    /// Whether it has several sources.
    pub const fn is_parity(self) -> bool {
        !matches!(self, Opcode::Copy | Opcode::Fill)
    }
}

/// The control word.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Control {
    /// Interrupt when done.
    pub int_en: bool,
    /// No snooping of the source; no effect.
    pub src_snoop_dis: bool,
    /// No snooping of the destination; no effect.
    pub dest_snoop_dis: bool,
    /// Write the completion word when done.
    pub compl_write: bool,
    /// Wait for the descriptors before. They are done in order anyway.
    pub fence: bool,
    /// For a copy, bit 0: move nothing. For parity: number of sources less 2.
    #[bits(3)]
    pub low: u8,
    /// Bundles of descriptors; not in this model.
    pub bundle: bool,
    /// Direct cache access for the destination; no effect.
    pub dest_dca: bool,
    /// A hint; no effect.
    pub hint: bool,
    /// P is not wanted.
    pub p_disable: bool,
    /// Q is not wanted.
    pub q_disable: bool,
    #[bits(11)]
    __: u16,
    /// [`Opcode`].
    pub op: u8,
}

impl Control {
    /// Bit 5 of a copy: move nothing.
    pub const NULL: u8 = 1;
    /// Bits 6 and 7 of a copy: break at pages, which this model does not.
    pub const PAGE_BREAKS: u8 = 6;
}

/// One descriptor: eight fields of 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    fields: [u64; 8],
}

impl Descriptor {
    /// The descriptor in these bytes.
    pub fn from_bytes(bytes: &[u8; DESCRIPTOR_SIZE]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        let mut fields = [0; 8];
        for (field, word) in fields.iter_mut().zip(words) {
            *field = u64::from_le_bytes(*word);
        }
        Descriptor { fields }
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; DESCRIPTOR_SIZE] {
        let mut bytes = [0; DESCRIPTOR_SIZE];
        let (words, _) = bytes.as_chunks_mut::<8>();
        for (word, field) in words.iter_mut().zip(self.fields) {
            *word = field.to_le_bytes();
        }
        bytes
    }

    fn new(op: Opcode, size: u32, source: u64, destination: u64) -> Self {
        let control = Control::new().with_op(op as u8);
        let mut descriptor = Descriptor::default();
        descriptor.fields[0] = u64::from(size) | u64::from(control.into_bits()) << 32;
        descriptor.fields[1] = source;
        descriptor.fields[2] = destination;
        descriptor
    }

    /// Copies `size` bytes.
    pub fn copy(destination: u64, source: u64, size: u32) -> Self {
        Descriptor::new(Opcode::Copy, size, source, destination)
    }

    /// Fills `size` bytes with a repeated pattern.
    pub fn fill(destination: u64, pattern: u64, size: u32) -> Self {
        Descriptor::new(Opcode::Fill, size, pattern, destination)
    }

    /// Moves nothing.
    pub fn null() -> Self {
        Descriptor::new(Opcode::Copy, 1, 0, 0)
            .with_control(|control| control.set_low(Control::NULL))
    }

    /// The XOR of 2 to 8 `sources` to `destination`, or its check there, with the extension that
    /// more than 5 need. Other numbers of sources are cut or padded with address 0.
    pub fn xor(destination: u64, sources: &[u64], size: u32, check: bool) -> (Self, Option<Self>) {
        let op = if check { Opcode::XorVal } else { Opcode::Xor };
        let mut descriptor = Descriptor::new(op, size, 0, destination);
        let extension = descriptor.set_sources(&XOR_SOURCES, sources);
        (descriptor, extension)
    }

    /// P and Q of 2 to 8 `sources`, each with its coefficient, or their check, with the extension
    /// that more than 3 need.
    pub fn pq(
        [p, q]: [u64; 2],
        sources: &[(u64, u8)],
        size: u32,
        check: bool,
    ) -> (Self, Option<Self>) {
        let op = if check { Opcode::PqVal } else { Opcode::Pq };
        let mut descriptor = Descriptor::new(op, size, 0, p);
        let addresses: Vec<u64> = sources.iter().map(|(address, _)| *address).collect();
        let extension = descriptor.set_sources(&PQ_SOURCES, &addresses);
        let mut coefficients = [0; MAX_SOURCES];
        for (to, (_, coefficient)) in coefficients.iter_mut().zip(sources) {
            *to = *coefficient;
        }
        descriptor.fields[6] = u64::from_le_bytes(coefficients);
        descriptor.fields[7] = q;
        (descriptor, extension)
    }

    fn set_sources(
        &mut self,
        places: &[(bool, usize); MAX_SOURCES],
        sources: &[u64],
    ) -> Option<Self> {
        let mut extension = Descriptor::default();
        let mut extended = false;
        for (source, (in_extension, field)) in sources.iter().zip(places) {
            extended |= in_extension;
            let target = if *in_extension {
                &mut extension
            } else {
                &mut *self
            };
            target.fields[*field] = *source;
        }
        let count = sources.len().clamp(2, MAX_SOURCES) - 2;
        *self = self.with_control(|control| control.set_low(count as u8));
        extended.then_some(extension)
    }

    /// The same descriptor with its control word changed.
    #[must_use]
    pub fn with_control(mut self, change: impl FnOnce(&mut Control)) -> Self {
        let mut control = self.control();
        change(&mut control);
        self.fields[0] = u64::from(self.size()) | u64::from(control.into_bits()) << 32;
        self
    }

    /// The same descriptor, followed by the one at `next`.
    #[must_use]
    pub const fn with_next(mut self, next: u64) -> Self {
        self.fields[3] = next;
        self
    }

    /// The control word.
    pub fn control(&self) -> Control {
        Control::from_bits((self.fields[0] >> 32) as u32)
    }

    /// Bytes of the transfer.
    pub const fn size(&self) -> u32 {
        self.fields[0] as u32
    }

    /// Source address, or pattern.
    pub const fn source(&self) -> u64 {
        self.fields[1]
    }

    /// Destination address; that of P.
    pub const fn destination(&self) -> u64 {
        self.fields[2]
    }

    /// Address of Q.
    pub const fn q_address(&self) -> u64 {
        self.fields[7]
    }

    /// Address of the next descriptor; the same place in an extension.
    pub const fn next(&self) -> u64 {
        self.fields[3]
    }

    /// Number of sources of a parity operation, 2 to 8 (the field has no other values but 9).
    pub fn source_count(&self) -> usize {
        usize::from(self.control().low()) + 2
    }

    /// Whether the sources do not fit without an extension.
    pub fn has_extension(&self, op: Opcode) -> bool {
        match op {
            Opcode::Copy | Opcode::Fill => false,
            Opcode::Xor | Opcode::XorVal => self.source_count() > 5,
            Opcode::Pq | Opcode::PqVal => self.source_count() > 3,
        }
    }

    /// Source `index` of a parity operation, with its coefficient for Q.
    pub fn source_at(&self, op: Opcode, extension: &Self, index: usize) -> Option<(u64, u8)> {
        let places = match op {
            Opcode::Pq | Opcode::PqVal => &PQ_SOURCES,
            _ => &XOR_SOURCES,
        };
        let (extended, field) = *places.get(index)?;
        let from = if extended { extension } else { self };
        let coefficient = self.fields[6].to_le_bytes()[index];
        Some((from.fields[field], coefficient))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_lie_where_hardware_reads_them() {
        let descriptor = Descriptor::copy(0x2222, 0x1111, 0x333)
            .with_next(0x4440)
            .with_control(|control| {
                control.set_int_en(true);
                control.set_compl_write(true);
            });
        let mut expected = [0; 64];
        expected[..4].copy_from_slice(&0x333_u32.to_le_bytes());
        expected[4] = 0b1001;
        expected[8..10].copy_from_slice(&[0x11, 0x11]);
        expected[16..18].copy_from_slice(&[0x22, 0x22]);
        expected[24..26].copy_from_slice(&[0x40, 0x44]);
        assert_eq!(descriptor.to_bytes(), expected);
        assert_eq!(Descriptor::from_bytes(&expected), descriptor);
    }

    #[test]
    fn a_null_descriptor_has_bit_5_and_a_size() {
        let bytes = Descriptor::null().to_bytes();
        assert_eq!((bytes[0], bytes[4]), (1, 0x20));
    }

    #[test]
    fn sources_beyond_the_fifth_lie_in_the_extension() {
        let sources: Vec<u64> = (1..=8).map(|n| n * 0x1000).collect();
        let (base, extension) = Descriptor::xor(0, &sources, 64, false);
        let extension = extension.unwrap();
        assert!(base.has_extension(Opcode::Xor));
        for (index, source) in sources.iter().enumerate() {
            let found = base.source_at(Opcode::Xor, &extension, index);
            assert_eq!(found.unwrap().0, *source);
        }
        assert_eq!(base.to_bytes()[4] >> 5, 6);
        let (base, none) = Descriptor::xor(0, &sources[..5], 64, false);
        assert!(none.is_none() && !base.has_extension(Opcode::Xor));
    }
}
