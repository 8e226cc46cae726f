//! The Trainyard server as `exec` reaches it: always directly, always over TLS.
//!
//! The certificate must be good for the endpoint's host and come from the private CA or, where the operator gave the
//! server another certificate, from one that the system trusts.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use url::{Host, Url};

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server that is being restarted is waited for in the middle of a program's work.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where the server is and whom to believe that it is the server.
#[derive(Clone)]
pub struct Endpoint {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
    patience: Duration,
}

impl Endpoint {
    /// Takes `https://host[:port]` (a path is not looked at) and the certificates to trust.
    pub fn new(url: &Url, roots: RootCertStore) -> anyhow::Result<Self> {
        let Some(host) = url.host() else { bail!("the endpoint `{url}` names no host") };
        if url.scheme() != "https" {
            bail!("the endpoint `{url}` is not an https:// URL");
        }
        let host = match host {
            Host::Domain(name) => name.to_owned(),
            // Without the brackets that the URL has around an IPv6 address.
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        let name = ServerName::try_from(host.clone()).with_context(|| format!("the endpoint `{url}` names no valid host"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .context("no TLS version is available")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            host,
            port: url.port_or_known_default().unwrap_or(443),
            name,
            tls: TlsConnector::from(Arc::new(config)),
            patience: PATIENCE,
        })
    }

    /// The same server, waited for as long as `patience` when it does not listen.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The host, without port and brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TLS with the same trust, for proxies that are reached over TLS themselves.
    pub(super) fn tls(&self) -> &TlsConnector {
        &self.tls
    }

    /// A new connection, tried once. A TLS failure is [`io::ErrorKind::InvalidData`].
    pub async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let attempt = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            self.tls.connect(self.name.clone(), stream).await
        };
        time::timeout(CONNECT_TIMEOUT, attempt).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// A new connection; a server that does not listen is tried again for a while, as one does that restarts.
    /// Nothing has been sent yet, so trying again cannot do anything twice.
    pub(super) async fn connect_patiently(&self) -> io::Result<TlsStream<TcpStream>> {
        let deadline = time::Instant::now() + self.patience;
        let mut pause = Duration::from_millis(50);
        loop {
            match self.connect().await {
                Err(error) if is_restart(&error) && time::Instant::now() + pause < deadline => {
                    time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                result => return result,
            }
        }
    }
}

/// A connection to the server on which a failed write does not hide the answer that has arrived already.
///
/// A server that refuses an upload answers and closes while the upload is still being written. The write then fails
/// before anybody has looked at the answer. Here such writes go nowhere, and reading decides how the exchange ended.
pub(super) struct AnswerFirst {
    stream: TlsStream<TcpStream>,
    write_failed: bool,
}

impl AnswerFirst {
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        Self { stream, write_failed: false }
    }

    fn settle<T>(&mut self, written: Poll<io::Result<T>>, pretended: T) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "the server stopped reading a request");
                self.write_failed = true;
                Poll::Ready(Ok(pretended))
            }
            other => other,
        }
    }
}

impl AsyncRead for AnswerFirst {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for AnswerFirst {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.write_failed {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.settle(written, bytes.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_failed {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.settle(flushed, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn is_restart(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | ConnectionAborted | UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_https_url_with_a_host() {
        let endpoint = |url: &str| Endpoint::new(&url.parse().unwrap(), RootCertStore::empty());
        for (url, host, port) in [
            ("https://127.0.0.1:8443", "127.0.0.1", 8443),
            ("https://[::1]:9/", "::1", 9),
            ("https://trainyard.example.org", "trainyard.example.org", 443),
        ] {
            let endpoint = endpoint(url).unwrap();
            assert_eq!((endpoint.host(), endpoint.port), (host, port));
        }
        for url in ["http://127.0.0.1:8443", "file:///tmp"] {
            assert!(endpoint(url).is_err(), "{url}");
        }
    }
}
