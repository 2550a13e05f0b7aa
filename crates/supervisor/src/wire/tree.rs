//! The machine's tree as JSON and back: nothing of it is lost. Names keep their order; a register or
//! address is an object with the one name `0x`.

use std::fmt;

use ioasid_core::inspect::{Node, Value};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, SeqAccess, Visitor},
    ser::SerializeMap,
};

/// Marks a number that is shown in hexadecimal. No field of a tree has this name.
const HEX: &str = "0x";

/// A [`Node`] that can be sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree(pub Node);

struct Leaf<'a>(&'a Value);

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        node(&self.0, serializer)
    }
}

fn node<S: Serializer>(node: &Node, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(node.fields.len()))?;
    for (name, value) in &node.fields {
        map.serialize_entry(name, &Leaf(value))?;
    }
    map.end()
}

impl Serialize for Leaf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Count(count) => serializer.serialize_u64(*count),
            Value::Hex(number) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry(HEX, number)?;
                map.end()
            }
            Value::Absent => serializer.serialize_unit(),
            Value::Flag(flag) => serializer.serialize_bool(*flag),
            Value::Text(text) => serializer.serialize_str(text),
            Value::Node(inner) => node(inner, serializer),
            Value::List(values) => serializer.collect_seq(values.iter().map(Leaf)),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match OwnedLeaf::deserialize(deserializer)?.0 {
            Value::Node(node) => Ok(Tree(node)),
            _ => Err(serde::de::Error::custom("not a tree")),
        }
    }
}

struct OwnedLeaf(Value);

impl<'de> Deserialize<'de> for OwnedLeaf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LeafVisitor).map(OwnedLeaf)
    }
}

struct LeafVisitor;

impl<'de> Visitor<'de> for LeafVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a count, a flag, a text, a list, a tree or nothing")
    }

    fn visit_u64<E>(self, count: u64) -> Result<Value, E> {
        Ok(Value::Count(count))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Absent)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(OwnedLeaf(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Vec::new();
        while let Some((name, OwnedLeaf(value))) = map.next_entry()? {
            fields.push((name, value));
        }
        match &fields[..] {
            [(name, Value::Count(number))] if name == HEX => Ok(Value::Hex(*number)),
            _ => Ok(Value::Node(Node { fields })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_survives_the_wire_with_its_order() {
        let tree = Tree(
            Node::new()
                .with("zebra", 1u64)
                .with("ant", vec![Node::new().with("on", true)])
                .with("text", "\"quoted\"\n")
                .with("base", Value::Hex(u64::MAX))
                .with("nothing", None::<u64>),
        );
        let json = serde_json::to_string(&tree).unwrap();
        assert_eq!(serde_json::from_str::<Tree>(&json).unwrap(), tree);
        assert!(json.find("zebra") < json.find("ant"));
    }

    #[test]
    fn a_tree_must_be_a_tree() {
        assert!(serde_json::from_str::<Tree>("[1]").is_err());
        assert!(serde_json::from_str::<Tree>("{\"a\":-1}").is_err());
    }
}
