//! The bytes of a saved state: little-endian fields, one after the other, without padding.

use ioasid_vfio::model::StateError;

use crate::spec::{
    CompletionRecord, Descriptor, completion::RECORD_SIZE, descriptor::DESCRIPTOR_SIZE,
};

/// Writes a state.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// A number of things that follow.
    pub(crate) fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    pub(crate) fn descriptor(&mut self, descriptor: &Descriptor) {
        self.bytes(&descriptor.to_bytes());
    }

    pub(crate) fn record(&mut self, record: &CompletionRecord) {
        self.bytes(&record.to_bytes());
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a state, which may be anything.
#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(StateError)?;
        self.0 = rest;
        Ok(*array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, StateError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, StateError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError),
        }
    }

    pub(crate) fn u32(&mut self) -> Result<u32, StateError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, StateError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things that follow, at most `most`.
    pub(crate) fn count(&mut self, most: usize) -> Result<usize, StateError> {
        let count = usize::try_from(self.u32()?).map_err(|_| StateError)?;
        expect(count <= most)?;
        Ok(count)
    }

    pub(crate) fn descriptor(&mut self) -> Result<Descriptor, StateError> {
        let bytes = self.array::<DESCRIPTOR_SIZE>()?;
        Ok(Descriptor::from_bytes(&bytes))
    }

    pub(crate) fn record(&mut self) -> Result<CompletionRecord, StateError> {
        let bytes = self.array::<RECORD_SIZE>()?;
        Ok(CompletionRecord::from_bytes(&bytes))
    }

    /// That nothing is left.
    pub(crate) fn finish(self) -> Result<(), StateError> {
        expect(self.0.is_empty())
    }
}

/// What has to be so in a state.
pub(crate) fn expect(condition: bool) -> Result<(), StateError> {
    if condition { Ok(()) } else { Err(StateError) }
}
