//! `ioasid top`: the machine, drawn anew after each look at it.

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Style, Stylize as _},
    text::Line,
    widgets::{Paragraph, Row, Table},
};

use super::{screen::bytes, seen::Seen};

/// Watches until somebody quits.
///
/// # Errors
/// If standard output is no terminal, or `look` cannot see the machine any more.
pub(crate) fn watch(mut look: impl FnMut() -> Result<Seen>, every: Duration) -> Result<()> {
    ensure!(
        std::io::stdout().is_terminal(),
        "`top` draws on a terminal, and standard output is none; `ioasid inspect` prints what it shows"
    );
    let first = Moment::first(look()?);
    let mut terminal = ratatui::try_init().context("taking the terminal")?;
    let watched = show(&mut terminal, first, look, every);
    ratatui::try_restore().context("giving the terminal back")?;
    watched
}

fn show(
    terminal: &mut DefaultTerminal,
    mut moment: Moment,
    mut look: impl FnMut() -> Result<Seen>,
    every: Duration,
) -> Result<()> {
    let mut last = Instant::now();
    loop {
        terminal.draw(|frame| draw(frame, &moment))?;
        let left = every.saturating_sub(last.elapsed());
        if event::poll(left)? && quits(&event::read()?) {
            return Ok(());
        }
        let passed = last.elapsed();
        if passed >= every {
            last = Instant::now();
            moment = moment.then(look()?, passed);
        }
    }
}

fn quits(event: &Event) -> bool {
    match event {
        Event::Key(KeyEvent {
            code: KeyCode::Char('q') | KeyCode::Esc,
            ..
        }) => true,
        Event::Key(KeyEvent {
            code: KeyCode::Char('c'),
            modifiers,
            ..
        }) => modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

/// The machine now, and what has changed each second since the look before.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    seen: Seen,
    /// Bytes a second, by domain.
    moved: BTreeMap<u64, u64>,
    /// Jobs a second, by device and queue.
    jobs: BTreeMap<(String, usize), u64>,
}

impl Moment {
    /// Nothing is known of what was before.
    pub(crate) fn first(seen: Seen) -> Moment {
        Moment {
            seen,
            moved: BTreeMap::new(),
            jobs: BTreeMap::new(),
        }
    }

    /// `seen`, `passed` after this.
    pub(crate) fn then(&self, seen: Seen, passed: Duration) -> Moment {
        let rate = |before: u64, now: u64| {
            let more = now.saturating_sub(before) as f64;
            (more / passed.as_secs_f64().max(f64::EPSILON)) as u64
        };
        let (before, now) = (bytes_of(&self.seen), bytes_of(&seen));
        let moved = now.into_iter().map(|(domain, bytes)| {
            // A domain that is new has moved everything since.
            let before = before.get(&domain).copied().unwrap_or(0);
            (domain, rate(before, bytes))
        });
        let moved = moved.collect();
        let (before, now) = (jobs_of(&self.seen), jobs_of(&seen));
        let jobs = now.into_iter().map(|(queue, jobs)| {
            let before = before.get(&queue).copied().unwrap_or(0);
            (queue, rate(before, jobs))
        });
        let jobs = jobs.collect();
        Moment { seen, moved, jobs }
    }
}

fn bytes_of(seen: &Seen) -> BTreeMap<u64, u64> {
    let domains = seen.iommu.domains.iter();
    domains
        .map(|domain| (domain.id, domain.dma_bytes))
        .collect()
}

fn jobs_of(seen: &Seen) -> BTreeMap<(String, usize), u64> {
    let queues = seen.devices.iter().flat_map(|device| {
        let queues = device.queues().into_iter();
        queues.map(|queue| ((device.address.clone(), queue.index), queue.jobs))
    });
    queues.collect()
}

/// Draws a moment on the whole of `frame`.
pub(crate) fn draw(frame: &mut Frame<'_>, moment: &Moment) {
    let Moment { seen, .. } = moment;
    let (programs, queues, domains) = (programs(seen), queues(moment), domains(moment));
    let (faults, held) = seen.faults();
    let held: Vec<Line<'_>> = held
        .iter()
        .map(|fault| Line::from(fault.to_string()))
        .collect();
    // Each part has its lines and one for its head; the last takes what is left.
    let lines = |count: usize| {
        let lines = u16::try_from(count + 1).unwrap_or(u16::MAX);
        Constraint::Max(lines.max(2))
    };
    let areas = Layout::vertical([
        Constraint::Length(1),
        lines(programs.len()),
        lines(queues.len()),
        lines(domains.len()),
        Constraint::Length(1),
        Constraint::Min(0),
    ])
    .split(frame.area());
    let pid = seen
        .pid
        .map_or(String::new(), |pid| format!(" (pid {pid})"));
    let title = format!("machine {}{pid}: q quits", seen.name);
    frame.render_widget(Line::from(title).bold(), areas[0]);
    let widths = [16, 8, 10, 8, 10, 24].map(Constraint::Min);
    let head = ["PROGRAM", "PID", "VM", "FILES", "CALLS", "DEVICES"];
    frame.render_widget(table(programs, widths, head), areas[1]);
    let widths = [13, 5, 8, 16, 8, 10, 12, 8].map(Constraint::Min);
    let head = [
        "DEVICE", "MODEL", "QUEUE", "OWNER", "WAITING", "JOBS", "JOBS/S", "FAULTS",
    ];
    frame.render_widget(table(queues, widths, head), areas[2]);
    let widths = [8, 12, 11, 12, 8, 30].map(Constraint::Min);
    let head = ["DOMAIN", "KIND", "MAPPED", "DMA/S", "FAULTS", "ROUTES"];
    frame.render_widget(table(domains, widths, head), areas[3]);
    let style = if faults > 0 {
        Style::new().red()
    } else {
        Style::new()
    };
    frame.render_widget(
        Line::from(format!("faults: {faults}")).style(style),
        areas[4],
    );
    frame.render_widget(Paragraph::new(held), areas[5]);
}

fn table<const N: usize>(
    rows: Vec<Row<'static>>,
    widths: [Constraint; N],
    head: [&'static str; N],
) -> Table<'static> {
    Table::new(rows, widths).header(Row::new(head).bold())
}

fn programs(seen: &Seen) -> Vec<Row<'static>> {
    let programs = seen.programs.iter().map(|program| {
        Row::new([
            program.program.clone(),
            program.pid.to_string(),
            program.vm.clone().unwrap_or_else(|| "-".to_owned()),
            program.open_files.to_string(),
            program.requests.to_string(),
            program.devices.join(" "),
        ])
    });
    programs.collect()
}

