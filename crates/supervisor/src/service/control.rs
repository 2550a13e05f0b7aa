//! The socket of a served machine: which users may connect, what can be asked.
//!
//! A machine listens at `NAME.sock` in `$XDG_RUNTIME_DIR/ioasid`, or in `/run/ioasid` for root, or
//! in `/tmp/ioasid-UID`. The directory is its owner's alone, and each peer's credentials are
//! checked besides: the same user, or root. A thread serves each connection; a peer that sends
//! nothing, or nonsense, or does not read, costs one of a bounded number of threads for some
//! seconds.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use ioasid_core::{
    inspect::{Inspect, Node},
    sync::Mutex,
};
use rustix::{net::sockopt::socket_peercred, process::geteuid};

pub(crate) use super::client::{account, connect};
use super::{
    client::PATIENCE,
    place::{clear_stale, folder_of},
};
pub use super::{
    client::{inject, inspect, mdev, ping},
    place::{ControlError, Owner, check_free, directory, find_machines, socket_path},
};
use crate::{
    session::{
        Session,
        explain::Explainer,
        observe::{Account, CallObserver, Observers},
        tracer::CallTracer,
    },
    view::MachineView,
    wire::{
        Attach, Channel, Counts, Joined, REQUEST_BYTES, Request, WireError, describe, tree::Tree,
    },
};

/// Connections at a time.
const CONNECTIONS: usize = 64;

/// Programs whose accounts are kept.
const ACCOUNTS: usize = 1024;

/// A served machine.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    view: Arc<dyn MachineView>,
    /// Programs may join.
    joinable: bool,
    sessions: Mutex<Vec<Session>>,
    /// What is counted of programs, the latest last: of those that have ended too.
    accounts: Mutex<VecDeque<Kept>>,
    last_session: AtomicU64,
    /// Programs that this process serves beside those that join.
    own: Mutex<Vec<Weak<dyn Inspect + Send + Sync>>>,
    connections: Mutex<usize>,
    stopping: AtomicBool,
}

/// What is counted of one program.
#[derive(Debug)]
struct Kept {
    session: u64,
    account: Arc<Account>,
    explainer: Option<Arc<Explainer>>,
}

impl ControlServer {
    /// Serves `view` at `path`. A socket that no process listens on any more is replaced.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn start(view: Arc<dyn MachineView>, path: PathBuf) -> Result<Self, ControlError> {
        ControlServer::start_with(view, path, true)
    }

    /// As [`ControlServer::start`]; unless `joinable`, the machine can be asked and not joined. It
    /// then needs nothing of the host but the socket, even if the process confines itself later.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn start_with(
        view: Arc<dyn MachineView>,
        path: PathBuf,
        joinable: bool,
    ) -> Result<Self, ControlError> {
        let io = |error| ControlError::Io {
            path: path.clone(),
            error,
        };
        clear_stale(&path)?;
        folder_of(&path)?;
        let listener = UnixListener::bind(&path).map_err(io)?;
        rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o600))
            .map_err(|error| io(error.into()))?;
        let shared = Arc::new(Shared {
            view,
            joinable,
            sessions: Mutex::new(Vec::new()),
            accounts: Mutex::default(),
            last_session: AtomicU64::new(0),
            own: Mutex::new(Vec::new()),
            connections: Mutex::new(0),
            stopping: AtomicBool::new(false),
        });
        let server = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, &server))
            .map_err(io)?;
        Ok(ControlServer {
            path,
            shared,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Shows a program that this process serves itself, as long as it lives.
    pub fn show(&self, program: &Arc<dyn Inspect + Send + Sync>) {
        self.shared.own.lock().push(Arc::downgrade(program));
    }

    /// How many program trees use the machine.
    pub fn sessions(&self) -> usize {
        let mut sessions = self.shared.sessions.lock();
        sessions.retain(|session| !session.is_finished());
        sessions.len()
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // Wakes the accepting thread. A process that may not even connect is about to end.
        let woken = match UnixStream::connect(&self.path) {
            Err(error) => error.kind() != io::ErrorKind::PermissionDenied,
            Ok(_) => true,
        };
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
        let sessions = std::mem::take(&mut *self.shared.sessions.lock());
        drop(sessions);
        let _ = fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                // Out of descriptors: they come back when a program ends.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        {
            let mut connections = shared.connections.lock();
            if *connections >= CONNECTIONS {
                tracing::warn!("too many connections at a time");
                continue;
            }
            *connections += 1;
        }
        let slot = Slot(Arc::clone(shared));
        let spawned = std::thread::Builder::new()
            .name("connection".to_owned())
            .spawn(move || {
                let shared = Arc::clone(&slot.0);
                match serve(&shared, stream) {
                    // Somebody has looked whether a machine is here.
                    Ok(()) | Err(WireError::Closed) => {}
                    Err(error) => tracing::info!(%error, "a connection was dropped"),
                }
                drop(slot);
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a connection");
        }
    }
}

/// One of the connections, given back however it ends.
#[derive(Debug)]
struct Slot(Arc<Shared>);

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.connections.lock() -= 1;
    }
}

