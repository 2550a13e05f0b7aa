//! A PCI function at run time.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ioasid_core::{
    inspect::{Inspect, Node},
    sync::{Mutex, MutexGuard},
};
use ioasid_iommu::{Device, Requests};

use super::{
    intx::Intx,
    layout::{Bar, MsixLayout, SriovLayout},
    master::{Followers, Master},
    spec,
    vectors::Vectors,
    watch::{FunctionWatch, Watchers},
};
use crate::{base::error::RegionError, dma::emulated::EmulatedDma};

/// What a write to configuration space asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum ConfigEffect {
    /// Nothing more.
    None,
    /// A function level reset.
    Reset,
}

/// What the builder hands over.
pub(super) struct Parts {
    pub(super) values: Vec<u8>,
    pub(super) writable: Vec<u8>,
    pub(super) host_headers: Vec<(usize, u32)>,
    pub(super) bars: [Option<Bar>; 6],
    pub(super) msix: Option<MsixLayout>,
    pub(super) express: Option<usize>,
    pub(super) power: Option<usize>,
    pub(super) msi: Option<usize>,
    pub(super) sriov: Option<(usize, SriovLayout)>,
    pub(super) is_virtual: bool,
    pub(super) scratch: Vec<Range<usize>>,
    pub(super) vectors: Arc<Vectors>,
}

/// Configuration space, BARs and interrupt vectors of one PCI function.
pub struct Function {
    pub(super) config: Mutex<Config>,
    /// Bits that a program may change, byte by byte.
    pub(super) writable: Vec<u8>,
    host_headers: Vec<(usize, u32)>,
    pub(super) bars: [Option<Bar>; 6],
    msix: Option<MsixLayout>,
    pub(super) express: Option<usize>,
    pub(super) power: Option<usize>,
    msi: Option<usize>,
    pub(super) sriov: Option<(usize, SriovLayout)>,
    is_virtual: bool,
    /// Bytes that no capability describes.
    scratch: Vec<Range<usize>>,
    vectors: Arc<Vectors>,
    intx: Arc<Intx>,
    awake: AtomicBool,
    memory_enabled: AtomicBool,
    pub(super) master: Master,
    pub(super) watchers: Watchers,
}

pub(super) struct Config {
    pub(super) values: Vec<u8>,
    /// What a new user finds.
    pub(super) initial: Vec<u8>,
    /// MSI is enabled by the interrupts' own request, with 2 to this power vectors at most so far.
    msi_enabled: bool,
    msi_given: u8,
    /// Virtual functions are there: the function stays awake.
    pub(super) keeps_awake: bool,
}

impl Function {
    pub(super) fn new(parts: Parts) -> Self {
        // As the bit is at first.
        parts.vectors.close(Duration::ZERO);
        Function {
            config: Mutex::new(Config {
                initial: parts.values.clone(),
                values: parts.values,
                msi_enabled: false,
                msi_given: 0,
                keeps_awake: false,
            }),
            writable: parts.writable,
            host_headers: parts.host_headers,
            bars: parts.bars,
            msix: parts.msix,
            express: parts.express,
            power: parts.power,
            msi: parts.msi,
            sriov: parts.sriov,
            is_virtual: parts.is_virtual,
            scratch: parts.scratch,
            intx: Intx::new(Arc::clone(parts.vectors.injections())),
            vectors: parts.vectors,
            awake: AtomicBool::new(true),
            memory_enabled: AtomicBool::new(true),
            master: Master::new(),
            watchers: Watchers::default(),
        }
    }

    /// Bytes of configuration space: 256, or 4096 with PCI Express.
    pub fn config_size(&self) -> u64 {
        self.writable.len() as u64
    }

    /// BAR `index`, if it exists.
    pub fn bar(&self, index: u8) -> Option<Bar> {
        self.bars.get(usize::from(index)).copied().flatten()
    }

    /// The MSI-X layout, if there is one.
    pub fn msix(&self) -> Option<MsixLayout> {
        self.msix
    }

    /// The interrupt vectors.
    pub fn vectors(&self) -> &Arc<Vectors> {
        &self.vectors
    }

    /// The wired interrupt.
    pub fn intx(&self) -> &Arc<Intx> {
        &self.intx
    }

    /// Whether it has a wired interrupt: the interrupt pin as programs see it.
    pub fn has_intx(&self) -> bool {
        self.byte(spec::INTERRUPT_PIN) != 0
    }

