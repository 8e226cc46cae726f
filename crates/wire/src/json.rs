//! A reader for JSON written by foreign clients.
//!
//! Real clients write property names and enum words in several cases (azureml-wire D.6), so names are matched without case.
//! What is not known is kept under the name that it came with, keys of maps keep their case, and an error names the
//! place with the client's own spelling: ``Configuration.NodeCount: expected an integer, found the string "two"``.
//! A null is the same as an absent property, as it is to the service.
//!
//! Invariant: every property of an object is either read or in [`Fields::rest`]; two spellings of one name are an error,
//! because whichever was taken the other would be ignored.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

/// What is wrong with a document, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    /// The place, as the client spelt it: `Configuration.Environment.Python`, `Configuration.Arguments[2]`.
    pub path: String,
    /// What was expected there and what was found.
    pub message: String,
}

impl WireError {
    /// An error at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }

    fn expected(path: &str, expected: &str, found: &Value) -> Self {
        Self::new(path, format!("expected {expected}, found {}", describe(found)))
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

impl std::error::Error for WireError {}

/// A JSON value in words, short enough for a message.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => {
            let shown: String = text.chars().take(40).collect();
            let more = if shown.len() < text.len() { "…" } else { "" };
            format!("the string \"{shown}{more}\"")
        }
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// Reads a whole document. `what` names it in errors: a part of a request, e.g. `runDefinitionFile`.
pub fn document(what: &str, bytes: &[u8]) -> Result<Value, WireError> {
    // Editors on Windows write a byte order mark, which JSON does not allow.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|error| WireError::new(what, format!("not a JSON document: {error}")))
}

/// A type that can be read from JSON at a path.
pub trait FromJson: Sized {
    /// Reads `value`, which stands at `path`.
    fn from_json(path: &str, value: Value) -> Result<Self, WireError>;

    /// Reads an item of a list or map. Differs for texts only: there a number or a flag is taken as its text, as .NET
    /// does; `"Arguments": ["--rate", 0.1]` is what the SDK sends.
    fn from_item(path: &str, value: Value) -> Result<Self, WireError> {
        Self::from_json(path, value)
    }
}

impl FromJson for Value {
    fn from_json(_: &str, value: Value) -> Result<Self, WireError> {
        Ok(value)
    }
}

impl FromJson for String {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(WireError::expected(path, "a string", &other)),
        }
    }

    fn from_item(path: &str, value: Value) -> Result<Self, WireError> {
        match value {
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(flag) => Ok(flag.to_string()),
            other => Self::from_json(path, other),
        }
    }
}

impl FromJson for i64 {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        value.as_i64().ok_or_else(|| WireError::expected(path, "an integer", &value))
    }
}

impl FromJson for f64 {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        value.as_f64().ok_or_else(|| WireError::expected(path, "a number", &value))
    }
}

impl FromJson for bool {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        value.as_bool().ok_or_else(|| WireError::expected(path, "true or false", &value))
    }
}

impl<T: FromJson> FromJson for Option<T> {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        if value.is_null() { Ok(None) } else { T::from_json(path, value).map(Some) }
    }

    fn from_item(path: &str, value: Value) -> Result<Self, WireError> {
        if value.is_null() { Ok(None) } else { T::from_item(path, value).map(Some) }
    }
}

impl<T: FromJson> FromJson for Vec<T> {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        match value {
            Value::Array(items) => {
                items.into_iter().enumerate().map(|(index, item)| T::from_item(&format!("{path}[{index}]"), item)).collect()
            }
            other => Err(WireError::expected(path, "a list", &other)),
        }
    }
}

impl<T: FromJson> FromJson for BTreeMap<String, T> {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        match value {
            Value::Object(entries) => entries
                .into_iter()
                .map(|(key, item)| {
                    let item = T::from_item(&join(path, &key), item)?;
                    Ok((key, item))
                })
                .collect(),
            other => Err(WireError::expected(path, "an object", &other)),
        }
    }
}

