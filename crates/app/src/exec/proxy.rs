//! The HTTPS proxy that a program under `exec` is sent through.
//!
//! It listens on loopback, on a port of its own, and answers only to the credential in its URL, because other users of
//! the machine can reach loopback too. `CONNECT` to a host of [`hosts`] ends here: TLS with a leaf for exactly that
//! name, then each request to the server. Any other `CONNECT` is bytes in both directions, and a plain `http://`
//! request is sent on as it is. Every connection ends when the proxy is dropped.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{PROXY_AUTHENTICATE, PROXY_AUTHORIZATION},
    uri,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::{client::proxy::matcher::Matcher, rt::TokioIo};
use rustls::{ServerConfig, crypto::aws_lc_rs, sign::SingleCertAndKey};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time,
};
use tokio_rustls::TlsAcceptor;
use trainyard_server::tls::Authority;

use super::{
    endpoint::Endpoint,
    forward::{self, Body, Forwarder},
    hosts,
    tunnel::{ByteStream, Outside},
};

/// Name part of the credential; the password is the secret.
const USER: &str = "trainyard";

/// How long to leave the listener alone when it cannot accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running proxy. Dropping it ends it and all its connections.
pub struct Proxy {
    address: SocketAddr,
    password: String,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts one on a free port of 127.0.0.1. `proxies` says how hosts that are not answered are reached.
    pub async fn start(endpoint: Endpoint, authority: Authority, proxies: Matcher) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot listen on 127.0.0.1")?;
        let address = listener.local_addr().context("cannot tell the port of the proxy")?;
        let mut secret = [0; 24];
        ::aws_lc_rs::rand::fill(&mut secret).context("the system gives no random numbers")?;
        let password = hex::encode(secret);
        let shared = Arc::new(Shared {
            authority,
            outside: Outside { proxies, tls: endpoint.tls().clone() },
            endpoint: Arc::new(endpoint),
            expected: format!("Basic {}", BASE64.encode(format!("{USER}:{password}"))),
            leaves: Mutex::default(),
        });
        Ok(Self { address, password, accepting: tokio::spawn(accept(listener, shared)) })
    }

    /// What the proxy variables of the child are set to. Holds the credential.
    pub fn url(&self) -> String {
        format!("http://{USER}:{}@{}", self.password, self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Shared {
    authority: Authority,
    endpoint: Arc<Endpoint>,
    outside: Outside,
    /// The only `Proxy-Authorization` that is let in.
    expected: String,
    /// TLS for each answered host that was asked for.
    leaves: Mutex<HashMap<String, Arc<ServerConfig>>>,
}

/// What a connection turns into once its `CONNECT` was granted.
enum Next {
    Answered { upgrade: OnUpgrade, tls: Arc<ServerConfig>, host: String },
    Tunnel { upgrade: OnUpgrade, stream: Box<dyn ByteStream> },
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Aborting this task drops the set, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move {
                        if let Err(error) = serve(&shared, stream).await {
                            tracing::debug!(%error, "a connection through the proxy ended");
                        }
                    });
                }
                // Mostly too many open files: those of ended connections are about to be free again.
                Err(error) => {
                    tracing::warn!(%error, "the proxy could not accept a connection");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(shared: &Arc<Shared>, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let next = Mutex::new(None);
    let service = service_fn(|request| {
        let next = &next;
        async move { Ok::<_, Infallible>(shared.answer(request, next).await) }
    });
    http1::Builder::new()
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)?;
    let granted = next.lock().unwrap_or_else(PoisonError::into_inner).take();
    match granted {
        None => Ok(()),
        Some(Next::Tunnel { upgrade, mut stream }) => {
            let mut program = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
            copy_bidirectional(&mut program, &mut stream).await.map(|_| ())
        }
        Some(Next::Answered { upgrade, tls, host }) => {
            let program = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
            let stream = TlsAcceptor::from(tls).accept(program).await?;
            let forwarder = Forwarder::new(Arc::clone(&shared.endpoint), host);
            let service = service_fn(|request| async { Ok::<_, Infallible>(forwarder.forward(request).await) });
            http1::Builder::new().preserve_header_case(true).serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
        }
    }
}

impl Shared {
    async fn answer(&self, mut request: Request<Incoming>, next: &Mutex<Option<Next>>) -> Response<Body> {
        if !self.is_let_in(request.headers()) {
            let mut response = forward::refusal(
                StatusCode::PROXY_AUTHENTICATION_REQUIRED,
                "this proxy serves one program only: use the credential in its HTTPS_PROXY",
            );
            response.headers_mut().insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"trainyard exec\""));
            return response;
        }
        if request.method() != Method::CONNECT {
            return self.answer_plain(request).await;
        }
        let Some(target) = request.uri().authority().filter(|target| target.port().is_some()).cloned() else {
            return forward::refusal(StatusCode::BAD_REQUEST, "CONNECT needs host:port");
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let granted = if hosts::is_answered(target.host(), target.port_u16().unwrap_or_default()) {
            let host = target.host().trim_end_matches('.').to_ascii_lowercase();
            self.tls_for(&host).map(|tls| Next::Answered { upgrade, tls, host }).map_err(|error| format!("{error:#}"))
        } else {
            self.outside.connect(&target).await.map(|stream| Next::Tunnel { upgrade, stream }).map_err(|error| error.to_string())
        };
        match granted {
            Ok(granted) => {
                *next.lock().unwrap_or_else(PoisonError::into_inner) = Some(granted);
                Response::new(forward::empty())
            }
            Err(reason) => cannot_reach(&target, &reason),
        }
    }

    async fn answer_plain(&self, request: Request<Incoming>) -> Response<Body> {
        let Some(target) = request.uri().authority().filter(|_| request.uri().scheme_str() == Some("http")).cloned() else {
            return forward::refusal(StatusCode::BAD_REQUEST, "this is a proxy: it takes CONNECT host:port and http:// URLs");
        };
        self.outside.forward_plain(request).await.unwrap_or_else(|error| cannot_reach(&target, &error.to_string()))
    }

    fn is_let_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(PROXY_AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
        ::aws_lc_rs::constant_time::verify_slices_are_equal(given, self.expected.as_bytes()).is_ok()
    }

    fn tls_for(&self, host: &str) -> anyhow::Result<Arc<ServerConfig>> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = leaves.get(host) {
            return Ok(Arc::clone(present));
        }
        let key = self.authority.leaf(&[host.to_owned()])?.certified_key()?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        leaves.insert(host.to_owned(), Arc::clone(&config));
        Ok(config)
    }
}

fn cannot_reach(target: &uri::Authority, reason: &str) -> Response<Body> {
    tracing::warn!(%target, reason, "the proxy could not reach a host");
    forward::bad_gateway(&format!("trainyard exec could not reach {target}: {reason}"))
}

#[cfg(test)]
mod tests;
