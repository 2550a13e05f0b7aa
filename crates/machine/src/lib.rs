//! Floor 6: a machine file becomes a running set of IOMMU, devices, queues and mdevs
