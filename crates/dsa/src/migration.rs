//! Migration of a child: its queue is stopped where it is, and goes on elsewhere.
//!
//! The state is what the child's user could have brought about: its registers, the descriptors that
//! wait, and those under way with how far they have come. The default PASID is not part of it; the
//! child that takes the state enables its own queue with its own. So a forged state reaches no more
//! than its user's descriptors do.

use ioasid_vfio::{
    model::{Migrate, StateError},
    saved::{Reader, Writer, expect},
};

use crate::{
    child::{DsaChild, View},
    config::MAX_ENGINES,
    exec::Execution,
    queue::{Queue, SUSPENDED_LIMIT},
    registers::Registers,
    saved::{put_descriptor, take_descriptor},
    spec::WqState,
    state::State,
};

/// What the state is of, and the version of its format.
const MAGIC: &[u8; 8] = b"dsa-1dwq";
const VERSION: u32 = 1;
/// Descriptors under way of one queue: those that are suspended, and one on each engine.
const MOST_UNDER_WAY: usize = SUSPENDED_LIMIT + MAX_ENGINES;

impl Migrate for DsaChild {
    fn pause(&self) {
        let set = self.set();
        let shared = &self.parent().shared;
        shared.change(|state| state.set_paused(set, true));
        shared.wait_until(|state| state.is_quiet(set));
    }

    fn resume(&self) {
        let set = self.set();
        let shared = &self.parent().shared;
        shared.change(|state| state.set_paused(set, false));
    }

    fn save(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(MAGIC);
        out.u32(VERSION);
        out.u64(self.general_capabilities().into_bits());
        out.u64(self.queue_capabilities());
        let state = self.parent().shared.lock();
        self.view().save(&mut out);
        Registers::front(self).save(&mut out);
        match state.queues.get(self.queue()) {
            Some(queue) if queue.state() == WqState::Enabled => {
                out.bool(true);
                queue.save(&mut out);
            }
            _ => out.bool(false),
        }
        out.finish()
    }

    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        let mut from = Reader::new(state);
        expect(from.array()? == *MAGIC && from.u32()? == VERSION)?;
        // The user has seen what the device can do, and may rely on it.
        expect(from.u64()? == self.general_capabilities().into_bits())?;
        expect(from.u64()? == self.queue_capabilities())?;
        expect(self.set() != 0)?;
        let view = View::load(&mut from)?;
        let enabled = view.is_enabled();
        let front = Registers::front(self);
        let running = front.load(&mut from)?;
        if enabled {
            front.check_log(0).map_err(|_| StateError)?;
        }
        let queue_enabled = from.bool()?;
        let shared = &self.parent().shared;
        shared.change(|state: &mut State| {
            if queue_enabled {
                self.enable_queue(state, &view).map_err(|_| StateError)?;
                let index = self.queue();
                let queue = state.queues.get_mut(index).ok_or(StateError)?;
                queue.load(index, &mut from)?;
            }
            *self.view() = view;
            from.finish()
        })?;
        if let Some(command) = running {
            // It waits for what it has waited for.
            self.command(command);
        }
        Ok(())
    }
}

impl Queue {
    fn save(&self, out: &mut Writer) {
        let under_way = self.under_way();
        out.count(under_way.len());
        under_way.iter().for_each(|execution| execution.save(out));
        out.count(self.waiting().len());
        self.waiting()
            .for_each(|descriptor| put_descriptor(out, descriptor));
    }

    /// Fills the empty, enabled queue, which is paused.
    fn load(&mut self, index: usize, state: &mut Reader<'_>) -> Result<(), StateError> {
        let terms = self.session.as_ref().ok_or(StateError)?.terms;
        for _ in 0..state.count(MOST_UNDER_WAY)? {
            let execution = Execution::load(state, &terms)?;
            self.put_under_way(index, execution);
        }
        for _ in 0..state.count(self.config.size.into())? {
            let descriptor = take_descriptor(state)?;
            self.put_waiting(descriptor);
        }
        Ok(())
    }
}
