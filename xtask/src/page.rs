//! The code blocks of a page of documentation.
//!
//! A block after a line that is only a file's name, such as `` `src/main.rs`: ``, is that file.

/// A code block.
#[derive(Debug)]
pub struct Block<'a> {
    /// What stands behind the fence: `console`, `rust`.
    pub language: &'a str,
    /// The file that it is, if it is one.
    pub file: Option<&'a str>,
    /// Its lines.
    pub lines: Vec<&'a str>,
}

impl Block<'_> {
    /// All of it, each line with its end.
    pub fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// The blocks of a page, in order.
pub fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut before = "";
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            if !line.is_empty() {
                before = line;
            }
            continue;
        };
        let name = before.strip_prefix('`');
        blocks.push(Block {
            language,
            file: name.and_then(|line| line.strip_suffix("`:")),
            lines: lines.by_ref().take_while(|line| *line != "```").collect(),
        });
        before = "";
    }
    blocks
}
