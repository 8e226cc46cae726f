//! Connections to hosts that are not answered: passed through untouched, by way of the proxy that our own
//! environment names for them (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`), if any.

use std::{io, time::Duration};

use http::{Method, Request, Response, StatusCode, Uri, header::PROXY_AUTHORIZATION};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::{
    client::proxy::matcher::{Intercept, Matcher},
    rt::TokioIo,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time,
};
use tokio_rustls::TlsConnector;

use super::forward::{self, Body};

/// How long one connection may take to come about, a proxy's part included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to somewhere, TLS or not.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// How the outside world is reached.
pub(super) struct Outside {
    /// Which proxy for which host.
    pub(super) proxies: Matcher,
    /// For proxies that are reached over TLS themselves.
    pub(super) tls: TlsConnector,
}

impl Outside {
    /// A raw connection to `host:port`, for the program to speak whatever it likes over.
    pub(super) async fn connect(&self, target: &http::uri::Authority) -> io::Result<Box<dyn ByteStream>> {
        let uri = Uri::builder().scheme("https").authority(target.as_str()).path_and_query("/").build().map_err(io::Error::other)?;
        let port = target.port_u16().ok_or_else(|| io::Error::other("the target has no port"))?;
        within_time(async {
            match self.proxies.intercept(&uri) {
                Some(proxy) => self.connect_through(&proxy, target).await,
                None => Ok(Box::new(tcp(target.host(), port).await?) as Box<dyn ByteStream>),
            }
        })
        .await
    }

    /// Sends a plain `http://` request on, over a connection of its own, and gives the answer.
    pub(super) async fn forward_plain(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let (head, body) = request.into_parts();
        let mut head = forward::cleaned(head);
        let host = head.uri.host().ok_or_else(|| io::Error::other("the request names no host"))?.to_owned();
        let stream = within_time(async {
            match self.proxies.intercept(&head.uri) {
                // The next proxy gets the request with its whole URL, as we did.
                Some(proxy) => {
                    if let Some(credential) = proxy.basic_auth() {
                        head.headers.insert(PROXY_AUTHORIZATION, credential.clone());
                    }
                    self.reach(&proxy).await
                }
                None => {
                    let port = head.uri.port_u16().unwrap_or(80);
                    head.uri = forward::origin_form(&head.uri);
                    Ok(Box::new(tcp(&host, port).await?) as Box<dyn ByteStream>)
                }
            }
        })
        .await?;
        let (mut sender, connection) =
            http1::Builder::new().preserve_header_case(true).handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let response = sender.send_request(Request::from_parts(head, forward::drained(body))).await.map_err(io::Error::other)?;
        Ok(forward::incoming(response))
    }

    /// Asks `proxy` for a tunnel to `target`.
    async fn connect_through(&self, proxy: &Intercept, target: &http::uri::Authority) -> io::Result<Box<dyn ByteStream>> {
        let stream = self.reach(proxy).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(Method::CONNECT).uri(target.as_str()).header("host", target.as_str());
        if let Some(credential) = proxy.basic_auth() {
            request = request.header(PROXY_AUTHORIZATION, credential);
        }
        let request = request.body(forward::empty()).map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        if response.status() != StatusCode::OK {
            return Err(io::Error::other(format!("the proxy {} refused a connection to {target}: {}", shown(proxy), response.status())));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    /// A connection to `proxy` itself.
    async fn reach(&self, proxy: &Intercept) -> io::Result<Box<dyn ByteStream>> {
        let uri = proxy.uri();
        let host = uri.host().ok_or_else(|| io::Error::other("the proxy's URL names no host"))?;
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("cannot connect to the proxy {}: {error}", shown(proxy)));
        match uri.scheme_str() {
            Some("http") => Ok(Box::new(tcp(host, uri.port_u16().unwrap_or(80)).await.map_err(failed)?)),
            Some("https") => {
                let name = ServerName::try_from(unbracketed(host).to_owned()).map_err(io::Error::other)?;
                let stream = tcp(host, uri.port_u16().unwrap_or(443)).await.map_err(failed)?;
                Ok(Box::new(self.tls.connect(name, stream).await.map_err(failed)?))
            }
            scheme => Err(io::Error::other(format!(
                "the environment names a {} proxy, and `trainyard exec` can reach other hosts through http and https proxies only: set HTTPS_PROXY to one, or add the host to NO_PROXY",
                scheme.unwrap_or("nameless")
            ))),
        }
    }
}

/// Where a proxy is, without its credential.
fn shown(proxy: &Intercept) -> String {
    let uri = proxy.uri();
    format!(
        "{}://{}",
        uri.scheme_str().unwrap_or("http"),
        uri.authority().map_or("", |authority| authority.as_str().rsplit('@').next().unwrap_or(""))
    )
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((unbracketed(host), port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

async fn within_time<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
