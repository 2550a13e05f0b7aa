//! The processors near a device: with no NUMA node of its own, all that are online.

use std::fmt::Write as _;

/// Processors, as attributes of sysfs show them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus {
    /// As ranges: `0-3,8`.
    pub(crate) list: String,
    /// As a bitmap of all processors that there can be: `f`, or `1,0000010f`.
    pub(crate) mask: String,
}

impl Default for Cpus {
    fn default() -> Self {
        Cpus::new("0", "0").expect("one processor")
    }
}

impl Cpus {
    /// The processors of the list `online`, of those of `possible` (`/sys/devices/system/cpu/`). `None`
    /// for what is no list, or names a processor beyond 65535.
    pub(crate) fn new(online: &str, possible: &str) -> Option<Self> {
        let online = online.trim();
        let ranges = parse(online)?;
        let last = |ranges: &[(usize, usize)]| ranges.iter().map(|range| range.1).max();
        let most = last(&ranges)?.max(last(&parse(possible)?)?);
        let mut words = vec![0_u32; most / 32 + 1];
        for (first, last) in ranges {
            for cpu in first..=last {
                *words.get_mut(cpu / 32)? |= 1 << (cpu % 32);
            }
        }
        // The first word has the digits that its processors need (`lib/vsprintf.c`, bitmap_string).
        let mut digits = (most % 32 + 4) / 4;
        let mut mask = String::new();
        for word in words.iter().rev() {
            let comma = if mask.is_empty() { "" } else { "," };
            let _ = write!(mask, "{comma}{word:0digits$x}");
            digits = 8;
        }
        Some(Cpus {
            list: online.to_owned(),
            mask,
        })
    }
}

fn parse(list: &str) -> Option<Vec<(usize, usize)>> {
    let ranges = list.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last && last <= 0xffff).then_some((first, last))
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_a_bit_for_each_processor_that_there_can_be() {
        for (online, possible, mask) in [
            ("0", "0", "1"),
            ("0-1\n", "0-1\n", "3"),
            ("0-3", "0-4", "0f"),
            ("0,2", "0-15", "0005"),
            ("0-31", "0-31", "ffffffff"),
            ("0-32", "0-32", "1,ffffffff"),
            ("0-1,40", "0-63", "00000100,00000003"),
        ] {
            let cpus = Cpus::new(online, possible).unwrap();
            assert_eq!(cpus.mask, mask, "{online} of {possible}");
            assert_eq!(cpus.list, online.trim());
        }
        for bad in ["", "x", "3-1", "0-99999999", "0,,1"] {
            assert_eq!(Cpus::new(bad, "0-3"), None, "{bad:?}");
        }
    }
}
