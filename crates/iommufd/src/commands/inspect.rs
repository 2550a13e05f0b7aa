//! What inspection shows of a file.

use ioasid_core::inspect::{Inspect, Node, Value};

use crate::file::{context::Context, object::Object};

impl Inspect for Context {
    fn inspect(&self) -> Node {
        let objects = self.objects().all();
        let list = |pick: &dyn Fn(&Object) -> Option<Node>| {
            Value::List(objects.iter().filter_map(pick).map(Value::Node).collect())
        };
        Node::new()
            .with(
                "ioas",
                list(&|object| match object {
                    Object::Ioas(ioas) => Some(ioas.inspect()),
                    _ => None,
                }),
            )
            .with(
                "hwpts",
                list(&|object| match object {
                    Object::Hwpt(hwpt) => Some(hwpt.inspect()),
                    _ => None,
                }),
            )
            .with(
                "devices",
                list(&|object| match object {
                    Object::Device(device) => Some(device.inspect()),
                    _ => None,
                }),
            )
            .with(
                "fault_queues",
                list(&|object| match object {
                    Object::FaultQueue(queue) => Some(queue.inspect()),
                    _ => None,
                }),
            )
            .with(
                "viommus",
                list(&|object| match object {
                    Object::Viommu(viommu) => Some(viommu.inspect()),
                    _ => None,
                }),
            )
    }
}
