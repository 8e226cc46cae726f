//! The proxy between a real HTTP client and real TLS servers on loopback.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body as _;
use rustls::RootCertStore;
use tempfile::TempDir;
use trainyard_server::tls::{ServerCertificate, server_config};

use super::*;

/// A TLS server that tells what it was asked; each kept connection answers `connection: N`, its number.
struct Server {
    port: u16,
    accepting: JoinHandle<()>,
}

impl Server {
    async fn start(dir: &TempDir, port: u16) -> Self {
        let authority = Arc::new(Authority::open_or_create(dir.path()).unwrap());
        let names = ["localhost", "127.0.0.1"].map(str::to_owned).to_vec();
        let mut config = server_config(&authority, &ServerCertificate::Own { names }).unwrap();
        config.alpn_protocols.clear();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let tls = TlsAcceptor::from(Arc::new(config.clone()));
                connections.spawn(async move {
                    let stream = TokioIo::new(tls.accept(stream).await?);
                    http1::Builder::new().serve_connection(stream, service_fn(echo)).await.map_err(io::Error::other)
                });
            }
        });
        Self { port, accepting }
    }

    /// Ends it and its connections, and waits until it is gone.
    async fn stop(self) {
        self.accepting.abort();
        let _ = self.accepting.await;
    }
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    if request.uri().path() == "/refused" {
        assert!(!request.body().is_end_stream());
        return Ok(Response::builder().status(413).header("connection", "close").body(Full::from("too large")).unwrap());
    }
    let (head, body) = request.into_parts();
    let length = body.collect().await?.to_bytes().len();
    let header = |name: &str| head.headers.get(name).map_or("-", |value| value.to_str().unwrap());
    let text = format!(
        "{} {} host={} auth={} proxy={} length={length}",
        head.method,
        head.uri,
        header("host"),
        header("authorization"),
        header("proxy-authorization")
    );
    Ok(Response::new(Full::from(text)))
}

/// A server with its CA, a proxy in front of it and a client that is sent through the proxy.
struct Scene {
    dir: TempDir,
    server: Server,
    proxy: Proxy,
}

impl Scene {
    async fn start(proxies: Matcher) -> Self {
        Self::start_with_patience(proxies, Duration::from_secs(15)).await
    }

    async fn start_with_patience(proxies: Matcher, patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(&dir, 0).await;
        let authority = Authority::open_beside(&ca(&dir)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone()).unwrap();
        let endpoint = Endpoint::new(&format!("https://127.0.0.1:{}", server.port).parse().unwrap(), roots).unwrap();
        let proxy = Proxy::start(endpoint.with_patience(patience), authority, proxies).await.unwrap();
        Self { dir, server, proxy }
    }

    fn client(&self) -> reqwest::Client {
        client(&self.proxy.url(), &self.dir)
    }
}

fn ca(dir: &TempDir) -> PathBuf {
    dir.path().join("tls/ca.pem")
}

/// A client that trusts the CA in `trusted` and nothing else.
fn client(proxy: &str, trusted: &TempDir) -> reqwest::Client {
    trainyard_server::tls::install_crypto_provider();
    let certificate = reqwest::Certificate::from_pem(&std::fs::read(ca(trusted)).unwrap()).unwrap();
    let builder = reqwest::Client::builder().tls_certs_only([certificate]).proxy(reqwest::Proxy::all(proxy).unwrap());
    builder.timeout(Duration::from_secs(30)).build().unwrap()
}

fn direct() -> Matcher {
    Matcher::builder().build()
}

