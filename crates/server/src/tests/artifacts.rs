//! Artifacts and their signed URLs over HTTP (azureml-wire C.9).

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use trainyard_core::{access::Role, ids::RunId};
use trainyard_store::{LiveKey, artifacts::Artifact};

use super::support::{Answer, HOST, TestServer};

const LOG: &str = "azureml-logs/70_driver_log.txt";
const OUTPUT: &str = "outputs/a folder/model.bin";

/// A run `r1` in experiment `e` with a growing log and a finished output.
struct Files {
    server: TestServer,
    token: String,
}

impl Files {
    async fn start() -> Self {
        let server = TestServer::start().await;
        let token = server.token(Role::Contributor).await;
        let files = Self { server, token };
        let history = format!("/history/v1.0{}/experiments/e", files.server.ws());
        files.server.call(Method::POST, &history, &files.token, Value::Null).await;
        let made = files.server.call(Method::PATCH, &format!("{history}/runs/r1"), &files.token, json!({})).await;
        assert_eq!(made.status, StatusCode::OK, "{made:?}");
        files.append(LOG, 0, "Hello!\n").await;
        files.keep(OUTPUT, "0123456789").await;
        files
    }

    fn key(&self, path: &str) -> LiveKey {
        LiveKey { workspace: self.server.workspace.id, run: RunId::new("r1").unwrap(), attempt: None, path: path.into() }
    }

    fn artifact(&self, path: &str) -> Artifact {
        let workspace = self.server.workspace.id;
        Artifact {
            workspace,
            container: "dcid.r1".into(),
            path: path.into(),
            size_bytes: 0,
            digest: None,
            attempt: None,
            created_us: 1,
            updated_us: 1,
        }
    }

    async fn append(&self, path: &str, offset: u64, text: &str) {
        let store = &self.server.state.store;
        store.live_files().append(&self.key(path), offset, Bytes::from(text.to_owned())).await.unwrap();
        store.upsert_artifact(&self.artifact(path)).await.unwrap();
    }

    async fn keep(&self, path: &str, text: &str) {
        let store = &self.server.state.store;
        let stored = store.blobs().put_bytes(Bytes::from(text.to_owned())).await.unwrap();
        let artifact = Artifact { digest: Some(stored.digest), size_bytes: text.len() as i64, ..self.artifact(path) };
        store.upsert_artifact(&artifact).await.unwrap();
    }

    async fn history(&self, path: &str) -> Answer {
        self.server.get(&format!("/history/v1.0{}{path}", self.server.ws()), &self.token).await
    }

    async fn artifacts(&self, path: &str) -> Answer {
        self.server.get(&format!("/artifact/v2.0{}/artifacts{path}", self.server.ws()), &self.token).await
    }

    /// Reads a signed URL without a token.
    async fn read(&self, url: &str) -> Answer {
        self.server.get(local(url), "").await
    }

    async fn read_url(&self, path: &str) -> String {
        let answer = self.artifacts(&format!("/contentinfo/ExperimentRun/dcid.r1/{}", path.replace(' ', "%20"))).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.json()["contentUri"].as_str().unwrap().to_owned()
    }
}

fn local(url: &str) -> &str {
    url.strip_prefix(&format!("https://{HOST}")).unwrap()
}

