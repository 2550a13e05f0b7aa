//! Files of the machine that a program gives to KVM (`KVM_DEV_VFIO_FILE`, `virt/kvm/vfio.c`).
//!
//! The kernel knows no VFIO file but its own and refuses the machine's, which a virtual machine
//! monitor takes for the end. What the kernel would do with a file of its own is about caches and
//! interrupts of hardware: for a software device there is nothing to be done.

use rustix::fs::{CWD, readlinkat};

use crate::session::{
    answer::{Answer, Outcome, Pending},
    descriptors::object::Object,
    state::State,
};

/// What `/proc/PID/fd` shows of the device that the files are given to.
const KVM_VFIO: &[u8] = b"anon_inode:kvm-vfio";
/// Attributes about files: of the group `KVM_DEV_VFIO_FILE`, add and remove.
const FILE: u32 = 1;
const FILE_ADD: u64 = 1;
const FILE_DEL: u64 = 2;

/// Accepts what is about a file of the machine; everything else is the kernel's.
pub(crate) fn set_attribute(
    state: &mut State,
    call: Pending<'_>,
    fd: i32,
    address: u64,
) -> Outcome {
    let link = format!("/proc/{}/fd/{fd}", call.tid);
    if !readlinkat(CWD, link, Vec::new()).is_ok_and(|link| link.as_bytes() == KVM_VFIO) {
        return Ok(Answer::Proceed);
    }
    // struct kvm_device_attr: flags, group, attr, addr.
    let mut bytes = [0; 24];
    call.read(address, &mut bytes)?;
    let [_, group, low, high, at_low, at_high] = words(&bytes);
    let attribute = u64::from(high) << 32 | u64::from(low);
    let file_number_at = u64::from(at_high) << 32 | u64::from(at_low);
    if group != FILE || !matches!(attribute, FILE_ADD | FILE_DEL) {
        return Ok(Answer::Proceed);
    }
    let mut number = [0; 4];
    call.read(file_number_at, &mut number)?;
    let identity = state.bound(call, i32::from_ne_bytes(number))?;
    let file = identity.and_then(|identity| state.descriptors.files.get(identity));
    let known =
        file.is_some_and(|file| matches!(file.object, Object::Device(_) | Object::Group(_)));
    Ok(match known {
        true => Answer::Value(0),
        false => Answer::Proceed,
    })
}

fn words(bytes: &[u8; 24]) -> [u32; 6] {
    let (chunks, _) = bytes.as_chunks::<4>();
    let mut words = [0; 6];
    for (word, chunk) in words.iter_mut().zip(chunks) {
        *word = u32::from_ne_bytes(*chunk);
    }
    words
}
