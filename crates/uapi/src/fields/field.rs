//! Fields of a struct: where they are and what they are called.

use super::{Names, Value};

/// A value with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The field's name, shortened to what the field says.
    pub name: &'static str,
    /// Its value.
    pub value: Value,
    /// It is what it nearly always is, the usual size or 0 where only 0 is known: not for people.
    pub usual: bool,
}

/// How a field is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A number that people count with.
    Number,
    /// A number that may be negative.
    Signed,
    /// An address, a length, an offset.
    Hex,
    /// Bits.
    Flags(Names),
    /// A number that stands for something.
    Name(Names),
    /// Bytes of the struct, usually all that are known.
    Size,
    /// Must be 0.
    Reserved,
}

/// Who says what is in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The program.
    In,
    /// The answer.
    Out,
    /// The program, and then the answer.
    Both,
}

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// What it is called.
    pub name: &'static str,
    /// Its first byte.
    pub offset: usize,
    /// Bytes: 1, 2, 4 or 8.
    pub width: usize,
    /// How it is shown.
    pub form: Form,
    /// Who says what is in it.
    pub way: Way,
    /// It counts only if one of these flags is set, and the offset of the flags (4 bytes).
    pub when: Option<(usize, u64)>,
}

/// What reads the data behind a struct, for the ways that are wanted.
pub(crate) type Tail = fn(&[u8], &dyn Fn(Way) -> bool, &mut Vec<Named>);

/// A struct of an ioctl.
pub trait Described {
    /// Its fields, in the order in which people want them.
    const FIELDS: &'static [Field];
    /// Whether it begins with how many bytes the program has, and may have data behind it.
    const GROWS: bool = true;
    /// What reads the data behind it; `None` if it has none, or none that is worth a word.
    #[doc(hidden)]
    const TAIL: Option<Tail> = None;
}

/// The bytes `offset..offset + width` as a number.
pub(crate) fn number(bytes: &[u8], offset: usize, width: usize) -> Option<u64> {
    let mut word = [0; 8];
    let from = bytes.get(offset..offset.checked_add(width)?)?;
    word.get_mut(..width)?.copy_from_slice(from);
    Some(u64::from_le_bytes(word))
}

impl Field {
    /// The field in a struct of `size` bytes, if these bytes have it and it counts.
    pub(crate) fn read(&self, bytes: &[u8], size: usize) -> Option<Named> {
        if let Some((flags, mask)) = self.when
            && number(bytes, flags, 4)? & mask == 0
        {
            return None;
        }
        let raw = number(bytes, self.offset, self.width)?;
        let value = match self.form {
            Form::Number | Form::Size => Value::Number(raw),
            Form::Signed => Value::Signed(match self.width {
                4 => i64::from((raw as u32).cast_signed()),
                _ => raw.cast_signed(),
            }),
            Form::Hex | Form::Reserved => Value::Hex(raw),
            Form::Flags(names) => Value::Flags { bits: raw, names },
            Form::Name(names) => Value::name(raw, names),
        };
        let usual = match self.form {
            Form::Size => raw == size as u64,
            Form::Reserved => raw == 0,
            _ => false,
        };
        Some(Named {
            name: self.name,
            value,
            usual,
        })
    }

    /// Its bytes, for a value that [`Value::number`] gave.
    pub fn write(&self, bytes: &mut [u8], raw: u64) {
        let word = raw.to_le_bytes();
        let into = bytes.get_mut(self.offset..self.offset + self.width);
        if let (Some(into), Some(from)) = (into, word.get(..self.width)) {
            into.copy_from_slice(from);
        }
    }
}

/// Bytes of the field that a function gives.
pub(crate) const fn width<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Describes structs: `way "name" = field, form`, and `if flag` for a field that counts only if `flag`
/// is set in the field `flags`.
macro_rules! described {
    (@way in) => { $crate::fields::Way::In };
    (@way out) => { $crate::fields::Way::Out };
    (@way both) => { $crate::fields::Way::Both };
    (@when $type:ty,) => { None };
    (@when $type:ty, $flag:expr) => {
        Some((std::mem::offset_of!($type, flags), $flag as u64))
    };
    ($($type:ty { $($way:ident $name:literal = $field:ident, $form:expr $(, if $flag:expr)?;)* }
        $(+ $tail:ident)?)*) => {$(
        impl $crate::fields::Described for $type {
            const FIELDS: &'static [$crate::fields::Field] = &[$($crate::fields::Field {
                name: $name,
                offset: std::mem::offset_of!($type, $field),
                width: $crate::fields::width::<$type, _>(|value| &value.$field),
                form: $form,
                way: $crate::fields::described!(@way $way),
                when: $crate::fields::described!(@when $type, $($flag)?),
            },)*];
            $(const TAIL: Option<$crate::fields::Tail> = Some($tail);)?
        }
    )*};
}

pub(crate) use described;