async fn text(request: reqwest::RequestBuilder) -> String {
    request.send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn a_request_to_an_azure_host_reaches_the_server_as_it_was_written() {
    let scene = Scene::start(direct()).await;
    let upload = scene.client().post("https://westeurope.api.azureml.ms/a%2Fb?c=%20d").bearer_auth("t").body(vec![7; 300_000]);
    assert_eq!(text(upload).await, "POST /a%2Fb?c=%20d host=westeurope.api.azureml.ms auth=Bearer t proxy=- length=300000");
    let sign_in = scene.client().get("https://login.microsoftonline.com/x");
    assert_eq!(text(sign_in).await, "GET /x host=login.microsoftonline.com auth=- proxy=- length=0");
}

#[tokio::test]
async fn another_host_is_reached_untouched_with_its_own_certificate() {
    let scene = Scene::start(direct()).await;
    let other = tempfile::tempdir().unwrap();
    let foreign = Server::start(&other, 0).await;
    let url = format!("https://localhost:{}/y", foreign.port);
    let answer = text(client(&scene.proxy.url(), &other).get(&url)).await;
    assert_eq!(answer, format!("GET /y host=localhost:{} auth=- proxy=- length=0", foreign.port));
    let error = scene.client().get(&url).send().await.unwrap_err();
    assert!(format!("{error:?}").contains("UnknownIssuer"), "the certificate is not ours: {error:?}");
}

#[tokio::test]
async fn another_host_is_reached_through_the_proxy_that_the_environment_names() {
    let (outer, other) = (Scene::start(direct()).await, tempfile::tempdir().unwrap());
    let inner = Scene::start(Matcher::builder().all(outer.proxy.url()).no("localhost").build()).await;
    let foreign = Server::start(&other, 0).await;
    let through_inner = client(&inner.proxy.url(), &other);
    let answer = |host: &str| text(through_inner.get(format!("https://{host}:{}/z", foreign.port)));
    assert!(answer("127.0.0.1").await.starts_with("GET /z"), "through both");
    drop(outer);
    assert!(answer("localhost").await.starts_with("GET /z"), "an exception goes directly");
    let gone = client(&inner.proxy.url(), &other).get(format!("https://127.0.0.1:{}/z", foreign.port)).send().await;
    assert!(gone.is_err(), "there was no other way");
}

#[tokio::test]
async fn a_neighbour_without_the_credential_is_turned_away() {
    let scene = Scene::start(direct()).await;
    let url = format!("http://trainyard:wrong@{}", scene.proxy.address);
    let error = client(&url, &scene.dir).get("https://management.azure.com/x").send().await.unwrap_err();
    assert!(format!("{error:?}").contains("ProxyAuthRequired"), "{error:?}");
    let plain =
        reqwest::Client::builder().no_proxy().build().unwrap().get(format!("http://{}/", scene.proxy.address)).send().await.unwrap();
    assert_eq!(plain.status(), 407);
}

#[tokio::test]
async fn a_server_that_restarts_is_waited_for() {
    let Scene { dir, server, proxy } = Scene::start(direct()).await;
    let client = client(&proxy.url(), &dir);
    assert!(text(client.get("https://management.azure.com/1")).await.starts_with("GET /1"));
    let port = server.port;
    server.stop().await;
    let waiting = tokio::spawn(text(client.get("https://management.azure.com/2")));
    // The first attempt to connect has been refused by the time a connection of our own is.
    while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {}
    let _server = Server::start(&dir, port).await;
    assert!(waiting.await.unwrap().starts_with("GET /2"));
}

#[tokio::test]
async fn the_answer_to_a_refused_upload_arrives_and_the_connection_stays_usable() {
    let scene = Scene::start(direct()).await;
    let client = scene.client();
    let answer = client.post("https://a.blob.core.windows.net/refused").body(vec![0; 20_000_000]).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (413, "too large"));
    assert!(text(client.post("https://a.blob.core.windows.net/next").body("abc")).await.ends_with("length=3"));
}

#[tokio::test]
async fn a_server_that_stays_away_is_a_502_that_says_so() {
    let Scene { dir, server, proxy } = Scene::start_with_patience(direct(), Duration::from_millis(200)).await;
    server.stop().await;
    let answer = client(&proxy.url(), &dir).get("https://management.azure.com/x").send().await.unwrap();
    assert_eq!(answer.status(), 502);
    let body: serde_json::Value = answer.json().await.unwrap();
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("could not reach the Trainyard server for management.azure.com: cannot connect"), "{message}");
}
