//! Closing files of the machine without holding up the session.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    time::Duration,
};

use super::descriptors::object::Object;

/// How long a request waits for the closing of files before it. Closing waits for DMA in flight,
/// which ends at once unless the program itself holds up its own memory.
pub(crate) const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// A thread that closes files, so that one that waits for DMA does not hold up the session for
/// ever.
#[derive(Debug)]
pub(crate) struct Closer {
    jobs: mpsc::Sender<(Vec<Object>, mpsc::SyncSender<()>)>,
}

impl Closer {
    pub(crate) fn start() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<(Vec<Object>, mpsc::SyncSender<()>)>();
        std::thread::Builder::new()
            .name("closer".to_owned())
            .spawn(move || {
                for (objects, done) in queue {
                    for object in &objects {
                        if catch_unwind(AssertUnwindSafe(|| object.close())).is_err() {
                            tracing::error!("closing a file made the supervisor panic");
                        }
                    }
                    drop(objects);
                    // The session may wait no more.
                    let _ = done.send(());
                }
            })?;
        Ok(Closer { jobs })
    }

    /// Closes in order; false if that is not done within the patience of a request. It goes on
    /// then.
    pub(crate) fn close(&self, objects: Vec<Object>) -> bool {
        let (done, wait) = mpsc::sync_channel(1);
        self.jobs.send((objects, done)).is_ok() && wait.recv_timeout(CLOSE_PATIENCE).is_ok()
    }
}
