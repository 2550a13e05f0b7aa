//! An I/OAT device with one channel, driven by hand: what it can be made to do.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ioasid_ioat::spec::{
    ChanErr, ChanSts, ChannelStatus, Control, Descriptor,
    registers::{self as reg, CHANNEL_STRIDE},
};

use crate::{
    claims::{Claim, wait},
    elsewhere::Elsewhere,
    function::Function,
    mapping::Mapping,
    ram::{PAGE, Ram, noise},
    scan,
};

/// What pages of the program's own are for.
const CHAIN: usize = 0;
const SOURCE: usize = 1;
const TARGET: usize = 2;
const COMPLETION: usize = 3;
const SPARE: usize = 4;
const PAGES: usize = 5;

/// Bytes that the tests move, as descriptors count.
const SIZE: u32 = PAGE as u32;
/// Completion words and interrupts also for errors; rearmed.
const CONTROL: u64 = 0x1d;
/// How long a loop goes on before it is stopped, and one that has its count renewed all the while.
const LOOP: Duration = Duration::from_millis(5);
const FLOOD: Duration = Duration::from_millis(300);
const SUSPEND: u64 = 0x04;
const RESUME: u64 = 0x10;
const RESET: u64 = 0x20;

/// The claims, the one first that the others rest on.
pub(crate) const CLAIMS: &[(&str, Claim<Channel>)] = &[
    ("a channel copies within the own memory", Channel::works),
    (
        "a channel reaches no address outside of the own memory",
        Channel::outside,
    ),
    ("a channel writes no read-only memory", Channel::read_only),
    ("a channel refuses nonsense", Channel::nonsense),
    (
        "a channel's loops end with a suspend or a reset",
        Channel::loops,
    ),
    (
        "a channel outlives every command in every state",
        Channel::commands,
    ),
    (
        "all of an I/OAT's registers, and there is one channel",
        Channel::scan,
    ),
    (
        "all of an I/OAT's configuration space, and resets",
        |channel, round| {
            let count = channel.function.scribble(round)?;
            Ok(count + channel.works(round)?)
        },
    ),
];

/// The device.
#[derive(Debug)]
pub(crate) struct Channel {
    function: Function,
    bar: Mapping,
    ram: Ram,
    elsewhere: Elsewhere,
}

/// How a chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ended {
    status: u64,
    error: ChanErr,
}

impl Channel {
    /// The first one of the guest.
    ///
    /// # Errors
    /// If there is none, or it cannot be had.
    pub(crate) fn find() -> Result<Self> {
        let function = Function::find(reg::DEVICE)?;
        Ok(Self {
            bar: function.bar(0)?,
            ram: Ram::new(PAGES)?,
            elsewhere: Elsewhere::of(&function)?,
            function,
        })
    }

    fn load(&self, register: u64, width: usize) -> u64 {
        self.bar.load((CHANNEL_STRIDE + register) as usize, width)
    }

    fn store(&self, register: u64, width: usize, value: u64) {
        self.bar
            .store((CHANNEL_STRIDE + register) as usize, width, value);
    }

    fn command(&self, command: u64) {
        self.store(reg::CHANCMD, 1, command);
    }

    fn ended(&self) -> Ended {
        Ended {
            status: self.load(reg::CHANSTS, 8) & 7,
            error: ChanErr::from_bits(self.load(reg::CHANERR, 4) as u32),
        }
    }

    fn is(&self, status: ChannelStatus) -> bool {
        ChanSts::from_bits(self.load(reg::CHANSTS, 8)).is(status)
    }

    /// Halted, without errors, and ready for a chain.
    fn reset(&self) -> Result<()> {
        self.store(reg::CHANERR, 4, u64::from(u32::MAX));
        self.command(RESET);
        wait("a reset", || self.load(reg::CHANCMD, 1) & RESET == 0)?;
        self.store(reg::CHANCTRL, 2, CONTROL);
        self.store(reg::CHANCMP, 8, self.ram.at(COMPLETION));
        Ok(())
    }

