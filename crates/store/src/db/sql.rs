//! Statements as text that only this crate wrote, and values that are only ever bound.

use std::borrow::Cow;

/// A value to bind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Flag(bool),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

impl From<Option<&str>> for Value {
    fn from(value: Option<&str>) -> Self {
        Self::Text(value.map(str::to_owned))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Flag(value)
    }
}

/// A statement under construction. Text comes only as `&'static str`, so that nothing a user wrote can become a part of it.
#[derive(Clone, Debug)]
pub(crate) struct Sql {
    pub(super) text: Cow<'static, str>,
    pub(super) values: Vec<Value>,
}

impl Sql {
    /// A statement, or its beginning. `$1`, `$2`, … in it stand for the first, second, … bound value.
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text: Cow::Borrowed(text), values: Vec::new() }
    }

    /// Binds the next value that the text already speaks of.
    pub(crate) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Goes on with `text`.
    pub(crate) fn push(&mut self, text: &'static str) -> &mut Self {
        self.text.to_mut().push_str(text);
        self
    }

    /// Goes on with a placeholder for `value`.
    pub(crate) fn push_value(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        let text = self.text.to_mut();
        text.push('$');
        text.push_str(&self.values.len().to_string());
        self
    }

    /// Goes on with ` limit rows`.
    ///
    /// As a sum: SQLite looks at the value of a bare placeholder while it prepares, and prepares the statement anew whenever another value is
    /// bound (3.51: `sqlite3ExprIsInteger`), which costs more than most of the queries. Statements with a fixed text say `limit ($1 + 0)`.
    pub(crate) fn push_limit(&mut self, rows: i64) -> &mut Self {
        self.push(" limit (").push_value(rows).push(" + 0)")
    }

    /// Goes on with a row of placeholders: `($7, $8, …)`.
    pub(crate) fn push_row(&mut self, values: impl IntoIterator<Item = Value>) -> &mut Self {
        self.push("(");
        for (index, value) in values.into_iter().enumerate() {
            if index > 0 {
                self.push(", ");
            }
            self.push_value(value);
        }
        self.push(")")
    }
}
