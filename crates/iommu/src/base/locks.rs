//! The order of this crate's locks: a thread takes them from the top of this list down. Debug builds
//! check it.

use ioasid_core::lock_order::LockClass;

/// The devices of a machine.
pub(crate) static DEVICES: LockClass = LockClass::held_over_barriers("devices of the machine", 10);
/// The routes and the owner of a group.
pub(crate) static GROUP: LockClass = LockClass::new("group", 20);
/// The requests that a device must not issue. Guards take it too, when they find an empty cell.
pub(crate) static WITHHELD: LockClass = LockClass::new("withheld requests", 30);
/// Which directory leaves of a device's routes there are.
pub(crate) static ROUTE_LEAVES: LockClass = LockClass::new("leaves of a route table", 40);
/// The sources that lead to a domain.
pub(crate) static SOURCES: LockClass = LockClass::new("sources of a domain", 40);
/// The handler of a domain's page requests.
pub(crate) static HANDLER: LockClass = LockClass::new("page request handler of a domain", 40);
/// The live domains of a machine.
pub(crate) static LIVE_DOMAINS: LockClass = LockClass::new("domains of the machine", 50);
/// Page requests that wait for an answer.
pub(crate) static PENDING_REQUESTS: LockClass = LockClass::new("pending page requests", 50);
/// The TLB of a device.
pub(crate) static DEVICE_TLB: LockClass = LockClass::new("TLB of a device", 50);
/// The invalidations that the ports of a device have to catch up with. Guards take it.
pub(crate) static INVALIDATIONS: LockClass = LockClass::new("invalidations of a TLB", 60);
