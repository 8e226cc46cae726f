//! YAML as JSON, with the lines where things stand: files that people write, such as `environment.yml`.
//!
//! What a document means is not known here. Hostile ones are bounded: aliases that multiply, deep nesting, many events.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// The longest text that is read, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Everything that is in a text of that length, and that aliases may make of it.
const MAX_EVENTS: usize = 100_000;
/// Files that people write nest a handful of levels.
const MAX_DEPTH: usize = 32;

/// A document.
#[derive(Clone, Debug, PartialEq)]
pub struct Yaml {
    /// What it says.
    pub value: Value,
    lines: BTreeMap<String, u64>,
}

/// Why a text is no document. `Display` gives the place as well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct YamlError {
    /// From 1; 0 where it is not one line's fault.
    pub line: u64,
    /// From 1.
    pub column: u64,
    /// What is wrong there.
    pub message: String,
}

impl Yaml {
    /// Reads one document. Numbers and booleans are what YAML makes of them; so `3.10` without quotes is 3.1 here, too.
    pub fn read(text: &str) -> Result<Self, YamlError> {
        let whole = |message: String| YamlError { line: 0, column: 0, message };
        if text.len() > MAX_BYTES {
            return Err(whole(format!("the text has {} bytes, and {MAX_BYTES} are the most", text.len())));
        }
        let budget = serde_saphyr::budget! { max_events: MAX_EVENTS, max_depth: MAX_DEPTH, max_nodes: MAX_EVENTS };
        let options = serde_saphyr::options! { budget: budget, strict_booleans: true, with_snippet: false };
        let root: Node = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
            // Its own text repeats the place.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default().to_owned();
            YamlError { line, column, message }
        })?;
        let mut lines = BTreeMap::new();
        let value = root.into_value("", &mut lines);
        Ok(Self { value, lines })
    }

    /// The line of a place such as `dependencies[2].pip[0]`, or of what it stands in.
    pub fn line_of(&self, place: &str) -> Option<u64> {
        let mut place = place;
        loop {
            if let Some(line) = self.lines.get(place) {
                return Some(*line);
            }
            place = &place[..place.rfind(['.', '['])?];
        }
    }
}

/// A value with the lines of its parts.
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Object(Vec<(String, Spanned<Node>)>),
}

impl Node {
    fn into_value(self, place: &str, lines: &mut BTreeMap<String, u64>) -> Value {
        let mut part = |node: Spanned<Self>, place: String| {
            lines.insert(place.clone(), node.referenced.line());
            node.value.into_value(&place, lines)
        };
        match self {
            Self::Scalar(value) => value,
            Self::List(nodes) => {
                Value::Array(nodes.into_iter().enumerate().map(|(index, node)| part(node, format!("{place}[{index}]"))).collect())
            }
            Self::Object(nodes) => {
                let dot = if place.is_empty() { "" } else { "." };
                let parts = nodes.into_iter().map(|(key, node)| {
                    let value = part(node, format!("{place}{dot}{key}"));
                    (key, value)
                });
                Value::Object(parts.collect::<Map<_, _>>())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or an object")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        Number::from_f64(value).map(|number| Node::Scalar(number.into())).ok_or_else(|| E::custom("a number that is not finite; quote it"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element()? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(key) = object.next_key::<Node>()? {
            let key = match key {
                Node::Scalar(Value::String(key)) => key,
                Node::Scalar(other) => other.to_string(),
                _ => return Err(A::Error::custom("a key that is a list or an object")),
            };
            nodes.push((key, object.next_value()?));
        }
        Ok(Node::Object(nodes))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FILE: &str = "# ours\nname: example\nchannels:\n  - conda-forge\ndependencies:\n  - python=3.10\n  - numpy >=1.26,<2  # fast\n  - pip:\n      - six\n      - \"attrs>=23\"\nvariables:\n  A: 'yes'\n  B: 3.10\n  on: true\n  empty:\n";

    #[test]
    fn a_conda_file_is_read_as_what_it_says() {
        let yaml = Yaml::read(FILE).unwrap();
        let expected = json!({
            "name": "example",
            "channels": ["conda-forge"],
            "dependencies": ["python=3.10", "numpy >=1.26,<2", { "pip": ["six", "attrs>=23"] }],
            "variables": { "A": "yes", "B": 3.1, "on": true, "empty": null },
        });
        assert_eq!(yaml.value, expected);
    }

    #[test]
    fn every_place_knows_its_line() {
        let yaml = Yaml::read(FILE).unwrap();
        for (place, line) in
            [("name", 2), ("dependencies[1]", 7), ("dependencies[2].pip[1]", 10), ("variables.B.x", 13), ("dependencies[0].q", 6)]
        {
            assert_eq!(yaml.line_of(place), Some(line), "{place}");
        }
        assert_eq!(yaml.line_of("nowhere"), None);
    }

    #[test]
    fn a_mistake_names_its_line() {
        for (text, line) in [("name: x\ndependencies:\n  - a\n - b\n", 4), ("a: [1, 2\nb: 3", 2), ("a: 1\na: 2\n", 2), ("a: *nobody\n", 1)]
        {
            let error = Yaml::read(text).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(!error.message.contains("line"), "{error}");
        }
        assert!(Yaml::read(&" ".repeat(MAX_BYTES + 1)).unwrap_err().message.contains("are the most"));
    }

    #[test]
    fn aliases_that_multiply_and_endless_nesting_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let one = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [one.as_str(); 10].join(", ")));
        }
        Yaml::read(&bomb).unwrap_err();
        Yaml::read(&"[".repeat(100_000)).unwrap_err();
        Yaml::read(&"- ".repeat(100_000)).unwrap_err();
    }
}
