//! Starts a program against a machine: one of this process, or a served one.
//!
//! The exit status is the program's own; 128+N if signal N killed it; 125 if we failed, 126 if the
//! program cannot be executed, 127 if there is none. It is given when the program ends. Processes
//! that it leaves behind go on: on a served machine with everything they have, on a private one
//! without our devices, whose calls answer ENODEV from then on.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid},
};
use tempfile::TempDir;

use super::control;
use crate::{
    launch::{
        preload,
        words::{EXIT_FAILED, LINGER, NAMESPACES_IF_ALLOWED, NO_NAMESPACES, VERB},
    },
    session::{
        Session,
        explain::Explainer,
        observe::{Account, CallObserver, Observers},
        tracer::CallTracer,
    },
    system::{process::inherit, signals::ForwardSignals},
    view::MachineView,
    wire::{
        Attach, Channel, Counts, Description, Joined, Library, Mmio, Mode, REPLY_BYTES,
        REQUEST_BYTES, Release, Request, WireError, describe,
    },
};

/// What to run, and how.
#[derive(Debug)]
pub struct RunOptions {
    /// The program, looked up in PATH if it has no slash.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Limits it to what this VM owns.
    pub vm: Option<String>,
    /// Added to its environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its standard input; inherited if `None`.
    pub stdin: Option<Stdio>,
    /// Its standard output; inherited if `None`.
    pub stdout: Option<Stdio>,
    /// Its standard error; inherited if `None`.
    pub stderr: Option<Stdio>,
    /// Pass SIGTERM, SIGHUP, SIGINT and SIGQUIT on to it. For a process that runs one program.
    pub forward_signals: bool,
    /// Give the program a namespace with our `/dev` and `/sys` if the host allows that; otherwise,
    /// or if false, trap every path, which is slower.
    pub namespaces: bool,
    /// How its accesses to mapped device registers are caught.
    pub mmio: Mmio,
    /// Where a line goes for each of its calls that is refused, and for each fault of its DMA.
    pub explain: Option<OwnedFd>,
    /// What else wants to know of its calls, on a machine of this process.
    pub observers: Vec<Arc<dyn CallObserver>>,
    /// The executable that knows [`VERB`]: this one, normally.
    pub launcher: PathBuf,
}

impl RunOptions {
    /// Runs `program` with `args`, everything else as usual.
    pub fn new(
        program: impl Into<OsString>,
        args: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        RunOptions {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            vm: None,
            env: Vec::new(),
            stdin: None,
            stdout: None,
            stderr: None,
            forward_signals: false,
            namespaces: true,
            mmio: Mmio::Auto,
            explain: None,
            observers: Vec::new(),
            launcher: PathBuf::from("/proc/self/exe"),
        }
    }

    fn name(&self) -> String {
        let name = Path::new(&self.program).file_name();
        name.unwrap_or(&self.program).to_string_lossy().into_owned()
    }
}

/// Why a program could not be run. One sentence each, for the user.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine has nothing of that VM.
    #[error("the machine has no vm {0:?}")]
    UnknownVm(String),
    /// The launcher could not be started.
    #[error("cannot start the launcher: {0}")]
    Spawn(io::Error),
    /// The launcher or the machine broke off or refused.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// No machine there.
    #[error("cannot reach the machine at {}: {error}", path.display())]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The session could not be started.
    #[error("cannot serve the program: {0}")]
    Session(io::Error),
    /// The program could not be waited for.
    #[error("cannot wait for the program: {0}")]
    Wait(io::Error),
}

/// A program that has been started, or that failed to start and said so on its stderr.
#[derive(Debug)]
pub struct Running {
    child: Child,
    session: Option<Session>,
    told: Told,
    launcher: PathBuf,
    signals: Option<ForwardSignals>,
    /// Why it has no namespace, if it has none.
    trapped: Option<String>,
    /// The library's directory, if it is not in the program's own `/dev`.
    _library: Option<TempDir>,
}

/// Where it is counted what a program was refused, and told why.
#[derive(Debug)]
enum Told {
    /// It has not started.
    Nothing,
    /// In this process.
    Here(Arc<Account>, Option<Arc<Explainer>>),
    /// By the machine at this socket, which calls it so.
    There(PathBuf, u64),
}

