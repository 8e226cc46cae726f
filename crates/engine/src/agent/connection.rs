//! The way to one server: its address, its CA, the token, and the open HTTP/2 connection. A value: a change makes a new one.

use std::time::Duration;

use reqwest::{
    RequestBuilder,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use trainyard_core::{Error, Result};
use trainyard_wire::native::{AGENT_NODE_HEADER, AGENT_PROTOCOL, AGENT_PROTOCOL_HEADER, AttemptOrder, SINGLE_AGENT_PROTOCOL};

/// After this long without any progress a connection, or an upload on it, is given up and begun again.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(120);

/// How calls reach the server at present.
pub(super) struct Connection {
    http: reqwest::Client,
    pub(super) endpoint: String,
    pub(super) ca_pem: String,
    /// `{endpoint}/api/v1/attempts/{attempt}`.
    base: String,
    pub(super) token: String,
    /// Seconds since the epoch.
    pub(super) token_expires_on: i64,
}

impl Connection {
    /// As `order` says, for one node of the attempt. Connections that are open are kept when neither address nor CA changed.
    pub(super) fn new((order, node): (&AttemptOrder, u32), present: Option<&Self>) -> Result<Self> {
        let http = match present {
            Some(present) if present.endpoint == order.endpoint && present.ca_pem == order.ca_pem => present.http.clone(),
            _ => http_client(order, node)?,
        };
        Ok(Self {
            http,
            endpoint: order.endpoint.clone(),
            ca_pem: order.ca_pem.clone(),
            base: format!("{}/api/v1/attempts/{}", order.endpoint, order.attempt),
            token: order.token.clone(),
            token_expires_on: order.token_expires_on,
        })
    }

    /// The same with another token.
    pub(super) fn with_token(&self, token: String, token_expires_on: i64) -> Self {
        Self {
            http: self.http.clone(),
            endpoint: self.endpoint.clone(),
            ca_pem: self.ca_pem.clone(),
            base: self.base.clone(),
            token,
            token_expires_on,
        }
    }

    /// A request to the address `path` of the attempt; so for the other methods.
    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}/{path}", self.base))
    }

    pub(super) fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}/{path}", self.base))
    }

    pub(super) fn put(&self, path: &str) -> RequestBuilder {
        self.http.put(format!("{}/{path}", self.base))
    }
}

/// Trusts the server's CA and nothing else, which is also what makes it quick to build: the system's roots are not read.
fn http_client(order: &AttemptOrder, node: u32) -> Result<reqwest::Client> {
    let roots = reqwest::Certificate::from_pem_bundle(order.ca_pem.as_bytes())
        .map_err(|error| Error::invalid("the CA certificate in the order cannot be read").with_source(error))?;
    // No more than this attempt needs, should the server be replaced by one of a version before.
    let spoken = order.protocol.clamp(SINGLE_AGENT_PROTOCOL, AGENT_PROTOCOL);
    let mut headers = HeaderMap::from_iter([(HeaderName::from_static(AGENT_PROTOCOL_HEADER), HeaderValue::from(spoken))]);
    if node > 0 {
        headers.insert(HeaderName::from_static(AGENT_NODE_HEADER), HeaderValue::from(node));
    }
    reqwest::Client::builder()
        .tls_certs_only(roots)
        .default_headers(headers)
        // The way to the server is not the way to the world.
        .no_proxy()
        .connect_timeout(Duration::from_secs(5))
        .tcp_keepalive(Duration::from_secs(15))
        // A server that is gone without a word is noticed also where no single call has a timeout.
        .tcp_user_timeout(STALL_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .http2_keep_alive_timeout(STALL_TIMEOUT)
        .build()
        .map_err(|error| Error::invalid("no client can be made from the order").with_source(error))
}
