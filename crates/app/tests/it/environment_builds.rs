//! Builds of environments as runs see them: cancelled, on a full disk, changed from within a run, and asked for by many at once.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{TestServer, processes_with, until, zip};

const BUILD_LOG: &str = "azureml-logs/20_image_build_log.txt";

/// A server with this configuration that has its uv already: these indexes have no other.
async fn server_with(config: &str) -> TestServer {
    let tools = tools().await;
    TestServer::on(|dir| {
        fs::write(dir.join("config.toml"), config).unwrap();
        symlink(tools, dir.join("tools")).unwrap();
    })
    .await
}

/// The folder with uv in it that tests share; the first one fills it.
async fn tools() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let shared = executable.ancestors().nth(2).unwrap().join("environment-tests");
    let has_uv = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().join("uv")).any(|uv| uv.is_file())
    };
    let tools = shared.join("tools");
    if !has_uv(&tools) {
        let server = TestServer::start().await;
        let run = server.submit("print(1)", with_packages(&["six==1.16.0"])).await;
        server.wait_for(&run, "Completed").await;
        fs::create_dir_all(&shared).unwrap();
        let copied = Command::new("cp").args(["-rT"]).arg(server.dir().join("tools")).arg(&tools).status().unwrap();
        assert!(copied.success());
    }
    tools
}

fn with_packages(pip: &'static [&'static str]) -> impl FnOnce(&mut Value) {
    move |configuration| {
        configuration["Environment"] = json!({ "Python": {
            "UserManagedDependencies": false, "CondaDependencies": { "dependencies": [{ "pip": pip }] }
        } });
    }
}

/// A package index with the one package `slowly`; its file comes only once it is told to answer.
struct Index {
    port: u16,
    answers: Arc<AtomicBool>,
    downloads: Arc<AtomicUsize>,
}

impl Index {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let index = Self { port, answers: Arc::default(), downloads: Arc::default() };
        let (answers, downloads) = (Arc::clone(&index.answers), Arc::clone(&index.downloads));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, downloads) = (Arc::clone(&answers), Arc::clone(&downloads));
                std::thread::spawn(move || answer(stream, &answers, &downloads));
            }
        });
        index
    }

    fn config(&self, slots: usize) -> String {
        let port = self.port;
        format!(
            "[environments]\nindex_url = \"http://user:s3cret@127.0.0.1:{port}/simple\"\n[compute.cpu-cluster]\nslots = {slots}\nretries = 0\n"
        )
    }

    fn answer_from_now_on(&self) {
        self.answers.store(true, Ordering::SeqCst);
    }

    fn downloads(&self) -> usize {
        self.downloads.load(Ordering::SeqCst)
    }
}

fn wheel() -> Vec<u8> {
    zip(&[
        ("slowly.py", "version = '1.0'\n"),
        ("slowly-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: slowly\nVersion: 1.0\n"),
        ("slowly-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        ("slowly-1.0.dist-info/RECORD", "slowly.py,,\n"),
    ])
}

fn answer(mut stream: TcpStream, answers: &AtomicBool, downloads: &AtomicUsize) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(request)) = lines.next() else { return };
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let wheel = wheel();
    let metadata = b"Metadata-Version: 2.1\nName: slowly\nVersion: 1.0\n".to_vec();
    let page = format!(
        "<a href=\"/files/slowly-1.0-py3-none-any.whl#sha256={}\" data-core-metadata=\"true\">slowly-1.0-py3-none-any.whl</a>",
        Sha256::digest(&wheel).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    );
    let (status, body) = match request.split(' ').nth(1) {
        Some("/simple/slowly/") => ("200 OK", page.into_bytes()),
        Some(path) if path.ends_with(".metadata") => ("200 OK", metadata),
        Some(path) if path.ends_with(".whl") => {
            downloads.fetch_add(1, Ordering::SeqCst);
            while !answers.load(Ordering::SeqCst) {
                // The client's end of the line is what is waited for.
                let mut nothing = [0];
                stream.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
                if stream.peek(&mut nothing).is_ok_and(|read| read == 0) {
                    return;
                }
            }
            ("200 OK", wheel)
        }
        _ => ("404 Not Found", Vec::new()),
    };
    let kind = if body.starts_with(b"<a") { "text/html" } else { "application/octet-stream" };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

