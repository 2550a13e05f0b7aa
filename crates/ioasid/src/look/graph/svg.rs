//! The graph as SVG: columns of boxes, and curves between them. A domain and its routes have one
//! colour.

use std::fmt::Write as _;

use super::{Block, Graph};

/// Pixels of a character of the fixed font, and of a line.
const CHARACTER: usize = 8;
const LINE: usize = 18;
/// Pixels between columns, between boxes of one, and around all.
const GAP: usize = 90;
const SPACE: usize = 22;
const MARGIN: usize = 20;
/// Pixels inside of a box beside its text.
const INSIDE: usize = 10;

/// Colours of domains, one after the other: they can be told apart by most people who see fewer (Okabe
/// and Ito).
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a07000", "#5080a0",
];

/// Columns whose boxes have colours.
const DOMAINS: usize = 2;
const NESTED: usize = 3;

/// A box in its place.
struct Placed<'a> {
    block: &'a Block,
    x: usize,
    y: usize,
    width: usize,
}

impl Placed<'_> {
    fn height(&self) -> usize {
        height(self.block)
    }

    /// Where a line of the box ends, in the middle of its text, on the left.
    fn left(&self, line: usize) -> (usize, usize) {
        (self.x, self.y + INSIDE / 2 + LINE * line + LINE / 2)
    }

    /// The middle of the box on the left.
    fn entry(&self) -> (usize, usize) {
        (self.x, self.y + self.height() / 2)
    }

    /// The middle of the box on the right.
    fn exit(&self) -> (usize, usize) {
        (self.x + self.width, self.y + self.height() / 2)
    }
}

fn height(block: &Block) -> usize {
    LINE * (1 + block.lines.len()) + INSIDE
}

/// The graph as a document of SVG.
pub(crate) fn draw(graph: &Graph) -> String {
    let columns = [
        &graph.users,
        &graph.spaces,
        &graph.domains,
        &graph.nested,
        &graph.devices,
    ];
    let heads = [
        "users",
        "address spaces",
        "domains",
        "first stages",
        "devices",
    ];
    let tall = |blocks: &Vec<Block>| -> usize {
        let heights: usize = blocks.iter().map(height).sum();
        heights + SPACE * blocks.len().saturating_sub(1)
    };
    let tallest = columns.iter().map(|blocks| tall(blocks)).max().unwrap_or(0);
    let top = MARGIN + LINE + SPACE / 2;
    let (mut x, mut drawn, mut placed) = (MARGIN, String::new(), Vec::new());
    for (column, (blocks, head)) in columns.into_iter().zip(heads).enumerate() {
        // Most machines have no guest with tables of its own.
        if column == NESTED && blocks.is_empty() {
            placed.push(Vec::new());
            continue;
        }
        let widest = blocks
            .iter()
            .flat_map(|b| [&b.title].into_iter().chain(&b.lines));
        let widest = widest.map(|line| line.chars().count()).max().unwrap_or(0);
        let width = widest.max(head.len()) * CHARACTER + 2 * INSIDE;
        let y = MARGIN + LINE / 2;
        let _ = writeln!(
            drawn,
            "<text x=\"{x}\" y=\"{y}\" class=\"head\">{head}</text>"
        );
        let mut y = top + (tallest - tall(blocks)) / 2;
        let column = blocks.iter().map(|block| {
            let box_ = Placed { block, x, y, width };
            y += box_.height() + SPACE;
            box_
        });
        placed.push(column.collect::<Vec<_>>());
        x += width + GAP;
    }
    let [users, spaces, domains, nested, devices] = &placed[..] else {
        unreachable!("five columns were placed")
    };
    let own_colour = |nested: usize| colour(graph.domains.len() + nested);
    for (user, space) in &graph.uses {
        curve(
            &mut drawn,
            users[*user].exit(),
            spaces[*space].entry(),
            "#888888",
        );
    }
    for (space, domain) in &graph.tables {
        curve(
            &mut drawn,
            spaces[*space].exit(),
            domains[*domain].entry(),
            colour(*domain),
        );
    }
    for (domain, stage) in &graph.stages {
        let (from, to) = (domains[*domain].exit(), nested[*stage].entry());
        curve(&mut drawn, from, to, colour(*domain));
    }
    for (domain, (device, line)) in &graph.routes {
        let (from, to) = (domains[*domain].exit(), devices[*device].left(*line));
        curve(&mut drawn, from, to, colour(*domain));
    }
    for (stage, (device, line)) in &graph.nested_routes {
        let (from, to) = (nested[*stage].exit(), devices[*device].left(*line));
        curve(&mut drawn, from, to, own_colour(*stage));
    }
    for (column, boxes) in placed.iter().enumerate() {
        for (index, placed) in boxes.iter().enumerate() {
            let stroke = match column {
                DOMAINS => colour(index),
                NESTED => own_colour(index),
                _ => "#444444",
            };
            draw_box(&mut drawn, placed, stroke);
        }
    }
    let (width, height) = (x - GAP + MARGIN, top + tallest + MARGIN);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\">\n\
         <style>\n\
         text {{ font: 13px monospace; fill: #222222 }}\n\
         .head {{ fill: #888888 }}\n\
         .title {{ font-weight: bold }}\n\
         </style>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         {drawn}</svg>\n"
    )
}

fn colour(domain: usize) -> &'static str {
    COLOURS[domain % COLOURS.len()]
}

fn curve(drawn: &mut String, from: (usize, usize), to: (usize, usize), colour: &str) {
    let half = usize::midpoint(from.0, to.0);
    let _ = writeln!(
        drawn,
        "<path d=\"M {} {} C {half} {}, {half} {}, {} {}\" fill=\"none\" stroke=\"{colour}\" \
         stroke-width=\"2\"/>",
        from.0, from.1, from.1, to.1, to.0, to.1
    );
}

fn draw_box(drawn: &mut String, placed: &Placed<'_>, stroke: &str) {
    let Placed { block, x, y, width } = placed;
    let height = placed.height();
    let _ = writeln!(
        drawn,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"4\" fill=\"#f8f8f8\" \
         stroke=\"{stroke}\" stroke-width=\"1.5\"/>"
    );
    for (index, line) in [&block.title].into_iter().chain(&block.lines).enumerate() {
        let class = if index == 0 { " class=\"title\"" } else { "" };
        let (x, y) = (x + INSIDE, y + INSIDE / 2 + LINE * (index + 1) - 5);
        let _ = writeln!(
            drawn,
            "<text x=\"{x}\" y=\"{y}\"{class}>{}</text>",
            escaped(line)
        );
    }
}

/// Text of XML. What XML cannot hold becomes a blank.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            character if character.is_control() => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}
