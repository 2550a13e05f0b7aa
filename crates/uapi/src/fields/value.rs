//! Values of a call.

use std::fmt;

/// What values of a field, or the bits of one, are called.
pub type Names = &'static [(u64, &'static str)];

/// One value of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number that people count with: an id, an index, how many.
    Number(u64),
    /// A number that may be negative: a descriptor.
    Signed(i64),
    /// An address, a length, an offset.
    Hex(u64),
    /// Bits, some of which have names.
    Flags {
        /// All of them.
        bits: u64,
        /// What they are called.
        names: Names,
    },
    /// A number that stands for something.
    Name {
        /// The number.
        value: u64,
        /// What it stands for, if that is known.
        name: Option<&'static str>,
    },
    /// A text of the program.
    Text(String),
    /// Bytes that are no number.
    Bytes(Vec<u8>),
    /// Several.
    List(Vec<Value>),
}

impl Value {
    /// A number that stands for something.
    pub fn name(value: u64, names: Names) -> Self {
        let mut known = names.iter();
        let name = known
            .find(|(known, _)| *known == value)
            .map(|(_, name)| *name);
        Value::Name { value, name }
    }

    /// The number that it is in the struct; none for texts, bytes and lists.
    pub fn number(&self) -> Option<u64> {
        match self {
            Value::Number(value) | Value::Hex(value) | Value::Name { value, .. } => Some(*value),
            Value::Flags { bits, .. } => Some(*bits),
            Value::Signed(value) => Some(value.cast_unsigned()),
            Value::Text(_) | Value::Bytes(_) | Value::List(_) => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(value) => write!(f, "{value}"),
            Value::Signed(value) => write!(f, "{value}"),
            Value::Hex(value) => write!(f, "{value:#x}"),
            Value::Flags { bits: 0, .. } => f.write_str("0"),
            Value::Flags { bits, names } => {
                let mut rest = *bits;
                let mut first = true;
                for (bit, name) in names.iter().filter(|(bit, _)| bits & bit == *bit) {
                    let between = if std::mem::take(&mut first) { "" } else { "|" };
                    write!(f, "{between}{name}")?;
                    rest &= !bit;
                }
                match (rest, first) {
                    (0, _) => Ok(()),
                    (rest, true) => write!(f, "{rest:#x}"),
                    (rest, false) => write!(f, "|{rest:#x}"),
                }
            }
            Value::Name {
                name: Some(name), ..
            } => f.write_str(name),
            Value::Name { value, name: None } => write!(f, "{value:#x}"),
            // A program's text may hold anything, and is to stay in its line.
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Bytes(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Value::List(values) => {
                f.write_str("[")?;
                for (at, value) in values.iter().enumerate() {
                    let comma = if at > 0 { "," } else { "" };
                    write!(f, "{comma}{value}")?;
                }
                f.write_str("]")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names = &[(1, "A"), (2, "B")];

    #[test]
    fn flags_are_named_and_the_rest_is_a_number() {
        let flags = |bits| Value::Flags { bits, names: NAMES }.to_string();
        assert_eq!(flags(0), "0");
        assert_eq!(flags(3), "A|B");
        assert_eq!(flags(0x11), "A|0x10");
        assert_eq!(flags(0x10), "0x10");
    }

    #[test]
    fn a_text_cannot_leave_its_line() {
        let text = Value::Text("a\n\u{1b}[2J\"".to_owned());
        assert_eq!(text.to_string(), r#""a\n\u{1b}[2J\"""#);
    }
}