impl FromJson for Map<String, Value> {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        match value {
            Value::Object(entries) => Ok(entries),
            other => Err(WireError::expected(path, "an object", &other)),
        }
    }
}

/// A closed set of words, matched in any case.
pub trait Choice: Sized + Copy + 'static {
    /// Each word with its meaning; the first word of a meaning is the one written out, others are aliases.
    const WORDS: &'static [(&'static str, Self)];
}

/// Reads a [`Choice`].
pub fn choice<T: Choice>(path: &str, value: Value) -> Result<T, WireError> {
    let Value::String(word) = &value else {
        return Err(WireError::expected(path, &format!("one of {}", listed::<T>()), &value));
    };
    let found = T::WORDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(word));
    found.map(|(_, meaning)| *meaning).ok_or_else(|| WireError::expected(path, &format!("one of {}", listed::<T>()), &value))
}

fn listed<T: Choice>() -> String {
    let words: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
    words.join(", ")
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The properties of one object that have not been read yet.
#[derive(Debug)]
pub struct Fields {
    path: String,
    unread: Map<String, Value>,
}

impl Fields {
    /// Opens the object at `path` (empty for a whole document).
    pub fn new(path: impl Into<String>, value: Value) -> Result<Self, WireError> {
        let path = path.into();
        let Value::Object(unread) = value else {
            return Err(WireError::expected(&path, "an object", &value));
        };
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        for name in unread.keys() {
            if let Some(before) = seen.insert(name.to_ascii_lowercase(), name) {
                return Err(WireError::new(path, format!("`{before}` and `{name}` are the same property; give it once")));
            }
        }
        Ok(Self { path, unread })
    }

    /// Where the object stands.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Takes the property out, with its path as the client spelt it. `None`: absent or null.
    pub fn take(&mut self, name: &str) -> Option<(String, Value)> {
        let written = match self.unread.contains_key(name) {
            true => name.to_owned(),
            false => self.unread.keys().find(|key| key.eq_ignore_ascii_case(name))?.clone(),
        };
        let value = self.unread.remove(&written)?;
        (!value.is_null()).then(|| (join(&self.path, &written), value))
    }

    /// Reads a property of any type. `None`: absent or null.
    pub fn read<T: FromJson>(&mut self, name: &str) -> Result<Option<T>, WireError> {
        self.take(name).map(|(path, value)| T::from_json(&path, value)).transpose()
    }

    /// Reads a property that must be there.
    pub fn required<T: FromJson>(&mut self, name: &str) -> Result<T, WireError> {
        self.read(name)?.ok_or_else(|| WireError::new(join(&self.path, name), "is required and missing"))
    }

    /// Reads a text.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, WireError> {
        self.read(name)
    }

    /// Reads a whole number; one in quotes is an error.
    pub fn integer(&mut self, name: &str) -> Result<Option<i64>, WireError> {
        self.read(name)
    }

    /// Reads a flag.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, WireError> {
        self.read(name)
    }

    /// Reads a list of texts; numbers and flags in it are taken as their text.
    pub fn string_list(&mut self, name: &str) -> Result<Option<Vec<String>>, WireError> {
        self.read(name)
    }

    /// Reads a map of texts and nulls; numbers and flags in it are taken as their text.
    pub fn string_map(&mut self, name: &str) -> Result<Option<BTreeMap<String, Option<String>>>, WireError> {
        self.read(name)
    }

    /// Opens an object.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, WireError> {
        self.take(name).map(|(path, value)| Fields::new(path, value)).transpose()
    }

    /// Reads a word of a closed set.
    pub fn choice<T: Choice>(&mut self, name: &str) -> Result<Option<T>, WireError> {
        self.take(name).map(|(path, value)| choice(&path, value)).transpose()
    }

    /// What has not been read, under the names that it came with.
    pub fn rest(self) -> Map<String, Value> {
        self.unread
    }
}

