use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex},
};

use super::{JsonLines, Recorder, Sink};
use crate::{
    Reader,
    schema::{Exit, Header, Host, Line, MachineSource, VERSION},
};

fn header() -> Header {
    Header {
        schema: VERSION,
        program: vec!["prog".to_owned()],
        machine: MachineSource::Devices(vec!["dsa".to_owned()]),
        selftest: false,
        enforce_memlock: false,
        host: Host {
            ioasid: "0.1.0".to_owned(),
            kernel: "7.2.13".to_owned(),
            architecture: "x86_64".to_owned(),
            processors: 2,
        },
        began: 1,
    }
}

fn line(program: u32) -> Line {
    Line::Exit(Exit { t: 0, program })
}

/// Memory that a test reads while a sink writes to it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("the lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lines(&self) -> Vec<Line> {
        let bytes = self.0.lock().expect("the lock").clone();
        let reader = Reader::new(&bytes[..]).expect("a trace");
        reader.map(|line| line.expect("a line").1).collect()
    }
}

#[test]
fn what_was_told_before_the_end_is_written_in_order() {
    let file = Shared::default();
    let sink = Box::new(JsonLines::new(file.clone()));
    let recorder = Recorder::start(header(), vec![sink]).expect("a recorder");
    (0..1000).for_each(|program| recorder.push(line(program)));
    recorder.finish().expect("written");
    recorder.push(line(2000));
    let expected: Vec<_> = (0..1000).map(line).collect();
    assert_eq!(file.lines(), expected);
}

/// Holds the thread that writes until it is let go.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<(bool, bool)>, Condvar)>);

impl Gate {
    fn enter(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().expect("the lock");
        state.0 = true;
        changed.notify_all();
        let _open = changed
            .wait_while(state, |(_, open)| !*open)
            .expect("the lock");
    }

    fn wait_until_entered(&self) {
        let (state, changed) = &*self.0;
        let state = state.lock().expect("the lock");
        let _entered = changed
            .wait_while(state, |(entered, _)| !*entered)
            .expect("the lock");
    }

    fn open(&self) {
        let (state, changed) = &*self.0;
        state.lock().expect("the lock").1 = true;
        changed.notify_all();
    }
}

/// A disk that is slow: it takes the header, and holds the first line until it is let go.
struct Slow(Gate, JsonLines<Shared>);

impl Sink for Slow {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        if !matches!(line, Line::Header(_)) {
            self.0.enter();
        }
        self.1.line(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

#[test]
fn a_slow_disk_holds_nobody_up_and_what_is_lost_is_counted() {
    let (gate, file) = (Gate::default(), Shared::default());
    let sink = Slow(gate.clone(), JsonLines::new(file.clone()));
    let recorder = Recorder::with_capacity(header(), vec![Box::new(sink)], 4).expect("a recorder");
    recorder.push(line(0));
    gate.wait_until_entered();
    // The thread holds line 0, the queue takes four more, and none of these calls waits.
    (1..=10).for_each(|program| recorder.push(line(program)));
    gate.open();
    recorder.finish().expect("written");
    let lines = file.lines().into_iter();
    let (lost, kept): (Vec<_>, Vec<_>) = lines.partition(|line| matches!(line, Line::Lost(_)));
    assert_eq!(kept, (0..5).map(line).collect::<Vec<_>>());
    match &lost[..] {
        [Line::Lost(lost)] => assert_eq!((lost.lines, lost.accesses), (6, 0)),
        other => panic!("{other:?}"),
    }
}

/// A disk that is full after the header.
struct Full;

impl Sink for Full {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        match line {
            Line::Header(_) => Ok(()),
            _ => Err(io::Error::from(io::ErrorKind::StorageFull)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_the_error_of_the_end() {
    let recorder = Recorder::start(header(), vec![Box::new(Full)]).expect("a recorder");
    (0..100).for_each(|program| recorder.push(line(program)));
    let error = recorder.finish().expect_err("the disk is full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn a_file_that_takes_no_header_is_an_error_at_once() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let started = Recorder::start(header(), vec![Box::new(JsonLines::new(Closed))]);
    let error = started.expect_err("nobody reads");
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}
