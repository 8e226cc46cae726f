//! Hands the requests of one answered connection to the Trainyard server.
//!
//! Method, path, query, headers and `Host` stay as the program wrote them (the server builds its absolute URLs from
//! `Host`), bodies stream both ways. Only what belongs to a single hop (RFC 9110, 7.6.1) is taken out.
//!
//! One connection of the program is one connection to the server, so order and back pressure are theirs. A request is
//! sent a second time only if nothing of it can have been acted on, or acting twice is the same as once.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_TYPE, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
    request,
};
use http_body_util::{BodyExt as _, Empty, Full, combinators::BoxBody};
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::sync::Mutex;

use super::endpoint::{AnswerFirst, Endpoint};

/// A body of either direction.
pub(super) type Body = BoxBody<Bytes, hyper::Error>;

/// One answered connection.
pub(super) struct Forwarder {
    endpoint: Arc<Endpoint>,
    /// The host that the program asked the proxy for.
    host: String,
    kept: Mutex<Option<SendRequest<Body>>>,
}

/// Why a request could not be handed on.
#[derive(Debug)]
enum Failure {
    NoConnection(std::io::Error),
    NoAnswer(hyper::Error),
}

impl Forwarder {
    /// For a connection that the program opened to `host`.
    pub(super) fn new(endpoint: Arc<Endpoint>, host: String) -> Self {
        Self { endpoint, host, kept: Mutex::new(None) }
    }

    /// The server's answer to `request`, or a 502 in the envelope of the services (azureml-wire C.10), which SDKs show.
    pub(super) async fn forward(&self, request: Request<Incoming>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        self.send(self.outgoing(request)).await.unwrap_or_else(|failure| {
            tracing::warn!(host = self.host, %method, path, ?failure, "the server did not answer");
            let reason = match failure {
                Failure::NoConnection(error) => format!("cannot connect: {error}"),
                Failure::NoAnswer(error) => format!("the connection ended without an answer: {error}"),
            };
            bad_gateway(&format!("trainyard exec could not reach the Trainyard server for {}: {reason}", self.host))
        })
    }

    async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, Failure> {
        let mut kept = self.kept.lock().await;
        if let Some(mut sender) = kept.take()
            && sender.ready().await.is_ok()
        {
            // The server may have closed the kept connection in this very moment.
            let again = repeatable(&request);
            match sender.try_send_request(request).await {
                Ok(response) => {
                    *kept = Some(sender);
                    return Ok(incoming(response));
                }
                Err(mut error) => match error.take_message().or(again) {
                    Some(unsent) => request = unsent,
                    None => return Err(Failure::NoAnswer(error.into_error())),
                },
            }
        }
        let stream = AnswerFirst::new(self.endpoint.connect_patiently().await.map_err(Failure::NoConnection)?);
        let (mut sender, connection) =
            http1::Builder::new().preserve_header_case(true).handshake(TokioIo::new(stream)).await.map_err(Failure::NoAnswer)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the server ended");
            }
        });
        let response = sender.send_request(request).await.map_err(Failure::NoAnswer)?;
        *kept = Some(sender);
        Ok(incoming(response))
    }

    fn outgoing(&self, request: Request<Incoming>) -> Request<Body> {
        let (mut head, body) = request.into_parts();
        strip_hop_headers(&mut head.headers);
        // Whoever reads the body is the one who answers the expectation: the connection to the program does.
        head.headers.remove(EXPECT);
        let host = HeaderValue::from_str(&self.host).unwrap_or_else(|_| HeaderValue::from_static(""));
        head.headers.entry(HOST).or_insert_with(|| host.clone());
        head.headers.insert("x-forwarded-host", host);
        head.headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        head.uri = origin_form(&head.uri);
        head.version = Version::HTTP_11;
        Request::from_parts(head, drained(body))
    }
}

/// A request body that is read to its end even when the server answers before that and stops reading, as it does with
/// an upload that is too large. The program may send all of it before it looks for an answer, and would see a broken
/// connection in place of the reason.
struct Drained(Option<Incoming>);

/// `body` as a [`Body`] that keeps that promise.
pub(super) fn drained(body: Incoming) -> Body {
    Drained(Some(body)).boxed()
}

impl hyper::body::Body for Drained {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(SizeHint::default, hyper::body::Body::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let rest = self.0.take().filter(|body| !body.is_end_stream());
        if let (Some(mut rest), Ok(runtime)) = (rest, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { while let Some(Ok(_)) = rest.frame().await {} });
        }
    }
}

/// A second copy of a request that has no body and may be acted on twice (RFC 9110, 9.2.2).
fn repeatable(request: &Request<Body>) -> Option<Request<Body>> {
    let idempotent = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE);
    if !idempotent || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Path and query alone, as a server wants them.
pub(super) fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from)
}

/// What a server answered, as an answer of our own hop.
pub(super) fn incoming(response: Response<Incoming>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    strip_hop_headers(&mut head.headers);
    head.version = Version::HTTP_11;
    Response::from_parts(head, body.boxed())
}

/// Takes out what is meant for one connection only: the fixed list and what `Connection` names.
pub(super) fn strip_hop_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let fixed = [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
    let unregistered = ["keep-alive", "proxy-connection"].map(HeaderName::from_static);
    for name in named.into_iter().chain(fixed).chain(unregistered) {
        headers.remove(name);
    }
}

/// No body.
pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// 502 with `message`.
pub(super) fn bad_gateway(message: &str) -> Response<Body> {
    refusal(StatusCode::BAD_GATEWAY, message)
}

/// An answer of the proxy itself, in the error envelope of the services.
pub(super) fn refusal(status: StatusCode, message: &str) -> Response<Body> {
    let body = serde_json::json!({ "error": { "code": "TrainyardExec", "message": message } }).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The head of a request that goes to a proxy or server of somebody else.
pub(super) fn cleaned(mut head: request::Parts) -> request::Parts {
    strip_hop_headers(&mut head.headers);
    head.version = Version::HTTP_11;
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_hop_are_taken_out_and_all_others_stay() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, x-secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("authorization", "Bearer t"),
            ("x-ms-client-session-id", "s"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        strip_hop_headers(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "x-ms-client-session-id"]);
    }

    #[test]
    fn only_requests_that_may_be_acted_on_twice_are_repeatable() {
        let request = |method: Method, body: Body| Request::builder().method(method).uri("/a?b").body(body).unwrap();
        let full = || Full::new(Bytes::from_static(b"x")).map_err(|never| match never {}).boxed();
        let copy = repeatable(&request(Method::GET, empty())).unwrap();
        assert_eq!((copy.method(), copy.uri().to_string().as_str()), (&Method::GET, "/a?b"));
        assert!(repeatable(&request(Method::POST, empty())).is_none());
        assert!(repeatable(&request(Method::PATCH, empty())).is_none());
        assert!(repeatable(&request(Method::PUT, full())).is_none());
    }
}
