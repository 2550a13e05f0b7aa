//! Files of ours that a program tells KVM of (`KVM_DEV_VFIO_FILE`, `virt/kvm/vfio.c`).
//!
//! The kernel knows no VFIO file but its own and refuses ours, which a virtual machine monitor takes
//! for the end. What the kernel would do with a file of its own is about caches and interrupts of
//! hardware: for a software device there is nothing to be done.

use std::sync::Arc;

use ioasid_core::host::Caller;
use ioasid_host::Process;
use rustix::fs::{CWD, readlinkat};

use super::{
    Server,
    calls::{Answer, Outcome},
    files::Object,
};
use crate::{filter::KVM_SET_DEVICE_ATTR, listener::Request};

/// What `/proc/PID/fd` shows of the device that the files are given to.
const KVM_VFIO: &[u8] = b"anon_inode:kvm-vfio";
/// Attributes about files: of the group `KVM_DEV_VFIO_FILE`, add and remove.
const FILE: u32 = 1;
const FILE_ADD: u64 = 1;
const FILE_DEL: u64 = 2;

/// Whether this is an ioctl about an attribute of a device of KVM's.
pub(super) fn is_attribute(request: &Request) -> bool {
    request.nr == libc::SYS_ioctl && request.args[1] as u32 == KVM_SET_DEVICE_ATTR
}

impl Server {
    /// Accepts what is about a file of ours; the kernel sees to everything else.
    pub(super) fn kvm_attribute(&mut self, request: &Request, process: &Arc<Process>) -> Outcome {
        let [fd, _, address, ..] = request.args;
        let link = format!("/proc/{}/fd/{}", request.tid, fd as i32);
        if !readlinkat(CWD, link, Vec::new()).is_ok_and(|link| link.as_bytes() == KVM_VFIO) {
            return Ok(Answer::Proceed);
        }
        // struct kvm_device_attr: flags, group, attr, addr.
        let mut bytes = [0; 24];
        process.read(address, &mut bytes)?;
        let [_, group, low, high, at_low, at_high] = words(&bytes);
        let attribute = u64::from(high) << 32 | u64::from(low);
        let file_number_at = u64::from(at_high) << 32 | u64::from(at_low);
        if group != FILE || !matches!(attribute, FILE_ADD | FILE_DEL) {
            return Ok(Answer::Proceed);
        }
        let mut number = [0; 4];
        process.read(file_number_at, &mut number)?;
        let number = u64::from(u32::from_ne_bytes(number));
        let file = self.bound(request, process, number)?;
        let file = file.and_then(|identity| self.files.get(identity));
        let ours =
            file.is_some_and(|file| matches!(file.object, Object::Device(_) | Object::Group(_)));
        Ok(if ours {
            Answer::Value(0)
        } else {
            Answer::Proceed
        })
    }
}

fn words(bytes: &[u8; 24]) -> [u32; 6] {
    let (chunks, _) = bytes.as_chunks::<4>();
    let mut words = [0; 6];
    for (word, chunk) in words.iter_mut().zip(chunks) {
        *word = u32::from_ne_bytes(*chunk);
    }
    words
}
