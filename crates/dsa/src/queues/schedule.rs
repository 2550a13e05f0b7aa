//! The device's queues as its engines see them: what comes next, and what becomes of a descriptor
//! that leaves an engine. And as a portal sees them: what it stores is work for an engine.

use ioasid_core::observe::{Event, Unit};
use ioasid_engine::{EnginePool, Job as _, JobId, Place, Schedule, Wanted};

use crate::{
    function::endpoint::Endpoint,
    queues::job::Task,
    queues::queue::{ClientOf, Refused, Store},
    queues::state::{CommandInterrupt, State},
    spec::{
        Descriptor, Status,
        registers::{SwError, SwErrorInfo},
    },
};

/// The engines of a device and its queues.
pub(crate) type Pool = EnginePool<State>;

impl Schedule for State {
    type Job = Task;
    type Interrupts = Vec<CommandInterrupt>;

    fn next(&mut self, engine: usize) -> Option<Task> {
        self.next_task(engine)
    }

    fn next_of(&mut self, queue: usize) -> Option<Task> {
        self.next_task_of(queue)
    }

    fn after_change(&mut self) -> Vec<CommandInterrupt> {
        self.end_commands()
    }

    fn wanted(&self) -> Wanted {
        match self.has_work() {
            // Which of them serve the queues with work is theirs to find out.
            true => Wanted::All,
            false => Wanted::NONE,
        }
    }

    fn account(&mut self, task: &mut Task, place: Place) {
        let counts = task.take_counts();
        if let Some(queue) = self.queues.get_mut(task.queue) {
            queue.account(counts);
            if place == Place::Worker {
                queue.set_remote(task.sequence, false);
            }
        }
        if place == Place::Engine {
            self.charge(task.queue, counts.bytes);
        }
    }

    fn put_back(&mut self, task: Task, withheld: bool) -> Result<bool, Task> {
        let Some(queue) = self.queues.get_mut(task.queue) else {
            return Err(task);
        };
        queue.resume_later(task)?;
        // A command may wait in vain for one whose requests are withheld.
        Ok(withheld || queue.paused)
    }

    fn make_remote(&mut self, task: &Task) {
        if let Some(queue) = self.queues.get_mut(task.queue) {
            queue.set_remote(task.sequence, true);
        }
    }

    fn park(&mut self, task: Task) -> Result<bool, Task> {
        let Some(queue) = self.queues.get_mut(task.queue) else {
            return Err(task);
        };
        queue.park(task)?;
        Ok(queue.paused)
    }

    fn unpark(&mut self, job: JobId, denied: bool) {
        if let Some(queue) = self.queues.get_mut(job.unit) {
            queue.unpark(job.number, denied);
        }
    }

    fn end(&mut self, task: Task) {
        let (queue, sequence, aborted) = (task.queue, task.sequence, task.aborted());
        // With it goes its hold on the PASID.
        drop(task);
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.end(sequence, aborted);
        }
    }

    fn is_paused(&self, queue: usize) -> bool {
        self.queues.get(queue).is_some_and(|queue| queue.paused)
    }
}

/// Takes a descriptor that was stored to the portal of `queue` through `endpoint`. Never executes
/// it: that is the engines' part. `child` is the client, if the portal is that of one of several children of a
/// shared queue.
///
/// # Errors
/// [`Refused`], which is reported in SWERR where the store has no answer.
pub(crate) fn submit(
    pool: &Pool,
    queue: usize,
    endpoint: &Endpoint,
    descriptor: Descriptor,
    store: Store,
    child: Option<&ClientOf<'_>>,
) -> Result<(), Refused> {
    let (accepted, index) = pool.submit(|state| {
        let Some(target) = state.queues.get_mut(queue) else {
            return ((Err(Refused::NoQueue), 0), Wanted::NONE);
        };
        let index = match (child, &target.session) {
            (None, Some(session)) => session.index,
            _ => 0,
        };
        let accepted = target.accept_for(descriptor, store, child);
        if accepted.is_ok() {
            let device = pool.device();
            device.watch().tell(|| Event::Submitted {
                unit: Unit {
                    device: device.address(),
                    number: queue,
                },
                first: target.last_accepted(),
                count: 1,
            });
        }
        let wanted = match (&accepted, state.all_engines_serve(queue)) {
            (Err(_), _) => Wanted::NONE,
            (Ok(()), true) => Wanted::Some(1),
            (Ok(()), false) => Wanted::All,
        };
        ((accepted, index), wanted)
    });
    let error = match accepted {
        // With an answer, the program learns it from that.
        Err(Refused::NotEnabled) if store == Store::Posted => SwError::QUEUE_DISABLED,
        // Not even the record can be reached.
        Err(Refused::BadPasid) => Status::RecordFault as u8,
        _ => return accepted,
    };
    endpoint.raise(
        endpoint.report(SwError {
            info: SwErrorInfo::new()
                .with_desc_valid(true)
                .with_wq_idx_valid(true)
                .with_wq_idx(index)
                .with_error(error)
                .with_operation(descriptor.opcode)
                .with_pasid(descriptor.pasid),
            ..SwError::default()
        }),
    );
    accepted
}
