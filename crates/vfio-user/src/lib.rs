//! Floor 8: a vfio-user server: the devices of a machine for virtual machines.
//!
//! vfio-user is VFIO over a UNIX socket: a VMM takes a device from another process, hands over its
//! guest's memory, and forwards the guest's register accesses. Here each device has a socket
//! ([`Server::export`]), and all devices of one VM stand on one address space, which the server makes:
//! the VM's memory is mapped once however many devices its VMM asks for, and a mediated device and a
//! whole one are two routes of one domain.
//!
//! * [`spec`]: the wire structs, nothing else.
//! * [`Server`], [`Export`], [`listen`]: sockets and clients, one client after the other for each device.
//! * [`error`]: every cause of a refusal.
//!
//! Inside: `wire` frames messages; `version` negotiates; `commands` carries them out, most of them by
//! the code that answers the same ioctl of a program (`payload`); `vm` is the address space of a VM;
//! `memory` and `peer` reach memory that came without a descriptor by messages to the client;
//! `connection` puts one client's commands in order.
//!
//! What never lives here: a register, an errno number, or a system call that reaches another process.
//!
//! This crate is a boundary between VMs. Whatever a client sends is bounded before it costs anything,
//! and costs that client alone: its threads, its windows, its descriptors. An error is reported by the
//! errno that the ioctl would have, and the message after it begins where it should. When a client is
//! gone, in whatever way, its device is released and pristine before the next one is taken.
#![forbid(unsafe_code)]

mod commands;
mod connection;
pub mod error;
mod logging;
mod memory;
mod migration;
mod payload;
mod peer;
mod server;
pub mod spec;
mod version;
mod vm;
mod wire;

pub use error::Error;
pub use server::{Export, NewContext, Server, listen};
pub use wire::{MAX_FDS, MAX_PAYLOAD};
