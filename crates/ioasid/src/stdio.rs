//! Standard output and standard error: what is printed arrives, or the program says that it did not.

use std::{
    env,
    io::{self, IsTerminal, Write as _},
};

/// Why standard output has not taken everything.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdoutError {
    /// Its reader went away (`| head`): it wants no more, which needs no words.
    #[error("the reader of standard output has gone")]
    Closed,
    /// Anything else: a full disk, for instance.
    #[error("cannot write to standard output: {0}")]
    Failed(io::Error),
}

impl From<io::Error> for StdoutError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => StdoutError::Closed,
            _ => StdoutError::Failed(error),
        }
    }
}

/// Prints `text`, as it is, on standard output.
///
/// # Errors
/// See [`StdoutError`].
pub(crate) fn print(text: &str) -> Result<(), StdoutError> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    Ok(written.and_then(|()| stdout.flush())?)
}

/// One line on standard error; one that is closed is no reason to fail.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether `stream` may be sent colours: a terminal that knows them, and a user who wants them
/// (<https://no-color.org>).
pub(crate) fn has_colour(stream: &impl IsTerminal) -> bool {
    let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
    !refused && !dumb && stream.is_terminal()
}
