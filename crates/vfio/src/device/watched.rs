//! Telling who watches the machine what happens at one device: accesses to its regions, and its
//! interrupts.

use std::{borrow::Cow, sync::Arc, time::Duration};

use ioasid_core::{
    host::IrqSink,
    observe::{Event, RegisterAccess, Watch},
};

use super::{
    irq::{Eventfd, IrqData, SetIrqs},
    region::RegionIndex,
};
use crate::base::abi::IrqIndex;

/// The name of a device, and who watches.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    name: Arc<str>,
    watch: Arc<Watch>,
}

impl Watched {
    /// The device that is called `name`.
    pub(crate) fn new(name: &str, watch: &Arc<Watch>) -> Self {
        Watched {
            name: name.into(),
            watch: Arc::clone(watch),
        }
    }

    /// Tells that `data` was reached at `offset` of `region`.
    #[inline]
    pub(crate) fn access(
        &self,
        access: RegisterAccess,
        (region, offset): (RegionIndex, u64),
        data: &[u8],
    ) {
        self.watch.tell(|| Event::Register {
            device: &self.name,
            region: region.number(),
            offset,
            access,
            data,
        });
    }

    /// `request`; the interrupts that it connects are told, if anybody watches.
    pub(crate) fn irqs<'r>(&self, request: &'r SetIrqs) -> Cow<'r, SetIrqs> {
        let IrqData::Eventfds(eventfds) = &request.data else {
            return Cow::Borrowed(request);
        };
        if !self.watch.is_on() {
            return Cow::Borrowed(request);
        }
        let told = |(vector, eventfd): (u32, &Eventfd)| match eventfd {
            Eventfd::Sink(sink) => Eventfd::Sink(Arc::new(WatchedIrq {
                sink: Arc::clone(sink),
                watched: self.clone(),
                index: request.index,
                vector,
            })),
            other => other.clone(),
        };
        let data = (request.start..).zip(eventfds).map(told).collect();
        Cow::Owned(SetIrqs {
            data: IrqData::Eventfds(data),
            ..*request
        })
    }
}

/// An interrupt that is told before it is delivered.
#[derive(Debug)]
struct WatchedIrq {
    sink: Arc<dyn IrqSink>,
    watched: Watched,
    index: IrqIndex,
    vector: u32,
}

impl IrqSink for WatchedIrq {
    fn signal(&self) {
        self.watched.watch.tell(|| Event::Interrupt {
            device: &self.watched.name,
            index: self.index.name(),
            vector: self.vector,
        });
        self.sink.signal();
    }

    fn flush(&self, patience: Duration) {
        self.sink.flush(patience);
    }
}
