//! A VM process, seen from the demo: orders go in, answers come out.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::order::{Answer, Order, Which};

/// A running VM process.
#[derive(Debug)]
pub(crate) struct Guest {
    name: String,
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Guest {
    /// Starts `ioasid run --join SOCKET --vm NAME` with this very program as its program.
    pub(crate) fn start(socket: &Path, vm: &str) -> Result<Self> {
        let own = std::env::current_exe().context("finding this program's own file")?;
        let mut child = Command::new(&own)
            .args(["run", "--vm", vm, "--join"])
            .arg(socket)
            .arg("--")
            .arg(&own)
            .arg("__vm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a VM process")?;
        let orders = child
            .stdin
            .take()
            .context("standard input of the VM process")?;
        let answers = child
            .stdout
            .take()
            .context("standard output of the VM process")?;
        Ok(Guest {
            name: vm.to_owned(),
            child,
            orders,
            answers: BufReader::new(answers),
        })
    }

    /// Gives an order and waits for the answer, whatever it is.
    pub(crate) fn ask(&mut self, order: &Order) -> Result<Answer> {
        self.send(order)?;
        self.receive()
    }

    /// Gives an order and does not wait: several VMs work at once.
    pub(crate) fn send(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        self.orders
            .write_all(line.as_bytes())
            .with_context(|| format!("{} hung up", self.name))
    }

    /// The answer to the oldest order.
    pub(crate) fn receive(&mut self) -> Result<Answer> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            bail!("{} ended early; its message is above", self.name);
        }
        serde_json::from_str(&line).with_context(|| format!("{} answered `{line}`", self.name))
    }

    /// Gives an order that must succeed.
    pub(crate) fn request(&mut self, order: &Order) -> Result<Answer> {
        match self.ask(order)? {
            Answer::Failed { sentence, .. } => bail!("{}: {sentence}", self.name),
            answer => Ok(answer),
        }
    }

    /// Gives an order whose answer is a number.
    pub(crate) fn number(&mut self, order: &Order) -> Result<u64> {
        match self.request(order)? {
            Answer::Number(number) => Ok(number),
            other => bail!("{}: expected a number, not {other:?}", self.name),
        }
    }

    /// Whether memory holds the pattern of `seed`.
    pub(crate) fn holds(&mut self, iova: u64, len: u64, seed: u64) -> Result<bool> {
        match self.request(&Order::Check { iova, len, seed })? {
            Answer::Difference(difference) => Ok(difference.is_none()),
            other => bail!("{}: expected a comparison, not {other:?}", self.name),
        }
    }

    /// One copy descriptor: status, bytes done, fault address.
    pub(crate) fn job(
        &mut self,
        which: Which,
        to: u64,
        from: u64,
        len: u32,
    ) -> Result<(u8, u32, u64)> {
        self.forged_job(which, to, from, len, 0)
    }

    /// As [`Guest::job`], with a PASID in the descriptor.
    pub(crate) fn forged_job(
        &mut self,
        which: Which,
        to: u64,
        from: u64,
        len: u32,
        pasid: u32,
    ) -> Result<(u8, u32, u64)> {
        match self.request(&Order::Job {
            which,
            to,
            from,
            len,
            pasid,
        })? {
            Answer::Job {
                status,
                done,
                fault_address,
            } => Ok((status, done, fault_address)),
            other => bail!("{}: expected a completion record, not {other:?}", self.name),
        }
    }

    /// Ends the VM in good order.
    pub(crate) fn exit(mut self) -> Result<()> {
        self.request(&Order::Exit)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }

    /// Process id of the program inside `run`: its only child.
    pub(crate) fn program(&self) -> Result<i32> {
        let run = self.child.id();
        let mut children = std::fs::read_to_string(format!("/proc/{run}/task/{run}/children"))?;
        if children.trim().is_empty() {
            children = run.to_string();
        }
        let first = children
            .split_whitespace()
            .next()
            .context("the VM process has no program")?;
        Ok(first.parse()?)
    }

    /// Kills the program with SIGKILL, as an operator would; `run` reports 128+9.
    pub(crate) fn kill(mut self) -> Result<std::process::ExitStatus> {
        let program = self.program()?;
        let status = Command::new("kill")
            .args(["-9", &program.to_string()])
            .status()?;
        if !status.success() {
            bail!("cannot kill process {program}");
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // After an error half way; a guest that has ended already ignores it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
