//! Lists: what a request asks for, and the page that answers it (azureml-wire C.1, C.3).

use trainyard_core::Result;
use trainyard_store::page::{Page, PageRequest};
use trainyard_wire::azureml::{paging, query::QueryParams};

use crate::azureml::body::malformed;

/// What the query string of a list asks for; `text` is what follows the `?`.
pub(crate) fn query_from_string(text: Option<&str>) -> Result<QueryParams> {
    let pairs: Vec<_> = url::form_urlencoded::parse(text.unwrap_or_default().as_bytes()).collect();
    QueryParams::from_pairs(pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))).map_err(malformed)
}

/// What the body and the query string of a `:query` call ask for together: the string fills what the body leaves open.
pub(crate) fn query_from_both(body: QueryParams, text: Option<&str>) -> Result<QueryParams> {
    let (first, second) = (body, query_from_string(text)?);
    Ok(QueryParams {
        filter: first.filter.or(second.filter),
        continuation_token: first.continuation_token.or(second.continuation_token),
        orderby: first.orderby.or(second.orderby),
        sort_order: first.sort_order.or(second.sort_order),
        top: first.top.or(second.top),
        view_type: first.view_type.or(second.view_type),
    })
}

/// The page asked for. The store gives at most [`PageRequest::MAX_TOP`] items; the token of the answer continues.
pub(crate) fn page_request(query: &QueryParams) -> PageRequest {
    PageRequest { top: query.top.unwrap_or(0), token: query.continuation_token.clone() }
}

/// The answer with each item converted.
pub(crate) fn page<T, U>(page: Page<T>, convert: impl FnMut(T) -> U) -> paging::Page<U> {
    paging::Page::new(page.items.into_iter().map(convert).collect(), page.token)
}

#[cfg(test)]
mod tests {
    use trainyard_core::ErrorKind;

    use super::*;

    #[test]
    fn the_body_goes_before_the_query_string() {
        let read =
            query_from_both(QueryParams { top: Some(7), ..QueryParams::default() }, Some("$top=5&%24filter=RunId%20eq%20a&viewType=All"))
                .unwrap();
        assert_eq!(read.top, Some(7));
        assert_eq!(read.filter.as_deref(), Some("RunId eq a"));
        assert!(read.view_type.is_some());
        assert_eq!(page_request(&read), PageRequest { top: 7, token: None });
    }

    #[test]
    fn a_malformed_query_names_the_place() {
        let error = query_from_string(Some("$top=many")).unwrap_err();
        assert_eq!((error.kind(), error.target()), (ErrorKind::Invalid, Some("$top")));
    }
}
