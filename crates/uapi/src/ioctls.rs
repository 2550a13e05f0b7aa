//! All ioctls in one list: what `docs/ioctls.md` shows.

use crate::{
    iommufd,
    table::{File, Row},
    vfio,
};

/// The ioctl `request` of a kind of file. On `/dev/iommu` those of a container are found too.
pub fn find(file: File, request: u32) -> Option<Row> {
    let is_it = |row: &Row| row.request == request;
    match file {
        File::Iommufd | File::CompatContainer => iommufd::rows().find(is_it),
        File::Container => vfio::container::rows().find(is_it),
        File::Group => vfio::group::rows().find(is_it),
        File::Device => vfio::rows().find(is_it),
    }
}

/// Every ioctl, by kind and number.
pub fn all() -> Vec<Row> {
    let mut rows: Vec<Row> = iommufd::rows().collect();
    rows.extend(vfio::container::rows());
    rows.extend(vfio::group::rows());
    rows.extend(vfio::rows());
    rows.sort_by_key(|row| (row.file, row.request));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_each_number_once() {
        let rows = all();
        for pair in rows.windows(2) {
            let key = |row: &Row| (row.file, row.request);
            assert!(key(&pair[0]) < key(&pair[1]), "{pair:?}");
        }
    }
}
