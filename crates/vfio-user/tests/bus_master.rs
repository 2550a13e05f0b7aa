//! A device that must not issue memory requests issues none: after the answer to the write that clears
//! Bus Master, or takes the device out of D0, not a byte, a record or an interrupt comes, until that is
//! undone. Whole devices and mediated ones, by a VFIO device file, over a socket with shared memory, and
//! over a socket with memory of the client's own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{migration::*, *};
use ioasid_core::{Prot, host::CountingIrq, memory::OwnPages};
use ioasid_dsa::spec::{
    Cmd, Command, Descriptor, registers as reg,
    tables::{GRPCFG_SIZE, WqLimits, WqUse},
};
use ioasid_ioat::spec::{
    ChanSts, ChannelStatus, Descriptor as Link,
    registers::{self as chan, CHANNEL_STRIDE},
};
use ioasid_iommufd::{Context, MapArgs};
use ioasid_vfio::{
    DeviceFile,
    irq::{Eventfd, IrqAction, IrqData, IrqIndex, SetIrqs},
};
use ioasid_vfio_user::spec::command;

const MIB: u64 = 1 << 20;
const RAM: u64 = 32 * MIB;
const COPIES: u64 = 12;
const SIZE: u64 = 2 * MIB;
const SRC: u64 = 2 * MIB;
const DST: u64 = 4 * MIB;
/// Completion records of a DSA, 64 bytes each; those of a channel's links are its completion word.
const RECORDS: u64 = 0x1000;
const WORD: u64 = 0x2000;
const CHAIN: u64 = 0x1_0000;
/// Links of one copy.
const LINKS: u64 = 8;
/// Rounds that have to catch the device at work.
const CAUGHT: u32 = 3;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Dsa,
    DsaChild,
    Ioat,
    IoatChild,
}

const KINDS: [Kind; 4] = [Kind::Dsa, Kind::DsaChild, Kind::Ioat, Kind::IoatChild];

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Dsa => PDEV,
            Kind::DsaChild => MDEV1,
            Kind::Ioat => CHANNELS,
            Kind::IoatChild => CHANNEL,
        }
    }

    const fn is_dsa(self) -> bool {
        matches!(self, Kind::Dsa | Kind::DsaChild)
    }
}

/// A program that has the device, and memory from DMA address 0.
trait Client {
    fn write(&mut self, region: u32, offset: u64, data: &[u8]);
    fn read(&mut self, region: u32, offset: u64, count: u32) -> Vec<u8>;
    fn peek(&mut self, offset: u64, len: u64) -> Vec<u8>;
    fn poke(&mut self, offset: u64, bytes: &[u8]);
    /// Interrupts since the last call.
    fn interrupts(&mut self) -> u64;
    fn reset(&mut self);
    /// Takes the memory away, and gives it back.
    fn remap(&mut self);

    fn read64(&mut self, offset: u64) -> u64 {
        u64::from_le_bytes(self.read(0, offset, 8).try_into().unwrap())
    }

    fn store(&mut self, offset: u64, value: u32) {
        self.write(0, offset, &value.to_le_bytes());
    }

    fn set_command(&mut self, command: u8) {
        self.write(7, 4, &[command, 0]);
    }

    fn set_power(&mut self, state: u8) {
        let mut at = self.read(7, 0x34, 1)[0];
        while self.read(7, at.into(), 1) != [1] {
            at = self.read(7, u64::from(at) + 1, 1)[0];
        }
        self.write(7, u64::from(at) + 4, &[state]);
    }

    /// Starts a command of a DSA and waits for its end.
    fn run(&mut self, command: Command) {
        let cmd = Cmd::new().with_code(command as u8);
        let operand = match command {
            Command::DrainWq | Command::DisableWq => 1,
            _ => 0,
        };
        self.store(reg::CMD, cmd.with_operand(operand).into_bits());
        let deadline = Instant::now() + PATIENCE;
        while self.read64(reg::CMDSTS) >> 31 & 1 == 1 {
            assert!(Instant::now() < deadline, "{command:?} never ends");
        }
        assert_eq!(self.read64(reg::CMDSTS) as u8, 0, "{command:?}");
    }
}

