//! The sockets: one for each device, each with a thread that serves one client after the other.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ioasid_core::{
    inspect::{Inspect, Node, Value},
    spa::SpaSpace,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use ioasid_host::{Closer, ReceivedFd, service::give_back_memory};
use ioasid_iommufd::Context;
use ioasid_vfio::VfioDevice;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvFlags, recv, sockopt::socket_peercred},
};

use crate::{connection, vm::Vm};

/// How long the end of the server waits for clients' messages that are being carried out.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long is waited for descriptors to be free before it is tried again.
const A_WHILE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Makes the file of `/dev/iommu` that a VM's devices are bound to.
pub type NewContext = Box<dyn Fn() -> Arc<Context> + Send + Sync>;

/// A device to be offered.
#[derive(Debug)]
pub struct Export {
    /// What it is called: its PCI address or its UUID.
    pub name: String,
    /// The VM that it belongs to. Devices of one VM share one address space; a device of none has its
    /// own.
    pub vm: Option<String>,
    /// The device.
    pub device: Arc<VfioDevice>,
    /// Where its clients connect.
    pub listener: UnixListener,
    /// The socket's file, for those that look.
    pub path: PathBuf,
}

/// Binds a socket that its owner alone can connect to. A socket that nobody listens on any more is
/// replaced.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if somebody listens there, [`io::ErrorKind::AlreadyExists`] if there is
/// something else; what the file system says.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
        },
    }
    let listener = UnixListener::bind(path)?;
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o600))?;
    Ok(listener)
}

/// The vfio-user server of one machine. Dropping it drains it as [`Server::stop`] does.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    ports: Mutex<Vec<(Arc<Port>, JoinHandle<()>)>>,
}

struct Shared {
    new_context: NewContext,
    space: Arc<SpaSpace>,
    /// The VMs with a device that is connected.
    vms: Mutex<BTreeMap<String, Weak<Vm>>>,
    connections: AtomicU64,
    stopping: AtomicBool,
    /// Readable (hung up) once the server stops: the threads that accept wait for it too.
    stop: io::PipeReader,
    stop_now: Mutex<Option<io::PipeWriter>>,
}

/// One socket.
#[derive(Debug)]
struct Port {
    name: String,
    vm: Option<String>,
    path: PathBuf,
    device: Arc<VfioDevice>,
    /// What closes descriptors that its clients have sent for nothing.
    closer: Arc<Closer>,
    current: Mutex<Option<Arc<UnixStream>>>,
    served: AtomicU64,
    ended: Mutex<bool>,
    end: Condvar,
}

impl Server {
    /// A server without devices, for a machine whose memory has system physical addresses in `space`.
    ///
    /// # Errors
    /// What the operating system says when it gives no pipe.
    pub fn new(space: Arc<SpaSpace>, new_context: NewContext) -> io::Result<Self> {
        let (stop, stop_now) = io::pipe()?;
        Ok(Server {
            shared: Arc::new(Shared {
                new_context,
                space,
                vms: Mutex::default(),
                connections: AtomicU64::new(0),
                stopping: AtomicBool::new(false),
                stop,
                stop_now: Mutex::new(Some(stop_now)),
            }),
            ports: Mutex::default(),
        })
    }

    /// Offers a device. It is bound when a client connects and released when that client leaves; one
    /// client at a time, the next one waits.
    ///
    /// # Errors
    /// What the operating system says when it gives no thread.
    pub fn export(&self, export: Export) -> io::Result<()> {
        let Export {
            name,
            vm,
            device,
            listener,
            path,
        } = export;
        // A client that connects and goes at once leaves nothing to accept.
        listener.set_nonblocking(true)?;
        let port = Arc::new(Port {
            name: name.clone(),
            vm,
            path,
            device,
            closer: Closer::new(&name),
            current: Mutex::default(),
            served: AtomicU64::new(0),
            ended: Mutex::new(false),
            end: Condvar::new(),
        });
        let (shared, own) = (Arc::clone(&self.shared), Arc::clone(&port));
        let thread = std::thread::Builder::new()
            .name(format!("vm {name}"))
            .spawn(move || {
                shared.accept(&listener, &own);
                *own.ended.lock() = true;
                own.end.notify_all();
            })?;
        self.ports.lock().push((port, thread));
        Ok(())
    }

