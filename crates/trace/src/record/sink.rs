//! Where lines go.

use std::io::{self, BufWriter, Write};

use crate::{schema::Line, show};

/// Takes lines on the thread that writes.
pub trait Sink: Send {
    /// Takes one line.
    ///
    /// # Errors
    /// The sink is not used any more then.
    fn line(&mut self, line: &Line) -> io::Result<()>;

    /// Nothing more comes for a while.
    ///
    /// # Errors
    /// As [`Sink::line`].
    fn flush(&mut self) -> io::Result<()>;
}

/// Lines of JSON, as the schema says.
#[derive(Debug)]
pub struct JsonLines<W: Write>(BufWriter<W>);

impl<W: Write> JsonLines<W> {
    /// Lines that go to `out`.
    pub fn new(out: W) -> Self {
        JsonLines(BufWriter::with_capacity(1 << 16, out))
    }
}

impl<W: Write + Send> Sink for JsonLines<W> {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, line)?;
        self.0.write_all(b"\n")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Calls as text, for a person who watches.
#[derive(Debug)]
pub struct TextLines<W: Write>(BufWriter<W>);

impl<W: Write> TextLines<W> {
    /// Text that goes to `out`.
    pub fn new(out: W) -> Self {
        TextLines(BufWriter::new(out))
    }
}

impl<W: Write + Send> Sink for TextLines<W> {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        match line {
            Line::Call(_) | Line::Fault(_) | Line::Lost(_) => {
                writeln!(self.0, "{}", show::Shown(line))
            }
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