/// Declares an object of the wire: a struct with one field per property, its default, a reader ([`FromJson`]) and a writer.
///
/// Properties that are not declared are kept in `rest` and written back beside the others.
macro_rules! object {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[$doc:meta])* $wire:literal $field:ident: $kind:ty = $default:expr, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        $vis struct $name {
            $( $(#[$doc])* #[serde(rename = $wire)] $vis $field: $kind, )*
            /// Properties this server does not know, as they came.
            #[serde(flatten)]
            $vis rest: serde_json::Map<String, serde_json::Value>,
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* rest: serde_json::Map::new() }
            }
        }

        impl $crate::json::FromJson for $name {
            fn from_json(path: &str, value: serde_json::Value) -> Result<Self, $crate::json::WireError> {
                let mut fields = $crate::json::Fields::new(path, value)?;
                Ok(Self {
                    $( $field: match fields.read::<$kind>($wire)? { Some(value) => value, None => $default }, )*
                    rest: fields.rest(),
                })
            }
        }
    };
}

/// Declares a closed set of words: an enum, its words with their aliases, a reader and a writer.
macro_rules! words {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $( $(#[$doc:meta])* $variant:ident = $word:literal $(| $alias:literal)*, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
        $vis enum $name {
            $( $(#[$doc])* #[serde(rename = $word)] $variant, )*
        }

        impl $crate::json::Choice for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$( ($word, Self::$variant) $(, ($alias, Self::$variant))*, )*];
        }

        impl $crate::json::FromJson for $name {
            fn from_json(path: &str, value: serde_json::Value) -> Result<Self, $crate::json::WireError> {
                $crate::json::choice(path, value)
            }
        }

        impl $name {
            /// The word as it is written out.
            $vis fn as_str(self) -> &'static str {
                match self {
                    $( Self::$variant => $word, )*
                }
            }
        }
    };
}

pub(crate) use {object, words};

/// The names of a document as its client spelt them, so that a later message can name a property the same way.
///
/// Holds names only, no values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spelling {
    /// Lower-case path to path as written.
    written: BTreeMap<String, String>,
}

impl Spelling {
    /// Collects the names below `value`, which stands at `path`.
    pub fn of(path: &str, value: &Value) -> Self {
        let mut spelling = Self::default();
        spelling.collect(path, value);
        spelling
    }

    fn collect(&mut self, path: &str, value: &Value) {
        self.written.insert(path.to_ascii_lowercase(), path.to_owned());
        if let Value::Object(entries) = value {
            for (name, value) in entries {
                self.collect(&join(path, name), value);
            }
        }
    }

