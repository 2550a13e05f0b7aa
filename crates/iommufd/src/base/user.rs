//! Data that a program gives for the back end of a device's IOMMU: only that code knows its
//! layout, so it is read here, with the rules that all such structs share
//! (`iommu_copy_struct_from_user` and its siblings, include/linux/iommufd.h).

use ioasid_core::host::Caller;

use super::error::{Error, UserDataError};

/// One struct of a program (`struct iommu_user_data`).
#[derive(Clone, Copy, Debug)]
pub struct UserData<'a> {
    memory: &'a dyn Caller,
    kind: u32,
    address: u64,
    len: usize,
}

impl<'a> UserData<'a> {
    /// `len` bytes at `address` in the program, of the type `kind`.
    pub const fn new(memory: &'a dyn Caller, kind: u32, address: u64, len: u32) -> Self {
        UserData {
            memory,
            kind,
            address,
            len: len as usize,
        }
    }

    /// What the program says it is.
    pub const fn kind(&self) -> u32 {
        self.kind
    }

    /// Bytes that the program has.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The struct, if it is of the type `kind`, at least `min` bytes and at most `N`; what the
    /// program does not have is 0.
    ///
    /// # Errors
    /// [`UserDataError::WrongType`], [`UserDataError::Length`], [`UserDataError::Unreadable`].
    pub fn read<const N: usize>(&self, kind: u32, min: usize) -> Result<[u8; N], Error> {
        self.check_kind(kind)?;
        if self.len < min || self.len > N {
            return Err(self.bad_length(min, N).into());
        }
        let mut bytes = [0; N];
        let read = self.memory.read(self.address, &mut bytes[..self.len]);
        read.map_err(|source| UserDataError::Unreadable {
            address: self.address,
            source,
        })?;
        Ok(bytes)
    }

    /// Writes the struct back, as much of it as the program has.
    ///
    /// # Errors
    /// [`UserDataError::WrongType`]; [`UserDataError::Length`] if what the program has is shorter
    /// than `min` or longer than `bytes`; [`UserDataError::Unreadable`].
    pub fn write(&self, kind: u32, bytes: &[u8], min: usize) -> Result<(), Error> {
        self.check_kind(kind)?;
        let part = bytes.get(..self.len);
        let part = part.filter(|part| part.len() >= min && self.address != 0);
        let part = part.ok_or(self.bad_length(min, bytes.len()))?;
        let written = self.memory.write(self.address, part);
        written.map_err(|source| UserDataError::Unreadable {
            address: self.address,
            source,
        })?;
        Ok(())
    }

    fn check_kind(&self, wanted: u32) -> Result<(), UserDataError> {
        if self.kind == wanted {
            Ok(())
        } else {
            Err(UserDataError::WrongType {
                kind: self.kind,
                wanted,
            })
        }
    }

    /// No struct of `min` to `max` bytes, or none at all without an address.
    fn bad_length(&self, min: usize, max: usize) -> UserDataError {
        UserDataError::Length {
            len: if self.address == 0 { 0 } else { self.len },
            min,
            max,
        }
    }
}

/// An array of a program (`struct iommu_user_data_array`).
#[derive(Clone, Copy, Debug)]
pub struct UserArray<'a> {
    memory: &'a dyn Caller,
    kind: u32,
    address: u64,
    entry_len: usize,
    entries: u32,
}

impl<'a> UserArray<'a> {
    /// The longest entry, in bytes.
    pub const MAX_ENTRY: u32 = 4096;
    /// The most entries.
    pub const MAX_ENTRIES: u32 = 1 << 19;

    /// `entries` entries of `entry_len` bytes each at `address` in the program.
    ///
    /// # Errors
    /// [`UserDataError::BadArray`] if there are entries and the address is 0, an entry has no byte
    /// or more than [`UserArray::MAX_ENTRY`], or there are more than [`UserArray::MAX_ENTRIES`].
    pub fn new(
        memory: &'a dyn Caller,
        kind: u32,
        address: u64,
        entry_len: u32,
        entries: u32,
    ) -> Result<Self, Error> {
        let sound = address != 0
            && (1..=Self::MAX_ENTRY).contains(&entry_len)
            && entries <= Self::MAX_ENTRIES;
        if entries != 0 && !sound {
            return Err(UserDataError::BadArray {
                address,
                entry_len,
                entries,
            }
            .into());
        }
        Ok(UserArray {
            memory,
            kind,
            address,
            entry_len: entry_len as usize,
            entries,
        })
    }

    /// What the program says the entries are.
    pub const fn kind(&self) -> u32 {
        self.kind
    }

    /// How many entries there are.
    pub const fn len(&self) -> u32 {
        self.entries
    }

    /// Whether there is none: the program only asks whether the type is known.
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Bytes of one entry as the program has it.
    pub const fn entry_len(&self) -> usize {
        self.entry_len
    }

    /// Entry `index` as one struct of the type `kind`: at least `min` bytes and at most `N`, the rest is 0
    /// (`iommu_copy_struct_from_user_array`).
    ///
    /// # Errors
    /// [`UserDataError::NoSuchEntry`], [`UserDataError::BeyondMemory`], and those of [`UserData::read`].
    pub fn read<const N: usize>(
        &self,
        kind: u32,
        index: u32,
        min: usize,
    ) -> Result<[u8; N], Error> {
        let entry = UserData {
            memory: self.memory,
            kind: self.kind,
            address: self.address_of(index)?,
            len: self.entry_len,
        };
        entry.read(kind, min)
    }

    /// Entry `index` of an array that is one struct as a whole (`iommu_copy_struct_from_full_user_array`): at
    /// least `min` bytes of it; bytes beyond `N` must be 0.
    ///
    /// # Errors
    /// [`UserDataError::NoSuchEntry`], [`UserDataError::Length`], [`UserDataError::Unreadable`],
    /// [`UserDataError::BeyondMemory`], [`UserDataError::UnknownBytes`].
    pub fn entry<const N: usize>(&self, index: u32, min: usize) -> Result<[u8; N], Error> {
        let address = self.address_of(index)?;
        if self.entry_len < min {
            return Err(UserDataError::Length {
                len: self.entry_len,
                min,
                max: Self::MAX_ENTRY as usize,
            }
            .into());
        }
        let mut whole = vec![0; self.entry_len];
        let read = self.memory.read(address, &mut whole);
        read.map_err(|source| UserDataError::Unreadable { address, source })?;
        let known = self.entry_len.min(N);
        let (head, tail) = whole.split_at(known);
        if tail.iter().any(|byte| *byte != 0) {
            return Err(UserDataError::UnknownBytes { known }.into());
        }
        let mut entry = [0; N];
        entry[..known].copy_from_slice(head);
        Ok(entry)
    }

    fn address_of(&self, index: u32) -> Result<u64, UserDataError> {
        if index >= self.entries {
            let entries = self.entries;
            return Err(UserDataError::NoSuchEntry { index, entries });
        }
        let offset = u64::from(index) * self.entry_len as u64;
        let address = self.address.checked_add(offset);
        address.ok_or(UserDataError::BeyondMemory { index })
    }
}
