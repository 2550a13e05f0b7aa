//! Moves between memory and vector or mask registers, as compilers and `memcpy` emit them.
//!
//! An unmasked move is one access of its full width. A masked one makes one access for each active
//! element, lowest first, and none for the others.

use iced_x86::{EncodingKind, Mnemonic, OpKind, Register};

use crate::cpu::Cpu;
use crate::error::Error;
use crate::exec::{Exec, Progress};
use crate::space::Space;

/// All of a vector register.
type Vector = [u8; 64];

/// What kind of move it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// The whole register, in elements of this many bytes (for a mask).
    Full { element: usize, aligned: bool },
    /// The lowest bytes; a load clears the rest of the lowest 16.
    Low,
    /// Half of the lowest 16 bytes: 0 the lower one, 1 the upper one.
    Half(usize),
    /// One element of memory to all of a register.
    Broadcast,
    /// One element of a register, by an immediate.
    Element,
    /// Elements whose top bit is set in another vector register.
    Signs,
    /// A mask register.
    Mask,
}

impl Shape {
    #[expect(
        clippy::too_many_lines,
        reason = "a decoder: one arm for each group of mnemonics"
    )]
    fn of(mnemonic: Mnemonic) -> Option<Shape> {
        let full = |element, aligned| Shape::Full { element, aligned };
        Some(match mnemonic {
            Mnemonic::Movups | Mnemonic::Vmovups | Mnemonic::Vmovdqu32 => full(4, false),
            Mnemonic::Movupd | Mnemonic::Vmovupd | Mnemonic::Vmovdqu64 => full(8, false),
            Mnemonic::Movdqu
            | Mnemonic::Vmovdqu
            | Mnemonic::Lddqu
            | Mnemonic::Vlddqu
            | Mnemonic::Vmovdqu8 => full(1, false),
            Mnemonic::Vmovdqu16 => full(2, false),
            Mnemonic::Movaps | Mnemonic::Vmovaps | Mnemonic::Vmovdqa32 => full(4, true),
            Mnemonic::Movapd
            | Mnemonic::Vmovapd
            | Mnemonic::Vmovdqa64
            | Mnemonic::Movdqa
            | Mnemonic::Vmovdqa
            | Mnemonic::Movntdq
            | Mnemonic::Vmovntdq
            | Mnemonic::Movntdqa
            | Mnemonic::Vmovntdqa
            | Mnemonic::Movntps
            | Mnemonic::Vmovntps
            | Mnemonic::Movntpd
            | Mnemonic::Vmovntpd => full(8, true),
            Mnemonic::Movd
            | Mnemonic::Vmovd
            | Mnemonic::Movq
            | Mnemonic::Vmovq
            | Mnemonic::Movss
            | Mnemonic::Vmovss
            | Mnemonic::Movsd
            | Mnemonic::Vmovsd
            | Mnemonic::Movntss
            | Mnemonic::Movntsd => Shape::Low,
            Mnemonic::Movlps | Mnemonic::Vmovlps | Mnemonic::Movlpd | Mnemonic::Vmovlpd => {
                Shape::Half(0)
            }
            Mnemonic::Movhps | Mnemonic::Vmovhps | Mnemonic::Movhpd | Mnemonic::Vmovhpd => {
                Shape::Half(1)
            }
            Mnemonic::Vbroadcastss
            | Mnemonic::Vbroadcastsd
            | Mnemonic::Vpbroadcastb
            | Mnemonic::Vpbroadcastw
            | Mnemonic::Vpbroadcastd
            | Mnemonic::Vpbroadcastq
            | Mnemonic::Vbroadcastf128
            | Mnemonic::Vbroadcasti128
            | Mnemonic::Vbroadcastf32x4
            | Mnemonic::Vbroadcasti32x4
            | Mnemonic::Vbroadcastf64x4
            | Mnemonic::Vbroadcasti64x4
            | Mnemonic::Vbroadcastf64x2
            | Mnemonic::Vbroadcasti64x2
            | Mnemonic::Vbroadcastf32x8
            | Mnemonic::Vbroadcasti32x8
            | Mnemonic::Vbroadcastf32x2
            | Mnemonic::Vbroadcasti32x2 => Shape::Broadcast,
            Mnemonic::Pinsrb
            | Mnemonic::Pinsrw
            | Mnemonic::Pinsrd
            | Mnemonic::Pinsrq
            | Mnemonic::Vpinsrb
            | Mnemonic::Vpinsrw
            | Mnemonic::Vpinsrd
            | Mnemonic::Vpinsrq
            | Mnemonic::Pextrb
            | Mnemonic::Pextrw
            | Mnemonic::Pextrd
            | Mnemonic::Pextrq
            | Mnemonic::Vpextrb
            | Mnemonic::Vpextrw
            | Mnemonic::Vpextrd
            | Mnemonic::Vpextrq
            | Mnemonic::Extractps
            | Mnemonic::Vextractps
            | Mnemonic::Vextractf128
            | Mnemonic::Vextracti128
            | Mnemonic::Vextractf32x4
            | Mnemonic::Vextracti32x4
            | Mnemonic::Vextractf64x2
            | Mnemonic::Vextracti64x2
            | Mnemonic::Vextractf32x8
            | Mnemonic::Vextracti32x8
            | Mnemonic::Vextractf64x4
            | Mnemonic::Vextracti64x4
            | Mnemonic::Vinsertf128
            | Mnemonic::Vinserti128
            | Mnemonic::Vinsertf32x4
            | Mnemonic::Vinserti32x4
            | Mnemonic::Vinsertf64x2
            | Mnemonic::Vinserti64x2
            | Mnemonic::Vinsertf32x8
            | Mnemonic::Vinserti32x8
            | Mnemonic::Vinsertf64x4
            | Mnemonic::Vinserti64x4 => Shape::Element,
            Mnemonic::Vmaskmovps
            | Mnemonic::Vmaskmovpd
            | Mnemonic::Vpmaskmovd
            | Mnemonic::Vpmaskmovq => Shape::Signs,
            Mnemonic::Kmovb | Mnemonic::Kmovw | Mnemonic::Kmovd | Mnemonic::Kmovq => Shape::Mask,
            _ => return None,
        })
    }
}

