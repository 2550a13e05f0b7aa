//! The five interrupt indexes of a PCI device and the rules of SET_IRQS
//! (`drivers/vfio/pci/vfio_pci_intrs.c`).
//!
//! INTx, MSI and MSI-X exclude each other: one of them is enabled at a time.

use std::sync::Arc;

use ioasid_core::{
    host::{EventfdWatch, FdError, IrqSink},
    sync::Mutex,
};

pub use crate::base::abi::{IrqAction, IrqIndex};
use crate::{
    base::error::IrqError,
    pci::{Function, Intx, Vectors},
};

/// Number of interrupt indexes of a PCI device.
pub const IRQ_INDEXES: u32 = 5;

impl IrqIndex {
    /// The index `number`.
    ///
    /// # Errors
    /// [`IrqError::NoSuchIndex`] from [`IRQ_INDEXES`] on.
    pub fn new(number: u32) -> Result<Self, IrqError> {
        match number {
            0 => Ok(IrqIndex::Intx),
            1 => Ok(IrqIndex::Msi),
            2 => Ok(IrqIndex::Msix),
            3 => Ok(IrqIndex::Error),
            4 => Ok(IrqIndex::Request),
            index => Err(IrqError::NoSuchIndex { index }),
        }
    }

    /// Vectors that `function` has at this index.
    pub fn count(self, function: &Function) -> u32 {
        match self {
            IrqIndex::Intx => u32::from(function.has_intx()),
            IrqIndex::Msi => function.msi_count(),
            IrqIndex::Msix => function.msix().map_or(0, |msix| msix.count.into()),
            IrqIndex::Error => u32::from(function.is_express()),
            IrqIndex::Request => 1,
        }
    }

    /// What IRQ_INFO says about this index.
    ///
    /// # Errors
    /// [`IrqError::Absent`] for [`IrqIndex::Error`] on a function that is not PCI Express.
    pub fn info(self, function: &Function) -> Result<IrqInfo, IrqError> {
        let count = self.count(function);
        let dynamic = self == IrqIndex::Msix && count > 0;
        if self == IrqIndex::Error && count == 0 {
            return Err(IrqError::Absent { index: self });
        }
        Ok(IrqInfo {
            count,
            maskable: self == IrqIndex::Intx,
            automasked: self == IrqIndex::Intx,
            no_resize: !dynamic && self != IrqIndex::Intx,
        })
    }
}

/// What IRQ_INFO says. Every index can be signalled by eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// Vectors.
    pub count: u32,
    /// Vectors can be masked.
    pub maskable: bool,
    /// A vector masks itself when it fires.
    pub automasked: bool,
    /// The set of vectors is fixed once one is enabled.
    pub no_resize: bool,
}

/// One eventfd of a request, already looked up.
#[derive(Clone, Debug)]
pub enum Eventfd {
    /// An eventfd.
    Sink(Arc<dyn IrqSink>),
    /// The number -1: none.
    None,
    /// A number below -1.
    Negative,
    /// A file that is of no use.
    Unusable(FdError),
}

/// The data of a request, one element per vector.
#[derive(Clone, Debug)]
pub enum IrqData {
    /// None: all vectors of the request alike.
    None,
    /// Which of the vectors.
    Bools(Vec<bool>),
    /// Where their signals go.
    Eventfds(Vec<Eventfd>),
}

/// One SET_IRQS request.
#[derive(Clone, Debug)]
pub struct SetIrqs {
    /// Interrupt index.
    pub index: IrqIndex,
    /// What to do.
    pub action: IrqAction,
    /// First vector.
    pub start: u32,
    /// Number of vectors. Equal to the number of data elements, if there are any.
    pub count: u32,
    /// The data.
    pub data: IrqData,
}

/// Which interrupts of one device are connected.
#[derive(Debug, Default)]
pub struct Interrupts {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    enabled: Enabled,
    /// The eventfd that unmasks INTx.
    unmask: Option<Box<dyn EventfdWatch>>,
    error: Option<Arc<dyn IrqSink>>,
    request: Option<Arc<dyn IrqSink>>,
}

/// Which of the indexes that exclude each other is enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Enabled {
    #[default]
    None,
    Intx,
    /// With this number of vectors: there are no more while it is enabled.
    Msi(u32),
    /// Vectors come and go.
    Msix,
}

impl Enabled {
    fn index(self) -> Option<IrqIndex> {
        match self {
            Enabled::None => None,
            Enabled::Intx => Some(IrqIndex::Intx),
            Enabled::Msi(_) => Some(IrqIndex::Msi),
            Enabled::Msix => Some(IrqIndex::Msix),
        }
    }
}

/// What an eventfd does that unmasks INTx.
#[derive(Debug)]
struct Unmask(Arc<Intx>);

impl IrqSink for Unmask {
    fn signal(&self) {
        self.0.unmask();
    }
}

