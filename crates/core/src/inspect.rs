//! The tree of named values that a running machine shows. Each floor fills its own part and knows
//! nothing of how it is printed.

use std::fmt;

use crate::AddrRange;

/// One value of the tree.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A count or size; the name says the unit (`bytes`, `pages`, `faults`).
    Count(u64),
    /// An address or register, shown in hexadecimal.
    Hex(u64),
    /// There is none: a field that could have a value keeps its name.
    Absent,
    /// Yes or no.
    Flag(bool),
    /// A text.
    Text(String),
    /// Named values, in the order in which they were added.
    Node(Node),
    /// Values of one kind.
    List(Vec<Value>),
}

/// Named values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// The names and values, in order.
    pub fields: Vec<(String, Value)>,
}

impl Node {
    /// An empty node.
    pub fn new() -> Self {
        Node::default()
    }

    /// Adds `name` with `value`.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// Adds `name` with `value`, by value, for chains.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.set(name, value);
        self
    }

    /// The value called `name`.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fields
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }
}

/// Something that can show itself in the tree. Must not block on a peer.
pub trait Inspect {
    /// The state as of now.
    fn inspect(&self) -> Node;
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Count(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::Count(value.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Value::Count(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Flag(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(value)
    }
}

impl From<fmt::Arguments<'_>> for Value {
    fn from(value: fmt::Arguments<'_>) -> Self {
        Value::Text(value.to_string())
    }
}

impl From<Node> for Value {
    fn from(value: Node) -> Self {
        Value::Node(value)
    }
}

impl From<AddrRange> for Value {
    /// The first and the last address.
    fn from(range: AddrRange) -> Self {
        let node = Node::new()
            .with("start", Value::Hex(range.start()))
            .with("last", Value::Hex(range.last()));
        Value::Node(node)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Absent, Into::into)
    }
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(values: Vec<T>) -> Self {
        Value::List(values.into_iter().map(Into::into).collect())
    }
}
