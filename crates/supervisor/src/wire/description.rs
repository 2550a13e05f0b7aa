//! What a program finds of a machine.

use std::collections::BTreeSet;

use ioasid_vfio::{VfioDevice, region::RegionIndex};

use super::messages::Description;
use crate::view::MachineView;

/// What a program of `vm` finds under `/dev` and `/sys`.
pub(crate) fn describe(view: &dyn MachineView, vm: Option<&str>) -> Description {
    let nodes = view.nodes(vm);
    let groups: BTreeSet<u32> = nodes
        .iter()
        .map(|node| node.device.group_number())
        .collect();
    let reach = nodes.iter().map(|node| region_0(&node.device)).max();
    Description {
        reach: reach.unwrap_or(0).max(LEAST_REACH),
        nodes: nodes.into_iter().map(|node| node.name).collect(),
        groups: groups.into_iter().collect(),
        sysfs: view.sysfs(vm),
        status: view.shows_locked_memory(),
        attributes: !view.attributes(vm).is_empty(),
    }
}

/// What region 0 of a device that comes later may have, in bytes.
const LEAST_REACH: u64 = 0x1_0000;

/// The size of a device's region 0 in bytes.
fn region_0(device: &VfioDevice) -> u64 {
    let region = RegionIndex::new(0).and_then(|bar| bar.info(device.model().function(), false));
    region.map_or(0, |info| info.size)
}
