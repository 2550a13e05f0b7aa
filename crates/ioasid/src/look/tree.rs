//! The tree of named values: as JSON, as text for people, and the way to a part of it.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use ioasid_core::inspect::{Node, Value};
use serde_json::{Map, Value as Json};

/// The version of the JSON that `--json` prints: `docs/inspect.schema.json` describes it.
const SCHEMA: u64 = 1;

/// The names by which an element of a list may be called in a path, from the most telling.
const NAMES: [&str; 7] = ["address", "uuid", "name", "node", "id", "queue", "program"];

/// A value as JSON: numbers are numbers, also addresses and registers; what is not there is null.
pub(crate) fn to_json(value: &Value) -> Json {
    match value {
        Value::Count(number) | Value::Hex(number) => (*number).into(),
        Value::Absent => Json::Null,
        Value::Flag(flag) => (*flag).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Node(node) => node_to_json(node),
        Value::List(values) => values.iter().map(to_json).collect(),
    }
}

/// A node as JSON.
pub(crate) fn node_to_json(node: &Node) -> Json {
    let fields = node.fields.iter();
    let fields = fields.map(|(name, value)| (name.clone(), to_json(value)));
    Json::Object(fields.collect())
}

/// What `--json` prints of a node: one object with the version of its schema.
pub(crate) fn to_json_text(node: &Node) -> String {
    let mut object = Map::new();
    object.insert("schema".to_owned(), SCHEMA.into());
    if let Json::Object(fields) = node_to_json(node) {
        object.extend(fields);
    }
    format!("{:#}\n", Json::Object(object))
}

/// A node as an indented tree for people: scalars beside their names, lists and nodes below them. One
/// value a line, numbers in plain digits.
pub(crate) fn to_text(node: &Node) -> String {
    let mut text = String::new();
    write_node(&mut text, node, 0);
    text
}

/// The part of `node` at `path`: names with slashes between them. An element of a list is its number from
/// 0, or what it is called: its address, UUID, name or id.
///
/// # Errors
/// If there is no such part: the sentence says what there is.
pub(crate) fn part(node: &Node, path: &str) -> Result<Value> {
    let mut found = Value::Node(node.clone());
    let mut way = String::new();
    for word in path.split('/').filter(|word| !word.is_empty()) {
        let next = match &found {
            Value::Node(node) => node.field(word),
            Value::List(values) => element(values, word),
            _ => None,
        };
        let Some(next) = next.cloned() else {
            let place = if way.is_empty() { "the tree" } else { &way };
            match names(&found) {
                names if names.is_empty() => bail!("there is nothing below {place}"),
                names => bail!("{place} has no `{word}`; it has {}", names.join(", ")),
            }
        };
        found = next;
        let _ = write!(way, "{}{word}", if way.is_empty() { "" } else { "/" });
    }
    Ok(found)
}

fn element<'a>(values: &'a [Value], word: &str) -> Option<&'a Value> {
    let called = values
        .iter()
        .find(|value| names_of(value).any(|name| name == word));
    called.or_else(|| values.get(word.parse::<usize>().ok()?))
}

/// What an element of a list may be called.
fn names_of(value: &Value) -> impl Iterator<Item = String> {
    let node = match value {
        Value::Node(node) => Some(node),
        _ => None,
    };
    let names = NAMES.iter().filter_map(move |name| node?.field(name));
    names.filter_map(scalar)
}

/// What a path may go on with.
fn names(value: &Value) -> Vec<String> {
    match value {
        Value::Node(node) => node.fields.iter().map(|(name, _)| name.clone()).collect(),
        Value::List(values) => {
            let names = values.iter().enumerate().map(|(index, value)| {
                let mut names = names_of(value);
                names.next().unwrap_or_else(|| index.to_string())
            });
            names.collect()
        }
        _ => Vec::new(),
    }
}

