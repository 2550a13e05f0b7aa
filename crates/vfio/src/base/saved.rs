//! The bytes of a saved state: little-endian fields, one after the other, without padding.

/// The bytes are no state that the device can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no state that the device can have")]
pub struct StateError;

/// Writes a state.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// 8 bits.
    pub fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    /// A truth value, 8 bits.
    pub fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    /// 16 bits.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    /// 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// A number of things that follow, 32 bits.
    pub fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// The state.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a state, which may be anything. Each call takes the next field.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// From the first field on.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    /// From behind `head` on, with which the state has to begin.
    ///
    /// # Errors
    /// [`StateError`] if it does not.
    pub fn behind(head: &[u8], bytes: &'a [u8]) -> Result<Self, StateError> {
        bytes.strip_prefix(head).map(Reader).ok_or(StateError)
    }

    /// Bytes as they are.
    ///
    /// # Errors
    /// [`StateError`] if that many are not left, as for every field.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(StateError)?;
        self.0 = rest;
        Ok(*array)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`StateError`] if that many are not left.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], StateError> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(StateError)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// 8 bits.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn u8(&mut self) -> Result<u8, StateError> {
        self.array().map(u8::from_le_bytes)
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`StateError`], also if it is neither 0 nor 1.
    pub fn bool(&mut self) -> Result<bool, StateError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError),
        }
    }

    /// 16 bits.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn u16(&mut self) -> Result<u16, StateError> {
        self.array().map(u16::from_le_bytes)
    }

    /// 32 bits.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn u32(&mut self) -> Result<u32, StateError> {
        self.array().map(u32::from_le_bytes)
    }

    /// 64 bits.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn u64(&mut self) -> Result<u64, StateError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things that follow, at most `most`.
    ///
    /// # Errors
    /// [`StateError`], also if there are more.
    pub fn count(&mut self, most: usize) -> Result<usize, StateError> {
        let count = self.u32()? as usize;
        expect(count <= most)?;
        Ok(count)
    }

    /// That nothing is left.
    ///
    /// # Errors
    /// [`StateError`] if something is.
    pub fn finish(self) -> Result<(), StateError> {
        expect(self.0.is_empty())
    }
}

/// What has to be so in a state.
///
/// # Errors
/// [`StateError`] if it is not.
pub fn expect(condition: bool) -> Result<(), StateError> {
    if condition { Ok(()) } else { Err(StateError) }
}
