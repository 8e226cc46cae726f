//! Data of runs through the whole server: folders, files of the web, a bucket; what is refused, what breaks off, what is killed in the middle.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    response::Response,
};
use futures_util::stream;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::support::{TestServer, definition, form, processes_with, said_with_the_sdk, sdk_python, signal, until, zip};

/// A web server and an S3 service in one: what is below `/bucket/` are objects, the rest are files.
#[derive(Clone, Default)]
struct Double(Arc<Inner>);

#[derive(Default)]
struct Inner {
    files: Mutex<BTreeMap<String, Bytes>>,
    /// Requests, as `METHOD path range`.
    asked: Mutex<Vec<String>>,
    /// Answers that break off in the middle, before all are whole.
    cuts: AtomicUsize,
    /// Answers of 503 before others.
    tired: AtomicUsize,
    /// No answer comes to its end.
    holds: AtomicBool,
}

impl Double {
    async fn start() -> (Self, String) {
        let double = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(double.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (double, address)
    }

    fn put(&self, path: &str, content: impl Into<Bytes>) {
        self.0.files.lock().unwrap().insert(path.to_owned(), content.into());
    }

    fn get(&self, path: &str) -> Option<String> {
        self.0.files.lock().unwrap().get(path).map(|content| String::from_utf8_lossy(content).into_owned())
    }

    fn asked(&self, part: &str) -> usize {
        self.0.asked.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }
}

fn text(status: StatusCode, content: String) -> Response {
    Response::builder().status(status).body(Body::from(content)).unwrap()
}

async fn answer(State(double): State<Double>, request: Request<Body>) -> Response {
    let path = percent_encoding::percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let range = request.headers().get(header::RANGE).map(|range| range.to_str().unwrap().to_owned()).unwrap_or_default();
    double.0.asked.lock().unwrap().push(format!("{} {path} {range}", request.method()));
    if double.0.tired.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
        return text(StatusCode::SERVICE_UNAVAILABLE, String::new());
    }
    if request.method() == Method::PUT {
        let content = request.into_body().collect().await.unwrap().to_bytes();
        double.put(&path, content);
        return Response::builder().header(header::ETAG, "\"1\"").body(Body::empty()).unwrap();
    }
    if query.contains("list-type=2") {
        return list(&double, &query);
    }
    let Some(content) = double.0.files.lock().unwrap().get(&path).cloned() else {
        return text(StatusCode::NOT_FOUND, "<Error><Code>NoSuchKey</Code></Error>".into());
    };
    let from: usize = range.strip_prefix("bytes=").and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0);
    let rest = content.slice(from..);
    let response = Response::builder()
        .header(header::CONTENT_LENGTH, rest.len())
        .header(header::ETAG, "\"v1\"")
        .header(header::LAST_MODIFIED, "Mon, 02 Nov 2026 10:00:00 GMT");
    let response = if from > 0 {
        let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
        response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, range)
    } else {
        response
    };
    let half = rest.slice(..rest.len() / 2);
    if double.0.holds.load(Ordering::SeqCst) {
        let body = futures_util::StreamExt::chain(stream::iter([Ok::<_, std::io::Error>(half)]), stream::pending());
        return response.body(Body::from_stream(body)).unwrap();
    }
    if request.method() == Method::GET && double.0.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    {
        // The first half is on its way before the end comes.
        let end = stream::once(async {
            tokio::task::yield_now().await;
            Err(std::io::Error::other("cut"))
        });
        let body = futures_util::StreamExt::chain(stream::iter([Ok(half)]), end);
        return response.body(Body::from_stream(body)).unwrap();
    }
    response.body(if request.method() == Method::HEAD { Body::empty() } else { Body::from(rest) }).unwrap()
}

/// `GET /bucket?list-type=2&prefix=…`
fn list(double: &Double, query: &str) -> Response {
    let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix=")).unwrap_or_default();
    let prefix = percent_encoding::percent_decode_str(prefix).decode_utf8_lossy().into_owned();
    let files = double.0.files.lock().unwrap();
    let object = |(path, content): (&String, &Bytes)| {
        let key = path.strip_prefix("/bucket/")?;
        key.starts_with(&prefix).then(|| {
            let size = content.len();
            format!("<Contents><Key>{key}</Key><LastModified>2026-11-02T10:00:00.000Z</LastModified><ETag>\"v1\"</ETag><Size>{size}</Size></Contents>")
        })
    };
    let objects: String = files.iter().filter_map(object).collect();
    text(StatusCode::OK, format!("<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"))
}