#[tokio::test]
async fn a_run_that_is_cancelled_while_its_environment_is_built_leaves_nothing_and_the_next_one_builds() {
    let index = Index::start();
    let server = server_with(&index.config(1)).await;
    let script = "import slowly\nprint(slowly.version)";
    let first = server.submit(script, with_packages(&["slowly"])).await;
    until("the build waits for its file", || async { (index.downloads() > 0).then_some(()) }).await;
    server.send(Method::POST, &server.history(&format!("/runs/{first}/cancel")), json!({})).await;
    server.wait_for(&first, "Cancelled").await;
    let folder = server.dir().join("environments").display().to_string();
    until("the installer is gone", || async { processes_with(&folder).is_empty().then_some(()) }).await;
    assert!(server.files("environments/envs").is_empty(), "a half-built environment stayed");

    index.answer_from_now_on();
    let second = server.submit(script, with_packages(&["slowly"])).await;
    server.wait_for(&second, "Completed").await;
    assert_eq!(server.driver_log(&second).await, "1.0\n");
    let log = server.log(&second, BUILD_LOG).await;
    assert!(log.contains("building environment") && !log.contains("s3cret"), "{log}");
}

#[tokio::test]
async fn many_runs_with_the_same_new_environment_build_it_once() {
    let index = Index::start();
    let server = server_with(&index.config(5)).await;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(server.submit("import slowly\nprint(slowly.version)", with_packages(&["slowly"])).await);
    }
    until("the others wait for the one builder", || async {
        let mut waiting = 0;
        for run in &runs {
            waiting += usize::from(server.log(run, BUILD_LOG).await.contains("waiting for another builder"));
        }
        (waiting == 4).then_some(())
    })
    .await;
    index.answer_from_now_on();
    let mut builds = 0;
    for run in &runs {
        server.wait_for(run, "Completed").await;
        builds += usize::from(server.log(run, BUILD_LOG).await.contains("building environment"));
    }
    assert_eq!((builds, index.downloads()), (1, 1));
}

#[tokio::test]
async fn what_a_run_installs_is_gone_with_it() {
    let server = TestServer::start().await;
    let upgrade = "import subprocess, sys\n\
        subprocess.check_call([sys.executable, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', 'six==1.15.0'])\n\
        print(subprocess.check_output([sys.executable, '-c', 'import six; print(six.__version__)'], text=True))";
    let first = server.submit(upgrade, with_packages(&["six==1.16.0"])).await;
    server.wait_for(&first, "Completed").await;
    assert!(server.driver_log(&first).await.contains("1.15.0"));
    let second = server.submit("import six\nprint(six.__version__)", with_packages(&["six==1.16.0"])).await;
    let dto = server.wait_for(&second, "Completed").await;
    assert_eq!(server.driver_log(&second).await, "1.16.0\n");
    assert!(!server.log(&second, BUILD_LOG).await.contains("was changed since"), "{dto:#}");
}

#[tokio::test]
async fn a_build_that_takes_too_long_fails_the_run_and_names_the_step() {
    let index = Index::start();
    let config = index.config(1).replace("[environments]\n", "[environments]\nbuild_limit_seconds = 8\n");
    let server = server_with(&config).await;
    let run = server.submit("print(1)", with_packages(&["slowly"])).await;
    let dto = server.wait_for(&run, "Failed").await;
    let message = dto["error"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("after 8 seconds") && message.contains("build_limit_seconds") && message.contains("it was at: "), "{message}");
}

/// Unmounts when dropped.
struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_the_machines_fault_and_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(folder.path()).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED a_full_disk_is_the_machines_fault_and_is_tried_again: a small disk can be mounted by root only");
        return;
    }
    let disk = Mounted(folder);
    let cache = disk.0.path().join("environments");
    let server = TestServer::with_config(&format!(
        "[environments]\ncache_dir = \"{}\"\n[compute.cpu-cluster]\nslots = 1\nretries = 1\nretry_backoff_seconds = 1\n",
        cache.display()
    ))
    .await;
    let run = server.submit("print(1)", with_packages(&["pip", "six==1.16.0"])).await;
    let dto = server.wait_for(&run, "Failed").await;
    let message = dto["error"]["error"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("the disk that holds {} is full", cache.display())), "{message}");
    let attempts = server.get(&server.client().native(&format!("/runs/{run}/attempts"))).await;
    let causes: Vec<&str> = attempts.as_array().unwrap().iter().map(|attempt| attempt["cause"]["kind"].as_str().unwrap()).collect();
    assert_eq!(causes, ["start_failed", "start_failed"], "it is tried again, as after other failures of machines: {attempts:#}");
}
