//! Reading a trace line by line. Every error has the number of its line.

use std::{
    io::{self, BufRead},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::schema::{Header, Line, VERSION};

/// Why a trace could not be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be opened.
    #[error("cannot open {}: {error}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file could not be read.
    #[error("line {line}: cannot be read: {error}")]
    Io {
        /// The line.
        line: u64,
        /// Why.
        error: io::Error,
    },
    /// There is nothing in it.
    #[error("line 1: the file is empty, and no trace")]
    Empty,
    /// The first line is no header.
    #[error("line 1: this is no trace: its first line is no header ({0})")]
    NoHeader(String),
    /// Another version wrote it.
    #[error("line 1: the trace has schema {found}, and this ioasid reads schema {VERSION}")]
    Version {
        /// Its schema.
        found: u32,
    },
    /// A line is none that the schema knows.
    #[error("line {line}: {error}")]
    Line {
        /// The line.
        line: u64,
        /// Why.
        error: String,
    },
    /// The last line has no end: whatever wrote it was interrupted.
    #[error("line {line}: the trace breaks off in the middle of this line")]
    Truncated {
        /// The line.
        line: u64,
    },
}

/// What every version of a header has.
#[derive(Deserialize)]
struct AnyHeader {
    kind: String,
    schema: u32,
}

/// The lines of a trace after its header, until the first that cannot be read.
#[derive(Debug)]
pub struct Reader<R> {
    header: Header,
    input: R,
    line: u64,
    failed: bool,
}

impl Reader<io::BufReader<std::fs::File>> {
    /// Opens the trace at `path`.
    ///
    /// # Errors
    /// As [`Reader::new`]; [`ReadError::Open`].
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = std::fs::File::open(path).map_err(|error| ReadError::Open {
            path: path.to_owned(),
            error,
        })?;
        Reader::new(io::BufReader::with_capacity(1 << 16, file))
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn new(mut input: R) -> Result<Self, ReadError> {
        let text = next_line(&mut input, 1)?.ok_or(ReadError::Empty)?;
        let no_header = |error: serde_json::Error| ReadError::NoHeader(error.to_string());
        let any: AnyHeader = serde_json::from_slice(&text.bytes).map_err(no_header)?;
        if any.kind != "header" {
            return Err(ReadError::NoHeader(format!("kind is {:?}", any.kind)));
        }
        if any.schema != VERSION {
            return Err(ReadError::Version { found: any.schema });
        }
        let Line::Header(header) = serde_json::from_slice(&text.bytes).map_err(no_header)? else {
            return Err(ReadError::NoHeader(format!("kind is {:?}", any.kind)));
        };
        Ok(Reader {
            header,
            input,
            line: 1,
            failed: false,
        })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn read(&mut self) -> Result<Option<(u64, Line)>, ReadError> {
        let number = self.line + 1;
        let Some(text) = next_line(&mut self.input, number)? else {
            return Ok(None);
        };
        self.line = number;
        match serde_json::from_slice(&text.bytes) {
            Ok(Line::Header(_)) => Err(ReadError::Line {
                line: number,
                error: "a second header".to_owned(),
            }),
            Ok(line) => Ok(Some((number, line))),
            Err(_) if !text.ended => Err(ReadError::Truncated { line: number }),
            Err(error) => Err(ReadError::Line {
                line: number,
                error: error.to_string(),
            }),
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<(u64, Line), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.read().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

struct Text {
    bytes: Vec<u8>,
    ended: bool,
}

/// The next line without its end, if there is one.
fn next_line(input: &mut impl BufRead, line: u64) -> Result<Option<Text>, ReadError> {
    let mut bytes = Vec::new();
    let read = input.read_until(b'\n', &mut bytes);
    match read.map_err(|error| ReadError::Io { line, error })? {
        0 => Ok(None),
        _ => {
            let ended = bytes.pop_if(|byte| *byte == b'\n').is_some();
            Ok(Some(Text { bytes, ended }))
        }
    }
}
