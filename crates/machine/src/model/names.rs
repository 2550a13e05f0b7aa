//! Names of keys and values: what a type knows, and what a wrong name may have meant.

use std::{fmt, str::FromStr};

use serde::{
    Deserialize,
    de::{
        DeserializeSeed, Deserializer, Error as _, IntoDeserializer as _, MapAccess, Visitor,
        value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

/// The one of `valid` that `wrong` is closest to, if it is near enough to be meant: one slip of the
/// hand, or one in three letters, and something in common.
pub fn nearest<'a>(wrong: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &&str| strsim::damerau_levenshtein(wrong, name);
    let nearest = valid.into_iter().min_by_key(distance)?;
    let allowed = (wrong.len() / 3).max(1);
    (distance(&nearest) <= allowed && distance(&nearest) < wrong.len()).then_some(nearest)
}

/// Reads an optional value by its `FromStr`: for `#[serde(default, deserialize_with = "...")]`.
///
/// # Errors
/// What the type's `FromStr` says.
pub fn parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// The names of the fields of `T`, aliases too; none if `T` is no struct with a list of fields.
pub(crate) fn fields<'de, T: Deserialize<'de>>() -> Option<&'static [&'static str]> {
    let mut found = None;
    // It ends in an error in any case: there is nothing to read.
    let _ = T::deserialize(Fields(&mut found));
    found
}

/// Takes the names that a derived `Deserialize` asks for.
struct Fields<'a>(&'a mut Option<&'static [&'static str]>);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("no struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = Some(fields);
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// What a value of a section has to be, as its type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A number without a fraction.
    Number,
    /// `true` or `false`.
    Flag,
    /// Text: a name, an address, one of several words.
    Text,
    /// Sections of its own, or what the type alone knows.
    Other,
}

/// What the field `name` (an alias too) of the struct `T` has to be.
pub(crate) fn kind<'de, T: Deserialize<'de>>(name: &str) -> Kind {
    let mut kind = Kind::Other;
    // It ends in an error in any case: there is no value.
    let _ = T::deserialize(Probe(name, &mut kind));
    kind
}

/// Offers one field to a derived `Deserialize`, and takes the kind of value that it asks for.
struct Probe<'a>(&'a str, &'a mut Kind);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Absent;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Absent> {
        visitor.visit_map(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> MapAccess<'de> for Probe<'_> {
    type Error = Absent;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Absent> {
        let name: StrDeserializer<'_, Absent> = self.0.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Absent> {
        seed.deserialize(Value(self.1))
    }
}

/// A value that is not there, but for its kind.
struct Value<'a>(&'a mut Kind);

impl Value<'_> {
    fn is<T>(self, kind: Kind) -> Result<T, Absent> {
        *self.0 = kind;
        Err(Absent)
    }
}

/// The functions of a `Deserializer` that say of which kind a value is.
macro_rules! kinds {
    ($($function:ident: $kind:ident),* $(,)?) => {
        $(fn $function<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Absent> {
            self.is(Kind::$kind)
        })*
    };
}

impl<'de> Deserializer<'de> for Value<'_> {
    type Error = Absent;

    kinds! {
        deserialize_any: Other, deserialize_bool: Flag,
        deserialize_i8: Number, deserialize_i16: Number, deserialize_i32: Number,
        deserialize_i64: Number, deserialize_u8: Number, deserialize_u16: Number,
        deserialize_u32: Number, deserialize_u64: Number,
        deserialize_char: Text, deserialize_str: Text, deserialize_string: Text,
        deserialize_identifier: Text,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Absent> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Absent> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Absent> {
        self.is(Kind::Text)
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        ignored_any
    }
}

/// There is no value to read.
#[derive(Debug)]
struct Absent;

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no value")
    }
}

impl std::error::Error for Absent {}

impl serde::de::Error for Absent {
    fn custom<T: fmt::Display>(_message: T) -> Self {
        Absent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its fields matter")]
    struct Example {
        plain: u8,
        #[serde(rename = "new", alias = "old")]
        renamed: u8,
    }

    #[test]
    fn the_fields_of_a_struct_are_those_that_serde_takes() {
        let mut names = fields::<Example>().unwrap().to_vec();
        names.sort_unstable();
        assert_eq!(names, ["new", "old", "plain"]);
        assert_eq!(fields::<u8>(), None);
    }

    #[test]
    fn a_name_far_from_all_others_is_near_none() {
        let valid = ["engines", "queues"];
        assert_eq!(nearest("engnies", valid), Some("engines"));
        assert_eq!(nearest("address", valid), None);
        assert_eq!(nearest("disk", ["dsa", "ioat", "edu"]), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn a_field_is_of_the_kind_that_its_type_asks_for() {
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "only its fields matter")]
        struct Section {
            #[serde(default, alias = "old")]
            number: Option<u64>,
            flag: bool,
            #[serde(default)]
            vm: Option<String>,
            #[serde(default, deserialize_with = "parsed")]
            mode: Option<u8>,
            list: Vec<u8>,
        }
        let kinds = ["number", "old", "flag", "vm", "mode", "list", "none"].map(kind::<Section>);
        let expected = [
            Kind::Number,
            Kind::Number,
            Kind::Flag,
            Kind::Text,
            Kind::Text,
            Kind::Other,
            Kind::Other,
        ];
        assert_eq!(kinds, expected);
    }
}
