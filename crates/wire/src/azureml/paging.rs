//! One page of a list (azureml-wire C.1).

use serde::Serialize;

/// `{"value": […], "continuationToken": ?, "nextLink": ?}`. The SDK follows `continuationToken`, and `nextLink` only if that
/// is null; both keys are always there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The items.
    pub value: Vec<T>,
    /// Opaque text to ask for the next page with; `None` on the last one.
    pub continuation_token: Option<String>,
    /// URL of the next page.
    pub next_link: Option<String>,
}

impl<T> Page<T> {
    /// A page with the token of the next one.
    pub fn new(value: Vec<T>, continuation_token: Option<String>) -> Self {
        Self { value, continuation_token, next_link: None }
    }
}
