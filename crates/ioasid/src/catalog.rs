//! `--device help` and `--device MODEL,help`: the models and their keys.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use ioasid_machine::{
    file::DEVICE_KEYS,
    model::{Described, Key, Table, names::nearest},
};

use crate::Models;

/// The word that asks for help, in the place of a model or of a key.
const HELP: &str = "help";

/// What the first of `strings` that asks for help is answered with; none if there is none.
///
/// # Errors
/// If the model is not known.
pub(crate) fn help(strings: &[String], models: &Models) -> Result<Option<String>> {
    for string in strings {
        let mut words = string.split(',');
        let model = words.next().unwrap_or_default();
        if model == HELP {
            return Ok(Some(list(models)));
        }
        if words.any(|word| word == HELP) {
            return keys(model, models).map(Some);
        }
    }
    Ok(None)
}

fn list(models: &Models) -> String {
    let described: Vec<_> = models.describe(Table::Device).collect();
    let width = widest(described.iter().map(|model| model.name));
    let mut text = "--device MODEL[,KEY=VALUE...], where MODEL is\n".to_owned();
    for model in described {
        line(&mut text, &[(model.name, width)], model.summary);
    }
    text.push_str("--device MODEL,help lists the keys of one.\n");
    text
}

fn keys(name: &str, models: &Models) -> Result<String> {
    let known: Vec<_> = models.describe(Table::Device).collect();
    let Some(model) = known.iter().find(|model| model.name == name) else {
        let names: Vec<_> = known.iter().map(|model| model.name).collect();
        let meant = nearest(name, names.iter().copied());
        let meant = meant.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
        bail!(
            "unknown model `{name}`; there are {}{meant}",
            names.join(", ")
        );
    };
    let keys: Vec<Key> = [model.keys, &common(model)].concat();
    let names = widest(keys.iter().map(|key| key.name));
    let values = widest(keys.iter().map(|key| key.values));
    let defaults = widest(keys.iter().map(|key| key.default).chain(["default"]));
    let mut text = format!("{name}: {}\n", model.summary);
    let columns = |name, value, default| [(name, names), (value, values), (default, defaults)];
    line(&mut text, &columns("key", "value", "default"), "");
    for key in &keys {
        line(
            &mut text,
            &columns(key.name, key.values, key.default),
            key.meaning,
        );
    }
    text.push_str("For example --device ");
    text.push_str(name);
    if let Some(key) = keys.first() {
        let _ = write!(text, ",{}={}", key.name, key.default);
    }
    text.push('\n');
    Ok(text)
}

/// The keys that every model has; `driver = "host"` only where there is one.
fn common(model: &Described) -> Vec<Key> {
    let mut keys = DEVICE_KEYS.to_vec();
    for key in &mut keys {
        if key.name == "driver" && !model.has_host_driver {
            key.values = "vfio";
        }
    }
    keys
}

fn widest<'a>(words: impl Iterator<Item = &'a str>) -> usize {
    words.map(str::len).max().unwrap_or(0)
}

/// Columns of their widths, and what comes after them.
fn line(text: &mut String, columns: &[(&str, usize)], rest: &str) {
    let mut line = " ".to_owned();
    for (word, width) in columns {
        let _ = write!(line, " {word:width$} ");
    }
    let _ = write!(line, " {rest}");
    text.push_str(line.trim_end());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(string: &str) -> String {
        let answer = help(&[string.to_owned()], &crate::standard());
        answer
            .map(Option::unwrap_or_default)
            .unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn help_lists_models_and_the_keys_of_one() {
        assert!(answer("help").contains("\n  edu   QEMU's educational device"));
        let dsa = answer("dsa,help");
        for key in [
            "engines ",
            "queues ",
            "max_transfer ",
            "vfs ",
            "address ",
            "vfio or host",
        ] {
            assert!(dsa.contains(key), "{dsa}");
        }
        assert!(answer("edu,help").contains("  driver    vfio "));
        assert!(answer("eduu,help").contains("did you mean `edu`?"));
        assert_eq!(answer("dsa,queues=4"), "");
    }
}
