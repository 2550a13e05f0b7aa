//! What the object model of `/dev/iommu` promises, each test a claim.
#![allow(unreachable_pub, clippy::unwrap_used)] // One binary of modules, helpers included.

/// The value is one of the pattern's.
macro_rules! assert_matches {
    ($value:expr, $pattern:pat $(, $($message:tt)+)?) => {{
        let value = $value;
        let matches = matches!(&value, $pattern);
        let message: &[String] = &[$(format!($($message)+))?];
        assert!(matches, "{message:?} {value:?} is not {}", stringify!($pattern));
    }};
}

mod accesses;
mod attaching;
mod backend;
mod barrier;
mod cutting;
mod dirty;
mod failing;
mod faults;
mod first_stages;
mod locked;
mod machine;
mod maps;
mod nesting;
mod objects;
mod pinning;
mod program;
mod sharing;
mod virtual_iommus;
