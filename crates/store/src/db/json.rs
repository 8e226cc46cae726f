//! JSON for text columns.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use trainyard_core::{Error, Result};

/// Any value as JSON text.
pub(crate) fn encode(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(Error::internal)
}

/// Tags or properties as JSON text.
pub(crate) fn encode_texts(texts: &BTreeMap<String, Option<String>>, what: &'static str) -> Result<String> {
    let has_nul = texts.iter().any(|(key, value)| key.contains('\0') || value.as_ref().is_some_and(|value| value.contains('\0')));
    if has_nul { Err(nul(what)) } else { encode(texts) }
}

/// An object as JSON text.
pub(crate) fn encode_object(object: &Map<String, Value>, what: &'static str) -> Result<String> {
    if object.iter().any(|(key, value)| key.contains('\0') || holds_nul(value)) { Err(nul(what)) } else { encode(object) }
}

/// JSON that filters look into as text.
pub(crate) fn encode_value(value: &Value, what: &'static str) -> Result<String> {
    if holds_nul(value) { Err(nul(what)) } else { encode(value) }
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(object) => object.iter().any(|(key, value)| key.contains('\0') || holds_nul(value)),
    }
}

/// PostgreSQL cannot look into JSON that holds this character, and then one such row would fail every filter that meets it.
fn nul(what: &'static str) -> Error {
    Error::invalid(format!("`{what}` holds the character U+0000, which can not be stored; leave it out")).with_target(what)
}
