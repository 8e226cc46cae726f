//! Builds that end before they are done: limits, cancels, kills, full disks; and what is told meanwhile.

use std::{
    ffi::OsString,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use trainyard_core::environment::Progress;

use super::{
    Node, builds,
    index::{Index, Manner, OUTSIDE},
    python, skip,
};
use crate::environment::{BuildLog, EnvironmentSettings, PrepareError, command::Console, host::Host, prepare::prepare_on};

const PACKAGES: [(&str, &str, &str); 1] = [("one", "1.0", "")];

/// Waits until `condition` holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_build_that_takes_too_long_is_ended_and_the_step_is_named() {
    let index = Index::start(Manner::Stalls, &PACKAGES).await;
    let Some(mut node) = Node::with_index("a_build_that_takes_too_long", &index).await else { return };
    // What is looked up once on every node is not what this is about.
    node.prepare(&python(None, &[])).await.0.unwrap();
    node.settings.build_limit_seconds = 5;
    let error = node.prepare(&python(None, &["one"])).await.0.unwrap_err();
    let words = error.to_string();
    assert!(matches!(error, PrepareError::TookTooLong { .. }), "{words}");
    assert!(words.contains("after 5 seconds") && words.contains("it was at: installing"), "{words}");
    assert!(node.environments().len() == 1 && index.asked_for_files() > 0);
    let ours = node.settings.cache_dir.display().to_string();
    until("the installer is gone", || !processes_with(&ours)).await;
}

#[tokio::test]
async fn a_wheel_whose_files_lead_out_of_the_environment_writes_nothing_there() {
    let index = Index::start(Manner::Malicious, &PACKAGES).await;
    let Some(node) = Node::with_index("a_wheel_whose_files_lead_out", &index).await else { return };
    let (outcome, log) = node.prepare(&python(None, &["one"])).await;
    assert!(!Path::new(OUTSIDE).exists(), "{outcome:?} {log:?}");
    assert!(index.asked_for_files() > 0, "{log:?}");
}

/// Whether a process names this folder in its environment or arguments.
fn processes_with(folder: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let own = std::process::id().to_string();
    processes
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok() && entry.file_name() != *own)
        .any(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|words| String::from_utf8_lossy(&words).contains(folder)))
}

/// Remembers what it was told.
#[derive(Default)]
struct Watcher {
    steps: Vec<Progress>,
    lines: Vec<String>,
}

impl BuildLog for Watcher {
    fn line(&mut self, line: &str) {
        self.lines.push(line.into());
    }

    fn progress(&mut self, progress: &Progress) {
        self.steps.push(progress.clone());
    }
}

#[tokio::test]
async fn a_build_says_what_it_is_at() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("a_build_says_what_it_is_at", &index).await else { return };
    let mut watcher = Watcher::default();
    node.prepare_with(&python(None, &["one"]), &mut watcher, &CancellationToken::new()).await.unwrap();
    let told: Vec<&str> = watcher.steps.iter().map(|step| step.what.as_str()).collect();
    let mut order = ["making the virtual environment", "solving", "installing", "writing to the disk"].iter();
    let mut next = order.next();
    for step in told {
        if next == Some(&step) {
            next = order.next();
        }
    }
    assert_eq!(next, None, "{:?}", watcher.steps);
}

/// The other end of the next test: a process that builds until it is killed.
#[tokio::test]
async fn a_builder_for_the_next_test() {
    let Some(settings) = std::env::var_os("TRAINYARD_TEST_BUILDER") else { return };
    let settings: EnvironmentSettings = serde_json::from_slice(&fs::read(settings).unwrap()).unwrap();
    let (mut log, cancel) = (Vec::new(), CancellationToken::new());
    let _ = prepare_on(&Host::current(), &python(None, &["one"]), &settings, &mut Console::new(&mut log, &cancel)).await;
}

#[tokio::test]
async fn a_builder_that_is_killed_is_replaced() {
    let index = Index::start(Manner::Stalls, &PACKAGES).await;
    let Some(mut node) = Node::with_index("a_builder_that_is_killed", &index).await else { return };
    let settings = node._folder.path().join("settings.json");
    fs::write(&settings, serde_json::to_vec(&node.settings).unwrap()).unwrap();
    let name = "environment::tests::limits::a_builder_for_the_next_test";
    let mut builder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env_clear()
        .envs(node.host.variables())
        .env("TRAINYARD_TEST_BUILDER", &settings)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the builder waits for a file", || index.asked_for_files() > 0).await;
    assert_eq!(node.environments().len(), 1);
    builder.kill().unwrap();
    builder.wait().unwrap();
    // Its installer lives on, and holds the lock, until somebody ends it; the fence of an attempt does, here the test.
    let folder = node.environments()[0].display().to_string();
    end_processes_with(&folder);
    let working = Index::start(Manner::Answers, &PACKAGES).await;
    node.settings.index_url = Some(working.url());
    let (prepared, log) = node.prepare(&python(None, &["one"])).await;
    assert!(prepared.is_ok_and(|prepared| !prepared.cached) && builds(&log) == 1, "{log:?}");
}

fn end_processes_with(folder: &str) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&words).contains(folder)
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// A small disk, if this user may mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(test: &str, size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            _ => {
                skip(test, "a small disk can be mounted by root only");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_disk_that_gets_full_is_named_and_nothing_half_built_stays_on_it() {
    let test = "a_disk_that_gets_full";
    let Some(mut node) = Node::new(test).await else { return };
    let Some(disk) = SmallDisk::mount(test, "3m") else { return };
    node.settings.cache_dir = disk.path().join("environments");
    // pip alone takes more than the disk has.
    let downloads = node._folder.path().join("uv").into_os_string();
    node.host = Host::with(node.host.variables().clone().into_iter().chain([(OsString::from("UV_CACHE_DIR"), downloads)]));
    let (outcome, log) = node.prepare(&python(None, &["pip", "six==1.16.0"])).await;
    let error = outcome.unwrap_err();
    assert!(error.is_machines(), "{error}\n{log:?}");
    assert!(error.to_string().contains(&format!("the disk that holds {} is full", node.settings.cache_dir.display())), "{error}");
    assert!(node.environments().is_empty());
}
