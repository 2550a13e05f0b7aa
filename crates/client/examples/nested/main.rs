//! A program with a guest's page tables: it makes first-stage tables by hand, in its own memory, lets the
//! IOMMU walk them on top of its IOAS, and sees what a DSA reaches through them by RID and by PASID. What no
//! guest does that runs unmodified today: supervisor requests, five levels, page requests, dirty pages.
//!
//! ```sh
//! ioasid run --machine nested.toml -- target/debug/examples/nested shared all
//! ```
//!
//! The first word is the kind of its memory (`shared`: a memfd; `private`: anonymous), the others name what it
//! does (`all` for everything). It prints a line for each thing that is as it should be, `fault 0x71` for each
//! DMA that an IOMMU must have refused for that reason (a number of the VT-d specification, 7.1.3), and
//! `look NAME` where somebody else may look at the machine: it goes on with the next line of its input. The
//! machine must have two whole DSAs with four queues and a mediated one.
#![allow(clippy::print_stdout, reason = "it shows what it did")]

mod access;
mod changes;
mod dsa;
mod guest;
mod host;
mod tables;
mod whole;

use std::error::Error;

use passthrough_client::MemoryKind;

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

/// Fails unless `condition` holds.
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+).into());
        }
    };
}
pub(crate) use check;

type Check = fn(MemoryKind) -> Result;

/// Name, and what it does.
const CHECKS: &[(&str, Check)] = &[
    ("levels", access::levels),
    ("rights", access::rights),
    ("privilege", access::privilege),
    ("tables", access::tables_out_of_reach),
    ("marks", access::marks),
    ("pasids", whole::pasids),
    ("page-requests", changes::page_requests),
    ("dirty", changes::dirty),
    ("invalidation", changes::invalidation),
    ("unmap", changes::unmap),
    ("replace", changes::replace),
    ("lifetimes", whole::lifetimes),
    ("one-domain", whole::one_domain),
];

fn main() -> Result {
    let mut words = std::env::args().skip(1);
    let kind = words.next().ok_or("which memory: shared or private?")?;
    let kind: MemoryKind = kind.parse()?;
    let wanted: Vec<String> = words.collect();
    for (name, check) in CHECKS {
        if wanted.iter().any(|word| word == name || word == "all") {
            check(kind).map_err(|error| format!("{name}: {error}"))?;
            println!("{name}: as it should be");
        }
    }
    Ok(())
}