/// By a VFIO device file.
struct Direct {
    file: Arc<DeviceFile>,
    context: Arc<Context>,
    ioas: ioasid_iommufd::ObjectId,
    pages: OwnPages,
    irq: Arc<CountingIrq>,
    seen: u64,
}

impl Direct {
    fn new(fixture: &Fixture, kind: Kind) -> Self {
        let exports = fixture.machine.exports();
        let export = exports.iter().find(|export| export.name == kind.name());
        let file = export.unwrap().device.open().unwrap();
        let context = fixture.machine.new_context();
        file.bind(&context).unwrap();
        let ioas = context.ioas_alloc().unwrap();
        file.attach(ioas, None).unwrap();
        let pages = OwnPages::new(fixture.machine.iommu().space(), RAM as usize).unwrap();
        let irq = CountingIrq::new();
        let vector = u32::from(kind.is_dsa());
        let request = SetIrqs {
            index: IrqIndex::Msix,
            action: IrqAction::Trigger,
            start: vector,
            count: 1,
            data: IrqData::Eventfds(vec![Eventfd::Sink(irq.clone())]),
        };
        file.set_irqs(&request).unwrap();
        let direct = Direct {
            file,
            context,
            ioas,
            pages,
            irq,
            seen: 0,
        };
        direct.map();
        direct
    }

    fn map(&self) {
        let args = MapArgs::fixed(0, RAM, Prot::RW);
        let pages = Arc::new(self.pages.clone());
        self.context.ioas_map(self.ioas, pages, args).unwrap();
    }
}

impl Client for Direct {
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let at = u64::from(region) << 40 | offset;
        assert_eq!(self.file.write(at, data), Ok(data.len()));
    }

    fn read(&mut self, region: u32, offset: u64, count: u32) -> Vec<u8> {
        let mut bytes = vec![0; count as usize];
        let at = u64::from(region) << 40 | offset;
        assert_eq!(self.file.read(at, &mut bytes), Ok(bytes.len()));
        bytes
    }

    fn peek(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.pages.memory().read(offset as usize, &mut bytes);
        bytes
    }

    fn poke(&mut self, offset: u64, bytes: &[u8]) {
        self.pages.memory().write(offset as usize, bytes);
    }

    fn interrupts(&mut self) -> u64 {
        let now = self.irq.count();
        now - std::mem::replace(&mut self.seen, now)
    }

    fn reset(&mut self) {
        self.file.reset().unwrap();
    }

    fn remap(&mut self) {
        let unmapped = self.context.ioas_unmap(self.ioas, 0, RAM).unwrap();
        assert_eq!(unmapped, RAM);
        self.map();
    }
}

/// Over a socket.
struct Socket {
    vmm: Vmm,
    /// `None`: the client keeps its memory to itself.
    ram: Option<OwnedFd>,
    irq: OwnedFd,
}

impl Socket {
    fn new(fixture: &Fixture, kind: Kind, shared: bool) -> Self {
        let mut vmm = fixture.connect(kind.name());
        let ram = shared.then(|| memfd(RAM));
        vmm.map(ram.as_ref(), 0, 0, RAM).unwrap();
        if !shared {
            vmm.ram = vec![0; RAM as usize];
        }
        let irq = listen_to(&mut vmm, u32::from(kind.is_dsa()));
        Socket { vmm, ram, irq }
    }

    /// Answers what the server asks for, for a moment at most.
    fn serve(&mut self) -> bool {
        if self.ram.is_some() {
            std::thread::sleep(Duration::from_millis(1));
            return false;
        }
        self.vmm
            .stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let mut first = [0];
        let asked = rustix::net::recv(&self.vmm.stream, &mut first, rustix::net::RecvFlags::PEEK);
        self.vmm.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if asked.is_ok() {
            let message = self.vmm.receive().unwrap();
            self.vmm.answer(&message);
        }
        asked.is_ok()
    }
}

