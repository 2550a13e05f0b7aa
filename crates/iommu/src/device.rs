//! Devices: what their DMA is tagged with, and what they can do.

use std::{fmt, sync::Arc};

use ioasid_core::{
    AddrRange, Pasid, PciAddress,
    inspect::{Inspect, Node, Value},
};
use ioasid_pgtable::TableFormat;

use crate::{
    ats::{Ats, DeviceTlb, Tlb},
    bus_master::Withheld,
    dma_api::DmaApi,
    domain::AddressSpace,
    fault::{Fault, FaultLog, FaultSink},
    group::{Group, OwnershipError},
    machine::Shared,
    page_request::{OnAnswer, PageRequest, PageRequestError, PageRequestId},
    port::DmaPort,
    reset::DeviceReset,
    route_table::RouteTable,
    writes::Watchers,
};

/// Why a range of I/O virtual addresses is not for mappings (`enum iommu_resv_type`,
/// include/linux/iommu.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReservedKind {
    /// Must be mapped one to one at all times.
    Direct,
    /// Mapped one to one only while the firmware's driver needs it: ignored for assignment.
    DirectRelaxable,
    /// Must not be used.
    Reserved,
    /// Writes are interrupt messages, in hardware.
    Msi,
    /// Where software maps the interrupt doorbell.
    SoftwareMsi,
}

/// A range of I/O virtual addresses that mappings stay away from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReservedRegion {
    /// The addresses.
    pub range: AddrRange,
    /// Why.
    pub kind: ReservedKind,
}

impl ReservedRegion {
    /// The interrupt window of x86: 0xfee0_0000..=0xfeef_ffff (Intel VT-d specification, 3.14).
    pub fn msi_window() -> Self {
        ReservedRegion {
            range: AddrRange::new(0xfee0_0000, 0xfeef_ffff).expect("start before last"),
            kind: ReservedKind::Msi,
        }
    }
}

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
            reserved: vec![ReservedRegion::msi_window()],
        }
    }
}

/// What a cell of the route table leads to.
pub(crate) struct Attachment {
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) faults: Arc<dyn FaultSink>,
}

/// A device behind the IOMMU. Its DMA goes through [`DmaPort`]s and reaches what is attached at its
/// requester id, or at the PASID that the DMA is tagged with.
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
    reserved: Vec<ReservedRegion>,
    interrupts: Vec<AddrRange>,
    routes: RouteTable,
    faults: Arc<FaultLog>,
    ats: Arc<Ats>,
    watchers: Watchers,
    withheld: Withheld,
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
            reserved: config.reserved,
            interrupts,
            routes: RouteTable::new(&shared.grace, config.pasid_bits),
            faults: Arc::default(),
            ats: Arc::default(),
            watchers: Watchers::default(),
            withheld: Withheld::default(),
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

    /// A port for one engine thread.
    pub fn port(self: &Arc<Self>) -> DmaPort {
        DmaPort::new(Arc::clone(self), self.shared.grace.slot(), None)
    }

    /// A port for one engine thread that keeps translations in `tlb`, which the device was given as
    /// its own ([`Device::enable_ats`]).
    pub fn port_with_tlb(self: &Arc<Self>, tlb: &Arc<Tlb>) -> DmaPort {
        DmaPort::new(Arc::clone(self), self.shared.grace.slot(), Some(tlb))
    }

    /// Whether the device keeps translations.
    pub fn has_ats(&self) -> bool {
        self.ats.is_on()
    }

    /// From now on the device keeps translations in `tlb`: whoever takes one away tells it, and
    /// waits. Before this the device must have kept none.
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

    /// Claims the device for its own driver, which then does its DMA through the DMA API. The
    /// group's default domain becomes the primary domain.
    ///
    /// # Errors
    /// [`OwnershipError::Busy`] if a user owns the group or has attached a domain to it.
    pub fn use_dma_api(self: &Arc<Self>) -> Result<DmaApi, OwnershipError> {
        DmaApi::new(self)
    }

    /// Begins a reset: all DMA of the device is blocked, and attaching to it is refused, until what
    /// this returns is dropped; then the attachments are in force again. When it returns, no DMA of
    /// the device is in flight and no page request of it is open.
    pub fn begin_reset(self: &Arc<Self>) -> DeviceReset {
        DeviceReset::new(self)
    }

    /// The routes of this device and the domains at them: what the driver's default domain and
    /// others attached.
    pub fn attachments(&self) -> Vec<(Option<Pasid>, Arc<crate::Domain>)> {
        self.group.attachments()
    }

    /// Faults of DMA that belongs to nobody else: nothing was attached, or the default domain.
    pub fn fault_log(&self) -> &Arc<FaultLog> {
        &self.faults
    }

    /// Asks whoever manages the address space of a route for the page that `fault` misses.
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
            return Err(PageRequestError::NotRecoverable);
        }
        if !self.page_requests {
            return Err(PageRequestError::NoHandler);
        }
        let (id, handler) = self.group.with_route(fault.pasid, |domain| {
            let domain = domain.ok_or(PageRequestError::NoHandler)?;
            let current = domain.handler().lock();
            let handler = current.as_ref().ok_or(PageRequestError::NoHandler)?;
            let pending = &self.shared.pending;
            let id = pending.insert(self.address, fault.pasid, domain.id(), on_answer)?;
            Ok((id, Arc::clone(handler)))
        })?;
        handler.request(PageRequest {
            id,
            device: self.address,
            pasid: fault.pasid,
            iova: fault.iova & !0xfff,
            access: fault.access,
            group: (id.get() & 0x1ff) as u16,
        });
        Ok(id)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn withheld(&self) -> &Withheld {
        &self.withheld
    }

    pub(crate) fn watchers(&self) -> &Watchers {
        &self.watchers
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
                    .with(
                        "pasid",
                        pasid.map_or(Value::Text("none".into()), |p| p.get().into()),
                    )
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
