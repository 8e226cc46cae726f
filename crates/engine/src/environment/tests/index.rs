//! A package index on loopback, with wheels made here.

use std::{
    collections::BTreeMap,
    io::{Cursor, Write as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use sha2::{Digest as _, Sha256};
use zip::{ZipWriter, write::SimpleFileOptions};

/// What the index does with questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It answers.
    Answers,
    /// It asks for `user` and `s3cret`.
    Private,
    /// It answers about packages, and its files never come.
    Stalls,
    /// Its packages have a file that leads out of the environment.
    Malicious,
}

/// Where that file would be.
pub(super) const OUTSIDE: &str = "/tmp/trainyard-wheel-was-here";

/// A running index; it ends with the test.
pub(super) struct Index {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    manner: Manner,
    wheels: BTreeMap<String, Vec<(String, Vec<u8>)>>,
    sent: AtomicUsize,
}

impl Index {
    /// Starts an index with these packages: name, version, requirement.
    pub(super) async fn start(manner: Manner, packages: &[(&str, &str, &str)]) -> Self {
        let mut wheels: BTreeMap<String, Vec<(String, Vec<u8>)>> = BTreeMap::new();
        for (name, version, requires) in packages {
            let file = format!("{}-{version}-py3-none-any.whl", name.replace('-', "_"));
            wheels.entry((*name).to_owned()).or_default().push((file, wheel(name, version, requires, manner)));
        }
        let shared = Arc::new(Shared { manner, wheels, sent: AtomicUsize::new(0) });
        let router = Router::new().route("/simple/{name}/", get(page)).route("/files/{file}", get(send)).with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { port, shared }
    }

    /// With the credentials, if it asks for some.
    pub(super) fn url(&self) -> String {
        let user = if self.shared.manner == Manner::Private { "user:s3cret@" } else { "" };
        format!("http://{user}127.0.0.1:{}/simple", self.port)
    }

    /// How many files were asked for.
    pub(super) fn asked_for_files(&self) -> usize {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// The hash of a file.
    pub(super) fn sha256(&self, name: &str, version: &str) -> String {
        let (_, content) = self.shared.wheels[name].iter().find(|(file, _)| file.contains(&format!("-{version}-"))).unwrap();
        hex::encode(Sha256::digest(content))
    }
}

fn wheel(name: &str, version: &str, requires: &str, manner: Manner) -> Vec<u8> {
    let module = name.replace('-', "_");
    let info = format!("{module}-{version}.dist-info");
    let requires = if requires.is_empty() { String::new() } else { format!("Requires-Dist: {requires}\n") };
    let mut files = vec![
        (format!("{module}.py"), format!("version = {version:?}\n\ndef main():\n    print({name:?}, version)\n")),
        (format!("{info}/METADATA"), format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")),
        (format!("{info}/WHEEL"), "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_owned()),
        (format!("{info}/entry_points.txt"), format!("[console_scripts]\n{name} = {module}:main\n")),
    ];
    if manner == Manner::Malicious {
        files.push((format!("{}{}", "../".repeat(30), OUTSIDE.trim_start_matches('/')), "outside".to_owned()));
    }
    let record = files.iter().map(|(file, _)| format!("{file},,\n")).collect::<String>() + &format!("{info}/RECORD,,\n");
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (file, content) in files.iter().chain([&(format!("{info}/RECORD"), record)]) {
        zip.start_file(file, SimpleFileOptions::default()).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn refused(shared: &Shared, headers: &HeaderMap) -> Option<Response> {
    // `user:s3cret`
    let known = headers.get(header::AUTHORIZATION).is_some_and(|given| given == "Basic dXNlcjpzM2NyZXQ=");
    (shared.manner == Manner::Private && !known)
        .then(|| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"index\"")]).into_response())
}

async fn page(State(shared): State<Arc<Shared>>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    if let Some(refused) = refused(&shared, &headers) {
        return refused;
    }
    let Some(files) = shared.wheels.get(&name) else { return StatusCode::NOT_FOUND.into_response() };
    let line = |(file, content): &(String, Vec<u8>)| {
        let digest = hex::encode(Sha256::digest(content));
        // With the metadata beside the file, a resolver needs no file.
        format!("<a href=\"../../files/{file}#sha256={digest}\" data-core-metadata=\"true\">{file}</a>\n")
    };
    Html(files.iter().map(line).collect::<String>()).into_response()
}

async fn send(State(shared): State<Arc<Shared>>, Path(file): Path<String>, headers: HeaderMap) -> Response {
    if let Some(refused) = refused(&shared, &headers) {
        return refused;
    }
    let name = file.strip_suffix(".metadata").unwrap_or(&file);
    let Some((_, content)) = shared.wheels.values().flatten().find(|(file, _)| file == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if name.len() < file.len() {
        let mut zip = zip::ZipArchive::new(Cursor::new(content)).unwrap();
        let mut names = zip.file_names().map(|name| name.unwrap().into_owned());
        let metadata = names.find(|name| name.ends_with("/METADATA")).unwrap();
        drop(names);
        return std::io::read_to_string(zip.by_name(&metadata).unwrap()).unwrap().into_response();
    }
    shared.sent.fetch_add(1, Ordering::SeqCst);
    if shared.manner == Manner::Stalls {
        std::future::pending::<()>().await;
    }
    Body::from(content.clone()).into_response()
}