impl Client for Socket {
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        self.vmm.write(region, offset, data).unwrap();
    }

    fn read(&mut self, region: u32, offset: u64, count: u32) -> Vec<u8> {
        self.vmm.read(region, offset, count).unwrap()
    }

    fn peek(&mut self, offset: u64, len: u64) -> Vec<u8> {
        // A private client learns of what is written by being asked.
        self.serve();
        match &self.ram {
            Some(ram) => peek(ram, offset, len as usize),
            None => self.vmm.ram[offset as usize..(offset + len) as usize].to_vec(),
        }
    }

    fn poke(&mut self, offset: u64, bytes: &[u8]) {
        match &self.ram {
            Some(ram) => poke(ram, offset, bytes),
            None => self.vmm.ram[offset as usize..][..bytes.len()].copy_from_slice(bytes),
        }
    }

    fn interrupts(&mut self) -> u64 {
        interrupts(&self.irq)
    }

    fn reset(&mut self) {
        self.vmm.call(command::DEVICE_RESET, &[]).unwrap();
    }

    fn remap(&mut self) {
        self.vmm.unmap(0, RAM).unwrap();
        self.vmm.map(self.ram.as_ref(), 0, 0, RAM).unwrap();
    }
}

fn bring_up(client: &mut dyn Client, kind: Kind) {
    client.set_command(6);
    match kind {
        Kind::Ioat | Kind::IoatChild => {
            client.write(0, chan::INTRCTRL, &[8]);
            client.write(0, CHANNEL_STRIDE + chan::CHANCMD, &[0x20]);
            let completion = WORD.to_le_bytes();
            client.write(0, CHANNEL_STRIDE + chan::CHANCMP, &completion);
            return;
        }
        Kind::DsaChild => client.run(Command::ResetDevice),
        Kind::Dsa => {
            client.run(Command::ResetDevice);
            client.write(0, reg::GRPCFG, &1_u64.to_le_bytes());
            client.write(0, reg::GRPCFG + GRPCFG_SIZE / 2, &3_u64.to_le_bytes());
            let limits = WqLimits::new()
                .with_max_xfer_shift(21)
                .with_max_batch_shift(5);
            let usage = WqUse::new().with_dedicated(true).with_priority(10);
            client.store(reg::WQCFG, 16);
            client.store(reg::WQCFG + 8, usage.into_bits());
            client.store(reg::WQCFG + 12, limits.into_bits());
        }
    }
    client.run(Command::EnableDevice);
    client.run(Command::EnableWq);
}

/// Queues the copies, each with a record or a word, and an interrupt.
fn queue(client: &mut dyn Client, kind: Kind) {
    client.poke(0, &vec![0; 2 * MIB as usize]);
    client.poke(DST, &vec![0; (COPIES * SIZE) as usize]);
    client.poke(SRC, &pattern(SIZE as usize, 7));
    if kind.is_dsa() {
        for n in 0..COPIES {
            let (to, record) = (DST + n * SIZE, RECORDS + 64 * n);
            let copy = Descriptor::memory_move(to, SRC, SIZE as u32, record).with_interrupt(1);
            client.write(2, 0, &copy.to_bytes());
        }
        return;
    }
    let part = SIZE / LINKS;
    for n in 0..COPIES * LINKS {
        let from = SRC + n % LINKS * part;
        let link = Link::copy(DST + n * part, from, part as u32);
        let link = link
            .with_next(CHAIN + 64 * (n + 1))
            .with_control(|control| {
                control.set_compl_write(true);
                control.set_int_en(n + 1 == COPIES * LINKS);
            });
        client.poke(CHAIN + 64 * n, &link.to_bytes());
    }
    client.write(0, CHANNEL_STRIDE + chan::CHANCTRL, &[0x1d, 0]);
    client.write(0, CHANNEL_STRIDE + chan::CHAINADDR, &CHAIN.to_le_bytes());
    let count = (COPIES * LINKS) as u16;
    client.write(0, CHANNEL_STRIDE + chan::DMACOUNT, &count.to_le_bytes());
}

