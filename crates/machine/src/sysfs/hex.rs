//! Bytes as a text of hexadecimal digits, where they are serialized: configuration spaces are many bytes,
//! and a list of numbers takes a reader long.

use serde::{
    Deserializer, Serializer,
    de::{Error, Unexpected, Visitor},
};

const DIGITS: [u8; 16] = *b"0123456789abcdef";

pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let text: String = digits
        .filter_map(|digit| DIGITS.get(usize::from(digit)))
        .map(|digit| char::from(*digit))
        .collect();
    serializer.serialize_str(&text)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    struct Digits;

    impl Visitor<'_> for Digits {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an even number of hexadecimal digits")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
            let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
            let (pairs, rest) = text.as_bytes().as_chunks::<2>();
            let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
            let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
            bytes
                .filter(|_| rest.is_empty())
                .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }
    }

    deserializer.deserialize_str(Digits)
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holder(#[serde(with = "super")] Vec<u8>);

    #[test]
    fn all_bytes_survive_and_nothing_else_is_taken() {
        let all = Holder((0..=255).collect());
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(text.len(), 2 + 512);
        assert_eq!(serde_json::from_str::<Holder>(&text).unwrap(), all);
        for wrong in ["\"0\"", "\"0g\"", "\"+1\"", "[1]", "\"\u{e9}00\""] {
            assert!(serde_json::from_str::<Holder>(wrong).is_err(), "{wrong}");
        }
    }
}
