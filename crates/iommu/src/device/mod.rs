//! Devices and their groups: what a device can do, and where its DMA goes.
//!
//! * [`Device`]; [`reserved`]: addresses that its mappings stay away from.
//! * [`group`]: devices that are owned and attached together.
//! * [`route_table`]: the lookup (RID, PASID) -> attachment that each guard does.
//! * [`withheld`]: requests that a device must not issue at present.
//! * [`error`]: why a device could not be added or removed.

use std::{fmt, sync::Arc};

use ioasid_core::{
    AddrRange, Pasid, PciAddress,
    inject::Injections,
    inspect::{Inspect, Node, Value},
    memory::PAGE_SIZE,
    observe::Watch,
};
use ioasid_pgtable::TableFormat;

use self::{route_table::RouteTable, withheld::Withheld};
use crate::{
    base::source_id::SourceId,
    domain::{Domain, shared::Shared},
    events::{
        ats::{Ats, DeviceTlb},
        fault::{DmaRefusal, Fault, FaultLog},
        page_request::{OnAnswer, PageRequest, PageRequestError, PageRequestId},
        writes::WriteSinks,
    },
};

pub(crate) mod error;
pub(crate) mod group;
mod reserved;
pub(crate) mod route_table;
pub(crate) mod withheld;

pub use group::{Group, OwnerId};
pub use reserved::{ReservedKind, ReservedRegion};

/// What a device is made of.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Its address.
    pub address: PciAddress,
    /// Its group; `None` gives it one of its own.
    pub group: Option<Arc<Group>>,
    /// Width of its PASIDs, 1..=20 bits; 0 if it cannot send any.
    pub pasid_bits: u8,
    /// Whether its requests with PASIDs can ask to execute.
    pub pasid_execute: bool,
    /// Whether its requests with PASIDs can be privileged.
    pub pasid_privileged: bool,
    /// The page-table format that its IOMMU walks.
    pub format: TableFormat,
    /// Whether its IOMMU tracks dirty pages.
    pub dirty: bool,
    /// Whether it can ask for pages (PRI).
    pub page_requests: bool,
    /// Whether it is a virtual function (SR-IOV), whose page requests are its physical function's.
    pub virtual_function: bool,
    /// Reserved regions, the interrupt window among them.
    pub reserved: Vec<ReservedRegion>,
}

impl DeviceConfig {
    /// A device at `address` with 20-bit PASIDs and neither of their features, second-stage VT-d
    /// tables, dirty tracking, page requests and the interrupt window of x86, in a group of its own.
    pub fn new(address: PciAddress) -> Self {
        DeviceConfig {
            address,
            group: None,
            pasid_bits: 20,
            pasid_execute: false,
            pasid_privileged: false,
            format: TableFormat::VtdSecondStage,
            dirty: true,
            page_requests: true,
            virtual_function: false,
            reserved: vec![ReservedRegion::msi_window()],
        }
    }
}

/// A device behind the IOMMU. Its DMA goes through [`crate::DmaPort`]s and reaches what is attached at its
/// requester id, or at the PASID that the DMA carries.
pub struct Device {
    id: u32,
    shared: Arc<Shared>,
    group: Arc<Group>,
    address: PciAddress,
    pasid_bits: u8,
    pasid_execute: bool,
    pasid_privileged: bool,
    format: TableFormat,
    dirty: bool,
    page_requests: bool,
    virtual_function: bool,
    reserved: Vec<ReservedRegion>,
    interrupts: Vec<AddrRange>,
    routes: RouteTable,
    faults: Arc<FaultLog>,
    ats: Arc<Ats>,
    write_sinks: WriteSinks,
    withheld: Withheld,
    injections: Injections,
    /// The machine's: one step nearer, as every transfer looks at it.
    watch: Arc<Watch>,
}

impl Device {
    pub(crate) fn new(
        shared: Arc<Shared>,
        id: u32,
        group: Arc<Group>,
        config: DeviceConfig,
    ) -> Arc<Self> {
        let interrupts = config
            .reserved
            .iter()
            .filter(|region| region.kind == ReservedKind::Msi)
            .map(|region| region.range)
            .collect();
        Arc::new(Device {
            id,
            group,
            address: config.address,
            pasid_bits: config.pasid_bits,
            pasid_execute: config.pasid_execute,
            pasid_privileged: config.pasid_privileged,
            format: config.format,
            dirty: config.dirty,
            page_requests: config.page_requests,
            virtual_function: config.virtual_function,
            reserved: config.reserved,
            interrupts,
            routes: RouteTable::new(&shared.grace, config.pasid_bits),
            faults: Arc::default(),
            ats: Arc::default(),
            write_sinks: WriteSinks::default(),
            withheld: Withheld::default(),
            injections: Injections::default(),
            watch: Arc::clone(&shared.watch),
            shared,
        })
    }

    /// The device's address.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// A number of its own, from 1.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The group: the unit of ownership.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// One past the largest PASID that the device can send; 0 if it cannot send any.
    pub fn max_pasids(&self) -> u32 {
        match self.pasid_bits {
            0 => 0,
            bits => 1 << bits,
        }
    }

