//! Every middleware, in one list, from the outside in.
//!
//! 1. [`normalize`]: the path is brought to the form of the list of routes, before the router sees it.
//! 2. [`request::observe`]: request id, span, counters, headers on every answer.
//! 3. [`envelope::render`]: panics and errors become bodies in the dialect of the path.
//! 4. body limit: what extractors collect in memory is bounded; uploads count for themselves.
//! 5. the guard of [`crate::auth::guard`], on every route that is not public ([`crate::routes`]).

pub(crate) mod envelope;
pub(crate) mod normalize;
pub(crate) mod request;

use std::sync::Arc;

use axum::{Router, extract::DefaultBodyLimit, middleware::from_fn_with_state};

use crate::{routes, state::AppState};

/// The whole service: normaliser, layers, routes.
pub(crate) fn stack(state: AppState) -> Router {
    let table = routes::table();
    let paths = Arc::new(normalize::Paths::new(table.paths()));
    let json_bytes = usize::try_from(state.settings.limits.max_json_bytes).unwrap_or(usize::MAX);
    let router = table
        .into_router(&state)
        .fallback(envelope::no_route)
        .method_not_allowed_fallback(envelope::no_method)
        .layer(DefaultBodyLimit::max(json_bytes))
        .layer(from_fn_with_state(state.clone(), envelope::render))
        .layer(from_fn_with_state(state.clone(), request::observe))
        .with_state(state);
    normalize::in_front_of(router, paths)
}
