//! Class devices: the nodes of VFIO, and the misc devices (drivers/base/core.c, `device_add`).

use super::{READ_WRITE, SysfsBuilder, VFIO_GROUP_MAJOR, VfioName};

impl SysfsBuilder {
    /// The device `name` of the misc class, whose node is `/dev/NODE` with the permissions `mode`.
    pub(super) fn misc(&mut self, name: &str, number: (u32, u32), node: &str, mode: &str) {
        let path = format!("devices/virtual/misc/{name}");
        let more = format!("DEVMODE={mode}\n");
        self.class_device("misc", name, &path, number, node, &more);
    }

    /// The class device of a group, whose node is `/dev/vfio/GROUP`.
    pub(super) fn vfio_group(&mut self, group: u32) {
        let path = format!("devices/virtual/vfio/{group}");
        let (name, node) = (group.to_string(), format!("vfio/{group}"));
        self.class_device("vfio", &name, &path, (VFIO_GROUP_MAJOR, group), &node, "");
    }

    /// The class device of a device, whose node is `/dev/vfio/devices/vfioN`.
    pub(super) fn vfio_dev(&mut self, device_path: &str, vfio: &VfioName) {
        let VfioName { name, major, minor } = vfio;
        let path = format!("{device_path}/vfio-dev/{name}");
        let node = format!("vfio/devices/{name}");
        self.class_device("vfio-dev", name, &path, (*major, *minor), &node, "");
        self.link(format!("{path}/device"), device_path);
    }

    fn class_device(
        &mut self,
        class: &str,
        name: &str,
        path: &str,
        (major, minor): (u32, u32),
        node: &str,
        more: &str,
    ) {
        self.file(format!("{path}/dev"), format!("{major}:{minor}\n"));
        self.attribute(
            format!("{path}/uevent"),
            READ_WRITE,
            format!("MAJOR={major}\nMINOR={minor}\nDEVNAME={node}\n{more}"),
        );
        self.power(path, "auto", "unsupported");
        self.link(format!("{path}/subsystem"), &format!("class/{class}"));
        self.link(format!("class/{class}/{name}"), path);
        self.link(format!("dev/char/{major}:{minor}"), path);
    }
}
