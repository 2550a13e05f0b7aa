//! Floor 1: page-table formats and one generic walker
