//! The query string, with names in any case (azureml-wire C.3: `$continuationToken` and `$continuationtoken` are the same).

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::request::Parts;
use trainyard_core::{Error, Result};

/// The query of a request, decoded. An extractor that never fails.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `text`, what follows the `?`.
    pub(crate) fn parse(text: &str) -> Self {
        Self(url::form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of `name`, whose case does not matter. `?name` and `?name=` give the empty text.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Like [`get`](Self::get), but an empty value counts as absent.
    pub(crate) fn non_empty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// The value of `name` parsed; [`Invalid`](trainyard_core::ErrorKind::Invalid) with the name as its target when it does not parse.
    pub(crate) fn parsed<T: std::str::FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        self.non_empty(name)
            .map(|value| {
                value
                    .parse()
                    .map_err(|_| Error::invalid(format!("query parameter `{name}` is `{value}`: expected {expected}")).with_target(name))
            })
            .transpose()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_values_are_decoded() {
        let query = Query::parse("$ContinuationToken=a%2Bb+c&%24top=5&empty=");
        assert_eq!(query.get("$continuationToken"), Some("a+b c"));
        assert_eq!(query.parsed::<u32>("$top", "a number").unwrap(), Some(5));
        assert_eq!(query.get("empty"), Some(""));
        assert_eq!(query.non_empty("empty"), None);
        assert_eq!(query.get("absent"), None);
    }

    #[test]
    fn a_value_that_does_not_parse_is_told_with_its_name() {
        let error = Query::parse("top=many").parsed::<u32>("top", "a number").unwrap_err();
        assert_eq!(error.message(), "query parameter `top` is `many`: expected a number");
        assert_eq!(error.target(), Some("top"));
    }
}