/// A server whose datastores are a folder, a web server and a bucket.
async fn server(folder: &Path, address: &str) -> TestServer {
    let config = format!(
        "[compute.cpu-cluster]\nslots = 2\nretries = 0\n[datastore.folder]\nurl = \"{}\"\n[datastore.frozen]\nurl = \"{}\"\nread_only = true\n\
         [datastore.web]\nurl = \"{address}/files\"\n[datastore.bucket]\nurl = \"s3://bucket/deep\"\nendpoint = \"{address}\"\nregion = \"here\"\n\
         access_key_id = \"key\"\nsecret_access_key = \"hunter2-key\"\n",
        folder.display(),
        folder.display(),
    );
    TestServer::with_config(&config).await
}

fn on(store: &str, path: &str) -> Value {
    json!({ "DataPath": { "DatastoreName": store, "RelativePath": path } })
}

/// Prints what is at the paths in its arguments.
const SHOW: &str = r#"
import os, sys
def show(path):
    if os.path.isdir(path):
        return sorted(os.path.relpath(os.path.join(base, name), path) for base, _, names in os.walk(path, followlinks=True) for name in names)
    return open(path).read()
for word in sys.argv[1:]: print(show(word), flush=True)
"#;

async fn failed(server: &TestServer, run: &str) -> String {
    let dto = server.wait_for(run, "Failed").await;
    dto["error"]["error"]["message"].as_str().unwrap_or_else(|| panic!("{dto:#}")).to_owned()
}

async fn prepared(server: &TestServer, run: &str) -> String {
    server.log(run, "azureml-logs/65_job_prep.txt").await
}

