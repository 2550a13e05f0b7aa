//! One cause of a refusal, with example values.

use std::fmt;

use ioasid_uapi::Errno;

/// One cause.
#[derive(Debug)]
pub(crate) struct Sample {
    /// Path of the error's type.
    path: &'static str,
    /// As derived: the variant and its values.
    debug: String,
    /// The explanation.
    pub(crate) text: String,
    /// What a program sees.
    pub(crate) errno: Errno,
}

/// The explanation of `error`, and its errno.
pub(crate) fn sample<E>(error: E) -> Sample
where
    E: fmt::Debug + fmt::Display,
    Errno: From<E>,
{
    Sample {
        path: std::any::type_name::<E>(),
        debug: format!("{error:?}"),
        text: error.to_string(),
        errno: error.into(),
    }
}

/// The explanation of an error whose errno is that of the error `around` it.
pub(crate) fn inside<E, A>(error: E, around: A) -> Sample
where
    E: fmt::Debug + fmt::Display,
    Errno: From<A>,
{
    Sample {
        path: std::any::type_name::<E>(),
        debug: format!("{error:?}"),
        text: error.to_string(),
        errno: around.into(),
    }
}

impl Sample {
    /// Crate, enum and variant.
    pub(crate) fn key(&self) -> (String, String, String) {
        let mut parts = self.path.split("::");
        let home = parts.next().unwrap_or_default();
        let home = home.strip_prefix("ioasid_").unwrap_or(home);
        let name = parts.last().unwrap_or_default();
        let variant = self.debug.split(|c: char| !c.is_alphanumeric()).next();
        (
            home.to_owned(),
            name.to_owned(),
            variant.unwrap_or_default().to_owned(),
        )
    }

    /// The numbers of the cause.
    pub(crate) fn values(&self) -> Vec<u64> {
        // The names of flags and values are a table, not values of the cause.
        let debug = match self.debug.split_once("known: [") {
            Some((before, _)) => before,
            None => &self.debug,
        };
        let words = debug.split(|c: char| !c.is_ascii_alphanumeric());
        let number = |word: &str| match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        };
        words.filter_map(number).collect()
    }
}