    fn start(&self, chain: u64, count: u16) {
        self.store(reg::CHAINADDR, 8, chain);
        self.store(reg::DMACOUNT, 2, count.into());
    }

    /// Has a channel that was reset follow `chain` for `count` descriptors.
    fn run(&self, chain: u64, count: u16) -> Result<Ended> {
        self.reset()?;
        self.start(chain, count);
        wait("a chain", || {
            self.is(ChannelStatus::Done) || self.is(ChannelStatus::Halted)
        })?;
        Ok(self.ended())
    }

    /// Descriptors one after the other, in the page for them.
    fn chain(&self, descriptors: &[Descriptor]) -> u64 {
        let first = self.ram.at(CHAIN);
        let mut bytes = Vec::new();
        for (index, descriptor) in descriptors.iter().enumerate() {
            let next = match descriptor.next() {
                0 => first + 64 * (index as u64 + 1),
                next => next,
            };
            bytes.extend_from_slice(&descriptor.with_next(next).to_bytes());
        }
        self.ram.put(CHAIN, &bytes);
        first
    }

    /// One descriptor.
    fn run_one(&self, descriptor: Descriptor) -> Result<Ended> {
        self.run(self.chain(&[descriptor]), 1)
    }

    /// What every other claim rests on: the same steps succeed within the own memory.
    pub(crate) fn works(&self, seed: u64) -> Result<u64> {
        let data = noise(PAGE, seed);
        self.ram.put(SOURCE, &data);
        self.ram.put(TARGET, &[0; PAGE]);
        self.ram.put(COMPLETION, &[0; PAGE]);
        let copy = Descriptor::copy(self.ram.at(TARGET), self.ram.at(SOURCE), SIZE);
        let chain = self.chain(&[copy.with_control(|control| control.set_compl_write(true))]);
        let ended = self.run(chain, 1)?;
        let done = Ended {
            status: ChannelStatus::Done as u64,
            error: ChanErr::new(),
        };
        ensure!(ended == done, "a copy ended as {ended:?}");
        ensure!(self.ram.get(TARGET) == data, "a copy is not the same");
        let word = ChanSts::from_bits(self.ram.word(COMPLETION, 0));
        ensure!(
            word.completed_address() == chain,
            "the completion word is {word:?}"
        );
        self.ram.has_stayed()?;
        Ok(1)
    }

    /// That a chain halted for `error` and nothing else.
    fn halted(&self, ended: Ended, error: ChanErr) -> Result<()> {
        let wanted = Ended {
            status: ChannelStatus::Halted as u64,
            error,
        };
        ensure!(ended == wanted, "ended as {ended:?}");
        Ok(())
    }