impl Interrupts {
    /// Carries out `request` on `function`.
    ///
    /// # Errors
    /// The [`IrqError`] of the rule that the request breaks. The vectors of a request that fails
    /// half-way are disconnected.
    pub fn set(&self, function: &Function, request: &SetIrqs) -> Result<(), IrqError> {
        let &SetIrqs {
            index,
            action,
            start,
            count,
            ..
        } = request;
        let end = start.checked_add(count);
        let available = index.count(function);
        if start >= available || end.is_none_or(|end| end > available) {
            return Err(IrqError::NoSuchVectors {
                index,
                start,
                count,
                available,
            });
        }
        let elements = match &request.data {
            IrqData::None => count as usize,
            IrqData::Bools(bools) => bools.len(),
            IrqData::Eventfds(fds) => fds.len(),
        };
        if elements != count as usize {
            return Err(IrqError::DataCount { elements, count });
        }
        let mut state = self.state.lock();
        match (index, action) {
            (IrqIndex::Intx, IrqAction::Trigger) => state.trigger_intx(function, request),
            (IrqIndex::Intx, action) => state.mask_intx(function, action, request),
            (IrqIndex::Msi | IrqIndex::Msix, IrqAction::Trigger) => {
                state.trigger_vectors(function, request)
            }
            (IrqIndex::Error, IrqAction::Trigger) => {
                set_single(index, &mut state.error, &request.data, count)
            }
            (IrqIndex::Request, IrqAction::Trigger) => {
                set_single(index, &mut state.request, &request.data, count)
            }
            _ => Err(IrqError::NoSuchAction { index, action }),
        }
    }

    /// Lets an eventfd unmask INTx, which `watch` finds; or no eventfd any more, for `None`.
    ///
    /// # Errors
    /// [`IrqError::NotEnabled`], the error of `watch`, and [`IrqError::UnmaskedAlready`].
    pub fn unmask_by<W>(&self, function: &Function, watch: Option<W>) -> Result<(), IrqError>
    where
        W: FnOnce(Arc<dyn IrqSink>) -> Result<Box<dyn EventfdWatch>, FdError>,
    {
        let mut state = self.state.lock();
        if state.enabled != Enabled::Intx {
            let index = IrqIndex::Intx;
            return Err(IrqError::NotEnabled { index });
        }
        let Some(watch) = watch else {
            state.unmask = None;
            return Ok(());
        };
        let listener = Arc::new(Unmask(Arc::clone(function.intx())));
        let watch = watch(listener).map_err(|error| IrqError::Eventfd { vector: 0, error })?;
        if state.unmask.is_some() {
            return Err(IrqError::UnmaskedAlready);
        }
        state.unmask = Some(watch);
        Ok(())
    }

    /// Asks the user to give the device back.
    pub fn request_release(&self) {
        if let Some(sink) = &self.state.lock().request {
            sink.signal();
        }
    }

    /// Reports an uncorrectable error of the device to the user.
    pub fn report_error(&self) {
        if let Some(sink) = &self.state.lock().error {
            sink.signal();
        }
    }

    /// Disconnects everything.
    pub fn clear(&self, function: &Function) {
        let mut state = self.state.lock();
        state.disable(function);
        *state = State::default();
    }

    /// Whether MSI-X is enabled.
    pub fn msix_enabled(&self) -> bool {
        self.state.lock().enabled == Enabled::Msix
    }
}

impl State {
    /// Turns off the index that is enabled.
    fn disable(&mut self, function: &Function) {
        match self.enabled {
            Enabled::None => {}
            Enabled::Intx => {
                self.unmask = None;
                function.intx().disable();
            }
            Enabled::Msi(_) => {
                function.vectors().disconnect_all();
                function.enable_msi(0);
            }
            Enabled::Msix => {
                function.vectors().disconnect_all();
                function.show_msix(false);
            }
        }
        self.enabled = Enabled::None;
    }

    /// Whether the index is on, which it can only be if none of the others is.
    fn expect_no_other(&self, index: IrqIndex) -> Result<bool, IrqError> {
        match self.enabled.index() {
            None => Ok(false),
            Some(enabled) if enabled == index => Ok(true),
            Some(enabled) => Err(IrqError::OtherEnabled { index, enabled }),
        }
    }

    fn trigger_intx(&mut self, function: &Function, request: &SetIrqs) -> Result<(), IrqError> {
        let index = IrqIndex::Intx;
        let on = self.enabled == Enabled::Intx;
        if on && request.count == 0 && matches!(request.data, IrqData::None) {
            self.disable(function);
            return Ok(());
        }
        self.expect_no_other(index)?;
        expect_one_vector(request)?;
        let fire = match &request.data {
            IrqData::Eventfds(fds) => {
                let sink = match fds.first() {
                    Some(Eventfd::Sink(sink)) => Some(Arc::clone(sink)),
                    Some(Eventfd::Unusable(error)) => return Err(unusable(0, *error)),
                    Some(Eventfd::None | Eventfd::Negative) | None => None,
                };
                function.intx().enable(sink);
                self.enabled = Enabled::Intx;
                return Ok(());
            }
            _ if !on => return Err(IrqError::NotEnabled { index }),
            IrqData::None => true,
            IrqData::Bools(bools) => bools.first() == Some(&true),
        };
        if fire {
            function.intx().trigger();
        }
        Ok(())
    }

