//! The door: who the bearer of a token is now.
//!
//! The signature says who the token was made for; this asks the store whether that still stands. An application must exist,
//! with the secret that the token was got with. A run must not be over for longer than [`GRACE`]; the token of an attempt
//! that was given up still opens, so that its agent can hear that it was given up, but writes nothing.

use std::time::Duration;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{header, request::Parts};
use trainyard_core::{Error, ErrorKind, Result, access::Principal};

use super::{
    audience, secrets,
    tokens::{Claims, RunClaims},
};
use crate::{clock, context::base_url, failure::Rejection, state::AppState};

/// How long after its end a run's token still opens: for what the agent repeats because it never heard the answer.
pub(crate) const GRACE: Duration = Duration::from_secs(15 * 60);

/// Whether the bearer of a run's token may still write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// An application, or the live attempt of a run.
    Live,
    /// An attempt that was given up.
    Fenced,
}

/// What the guard found, as an extension of the request.
#[derive(Clone, Debug)]
pub(crate) struct Authenticated {
    /// Who asks.
    pub principal: Principal,
    /// Whether it may still write.
    pub standing: Standing,
}

/// Lets a request pass that carries a token which holds.
pub(crate) async fn require_token(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match authenticate(&parts, &state).await {
        Ok(authenticated) => {
            parts.extensions.insert(authenticated);
            next.run(Request::from_parts(parts, body)).await
        }
        Err(error) => Rejection(error).into_response(),
    }
}

/// Who the bearer of the request's token is.
///
/// # Errors
/// [`Unauthenticated`](ErrorKind::Unauthenticated) with a sentence that says what is wrong with it.
pub(crate) async fn authenticate(parts: &Parts, state: &AppState) -> Result<Authenticated> {
    let now_us = clock::now_us();
    let claims = state.tokens.verify(bearer(parts)?, now_us)?;
    match &claims.run {
        Some(run) if claims.aud == audience::RUN => run_principal(run, state, now_us).await,
        Some(_) => Err(refused("the access token is for another audience")),
        None => app_principal(&claims, &base_url(parts, state), state).await,
    }
}

fn bearer(parts: &Parts) -> Result<&str> {
    let Some(value) = parts.headers.get(header::AUTHORIZATION) else {
        return Err(refused("this address needs an access token: send `Authorization: Bearer` with one from the token endpoint"));
    };
    let text = value.to_str().unwrap_or_default();
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => Ok(token.trim()),
        _ => Err(refused("the Authorization header is not of the form `Bearer TOKEN`")),
    }
}

async fn app_principal(claims: &Claims, base_url: &str, state: &AppState) -> Result<Authenticated> {
    if !audience::accepted(&claims.aud, &[state.settings.public_url.as_str(), base_url]) {
        return Err(refused(format!("the access token is for `{}`, not for this server", claims.aud)));
    }
    let id = claims.appid.ok_or_else(|| refused("the access token names no application"))?;
    let app = state.store.app(id).await?.ok_or_else(|| refused("the application of the access token was deleted"))?;
    if claims.sec.as_deref() != Some(secrets::mark(&app).as_str()) {
        return Err(refused("the secret of the application was rotated; get a new access token with the new secret"));
    }
    Ok(Authenticated { principal: Principal::App { id, name: app.name, grants: app.grants }, standing: Standing::Live })
}

async fn run_principal(claims: &RunClaims, state: &AppState, now_us: i64) -> Result<Authenticated> {
    let RunClaims { workspace, id, attempt } = claims.clone();
    let run = state.store.run(workspace, &id).await?.ok_or_else(|| refused("the run of the access token does not exist any more"))?;
    let grace_us = i64::try_from(GRACE.as_micros()).unwrap_or(i64::MAX);
    let standing = if run.state.is_terminal() {
        if run.ended_us.is_some_and(|ended_us| now_us > ended_us.saturating_add(grace_us)) {
            return Err(refused(format!("run {id} is over, and so is its access token")));
        }
        Standing::Live
    } else if run.attempt == Some(attempt) {
        Standing::Live
    } else {
        Standing::Fenced
    };
    Ok(Authenticated { principal: Principal::Run { workspace, run: id, attempt }, standing })
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unauthenticated, message)
}