    /// Width of the device's PASIDs in bits; 0 if it cannot send any.
    pub fn pasid_bits(&self) -> u8 {
        self.pasid_bits
    }

    /// Whether its requests with PASIDs can ask to execute, and can be privileged.
    pub fn pasid_features(&self) -> (bool, bool) {
        (self.pasid_execute, self.pasid_privileged)
    }

    /// Ranges that mappings for this device's requester id stay away from.
    pub fn reserved_regions(&self) -> &[ReservedRegion] {
        &self.reserved
    }

    /// The page-table format of its domains.
    pub fn format(&self) -> TableFormat {
        self.format
    }

    /// Whether domains with dirty tracking can be attached.
    pub fn supports_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether the device can ask for pages.
    pub fn supports_page_requests(&self) -> bool {
        self.page_requests
    }

    /// Whether it is a virtual function.
    pub fn is_virtual_function(&self) -> bool {
        self.virtual_function
    }

    /// Whether the device keeps translations.
    pub fn has_ats(&self) -> bool {
        self.ats.is_on()
    }

    /// From now on the device keeps translations in `tlb`: a change that takes one away invalidates it
    /// there and waits. Before this the device must have kept none.
    pub fn enable_ats(&self, tlb: Arc<dyn DeviceTlb>) {
        self.ats.set(Some(tlb));
    }

    /// The device has dropped what it kept and keeps nothing from now on.
    pub fn disable_ats(&self) {
        self.ats.set(None);
    }

    pub(crate) fn ats(&self) -> &Arc<Ats> {
        &self.ats
    }

    /// The PASIDs of this device that lead to a domain, and the domains: the default domain of its
    /// driver and what was attached. `None` stands for requests without a PASID.
    pub fn attachments(&self) -> Vec<(Option<Pasid>, Arc<Domain>)> {
        self.group.attachments()
    }

    /// Failures of its descriptors that a test asks for.
    pub fn injections(&self) -> &Injections {
        &self.injections
    }

    /// Tells all who want to know that DMA of this device was refused.
    pub(crate) fn tell_refused(&self, refusal: &DmaRefusal) {
        self.shared.watchers.tell(refusal);
    }

    /// Who watches the machine that the device is in.
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Faults that no owner of an attachment gets: nothing was attached, or the default domain.
    pub fn fault_log(&self) -> &Arc<FaultLog> {
        &self.faults
    }

    /// Asks the handler of the domain that `fault` missed in for the page.
    /// `on_answer` runs once, with the answer; [`crate::PageResponse::Success`] means "try again".
    /// To be called with no guard held.
    ///
    /// # Errors
    /// See [`PageRequestError`]; `on_answer` is dropped then and the fault stays what it is.
    pub fn request_page(
        &self,
        fault: &Fault,
        on_answer: OnAnswer,
    ) -> Result<PageRequestId, PageRequestError> {
        if !fault.reason.is_recoverable() {
            return Err(PageRequestError::NotRecoverable {
                reason: fault.reason,
            });
        }
        let at = self.source_id(fault.pasid);
        if !self.page_requests {
            return Err(PageRequestError::Unsupported {
                device: self.address,
            });
        }
        let (id, handler) = self.group.with_route(fault.pasid, |domain| {
            let domain = domain.ok_or(PageRequestError::NotAttached { at })?;
            let current = domain.handler().lock();
            let handler = current.as_ref().ok_or(PageRequestError::NoHandler {
                domain: domain.id(),
            })?;
            let pending = &self.shared.pending;
            let id = pending.insert(at, domain.id(), on_answer)?;
            Ok((id, Arc::clone(handler)))
        })?;
        handler.request(PageRequest {
            id,
            device: self.address,
            pasid: fault.pasid,
            iova: fault.iova & !(PAGE_SIZE - 1),
            access: fault.access,
            group: PageRequest::group_of(id),
        });
        Ok(id)
    }

    /// The name of its requests with `pasid`, or of those without one.
    pub(crate) fn source_id(&self, pasid: Option<Pasid>) -> SourceId {
        SourceId {
            device: self.address,
            pasid,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn withheld(&self) -> &Withheld {
        &self.withheld
    }

    pub(crate) fn write_sinks(&self) -> &WriteSinks {
        &self.write_sinks
    }

    pub(crate) fn routes(&self) -> &RouteTable {
        &self.routes
    }

    pub(crate) fn interrupt_windows(&self) -> &[AddrRange] {
        &self.interrupts
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Inspect for Device {
    fn inspect(&self) -> Node {
        let routes: Vec<Value> = self
            .attachments()
            .into_iter()
            .map(|(pasid, domain)| {
                Node::new()
                    .with("pasid", pasid.map(Pasid::get))
                    .with("domain", domain.id().get())
                    .into()
            })
            .collect();
        Node::new()
            .with("address", self.address.to_string())
            .with("group", self.group.id())
            .with("format", self.format.to_string())
            .with("max_pasids", self.max_pasids())
            .with("routes", Value::List(routes))
            .with("own_faults", self.faults.inspect())
    }
}
