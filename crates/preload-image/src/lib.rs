//! Floor 7: the library that runs inside of programs ([`crates/preload`]), as bytes.
//!
//! The build script has built it as a shared library, so that an executable that holds this crate
//! brings it along and needs no other file.
//!
//! [`crates/preload`]: https://github.com/ioasid/ioasid/tree/main/crates/preload

#![forbid(unsafe_code)]

/// An ELF shared object for x86-64 Linux. It needs no other library.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libioasid_preload.so"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_a_shared_object_for_this_processor() {
        assert_eq!(IMAGE.get(..4), Some(&b"\x7fELF"[..]));
        // e_type ET_DYN, e_machine EM_X86_64.
        assert_eq!(IMAGE.get(16..20), Some(&[3, 0, 62, 0][..]));
    }
}
