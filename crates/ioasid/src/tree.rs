//! How the tree of named values looks to people.

use std::fmt::Write as _;

use ioasid_core::inspect::Node;
use ioasid_supervisor::tree::Tree;
use serde_json::Value as Json;

/// The tree as JSON. Addresses are strings in hexadecimal, since JSON numbers end at 2^53.
pub(crate) fn to_json(node: Node) -> Json {
    serde_json::to_value(Tree(node)).unwrap_or(Json::Null)
}

/// JSON as an indented tree for people: scalars beside their names, lists and objects below them.
pub(crate) fn to_text(json: &Json) -> String {
    let mut text = String::new();
    write_json(&mut text, json, 0);
    text
}

fn scalar(json: &Json) -> Option<String> {
    match json {
        Json::String(text) => Some(text.clone()),
        Json::Bool(flag) => Some(if *flag { "yes" } else { "no" }.to_owned()),
        Json::Number(number) => Some(grouped(&number.to_string())),
        Json::Null => Some("-".to_owned()),
        Json::Array(values) if values.iter().all(|v| !v.is_object() && !v.is_array()) => {
            let values: Vec<_> = values.iter().filter_map(scalar).collect();
            Some(if values.is_empty() {
                "none".to_owned()
            } else {
                values.join(", ")
            })
        }
        Json::Object(map) if map.is_empty() => Some("none".to_owned()),
        _ => None,
    }
}

/// Digits in groups of three.
fn grouped(digits: &str) -> String {
    if digits.len() < 5 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return digits.to_owned();
    }
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn write_json(text: &mut String, json: &Json, depth: usize) {
    let indent = "  ".repeat(depth);
    match json {
        Json::Object(map) => {
            let width = map
                .iter()
                .filter(|(_, value)| scalar(value).is_some())
                .map(|(name, _)| name.len())
                .max()
                .unwrap_or(0);
            for (name, value) in map {
                match scalar(value) {
                    Some(value) => {
                        let _ = writeln!(text, "{indent}{name:width$}  {value}");
                    }
                    None => {
                        let _ = writeln!(text, "{indent}{name}");
                        write_json(text, value, depth + 1);
                    }
                }
            }
        }
        Json::Array(values) => {
            for value in values {
                match scalar(value) {
                    Some(value) => {
                        let _ = writeln!(text, "{indent}- {value}");
                    }
                    None => {
                        let mut inner = String::new();
                        write_json(&mut inner, value, depth + 1);
                        // The first line of an element carries its dash.
                        let _ = write!(text, "{indent}- {}", inner.trim_start());
                    }
                }
            }
        }
        other => {
            let _ = writeln!(text, "{indent}{}", scalar(other).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use ioasid_core::inspect::Value;

    use super::*;

    #[test]
    fn the_tree_prints_names_beside_scalars_and_above_the_rest() {
        let node = Node::new()
            .with("pages", 12345_u64)
            .with("root", Value::Hex(0x1000))
            .with("routes", vec!["0000:6a:01.0"])
            .with(
                "domains",
                vec![Node::new().with("id", 1_u64).with("kind", "dma")],
            );
        assert_eq!(
            to_text(&to_json(node)),
            "pages   12 345\nroot    0x1000\nroutes  0000:6a:01.0\ndomains\n  - id    1\n    kind  dma\n"
        );
    }
}
