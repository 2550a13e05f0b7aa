//! Migration of a child or of a whole device: its queues are stopped where they are, and go on
//! elsewhere.
//!
//! The state is what its user could have brought about: registers and tables, the descriptors that
//! wait, and those under way with how far they have come. It is put into effect as its user would
//! have to do it: a device and its queues are enabled with all the checks of the commands.
//!
//! The default PASID of a child is not part of it; the child that takes the state enables its own
//! queue with its own. So a forged state reaches no more than its user's descriptors do. PASIDs of
//! a whole device are its user's to choose, and lead to what its user has attached.

use ioasid_vfio::{
    model::{Migrate, StateError},
    saved::{Reader, Writer, expect},
};

use crate::{
    config::MAX_ENGINES,
    devices::child::{DsaChild, View},
    devices::device::DsaDevice,
    exec::Execution,
    exec::bytes::{put_descriptor, take_descriptor},
    function::registers::Registers,
    queues::commands::{pause, set_paused},
    queues::queue::{Queue, SUSPENDED_LIMIT},
    queues::state::State,
    spec::WqState,
};

/// What a state is of, and the version of its format.
const CHILD: &[u8; 8] = b"dsa-1dwq";
const WHOLE: &[u8; 8] = b"dsa-dev\0";
const VERSION: u32 = 1;
/// Descriptors under way of one queue: those that are suspended, and one on each engine.
const MOST_UNDER_WAY: usize = SUSPENDED_LIMIT + MAX_ENGINES;
/// The same for a shared queue, which may have as many of each client.
const MOST_UNDER_WAY_SHARED: usize = 4096;
/// Dwords of WQCFG that software writes.
const QUEUE_DWORDS: u64 = 4;
/// Quadwords of GRPCFG that software writes.
const GROUP_QUADWORDS: [u64; 3] = [0, 4, 5];

/// What has to be the same on both sides: its user has seen it, and may rely on it. `open` are the
/// queues that the state is of.
fn abilities(magic: &[u8; 8], file: &dyn Registers, open: u64) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes(magic);
    out.u32(VERSION);
    out.u64(file.general_capabilities().into_bits());
    out.u64(file.queue_capabilities());
    out.u64(file.group_capabilities());
    out.u64(file.engine_capabilities());
    out.u32(file.command_capabilities());
    out.u64(open);
    out.finish()
}

impl Migrate for DsaChild {
    fn pause(&self) {
        pause(&self.parent().pool, self.set());
    }

    fn resume(&self) {
        set_paused(&self.parent().pool, self.set(), false);
    }

    fn save(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(&abilities(CHILD, self, 1));
        let state = self.parent().pool.lock();
        self.view().save(&mut out);
        Registers::endpoint(self).save(&mut out);
        match state.queues.get(self.queue()) {
            Some(queue) => queue.save(&mut out),
            None => out.bool(false),
        }
        out.finish()
    }

    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        let mut from = Reader::behind(&abilities(CHILD, self, 1), state)?;
        expect(self.set() != 0)?;
        let view = View::load(&mut from)?;
        let enabled = view.is_enabled();
        let endpoint = Registers::endpoint(self);
        let running = endpoint.load(&mut from)?;
        if enabled {
            endpoint.check_log(0).map_err(|_| StateError)?;
        }
        let queue_enabled = from.bool()?;
        let pool = &self.parent().pool;
        pool.change(|state: &mut State| {
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

impl Migrate for DsaDevice {
    fn pause(&self) {
        pause(&self.pool, self.open_queues());
    }

    fn resume(&self) {
        set_paused(&self.pool, self.open_queues(), false);
    }

    fn save(&self) -> Vec<u8> {
        let open = self.open_queues();
        let mut out = Writer::default();
        out.bytes(&abilities(WHOLE, self, open));
        Registers::endpoint(self).save(&mut out);
        let state = self.pool.lock();
        for group in &state.groups {
            for index in GROUP_QUADWORDS {
                out.u64(group.quadword(index));
            }
        }
        out.bool(state.enabled);
        let queues = || {
            state
                .indexes(open)
                .filter_map(|index| state.queues.get(index))
        };
        for queue in queues() {
            (0..QUEUE_DWORDS).for_each(|index| {
                out.u32(queue.config.dword(index, queue.status()));
            });
        }
        queues().for_each(|queue| queue.save(&mut out));
        out.finish()
    }

    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        let open = self.open_queues();
        let mut from = Reader::behind(&abilities(WHOLE, self, open), state)?;
        let endpoint = Registers::endpoint(self);
        let running = endpoint.load(&mut from)?;
        self.pool.change(|state| {
            for group in &mut state.groups {
                for index in GROUP_QUADWORDS {
                    *group.quadword_mut(index).ok_or(StateError)? = from.u64()?;
                }
            }
            let enabled = from.bool()?;
            for index in state.indexes(open) {
                let queue = state.queues.get_mut(index).ok_or(StateError)?;
                for dword in 0..QUEUE_DWORDS {
                    queue.config.set_dword(dword, from.u32()?);
                }
            }
            if enabled {
                self.enable_device(state, true).map_err(|_| StateError)?;
            }
            for index in state.indexes(open) {
                if from.bool()? {
                    self.enable_queue(state, index).map_err(|_| StateError)?;
                    let queue = state.queues.get_mut(index).ok_or(StateError)?;
                    queue.load(index, &mut from)?;
                }
            }
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
    /// Whether the queue is enabled, and what is in it then.
    fn save(&self, out: &mut Writer) {
        let enabled = self.state() == WqState::Enabled;
        out.bool(enabled);
        if !enabled {
            return;
        }
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
        let most = match terms.shared {
            true => MOST_UNDER_WAY_SHARED,
            false => MOST_UNDER_WAY,
        };
        for _ in 0..state.count(most)? {
            let execution = Execution::load(state, &terms)?;
            self.put_under_way(index, execution)
                .map_err(|_| StateError)?;
        }
        for _ in 0..state.count(self.config.size.into())? {
            let descriptor = take_descriptor(state)?;
            self.put_waiting(descriptor).map_err(|_| StateError)?;
        }
        Ok(())
    }
}