    fn mask_intx(
        &mut self,
        function: &Function,
        action: IrqAction,
        request: &SetIrqs,
    ) -> Result<(), IrqError> {
        let index = IrqIndex::Intx;
        if self.enabled != Enabled::Intx {
            return Err(IrqError::NotEnabled { index });
        }
        expect_one_vector(request)?;
        let act = match &request.data {
            IrqData::None => true,
            IrqData::Bools(bools) => bools.first() == Some(&true),
            // Unmasking by eventfd is [`Interrupts::unmask_by`]; there is no masking by one.
            IrqData::Eventfds(_) => return Err(IrqError::NoSuchAction { index, action }),
        };
        match action {
            IrqAction::Mask if act => function.intx().mask(),
            IrqAction::Unmask if act => function.intx().unmask(),
            _ => {}
        }
        Ok(())
    }

    fn trigger_vectors(&mut self, function: &Function, request: &SetIrqs) -> Result<(), IrqError> {
        let index = request.index;
        let vectors = function.vectors();
        if self.enabled.index() == Some(index)
            && request.count == 0
            && matches!(request.data, IrqData::None)
        {
            self.disable(function);
            return Ok(());
        }
        let on = self.expect_no_other(index)?;
        let range = request.start..request.start + request.count;
        let fds = match &request.data {
            IrqData::Eventfds(fds) => fds,
            _ if !on => return Err(IrqError::NotEnabled { index }),
            IrqData::None => {
                range.for_each(|vector| vectors.trigger(vector));
                return Ok(());
            }
            IrqData::Bools(bools) => {
                for (vector, _) in range.zip(bools).filter(|(_, fire)| **fire) {
                    vectors.trigger(vector);
                }
                return Ok(());
            }
        };
        if on {
            let end = match self.enabled {
                Enabled::Msi(given) => given,
                _ => u32::MAX,
            };
            return connect(vectors, request.start, end, fds);
        }
        // `__pci_enable_msix_range` looks at the count first, `__pci_enable_msi_range` at the power
        // state.
        let asleep = !function.is_awake();
        if asleep && index == IrqIndex::Msi {
            return Err(IrqError::Asleep { index });
        }
        if range.end == 0 {
            return Err(IrqError::NoVectors { index });
        }
        if asleep {
            return Err(IrqError::Asleep { index });
        }
        if index == IrqIndex::Msi {
            self.enabled = Enabled::Msi(range.end);
            function.enable_msi(range.end);
        } else {
            self.enabled = Enabled::Msix;
            function.show_msix(true);
        }
        let connected = connect(vectors, request.start, u32::MAX, fds);
        connected.inspect_err(|_| self.disable(function))
    }
}

fn expect_one_vector(request: &SetIrqs) -> Result<(), IrqError> {
    let (index, count) = (request.index, request.count);
    match count {
        1 => Ok(()),
        _ => Err(IrqError::NotOneVector { index, count }),
    }
}

fn unusable(vector: u32, error: FdError) -> IrqError {
    IrqError::Eventfd { vector, error }
}

/// Connects vectors from `start` on, as far as there are any before `end`; on a bad one disconnects
/// those of this call.
fn connect(vectors: &Vectors, start: u32, end: u32, fds: &[Eventfd]) -> Result<(), IrqError> {
    for (vector, fd) in (start..).zip(fds) {
        let error = match fd {
            Eventfd::None | Eventfd::Negative => {
                vectors.connect(vector, None);
                continue;
            }
            _ if vector >= end => IrqError::BeyondEnabled {
                vector,
                enabled: end,
            },
            Eventfd::Sink(sink) => {
                vectors.connect(vector, Some(Arc::clone(sink)));
                continue;
            }
            Eventfd::Unusable(error) => unusable(vector, *error),
        };
        (start..=vector).for_each(|vector| vectors.connect(vector, None));
        return Err(error);
    }
    Ok(())
}

/// The rules of the indexes with one trigger and no vector behind it.
fn set_single(
    index: IrqIndex,
    trigger: &mut Option<Arc<dyn IrqSink>>,
    data: &IrqData,
    count: u32,
) -> Result<(), IrqError> {
    let no_eventfd = IrqError::NoEventfd { index };
    match data {
        IrqData::None => match (count, &trigger) {
            (_, None) => return Err(no_eventfd),
            (0, Some(_)) => *trigger = None,
            (_, Some(sink)) => sink.signal(),
        },
        IrqData::Bools(bools) => match (bools.first(), trigger) {
            (None, _) => return Err(IrqError::DataCount { elements: 0, count }),
            (Some(true), Some(sink)) => sink.signal(),
            _ => {}
        },
        IrqData::Eventfds(fds) => match fds.first() {
            Some(Eventfd::Sink(sink)) => *trigger = Some(Arc::clone(sink)),
            Some(Eventfd::None) => *trigger = None,
            Some(Eventfd::Unusable(error)) => return Err(unusable(0, *error)),
            Some(Eventfd::Negative) | None => return Err(no_eventfd),
        },
    }
    Ok(())
}

#[cfg(test)]
mod tests;
