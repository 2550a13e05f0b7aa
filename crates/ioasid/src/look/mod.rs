//! Looking at a machine: `inspect`, `ls`, `top` and `graph`. A running machine gives its tree through its
//! control socket ([`tree`]); everything that is drawn, is drawn from its JSON ([`seen`]).

mod graph;
mod list;
mod screen;
mod seen;
#[cfg(test)]
mod tests;
mod top;
pub(crate) mod tree;

use std::path::Path;

use anyhow::{Context as _, Result};
use ioasid_core::inspect::{Node, Value};
use ioasid_machine::Models;
use ioasid_supervisor::control;
use seen::Seen;

use crate::{
    cli::{GraphArgs, InspectArgs, LsArgs, TopArgs},
    find::chosen,
    machines,
    stdio::print,
    view,
};

/// The tree of the machine at `path`.
fn ask(path: &Path) -> Result<Node> {
    control::inspect(path).with_context(|| format!("asking {}", path.display()))
}

/// `ioasid inspect`.
pub(crate) fn inspect(args: &InspectArgs) -> Result<u8> {
    let node = ask(&chosen(args.machine.as_deref())?)?;
    let text = match (&args.path, args.json) {
        (Some(path), json) => match (tree::part(&node, path)?, json) {
            (Value::Node(node), true) => tree::to_json_text(&node),
            (value, true) => format!("{:#}\n", tree::to_json(&value)),
            (value, false) => tree::value_to_text(&value),
        },
        (None, true) => tree::to_json_text(&node),
        (None, false) if args.all => tree::to_text(&node),
        (None, false) => screen::screen(&Seen::new(&node)?),
    };
    print(&text)?;
    Ok(0)
}

/// `ioasid ls`: of a machine that runs, or of one that could.
pub(crate) fn ls(args: &LsArgs, models: &Models) -> Result<u8> {
    let path = args.build.machine.as_deref();
    let devices = &args.build.devices.device;
    let not_running = path.is_some() || !devices.is_empty();
    let node = match not_running {
        true => {
            let file = machines::file(path, devices, models)?;
            let machine = machines::build("not running", &file)?;
            view::of(&machine).inspect()
        }
        false => ask(&chosen(args.machine.as_deref())?)?,
    };
    print(&list::list(&Seen::new(&node)?))?;
    Ok(0)
}

/// `ioasid graph`.
pub(crate) fn graph(args: &GraphArgs) -> Result<u8> {
    let node = ask(&chosen(args.machine.as_deref())?)?;
    let graph = graph::Graph::new(&Seen::new(&node)?);
    print(&match args.svg {
        true => graph::svg::draw(&graph),
        false => graph::dot::draw(&graph),
    })?;
    Ok(0)
}

/// `ioasid top`.
pub(crate) fn top(args: &TopArgs) -> Result<u8> {
    let path = chosen(args.machine.as_deref())?;
    top::watch(|| Seen::new(&ask(&path)?), args.every)?;
    Ok(0)
}
