//! Foreign JSON: a bounded tree, and objects whose members are taken one by one.
//!
//! Invariants: no member occurs twice; depth and number of values are bounded before anything looks at
//! them; an [`Object`] is only done when every member was taken.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};

use super::mistake::{BadTask, Mistake, Pointer};

/// A whole task as a server sends it nests five levels; room for what the future adds.
const DEPTH_MAX: usize = 16;
/// 64 executors x 4,096 arguments is 262,144; at ~64 bytes a value the tree stays under 20 MiB.
const VALUES_MAX: usize = 300_000;

/// A JSON value. Numbers are kept as `f64`: no number of a task needs more than 53 bits.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(BTreeMap<String, Node>),
}

/// Reads a whole body.
pub fn parse(bytes: &[u8]) -> Result<Node, BadTask> {
    let mut reading = Reading::default();
    let mut source = serde_json::Deserializer::from_slice(bytes);
    let node = Seed { reading: &mut reading, depth: 0 }.deserialize(&mut source);
    let node = node.and_then(|node| source.end().map(|()| node));
    node.map_err(|cause| {
        reading.bad.unwrap_or_else(|| {
            let reason = cause.to_string();
            Pointer::default().is(Mistake::NotJson { reason })
        })
    })
}

/// What is known while a body is read.
#[derive(Default)]
struct Reading {
    values: usize,
    at: Vec<Pointer>,
    /// The structured reason, where serde only carries a text.
    bad: Option<BadTask>,
}

impl Reading {
    fn here(&self) -> Pointer {
        self.at.last().cloned().unwrap_or_default()
    }

    fn fail<E: serde::de::Error>(&mut self, place: &Pointer, mistake: Mistake) -> E {
        self.bad = Some(place.is(mistake));
        E::custom("refused")
    }
}

struct Seed<'a> {
    reading: &'a mut Reading,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<Node, D::Error> {
        self.reading.values += 1;
        if self.reading.values > VALUES_MAX {
            let limit = VALUES_MAX;
            let whole = Pointer::default();
            return Err(self.reading.fail(&whole, Mistake::TooManyValues { limit }));
        }
        source.deserialize_any(self)
    }
}

impl Seed<'_> {
    fn descend<E: serde::de::Error>(&mut self) -> Result<usize, E> {
        if self.depth < DEPTH_MAX {
            return Ok(self.depth + 1);
        }
        let here = self.reading.here();
        Err(self.reading.fail(&here, Mistake::TooDeep { limit: DEPTH_MAX }))
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut entries: A) -> Result<Node, A::Error> {
        let depth = self.descend::<A::Error>()?;
        let here = self.reading.here();
        let mut list = Vec::new();
        loop {
            self.reading.at.push(here.entry(list.len()));
            let seed = Seed { reading: self.reading, depth };
            let entry = entries.next_element_seed(seed)?;
            self.reading.at.pop();
            match entry {
                Some(node) => list.push(node),
                None => return Ok(Node::List(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Node, A::Error> {
        let depth = self.descend::<A::Error>()?;
        let here = self.reading.here();
        let mut map = BTreeMap::new();
        while let Some(name) = members.next_key::<String>()? {
            let place = here.member(&name);
            if map.contains_key(&name) {
                return Err(self.reading.fail(&place, Mistake::Duplicate));
            }
            self.reading.at.push(place);
            let seed = Seed { reading: self.reading, depth };
            let node = members.next_value_seed(seed)?;
            self.reading.at.pop();
            map.insert(name, node);
        }
        Ok(Node::Map(map))
    }
}

/// An object whose members are taken one by one; what is left at the end is unknown.
///
/// A member that is `null` counts as absent, as many clients write it.
pub struct Object {
    at: Pointer,
    members: BTreeMap<String, Node>,
}

impl Object {
    /// The object at this place.
    pub fn new(at: Pointer, node: Node) -> Result<Object, BadTask> {
        match node {
            Node::Map(members) => Ok(Object { at, members }),
            _ => Err(at.is(Mistake::WrongType { expected: "an object" })),
        }
    }

    /// Where a member is or would be.
    pub fn at(&self, name: &str) -> Pointer {
        self.at.member(name)
    }

    /// Takes a member of any type.
    pub fn take(&mut self, name: &str) -> Option<Node> {
        self.members.remove(name).filter(|node| *node != Node::Null)
    }

    /// Takes members that a server sets and a client may send back; they count for nothing.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.members.remove(*name);
        }
    }

    /// Takes a text of at most `limit` bytes.
    pub fn text(&mut self, name: &str, limit: usize) -> Result<Option<String>, BadTask> {
        let node = self.take(name);
        node.map(|node| text(&self.at(name), node, limit)).transpose()
    }

    /// Takes a text that has to be there and not empty.
    pub fn needed_text(&mut self, name: &str, limit: usize) -> Result<String, BadTask> {
        let fix = "write something";
        match self.text(name, limit)? {
            Some(text) if text.is_empty() => Err(self.at(name).is(Mistake::Empty { fix })),
            Some(text) => Ok(text),
            None => Err(self.at(name).is(Mistake::Missing)),
        }
    }

    /// Takes `true` or `false`.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, BadTask> {
        match self.take(name) {
            None => Ok(None),
            Some(Node::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.at(name).is(Mistake::WrongType { expected: "true or false" })),
        }
    }

    /// Takes an amount from 0 to `max`.
    pub fn amount(&mut self, name: &str, max: u32) -> Result<Option<f64>, BadTask> {
        match self.take(name) {
            None => Ok(None),
            Some(Node::Number(value)) if (0.0..=f64::from(max)).contains(&value) => Ok(Some(value)),
            Some(Node::Number(value)) => {
                let value = value.to_string();
                Err(self.at(name).is(Mistake::BadAmount { value, max }))
            }
            Some(_) => Err(self.at(name).is(Mistake::WrongType { expected: "a number" })),
        }
    }

    /// Takes a list of at most `limit` entries, each with its place; empty if it is absent.
    pub fn list(&mut self, name: &str, limit: usize) -> Result<Vec<(Pointer, Node)>, BadTask> {
        let at = self.at(name);
        match self.take(name) {
            None => Ok(vec![]),
            Some(Node::List(list)) if list.len() > limit => Err(at.is(Mistake::TooMany { limit })),
            Some(Node::List(list)) => {
                let placed = |(index, node)| (at.entry(index), node);
                Ok(list.into_iter().enumerate().map(placed).collect())
            }
            Some(_) => Err(at.is(Mistake::WrongType { expected: "a list" })),
        }
    }

    /// Takes a map from text to text of at most `limit` entries; empty if it is absent.
    pub fn texts(
        &mut self,
        name: &str,
        limit: usize,
        value_bytes_max: usize,
    ) -> Result<BTreeMap<String, String>, BadTask> {
        let at = self.at(name);
        let Some(node) = self.take(name) else {
            return Ok(BTreeMap::new());
        };
        let object = Object::new(at.clone(), node)?;
        if object.members.len() > limit {
            return Err(at.is(Mistake::TooMany { limit }));
        }
        let read = |(key, node): (String, Node)| {
            let value = text(&at.member(&key), node, value_bytes_max)?;
            Ok((key, value))
        };
        object.members.into_iter().map(read).collect()
    }

    /// Ends the object: a member that nobody took is unknown.
    pub fn finish(self) -> Result<(), BadTask> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(name) => Err(self.at.member(name).is(Mistake::Unknown)),
        }
    }
}

