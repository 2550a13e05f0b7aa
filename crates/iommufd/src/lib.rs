//! Floor 3: the iommufd object model: IOAS, areas, pages, HWPT
