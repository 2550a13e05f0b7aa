//! What the demo looks like on a terminal of 80 columns, with and without colour.

use serde_json::json;

use super::snapshot::Snapshot;
use crate::stdio::{self, StdoutError};

/// A style that a terminal may show.
#[derive(Clone, Copy, Debug)]
enum Style {
    Bold,
    Dim,
    Good,
    Bad,
    Accent,
}

/// One claim, checked.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The claim, in words.
    pub(crate) claim: &'static str,
    /// What was done and measured, or what went wrong.
    pub(crate) result: Result<String, String>,
}

/// Where the demo prints: a terminal or pipe, or one JSON object at the end.
#[derive(Debug)]
pub(crate) struct Output {
    colour: bool,
    json: bool,
    steps: Vec<serde_json::Value>,
    outcomes: Vec<Outcome>,
    /// The first that went wrong: it fails no claim, and is told at the end.
    printed: Result<(), StdoutError>,
}

/// Columns that a line may take.
const WIDTH: usize = 80;

impl Output {
    /// A output on standard output.
    pub(crate) fn new(json: bool) -> Self {
        Output {
            colour: !json && stdio::has_colour(&std::io::stdout()),
            json,
            steps: Vec::new(),
            outcomes: Vec::new(),
            printed: Ok(()),
        }
    }

    fn styled(&self, style: Style, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Good => "32",
            Style::Bad => "1;31",
            Style::Accent => "36",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    fn line(&mut self, text: &str) {
        if !self.json {
            self.print(text);
        }
    }

    fn print(&mut self, text: &str) {
        if self.printed.is_ok() {
            self.printed = stdio::print(&format!("{text}\n"));
        }
    }

    /// The first lines.
    pub(crate) fn title(&mut self, title: &str, lines: &[&str]) {
        self.line("");
        let title = self.styled(Style::Bold, title);
        self.line(&format!("  {title}"));
        for line in lines {
            let line = self.styled(Style::Dim, line);
            self.line(&format!("  {line}"));
        }
    }

    /// A step of the demo with the snapshot after it.
    pub(crate) fn step(&mut self, title: &str, snapshot: &Snapshot) {
        self.line("");
        let number = self.steps.len() + 1;
        let number = self.styled(Style::Accent, &format!("{number:2}"));
        let heading = self.styled(Style::Bold, title);
        self.line(&format!("{number} {heading}"));
        for row in &snapshot.rows {
            let marker = if row.is_new {
                self.styled(Style::Accent, ">")
            } else {
                " ".to_owned()
            };
            let what = format!(
                "domain {:<2} {:<9} {:>2} table pages, {:>7} mapped  ",
                row.number,
                row.kind,
                row.table_pages,
                bytes(row.mapped_bytes),
            );
            let indent = what.chars().count() + 4;
            for (index, route) in row.routes.iter().enumerate() {
                let route = self.styled(Style::Accent, route);
                if index == 0 {
                    self.line(&format!("  {marker} {what}{route}"));
                } else {
                    self.line(&format!("{:indent$}{route}", ""));
                }
            }
        }
        let rows: Vec<_> = snapshot
            .rows
            .iter()
            .map(|row| {
                json!({
                    "domain": row.number, "kind": row.kind, "table_pages": row.table_pages,
                    "mapped_bytes": row.mapped_bytes, "routes": row.routes,
                })
            })
            .collect();
        self.steps.push(json!({ "step": title, "domains": rows }));
    }

    /// A heading above claims.
    pub(crate) fn heading(&mut self, text: &str) {
        self.line("");
        let text = self.styled(Style::Bold, text);
        self.line(&text);
    }

    /// One claim.
    pub(crate) fn claim(&mut self, outcome: Outcome) {
        let (mark, style, text) = match &outcome.result {
            Ok(text) => ("ok  ", Style::Good, text),
            Err(text) => ("FAIL", Style::Bad, text),
        };
        let mark = self.styled(style, mark);
        self.line(&format!("  {mark} {}", outcome.claim));
        for line in wrapped(text, WIDTH - 7) {
            let line = self.styled(Style::Dim, &line);
            self.line(&format!("       {line}"));
        }
        self.outcomes.push(outcome);
    }

    /// The last line, or the JSON object. Gives the number of failed claims.
    ///
    /// # Errors
    /// If standard output has not taken everything.
    pub(crate) fn finish(mut self, seconds: f64) -> Result<usize, StdoutError> {
        let failed = self
            .outcomes
            .iter()
            .filter(|outcome| outcome.result.is_err())
            .count();
        let passed = self.outcomes.len() - failed;
        if self.json {
            let claims: Vec<_> = self
                .outcomes
                .iter()
                .map(|outcome| {
                    let (passed, text) = match &outcome.result {
                        Ok(text) => (true, text),
                        Err(text) => (false, text),
                    };
                    json!({ "claim": outcome.claim, "passed": passed, "detail": text })
                })
                .collect();
            let object = json!({
                "schema": 1, "passed": passed, "failed": failed, "seconds": seconds,
                "steps": self.steps, "claims": claims,
            });
            self.print(&format!("{object:#}"));
        } else {
            self.line("");
            self.line(&format!("{passed} passed, {failed} failed"));
        }
        self.printed.map(|()| failed)
    }
}

/// A size for people, in at most 7 columns.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{} KiB", count / 1024),
        1_048_576..1_073_741_824 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("never empty");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_details_stay_within_the_terminal() {
        let text = "word ".repeat(60);
        assert!(wrapped(&text, 73).iter().all(|line| line.len() <= 73));
        assert_eq!(wrapped("", 73), [""]);
        assert_eq!(bytes(64 << 20), "64 MiB");
    }
}