/// How many copies have reported that they are done.
fn done(client: &mut dyn Client, kind: Kind) -> u64 {
    if kind.is_dsa() {
        let records = client.peek(RECORDS, 64 * COPIES);
        return records.chunks(64).filter(|record| record[0] != 0).count() as u64;
    }
    let word = u64::from_le_bytes(client.peek(WORD, 8).try_into().unwrap());
    match ChanSts::from_bits(word).completed_address() {
        0 => 0,
        at => ((at - CHAIN) / 64 + 1) / LINKS,
    }
}

fn wait_for(client: &mut dyn Client, kind: Kind, copies: u64) {
    let deadline = Instant::now() + PATIENCE;
    while done(client, kind) < copies {
        assert!(Instant::now() < deadline, "{kind:?}: never {copies} copies");
    }
}

/// How a device is kept from issuing requests, and let again.
#[derive(Clone, Copy, Debug)]
enum Off {
    Master,
    Sleep,
}

impl Off {
    fn set(self, client: &mut dyn Client, off: bool) {
        match self {
            Off::Master => client.set_command(if off { 2 } else { 6 }),
            Off::Sleep => client.set_power(if off { 3 } else { 0 }),
        }
    }
}

/// What a device can change: the completions and the data.
fn everything(client: &mut dyn Client) -> (Vec<u8>, Vec<u8>) {
    let completions = client.peek(RECORDS, 0x2000);
    (completions, client.peek(DST, COPIES * SIZE))
}

/// Sees that nothing comes, whatever is in the memory. Returns how many interrupts had come before.
fn expect_silence(client: &mut dyn Client) -> u64 {
    // What has come before the answer is not at issue.
    let before = client.interrupts();
    let (completions, data) = everything(client);
    client.poke(RECORDS, &[0x5a; 0x2000]);
    client.poke(DST, &vec![0x5a; (COPIES * SIZE) as usize]);
    std::thread::sleep(Duration::from_millis(20));
    let (late_completions, late_data) = everything(client);
    assert!(
        late_completions.iter().all(|byte| *byte == 0x5a),
        "a completion came"
    );
    assert!(late_data.iter().all(|byte| *byte == 0x5a), "a byte came");
    assert_eq!(client.interrupts(), 0, "an interrupt came");
    client.poke(RECORDS, &completions);
    client.poke(DST, &data);
    before
}

fn expect_all(client: &mut dyn Client, kind: Kind) {
    wait_for(client, kind, COPIES);
    let data = client.peek(DST, COPIES * SIZE);
    let source = pattern(SIZE as usize, 7);
    assert!(data.chunks(SIZE as usize).all(|copy| copy == source));
    if kind.is_dsa() {
        let records = client.peek(RECORDS, 64 * COPIES);
        assert!(records.chunks(64).all(|record| record[0] == 1));
    }
}

/// Where a device was when it was kept from issuing requests.
#[derive(Clone, Copy)]
struct Stopped {
    /// Copies that had ended.
    finished: u64,
    /// Interrupts that had come.
    reported: u64,
}

/// Rounds that catch the device at work, with `then` while it is kept from issuing requests.
fn rounds(
    client: &mut dyn Client,
    kind: Kind,
    off: Off,
    then: &mut dyn FnMut(&mut dyn Client, Stopped),
) {
    let deadline = Instant::now() + PATIENCE;
    let mut caught = 0;
    let mut round = 0;
    while caught < CAUGHT {
        assert!(Instant::now() < deadline, "{kind:?}: always done before");
        bring_up(client, kind);
        queue(client, kind);
        wait_for(client, kind, round % 3);
        off.set(client, true);
        let reported = expect_silence(client);
        let finished = done(client, kind);
        caught += u32::from(finished < COPIES);
        round += 1;
        then(client, Stopped { finished, reported });
    }
}

/// What every test of this file shows: what is queued waits, and goes on where it stopped.
fn waits_and_goes_on(client: &mut dyn Client, kind: Kind) {
    for off in [Off::Master, Off::Sleep] {
        rounds(client, kind, off, &mut |client, _| {
            off.set(client, false);
            expect_all(client, kind);
        });
    }
    // Nothing is reported twice, and nothing is left out.
    bring_up(client, kind);
    client.interrupts();
    queue(client, kind);
    Off::Master.set(client, true);
    Off::Master.set(client, false);
    expect_all(client, kind);
    wait_for_interrupts(client, kind, 0, interrupts_of(kind, COPIES));
}