#[tokio::test]
async fn folders_files_the_web_and_a_bucket_are_there_before_the_code_and_told_in_every_way() {
    let store = tempfile::tempdir().unwrap();
    fs::create_dir_all(store.path().join("train/deep")).unwrap();
    fs::write(store.path().join("train/deep/a.txt"), "a").unwrap();
    fs::write(store.path().join("train/b.txt"), "b").unwrap();
    let (double, address) = Double::start().await;
    double.put("/files/one.csv", "1,2\n");
    for (key, content) in [("set/x.txt", "x"), ("set/sub/y.txt", "y"), ("other.txt", "o")] {
        double.put(&format!("/bucket/deep/{key}"), content);
    }
    let server = server(store.path(), &address).await;
    let script = format!(
        "{SHOW}\nfor name in ('AZUREML_DATAREFERENCE_copied', 'AZURE_ML_INPUT_web', 'HERE', 'bucket'): print(show(os.environ[name]))\n\
         print(os.path.isfile('in/copy/b.txt'), os.path.islink('in/copy'), os.environ['AZUREML_DATASET_ENVIRONMENT_VARS'])\n\
         open(os.path.join(os.environ['AZUREML_DATAREFERENCE_mounted'], 'written.txt'), 'w').write('back')\n"
    );
    let run = server
        .submit(&script, |configuration| {
            configuration["Arguments"] = json!(["$AZUREML_DATAREFERENCE_mounted/b.txt", "DatasetConsumptionConfig:web"]);
            configuration["DataReferences"] = json!({
                "mounted": { "DataStoreName": "folder", "Mode": "mount", "PathOnDataStore": "train" },
                "copied": { "DataStoreName": "folder", "Mode": "download", "PathOnDataStore": "train", "PathOnCompute": "in/copy" },
            });
            configuration["Data"] = json!({
                "web": { "DataLocation": { "Uri": { "Path": format!("{address}/files/one.csv?sig=hunter2"), "IsFile": true } }, "Mechanism": "Download" },
                "bucket": { "DataLocation": on("bucket", "set"), "Mechanism": "Download" },
                "single": { "DataLocation": { "Uri": { "Path": "s3://bucket/deep/other.txt" } }, "Mechanism": "Download", "EnvironmentVariableName": "HERE" },
            });
        })
        .await;
    let dto = server.wait_for(&run, "Completed").await;
    let expected =
        "b\n1,2\n\n['b.txt', 'deep/a.txt']\n1,2\n\no\n['sub/y.txt', 'x.txt']\nTrue True bucket:download,HERE:download,web:download\n";
    assert_eq!(server.driver_log(&run).await, expected);
    assert_eq!(fs::read_to_string(store.path().join("train/written.txt")).unwrap(), "back");
    let log = prepared(&server, &run).await;
    assert!(log.contains("Data.bucket: ready, 2 files, 2 B") && log.contains("DataReferences.mounted: `"), "{log}");
    let details = server.get(&server.history(&format!("/runs/{run}/details"))).await;
    for shown in [log, dto.to_string(), details.to_string(), server_log(&server)] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

fn server_log(server: &TestServer) -> String {
    fs::read_to_string(server.dir().join("server.log")).unwrap()
}

#[tokio::test]
async fn what_the_code_leaves_goes_to_its_places_whether_it_ends_well_or_not() {
    let store = tempfile::tempdir().unwrap();
    fs::create_dir(store.path().join("kept")).unwrap();
    fs::write(store.path().join("kept/old.txt"), "old").unwrap();
    let (double, address) = Double::start().await;
    let server = server(store.path(), &address).await;
    let script = "import os, sys\n\
        def write(folder, name, text):\n    os.makedirs(folder, exist_ok=True); open(os.path.join(folder, name), 'w').write(text)\n\
        write(sys.argv[1], 'model.pt', 'weights'); write(sys.argv[1], 'skip.tmp', 'x')\n\
        write(os.environ['AZURE_ML_OUTPUT_seen'], 'at-once.txt', 'seen'); write('made', 'old.txt', 'new'); write('made', 'more.txt', 'more')\n\
        print(os.path.basename(os.environ['model']) == 'model'); write(os.environ['plain'], 'p', 'p')\n\
        sys.exit(3)\n";
    let run = server
        .submit(script, |configuration| {
            configuration["Arguments"] = json!(["DatasetOutputConfig:model"]);
            configuration["OutputData"] = json!({
                "model": { "OutputLocation": on("bucket", "models/{run-id}"), "Mechanism": "Upload",
                    "AdditionalOptions": { "UploadOptions": { "SourceGlobs": { "GlobPatterns": ["*.pt"] } } } },
                "seen": { "OutputLocation": on("folder", "seen"), "Mechanism": "Mount" },
                "plain": {},
            });
            configuration["DataReferences"] = json!({
                "kept": { "DataStoreName": "folder", "Mode": "upload", "PathOnDataStore": "kept", "PathOnCompute": "made" },
            });
        })
        .await;
    failed(&server, &run).await;
    assert_eq!(double.get(&format!("/bucket/deep/models/{run}/model.pt")).as_deref(), Some("weights"));
    assert!(double.get(&format!("/bucket/deep/models/{run}/skip.tmp")).is_none(), "it fits no pattern");
    let read = |path: &str| fs::read_to_string(store.path().join(path)).unwrap();
    assert_eq!((read("seen/at-once.txt"), read("kept/more.txt"), read("kept/old.txt")), ("seen".into(), "more".into(), "old".into()));
    let own = server.files("datastore");
    assert!(own.iter().any(|path| path.ends_with(format!("dataset/{run}/plain/p"))), "{own:?}");
    let details = server.get(&server.history(&format!("/runs/{run}/details"))).await;
    let warnings = details["warnings"].to_string();
    assert!(warnings.contains("DataReferences.kept: `old.txt` is not stored: ") && warnings.contains("say Overwrite = true"), "{warnings}");
    let log = server.log(&run, "azureml-logs/75_job_post.txt").await;
    assert!(log.contains("OutputData.model: 1 file, 7 B, are in s3://bucket/deep/models/"), "{log}");
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_was_and_a_tired_server_is_asked_again() {
    let store = tempfile::tempdir().unwrap();
    let (double, address) = Double::start().await;
    let content = "0123456789".repeat(20_000);
    double.put("/files/big.txt", content.clone());
    double.put("/bucket/deep/big.txt", content.clone());
    double.0.cuts.store(2, Ordering::SeqCst);
    double.0.tired.store(1, Ordering::SeqCst);
    let server = server(store.path(), &address).await;
    let run = server
        .submit(
            "import os\nprint(open(os.environ['web']).read() == open(os.environ['s3']).read() == '0123456789' * 20000)",
            |configuration| {
                configuration["Data"] = json!({
                    "web": { "DataLocation": on("web", "big.txt"), "Mechanism": "Download" },
                    "s3": { "DataLocation": on("bucket", "big.txt"), "Mechanism": "Download" },
                });
            },
        )
        .await;
    server.wait_for(&run, "Completed").await;
    assert_eq!(server.driver_log(&run).await, "True\n");
    assert!(prepared(&server, &run).await.contains("broke off after 100000 bytes"));
    assert!(double.asked("big.txt bytes=") >= 1, "{:?}", double.0.asked.lock().unwrap());
}

#[tokio::test]
async fn an_agent_that_is_killed_in_the_middle_leaves_nothing_that_is_taken_for_whole() {
    let store = tempfile::tempdir().unwrap();
    let (double, address) = Double::start().await;
    double.put("/files/big.txt", "0123456789".repeat(20_000));
    double.0.holds.store(true, Ordering::SeqCst);
    let server = server(store.path(), &address).await;
    let run = server
        .submit("import os\nprint(len(open(os.environ['web']).read()))", |configuration| {
            configuration["Data"] = json!({ "web": { "DataLocation": on("web", "big.txt"), "Mechanism": "Download" } });
        })
        .await;
    let arrived = || {
        server.files("attempts").iter().any(|path| {
            path.components().any(|part| part.as_os_str() == ".partial")
                && path.extension().is_none()
                && path.metadata().is_ok_and(|meta| meta.len() >= 100_000)
        })
    };
    until("half of the file", || async { arrived().then_some(()) }).await;
    double.0.holds.store(false, Ordering::SeqCst);
    for pid in processes_with(&server.dir().join("attempts").to_string_lossy()) {
        signal(pid, "KILL");
    }
    server.wait_for(&run, "Completed").await;
    assert_eq!(server.driver_log(&run).await, "200000\n");
    assert!(double.asked("big.txt bytes=") >= 1, "what had come was not thrown away");
}

/// Each line: what the run asks for, and a part of the sentence that it fails with, before its code.
#[tokio::test]
async fn data_that_is_not_there_fails_the_run_before_its_code_with_the_reason() {
    let store = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc", store.path().join("out")).unwrap();
    let (double, address) = Double::start().await;
    double.put("/bucket/deep/there", "x");
    let server = server(store.path(), &address).await;
    let gone = format!("{address}/files/gone.csv?sig=hunter2");
    let cases = [
        (json!({ "DataLocation": on("folder", "gone/x") }), "gone/x` is not there on the node".to_owned()),
        (json!({ "DataLocation": on("folder", "out/passwd") }), "leads out of".to_owned()),
        (json!({ "DataLocation": { "Uri": { "Path": gone } } }), format!("{address}/files/gone.csv is not there (status 404)")),
        (json!({ "DataLocation": on("bucket", "gone") }), "s3://bucket/deep/gone is not there".to_owned()),
        (json!({ "DataLocation": on("bucket", "there"), "PathOnCompute": "hello.py" }), "the snapshot has `hello.py` already".to_owned()),
    ];
    for (mut data, part) in cases {
        data["Mechanism"] = json!("Download");
        let run = server.submit("print('never')", |configuration| configuration["Data"] = json!({ "d": data })).await;
        let sentence = failed(&server, &run).await;
        assert!(sentence.contains("the data of the run could not be made ready: Data.d: ") && sentence.contains(&part), "{sentence}");
        assert!(!sentence.contains("hunter2"), "{sentence}");
        assert_eq!(server.driver_log(&run).await, "");
        assert!(!prepared(&server, &run).await.contains("hunter2"));
    }
}

#[tokio::test]
async fn bad_input_is_refused_at_submission() {
    let store = tempfile::tempdir().unwrap();
    let server = server(store.path(), "http://127.0.0.1:1").await;
    let cases = [
        (
            json!({ "DataReferences": { "d": { "DataStoreName": "nope" } } }),
            "known datastores: bucket, folder, frozen, web, workspaceblobstore",
        ),
        (json!({ "DataReferences": { "d": { "DataStoreName": "bucket", "Mode": "mount" } } }), "say Download"),
        (json!({ "DataReferences": { "d": { "DataStoreName": "folder", "PathOnCompute": "../x" } } }), "leads outside"),
        (json!({ "Data": { "d": { "DataLocation": { "Dataset": { "Id": "1" } } } } }), "none are registered on this server"),
        (json!({ "OutputData": { "d": { "OutputLocation": on("frozen", "x") } } }), "nothing can be written to datastore `frozen`"),
    ];
    for (change, part) in cases {
        let mut definition = definition();
        definition["Configuration"].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let (status, answer) = server.start_run("", form(&definition, &zip(&[("hello.py", "")]))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }
}

#[tokio::test]
async fn datastores_are_told_without_their_keys_and_changed_by_nobody() {
    let store = tempfile::tempdir().unwrap();
    let server = server(store.path(), "http://127.0.0.1:1").await;
    let list = server.get(&server.ws("datastore/v1.0", "/datastores?count=30")).await;
    let names: Vec<_> = list["value"].as_array().unwrap().iter().map(|store| store["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bucket", "folder", "frozen", "web", "workspaceblobstore"]);
    assert!(!list.to_string().contains("hunter2"), "{list}");
    assert_eq!(server.get(&server.ws("datastore/v1.0", "/default")).await["name"], "workspaceblobstore");
    assert_eq!(server.get(&server.ws("datastore/v1.0", "/datastores/Folder")).await["name"], "folder");
    let (status, answer) = server.send(Method::GET, &server.ws("datastore/v1.0", "/datastores/nope"), json!({})).await;
    assert_eq!(
        (status, answer["error"]["message"].as_str().unwrap().contains("known datastores: bucket")),
        (StatusCode::NOT_FOUND, true),
        "{answer}"
    );
    for (method, path) in [
        (Method::POST, "/datastores"),
        (Method::PUT, "/datastores/folder"),
        (Method::DELETE, "/datastores/folder"),
        (Method::PUT, "/default/folder"),
    ] {
        let (status, answer) = server.send(method, &server.ws("datastore/v1.0", path), json!({})).await;
        assert!(status.is_client_error(), "{status}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("[datastore.NAME]"), "{answer}");
    }
    assert_eq!(server.get(&server.ws("dataset/v1.0", "/datasets")).await["value"], json!([]));
    let (status, answer) = server.send(Method::GET, &server.ws("dataset/v1.0", "/datasets/query/name=iris"), json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(answer["error"]["message"].as_str().unwrap().contains("no datasets are registered"), "{answer}");
}

#[tokio::test]
async fn the_real_sdk_reads_datastores_and_computes_and_submits_a_data_reference() {
    let name = "the_real_sdk_reads_datastores_and_computes_and_submits_a_data_reference";
    let Some(python) = sdk_python(name) else { return };
    let store = tempfile::tempdir().unwrap();
    fs::create_dir(store.path().join("train")).unwrap();
    fs::write(store.path().join("train/a.txt"), "from the datastore").unwrap();
    let server = server(store.path(), "http://127.0.0.1:1").await;
    let hello = "import os, sys\nprint(open(os.path.join(sys.argv[1], 'a.txt')).read())\nos.makedirs(sys.argv[2], exist_ok=True)\nopen(os.path.join(sys.argv[2], 'model'), 'w').write('m')\n";
    let said = said_with_the_sdk(&server, &python, include_str!("../data/data_with_the_sdk.py"), hello);
    assert_eq!(said["default"], "workspaceblobstore");
    assert_eq!(said["datastores"], json!(["bucket", "folder", "frozen", "web", "workspaceblobstore"]));
    assert_eq!(said["targets"], json!(["cpu-cluster"]));
    assert_eq!((&said["allocation"], &said["nodes"]), (&json!("Steady"), &json!(1)), "{said}");
    assert!(said["deleted"].as_str().unwrap().contains("compute targets come from the server"), "{said}");
    let run = said["run"].as_str().unwrap();
    let dto = server.get(&server.history(&format!("/runs/{run}"))).await;
    assert_eq!(dto["status"], "Completed", "{dto:#}");
    assert_eq!(server.driver_log(run).await, "from the datastore\n");
    assert_eq!(fs::read_to_string(store.path().join("models/model")).unwrap(), "m");
}