/// A value as text, if it fits beside its name.
pub(crate) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text.clone()),
        Value::Flag(flag) => Some(if *flag { "yes" } else { "no" }.to_owned()),
        Value::Count(number) => Some(number.to_string()),
        Value::Hex(number) => Some(format!("{number:#x}")),
        Value::Absent => Some("-".to_owned()),
        Value::List(values) if values.is_empty() => Some("none".to_owned()),
        Value::List(values) => {
            let values: Option<Vec<_>> = values.iter().map(scalar).collect();
            Some(values?.join(", "))
        }
        Value::Node(node) => match &node.fields[..] {
            [] => Some("none".to_owned()),
            [(first, Value::Hex(start)), (second, Value::Hex(last))]
                if first == "start" && second == "last" =>
            {
                Some(format!("{start:#x}-{last:#x}"))
            }
            _ => None,
        },
    }
}

fn write_node(text: &mut String, node: &Node, depth: usize) {
    let indent = "  ".repeat(depth);
    let fields = node.fields.iter();
    let beside = fields.filter(|(_, value)| scalar(value).is_some());
    let width = beside.map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in &node.fields {
        match scalar(value) {
            Some(value) => {
                let _ = writeln!(text, "{indent}{name:width$}  {value}");
            }
            None => {
                let _ = writeln!(text, "{indent}{name}");
                write_value(text, value, depth + 1);
            }
        }
    }
}

/// A value alone, as text.
pub(crate) fn value_to_text(value: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, value, 0);
    text
}

fn write_value(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match (scalar(value), value) {
        (Some(value), _) => {
            let _ = writeln!(text, "{indent}{value}");
        }
        (None, Value::Node(node)) => write_node(text, node, depth),
        (None, Value::List(values)) => {
            for value in values {
                let mut inner = String::new();
                write_value(&mut inner, value, depth + 1);
                // The first line of an element carries its dash.
                let _ = write!(text, "{indent}- {}", inner.trim_start());
            }
        }
        (None, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use ioasid_core::AddrRange;

    use super::*;

    fn tree() -> Node {
        let domain = Node::new()
            .with("id", 1_u64)
            .with("kind", "dma")
            .with("mapped", vec![AddrRange::new(0x1000, 0x1fff).unwrap()]);
        Node::new()
            .with("pages", 12345_u64)
            .with("root", Value::Hex(0x1000))
            .with("vm", None::<&str>)
            .with("routes", vec!["0000:6a:01.0"])
            .with("domains", vec![domain])
    }

    #[test]
    fn the_tree_prints_names_beside_scalars_and_above_the_rest() {
        assert_eq!(
            to_text(&tree()),
            "pages   12345\nroot    0x1000\nvm      -\nroutes  0000:6a:01.0\ndomains\n  \
             - id      1\n    kind    dma\n    mapped  0x1000-0x1fff\n"
        );
    }

    #[test]
    fn in_json_a_number_is_a_number_and_what_is_absent_is_null() {
        assert_eq!(
            serde_json::from_str::<Json>(&to_json_text(&tree())).unwrap(),
            serde_json::json!({
                "schema": 1, "pages": 12345, "root": 4096, "vm": null,
                "routes": ["0000:6a:01.0"],
                "domains": [{"id": 1, "kind": "dma", "mapped": [{"start": 4096, "last": 8191}]}],
            })
        );
    }

    #[test]
    fn a_path_leads_through_names_and_elements_of_lists() {
        let text = |path| value_to_text(&part(&tree(), path).unwrap());
        assert_eq!(text("pages"), "12345\n");
        assert_eq!(text("/domains/1/kind/"), "dma\n");
        assert_eq!(text("domains/0/mapped"), "0x1000-0x1fff\n");
        assert_eq!(text(""), to_text(&tree()));
    }

    #[test]
    fn a_wrong_path_is_answered_with_what_there_is() {
        let wrong = |path| part(&tree(), path).unwrap_err().to_string();
        assert_eq!(
            wrong("page"),
            "the tree has no `page`; it has pages, root, vm, routes, domains"
        );
        assert_eq!(wrong("domains/7"), "domains has no `7`; it has 1");
        assert_eq!(wrong("pages/x"), "there is nothing below pages");
    }
}
