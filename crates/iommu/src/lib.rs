//! Floor 2: devices, groups, domains, routes, PASIDs, faults and the DMA port