    /// Vectors of MSI: 0 without the capability.
    pub fn msi_count(&self) -> u32 {
        let Some(at) = self.msi else { return 0 };
        // A program may write the field that it sees; the hardware's does not change.
        let config = self.config.lock();
        let control = config.initial.get(at + spec::MSI_CONTROL).copied();
        control.map_or(0, |control| 1 << (control >> spec::MSI_CAPABLE_SHIFT & 7))
    }

    /// Whether it is a virtual function of SR-IOV.
    pub fn is_virtual(&self) -> bool {
        self.is_virtual
    }

    /// Completes atomic operations: bits 7, 8 and 9 of the device capabilities 2, for 32, 64 and 128
    /// bits.
    pub fn atomics(&self) -> u32 {
        const BITS: u32 =
            spec::DEVCAP2_ATOMIC_32 | spec::DEVCAP2_ATOMIC_64 | spec::DEVCAP2_ATOMIC_128;
        let Some(express) = self.express else {
            return 0;
        };
        let config = self.config.lock();
        let at = express + spec::EXPRESS_DEVICE_CAPABILITIES_2;
        let bytes = config.values.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes) & BITS)
    }

    /// Whether it can be reset by itself: a function level reset.
    pub fn has_function_reset(&self) -> bool {
        let at = self
            .express
            .map(|at| at + spec::EXPRESS_DEVICE_CAPABILITIES + 3);
        at.is_some_and(|at| self.byte(at) & (spec::DEVCAP_FLR >> 24) as u8 != 0)
    }

    /// Whether there is a power management capability.
    pub fn has_power_states(&self) -> bool {
        self.power.is_some()
    }

    /// Whether the power state is D0.
    pub fn is_awake(&self) -> bool {
        self.awake.load(Ordering::Acquire)
    }

    pub(super) fn byte(&self, at: usize) -> u8 {
        self.config.lock().values.get(at).copied().unwrap_or(0)
    }

    /// Whether there is a PCI Express capability.
    pub fn is_express(&self) -> bool {
        self.express.is_some()
    }

    /// Whether the BARs answer: `PCI_COMMAND.MEM` is set, which a virtual function does not need, and
    /// the power state is D0.
    pub fn memory_enabled(&self) -> bool {
        self.memory_enabled.load(Ordering::Acquire)
    }

    /// Whether the function may issue memory requests and interrupt messages: `PCI_COMMAND.MASTER` is
    /// set and the power state is D0. What it issues otherwise is withheld; an engine that has something
    /// to do asks first, and learns of a change by [`Function::on_bus_master`].
    pub fn bus_master(&self) -> bool {
        self.master.is_on()
    }

    /// Says that requests of `device` are this function's: they are withheld while it must not issue
    /// any. Nothing happens if that is known already. A whole device of a
    /// [`VfioDevice`](crate::VfioDevice) is known by itself.
    pub fn issues(&self, device: &Arc<Device>, of: Requests) {
        self.master.add_requests(device, of);
    }

    /// Ends that: the requests are nobody's.
    pub(crate) fn issues_no_more(&self, device: &Arc<Device>, of: Requests) {
        self.master.remove_requests(device, of);
    }

    /// Says that what `dma` copies are requests of this function.
    pub(crate) fn issues_copies(&self, dma: &EmulatedDma) {
        self.master.add_copies(dma);
    }

    /// Has `listener` called after each change of [`Function::bus_master`]: engines go on, or those that
    /// wait for them learn that they do not. It must not block, nor touch configuration space.
    pub fn on_bus_master(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.master.add_listener(Box::new(listener));
    }

    /// Lets `watcher` know of every change, as long as it lives.
    pub fn watch(&self, watcher: Weak<dyn FunctionWatch>) {
        self.watchers.add(watcher);
    }

    /// Reports to those that watch that something beside configuration space has changed.
    pub(crate) fn report_change(&self) {
        self.watchers.report();
    }

    /// Reads configuration space as a program sees it.
    ///
    /// # Errors
    /// [`RegionError::BeyondConfig`] if the access passes the end.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) -> Result<(), RegionError> {
        let config = self.config.lock();
        let from = self.config_range(offset, data.len())?;
        data.copy_from_slice(&config.values[from.clone()]);
        for (at, byte) in from.zip(data) {
            if at == spec::STATUS && self.intx.asserted() {
                *byte |= spec::STATUS_INTERRUPT;
            }
            if let Some(pending) = self.msi.map(|msi| msi + spec::MSI_PENDING)
                && let Some(index @ 0..4) = at.checked_sub(pending)
            {
                *byte |= self.vectors.msi_pending().to_le_bytes()[index];
            }
        }
        Ok(())
    }

    /// Writes configuration space as a program may; what it may not write keeps its value. After a
    /// write that clears `PCI_COMMAND.MASTER`, or ends D0, no request of the function is under way: it
    /// may wait for that, so it is not for a thread that a request needs in order to end.
    ///
    /// # Errors
    /// [`RegionError::BeyondConfig`] if the access passes the end; nothing is written then.
    pub fn write_config(&self, offset: u64, data: &[u8]) -> Result<ConfigEffect, RegionError> {
        let followers = self.master.change();
        let mut config = self.config.lock();
        let range = self.config_range(offset, data.len())?;
        let mut effect = ConfigEffect::None;
        let control = self
            .express
            .map(|express| express + spec::EXPRESS_DEVICE_CONTROL + 1);
        let power = self.power.map(|power| power + spec::PM_CONTROL);
        for (at, value) in range.clone().zip(data) {
            if Some(at) == control && value & spec::DEVCTL_FLR_HIGH != 0 {
                effect = ConfigEffect::Reset;
            }
            // The states D1 and D2 do not exist; hardware ignores them. With virtual functions there
            // is D0 alone.
            let state = value & spec::PM_STATE;
            if Some(at) == power && (matches!(state, 1 | 2) || (state != 0 && config.keeps_awake)) {
                continue;
            }
            set_masked(&mut config.values, at, *value, self.writable[at]);
        }
        self.follow_msi_control(&mut config, range);
        self.follow(config, &followers);
        Ok(effect)
    }

    /// Shows in the MSI-X capability whether MSI-X is enabled.
    pub(crate) fn show_msix(&self, enabled: bool) {
        if let Some(msix) = self.msix {
            let mut config = self.config.lock();
            let value = if enabled { spec::MSIX_ENABLE_HIGH } else { 0 };
            let at = msix.capability + spec::MSIX_CONTROL + 1;
            set_masked(&mut config.values, at, value, spec::MSIX_ENABLE_HIGH);
            drop(config);
            self.watchers.report();
        }
    }

    /// MSI was enabled with `vectors`, or disabled with 0, by the interrupts' own request.
    pub(crate) fn enable_msi(&self, vectors: u32) {
        let mut config = self.config.lock();
        config.msi_enabled = vectors > 0;
        if vectors > 0 {
            config.msi_given = vectors.next_power_of_two().trailing_zeros() as u8;
        }
        self.vectors.set_msi(vectors);
        drop(config);
        self.watchers.report();
    }

    /// What a program writes to the control of MSI is what it sees, but it is enabled by SET_IRQS
    /// alone, and never has more vectors than it was given.
    fn follow_msi_control(&self, config: &mut Config, written: Range<usize>) {
        let Some(msi) = self.msi else { return };
        let control = msi + spec::MSI_CONTROL;
        let (enabled, most) = (config.msi_enabled, config.msi_given);
        if written.contains(&control)
            && let Some(control) = config.values.get_mut(control)
        {
            if !enabled {
                *control &= !spec::MSI_ENABLE;
            }
            if (*control & spec::MSI_GIVEN) >> spec::MSI_GIVEN_SHIFT > most {
                *control = *control & !spec::MSI_GIVEN | most << spec::MSI_GIVEN_SHIFT;
            }
        }
        let mask = msi + spec::MSI_MASK;
        if written.start < mask + 4
            && mask < written.end
            && let Some(mask) = config
                .values
                .get(mask..)
                .and_then(|rest| rest.first_chunk())
        {
            self.vectors.set_msi_mask(u32::from_le_bytes(*mask));
        }
    }

    /// Bus mastering off: no request is under way any more, and none starts.
    pub(crate) fn clear_bus_master(&self) {
        let followers = self.master.change();
        let mut config = self.config.lock();
        let mask = spec::COMMAND_MASTER as u8;
        set_masked(&mut config.values, spec::COMMAND, 0, mask);
        self.follow(config, &followers);
    }

    /// The power state is D0, whatever it was (`pci_dev_save_and_disable` and `vfio_pci_set_power_state`
    /// before a reset, `vfio_pci_core_runtime_suspend`). Nothing is reset by that: there is
    /// `No_Soft_Reset`.
    pub(crate) fn power_up(&self) {
        let Some(power) = self.power else { return };
        let followers = self.master.change();
        let mut config = self.config.lock();
        let at = power + spec::PM_CONTROL;
        set_masked(&mut config.values, at, 0, spec::PM_STATE);
        self.follow(config, &followers);
    }

    /// The function has been reset, and its configuration space was saved and restored around that
    /// (`pci_reset_function`): it is in D0, messages that waited are gone, and so is what no capability
    /// describes.
    pub(crate) fn end_reset(&self) {
        self.vectors.forget();
        let mut config = self.config.lock();
        let Config {
            values, initial, ..
        } = &mut *config;
        for range in &self.scratch {
            if let (Some(now), Some(reset)) =
                (values.get_mut(range.clone()), initial.get(range.clone()))
            {
                now.copy_from_slice(reset);
            }
        }
        drop(config);
        self.power_up();
    }

    /// Configuration space as a new user finds it.
    pub(crate) fn restore(&self) {
        let followers = self.master.change();
        let mut config = self.config.lock();
        let Config {
            values, initial, ..
        } = &mut *config;
        values.copy_from_slice(initial);
        (config.msi_enabled, config.msi_given) = (false, 0);
        self.vectors.set_msi_mask(0);
        self.vectors.forget();
        self.follow(config, &followers);
    }

    /// All of configuration space as the host sees it, with the capabilities that programs do not
    /// see.
    pub fn host_config(&self) -> Vec<u8> {
        let (mut values, msi_enabled) = {
            let config = self.config.lock();
            (config.values.clone(), config.msi_enabled)
        };
        if let Some(msi) = self.msi {
            // Whether the interrupts' own request has enabled it, whatever the program wrote.
            let enable = if msi_enabled { spec::MSI_ENABLE } else { 0 };
            set_masked(
                &mut values,
                msi + spec::MSI_CONTROL,
                enable,
                spec::MSI_ENABLE,
            );
        }
        for (offset, header) in &self.host_headers {
            if let Some(bytes) = values.get_mut(*offset..offset + 4) {
                bytes.copy_from_slice(&header.to_le_bytes());
            }
        }
        if self.is_virtual
            && let Some(header) = values.get_mut(..spec::COMMAND + 1)
        {
            // A virtual function has its ids, its memory enable and its BARs in the physical one.
            header[..spec::COMMAND].fill(0xff);
            header[spec::COMMAND] &= !(spec::COMMAND_MEMORY as u8);
            if let Some(bars) = values.get_mut(spec::BAR0..spec::BAR0 + 24) {
                bars.fill(0);
            }
        }
        values
    }

    /// Vendor and device id.
    pub fn ids(&self) -> (u16, u16) {
        let config = self.config.lock();
        let id = |at: usize| u16::from_le_bytes([config.values[at], config.values[at + 1]]);
        (id(spec::VENDOR), id(spec::DEVICE))
    }

    /// Lets the flags that are read without the lock follow the registers, and then, without it, what
    /// the function issues.
    fn follow(&self, config: MutexGuard<'_, Config>, followers: &Followers) {
        let command = u16::from_le_bytes([
            config.values[spec::COMMAND],
            config.values[spec::COMMAND + 1],
        ]);
        let awake = self
            .power
            .is_none_or(|power| config.values[power + spec::PM_CONTROL] & spec::PM_STATE == 0);
        let enabled = self.is_virtual || command & spec::COMMAND_MEMORY != 0;
        self.awake.store(awake, Ordering::Release);
        self.memory_enabled
            .store(awake && enabled, Ordering::Release);
        self.intx
            .set_disabled(command & spec::COMMAND_INTX_DISABLE != 0);
        drop(config);
        let master = awake && command & spec::COMMAND_MASTER != 0;
        self.master.set(followers, &self.vectors, master);
        self.watchers.report();
    }

    fn config_range(&self, offset: u64, len: usize) -> Result<Range<usize>, RegionError> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match start.checked_add(len) {
            Some(end) if end <= self.writable.len() => Ok(start..end),
            _ => Err(RegionError::BeyondConfig {
                offset,
                len: len as u64,
                size: self.config_size(),
            }),
        }
    }
}

pub(super) fn set_masked(values: &mut [u8], at: usize, value: u8, mask: u8) {
    if let Some(byte) = values.get_mut(at) {
        *byte = *byte & !mask | value & mask;
    }
}

impl Inspect for Function {
    fn inspect(&self) -> Node {
        let identity = |at: usize| {
            let config = self.config.lock();
            u64::from(config.values[at]) | u64::from(config.values[at + 1]) << 8
        };
        Node::new()
            .with(
                "vendor",
                ioasid_core::inspect::Value::Hex(identity(spec::VENDOR)),
            )
            .with(
                "device",
                ioasid_core::inspect::Value::Hex(identity(spec::DEVICE)),
            )
            .with("memory_enabled", self.memory_enabled())
            .with("bus_master", self.bus_master())
            .with("vectors", self.vectors.count())
            .with("connected_vectors", self.vectors.connected())
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("bars", &self.bars)
            .field("msix", &self.msix)
            .field("vectors", &self.vectors)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
