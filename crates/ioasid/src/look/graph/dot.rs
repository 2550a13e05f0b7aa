//! The graph as DOT, for Graphviz.

use std::fmt::Write as _;

use super::{Block, Graph};

/// The graph as text of DOT.
pub(crate) fn draw(graph: &Graph) -> String {
    let mut text = String::from(
        "digraph machine {\n  rankdir=LR;\n  node [shape=record, fontname=\"monospace\"];\n",
    );
    for (letter, name, blocks) in [
        ('u', "users", &graph.users),
        ('s', "address spaces", &graph.spaces),
        ('d', "domains", &graph.domains),
        ('n', "first stages", &graph.nested),
        ('p', "devices", &graph.devices),
    ] {
        // Most machines have no guest with tables of its own.
        if letter == 'n' && blocks.is_empty() {
            continue;
        }
        let _ = writeln!(
            text,
            "  subgraph cluster_{letter} {{\n    label=\"{name}\";"
        );
        for (index, block) in blocks.iter().enumerate() {
            let _ = writeln!(text, "    {letter}{index} [label=\"{}\"];", label(block));
        }
        text.push_str("  }\n");
    }
    for (user, space) in &graph.uses {
        let _ = writeln!(text, "  u{user} -> s{space};");
    }
    for (space, domain) in &graph.tables {
        let _ = writeln!(text, "  s{space} -> d{domain};");
    }
    for (domain, nested) in &graph.stages {
        let _ = writeln!(text, "  d{domain} -> n{nested};");
    }
    for (letter, routes) in [('d', &graph.routes), ('n', &graph.nested_routes)] {
        for (domain, (device, line)) in routes {
            let _ = writeln!(text, "  {letter}{domain} -> p{device}:l{line};");
        }
    }
    text.push_str("}\n");
    text
}

/// A record: each line is a field, which lines can end at.
fn label(block: &Block) -> String {
    let lines = [&block.title].into_iter().chain(&block.lines).enumerate();
    let fields = lines.map(|(index, line)| format!("<l{index}> {}", escaped(line)));
    fields.collect::<Vec<_>>().join(" | ")
}

/// Text inside of a record inside of quotes.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '"' | '\\' | '{' | '}' | '|' | '<' | '>' => escaped.extend(['\\', character]),
            character if character.is_control() => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}