fn serve(shared: &Shared, stream: UnixStream) -> Result<(), WireError> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = socket_peercred(&stream).map_err(io::Error::from)?.uid;
    let mut channel = Channel::new(stream);
    let us = geteuid();
    if peer != us && !peer.is_root() {
        let reason = format!(
            "this machine belongs to uid {}, not to uid {}",
            us.as_raw(),
            peer.as_raw()
        );
        return refuse(&mut channel, &reason);
    }
    match channel.receive(REQUEST_BYTES)? {
        Request::Ping => {
            let answer = Node::new().with("name", shared.view.name());
            channel.send(&Tree(answer), None)
        }
        Request::Inspect => channel.send(&Tree(shared.inspect()), None),
        Request::Mdev(request) => match shared.view.mdev(&request) {
            Ok(node) => channel.send(&Tree(node), None),
            Err(sentence) => channel.refuse(&sentence),
        },
        Request::Inject(request) => match shared.view.inject(&request) {
            Ok(()) => channel.send(&Tree::default(), None),
            Err(sentence) => channel.refuse(&sentence),
        },
        Request::Account { session } => match shared.counts(session) {
            Some(counts) => channel.send(&counts, None),
            None => channel.refuse("the machine has no account of that program"),
        },
        Request::Join { .. } if !shared.joinable => {
            let reason = "this machine serves virtual machines only (serve --no-join)";
            refuse(&mut channel, reason)
        }
        Request::Join { vm, program } => {
            if peer != us && !us.is_root() {
                let reason = format!(
                    "the machine runs as uid {} and may not read the memory of a program of root: \
                     serve it as root, or join as uid {0}",
                    us.as_raw()
                );
                return refuse(&mut channel, &reason);
            }
            join(shared, &mut channel, vm, program)
        }
    }
}

/// Answers a program that it cannot use the machine.
fn refuse(channel: &mut Channel, reason: &str) -> Result<(), WireError> {
    tracing::info!(reason, "a program was refused");
    channel.refuse(reason)
}

fn join(
    shared: &Shared,
    channel: &mut Channel,
    vm: Option<String>,
    program: String,
) -> Result<(), WireError> {
    if let Some(vm) = &vm
        && !shared.view.has_vm(vm)
    {
        return refuse(channel, &format!("the machine has no vm {vm:?}"));
    }
    channel.send(&describe(&*shared.view, vm.as_deref()), None)?;
    let attach: Attach = channel.receive(REQUEST_BYTES)?;
    let Some(listener) = channel.take_fd() else {
        return refuse(channel, "the listener is missing");
    };
    let explainer = match attach.explain {
        true => {
            channel.receive::<()>(REQUEST_BYTES)?;
            let Some(to) = channel.take_fd() else {
                return channel.refuse("the descriptor for explanations is missing");
            };
            Some(Explainer::start(to)?)
        }
        false => None,
    };
    let all = explainer.iter().map(|explainer| {
        let observer: Arc<dyn CallObserver> = explainer.clone();
        observer
    });
    let view = Arc::clone(&shared.view);
    let tracer = CallTracer::start(&*view, &program, vm.as_deref(), attach.mmio);
    let observers = Observers::of_shared_machine(all.chain(tracer).collect());
    match Session::start(view, program, vm, listener, attach, observers) {
        Ok(session) => {
            let joined = shared.keep(session.account(), explainer);
            let mut sessions = shared.sessions.lock();
            sessions.retain(|old| !old.is_finished());
            sessions.push(session);
            drop(sessions);
            channel.send(&joined, None)
        }
        Err(error) => refuse(
            channel,
            &format!("the machine cannot serve the program: {error}"),
        ),
    }
}

impl Shared {
    /// Keeps the account of a program that joins.
    fn keep(&self, account: &Arc<Account>, explainer: Option<Arc<Explainer>>) -> Joined {
        let session = self.last_session.fetch_add(1, Ordering::Relaxed) + 1;
        let mut accounts = self.accounts.lock();
        if accounts.len() >= ACCOUNTS {
            accounts.pop_front();
        }
        accounts.push_back(Kept {
            session,
            account: Arc::clone(account),
            explainer,
        });
        Joined { session }
    }

    /// What was counted of a program, whose lines are written first. It is not asked about again.
    fn counts(&self, session: u64) -> Option<Counts> {
        let mut accounts = self.accounts.lock();
        let at = accounts.iter().position(|kept| kept.session == session)?;
        let kept = accounts.remove(at)?;
        drop(accounts);
        if let Some(explainer) = &kept.explainer {
            explainer.finish();
        }
        Some(kept.account.counts())
    }
}

impl Inspect for Shared {
    /// The machine's own tree, with the programs that use it.
    fn inspect(&self) -> Node {
        let mut node = self.view.inspect();
        let mut sessions = self.sessions.lock();
        sessions.retain(|session| !session.is_finished());
        let mut programs: Vec<Node> = sessions.iter().map(Inspect::inspect).collect();
        drop(sessions);
        let own = self.own.lock();
        let own = own.iter().filter_map(Weak::upgrade);
        programs.extend(own.map(|program| program.inspect()));
        node.set("pid", std::process::id())
            .set("programs", programs);
        node
    }
}