fn paths(page: &Answer) -> Vec<String> {
    assert_eq!(page.status, StatusCode::OK, "{page:?}");
    page.json()["value"].as_array().unwrap().iter().map(|item| item["path"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn details_have_a_url_for_each_log_that_grows_with_it_and_needs_no_token() {
    let files = Files::start().await;
    let details = files.history("/experiments/e/runs/r1/details").await.json();
    let logs = details["logFiles"].as_object().unwrap();
    assert_eq!(logs.keys().collect::<Vec<_>>(), [LOG]);
    let url = logs[LOG].as_str().unwrap();
    let first = files.read(url).await;
    assert_eq!((first.status, first.text.as_str()), (StatusCode::OK, "Hello!\n"));
    assert_eq!(first.header("content-type"), "text/plain; charset=utf-8");
    files.append(LOG, 7, "More.\n").await;
    assert_eq!(files.read(url).await.text, "Hello!\nMore.\n");
    files.keep(LOG, "Hello!\nMore.\n").await;
    files.server.state.store.live_files().remove_all(files.server.workspace.id, &RunId::new("r1").unwrap(), None).await.unwrap();
    assert_eq!(files.read(url).await.text, "Hello!\nMore.\n");
}

#[tokio::test]
async fn both_styles_of_address_and_the_facade_say_the_same() {
    let files = Files::start().await;
    let all = [LOG, OUTPUT];
    for list in [
        "/ExperimentRun/dcid.r1",
        "/experimentrun/dcid.r1/",
        "/prefix/contentinfo/ExperimentRun/dcid.r1/",
        "/ExperimentRun/dcid.r1/prefix/contentinfo",
    ] {
        assert_eq!(paths(&files.artifacts(list).await), all, "{list}");
    }
    assert_eq!(paths(&files.history("/runs/r1/artifacts").await), all);
    for list in ["/prefix/contentinfo/ExperimentRun/dcid.r1/azureml", "/ExperimentRun/dcid.r1/prefix/contentinfo?path=azureml"] {
        assert_eq!(paths(&files.artifacts(list).await), [LOG], "{list}");
    }
    assert_eq!(paths(&files.artifacts("/ExperimentRun/dcid.r1/outputs").await), [OUTPUT]);
    assert_eq!(paths(&files.artifacts("/ExperimentRun/dcid.r1/out").await), Vec::<String>::new());
    assert_eq!(paths(&files.history("/experiments/e/runs/r1/artifacts/path/outputs/").await), [OUTPUT]);
    assert_eq!(paths(&files.artifacts("/prefix/contentinfo/ExperimentRun/dcid.other/user_logs").await), Vec::<String>::new());
    assert_eq!(paths(&files.artifacts("/LocalUpload/dcid.r1").await), Vec::<String>::new());

    let metadata = files.artifacts(&format!("/metadata/ExperimentRun/dcid.r1/{LOG}")).await.json();
    assert_eq!(metadata["artifactId"], format!("ExperimentRun/dcid.r1/{LOG}"));
    assert_eq!(files.artifacts(&format!("/ExperimentRun/dcid.r1/metadata?path={LOG}")).await.json(), metadata);
    assert_eq!(files.history(&format!("/runs/r1/artifacts/metadata/{LOG}")).await.json(), metadata);
    let uri = files.history(&format!("/runs/r1/artifacts/artifacturi?path={LOG}")).await.json();
    assert_eq!(files.read(uri.as_str().unwrap()).await.text, "Hello!\n");
    assert_eq!(files.artifacts(&format!("/content/ExperimentRun/dcid.r1/{LOG}")).await.text, "Hello!\n");
    assert_eq!(files.artifacts(&format!("/ExperimentRun/dcid.r1/content?path={LOG}")).await.text, "Hello!\n");
    for missing in ["/contentinfo/ExperimentRun/dcid.r1/absent", "/metadata/Dataset/dcid.r1/a"] {
        assert_eq!(files.artifacts(missing).await.status, StatusCode::NOT_FOUND, "{missing}");
    }
    assert_eq!(files.history("/runs/absent/artifacts").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn lists_of_artifacts_are_paged() {
    let files = Files::start().await;
    let first = files.artifacts("/ExperimentRun/dcid.r1?$top=1").await;
    assert_eq!(paths(&first), [LOG]);
    let token: String = url::form_urlencoded::byte_serialize(first.json()["continuationToken"].as_str().unwrap().as_bytes()).collect();
    let second = files.artifacts(&format!("/ExperimentRun/dcid.r1?$top=1&continuationToken={token}")).await;
    assert_eq!((paths(&second), second.json()["continuationToken"].clone()), (vec![OUTPUT.to_owned()], Value::Null));
}

#[tokio::test]
async fn ranges_of_blobs_and_of_growing_files_are_read() {
    let files = Files::start().await;
    let ranged = async |path: &str, name: &str, range: &str| {
        let url = files.read_url(path).await;
        files.server.send(Request::get(local(&url)).header(name, range).body(axum::body::Body::empty()).unwrap()).await
    };
    for (path, range, text, content_range) in
        [(OUTPUT, "bytes=2-4", "234", "bytes 2-4/10"), (OUTPUT, "bytes=-3", "789", "bytes 7-9/10"), (LOG, "bytes=5-", "!\n", "bytes 5-6/7")]
    {
        for name in ["range", "x-ms-range"] {
            let part = ranged(path, name, range).await;
            assert_eq!((part.status, part.text.as_str()), (StatusCode::PARTIAL_CONTENT, text), "{path} {range}");
            assert_eq!(part.header("content-range"), content_range);
            assert_eq!(part.header("content-length"), text.len().to_string());
        }
    }
    let beyond = ranged(OUTPUT, "range", "bytes=10-").await;
    assert_eq!((beyond.status, beyond.header("content-range")), (StatusCode::RANGE_NOT_SATISFIABLE, "bytes */10"));
    assert_eq!(beyond.header("x-ms-error-code"), "InvalidRange");
}

#[tokio::test]
async fn head_says_what_get_would_give() {
    let files = Files::start().await;
    let url = files.read_url(OUTPUT).await;
    let head = files.server.send(Request::head(local(&url)).body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!((head.status, head.text.as_str(), head.header("content-length")), (StatusCode::OK, "", "10"));
    assert_eq!((head.header("x-ms-blob-type"), head.header("accept-ranges")), ("BlockBlob", "bytes"));
    assert!(!head.header("etag").is_empty() && head.header("last-modified").ends_with("GMT"));
}

#[tokio::test]
async fn a_url_opens_nothing_but_its_own_artifact() {
    let files = Files::start().await;
    let url = files.read_url(LOG).await;
    let other = url.replace("70_driver_log", "20_image_build_log");
    let unsigned = url.split('?').next().unwrap().to_owned();
    let longer = url.replace("&se=20", "&se=21");
    for forged in [other, unsigned, longer] {
        let answer = files.read(&forged).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{forged}");
        assert_eq!(answer.header("x-ms-error-code"), "AuthenticationFailed");
        assert!(answer.text.contains("<Code>AuthenticationFailed</Code>"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_url_whose_artifact_is_gone_says_so_as_the_blob_service_does() {
    let files = Files::start().await;
    let url = files.read_url(LOG).await;
    files.server.state.store.live_files().remove_all(files.server.workspace.id, &RunId::new("r1").unwrap(), None).await.unwrap();
    let answer = files.read(&url).await;
    assert_eq!((answer.status, answer.header("x-ms-error-code")), (StatusCode::NOT_FOUND, "BlobNotFound"));
}

#[tokio::test]
async fn an_empty_file_is_read_as_nothing() {
    let files = Files::start().await;
    files.keep("outputs/empty", "").await;
    let answer = files.read(&files.read_url("outputs/empty").await).await;
    assert_eq!((answer.status, answer.text.as_str(), answer.header("content-length")), (StatusCode::OK, "", "0"));
}