fn queues(moment: &Moment) -> Vec<Row<'static>> {
    let queues = moment.seen.devices.iter().flat_map(|device| {
        let queues = device.queues().into_iter();
        queues.map(|queue| {
            let rate = moment.jobs.get(&(device.address.clone(), queue.index));
            Row::new([
                device.address.clone(),
                device.model.clone(),
                queue.index.to_string(),
                queue.owner,
                queue.waiting.to_string(),
                queue.jobs.to_string(),
                rate.map_or("-".to_owned(), ToString::to_string),
                queue.faults.to_string(),
            ])
        })
    });
    queues.collect()
}

fn domains(moment: &Moment) -> Vec<Row<'static>> {
    let seen = &moment.seen;
    let paging = seen.paging().into_iter();
    // What is nested on a domain stands below it.
    let domains = paging.flat_map(|domain| [vec![domain], seen.nested_on(domain)].concat());
    let rows = domains.map(|domain| {
        let rate = moment.moved.get(&domain.id);
        let routes = domain.routes.iter().map(|route| format!("[{route}]"));
        Row::new([
            domain.id.to_string(),
            match domain.parent {
                Some(parent) => format!("{} on {parent}", domain.kind),
                None => domain.kind.clone(),
            },
            match domain.parent {
                Some(_) => "-".to_owned(),
                None => bytes(domain.mapped_bytes).to_string(),
            },
            rate.map_or("-".to_owned(), |rate| bytes(*rate).to_string()),
            domain.faults.to_string(),
            routes.collect::<Vec<_>>().join(" "),
        ])
    });
    rows.collect()
}