    /// `path` with the part of it that the client wrote spelt as the client did.
    pub fn path(&self, path: &str) -> String {
        let mut known = path.len();
        loop {
            if let Some(written) = self.written.get(&path[..known].to_ascii_lowercase()) {
                return format!("{written}{}", &path[known..]);
            }
            match path[..known].rfind(['.', '[']) {
                Some(dot) => known = dot,
                None => return path.to_owned(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    words! {
        /// A shape.
        pub(super) enum Shape {
            /// Round.
            Round = "Round" | "Circle",
            /// Square.
            Square = "Square",
        }
    }

    object! {
        /// A thing.
        pub(super) struct Thing {
            /// Its size.
            "sizeCm" size_cm: i64 = 3,
            /// Its shape.
            "shape" shape: Shape = Shape::Square,
            /// Its name.
            "name" name: Option<String> = None,
            /// Words.
            "words" words: Vec<String> = vec!["w".to_owned()],
            /// Tags.
            "tags" tags: BTreeMap<String, Option<String>> = BTreeMap::new(),
        }
    }

    fn thing(value: Value) -> Result<Thing, WireError> {
        Thing::from_json("Thing", value)
    }

    #[test]
    fn names_and_words_are_matched_without_case_and_map_keys_keep_theirs() {
        let read = thing(json!({"SIZECM": 5, "Shape": "circle", "tAgs": {"Key": "v", "key": null, "n": 1.5}})).unwrap();
        assert_eq!((read.size_cm, read.shape.as_str()), (5, "Round"));
        let tags: Vec<_> = read.tags.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        assert_eq!(tags, [("Key", Some("v")), ("key", None), ("n", Some("1.5"))]);
    }

    #[test]
    fn absent_and_null_properties_take_their_defaults() {
        assert_eq!(thing(json!({})).unwrap(), Thing::default());
        assert_eq!(thing(json!({"sizeCm": null, "shape": null, "name": null, "words": null, "tags": null})).unwrap(), Thing::default());
    }

    #[test]
    fn unknown_properties_come_back_under_their_own_names() {
        let read = thing(json!({"NewThing": {"A": [1]}, "name": "n"})).unwrap();
        let written = serde_json::to_value(&read).unwrap();
        assert_eq!(written, json!({"sizeCm": 3, "shape": "Square", "name": "n", "words": ["w"], "tags": {}, "NewThing": {"A": [1]}}));
    }

    #[test]
    fn items_of_text_lists_may_be_numbers_and_flags() {
        let read = thing(json!({"words": ["a", 1, 0.5, true, -3]})).unwrap();
        assert_eq!(read.words, ["a", "1", "0.5", "true", "-3"]);
    }

    #[test]
    fn wrong_types_are_named_with_the_path_as_the_client_spelt_it() {
        let table = [
            (json!([]), "Thing: expected an object, found a list"),
            (json!({"SizeCm": "two"}), "Thing.SizeCm: expected an integer, found the string \"two\""),
            (json!({"sizecm": 1.5}), "Thing.sizecm: expected an integer, found the number 1.5"),
            (json!({"name": 5}), "Thing.name: expected a string, found the number 5"),
            (json!({"words": "a"}), "Thing.words: expected a list, found the string \"a\""),
            (json!({"words": ["a", null]}), "Thing.words[1]: expected a string, found null"),
            (json!({"Tags": {"K": []}}), "Thing.Tags.K: expected a string, found a list"),
            (json!({"tags": true}), "Thing.tags: expected an object, found true"),
            (json!({"shape": "oval"}), "Thing.shape: expected one of Round, Circle, Square, found the string \"oval\""),
            (json!({"shape": 1}), "Thing.shape: expected one of Round, Circle, Square, found the number 1"),
        ];
        for (value, expected) in table {
            assert_eq!(thing(value).unwrap_err().to_string(), expected);
        }
        let long = thing(json!({"sizeCm": "x".repeat(500)})).unwrap_err().to_string();
        assert!(long.len() < 120 && long.ends_with("…\""), "{long}");
    }

    #[test]
    fn two_spellings_of_one_name_are_refused() {
        let error = thing(json!({"sizeCm": 1, "SizeCm": 2})).unwrap_err();
        assert_eq!(error.path, "Thing");
        assert!(error.message.contains("are the same property; give it once"), "{error}");
    }

    #[test]
    fn a_required_property_that_is_missing_is_named() {
        let mut fields = Fields::new("", json!({"a": null})).unwrap();
        assert_eq!(fields.required::<String>("a").unwrap_err().to_string(), "a: is required and missing");
    }

    #[test]
    fn a_document_may_start_with_a_byte_order_mark_and_must_be_json() {
        assert_eq!(document("part", b"\xef\xbb\xbf{}").unwrap(), json!({}));
        let error = document("part", b"{\n  \"a\": 1,\n}").unwrap_err().to_string();
        assert!(error.starts_with("part: not a JSON document: ") && error.contains("line 3"), "{error}");
        assert!(document("part", b"\xff\xfe").unwrap_err().message.starts_with("not a JSON document"));
    }

    #[test]
    fn a_path_is_spelt_as_far_as_the_client_spelt_it() {
        let spelling = Spelling::of("configuration", &json!({"environment": {"Docker": {"enabled": true}}}));
        assert_eq!(spelling.path("Configuration.Environment.Docker.Enabled"), "configuration.environment.Docker.enabled");
        assert_eq!(spelling.path("Configuration.Environment.Python.InterpreterPath"), "configuration.environment.Python.InterpreterPath");
        assert_eq!(spelling.path("Configuration.Environment.Docker[2]"), "configuration.environment.Docker[2]");
        assert_eq!(spelling.path("Elsewhere.X"), "Elsewhere.X");
    }
}
