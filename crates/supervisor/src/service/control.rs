//! The socket of a served machine: which users may connect, what can be asked.
//!
//! A machine listens at `NAME.sock` in `$XDG_RUNTIME_DIR/ioasid`, or in `/run/ioasid` for root, or
//! in `/tmp/ioasid-UID`. The directory is its owner's alone, and each peer's credentials are
//! checked besides: the same user, or root. A thread serves each connection; a peer that sends
//! nothing, or nonsense, or does not read, costs one of a bounded number of threads for some
//! seconds.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use ioasid_core::{
    inspect::{Inspect, Node, Value},
    sync::Mutex,
};
use rustix::process::geteuid;

use crate::{
    session::{
        Session,
        explain::Explainer,
        observe::{Account, CallObserver, Observers},
        tracer::CallTracer,
    },
    view::{InjectRequest, MachineView, MdevRequest},
    wire::{
        Attach, Channel, Counts, Joined, REPLY_BYTES, REQUEST_BYTES, Request, WireError, describe,
        tree::Tree,
    },
};

/// How long a peer may take to send or read a message.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections at a time.
const CONNECTIONS: usize = 64;

/// Programs whose accounts are kept.
const ACCOUNTS: usize = 1024;

/// Why a machine cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another machine has that name.
    #[error("a machine is being served at {} already", .0.display())]
    InUse(PathBuf),
    /// The directory belongs to another user, or others may write to it.
    #[error("{} is not a directory of this user alone", .0.display())]
    UnsafeDirectory(PathBuf),
    /// There is something at that path which is no socket.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// Not a file name.
    #[error("{0:?} cannot name a machine")]
    BadName(String),
    /// The file system or the host said no.
    #[error("cannot serve at {}: {error}", path.display())]
    Io {
        /// The socket or its directory.
        path: PathBuf,
        /// What it said.
        #[source]
        error: io::Error,
    },
}

/// Where this user's machines have their sockets. Makes the directory.
///
/// # Errors
/// [`ControlError::UnsafeDirectory`], [`ControlError::Io`].
pub fn directory() -> Result<PathBuf, ControlError> {
    let path = directory_path();
    let io = |error| ControlError::Io {
        path: path.clone(),
        error,
    };
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
        _ => {}
    }
    let metadata = fs::symlink_metadata(&path).map_err(io)?;
    let private =
        metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if private {
        Ok(path)
    } else {
        Err(ControlError::UnsafeDirectory(path))
    }
}

fn directory_path() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) if Path::new(&runtime).is_absolute() && Path::new(&runtime).is_dir() => {
            Path::new(&runtime).join("ioasid")
        }
        _ if geteuid().is_root() && Path::new("/run").is_dir() => PathBuf::from("/run/ioasid"),
        _ => PathBuf::from(format!("/tmp/ioasid-{}", geteuid().as_raw())),
    }
}

/// The socket of the machine called `name`; a name with a slash in it is a path already.
///
/// # Errors
/// [`ControlError::BadName`], and as [`directory`].
pub fn socket_path(name: &str) -> Result<PathBuf, ControlError> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    if name.is_empty() || name.starts_with('.') || name.contains('\0') {
        return Err(ControlError::BadName(name.to_owned()));
    }
    Ok(directory()?.join(format!("{name}.sock")))
}

/// The sockets of the machines that this user serves now, in order of name. Nothing is made or
/// removed.
pub fn find_machines() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory_path()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "sock"))
        .filter(|path| UnixStream::connect(path).is_ok())
        .collect();
    found.sort();
    found
}

/// Connects to a machine.
pub(crate) fn connect(path: &Path) -> io::Result<Channel> {
    UnixStream::connect(path).map(Channel::new)
}

/// Asks the machine at `path` for its tree.
///
/// # Errors
/// See [`WireError`].
pub fn inspect(path: &Path) -> Result<Node, WireError> {
    ask(path, &Request::Inspect)
}

/// Asks the machine at `path` whether it is there.
///
/// # Errors
/// See [`WireError`].
pub fn ping(path: &Path) -> Result<(), WireError> {
    ask(path, &Request::Ping).map(drop)
}

/// Asks the machine at `path` about mediated devices.
///
/// # Errors
/// See [`WireError`].
pub fn mdev(path: &Path, request: MdevRequest) -> Result<Node, WireError> {
    ask(path, &Request::Mdev(request))
}

/// Makes something of the machine at `path` fail.
///
/// # Errors
/// See [`WireError`].
pub fn inject(path: &Path, request: InjectRequest) -> Result<(), WireError> {
    ask(path, &Request::Inject(request)).map(drop)
}

/// Asks the machine at `path` what it has counted of a program, once all that is to be written about it
/// is written.
///
/// # Errors
/// See [`WireError`].
pub(crate) fn account(path: &Path, session: u64) -> Result<Counts, WireError> {
    let mut channel = connect(path)?;
    channel.send(&Request::Account { session }, None)?;
    channel.receive(REQUEST_BYTES)
}

fn ask(path: &Path, request: &Request) -> Result<Node, WireError> {
    let mut channel = connect(path)?;
    channel.send(request, None)?;
    channel.receive::<Tree>(REPLY_BYTES).map(|tree| tree.0)
}

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
        let listener = UnixListener::bind(&path).map_err(io)?;
        rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o600))
            .map_err(|error| io(error.into()))?;
        let shared = Arc::new(Shared {
            view,
            joinable,
            sessions: Mutex::new(Vec::new()),
            accounts: Mutex::default(),
            last_session: AtomicU64::new(0),
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

fn clear_stale(path: &Path) -> Result<(), ControlError> {
    let io = |error| ControlError::Io {
        path: path.to_owned(),
        error,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(ControlError::NotASocket(path.to_owned()))
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => Err(ControlError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(io)
            }
            Err(error) => Err(io(error)),
        },
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
                if let Err(error) = serve(&shared, stream) {
                    tracing::debug!(%error, "a connection ended");
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
    let peer = rustix::net::sockopt::socket_peercred(&stream)
        .map_err(io::Error::from)?
        .uid;
    let mut channel = Channel::new(stream);
    let us = geteuid();
    if peer != us && !peer.is_root() {
        return channel.refuse(&format!(
            "this machine belongs to uid {}, not to uid {}",
            us.as_raw(),
            peer.as_raw()
        ));
    }
    match channel.receive(REQUEST_BYTES)? {
        Request::Ping => channel.send(&Tree::default(), None),
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
            channel.refuse("this machine serves virtual machines only (serve --no-join)")
        }
        Request::Join { vm, program } => {
            if peer != us && !us.is_root() {
                return channel.refuse(&format!(
                    "the machine runs as uid {} and may not read the memory of a program of root: \
                     serve it as root, or join as uid {0}",
                    us.as_raw()
                ));
            }
            join(shared, &mut channel, vm, program)
        }
    }
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
        return channel.refuse(&format!("the machine has no vm {vm:?}"));
    }
    channel.send(&describe(&*shared.view, vm.as_deref()), None)?;
    let attach: Attach = channel.receive(REQUEST_BYTES)?;
    let Some(listener) = channel.take_fd() else {
        return channel.refuse("the listener is missing");
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
        Err(error) => channel.refuse(&format!("the machine cannot serve the program: {error}")),
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
        let programs = sessions
            .iter()
            .map(|session| Value::Node(session.inspect()));
        node.set("programs", Value::List(programs.collect()));
        node
    }
}
