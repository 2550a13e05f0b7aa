//! UUIDs as sysfs takes them.

use std::{fmt, str::FromStr};

use super::error::UuidError;

/// A UUID. Prints in lower case, whatever it was parsed from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid([u8; 16]);

/// Characters of a UUID.
const LEN: usize = 36;

impl Uuid {
    /// The UUID of these bytes, in the order in which they print.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Uuid(bytes)
    }

    /// Its bytes, in the order in which they print.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// What is written to a `create` file: 36 characters `8-4-4-4-12` of hexadecimal digits in any
    /// case, and at most one more, whatever it is (a newline, usually).
    ///
    /// # Errors
    /// [`UuidError`] for anything else.
    pub fn from_create(text: &[u8]) -> Result<Self, UuidError> {
        match text.len() {
            LEN => Self::parse(text),
            more if more == LEN + 1 => Self::parse(text.get(..LEN).unwrap_or_default()),
            other => Err(UuidError::Length(other)),
        }
    }

    fn parse(text: &[u8]) -> Result<Self, UuidError> {
        let mut bytes = [0; 16];
        let mut digits = 0;
        for (at, character) in text.iter().enumerate() {
            if matches!(at, 8 | 13 | 18 | 23) {
                if *character != b'-' {
                    return Err(UuidError::Character(at));
                }
                continue;
            }
            let digit = char::from(*character).to_digit(16);
            let digit = digit.ok_or(UuidError::Character(at))?;
            let byte: &mut u8 = bytes
                .get_mut(digits / 2)
                .ok_or(UuidError::Length(text.len()))?;
            *byte = *byte << 4 | digit as u8;
            digits += 1;
        }
        if digits == 32 {
            Ok(Uuid(bytes))
        } else {
            Err(UuidError::Length(text.len()))
        }
    }
}

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text.as_bytes())
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01";

    #[test]
    fn an_error_says_what_is_wrong_with_the_text() {
        let parse = |text: &str| Uuid::from_create(text.as_bytes());
        assert_eq!(parse(&TEXT[..35]), Err(UuidError::Length(35)));
        assert_eq!(
            parse(&TEXT.replacen('f', "g", 1)),
            Err(UuidError::Character(1))
        );
        assert_eq!(
            parse(&TEXT.replacen("-93", "9-3", 1)),
            Err(UuidError::Character(8))
        );
    }

    #[test]
    fn create_takes_36_characters_and_one_more() {
        let uuid = Uuid::from_create(TEXT.as_bytes()).unwrap();
        assert_eq!(uuid.to_string(), TEXT);
        for tail in ["\n", " ", "0"] {
            let text = format!("{TEXT}{tail}");
            assert_eq!(Uuid::from_create(text.as_bytes()), Ok(uuid));
        }
        assert_eq!(TEXT.to_uppercase().parse(), Ok(uuid));
        let too_long = format!("{TEXT}\n\n");
        let too_short = &TEXT[..35];
        let dashes_elsewhere = TEXT.replacen("-93", "9-3", 1);
        let no_hex = TEXT.replace('f', "g");
        for bad in [&too_long, too_short, &dashes_elsewhere, &no_hex, ""] {
            assert!(Uuid::from_create(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