    /// Takes no more clients, lets what they have sent be carried out, and releases their devices.
    /// A client that keeps its thread for longer than a few seconds is left behind.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        drop(self.shared.stop_now.lock().take());
        let ports = std::mem::take(&mut *self.ports.lock());
        for (port, _) in &ports {
            if let Some(stream) = &*port.current.lock() {
                // What is in the socket is still read; then there is the end of the stream.
                let _ = stream.shutdown(std::net::Shutdown::Read);
            }
        }
        let until = Instant::now() + PATIENCE;
        for (port, thread) in ports {
            let mut ended = port.ended.lock();
            while !*ended && let Some(left) = until.checked_duration_since(Instant::now()) {
                ended = port.end.wait_timeout(ended, left);
            }
            if *ended {
                drop(ended);
                let _ = thread.join();
            } else {
                tracing::warn!(device = port.name, "a client does not let go of its device");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &UnixListener, port: &Port) {
        let mut reported = false;
        loop {
            // Not even a connection is taken then: its descriptors would come on top.
            let full = port.closer.is_full();
            if full && !std::mem::replace(&mut reported, true) {
                tracing::warn!(
                    device = port.name,
                    "no more clients are taken: earlier ones have sent too many descriptors that \
                     cannot be closed (files of a FUSE server that does not answer?)"
                );
            }
            let mut fds = [
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::new(listener, PollFlags::IN),
            ];
            let (fds, timeout) = match full {
                true => (&mut fds[..1], Some(&A_WHILE)),
                false => (&mut fds[..], None),
            };
            match poll(fds, timeout) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(device = port.name, %error, "no more clients are taken");
                    return;
                }
            }
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            if full {
                continue;
            }
            reported = false;
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    // Out of descriptors: they come back when another client leaves.
                    let _ = poll(&mut [], Some(&A_WHILE));
                    continue;
                }
            };
            self.serve(stream, port);
        }
    }

    fn serve(self: &Arc<Self>, stream: UnixStream, port: &Port) {
        let number = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let stream = Arc::new(stream);
        *port.current.lock() = Some(Arc::clone(&stream));
        // The end may have come before the stream could be seen.
        if self.stopping.load(Ordering::Acquire) {
            let _ = stream.shutdown(std::net::Shutdown::Read);
        }
        port.served.fetch_add(1, Ordering::Relaxed);
        let pid = pid_of(&stream);
        tracing::info!(device = port.name, vm = port.vm, pid, "a client connects");
        // A VM is its own name; a device without one stands alone.
        let alone = format!("device {}", port.name);
        let vm = port.vm.as_deref().unwrap_or(&alone);
        let serve =
            || connection::serve(&stream, &port.device, &port.closer, number, || self.vm(vm));
        // A defect that one client has found must not keep the device from the next one.
        let result = catch_unwind(AssertUnwindSafe(serve));
        *port.current.lock() = None;
        let result = result.unwrap_or_else(|_| {
            tracing::error!(device = port.name, "serving a client panicked");
            Ok(())
        });
        match result {
            Ok(()) | Err(crate::wire::Broken::Closed) => {
                tracing::info!(device = port.name, vm = port.vm, pid, "the client has left");
            }
            Err(error) => {
                tracing::warn!(device = port.name, vm = port.vm, pid, %error, "a client was dropped");
            }
        }
        hang_up(stream, &port.closer);
        give_back_memory();
    }

    /// The address space of `name`, made by the first of its devices that is connected.
    fn vm(&self, name: &str) -> io::Result<Arc<Vm>> {
        let mut vms = self.vms.lock();
        if let Some(vm) = vms.get(name).and_then(Weak::upgrade) {
            return Ok(vm);
        }
        vms.retain(|_, vm| vm.strong_count() > 0);
        let vm = Vm::new(name, (self.new_context)(), Arc::clone(&self.space))?;
        let vm = Arc::new(vm);
        vms.insert(name.to_owned(), Arc::downgrade(&vm));
        Ok(vm)
    }
}

/// The process that has connected, as it was then.
fn pid_of(stream: &UnixStream) -> Option<i32> {
    let peer = socket_peercred(stream).ok()?;
    Some(peer.pid.as_raw_pid())
}

/// Ends a connection. What nobody has read of it may hold descriptors, which go with the socket: then
/// its close waits as theirs does.
fn hang_up(stream: Arc<UnixStream>, closer: &Arc<Closer>) {
    // From now on nothing more comes in.
    let _ = stream.shutdown(std::net::Shutdown::Both);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let unread = recv(&*stream, &mut [0; 1][..], flags).is_ok_and(|(count, _)| count > 0);
    if unread && let Some(stream) = Arc::into_inner(stream) {
        drop(ReceivedFd::new(stream.into(), closer));
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("connections", &self.connections.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl Inspect for Server {
    fn inspect(&self) -> Node {
        let ports = self.ports.lock();
        let sockets = ports.iter().map(|(port, _)| {
            let client = port.current.lock().clone();
            let pid = client.as_deref().and_then(pid_of).map(i32::unsigned_abs);
            let node = Node::new()
                .with("device", port.name.as_str())
                .with("node", port.device.name())
                .with("vm", port.vm.as_deref())
                .with("socket", port.path.display().to_string())
                .with("connected", client.is_some())
                .with("pid", pid)
                .with("clients_so_far", port.served.load(Ordering::Relaxed))
                .with("closing", Value::Node(port.closer.inspect()));
            Value::Node(node)
        });
        let vms: Vec<_> = self
            .shared
            .vms
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        let vms = vms.iter().map(|vm| Value::Node(vm.inspect()));
        Node::new()
            .with("sockets", Value::List(sockets.collect()))
            .with("vms", Value::List(vms.collect()))
    }
}
