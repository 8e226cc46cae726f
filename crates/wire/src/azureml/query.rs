//! What a list is asked for: as the JSON body of the `:query` calls (azureml-wire C.2) or as a query string (C.3).

use serde_json::Value;

use crate::json::{Fields, FromJson, WireError, words};

/// Filter, order and page of a list. `includeTotal`-like properties that change nothing are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryParams {
    /// OData filter, unread (azureml-wire C.7).
    pub filter: Option<String>,
    /// Token of the page before.
    pub continuation_token: Option<String>,
    /// E.g. `StartTimeUtc desc`; `orderby` and `orderBy` alike.
    pub orderby: Option<String>,
    /// `Asc` or `Desc`; query strings only.
    pub sort_order: Option<String>,
    /// Largest number of items wanted; at least 1.
    pub top: Option<u32>,
    /// Archived or not; `None` is [`ViewType::Default`].
    pub view_type: Option<ViewType>,
}

words! {
    /// Which experiments are wanted (azureml-wire C.2).
    pub enum ViewType {
        /// What the server thinks best: the active ones.
        Default = "Default",
        /// All.
        All = "All",
        /// Those not archived.
        ActiveOnly = "ActiveOnly",
        /// Those archived.
        ArchivedOnly = "ArchivedOnly",
    }
}

impl QueryParams {
    /// Reads the body of a `:query` call. No body, an empty body and `null` ask for everything.
    pub fn from_body(body: &[u8]) -> Result<Self, WireError> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        match crate::json::document("body", body)? {
            Value::Null => Ok(Self::default()),
            value => Self::from_json("", value),
        }
    }

    /// Reads decoded pairs of a query string: names with or without `$`, in any case; others (`api-version`) are ignored.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, WireError> {
        let mut read = Self::default();
        for (name, value) in pairs {
            let text = || (!value.is_empty()).then(|| value.to_owned());
            match name.strip_prefix('$').unwrap_or(name).to_ascii_lowercase().as_str() {
                "filter" => read.filter = text(),
                "continuationtoken" | "skiptoken" => read.continuation_token = text(),
                "orderby" => read.orderby = text(),
                "sortorder" => read.sort_order = text(),
                "top" | "count" if !value.is_empty() && !is_flag(value) => {
                    let number = value.parse().map_err(|_| WireError::new(name, format!("expected a whole number, found \"{value}\"")))?;
                    read.top = Some(top(name, number)?);
                }
                "viewtype" if !value.is_empty() => read.view_type = Some(ViewType::from_json(name, Value::String(value.to_owned()))?),
                _ => {}
            }
        }
        Ok(read)
    }
}

/// `$count=true` asks OData for a total, `$count=30` is a page size in the datastore calls.
fn is_flag(value: &str) -> bool {
    value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false")
}

fn top(path: &str, number: i64) -> Result<u32, WireError> {
    match u32::try_from(number) {
        Ok(top) if top > 0 => Ok(top),
        _ => Err(WireError::new(path, format!("expected a number of items from 1 to {}, found {number}", u32::MAX))),
    }
}

impl FromJson for QueryParams {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        let mut fields = Fields::new(path, value)?;
        let number = fields.take("top").map(|(path, value)| top(&path, i64::from_json(&path, value)?)).transpose()?;
        Ok(Self {
            filter: fields.string("filter")?,
            continuation_token: fields.string("continuationToken")?,
            orderby: fields.string("orderby")?,
            sort_order: None,
            top: number,
            view_type: fields.choice("viewType")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bodies_that_the_sdk_sends_are_read() {
        let runs = QueryParams::from_body(br#"{"filter":"(ParentRunId eq null)","orderby":"StartTimeUtc desc","top":500}"#).unwrap();
        assert_eq!(runs.filter.as_deref(), Some("(ParentRunId eq null)"));
        assert_eq!(runs.orderby.as_deref(), Some("StartTimeUtc desc"));
        assert_eq!(runs.top, Some(500));
        let experiments = QueryParams::from_body(br#"{"ViewType":"activeonly","orderBy":"CreatedUtc desc"}"#).unwrap();
        assert_eq!(experiments.view_type, Some(ViewType::ActiveOnly));
        assert_eq!(experiments.orderby.as_deref(), Some("CreatedUtc desc"));
        for empty in ["", "  ", "null", "{}"] {
            assert_eq!(QueryParams::from_body(empty.as_bytes()).unwrap(), QueryParams::default(), "{empty:?}");
        }
    }

    #[test]
    fn query_strings_are_read_in_any_case_with_or_without_the_dollar() {
        let read = QueryParams::from_pairs([
            ("$filter", "RunId eq a"),
            ("$continuationtoken", "t"),
            ("$orderBy", "RunId desc"),
            ("$sortOrder", "Desc"),
            ("top", "5"),
            ("$count", "true"),
            ("viewtype", "All"),
            ("api-version", "v1.0"),
        ])
        .unwrap();
        let expected = QueryParams {
            filter: Some("RunId eq a".into()),
            continuation_token: Some("t".into()),
            orderby: Some("RunId desc".into()),
            sort_order: Some("Desc".into()),
            top: Some(5),
            view_type: Some(ViewType::All),
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn what_is_not_a_query_is_named() {
        for (body, expected) in [
            ("{", "body: not a JSON document"),
            (r#"{"top":"5"}"#, "top: expected an integer, found the string \"5\""),
            (r#"{"Top":0}"#, "Top: expected a number of items from 1"),
            (r#"{"top":-1}"#, "top: expected a number of items from 1"),
            (r#"{"viewType":"Some"}"#, "viewType: expected one of Default, All, ActiveOnly, ArchivedOnly"),
            ("[]", "expected an object, found a list"),
        ] {
            let error = QueryParams::from_body(body.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{body}: {error}");
        }
        let error = QueryParams::from_pairs([("$top", "many")]).unwrap_err().to_string();
        assert_eq!(error, "$top: expected a whole number, found \"many\"");
    }
}