impl Told {
    /// What was counted. All that is told has been written then, unless nobody takes it.
    fn counts(&self) -> Counts {
        match self {
            Told::Nothing => Counts::default(),
            Told::Here(account, explainer) => {
                if let Some(explainer) = explainer {
                    explainer.finish();
                }
                account.counts()
            }
            // A machine that is gone counts no more.
            Told::There(socket, session) => control::account(socket, *session).unwrap_or_default(),
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit status.
    pub status: i32,
    /// What it was refused.
    pub counts: Counts,
}

/// Runs a program against a machine of this process until it ends.
///
/// # Errors
/// See [`RunError`]. A launcher that fails says why on stderr itself, and that is an exit status.
pub fn run(view: Arc<dyn MachineView>, options: RunOptions) -> Result<i32, RunError> {
    start(view, options)?.wait()
}

/// Runs a program against the machine served at `socket` until it ends.
///
/// # Errors
/// See [`RunError`].
pub fn join(socket: &Path, options: RunOptions) -> Result<i32, RunError> {
    start_joined(socket, options)?.wait()
}

/// Starts a program against a machine of this process.
///
/// # Errors
/// See [`RunError`].
pub fn start(view: Arc<dyn MachineView>, mut options: RunOptions) -> Result<Running, RunError> {
    let vm = options.vm.clone();
    if let Some(vm) = &vm
        && !view.has_vm(vm)
    {
        return Err(RunError::UnknownVm(vm.clone()));
    }
    let description = describe(&*view, vm.as_deref());
    let name = options.name();
    let mut observers = std::mem::take(&mut options.observers);
    let explainer = options.explain.take().map(Explainer::start);
    let explainer = explainer.transpose().map_err(RunError::Session)?;
    if let Some(explainer) = &explainer {
        observers.push(explainer.clone());
    }
    let mut launcher = Launcher::spawn(options)?;
    let Some((attach, listener)) = launcher.prepare(&description)? else {
        return Ok(launcher.into_running(None, Told::Nothing));
    };
    observers.extend(CallTracer::start(&*view, &name, vm.as_deref(), attach.mmio));
    let observers = Observers::of_private_machine(observers);
    match Session::start(view, name, vm, listener, attach, observers) {
        Ok(session) => {
            launcher.release()?;
            let account = Arc::clone(session.account());
            Ok(launcher.into_running(Some(session), Told::Here(account, explainer)))
        }
        Err(error) => {
            launcher.abandon();
            Err(RunError::Session(error))
        }
    }
}

/// Starts a program against the machine served at `socket`.
///
/// # Errors
/// See [`RunError`].
pub fn start_joined(socket: &Path, mut options: RunOptions) -> Result<Running, RunError> {
    let mut machine = control::connect(socket).map_err(|error| RunError::Connect {
        path: socket.to_owned(),
        error,
    })?;
    let request = Request::Join {
        vm: options.vm.clone(),
        program: options.name(),
    };
    machine.send(&request, None)?;
    let description: Description = machine.receive(REPLY_BYTES)?;
    let explain = options.explain.take();
    let mut launcher = Launcher::spawn(options)?;
    let Some((mut attach, listener)) = launcher.prepare(&description)? else {
        return Ok(launcher.into_running(None, Told::Nothing));
    };
    attach.explain = explain.is_some();
    machine.send(&attach, Some(listener.as_fd()))?;
    if let Some(to) = explain {
        machine.send(&(), Some(to.as_fd()))?;
    }
    // From here on only the machine holds it: its end is then the end of the listener.
    drop(listener);
    match machine.receive::<Joined>(REQUEST_BYTES) {
        Ok(Joined { session }) => {
            launcher.release()?;
            Ok(launcher.into_running(None, Told::There(socket.to_owned(), session)))
        }
        Err(error) => {
            launcher.abandon();
            Err(error.into())
        }
    }
}

/// Yama's `kernel.yama.ptrace_scope`; none where there is no Yama.
pub fn ptrace_scope() -> Option<String> {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?;
    Some(scope.trim().to_owned())
}

/// With Yama's scope 1 this process may look into its descendants alone, and a daemon is none any
/// more, unless it falls to this process when its parent ends. In a user namespace that we have
/// made we may look into everything.
fn keep_orphans() {
    if ptrace_scope().as_deref() == Some("1") {
        let us = rustix::process::getpid();
        if let Err(error) = rustix::process::set_child_subreaper(Some(us)) {
            tracing::warn!(%error, "daemons that the program starts cannot be served");
        }
    }
}

/// The child before it has become the program.
#[derive(Debug)]
struct Launcher {
    child: Child,
    channel: Channel,
    path: PathBuf,
    signals: Option<ForwardSignals>,
    mmio: Mmio,
    library: Library,
    library_dir: Option<TempDir>,
    trapped: Option<String>,
}

impl Launcher {
    fn spawn(options: RunOptions) -> Result<Self, RunError> {
        let (ours, theirs) = UnixStream::pair().map_err(RunError::Spawn)?;
        let signals = options.forward_signals.then(ForwardSignals::start);
        let mut command = Command::new(&options.launcher);
        command
            .arg(VERB)
            .arg(theirs.as_raw_fd().to_string())
            .arg(if options.namespaces {
                NAMESPACES_IF_ALLOWED
            } else {
                NO_NAMESPACES
            })
            .arg(&options.program)
            .args(&options.args)
            .envs(options.env);
        if let Some(stdin) = options.stdin {
            command.stdin(stdin);
        }
        if let Some(stdout) = options.stdout {
            command.stdout(stdout);
        }
        if let Some(stderr) = options.stderr {
            command.stderr(stderr);
        }
        inherit(&mut command, OwnedFd::from(theirs));
        let child = command.spawn().map_err(RunError::Spawn)?;
        if let Some(signals) = &signals {
            signals.target(child.id().cast_signed());
        }
        Ok(Launcher {
            child,
            channel: Channel::new(ours),
            path: options.launcher,
            signals,
            mmio: options.mmio,
            library: Library::None,
            library_dir: None,
            trapped: None,
        })
    }

    /// Sends the description and takes the listener. `None` if the launcher failed: it has said
    /// why, and its exit status says the rest.
    fn prepare(
        &mut self,
        description: &Description,
    ) -> Result<Option<(Attach, OwnedFd)>, RunError> {
        let attach: Result<Attach, WireError> = self
            .channel
            .send(description, None)
            .and_then(|()| self.channel.receive(REQUEST_BYTES));
        match attach {
            Ok(mut attach) => {
                tracing::info!(mode = %attach.mode, "the program's /dev and /sys");
                attach.mmio = self.mmio;
                if let Mode::Paths { reason } = &attach.mode {
                    self.trapped = Some(reason.clone());
                }
                self.provide_library(&attach.mode);
                if self.signals.is_some() && matches!(attach.mode, Mode::Paths { .. }) {
                    keep_orphans();
                }
                let listener = self.channel.take_fd().ok_or(WireError::NoListener)?;
                Ok(Some((attach, listener)))
            }
            Err(WireError::Closed | WireError::Io(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the library available that the program is to be started with, if it is to be.
    fn provide_library(&mut self, mode: &Mode) {
        if !self.mmio.preloads() {
            return;
        }
        self.library = match mode {
            Mode::Namespaces { .. } => Library::InDev,
            Mode::Paths { .. } => match preload::in_a_directory() {
                Ok((directory, path)) => {
                    self.library_dir = Some(directory);
                    Library::At(path)
                }
                Err(error) => {
                    tracing::warn!(%error, "programs are started without the library for registers");
                    Library::None
                }
            },
        };
    }

    /// Lets it become the program.
    fn release(&mut self) -> Result<(), RunError> {
        let release = Release {
            library: self.library.clone(),
        };
        match self.channel.send(&release, None) {
            // Killed meanwhile: its exit status says so.
            Ok(()) | Err(WireError::Io(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it quietly: the caller reports why.
    fn abandon(mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn into_running(self, session: Option<Session>, told: Told) -> Running {
        Running {
            child: self.child,
            session,
            told,
            launcher: self.path,
            signals: self.signals,
            trapped: self.trapped,
            _library: self.library_dir,
        }
    }
}

impl Running {
    /// The program's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes and for `kill`.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Why it has no namespace of its own, so that every path is trapped; none if it has one.
    pub fn trapped(&self) -> Option<&str> {
        self.trapped.as_deref()
    }

    /// The session that serves it, if that is in this process and the program has started.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Waits for the program and returns its exit status.
    ///
    /// # Errors
    /// [`RunError::Wait`].
    pub fn wait(self) -> Result<i32, RunError> {
        Ok(self.finish()?.status)
    }

    /// The same, with what the program was refused.
    ///
    /// # Errors
    /// [`RunError::Wait`].
    pub fn finish(mut self) -> Result<Ended, RunError> {
        self.await_end();
        if let Some(signals) = &self.signals {
            // Before it is reaped: its number is another process's then.
            signals.target(0);
        }
        let status = self.child.wait().map_err(RunError::Wait)?;
        if let Some(session) = self.session.take() {
            session.process_has_ended(self.child.id().cast_signed());
            if session.has_processes() {
                self.leave_to_a_stand_in(&session);
            }
            drop(session);
        }
        Ok(Ended {
            status: exit_code(status),
            counts: self.told.counts(),
        })
    }

    /// Waits for the child and leaves it unreaped.
    ///
    /// By a descriptor: if a thread of this process traces it, `waitid` reports its stops too.
    fn await_end(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            while matches!(poll(&mut fds, None), Err(Errno::INTR)) {}
            return;
        }
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), ended), Err(Errno::INTR)) {}
    }

    fn leave_to_a_stand_in(&self, session: &Session) {
        let result = session.listener().and_then(|listener| {
            let mut command = Command::new(&self.launcher);
            command
                .arg(VERB)
                .arg(LINGER)
                .arg(listener.as_raw_fd().to_string())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            inherit(&mut command, listener);
            command.spawn()
        });
        if let Err(error) = result {
            tracing::warn!(%error, "the processes that the program leaves behind will fail");
        }
    }
}

/// The status that a shell would give.
fn exit_code(status: ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => EXIT_FAILED.into(),
    }
}