/// Bytes of one element of a `maskmov`.
fn signs_element(mnemonic: Mnemonic) -> usize {
    match mnemonic {
        Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => 8,
        _ => 4,
    }
}

impl<C: Cpu, S: Space> Exec<'_, C, S> {
    /// Carries the instruction out if it is one of this module; none otherwise.
    pub(crate) fn vector(&mut self) -> Option<Result<Progress, Error>> {
        let shape = Shape::of(self.instruction.mnemonic())?;
        Some(self.move_vector(shape).map(|()| Progress::Done))
    }

    fn move_vector(&mut self, shape: Shape) -> Result<(), Error> {
        let operands = self.instruction.op_count();
        let Some(memory) = (0..operands).find(|op| self.is_memory(*op)) else {
            // From register to register: nothing that could have trapped.
            return Err(Error::Unsupported);
        };
        let bytes = self.instruction.memory_size().size();
        if bytes == 0 || bytes > 64 {
            return Err(Error::Unsupported);
        }
        let address = self.address(memory)?;
        let stores = memory == 0;
        match shape {
            Shape::Full { element, aligned } => {
                if aligned {
                    self.aligned(address, bytes)?;
                }
                let element = element.min(bytes);
                let active = self.active_elements();
                if stores {
                    let value = self.read_vector(1)?;
                    self.store_elements(address, &value, bytes, element, active)
                } else {
                    let loaded = self.load_elements(address, bytes, element, active)?;
                    self.write_masked(&loaded, bytes, element, active)
                }
            }
            Shape::Low => {
                let active = self.active_elements();
                if stores {
                    let value = self.read_vector(1)?;
                    self.store_elements(address, &value, bytes, bytes, active)
                } else {
                    let loaded = self.load_elements(address, bytes, bytes, active)?;
                    self.write_masked(&loaded, bytes, bytes, active)
                }
            }
            Shape::Half(half) => {
                let last = operands.saturating_sub(2);
                let mut value = self.read_vector(if stores { 1 } else { last })?;
                let place = half * 8..half * 8 + 8;
                let place = value.get_mut(place).ok_or(Error::Unsupported)?;
                if stores {
                    return Ok(self.space.store(address, place)?);
                }
                self.space.load(address, place)?;
                self.write_vector(&value, 16)
            }
            Shape::Broadcast => self.broadcast(address, bytes),
            Shape::Element => self.element(address, bytes, stores),
            Shape::Signs => self.by_signs(address, bytes, stores),
            Shape::Mask => {
                if stores {
                    let value = self.cpu.opmask(self.mask_number(1)?);
                    self.store(address, value, bytes)
                } else {
                    let value = self.load(address, bytes)?;
                    let number = self.mask_number(0)?;
                    self.cpu.set_opmask(number, value);
                    Ok(())
                }
            }
        }
    }

    fn broadcast(&mut self, address: u64, bytes: usize) -> Result<(), Error> {
        let active = self.active_elements();
        if active != u64::MAX && bytes > 8 {
            return Err(Error::Unsupported);
        }
        let width = self.bytes(0).min(64);
        // Masked by halves of what is loaded: of the rare forms, this one is left.
        if active != u64::MAX
            && matches!(
                self.instruction.mnemonic(),
                Mnemonic::Vbroadcastf32x2 | Mnemonic::Vbroadcasti32x2
            )
        {
            return Err(Error::Unsupported);
        }
        let mut value = [0; 64];
        let elements = width / bytes.max(1);
        let any = active & low_bits(elements) != 0;
        if any {
            let mut first = [0; 64];
            let first = first.get_mut(..bytes).ok_or(Error::Unsupported)?;
            self.space.load(address, first)?;
            let chunks = value.chunks_exact_mut(bytes).take(elements);
            chunks.for_each(|chunk| chunk.copy_from_slice(first));
        }
        self.write_masked(&value, width, bytes, active)
    }

    fn element(&mut self, address: u64, bytes: usize, stores: bool) -> Result<(), Error> {
        if self.active_elements() != u64::MAX {
            return Err(Error::Unsupported);
        }
        let last = self.instruction.op_count().saturating_sub(1);
        let immediate = self.read(last)?;
        let width = self.bytes(if stores { 1 } else { 0 });
        let elements = (width / bytes).max(1);
        let index = usize::try_from(immediate).unwrap_or(0) & (elements - 1);
        let place = index * bytes..(index + 1) * bytes;
        // The other elements come from the operand before memory: the destination itself, unless
        // the encoding names a source of its own.
        let mut value = self.read_vector(if stores { 1 } else { last.saturating_sub(2) })?;
        let place = value.get_mut(place).ok_or(Error::Unsupported)?;
        if stores {
            return Ok(self.space.store(address, place)?);
        }
        self.space.load(address, place)?;
        self.write_vector(&value, width)
    }

    fn by_signs(&mut self, address: u64, bytes: usize, stores: bool) -> Result<(), Error> {
        let element = signs_element(self.instruction.mnemonic());
        let signs = self.read_vector(1)?;
        let active = signs
            .chunks_exact(element)
            .enumerate()
            .filter(|(_, chunk)| chunk.last().is_some_and(|byte| byte & 0x80 != 0))
            .fold(0, |active, (index, _)| active | 1 << index);
        if stores {
            let value = self.read_vector(2)?;
            return self.store_elements(address, &value, bytes, element, active);
        }
        let loaded = self.load_elements(address, bytes, element, active)?;
        self.write_vector(&loaded, bytes)
    }

    /// The elements that an opmask lets through; all, if there is none.
    fn active_elements(&self) -> u64 {
        match self.instruction.op_mask() {
            Register::None | Register::K0 => u64::MAX,
            mask => match u8::try_from(mask.number()) {
                Ok(number) => self.cpu.opmask(number & 7),
                Err(_) => u64::MAX,
            },
        }
    }

    fn load_elements(
        &mut self,
        address: u64,
        bytes: usize,
        element: usize,
        active: u64,
    ) -> Result<Vector, Error> {
        let mut value = [0; 64];
        let whole = value.get_mut(..bytes).ok_or(Error::Unsupported)?;
        if active == u64::MAX {
            self.space.load(address, whole)?;
            return Ok(value);
        }
        for (index, chunk) in whole.chunks_exact_mut(element).enumerate() {
            if active >> index & 1 != 0 {
                let at = address.wrapping_add((index * element) as u64);
                self.space.load(at, chunk)?;
            }
        }
        Ok(value)
    }

    fn store_elements(
        &mut self,
        address: u64,
        value: &Vector,
        bytes: usize,
        element: usize,
        active: u64,
    ) -> Result<(), Error> {
        let whole = value.get(..bytes).ok_or(Error::Unsupported)?;
        if active == u64::MAX {
            return Ok(self.space.store(address, whole)?);
        }
        for (index, chunk) in whole.chunks_exact(element).enumerate() {
            if active >> index & 1 != 0 {
                let at = address.wrapping_add((index * element) as u64);
                self.space.store(at, chunk)?;
            }
        }
        Ok(())
    }

    /// Writes operand 0 through the opmask: elements that are not active stay or are cleared.
    fn write_masked(
        &mut self,
        value: &Vector,
        bytes: usize,
        element: usize,
        active: u64,
    ) -> Result<(), Error> {
        let mut value = *value;
        if active != u64::MAX && !self.instruction.zeroing_masking() {
            let before = self.read_vector(0)?;
            let pairs = value
                .chunks_exact_mut(element)
                .zip(before.chunks_exact(element));
            for (index, (new, old)) in pairs.take(bytes / element).enumerate() {
                if active >> index & 1 == 0 {
                    new.copy_from_slice(old);
                }
            }
        }
        self.write_vector(&value, bytes.max(16))
    }

    /// Writes the lowest `bytes` bytes of operand 0. What lies above is kept by the old encodings and
    /// cleared by VEX and EVEX.
    fn write_vector(&mut self, value: &Vector, bytes: usize) -> Result<(), Error> {
        let number = self.vector_number(0)?;
        let mut all = if self.instruction.code().encoding() == EncodingKind::Legacy {
            self.cpu.vector(number)
        } else {
            [0; 64]
        };
        let (to, from) = (all.get_mut(..bytes), value.get(..bytes));
        let (Some(to), Some(from)) = (to, from) else {
            return Err(Error::Unsupported);
        };
        to.copy_from_slice(from);
        self.cpu.set_vector(number, &all);
        Ok(())
    }

    fn read_vector(&self, op: u32) -> Result<Vector, Error> {
        Ok(self.cpu.vector(self.vector_number(op)?))
    }

    fn vector_number(&self, op: u32) -> Result<u8, Error> {
        if self.instruction.op_kind(op) != OpKind::Register {
            return Err(Error::Unsupported);
        }
        let register = self.instruction.op_register(op);
        // Not those of MMX: programs do not access devices with them.
        if !register.is_vector_register() {
            return Err(Error::Unsupported);
        }
        u8::try_from(register.number() & 31).map_err(|_| Error::Unsupported)
    }

    fn mask_number(&self, op: u32) -> Result<u8, Error> {
        let register = self.instruction.op_register(op);
        if !register.is_k() {
            return Err(Error::Unsupported);
        }
        u8::try_from(register.number() & 7).map_err(|_| Error::Unsupported)
    }
}

/// A mask of the lowest `count` bits.
fn low_bits(count: usize) -> u64 {
    if count >= 64 {
        u64::MAX
    } else {
        (1 << count) - 1
    }
}
