//! What the objects of one client have in common. They may outlive the
//! [`Client`](crate::Client).

use std::{fmt, io, sync::Arc};

use ioasid_core::{host::Worker, spa::SpaSpace};

use crate::{
    memory::{
        address_space::AddressSpaces, file::MemoryFiles, registers::RegisterFiles,
        shared::SharedMemory, windows::Windows,
    },
    system::copy::RecoveringCopy,
    threads::{
        closer::Closer, eventfds::EventfdListener, interrupts::InterruptThread,
        worker::ClientWorker,
    },
};

/// The memory and the threads of one client.
pub(crate) struct Resources {
    pub(crate) windows: Arc<Windows>,
    pub(crate) worker: Arc<ClientWorker>,
    pub(crate) interrupts: Arc<InterruptThread>,
    pub(crate) eventfds: EventfdListener,
    /// Closes a descriptor that turned out to be something else than it was: the close of a file on
    /// FUSE waits for its server, so a thread that does nothing else waits.
    pub(crate) closer: Arc<Closer>,
    pub(crate) files: Arc<MemoryFiles>,
    pub(crate) shared: SharedMemory,
    pub(crate) registers: RegisterFiles,
    pub(crate) spaces: Arc<AddressSpaces>,
}

impl Resources {
    /// Starts the two threads of the client called `name`, which may use `limit` windows in
    /// `space`.
    pub(crate) fn start(name: &str, space: Arc<SpaSpace>, limit: usize) -> io::Result<Arc<Self>> {
        let windows = Windows::new(space, limit);
        let spaces = Arc::<AddressSpaces>::default();
        let worker = ClientWorker::new(&format!("memory {name}"))?;
        let remote = Arc::clone(&worker) as Arc<dyn Worker>;
        Ok(Arc::new(Resources {
            interrupts: InterruptThread::new(&format!("irq {name}"))?,
            eventfds: EventfdListener::default(),
            closer: Closer::new(name),
            files: MemoryFiles::new(Arc::clone(&windows), RecoveringCopy::get()?),
            shared: SharedMemory::new(Arc::clone(&windows), &spaces, remote),
            registers: RegisterFiles::default(),
            spaces,
            worker,
            windows,
        }))
    }

    /// The thread that touches the client's private memory.
    pub(crate) fn remote_worker(&self) -> Arc<dyn Worker> {
        Arc::clone(&self.worker) as Arc<dyn Worker>
    }
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resources")
            .field("windows", &self.windows.used())
            .finish_non_exhaustive()
    }
}