/// The text at this place, of at most `limit` bytes.
pub fn text(at: &Pointer, node: Node, limit: usize) -> Result<String, BadTask> {
    match node {
        Node::Text(text) if text.len() > limit => Err(at.is(Mistake::TooLong { limit })),
        Node::Text(text) => Ok(text),
        _ => Err(at.is(Mistake::WrongType { expected: "a text" })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn check(body: &[u8], code: Code, pointer: &str) {
        let bad = parse(body).expect_err("a bad body");
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]);
        assert_eq!(bad.mistake.code(), code, "{shown}");
        assert_eq!(bad.pointer, pointer, "{shown}");
    }

    #[test]
    fn bodies_that_are_no_bounded_json_are_refused() {
        let nested =
            |open: &str, close: &str| [open.repeat(DEPTH_MAX + 1), close.repeat(DEPTH_MAX + 1)].concat().into_bytes();
        check(b"", Code::NotJson, "");
        check(b"{", Code::NotJson, "");
        check(b"{} {}", Code::NotJson, "");
        check(b"\xff\xfe", Code::NotJson, "");
        check(b"\xef\xbb\xbf{}", Code::NotJson, "");
        check(b"[1e999]", Code::NotJson, "");
        check(b"[NaN]", Code::NotJson, "");
        check(br#""\ud800""#, Code::NotJson, "");
        check(br#"{"a":1,"a":1}"#, Code::DuplicateMember, "/a");
        check(br#"{"a":1,"\u0061":1}"#, Code::DuplicateMember, "/a");
        check(br#"{"a":[0,{"b":1,"b":null}]}"#, Code::DuplicateMember, "/a/1/b");
        check(&nested("[", "]"), Code::TooDeep, &"/0".repeat(DEPTH_MAX));
        check("[".repeat(100_000).as_bytes(), Code::TooDeep, &"/0".repeat(DEPTH_MAX));
        check("{\"a\":".repeat(100_000).as_bytes(), Code::TooDeep, &"/a".repeat(DEPTH_MAX));
        let many = format!("[{}0]", "0,".repeat(VALUES_MAX));
        check(many.as_bytes(), Code::TooDeep, "");
    }

    #[test]
    fn the_deepest_body_allowed_is_read() {
        let body = ["[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX)].concat();
        parse(body.as_bytes()).expect("as deep as allowed");
    }
}
