//! What a program pays that runs here and hardly knows: to start, to execute others, to open files for
//! writing; and whether programs of one machine get the same.
//!
//! Time is what passes, by the clock: these are waits. Where programs call by themselves, they take it.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    io::{BufRead, Write},
    os::unix::fs::OpenOptionsExt,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ioasid_supervisor::{RunOptions, run};
use iommufd_ioctls::IommuFd;

use crate::{
    clock::wall_clock,
    interception::{CLIENT, FIXED_RW, Program, Space},
    measure::{Contender, Effort, Table, measure},
    registers::machine,
};

/// What the tasks of this module begin with.
const PREFIX: &str = "programs:";

/// Runs this executable as one of its programs, if that is what it was started for.
pub(crate) fn part() -> Option<ExitCode> {
    let mut words = std::env::args().skip(1);
    words.next().filter(|word| word == CLIENT)?;
    let task = words.next()?;
    Some(match work(task.strip_prefix(PREFIX)?) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ioasid-bench: {error:#}");
            ExitCode::FAILURE
        }
    })
}

/// Programs that share a machine.
const JOINED: usize = 16;

pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    let made = || -> Result<_> {
        Ok(vec![
            starts(effort)?,
            of_a_program(effort, "exec", "fork, execute and wait for `true`", 1.1)?,
            of_a_program(effort, "open", "open for writing, and close", 1.1)?,
            fairness(effort)?,
        ])
    };
    made().unwrap_or_else(|error| {
        eprintln!("ioasid-bench: no table of programs: {error:#}");
        Vec::new()
    })
}

/// The nanoseconds that so many runs of `job` take.
fn timed(iterations: u64, job: impl Fn() -> Result<()>) -> Result<u64> {
    let clock = wall_clock();
    let before = clock();
    for _ in 0..iterations {
        job()?;
    }
    Ok(clock() - before)
}

fn execute(program: impl AsRef<OsStr>, words: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    let status = command.args(words).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "a program ended with {status}");
    Ok(())
}

fn starts(effort: Effort) -> Result<Table> {
    let here = machine()?;
    let on_it = move || {
        let options = RunOptions::new("true", [""; 0]);
        let status = run::run(here.clone(), options)?;
        ensure!(status == 0, "`true` ended with {status}");
        Ok(())
    };
    let contender = |name: &str, job: Box<dyn Fn() -> Result<()>>| {
        Contender::timing_itself(name, move |iterations| {
            timed(iterations, &job).expect("`true` runs")
        })
    };
    let mut contenders = vec![
        contender("`true`", Box::new(|| execute("true", &[]))),
        contender("on a machine that is there", Box::new(on_it)).goal(0, 10.0),
    ];
    let beside = std::env::current_exe()?.with_file_name("ioasid");
    let is_there = beside.exists();
    if is_there {
        let job = move || execute(&beside, &["run", "--", "true"]);
        contenders.push(contender("`ioasid run -- true`", Box::new(job)).goal(0, 10.0));
    }
    let table = measure("programs, start", "ns", effort, contenders);
    Ok(match is_there {
        true => table,
        false => table.note("no `ioasid` beside this program: its own start is not in"),
    })
}

fn of_a_program(effort: Effort, task: &str, title: &str, goal: f64) -> Result<Table> {
    let task = format!("{PREFIX}{task}");
    let contenders = vec![
        Program::plain(&task)?.contender_of_time_there("plain"),
        Program::run(&machine()?, &task)?
            .contender_of_time_there("here")
            .goal(0, goal),
    ];
    let title = format!("programs, {title}");
    Ok(measure(title, "ns", effort, contenders))
}

/// All programs call for the same time, as often as they can.
fn fairness(effort: Effort) -> Result<Table> {
    let machine = machine()?;
    let task = format!("{PREFIX}share");
    let programs = (0..JOINED).map(|_| Program::run(&machine, &task));
    let mut programs = programs.collect::<Result<Vec<_>>>()?;
    let (mut most, mut least) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let nanoseconds = effort.slot * 50;
        for program in &mut programs {
            program.begin(nanoseconds)?;
        }
        let counts = programs.iter_mut().map(Program::result);
        let counts = counts.collect::<Result<Vec<_>>>()?;
        let per_call = |count: Option<&u64>| nanoseconds as f64 / *count.unwrap_or(&1) as f64;
        most.push(per_call(counts.iter().max()));
        least.push(per_call(counts.iter().min()));
    }
    let rows = vec![
        ("the one with the most calls".to_owned(), most, None),
        ("the one with the fewest".to_owned(), least, Some(1.5)),
    ];
    let title = format!("programs, {JOINED} that call as often as they can");
    Ok(Table::from_samples(title, "ns/ioctl", rows))
}

/// The program's part: a number on each line of standard input says how much.
fn work(task: &str) -> Result<()> {
    println!("0");
    if task == "share" {
        return share();
    }
    let file = std::env::temp_dir().join(format!("ioasid-bench-file-{}", std::process::id()));
    let open = || -> Result<()> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).mode(0o600);
        drop(options.open(&file)?);
        Ok(())
    };
    for line in std::io::stdin().lines() {
        let iterations = line?.parse()?;
        let took = match task {
            "exec" => timed(iterations, || execute("/bin/true", &[]))?,
            _ => timed(iterations, open)?,
        };
        println!("{took}");
    }
    // Not there for another task.
    let _ = std::fs::remove_file(file);
    Ok(())
}

fn share() -> Result<()> {
    let iommufd = IommuFd::new()?;
    let space = Space::new(&iommufd)?;
    let mut input = std::io::stdin().lock();
    let mut line = String::new();
    while input.read_line(&mut line)? > 0 {
        let time = Duration::from_nanos(line.trim().parse().context("a time")?);
        line.clear();
        let (start, mut calls) = (Instant::now(), 0u64);
        while start.elapsed() < time {
            space.map(0, FIXED_RW)?;
            space.unmap(0)?;
            calls += 2;
        }
        println!("{calls}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