    /// Each address that a descriptor or a register has, where the guest has nothing.
    fn outside(&self, seed: u64) -> Result<u64> {
        let own = self.ram.at(TARGET);
        let source = self.ram.at(SOURCE);
        let untouched = noise(PAGE, !seed);
        self.ram.put(TARGET, &untouched);
        let read = ChanErr::new().with_read_data(true);
        let write = ChanErr::new().with_write_data(true);
        let mut count = 0;
        for at in self.elsewhere.nothing(seed) {
            let tries = [
                (Descriptor::copy(at, source, SIZE), write),
                (Descriptor::copy(own, at, SIZE), read),
                (Descriptor::fill(at, 0x6666, SIZE), write),
                (Descriptor::xor(at, &[source; 3], SIZE, false).0, write),
                (Descriptor::xor(own, &[source, at], SIZE, false).0, read),
                (
                    Descriptor::pq([at, at], &[(source, 1); 2], SIZE, false).0,
                    write,
                ),
                (
                    Descriptor::pq([own, own], &[(at, 1); 2], SIZE, false).0,
                    read,
                ),
                (Descriptor::xor(at, &[source; 2], SIZE, true).0, read),
            ];
            for (index, (descriptor, error)) in tries.into_iter().enumerate() {
                let ended = self.run_one(descriptor)?;
                self.halted(ended, error)
                    .with_context(|| format!("descriptor {index} at {at:#x}"))?;
                count += 1;
            }
            // Where descriptors are and where completion goes.
            let unread = ChanErr::new().with_descriptor(true);
            let fill = Descriptor::fill(self.ram.at(SPARE), 1, SIZE);
            let (extended, _) = Descriptor::xor(self.ram.at(SPARE), &[source; 8], SIZE, false);
            for (chain, count) in [
                (at, 1),
                (self.chain(&[fill.with_next(at)]), 2),
                (self.chain(&[extended.with_next(at)]), 2),
            ] {
                let ended = self.run(chain, count)?;
                self.halted(ended, unread)
                    .with_context(|| format!("a chain at {at:#x}"))?;
            }
            self.reset()?;
            self.store(reg::CHANCMP, 8, at);
            let told = fill.with_control(|control| control.set_compl_write(true));
            self.start(self.chain(&[told]), 1);
            wait("an error", || self.is(ChannelStatus::Halted))?;
            self.halted(self.ended(), ChanErr::new().with_completion_addr(true))
                .with_context(|| format!("completion at {at:#x}"))?;
            count += 4;
        }
        ensure!(self.ram.get(TARGET) == untouched, "something was read");
        self.works(seed)?;
        Ok(count)
    }

    /// The firmware's memory, which is the guest's own but not to be written; elsewhere, the same
    /// addresses are buffers of the parent's driver.
    fn read_only(&self, _seed: u64) -> Result<u64> {
        let write = ChanErr::new().with_write_data(true);
        let mut count = 0;
        for at in self.elsewhere.read_only() {
            let ended = self.run_one(Descriptor::copy(self.ram.at(TARGET), at, SIZE))?;
            let before = self.ram.get(TARGET);
            ensure!(
                ended.status == ChannelStatus::Done as u64,
                "{at:#x} cannot be read: {ended:?}"
            );
            let ended = self.run_one(Descriptor::fill(at, 0x6666, SIZE))?;
            self.halted(ended, write)
                .with_context(|| format!("a write to {at:#x}"))?;
            self.run_one(Descriptor::copy(self.ram.at(TARGET), at, SIZE))?;
            ensure!(self.ram.get(TARGET) == before, "{at:#x} has changed");
            count += 1;
        }
        Ok(count)
    }

    /// All operations, control bits and sizes, with addresses that are wrong for what is carried out
    /// after all.
    fn nonsense(&self, seed: u64) -> Result<u64> {
        let at = self.elsewhere.nothing(seed).next().context("an address")?;
        let bits = noise(256 * 4, seed);
        let (bits, _) = bits.as_chunks::<4>();
        let sizes = [0, 1, SIZE, (256 << 10) + 1, 1 << 24, u32::MAX];
        let mut count = 0;
        for (op, bits) in (0..=255_u8).zip(bits) {
            for size in sizes {
                let control = Control::from_bits(u32::from_le_bytes(*bits)).with_op(op);
                let wrong = Descriptor::copy(at, at, size).with_control(|word| *word = control);
                let ended = self.run_one(wrong.with_next(at & !63))?;
                // An operation that moves nothing succeeds anywhere.
                let nothing = op == 0 && control.low() & Control::NULL != 0;
                let done = ended.status == ChannelStatus::Done as u64;
                ensure!(
                    nothing || !done,
                    "operation {op:#x} of {size} bytes ({control:?}) ended as {ended:?}"
                );
                count += 1;
            }
        }
        let own = self.chain(&[Descriptor::null()]);
        for odd in [1, 8, 32, 63] {
            let ended = self.run(own + odd, 1)?;
            self.halted(ended, ChanErr::new().with_chain_addr(true))?;
            let astray = self.chain(&[Descriptor::null().with_next(own + odd)]);
            let ended = self.run(astray, 2)?;
            self.halted(ended, ChanErr::new().with_next_addr(true))?;
            count += 2;
        }
        Ok(count)
    }

