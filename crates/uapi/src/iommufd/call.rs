//! One ioctl in progress: its struct, read once, and the way back.

use std::{fmt, mem::size_of, sync::Arc};

use ioasid_iommufd::{Context, ObjectId, UserData};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Command;
use crate::{Errno, Program};

/// The largest struct of a command: the self-test's.
pub(super) const MAX_SIZE: usize = 72;

/// Bytes looked at or cleared at a time in a program's memory.
const CHUNK: usize = 4096;

/// One ioctl in progress: what the handler of a command works on.
pub struct Call<'a> {
    context: &'a Arc<Context>,
    command: &'static Command,
    program: &'a dyn Program,
    /// Address of the struct.
    arg: u64,
    /// Bytes of the struct that the program has.
    size: usize,
    bytes: [u8; MAX_SIZE],
}

impl<'a> Call<'a> {
    /// Reads the struct with the checks that all commands share.
    pub(super) fn read(
        context: &'a Arc<Context>,
        command: &'static Command,
        cmd: u32,
        arg: u64,
        program: &'a dyn Program,
    ) -> Result<Self, Errno> {
        let mut size = [0; 4];
        program.read(arg, &mut size)?;
        let user_size = u32::from_ne_bytes(size) as usize;
        if command.request != cmd {
            return Err(Errno::ENOTTY);
        }
        if user_size < command.min_size {
            return Err(Errno::EINVAL);
        }
        let known = user_size.min(command.size);
        let mut bytes = [0; MAX_SIZE];
        let call = |bytes| Call {
            context,
            command,
            program,
            arg,
            size: known,
            bytes,
        };
        call(bytes).must_be_zero(known, user_size)?;
        let (head, rest) = bytes.split_at_mut(size.len());
        // The size was read above: what the program has written there since does not count.
        head.copy_from_slice(&size);
        if let Some(rest) = rest.get_mut(..known - size.len()) {
            program.read(address(arg, size.len() as u64)?, rest)?;
        }
        Ok(call(bytes))
    }

    /// Bytes `from..to` from the start of the struct are beyond what is known.
    fn must_be_zero(&self, from: usize, to: usize) -> Result<(), Errno> {
        let mut chunk = [0; CHUNK];
        let mut at = from;
        while at < to {
            let part = &mut chunk[..CHUNK.min(to - at)];
            self.program.read(address(self.arg, at as u64)?, part)?;
            if part.iter().any(|byte| *byte != 0) {
                return Err(Errno::E2BIG);
            }
            at += part.len();
        }
        Ok(())
    }

    /// The file that the ioctl was issued on.
    pub fn context(&self) -> &'a Arc<Context> {
        self.context
    }

    /// The program that issued it.
    pub fn program(&self) -> &'a dyn Program {
        self.program
    }

    /// The struct.
    pub fn args<T: FromBytes>(&self) -> T {
        // The table's sizes are those of the structs, and all fit the buffer.
        T::read_from_prefix(&self.bytes).map_or_else(|_| T::new_zeroed(), |(args, _)| args)
    }

    /// Copies the struct back, as much of it as the program has.
    ///
    /// # Errors
    /// EFAULT.
    pub fn reply<T: IntoBytes + Immutable>(&self, reply: &T) -> Result<u64, Errno> {
        let bytes = reply.as_bytes();
        self.program
            .write(self.arg, &bytes[..self.size.min(bytes.len())])?;
        Ok(0)
    }

    /// Copies the struct back that names a new object. If the program does not get it, nobody knows the
    /// id, and the object is destroyed, as in the kernel.
    pub fn reply_new<T: IntoBytes + Immutable>(
        &self,
        reply: &T,
        id: ObjectId,
    ) -> Result<u64, Errno> {
        let replied = self.reply(reply);
        if replied.is_err() {
            let _ = self.context.destroy(id);
        }
        replied
    }

    /// Data of the program for what is behind a device's IOMMU.
    pub fn user_data(&self, kind: u32, address: u64, len: u32) -> UserData<'_> {
        UserData::new(self.program, kind, address, len)
    }

    /// Copies one field back and nothing else.
    pub(super) fn reply_field(&self, offset: usize, value: u64) -> Result<u64, Errno> {
        let field = address(self.arg, offset as u64)?;
        self.program.write(field, value.as_bytes())?;
        Ok(0)
    }

    /// Element `index` and up to as many as `into` has, of an array of the program.
    pub(super) fn read_array<T: FromBytes + IntoBytes>(
        &self,
        array: u64,
        index: usize,
        into: &mut [T],
    ) -> Result<(), Errno> {
        let offset = (index as u64).checked_mul(size_of::<T>() as u64);
        let from = address(array, offset.ok_or(Errno::EFAULT)?)?;
        Ok(self.program.read(from, into.as_mut_bytes())?)
    }

    /// Fills `len` bytes of the program with 0.
    pub(super) fn clear(&self, from: u64, len: u64) -> Result<(), Errno> {
        let zeros = [0; CHUNK];
        let mut at = 0;
        while at < len {
            let part = (CHUNK as u64).min(len - at);
            self.program
                .write(address(from, at)?, &zeros[..part as usize])?;
            at += part;
        }
        Ok(())
    }
}

/// `offset` bytes from `base` in a program; EFAULT past the end of all addresses.
pub(super) fn address(base: u64, offset: u64) -> Result<u64, Errno> {
    base.checked_add(offset).ok_or(Errno::EFAULT)
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("command", &self.command.name)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
