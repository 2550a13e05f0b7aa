//! Floor 7: what runs inside of a program whose device registers are mapped.
//!
//! A mapped BAR is a file mapped past its end: every access raises SIGBUS. This library, loaded by
//! `LD_PRELOAD`, catches it, decodes the instruction ([`ioasid_mmio`]) and asks the session for
//! each access of a register by one system call ([`call`]). Other signals reach the program's own
//! handlers as if this library were not there.
//!
//! * [`ask`]: one access, in the page or by the system call.
//! * [`call`]: the system call that asks for one access. The session answers it.
//! * [`page`]: the page that a process shares with the session while it touches registers often.
//! * [`errands`]: the page in which the session asks for copies of the program's private memory.
//! * [`agent`]: the process, beside the program and in its memory, that makes them.
//! * [`handler`]: the signal handler.
//! * [`registers`]: the interrupted thread's registers, in its signal frame.
//! * [`space`]: memory, as the instruction sees it.
//! * [`actions`]: what the program wants done on the signals that this library uses.
//! * [`own`]: what is this process's alone, and no child's.
//! * [`interpose`]: the functions of the C library that must not undo the handler, and `ioctl`.
//! * `next`: what these functions leave to the next library.
//! * [`stat`]: the functions of the C library that report what a path or a descriptor leads to;
//!   [`layout`]: what they fill in.
//! * [`sys`]: system calls.
//!
//! It runs in a signal handler of a program about which nothing is known. So it needs no C library
//! but the functions of `string.h`, takes no lock, and its only memory is static, but for a page
//! of its own ([`own`]), two that it shares with the session, and a stack if there is an agent. For
//! each shared one a descriptor comes and goes, once; no other system call of it changes the program. It works with
//! any C library, in any number of threads, after `fork`, and in a child of `vfork`, whose memory
//! is its parent's.
// UNSAFETY: signal handlers, signal frames and system calls; each block says why it is sound.
#![allow(unsafe_code)]
#![no_std]

#[cfg(ioasid_shuttle)]
extern crate std;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("ioasid-preload needs Linux on x86-64");

pub mod actions;
pub mod agent;
pub mod ask;
pub mod call;
pub mod errands;
pub mod handler;
#[cfg(all(feature = "image", not(test)))]
mod image;
pub mod interpose;
pub mod layout;
#[cfg(feature = "image")]
pub mod next;
pub mod own;
pub mod page;
pub mod registers;
pub mod space;
pub mod stat;
pub mod sys;
