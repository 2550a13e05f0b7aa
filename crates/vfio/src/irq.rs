//! The five interrupt indexes of a PCI device and the rules of SET_IRQS
//! (`drivers/vfio/pci/vfio_pci_intrs.c`).
//!
//! INTx, MSI and MSI-X exclude each other: one of them is enabled at a time.

use std::sync::Arc;

use ioasid_core::{
    host::{EventfdWatch, FdError, IrqSink},
    sync::Mutex,
};

use crate::{
    error::{Error, Result},
    pci::{Function, Intx, Vectors},
};

/// Number of interrupt indexes of a PCI device.
pub const IRQ_INDEXES: u32 = 5;

/// An interrupt index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum IrqIndex {
    /// The wired interrupt.
    Intx = 0,
    /// Message signalled interrupts.
    Msi = 1,
    /// Message signalled interrupts with a table.
    Msix = 2,
    /// An uncorrectable error of the device.
    Error = 3,
    /// The host asks for the device back.
    Request = 4,
}

impl IrqIndex {
    /// The index `number`.
    ///
    /// # Errors
    /// [`Error::NoSuchIndex`] from [`IRQ_INDEXES`] on.
    pub fn new(number: u32) -> Result<Self> {
        match number {
            0 => Ok(IrqIndex::Intx),
            1 => Ok(IrqIndex::Msi),
            2 => Ok(IrqIndex::Msix),
            3 => Ok(IrqIndex::Error),
            4 => Ok(IrqIndex::Request),
            _ => Err(Error::NoSuchIndex),
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
    /// [`Error::NoSuchIndex`] for [`IrqIndex::Error`] on a function that is not PCI Express.
    pub fn info(self, function: &Function) -> Result<IrqInfo> {
        let count = self.count(function);
        let dynamic = self == IrqIndex::Msix && count > 0;
        if self == IrqIndex::Error && count == 0 {
            return Err(Error::NoSuchIndex);
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

/// What to do with vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Mask.
    Mask,
    /// Unmask.
    Unmask,
    /// Connect, disconnect or fire the trigger.
    Trigger,
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
    /// With so many vectors: no more can be had while it is on.
    Msi(u32),
    /// Vectors come and go.
    Msix,
}

impl Enabled {
    fn is(self, index: IrqIndex) -> bool {
        matches!(
            (self, index),
            (Enabled::Intx, IrqIndex::Intx)
                | (Enabled::Msi(_), IrqIndex::Msi)
                | (Enabled::Msix, IrqIndex::Msix)
        )
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
    /// [`Error::BadIrqRequest`] if it does not fit the index or its state, or another index is
    /// enabled; [`Error::NoSuchIrqAction`] if the index does not know the action,
    /// [`Error::NoVectors`] if MSI or MSI-X is to be enabled with no vector, [`Error::Eventfd`] for a
    /// bad file descriptor. The vectors of a request that fails half-way are disconnected.
    pub fn set(&self, function: &Function, request: &SetIrqs) -> Result<()> {
        let end = request.start.checked_add(request.count);
        let available = request.index.count(function);
        if request.start >= available || end.is_none_or(|end| end > available) {
            return Err(Error::BadIrqRequest);
        }
        let elements = match &request.data {
            IrqData::None => request.count as usize,
            IrqData::Bools(bools) => bools.len(),
            IrqData::Eventfds(fds) => fds.len(),
        };
        if elements != request.count as usize {
            return Err(Error::BadIrqRequest);
        }
        let mut state = self.state.lock();
        match (request.index, request.action) {
            (IrqIndex::Intx, IrqAction::Trigger) => state.trigger_intx(function, request),
            (IrqIndex::Intx, action) => state.mask_intx(function, action, request),
            (IrqIndex::Msi | IrqIndex::Msix, IrqAction::Trigger) => {
                state.trigger_vectors(function, request)
            }
            (IrqIndex::Error, IrqAction::Trigger) => {
                set_single(&mut state.error, &request.data, request.count)
            }
            (IrqIndex::Request, IrqAction::Trigger) => {
                set_single(&mut state.request, &request.data, request.count)
            }
            _ => Err(Error::NoSuchIrqAction),
        }
    }

    /// Lets an eventfd unmask INTx, which `watch` finds; or no eventfd any more, for `None`.
    ///
    /// # Errors
    /// [`Error::BadIrqRequest`] while INTx is not enabled, the error of `watch`, and
    /// [`Error::UnmaskedAlready`].
    pub fn unmask_by<W>(&self, function: &Function, watch: Option<W>) -> Result<()>
    where
        W: FnOnce(Arc<dyn IrqSink>) -> std::result::Result<Box<dyn EventfdWatch>, FdError>,
    {
        let mut state = self.state.lock();
        if state.enabled != Enabled::Intx {
            return Err(Error::BadIrqRequest);
        }
        let Some(watch) = watch else {
            state.unmask = None;
            return Ok(());
        };
        let listener = Arc::new(Unmask(Arc::clone(function.intx())));
        let watch = watch(listener).map_err(Error::Eventfd)?;
        if state.unmask.is_some() {
            return Err(Error::UnmaskedAlready);
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

    /// Tells the user that the device had an uncorrectable error.
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
    fn expect_no_other(&self, index: IrqIndex) -> Result<bool> {
        match self.enabled {
            Enabled::None => Ok(false),
            enabled if enabled.is(index) => Ok(true),
            _ => Err(Error::BadIrqRequest),
        }
    }

    fn trigger_intx(&mut self, function: &Function, request: &SetIrqs) -> Result<()> {
        let on = self.enabled == Enabled::Intx;
        if on && request.count == 0 && matches!(request.data, IrqData::None) {
            self.disable(function);
            return Ok(());
        }
        self.expect_no_other(IrqIndex::Intx)?;
        if request.count != 1 {
            return Err(Error::BadIrqRequest);
        }
        let fire = match &request.data {
            IrqData::Eventfds(fds) => {
                let sink = match fds.first() {
                    Some(Eventfd::Sink(sink)) => Some(Arc::clone(sink)),
                    Some(Eventfd::Unusable(error)) => return Err(Error::Eventfd(*error)),
                    Some(Eventfd::None | Eventfd::Negative) | None => None,
                };
                function.intx().enable(sink);
                self.enabled = Enabled::Intx;
                return Ok(());
            }
            _ if !on => return Err(Error::BadIrqRequest),
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
    ) -> Result<()> {
        if self.enabled != Enabled::Intx || request.count != 1 {
            return Err(Error::BadIrqRequest);
        }
        let act = match &request.data {
            IrqData::None => true,
            IrqData::Bools(bools) => bools.first() == Some(&true),
            // Unmasking by eventfd is [`Interrupts::unmask_by`]; there is no masking by one.
            IrqData::Eventfds(_) => return Err(Error::NoSuchIrqAction),
        };
        match action {
            IrqAction::Mask if act => function.intx().mask(),
            IrqAction::Unmask if act => function.intx().unmask(),
            _ => {}
        }
        Ok(())
    }

    fn trigger_vectors(&mut self, function: &Function, request: &SetIrqs) -> Result<()> {
        let index = request.index;
        let vectors = function.vectors();
        if self.enabled.is(index) && request.count == 0 && matches!(request.data, IrqData::None) {
            self.disable(function);
            return Ok(());
        }
        let on = self.expect_no_other(index)?;
        let range = request.start..request.start + request.count;
        let fds = match &request.data {
            IrqData::Eventfds(fds) => fds,
            _ if !on => return Err(Error::BadIrqRequest),
            IrqData::None => {
                range.for_each(|vector| vectors.deliver(vector));
                return Ok(());
            }
            IrqData::Bools(bools) => {
                for (vector, _) in range.zip(bools).filter(|(_, fire)| **fire) {
                    vectors.deliver(vector);
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
        if range.end == 0 {
            return Err(Error::NoVectors);
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

/// Connects vectors from `start` on, as far as there are any before `end`; on a bad one disconnects
/// those of this call.
fn connect(vectors: &Vectors, start: u32, end: u32, fds: &[Eventfd]) -> Result<()> {
    for (vector, fd) in (start..).zip(fds) {
        let error = match fd {
            Eventfd::None | Eventfd::Negative => {
                vectors.connect(vector, None);
                continue;
            }
            _ if vector >= end => Error::BadIrqRequest,
            Eventfd::Sink(sink) => {
                vectors.connect(vector, Some(Arc::clone(sink)));
                continue;
            }
            Eventfd::Unusable(error) => Error::Eventfd(*error),
        };
        (start..=vector).for_each(|vector| vectors.connect(vector, None));
        return Err(error);
    }
    Ok(())
}

/// The rules of the indexes with one trigger and no vector behind it.
fn set_single(trigger: &mut Option<Arc<dyn IrqSink>>, data: &IrqData, count: u32) -> Result<()> {
    match data {
        IrqData::None => match (count, &trigger) {
            (_, None) => return Err(Error::BadIrqRequest),
            (0, Some(_)) => *trigger = None,
            (_, Some(sink)) => sink.signal(),
        },
        IrqData::Bools(bools) => match (bools.first(), trigger) {
            (None, _) => return Err(Error::BadIrqRequest),
            (Some(true), Some(sink)) => sink.signal(),
            _ => {}
        },
        IrqData::Eventfds(fds) => match fds.first() {
            Some(Eventfd::Sink(sink)) => *trigger = Some(Arc::clone(sink)),
            Some(Eventfd::None) => *trigger = None,
            Some(Eventfd::Unusable(error)) => return Err(Error::Eventfd(*error)),
            Some(Eventfd::Negative) | None => return Err(Error::BadIrqRequest),
        },
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ioasid_core::host::CountingIrq;

    use super::*;
    use crate::pci::{Bar, FunctionBuilder, MsixLayout};

    fn function() -> Function {
        FunctionBuilder::new(1, 2)
            .bar(0, Bar::memory64(0x4000))
            .express()
            .msix(MsixLayout::new(0, 0x2000, 0x3000, 4))
            .build()
            .unwrap()
    }

    fn wired() -> Function {
        FunctionBuilder::new(1, 2)
            .bar(0, Bar::memory64(0x4000))
            .intx()
            .msi(3)
            .msix(MsixLayout::new(0, 0x2000, 0x3000, 4))
            .build()
            .unwrap()
    }

    fn trigger(index: IrqIndex, start: u32, count: u32, data: IrqData) -> SetIrqs {
        SetIrqs {
            index,
            action: IrqAction::Trigger,
            start,
            count,
            data,
        }
    }

    fn msix(start: u32, fds: &[Eventfd]) -> SetIrqs {
        let data = IrqData::Eventfds(fds.to_vec());
        trigger(IrqIndex::Msix, start, fds.len() as u32, data)
    }

    fn sink(counter: &Arc<CountingIrq>) -> Eventfd {
        Eventfd::Sink(counter.clone())
    }

    #[test]
    fn vectors_fire_from_the_device_and_by_loopback() {
        let (function, irqs) = (function(), Interrupts::default());
        let (zero, two) = (CountingIrq::new(), CountingIrq::new());
        let fds = [sink(&zero), Eventfd::None, sink(&two)];
        irqs.set(&function, &msix(0, &fds)).unwrap();
        for vector in 0..9 {
            function.vectors().signal(vector);
        }
        assert_eq!((zero.count(), two.count()), (1, 1));
        let none = trigger(IrqIndex::Msix, 0, 4, IrqData::None);
        irqs.set(&function, &none).unwrap();
        assert_eq!((zero.count(), two.count()), (2, 2));
        let bools = IrqData::Bools(vec![true, false]);
        let bools = trigger(IrqIndex::Msix, 1, 2, bools);
        irqs.set(&function, &bools).unwrap();
        assert_eq!((zero.count(), two.count()), (2, 2));
    }

    #[test]
    fn count_0_disables_and_off_refuses_everything_but_eventfds() {
        let (function, irqs) = (function(), Interrupts::default());
        let off = trigger(IrqIndex::Msix, 0, 0, IrqData::None);
        let fire = trigger(IrqIndex::Msix, 0, 1, IrqData::None);
        assert_eq!(irqs.set(&function, &off), Err(Error::BadIrqRequest));
        assert_eq!(irqs.set(&function, &fire), Err(Error::BadIrqRequest));
        let counter = CountingIrq::new();
        irqs.set(&function, &msix(3, &[sink(&counter)])).unwrap();
        assert!(irqs.msix_enabled());
        irqs.set(&function, &off).unwrap();
        assert!(!irqs.msix_enabled());
        function.vectors().signal(3);
        assert_eq!(counter.count(), 0);
        assert_eq!(irqs.set(&function, &msix(0, &[])), Err(Error::NoVectors));
    }

    #[test]
    fn a_bad_eventfd_disconnects_the_vectors_of_its_request_only() {
        let (function, irqs) = (function(), Interrupts::default());
        let counter = CountingIrq::new();
        let bad = || Eventfd::Unusable(FdError::NotOpen);
        let request = msix(0, &[sink(&counter), bad()]);
        let refused = Err(Error::Eventfd(FdError::NotOpen));
        assert_eq!(irqs.set(&function, &request), refused);
        assert!(!irqs.msix_enabled(), "nothing was enabled before");
        let all = [(); 4].map(|()| sink(&counter));
        irqs.set(&function, &msix(0, &all)).unwrap();
        let request = msix(1, &[sink(&counter), bad(), sink(&counter)]);
        assert_eq!(irqs.set(&function, &request), refused);
        assert!(irqs.msix_enabled());
        for vector in 0..4 {
            function.vectors().signal(vector);
        }
        assert_eq!(counter.count(), 2, "vectors 0 and 3 are still connected");
    }

    #[test]
    fn intx_msi_and_msix_exclude_each_other() {
        let function = wired();
        let irqs = Interrupts::default();
        let counter = CountingIrq::new();
        let data = || IrqData::Eventfds(vec![sink(&counter)]);
        let indexes = [IrqIndex::Intx, IrqIndex::Msi, IrqIndex::Msix];
        for on in indexes {
            irqs.set(&function, &trigger(on, 0, 1, data())).unwrap();
            for other in indexes.into_iter().filter(|other| *other != on) {
                for data in [data(), IrqData::None] {
                    let refused = irqs.set(&function, &trigger(other, 0, 1, data));
                    assert_eq!(refused, Err(Error::BadIrqRequest), "{on:?} {other:?}");
                }
                let off = trigger(other, 0, 0, IrqData::None);
                assert_eq!(irqs.set(&function, &off), Err(Error::BadIrqRequest));
            }
            irqs.set(&function, &trigger(on, 0, 0, IrqData::None))
                .unwrap();
        }
    }

    #[test]
    fn intx_is_enabled_swapped_fired_masked_and_disabled() {
        let function = wired();
        let irqs = Interrupts::default();
        let set = |action, count, data| {
            let request = trigger(IrqIndex::Intx, 0, count, data);
            irqs.set(&function, &SetIrqs { action, ..request })
        };
        let fd = |fd| IrqData::Eventfds(vec![fd]);
        let bad = Err(Error::BadIrqRequest);
        use IrqAction::{Mask, Trigger, Unmask};
        assert_eq!(set(Trigger, 0, IrqData::None), bad, "it is off");
        assert_eq!(set(Trigger, 1, IrqData::None), bad);
        assert_eq!(set(Mask, 1, IrqData::None), bad);
        let (old, new) = (CountingIrq::new(), CountingIrq::new());
        set(Trigger, 1, fd(Eventfd::None)).unwrap();
        set(Trigger, 1, IrqData::None).unwrap();
        set(Trigger, 1, fd(sink(&old))).unwrap();
        set(Trigger, 1, IrqData::None).unwrap();
        set(Trigger, 1, IrqData::Bools(vec![false])).unwrap();
        set(Trigger, 1, fd(sink(&new))).unwrap();
        set(Trigger, 1, IrqData::Bools(vec![true])).unwrap();
        assert_eq!((old.count(), new.count()), (1, 1));
        set(Mask, 1, IrqData::None).unwrap();
        function.intx().set(true);
        assert_eq!(new.count(), 1);
        set(Unmask, 1, IrqData::Bools(vec![false])).unwrap();
        assert_eq!(new.count(), 1);
        set(Unmask, 1, IrqData::Bools(vec![true])).unwrap();
        assert_eq!(new.count(), 2);
        assert_eq!(set(Mask, 0, IrqData::None), bad);
        let by_eventfd = set(Mask, 1, fd(sink(&new)));
        assert_eq!(by_eventfd, Err(Error::NoSuchIrqAction));
        let closed = fd(Eventfd::Unusable(FdError::NotOpen));
        let refused = Err(Error::Eventfd(FdError::NotOpen));
        assert_eq!(set(Trigger, 1, closed), refused);
        set(Trigger, 0, IrqData::None).unwrap();
        assert_eq!(set(Unmask, 1, IrqData::None), bad);
    }

    #[test]
    fn one_eventfd_unmasks_intx() {
        #[derive(Debug)]
        struct Watch;
        impl EventfdWatch for Watch {}
        type Answer = std::result::Result<Box<dyn EventfdWatch>, FdError>;
        let function = wired();
        let irqs = Interrupts::default();
        let heard = Mutex::new(None);
        let watch = |listener: Arc<dyn IrqSink>| -> Answer {
            *heard.lock() = Some(listener);
            Ok(Box::new(Watch))
        };
        let none: Option<fn(Arc<dyn IrqSink>) -> Answer> = None;
        let off = irqs.unmask_by(&function, none);
        assert_eq!(off, Err(Error::BadIrqRequest));
        let counter = CountingIrq::new();
        let data = IrqData::Eventfds(vec![sink(&counter)]);
        irqs.set(&function, &trigger(IrqIndex::Intx, 0, 1, data))
            .unwrap();
        irqs.unmask_by(&function, Some(watch)).unwrap();
        let second = irqs.unmask_by(&function, Some(watch));
        assert_eq!(second, Err(Error::UnmaskedAlready));
        function.intx().set(true);
        heard.lock().take().unwrap().signal();
        assert_eq!(counter.count(), 2);
        irqs.unmask_by(&function, none).unwrap();
        irqs.unmask_by(&function, Some(watch)).unwrap();
    }

    #[test]
    fn msi_keeps_the_vectors_that_it_was_enabled_with() {
        let function = wired();
        let irqs = Interrupts::default();
        let counters: Vec<_> = (0..8).map(|_| CountingIrq::new()).collect();
        let msi = |start: u32, fds: Vec<Eventfd>| {
            let count = fds.len() as u32;
            let data = IrqData::Eventfds(fds);
            irqs.set(&function, &trigger(IrqIndex::Msi, start, count, data))
        };
        assert_eq!(msi(0, vec![]), Err(Error::NoVectors));
        msi(0, vec![sink(&counters[0]), sink(&counters[1])]).unwrap();
        assert_eq!(msi(2, vec![sink(&counters[2])]), Err(Error::BadIrqRequest));
        msi(2, vec![Eventfd::None]).unwrap();
        for vector in 0..8 {
            function.vectors().signal(vector);
        }
        assert_eq!(counters[0].count(), 4, "the low bits of the number");
        assert_eq!(counters[1].count(), 4);
        let mixed = vec![sink(&counters[1]), sink(&counters[2])];
        assert_eq!(msi(1, mixed), Err(Error::BadIrqRequest));
        function.vectors().signal(1);
        assert_eq!(counters[1].count(), 4, "the failed request took it away");
    }

    #[test]
    fn ranges_past_the_last_vector_and_missing_actions_are_refused() {
        let (function, irqs) = (function(), Interrupts::default());
        for (index, start, count) in [
            (IrqIndex::Msix, 4, 0),
            (IrqIndex::Msix, 0, 5),
            (IrqIndex::Msix, u32::MAX, 2),
            (IrqIndex::Intx, 0, 0),
            (IrqIndex::Msi, 0, 0),
            (IrqIndex::Error, 1, 0),
            (IrqIndex::Request, 0, 2),
        ] {
            let request = trigger(index, start, count, IrqData::None);
            let found = irqs.set(&function, &request);
            assert_eq!(found, Err(Error::BadIrqRequest), "{request:?}");
        }
        for index in [IrqIndex::Msix, IrqIndex::Error, IrqIndex::Request] {
            for action in [IrqAction::Mask, IrqAction::Unmask] {
                let request = trigger(index, 0, 1, IrqData::None);
                let request = SetIrqs { action, ..request };
                let found = irqs.set(&function, &request);
                assert_eq!(found, Err(Error::NoSuchIrqAction));
            }
        }
    }

    #[test]
    fn single_triggers_connect_fire_and_go() {
        let (function, irqs) = (function(), Interrupts::default());
        let request = |data, count| trigger(IrqIndex::Request, 0, count, data);
        let set = |data, count| irqs.set(&function, &request(data, count));
        assert_eq!(set(IrqData::None, 1), Err(Error::BadIrqRequest));
        let fd = |fd: Eventfd| IrqData::Eventfds(vec![fd]);
        let counter = CountingIrq::new();
        set(fd(sink(&counter)), 1).unwrap();
        set(IrqData::None, 1).unwrap();
        set(IrqData::Bools(vec![true]), 1).unwrap();
        set(IrqData::Bools(vec![false]), 1).unwrap();
        irqs.request_release();
        irqs.report_error();
        assert_eq!(counter.count(), 3);
        assert_eq!(set(IrqData::Bools(vec![]), 0), Err(Error::BadIrqRequest));
        assert_eq!(set(fd(Eventfd::Negative), 1), Err(Error::BadIrqRequest));
        set(fd(Eventfd::None), 1).unwrap();
        set(IrqData::Bools(vec![true]), 1).unwrap();
        set(fd(sink(&counter)), 1).unwrap();
        set(IrqData::None, 0).unwrap();
        irqs.request_release();
        assert_eq!(counter.count(), 3);
    }
}
