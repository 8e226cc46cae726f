//! Everything that can be wrong with a submission: the right status, an envelope that says what and where, and nothing left behind.

use std::io::Write as _;

use reqwest::{
    Method, StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{TestServer, answer, definition, form, until, zip};

/// The refusal must be this, and the server must hold as much as before.
async fn refused(server: &TestServer, form: Form, expected: (StatusCode, &str)) {
    let (status, body) = server.start_run("", form).await;
    check(server, (status, body), expected).await;
}

async fn check(server: &TestServer, (status, body): (StatusCode, Value), (expected, words): (StatusCode, &str)) {
    let message = body["error"]["message"].as_str().unwrap_or_default();
    assert_eq!(status, expected, "{body}");
    assert!(message.contains(words), "expected `{words}` in {body}");
    assert!(body["error"]["target"].is_string(), "the place is missing: {body}");
    assert_eq!(body["componentName"], "execution");
    nothing_is_left(server).await;
}

async fn nothing_is_left(server: &TestServer) {
    until("the staging folder to be empty", || async { server.files("staging").is_empty().then_some(()) }).await;
    assert_eq!(server.files("blobs"), Vec::<std::path::PathBuf>::new());
    let runs = server.get(&server.history("/runs")).await;
    assert_eq!(runs["value"], json!([]));
}

fn with(definition: &Value, zip: Vec<u8>) -> Form {
    form(definition, &zip)
}

#[tokio::test]
async fn archives_that_are_none_or_lead_astray_are_refused() {
    let server = TestServer::start().await;
    let good = zip(&[("hello.py", &"print(1)\n".repeat(200))]);
    let bad = StatusCode::BAD_REQUEST;
    refused(&server, with(&definition(), b"not a zip at all".to_vec()), (bad, "not a zip")).await;
    refused(&server, with(&definition(), good[..good.len() / 2].to_vec()), (bad, "zip")).await;
    refused(&server, with(&definition(), zip(&[("hello.py", ""), ("../evil.py", "")])), (bad, "../evil.py")).await;
    refused(&server, with(&definition(), zip(&[("hello.py", ""), ("/etc/evil", "")])), (bad, "/etc/evil")).await;
    refused(&server, with(&definition(), zip(&[("other.py", "")])), (bad, "`hello.py` is not in the zip")).await;
    let twice = [zip_entry("hello.py", 1), zip_entry("HELLO.py", 2)].concat();
    refused(&server, with(&definition(), directory(twice, &["hello.py", "HELLO.py"])), (bad, "HELLO.py")).await;
    let mut link = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    link.add_symlink("hello.py", "/etc/passwd", zip::write::SimpleFileOptions::default()).unwrap();
    refused(&server, with(&definition(), link.finish().unwrap().into_inner()), (bad, "link")).await;
}

/// A stored, empty entry with this name; `_` only numbers it for the reader.
fn zip_entry(name: &str, _: u8) -> Vec<u8> {
    let mut bytes = b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend([0; 12]);
    bytes.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend(name.as_bytes());
    bytes
}

/// The entries with a central directory: what no zip library would write.
fn directory(mut bytes: Vec<u8>, names: &[&str]) -> Vec<u8> {
    let start = bytes.len();
    let mut offset = 0u32;
    for name in names {
        let length = u16::try_from(name.len()).unwrap();
        bytes.extend(b"PK\x01\x02\x14\x03\x14\0\0\0\0\0\0\0\0\0");
        bytes.extend([0; 12]);
        bytes.extend(length.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend((0o100_644u32 << 16).to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(name.as_bytes());
        offset += 30 + u32::from(length);
    }
    let size = u32::try_from(bytes.len() - start).unwrap();
    let count = u16::try_from(names.len()).unwrap();
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend(count.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend(size.to_le_bytes());
    bytes.extend(u32::try_from(start).unwrap().to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

#[tokio::test]
async fn bombs_are_refused_by_limits_of_the_configuration() {
    let server = TestServer::with_config("[server]\nmax_unpacked_bytes = 3000000\nmax_archive_files = 5\n").await;
    let large = StatusCode::PAYLOAD_TOO_LARGE;
    let wide: Vec<(String, &str)> = (0..6).map(|n| (format!("f{n}.py"), "")).collect();
    let wide: Vec<(&str, &str)> = wide.iter().map(|(name, content)| (name.as_str(), *content)).collect();
    refused(&server, with(&definition(), zip(&wide)), (large, "5")).await;
    let noise: String = (0..3_100_000u32).map(|n| char::from(33 + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 90)).collect();
    refused(&server, with(&definition(), zip(&[("hello.py", &noise)])), (large, "3000000")).await;
    let zeros = "0".repeat(2_900_000);
    refused(&server, with(&definition(), zip(&[("hello.py", &zeros)])), (large, "200")).await;
}

#[tokio::test]
async fn definitions_that_cannot_be_meant_are_refused() {
    let server = TestServer::start().await;
    let bad = StatusCode::BAD_REQUEST;
    let package = zip(&[("hello.py", "")]);
    let raw = |text: &str| {
        Form::new()
            .part("runDefinitionFile", Part::bytes(text.as_bytes().to_vec()).file_name("definition.json"))
            .part("projectZipFile", Part::bytes(package.clone()).file_name("project.zip"))
    };
    refused(&server, raw("{\"Configuration\": "), (bad, "not JSON: line 1")).await;
    refused(&server, raw("[]"), (bad, "object")).await;
    refused(&server, raw("{\"Script\": \"hello.py\"}"), (bad, "Configuration")).await;
    for (name, value, words) in [
        ("NodeCount", json!("two"), "NodeCount"),
        ("Script", json!(7), "Script"),
        ("Framework", json!("Torch7"), "PyTorch"),
        ("Arguments", json!("a b"), "Arguments"),
        ("MaxRunDurationSeconds", json!(-1), "MaxRunDurationSeconds"),
        ("Script", json!("../x.py"), "Script"),
    ] {
        let mut asked = definition();
        asked["Configuration"][name] = value;
        refused(&server, with(&asked, package.clone()), (bad, words)).await;
    }
}

#[tokio::test]
async fn bodies_with_wrong_parts_are_refused() {
    let server = TestServer::start().await;
    let bad = StatusCode::BAD_REQUEST;
    let package = || Part::bytes(zip(&[("hello.py", "")])).file_name("project.zip");
    let text = || Part::bytes(serde_json::to_vec(&definition()).unwrap()).file_name("definition.json");
    refused(&server, Form::new().part("runDefinitionFile", text()), (bad, "no part named `projectZipFile`")).await;
    refused(&server, Form::new().part("projectZipFile", package()), (bad, "no part named `runDefinitionFile`")).await;
    let twice = Form::new().part("projectZipFile", package()).part("projectZipFile", package()).part("runDefinitionFile", text());
    refused(&server, twice, (bad, "two parts named `projectZipFile`")).await;
    let strange = Form::new().part("files", package()).part("runDefinitionFile", text());
    refused(&server, strange, (bad, "a part named `files`")).await;
    let path = server.ws("execution/v1.0", "/experiments/it/startrun");
    let json = answer(server.request(Method::POST, &path).await.json(&json!({})).send().await.unwrap()).await;
    check(&server, json, (bad, "multipart/form-data")).await;
}

#[tokio::test]
async fn experiment_names_and_run_ids_are_checked() {
    let server = TestServer::start().await;
    for name in ["a.b", "_a", "a%20b"] {
        let path = server.history(&format!("/experiments/{name}"));
        let (status, body) = server.send(Method::POST, &path, json!({})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name}: {body}");
        assert!(body["error"]["message"].as_str().unwrap().contains("is not a valid experiment name"), "{body}");
    }
    let (status, body) = server.start_run("?runId=a.b", form(&definition(), &zip(&[("hello.py", "")]))).await;
    check(&server, (status, body), (StatusCode::BAD_REQUEST, "is not a valid run id")).await;
}

/// Speaks HTTP by hand, because clients would not do this.
async fn raw(server: &TestServer, head: &str, body: &[u8]) -> String {
    let address = server.file.endpoint.trim_start_matches("https://").to_owned();
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(&server.file.ca_cert).unwrap();
    for certificate in <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::pem_slice_iter(&pem) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    let path = server.ws("execution/v1.0", "/experiments/it/startrun");
    let token = server.client().token().await.unwrap();
    let mut request = Vec::new();
    write!(request, "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n{head}\r\n\r\n").unwrap();
    request.extend_from_slice(body);
    stream.write_all(&request).await.unwrap();
    let mut received = Vec::new();
    if head.contains("content-length: 99999999999") {
        // The answer must come although the body does not.
        while !String::from_utf8_lossy(&received).contains("\"error\"") {
            let mut chunk = [0; 4096];
            let count = stream.read(&mut chunk).await.unwrap();
            assert!(count > 0, "the server closed without an answer");
            received.extend_from_slice(&chunk[..count]);
        }
    } else {
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut received).await;
    }
    String::from_utf8_lossy(&received).into_owned()
}

#[tokio::test]
async fn a_declared_length_over_the_limit_is_answered_before_the_body() {
    let server = TestServer::start().await;
    let head = "content-type: multipart/form-data; boundary=x\r\ncontent-length: 99999999999";
    let response = raw(&server, head, b"").await;
    assert!(response.starts_with("HTTP/1.1 413") && response.contains("max_upload_bytes"), "{response}");
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn a_body_that_is_cut_off_leaves_nothing() {
    let server = TestServer::start().await;
    let mut body = b"--x\r\nContent-Disposition: form-data; name=\"projectZipFile\"; filename=\"project.zip\"\r\n\r\n".to_vec();
    body.extend(vec![7; 3 << 20]);
    let head = format!("content-type: multipart/form-data; boundary=x\r\ncontent-length: {}", body.len() + 1000);
    raw(&server, &head, &body).await;
    nothing_is_left(&server).await;
    let (status, _) = server.start_run("", form(&definition(), &zip(&[("hello.py", "")]))).await;
    assert_eq!(status, StatusCode::OK, "the server goes on");
}

/// A real full disk: the data directory on a small file system. Takes root for the mount.
#[tokio::test]
async fn a_full_disk_while_staging_is_507_and_leaves_nothing() {
    let mount = tempfile::tempdir().unwrap();
    let target = mount.path().to_str().unwrap().to_owned();
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "tmpfs", &target]).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED a_full_disk_while_staging_is_507_and_leaves_nothing: a tmpfs cannot be mounted here");
        return;
    }
    let outcome = tokio::spawn(async move {
        let server = TestServer::start().await;
        std::fs::create_dir_all(server.dir().join("staging")).unwrap();
        let staging = server.dir().join("staging").to_str().unwrap().to_owned();
        let bound = std::process::Command::new("mount").args(["--bind", &target, &staging]).status().unwrap();
        assert!(bound.success());
        let noise: String = (0..20_000_000u32).map(|n| char::from(33 + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 90)).collect();
        let mut package = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        package.start_file("hello.py", stored).unwrap();
        package.write_all(noise.as_bytes()).unwrap();
        let (status, body) = server.start_run("", form(&definition(), &package.finish().unwrap().into_inner())).await;
        let left = server.files("staging");
        let _ = std::process::Command::new("umount").arg(&staging).status();
        assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE, "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains("full"), "{body}");
        assert!(left.is_empty(), "{left:?}");
        nothing_is_left(&server).await;
    })
    .await;
    let _ = std::process::Command::new("umount").arg(mount.path()).status();
    outcome.unwrap();
}
