//! One ioctl in progress: its struct, read once, and the way back.

use std::{fmt, mem::size_of, sync::Arc};

use ioasid_iommufd::{Context, ObjectId, UserData};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Command;
use crate::{CallError, Program, error::RequestError, memory};

/// The largest struct of a command: the self-test's.
pub(super) const MAX_SIZE: usize = 72;

/// Bytes cleared at a time in a program's memory.
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
    ) -> Result<Self, CallError> {
        let mut size = [0; 4];
        memory::read(program, arg, &mut size)?;
        let user_size = u32::from_ne_bytes(size) as usize;
        if command.request != cmd {
            return Err(RequestError::OtherRequest {
                request: cmd,
                known: command.request,
                name: command.name,
            }
            .into());
        }
        if user_size < command.min_size {
            return Err(RequestError::TooSmall {
                size: user_size as u64,
                min: command.min_size as u64,
            }
            .into());
        }
        let known = user_size.min(command.size);
        let mut bytes = [0; MAX_SIZE];
        memory::expect_zeros(program, arg, known as u64, user_size as u64)?;
        let (head, rest) = bytes.split_at_mut(size.len());
        // The size was read above: what the program has written there since does not count.
        head.copy_from_slice(&size);
        if let Some(rest) = rest.get_mut(..known - size.len()) {
            memory::read(program, memory::address(arg, size.len() as u64)?, rest)?;
        }
        Ok(Call {
            context,
            command,
            program,
            arg,
            size: known,
            bytes,
        })
    }

    /// The request, as it was issued.
    pub(super) fn request(&self) -> u32 {
        self.command.request
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
    pub fn reply<T: IntoBytes + Immutable>(&self, reply: &T) -> Result<u64, CallError> {
        let bytes = reply.as_bytes();
        memory::write(self.program, self.arg, &bytes[..self.size.min(bytes.len())])?;
        Ok(0)
    }

    /// Copies the struct back that names a new object. If the program does not get it, nobody knows the
    /// id, and the object is destroyed, as in the kernel.
    pub fn reply_new<T: IntoBytes + Immutable>(
        &self,
        reply: &T,
        id: ObjectId,
    ) -> Result<u64, CallError> {
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
    pub(super) fn reply_field(&self, offset: usize, value: u64) -> Result<u64, CallError> {
        let field = memory::address(self.arg, offset as u64)?;
        memory::write(self.program, field, value.as_bytes())?;
        Ok(0)
    }

    /// Element `index` and up to as many as `into` has, of an array of the program.
    pub(super) fn read_array<T: FromBytes + IntoBytes>(
        &self,
        array: u64,
        index: usize,
        into: &mut [T],
    ) -> Result<(), CallError> {
        let offset = (index as u64).saturating_mul(size_of::<T>() as u64);
        let from = memory::address(array, offset)?;
        Ok(memory::read(self.program, from, into.as_mut_bytes())?)
    }

    /// Fills `len` bytes of the program with 0.
    pub(super) fn clear(&self, from: u64, len: u64) -> Result<(), CallError> {
        let zeros = [0; CHUNK];
        let mut at = 0;
        while at < len {
            let part = (CHUNK as u64).min(len - at);
            let to = memory::address(from, at)?;
            memory::write(self.program, to, &zeros[..part as usize])?;
            at += part;
        }
        Ok(())
    }
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("command", &self.command.name)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
