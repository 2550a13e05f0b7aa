//! How a large copy is cut into descriptors.

/// Smallest descriptor, bytes.
pub const SMALLEST: u64 = 4 << 10;
/// Largest descriptor, bytes, if the device can do so much in one.
pub const LARGEST: u64 = 1 << 20;

/// The pieces of a copy of `total` bytes: sizes double from 4 KiB to 1 MiB (or to `max_transfer`)
/// and start again, so that every size between is used; the last piece is what is left.
///
/// Each item is (offset, length), in order and without gaps.
pub fn pieces(total: u64, max_transfer: u64) -> impl Iterator<Item = (u64, u64)> {
    let largest = LARGEST.min(max_transfer).max(1);
    let (mut offset, mut size) = (0, SMALLEST.min(largest));
    std::iter::from_fn(move || {
        let len = size.min(total - offset);
        if len == 0 {
            return None;
        }
        let piece = (offset, len);
        offset += len;
        size = if size >= largest {
            SMALLEST.min(largest)
        } else {
            (size * 2).min(largest)
        };
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(total: u64, max_transfer: u64) -> Vec<u64> {
        let mut next = 0;
        let sizes: Vec<u64> = pieces(total, max_transfer)
            .map(|(offset, len)| {
                assert_eq!(offset, next);
                next += len;
                len
            })
            .collect();
        assert_eq!(next, total);
        sizes
    }

    #[test]
    fn every_size_from_4_kib_to_1_mib_is_used() {
        let sizes = check(64 << 20, 2 << 20);
        for shift in 12..=20 {
            assert!(sizes.contains(&(1 << shift)), "{shift}");
        }
        assert!(sizes.iter().all(|&size| size <= 1 << 20));
    }

    #[test]
    fn no_piece_is_larger_than_the_device_can_do() {
        assert!(check(1 << 20, 64 << 10).iter().all(|&s| s <= 64 << 10));
        assert!(check(10_000, 1000).iter().all(|&s| s <= 1000));
        assert!(check(100 << 10, 48 << 10).iter().all(|&s| s <= 48 << 10));
    }

    #[test]
    fn nothing_to_copy_is_no_piece() {
        assert_eq!(pieces(0, 1 << 20).count(), 0);
    }
}
