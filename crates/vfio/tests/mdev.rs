//! Creating and removing mediated devices by UUID.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use common::{Example, Machine};
use ioasid_iommu::Device;
use ioasid_vfio::{
    Passthrough,
    error::{BindError, MdevError, UuidError},
    mdev::{MdevChild, MdevParent, MdevRegistry, MdevType, Uuid},
};

const FIRST: &[u8] = b"5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01\n";
const SECOND: &[u8] = b"5F2E6A9E-93A1-4F0A-9B3E-3D8F0C1B2A02";
const THIRD: &[u8] = b"5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a03";
const NO_PATIENCE: Duration = Duration::ZERO;

/// A parent with two queues of the type `example-queue`.
struct Parent {
    machine: Machine,
    name: &'static str,
    dma: Arc<Device>,
    free: AtomicU32,
}

impl std::fmt::Debug for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl MdevParent for Parent {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn types(&self) -> Vec<MdevType> {
        vec![MdevType {
            id: "example-queue".to_owned(),
            name: "queue".to_owned(),
            description: None,
        }]
    }

    fn available_instances(&self, _id: &str) -> u32 {
        self.free.load(Ordering::SeqCst)
    }

    fn create(&self, _id: &str, _uuid: Uuid) -> Result<MdevChild, MdevError> {
        self.free.fetch_sub(1, Ordering::SeqCst);
        Ok(MdevChild {
            model: Example::new(&self.machine.journal),
            passthrough: Passthrough::Child(self.machine.child_pasid(&self.dma, 1)),
        })
    }

    fn remove(&self, _uuid: Uuid) {
        self.free.fetch_add(1, Ordering::SeqCst);
    }
}

fn registry(name: &'static str) -> (Arc<MdevRegistry>, Arc<Parent>) {
    let machine = Machine::new();
    let registry = MdevRegistry::new(&machine.vfio);
    let parent = Arc::new(Parent {
        dma: machine.dma(name),
        machine,
        name,
        free: AtomicU32::new(2),
    });
    registry.add_parent(parent.clone());
    (registry, parent)
}

const PARENT: &str = "0000:6a:01.0";

#[test]
fn create_says_what_the_kernel_says_in_its_order() {
    let (registry, _parent) = registry(PARENT);
    let create = |uuid| registry.create(PARENT, "example-queue", uuid);
    let uuid = |text: &[u8]| Uuid::from_create(text).unwrap();
    let instance = |type_id: &str| (PARENT.to_owned(), type_id.to_owned());
    let length = MdevError::Uuid(UuidError::Length(8));
    assert_eq!(create(b"nonsense").unwrap_err(), length);
    let first = create(FIRST).unwrap();
    assert_eq!(first.device().name(), "vfio0");
    let exists = MdevError::Exists { uuid: uuid(FIRST) };
    assert_eq!(create(FIRST).unwrap_err(), exists);
    create(SECOND).unwrap();
    let (parent, type_id) = instance("example-queue");
    let none = MdevError::NoInstance { parent, type_id };
    assert_eq!(create(THIRD).unwrap_err(), none);
    assert_eq!(create(FIRST).unwrap_err(), exists, "before EUSERS");
    let no_type = registry.create(PARENT, "example-other", THIRD);
    let (parent, type_id) = instance("example-other");
    let no_such = MdevError::NoSuchType { parent, type_id };
    assert_eq!(no_type.unwrap_err(), no_such);
    let names: Vec<String> = registry
        .list()
        .iter()
        .map(|m| m.uuid().to_string())
        .collect();
    assert_eq!(names[1], "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a02");
}

#[test]
fn a_removed_child_gives_its_uuid_instance_and_number_back() {
    let (registry, parent) = registry(PARENT);
    let first = registry.create(PARENT, "example-queue", FIRST).unwrap();
    registry.create(PARENT, "example-queue", SECOND).unwrap();
    let uuid = first.uuid();
    registry.remove(uuid, NO_PATIENCE).unwrap();
    assert_eq!(
        registry.remove(uuid, NO_PATIENCE),
        Err(MdevError::NotFound { uuid })
    );
    assert_eq!(parent.available_instances("example-queue"), 1);
    assert_eq!(first.device().open().unwrap_err(), BindError::Gone);
    let again = registry.create(PARENT, "example-queue", FIRST).unwrap();
    assert_eq!(again.device().name(), "vfio0");
}

#[test]
fn a_child_in_use_stays_until_its_user_lets_go() {
    let (registry, _parent) = registry(PARENT);
    let mdev = registry.create(PARENT, "example-queue", FIRST).unwrap();
    let file = mdev.device().open().unwrap();
    let uuid = mdev.uuid();
    let refused = registry.remove(uuid, NO_PATIENCE);
    assert_eq!(refused, Err(BindError::StillOpen { open: 1 }.into()));
    assert!(registry.find(uuid).is_some());
    assert!(mdev.device().open().is_ok(), "it can be opened again");
    file.close();
    registry.remove(uuid, NO_PATIENCE).unwrap();
}

#[test]
fn removal_waits_for_the_last_close() {
    let (registry, _parent) = registry(PARENT);
    let mdev = registry.create(PARENT, "example-queue", FIRST).unwrap();
    let file = mdev.device().open().unwrap();
    let uuid = mdev.uuid();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| registry.remove(uuid, Duration::from_secs(600)));
        // Once the device refuses to be opened, the removal is waiting.
        while mdev.device().open().is_ok() {
            std::thread::yield_now();
        }
        assert!(registry.find(uuid).is_some());
        file.close();
        assert_eq!(removal.join().unwrap(), Ok(()));
    });
    assert!(registry.list().is_empty());
}

#[test]
fn a_parent_goes_after_its_children() {
    let (registry, parent) = registry(PARENT);
    let first = registry.create(PARENT, "example-queue", FIRST).unwrap();
    registry.create(PARENT, "example-queue", SECOND).unwrap();
    let file = first.device().open().unwrap();
    let refused = registry.remove_parent(PARENT, NO_PATIENCE);
    assert_eq!(refused, Err(BindError::StillOpen { open: 1 }.into()));
    assert_eq!(registry.list().len(), 1, "the unused child is gone");
    file.close();
    registry.remove_parent(PARENT, NO_PATIENCE).unwrap();
    assert!(registry.list().is_empty() && registry.parents().is_empty());
    assert_eq!(parent.available_instances("example-queue"), 2);
    let gone = registry.remove_parent(PARENT, NO_PATIENCE);
    let parent = PARENT.to_owned();
    assert_eq!(gone, Err(MdevError::ParentGone { parent }));
}
