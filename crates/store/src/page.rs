//! Pages of a list: how many, from where, and the opaque token that continues.
//!
//! A token holds the sort key and the id of the last item given and a hash of the query that it belongs to. It says nothing
//! that the caller could not see, and a token that does not fit the query it comes back with is refused, never misread.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use trainyard_core::{Error, Result};

use crate::db::json::encode;

/// Which page of a list is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// At most so many items; 0 asks for the default and larger values are cut, see [`PageRequest::limit`].
    pub top: u32,
    /// The token of the page before, or `None` for the first page.
    pub token: Option<String>,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The items, in the order of the list.
    pub items: Vec<T>,
    /// Continues the list; `None` when this was the last page.
    pub token: Option<String>,
}

impl PageRequest {
    /// Items on a page when the caller does not say; the page size of the SDK (azureml-wire C.7).
    pub const DEFAULT_TOP: u32 = 500;
    /// The most items on one page.
    pub const MAX_TOP: u32 = 1000;

    /// The first page, of at most `top` items.
    pub fn first(top: u32) -> Self {
        Self { top, token: None }
    }

    /// How many items to give.
    pub fn limit(&self) -> usize {
        match self.top {
            0 => Self::DEFAULT_TOP as usize,
            top => top.min(Self::MAX_TOP) as usize,
        }
    }
}

impl<T> Page<T> {
    /// The same page with each item converted.
    pub fn map<U>(self, convert: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(convert).collect(), token: self.token }
    }
}

/// What a token says: the last item given and the query that it was given for.
#[derive(Debug, Serialize, Deserialize)]
struct Token<K> {
    #[serde(rename = "q")]
    query: String,
    #[serde(rename = "k")]
    after: K,
}

/// Reads the token of a request: `after`, the sort key of the last item given, or `None` for the first page.
///
/// `query` is everything else that the list depends on, as text. Invalid when the token is no token or is for another query.
pub(crate) fn after<K: DeserializeOwned>(request: &PageRequest, query: &str) -> Result<Option<K>> {
    let Some(text) = request.token.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
    let refused = || {
        Error::invalid("the continuation token does not fit this query; repeat the query that gave it, or start again without a token")
            .with_target("continuationToken")
    };
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| refused())?;
    let token: Token<K> = serde_json::from_slice(&bytes).map_err(|_| refused())?;
    if token.query == fingerprint(query) { Ok(Some(token.after)) } else { Err(refused()) }
}

/// Makes a page of `items`, of which one more than the limit was asked for; `key` is an item's sort key.
pub(crate) fn page<T, K: Serialize>(mut items: Vec<T>, request: &PageRequest, query: &str, key: impl Fn(&T) -> K) -> Result<Page<T>> {
    let limit = request.limit();
    if items.len() <= limit {
        return Ok(Page { items, token: None });
    }
    items.truncate(limit);
    let token = items.last().map(|last| Token { query: fingerprint(query), after: key(last) });
    let token = token.map(|token| encode(&token)).transpose()?.map(|text| URL_SAFE_NO_PAD.encode(text));
    Ok(Page { items, token })
}

/// Enough of a hash to notice a token that strayed; it protects nothing, since a token only says where to go on.
fn fingerprint(query: &str) -> String {
    hex::encode(&Sha256::digest(query.as_bytes())[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_continues_its_own_query_only() {
        let request = PageRequest::first(2);
        let page = page(vec![1, 2, 3], &request, "a", |item| *item).expect("a page");
        assert_eq!(page.items, [1, 2]);
        let next = PageRequest { top: 2, token: page.token };
        assert_eq!(after::<i32>(&next, "a").expect("fits"), Some(2));
        for (query, token) in [("b", next.token.as_deref()), ("a", Some("no token")), ("a", Some("e30"))] {
            let error = after::<i32>(&PageRequest { top: 2, token: token.map(str::to_owned) }, query).expect_err("refused");
            assert_eq!(error.kind(), trainyard_core::ErrorKind::Invalid);
        }
    }

    #[test]
    fn the_last_page_has_no_token() {
        assert_eq!(page(vec![1, 2], &PageRequest::first(2), "a", |item| *item).expect("a page").token, None);
        assert_eq!(after::<i32>(&PageRequest::first(2), "a").expect("no token is fine"), None);
    }
}
