//! The listener: TLS, time limits of connections, and an orderly end.

use std::{net::TcpListener, sync::Arc, time::Duration};

use axum::Router;
use axum_server::{
    Handle,
    accept::NoDelayAcceptor,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use hyper_util::rt::TokioTimer;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use trainyard_core::{Error, Result};

use crate::{layers, state::AppState};

/// A client that dials and does not send a request does not keep the connection longer than this.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// From the first byte of a request's head to its last. Also how long a kept-alive HTTP/1.1 connection may idle, for hyper
/// counts from the end of the answer before; so not too short for a client that polls.
const REQUEST_HEAD: Duration = Duration::from_secs(90);
/// An HTTP/2 client that is silent for this long is asked whether it is there...
const PING_EVERY: Duration = Duration::from_secs(30);
/// ...and is given up when it does not say so within this.
const PING_ANSWER: Duration = Duration::from_secs(20);
/// How long requests in progress may take once the server is to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Every route with every layer: what [`serve`] serves, for tests without a socket.
pub fn app(state: AppState) -> Router {
    layers::stack(state)
}

/// Serves until `shutdown` is cancelled, then lets requests in progress finish, for at most ten seconds.
///
/// # Errors
/// [`Internal`](trainyard_core::ErrorKind::Internal) when the listener cannot be used.
pub async fn serve(state: AppState, listener: TcpListener, tls: ServerConfig, shutdown: CancellationToken) -> Result<()> {
    let handle = Handle::new();
    let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(Arc::new(tls))).acceptor(NoDelayAcceptor::new());
    let mut server = axum_server::from_tcp(listener)
        .map_err(Error::internal)?
        .acceptor(acceptor)
        .handle(handle.clone())
        .first_request_timeout(FIRST_REQUEST);
    server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(REQUEST_HEAD);
    server.http_builder().http2().timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).keep_alive_timeout(PING_ANSWER);
    let stopper = tokio::spawn(async move {
        shutdown.cancelled().await;
        handle.graceful_shutdown(Some(DRAIN));
    });
    let served = server.serve(app(state).into_make_service()).await;
    stopper.abort();
    served.map_err(Error::internal)
}
