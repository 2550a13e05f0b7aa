//! Fields of structs: where they are, what they are called, and the values that are read from them.
//!
//! Every struct of an ioctl describes itself here, once; [`crate::decode`] reads calls with it.

mod field;
mod iommufd;
pub mod names;
mod value;
mod vfio;

pub use field::{Described, Field, Form, Named, Way};
pub(crate) use field::{Tail, described, number, width};
pub use value::{Names, Value};
