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

    fn number(at: usize, len: usize) -> usize {
        let bytes = &IMAGE[at..at + len];
        bytes
            .iter()
            .rev()
            .fold(0, |n, byte| n << 8 | *byte as usize)
    }

    /// Offset and size of the section of this type (ELF-64, `Elf64_Shdr`).
    fn section(kind: usize) -> (usize, usize) {
        let (table, count) = (number(40, 8), number(60, 2));
        let header = (0..count)
            .map(|index| table + 64 * index)
            .find(|header| number(header + 4, 4) == kind);
        header.map_or((0, 0), |at| (number(at + 24, 8), number(at + 32, 8)))
    }

    /// A name that no C library has keeps every program from starting.
    #[test]
    fn the_image_needs_nothing_but_what_every_c_library_has() {
        const KNOWN: [&str; 6] = [
            "memcpy",
            "memmove",
            "memset",
            "memcmp",
            "bcmp",
            "__errno_location",
        ];
        const DYNSYM: usize = 11;
        const STRTAB: usize = 3;
        let (symbols, len) = section(DYNSYM);
        let (names, _) = section(STRTAB);
        assert!(len > 0);
        for symbol in (symbols..symbols + len).step_by(24).skip(1) {
            let name = &IMAGE[names + number(symbol, 4)..];
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            let is_defined = number(symbol + 6, 2) != 0;
            // STB_WEAK: null where no library has it (in glibc before 2.34 `dlsym` has one of its own).
            let is_weak = IMAGE[symbol + 4] >> 4 == 2;
            let is_known = KNOWN.contains(&&*name) || (is_weak && name == "dlsym");
            assert!(is_defined || is_known, "{name}");
        }
    }

    #[test]
    fn the_image_is_a_shared_object_for_this_processor() {
        assert_eq!(IMAGE.get(..4), Some(&b"\x7fELF"[..]));
        // e_type ET_DYN, e_machine EM_X86_64.
        assert_eq!(IMAGE.get(16..20), Some(&[3, 0, 62, 0][..]));
    }
}