    /// Descriptors that follow themselves, and ones that write themselves.
    fn loops(&self, seed: u64) -> Result<u64> {
        let (source, target) = (self.ram.at(SOURCE), self.ram.at(TARGET));
        let own = self.ram.at(CHAIN);
        let mut count = 0;
        for turn in 0..12_u64 {
            self.reset()?;
            let copy = Descriptor::copy(target, source, SIZE);
            let chain = match turn % 3 {
                0 => self.chain(&[copy.with_next(own)]),
                1 => self.chain(&[copy, copy.with_next(own)]),
                _ => {
                    // The page of the chain is overwritten by the first of it, with a chain to nowhere.
                    let at = self.elsewhere.nothing(seed).next().context("an address")?;
                    let bytes = Descriptor::copy(at, at, SIZE)
                        .with_next(at & !63)
                        .to_bytes();
                    self.ram.put(SPARE, &bytes.repeat(PAGE / 64));
                    self.chain(&[Descriptor::copy(own, self.ram.at(SPARE), SIZE)])
                }
            };
            self.start(chain, u16::MAX);
            std::thread::sleep(LOOP);
            if turn % 2 == 0 {
                for _ in 0..4 {
                    self.command(SUSPEND);
                    wait("a suspend", || !self.is(ChannelStatus::Active))?;
                    self.command(RESUME);
                }
            }
            // More of it, without end.
            self.store(reg::DMACOUNT, 2, turn * 0x1111);
            count += 1;
        }
        // Reset from outside of the BAR, and robbed of its memory, while it works.
        let forever = self.chain(&[Descriptor::copy(target, source, SIZE).with_next(own)]);
        for stop in [Function::reset, Function::turn_off] {
            self.reset()?;
            self.start(forever, u16::MAX);
            stop(&self.function)?;
            self.function.turn_on()?;
            count += 1;
        }
        // One that never ends.
        self.reset()?;
        let parity = Descriptor::pq([target, target], &[(source, 3); 3], SIZE, false).0;
        self.start(self.chain(&[parity.with_next(own)]), u16::MAX);
        let end = Instant::now() + FLOOD;
        while Instant::now() < end {
            let done = self.load(reg::DMACOUNT, 2);
            self.store(reg::DMACOUNT, 2, done + 0x4000);
            count += 1;
        }
        self.works(seed)?;
        Ok(count)
    }

    /// Every value of the command register.
    fn commands(&self, seed: u64) -> Result<u64> {
        let copy = Descriptor::copy(self.ram.at(TARGET), self.ram.at(SOURCE), SIZE);
        let mut count = 0;
        for command in 0..=255_u64 {
            self.reset()?;
            self.command(command);
            self.start(self.chain(&[copy.with_next(self.ram.at(CHAIN))]), 0x4000);
            self.command(command);
            self.command(!command & 0xff);
            self.store(reg::CHANERR, 4, u64::from(u32::MAX));
            count += 3;
        }
        self.works(seed)?;
        Ok(count)
    }

    /// Stores of every width to every place, and what must show nothing shows nothing.
    fn scan(&self, seed: u64) -> Result<u64> {
        let table = reg::MSIX_TABLE as usize..reg::BAR0_SIZE as usize;
        let count = scan::stores(&self.bar, table.end, table, seed);
        self.reset()?;
        ensure!(
            self.bar.load(reg::CHANCNT as usize, 1) == 1,
            "another number of channels"
        );
        // Where a second channel would be, and all others.
        for at in (2 * CHANNEL_STRIDE..reg::MSIX_TABLE).step_by(8) {
            let found = self.bar.load(at as usize, 8);
            ensure!(found == 0, "{found:#x} is at {at:#x}");
        }
        self.works(seed)?;
        Ok(count)
    }
}
