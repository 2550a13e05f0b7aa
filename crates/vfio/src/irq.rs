//! The five interrupt indexes of a PCI device and the rules of SET_IRQS
//! (`drivers/vfio/pci/vfio_pci_intrs.c`). INTx and MSI exist as indexes but have no vector.

use std::sync::Arc;

use ioasid_core::{
    host::{FdError, IrqSink},
    sync::Mutex,
};

use crate::{
    error::{Error, Result},
    pci::{Function, Vectors},
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
            IrqIndex::Intx | IrqIndex::Msi => 0,
            IrqIndex::Msix => function.vectors().count(),
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
    msix_enabled: bool,
    error: Option<Arc<dyn IrqSink>>,
    request: Option<Arc<dyn IrqSink>>,
}

impl Interrupts {
    /// Carries out `request` on `function`.
    ///
    /// # Errors
    /// [`Error::BadIrqRequest`] if it does not fit the index or its state,
    /// [`Error::NoSuchIrqAction`] if the index does not know the action, [`Error::NoVectors`] if
    /// MSI-X is to be enabled with no vector, [`Error::Eventfd`] for a bad file descriptor. The
    /// vectors of a request that fails half-way are disconnected.
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
        match (request.index, request.action) {
            (IrqIndex::Msix, IrqAction::Trigger) => self.set_msix(function, request),
            (IrqIndex::Error, IrqAction::Trigger) => {
                set_single(&mut self.state.lock().error, &request.data, request.count)
            }
            (IrqIndex::Request, IrqAction::Trigger) => {
                set_single(&mut self.state.lock().request, &request.data, request.count)
            }
            _ => Err(Error::NoSuchIrqAction),
        }
    }

    fn set_msix(&self, function: &Function, request: &SetIrqs) -> Result<()> {
        let vectors = function.vectors();
        let mut state = self.state.lock();
        let range = request.start..request.start + request.count;
        match &request.data {
            IrqData::Eventfds(fds) => {
                let enabling = !state.msix_enabled;
                if enabling && range.end == 0 {
                    return Err(Error::NoVectors);
                }
                let connected = connect(vectors, request.start, fds);
                state.msix_enabled = connected.is_ok() || !enabling;
                function.show_msix(state.msix_enabled);
                connected
            }
            _ if !state.msix_enabled => Err(Error::BadIrqRequest),
            IrqData::None if request.count == 0 => {
                vectors.disconnect_all();
                state.msix_enabled = false;
                function.show_msix(false);
                Ok(())
            }
            IrqData::None => {
                range.for_each(|vector| vectors.signal(vector));
                Ok(())
            }
            IrqData::Bools(bools) => {
                for (vector, _) in range.zip(bools).filter(|(_, fire)| **fire) {
                    vectors.signal(vector);
                }
                Ok(())
            }
        }
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
        function.vectors().disconnect_all();
        *state = State::default();
    }

    /// Whether MSI-X is enabled.
    pub fn msix_enabled(&self) -> bool {
        self.state.lock().msix_enabled
    }
}

/// Connects vectors from `start` on; on a bad one disconnects those of this call.
fn connect(vectors: &Vectors, start: u32, fds: &[Eventfd]) -> Result<()> {
    for (vector, fd) in (start..).zip(fds) {
        match fd {
            Eventfd::Sink(sink) => vectors.connect(vector, Some(Arc::clone(sink))),
            Eventfd::None | Eventfd::Negative => vectors.connect(vector, None),
            Eventfd::Unusable(error) => {
                (start..=vector).for_each(|vector| vectors.connect(vector, None));
                return Err(Error::Eventfd(*error));
            }
        }
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
