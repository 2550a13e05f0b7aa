//! Migration: channels are stopped where they are, between two steps of a descriptor, and go on
//! elsewhere.
//!
//! The state is what the owner of the channels could have brought about: registers, and how far the
//! descriptor of each channel has come. In whose name a channel works is not part of it, the
//! default PASID of a child above all: the side that takes the state has its own.

use ioasid_vfio::{
    model::{Migrate, StateError},
    saved::{Reader, Writer, expect},
};

use crate::{
    channel::Channel,
    child::IoatChild,
    config::MAX_TRANSFER_SHIFT,
    device::{IoatDevice, is_open},
    endpoint::Endpoint,
    registers::{Registers, capabilities},
    schedule::{self, Pool, State},
    spec::registers::VERSION as HARDWARE_VERSION,
};

/// What a state is of, and the version of its format.
const CHILD: &[u8; 8] = b"ioat-1ch";
const WHOLE: &[u8; 8] = b"ioat-dev";
const VERSION: u32 = 2;

/// One owner's part of a device.
struct Part<'a> {
    magic: &'static [u8; 8],
    pool: &'a Pool,
    endpoint: &'a Endpoint,
    /// Channels of that owner, by their index in the device.
    channels: Vec<usize>,
}

impl IoatChild {
    fn part(&self) -> Part<'_> {
        let pool = &*self.parent().pool;
        let state = pool.lock();
        let channel = state.channels.get(self.channel());
        let own = channel.is_some_and(|channel| self.owns(channel));
        Part {
            magic: CHILD,
            pool,
            endpoint: self.endpoint(),
            channels: own.then_some(self.channel()).into_iter().collect(),
        }
    }
}

impl IoatDevice {
    /// Channels that belong to mediated devices are not part of the whole device.
    fn part(&self) -> Part<'_> {
        let state = self.pool.lock();
        let channels = state.channels.iter().enumerate();
        let open = channels.filter(|(_, channel)| is_open(channel));
        Part {
            magic: WHOLE,
            pool: &self.pool,
            endpoint: self.endpoint(),
            channels: open.map(|(index, _)| index).collect(),
        }
    }
}

impl Part<'_> {
    /// What has to be the same on both sides.
    fn abilities(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(self.magic);
        out.u32(VERSION);
        out.u32(capabilities().into_bits());
        out.u8(MAX_TRANSFER_SHIFT);
        out.u8(HARDWARE_VERSION);
        out.count(self.channels.len());
        out.finish()
    }

    fn each<'s>(&self, state: &'s State) -> impl Iterator<Item = &'s Channel> {
        let channels = self.channels.iter();
        channels.filter_map(|index| state.channels.get(*index))
    }

    fn set_paused(&self, paused: bool) {
        for index in &self.channels {
            schedule::change(self.pool, *index, |channel| {
                channel.set_paused(paused);
                None
            });
        }
    }

    fn pause(&self) {
        self.set_paused(true);
        self.pool
            .wait_until_quiet(|state| self.each(state).all(Channel::rests));
    }

    fn save(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(&self.abilities());
        let state = self.pool.lock();
        self.endpoint.save(&mut out);
        self.each(&state).for_each(|channel| channel.save(&mut out));
        out.finish()
    }

    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        let mut from = Reader::behind(&self.abilities(), state)?;
        // A child that has lost its channel takes nothing.
        expect(!self.channels.is_empty())?;
        self.endpoint.load(&mut from, self.channels.len())?;
        let mut state = self.pool.lock();
        for index in &self.channels {
            let channel = state.channels.get_mut(*index).ok_or(StateError)?;
            channel.load(&mut from)?;
        }
        from.finish()
    }
}

impl Migrate for IoatChild {
    fn pause(&self) {
        self.part().pause();
    }

    fn resume(&self) {
        self.part().set_paused(false);
    }

    fn save(&self) -> Vec<u8> {
        self.part().save()
    }

    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        self.part().load(state)
    }
}

impl Migrate for IoatDevice {
    fn pause(&self) {
        self.part().pause();
    }

    fn resume(&self) {
        self.part().set_paused(false);
    }

    fn save(&self) -> Vec<u8> {
        self.part().save()
    }

    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        self.part().load(state)
    }
}
