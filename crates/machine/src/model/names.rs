//! Names of keys and values: what a type knows, and what a wrong name may have meant.

use std::{fmt, str::FromStr};

use serde::{
    Deserialize,
    de::{Deserializer, Error as _, Visitor},
    forward_to_deserialize_any,
};

/// The one of `valid` that `wrong` is closest to, if it is near enough to be meant.
pub fn nearest<'a>(wrong: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &&str| strsim::damerau_levenshtein(wrong, name);
    let nearest = valid.into_iter().min_by_key(distance)?;
    (distance(&nearest) <= 1 + wrong.len() / 3).then_some(nearest)
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
        assert_eq!(nearest("x", []), None);
    }
}
