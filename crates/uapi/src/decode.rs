//! A call as names and values: for a person who reads why it was refused, and for traces.
//!
//! Each struct of an ioctl describes itself once ([`Described`]), and a command cannot be put into a
//! dispatch table without such a description: so there is no ioctl that has no names. [`request`] gives
//! what the program handed over, [`reply`] what it got.
//!
//! ```
//! use ioasid_uapi::{decode, spec::iommufd as spec, table::File};
//! use zerocopy::IntoBytes;
//!
//! let map = spec::IoasMap {
//!     size: 40,
//!     ioas_id: 1,
//!     iova: 0xfee0_0000,
//!     length: 0x1000,
//!     user_va: 0x7f00_0000_0000,
//!     flags: spec::MAP_FIXED_IOVA | spec::MAP_READABLE,
//!     ..Default::default()
//! };
//! let call = decode::request(File::Iommufd, 0x3b85, 0, map.as_bytes());
//! assert_eq!(
//!     call.to_string(),
//!     "IOAS_MAP ioas=1 iova=0xfee00000 len=0x1000 va=0x7f0000000000 flags=FIXED_IOVA|READABLE"
//! );
//! ```

use std::{borrow::Cow, fmt};

pub use crate::fields::{Described, Field, Form, Named, Names, Value, Way, names};
use crate::{
    fields::number,
    ioctls,
    table::{Argument, File},
};

/// Most bytes of a struct with the data behind it that are worth a look.
pub const LONGEST: usize = 4096;

/// One call: its name, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The name, without the prefix that all of its kind share.
    pub name: Cow<'static, str>,
    /// Names and values, in the order in which a person wants them.
    pub fields: Vec<Named>,
}

impl Decoded {
    /// A call without values.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Decoded {
            name: name.into(),
            fields: Vec::new(),
        }
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: Value) -> Self {
        self.fields.push(Named {
            name,
            value,
            usual: false,
        });
        self
    }

    /// The value of the field `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let mut fields = self.fields.iter();
        fields
            .find(|field| field.name == name)
            .map(|field| &field.value)
    }
}

impl fmt::Display for Decoded {
    /// The name and all fields that are not as usual, as `name=value`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for field in self.fields.iter().filter(|field| !field.usual) {
            write!(f, " {}={}", field.name, field.value)?;
        }
        Ok(())
    }
}

/// How many bytes from the argument on [`request`] and [`reply`] want, of a struct whose first bytes are
/// `head` (16 are enough). 0 if the argument is no address.
pub fn length(file: File, request: u32, head: &[u8]) -> usize {
    match ioctls::find(file, request).map(|row| row.argument) {
        Some(Argument::Text) => LONGEST,
        Some(Argument::Struct { size, grows, .. }) if grows => {
            let given = number(head, 0, 4).unwrap_or(0);
            usize::try_from(given)
                .unwrap_or(LONGEST)
                .clamp(size.min(LONGEST), LONGEST)
        }
        Some(Argument::Struct { size, .. }) => size,
        Some(Argument::None | Argument::Number(_)) | None => 0,
    }
}

/// The ioctl `request` on a file of this kind, with the argument `arg` and the bytes that the program has
/// there, or as many of them as can be read: what the program asks for.
pub fn request(file: File, request: u32, arg: u64, bytes: &[u8]) -> Decoded {
    decode(file, request, arg, bytes, |way| way != Way::Out)
}

/// The same for the bytes that are there when the call has succeeded: what the program is told.
pub fn reply(file: File, request: u32, bytes: &[u8]) -> Decoded {
    decode(file, request, 0, bytes, |way| way != Way::In)
}

fn decode(
    file: File,
    request: u32,
    arg: u64,
    bytes: &[u8],
    wanted: impl Fn(Way) -> bool,
) -> Decoded {
    let Some(row) = ioctls::find(file, request) else {
        let name = format!("ioctl({request:#x})");
        let unknown = Decoded::new(name);
        return match wanted(Way::In) {
            true => unknown.with("arg", Value::Hex(arg)),
            false => unknown,
        };
    };
    let mut call = Decoded::new(row.name);
    match row.argument {
        Argument::None => {}
        Argument::Number(_) if !wanted(Way::In) => {}
        Argument::Number(names) => call = call.with("arg", Value::name(arg, names)),
        Argument::Text if !wanted(Way::In) => {}
        Argument::Text => {
            let end = bytes.iter().position(|byte| *byte == 0);
            let text = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
            let text = String::from_utf8_lossy(text).into_owned();
            call = call.with("name", Value::Text(text));
        }
        Argument::Struct {
            size, fields, tail, ..
        } => {
            if bytes.is_empty() {
                return call.with("arg", Value::Hex(arg));
            }
            let described = fields.iter().filter(|field| wanted(field.way));
            call.fields
                .extend(described.filter_map(|field| field.read(bytes, size)));
            if let Some(tail) = tail {
                tail(bytes, &wanted, &mut call.fields);
            }
        }
    }
    call
}
