//! A client that migrates its device.

use std::os::fd::{AsFd, OwnedFd};

use ioasid_uapi::spec::vfio::{Feature, IrqSet, MigState};
use ioasid_vfio_user::spec::{MigData, command};
use proptest::sample::Index;
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::{FromBytes, IntoBytes};

use super::Vmm;

pub const ERROR: u32 = 0;
pub const STOP: u32 = 1;
pub const RUNNING: u32 = 2;
pub const STOP_COPY: u32 = 3;
pub const RESUMING: u32 = 4;

pub fn feature(vmm: &mut Vmm, number: u32, flags: u32, data: &[u8]) -> Result<Vec<u8>, u32> {
    let request = Feature {
        argsz: (Feature::MIN + 8) as u32,
        flags: number | flags,
    };
    let payload = [request.as_bytes(), data].concat();
    let reply = vmm.call(command::DEVICE_FEATURE, &payload)?;
    Ok(reply[Feature::MIN..].to_vec())
}

pub fn go(vmm: &mut Vmm, device_state: u32) -> Result<(), u32> {
    let wanted = MigState {
        device_state,
        data_fd: -1,
    };
    let number = Feature::MIG_DEVICE_STATE;
    let reply = feature(vmm, number, Feature::SET, wanted.as_bytes())?;
    assert_eq!(MigState::read_from_bytes(&reply).unwrap(), wanted);
    Ok(())
}

pub fn state(vmm: &mut Vmm) -> u32 {
    let reply = feature(vmm, Feature::MIG_DEVICE_STATE, Feature::GET, &[]).unwrap();
    MigState::read_from_bytes(&reply).unwrap().device_state
}

pub fn size(vmm: &mut Vmm) -> u64 {
    let reply = feature(vmm, Feature::MIG_DATA_SIZE, Feature::GET, &[]).unwrap();
    u64::from_ne_bytes(reply.try_into().unwrap())
}

pub fn read_some(vmm: &mut Vmm, size: u32) -> Result<Vec<u8>, u32> {
    let request = MigData {
        argsz: size + 8,
        size,
    };
    let reply = vmm.call(command::MIG_DATA_READ, request.as_bytes())?;
    let (head, data) = MigData::read_from_prefix(&reply).unwrap();
    assert_eq!(head.size as usize, data.len());
    assert_eq!(head.argsz as usize, reply.len());
    Ok(data.to_vec())
}

pub fn read_all(vmm: &mut Vmm) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let some = read_some(vmm, 1000).unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

pub fn write_some(vmm: &mut Vmm, data: &[u8]) -> Result<(), u32> {
    let head = MigData {
        argsz: (data.len() + 8) as u32,
        size: data.len() as u32,
    };
    let payload = [head.as_bytes(), data].concat();
    vmm.call(command::MIG_DATA_WRITE, &payload).map(drop)
}

/// Restores `state`; the error of the arc to STOP, if it is refused.
pub fn restore(vmm: &mut Vmm, state: &[u8]) -> Result<(), u32> {
    go(vmm, RESUMING).unwrap();
    for part in state.chunks(777) {
        write_some(vmm, part).unwrap();
    }
    go(vmm, STOP)
}

/// An eventfd on MSI-X vector `vector`.
pub fn listen_to(vmm: &mut Vmm, vector: u32) -> OwnedFd {
    let irq = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let request = IrqSet {
        argsz: IrqSet::MIN as u32,
        flags: IrqSet::DATA_EVENTFD | IrqSet::ACTION_TRIGGER,
        index: 2,
        start: vector,
        count: 1,
    };
    let fds = [irq.as_fd()];
    vmm.call_with(command::DEVICE_SET_IRQS, request.as_bytes(), &fds)
        .unwrap();
    irq
}

/// Interrupts since the last look.
pub fn interrupts(irq: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::read(irq, &mut bytes) {
        Ok(_) => u64::from_ne_bytes(bytes),
        Err(_) => 0,
    }
}

/// Magic, version, length of configuration space.
const LENGTHS: usize = 12;
/// Where the checksum is, and what it is of.
const SUM: usize = 20;
const BODY: usize = 28;

/// `state` with bytes changed, of the model's state alone or `everywhere`, and its end replaced.
/// Lengths and checksum fit: what is forged is forged well.
pub fn forge(
    state: &[u8],
    changes: &[(Index, u8)],
    everywhere: bool,
    tail: Option<&[u8]>,
) -> Vec<u8> {
    let mut forged = state.to_vec();
    let config = u32::from_le_bytes(forged[LENGTHS..LENGTHS + 4].try_into().unwrap());
    let first = if everywhere { 0 } else { config as usize };
    for (index, value) in changes {
        let at = BODY + first + index.index(forged.len() - BODY - first);
        forged[at] = *value;
    }
    if let Some(tail) = tail {
        forged.truncate(forged.len() - tail.len());
        forged.extend(tail);
    }
    let rest = (forged.len() - BODY).saturating_sub(config as usize) as u32;
    forged[LENGTHS + 4..SUM].copy_from_slice(&rest.to_le_bytes());
    let sum = forged[BODY..]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    forged[SUM..BODY].copy_from_slice(&sum.to_le_bytes());
    forged
}