/// How many interrupts the first `finished` copies have asked for.
fn interrupts_of(kind: Kind, finished: u64) -> u64 {
    match kind.is_dsa() {
        true => finished,
        false => u64::from(finished == COPIES),
    }
}

/// Waits until `wanted` interrupts have come, of which `reported` have been counted, and sees that no more
/// than these do.
fn wait_for_interrupts(client: &mut dyn Client, kind: Kind, reported: u64, wanted: u64) {
    let deadline = Instant::now() + PATIENCE;
    let mut count = reported;
    while count < wanted {
        assert!(Instant::now() < deadline, "{kind:?}: {count} interrupts");
        count += client.interrupts();
    }
    assert_eq!(count, wanted, "{kind:?}");
}

/// What is to end ends, though nothing may be issued.
fn ends(client: &mut dyn Client, kind: Kind) {
    let mut turn = 0;
    rounds(client, kind, Off::Master, &mut |client, stopped| {
        client.remap();
        let resets = turn % 3 == 2;
        match (kind.is_dsa(), turn % 3) {
            (true, 0) => client.run(Command::DrainWq),
            (true, 1) => client.run(Command::DisableWq),
            (false, 0 | 1) => {
                client.write(0, CHANNEL_STRIDE + chan::CHANCMD, &[0x04]);
                let status = ChanSts::from_bits(client.read64(CHANNEL_STRIDE + chan::CHANSTS));
                let idle = [ChannelStatus::Suspended, ChannelStatus::Halted];
                assert!(idle.iter().any(|idle| status.is(*idle)), "{status:?}");
                client.write(0, CHANNEL_STRIDE + chan::CHANCMD, &[0x20]);
            }
            _ => client.reset(),
        }
        turn += 1;
        client.set_command(6);
        // Interrupts of what had ended waited, each to its end; a reset has forgotten those.
        if !resets {
            let wanted = interrupts_of(kind, stopped.finished);
            wait_for_interrupts(client, kind, stopped.reported, wanted);
        }
        // What was dropped comes no more; the records of what had ended stay.
        expect_silence(client);
        assert_eq!(done(client, kind), stopped.finished);
    });
}

fn fixture() -> Fixture {
    Fixture::of(&every_kind().parse().unwrap())
}

#[test]
fn by_a_device_file_what_is_queued_waits_and_goes_on() {
    let fixture = fixture();
    for kind in KINDS {
        waits_and_goes_on(&mut Direct::new(&fixture, kind), kind);
    }
}

#[test]
fn over_a_socket_with_shared_memory_what_is_queued_waits_and_goes_on() {
    let fixture = fixture();
    for kind in KINDS {
        waits_and_goes_on(&mut Socket::new(&fixture, kind, true), kind);
    }
}

#[test]
fn over_a_socket_with_private_memory_what_is_queued_waits_and_goes_on() {
    let fixture = fixture();
    for kind in [Kind::DsaChild, Kind::Ioat] {
        waits_and_goes_on(&mut Socket::new(&fixture, kind, false), kind);
    }
}

#[test]
fn drains_suspends_resets_and_unmaps_end_meanwhile() {
    let fixture = fixture();
    for kind in KINDS {
        ends(&mut Direct::new(&fixture, kind), kind);
        ends(&mut Socket::new(&fixture, kind, true), kind);
    }
}

#[test]
fn a_device_that_must_not_issue_anything_is_paused_and_moved() {
    let fixture = fixture();
    for kind in KINDS {
        let mut client = Socket::new(&fixture, kind, true);
        bring_up(&mut client, kind);
        queue(&mut client, kind);
        Off::Master.set(&mut client, true);
        go(&mut client.vmm, STOP_COPY).unwrap();
        let saved = read_all(&mut client.vmm);
        go(&mut client.vmm, STOP).unwrap();
        restore(&mut client.vmm, &saved).unwrap();
        go(&mut client.vmm, RUNNING).unwrap();
        expect_silence(&mut client);
        Off::Master.set(&mut client, false);
        expect_all(&mut client, kind);
    }
}
