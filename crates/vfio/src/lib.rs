//! Floor 4: VFIO devices: whole devices and default-PASID children
