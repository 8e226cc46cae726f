//! Real environments, built by the real uv with what this machine reaches. Where no package index can be reached, the tests
//! that need one say so and pass.

use std::{ffi::OsString, os::unix::fs::symlink, path::PathBuf, time::Duration};

use tokio_util::sync::CancellationToken;
use trainyard_core::environment::{EnvironmentSpec, PythonEnvironment};

mod archives;
mod cache;
mod index;
mod limits;
mod locks;

use super::{BuildLog, EnvironmentSettings, PrepareError, Prepared, PythonFallback, command::Console, host::Host, prepare::prepare_on};

fn python(version: Option<&str>, pip: &[&str]) -> EnvironmentSpec {
    let pip = pip.iter().map(|&line| line.into()).collect();
    EnvironmentSpec::Python(PythonEnvironment { python: version.map(Into::into), pip, tools: Vec::new(), channels: Vec::new() })
}

/// A cache of its own on this machine; uv and the packages it fetched are shared with the other tests.
struct Node {
    _folder: tempfile::TempDir,
    host: Host,
    settings: EnvironmentSettings,
}

impl Node {
    /// A node whose packages come from an index of the test's own.
    async fn with_index(test: &str, index: &index::Index) -> Option<Self> {
        let mut node = Self::new(test).await?;
        node.settings.index_url = Some(index.url());
        let own = [("UV_CACHE_DIR", "uv"), ("PIP_CONFIG_FILE", "/dev/null"), ("UV_HTTP_TIMEOUT", "600")];
        let own = own.map(|(name, value)| {
            let value = if name == "UV_CACHE_DIR" { node._folder.path().join(value).into_os_string() } else { value.into() };
            (OsString::from(name), value)
        });
        let kept = node.host.variables().clone().into_iter().filter(|(name, _)| !name.to_string_lossy().starts_with("PIP_"));
        node.host = Host::with(kept.chain(own));
        Some(node)
    }

    /// `None`, with a message, if no index can be reached from here.
    async fn new(test: &str) -> Option<Self> {
        let executable = std::env::current_exe().unwrap();
        let shared = executable.ancestors().nth(2).unwrap().join("environment-tests");
        let variables = std::env::vars_os().chain([
            (OsString::from("UV_CACHE_DIR"), shared.join("uv-cache").into_os_string()),
            (OsString::from("UV_HTTP_RETRIES"), OsString::from("1")),
        ]);
        let folder = tempfile::tempdir().unwrap();
        let mut node = Self {
            host: Host::with(variables),
            settings: EnvironmentSettings {
                cache_dir: shared.join("cache"),
                python_fallback: PythonFallback::Closest,
                index_url: None,
                offline: false,
                conda_channels: Vec::new(),
                tools_dir: shared.join("tools"),
                ..EnvironmentSettings::default()
            },
            _folder: folder,
        };
        if let (Err(error), log) = node.prepare(&python(None, &["six"])).await {
            skip(test, &format!("no package index can be reached ({error})\n{}", log.join("\n")));
            return None;
        }
        node.settings.cache_dir = node._folder.path().join("cache");
        Some(node)
    }

    async fn prepare(&self, spec: &EnvironmentSpec) -> (Result<Prepared, PrepareError>, Vec<String>) {
        let mut log = Vec::new();
        let outcome = self.prepare_with(spec, &mut log, &CancellationToken::new()).await;
        (outcome, log)
    }

    async fn prepare_with(
        &self,
        spec: &EnvironmentSpec,
        log: &mut dyn BuildLog,
        cancel: &CancellationToken,
    ) -> Result<Prepared, PrepareError> {
        prepare_on(&self.host, spec, &self.settings, &mut Console::new(log, cancel)).await
    }

    fn environments(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.settings.cache_dir.join("envs"))
            .map(|dir| dir.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default()
    }
}

#[expect(clippy::print_stderr, reason = "a test that could not do its work must say so")]
fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
}

fn builds(log: &[String]) -> usize {
    log.iter().filter(|line| line.starts_with("building environment")).count()
}

fn run(prepared: &Prepared, code: &str) -> String {
    let output = std::process::Command::new(&prepared.interpreter).args(["-c", code]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn an_environment_is_built_with_what_was_asked_and_found_again_without_uv() {
    let Some(mut node) = Node::new("an_environment_is_built").await else { return };
    let (prepared, log) = node.prepare(&python(None, &["Six == 1.16.0"])).await;
    let prepared = prepared.unwrap_or_else(|error| panic!("{error}\n{}", log.join("\n")));
    assert!(!prepared.cached && prepared.warnings.is_empty());
    assert_eq!(builds(&log), 1);
    assert!(log.iter().any(|line| line.contains("six==1.16.0")), "uv's own words are in the log: {log:?}");
    let lock = prepared.lock.clone().unwrap();
    assert!(lock.packages.iter().any(|package| (package.name.as_str(), package.version.as_str()) == ("six", "1.16.0")));
    assert!(lock.builder.starts_with("uv "));
    let seen = run(&prepared, "import pip, six, sys; print(six.__version__, '%d.%d.%d' % sys.version_info[:3], sys.prefix)");
    let folder = node.settings.cache_dir.join("envs").join(prepared.hash.clone().unwrap().as_str());
    assert_eq!(seen, format!("1.16.0 {} {}", lock.python, folder.display()));

    // The fast path needs neither uv nor an index.
    node.settings.tools_dir = "/does/not/exist".into();
    node.settings.offline = true;
    let (again, log) = node.prepare(&python(None, &["# same", "six==1.16.0"])).await;
    assert_eq!(again.unwrap(), Prepared { cached: true, ..prepared });
    assert_eq!(log.len(), 1, "{log:?}");
}

#[tokio::test]
async fn of_four_that_ask_at_once_one_builds() {
    let Some(node) = Node::new("of_four_that_ask_at_once").await else { return };
    let spec = python(None, &["six"]);
    let all = futures_util::future::join_all((0..4).map(|_| node.prepare(&spec))).await;
    let logs: Vec<String> = all.iter().flat_map(|(_, log)| log.clone()).collect();
    let prepared: Vec<Prepared> = all.into_iter().map(|(outcome, _)| outcome.unwrap()).collect();
    assert_eq!(builds(&logs), 1, "{logs:?}");
    assert_eq!(logs.iter().filter(|line| line.starts_with("waiting for another builder (pid")).count(), 3, "{logs:?}");
    assert_eq!(prepared.iter().filter(|prepared| !prepared.cached).count(), 1);
    assert!(prepared.iter().all(|other| other.interpreter == prepared[0].interpreter && other.lock == prepared[0].lock));
}

#[tokio::test]
async fn pins_that_contradict_each_other_fail_with_the_resolvers_message_every_time() {
    let Some(node) = Node::new("pins_that_contradict_each_other").await else { return };
    let spec = python(None, &["six==1.16.0", "six==1.15.0"]);
    for _ in 0..2 {
        let (outcome, log) = node.prepare(&spec).await;
        let error = outcome.unwrap_err();
        assert!(matches!(error, PrepareError::Resolver(_)), "{error:?}");
        let words = error.to_string();
        assert!(words.contains("six==1.16.0") && words.contains("six==1.15.0") && words.contains("unsatisfiable"), "{words}");
        assert_eq!(builds(&log), 1);
        assert!(node.environments().is_empty(), "a failed build left something behind");
    }
}

#[tokio::test]
async fn an_environment_whose_interpreter_is_gone_is_built_again() {
    let Some(node) = Node::new("an_environment_whose_interpreter_is_gone").await else { return };
    let spec = python(None, &["six"]);
    let prepared = node.prepare(&spec).await.0.unwrap();
    std::fs::remove_file(&prepared.interpreter).unwrap();
    symlink("/gone/bin/python3", &prepared.interpreter).unwrap();
    let (again, log) = node.prepare(&spec).await;
    let again = again.unwrap();
    assert!(!again.cached && builds(&log) == 1, "{log:?}");
    assert_eq!(run(&again, "import six; print(1)"), "1");
}

#[tokio::test]
async fn what_a_dead_builder_left_is_swept_and_built_anew() {
    let Some(node) = Node::new("what_a_dead_builder_left").await else { return };
    let spec = python(None, &["six"]);
    let prepared = node.prepare(&spec).await.0.unwrap();
    let folder = prepared.bin_dir.clone().unwrap().parent().unwrap().to_owned();
    std::fs::remove_file(folder.join(".complete")).unwrap();
    std::fs::write(folder.join("leftover"), "").unwrap();
    let (again, log) = node.prepare(&spec).await;
    assert!(!again.unwrap().cached && builds(&log) == 1, "{log:?}");
    assert!(!folder.join("leftover").exists() && folder.join(".complete").exists());
}

#[tokio::test]
async fn a_cancelled_build_leaves_nothing_and_the_next_one_succeeds() {
    let Some(node) = Node::new("a_cancelled_build").await else { return };
    /// Cancels when uv begins to speak.
    struct Trigger(CancellationToken);
    impl BuildLog for Trigger {
        fn line(&mut self, line: &str) {
            if line.starts_with("Using ") {
                self.0.cancel();
            }
        }
    }
    let cancel = CancellationToken::new();
    let spec = python(None, &["six"]);
    let outcome = node.prepare_with(&spec, &mut Trigger(cancel.clone()), &cancel).await;
    assert!(outcome.unwrap_err().is_cancelled());
    assert!(node.environments().is_empty());
    assert!(node.prepare(&spec).await.0.is_ok());
}

#[tokio::test]
async fn a_dropped_preparation_frees_the_way_for_the_next() {
    let Some(node) = Node::new("a_dropped_preparation").await else { return };
    let spec = python(None, &["six"]);
    let (mut log, cancel) = (Vec::new(), CancellationToken::new());
    let dropped = tokio::time::timeout(Duration::from_millis(30), node.prepare_with(&spec, &mut log, &cancel)).await;
    drop(dropped);
    assert!(node.prepare(&spec).await.0.is_ok());
}

#[tokio::test]
async fn the_warning_about_another_python_comes_with_the_cached_environment_too() {
    let Some(mut node) = Node::new("the_warning_about_another_python").await else { return };
    let spec = python(Some("3.60.2"), &[]);
    for cached in [false, true] {
        let prepared = node.prepare(&spec).await.0.unwrap();
        assert_eq!(prepared.cached, cached);
        assert!(prepared.warnings[0].starts_with("Python 3.60.2 was asked for; no conda channel is configured that has it"));
    }
    node.settings.python_fallback = PythonFallback::Fail;
    let error = node.prepare(&spec).await.0.unwrap_err();
    assert!(matches!(&error, PrepareError::Interpreter(reason) if reason.contains("python_fallback = \"fail\"")), "{error}");
}

#[tokio::test]
async fn offline_builds_from_packages_at_hand_and_says_what_is_missing() {
    let Some(mut node) = Node::new("offline_builds_from_packages_at_hand").await else { return };
    node.settings.offline = true;
    let (prepared, log) = node.prepare(&python(None, &["six"])).await;
    assert!(prepared.is_ok(), "{prepared:?} {log:?}");
    let error = node.prepare(&python(None, &["no-such-package-anywhere"])).await.0.unwrap_err().to_string();
    assert!(error.contains("no-such-package-anywhere"), "{error}");
}

#[tokio::test]
async fn the_credentials_of_the_index_appear_nowhere() {
    let Some(mut node) = Node::new("the_credentials_of_the_index").await else { return };
    node.settings.index_url = Some("http://user:s3cret@127.0.0.1:1/simple".into());
    let (outcome, log) = node.prepare(&python(None, &["six==1.16.0"])).await;
    let error = format!("{0} {0:?}", outcome.unwrap_err());
    assert!(error.contains("127.0.0.1:1"), "{error}");
    assert!(!error.contains("s3cret") && !log.join("\n").contains("s3cret"), "{error}\n{log:?}");
}

#[tokio::test]
async fn a_user_managed_environment_is_the_interpreter_named() {
    let cancel = CancellationToken::new();
    let mut log = Vec::new();
    let spec = EnvironmentSpec::UserManaged { interpreter_path: "/bin/sh".into() };
    let settings = EnvironmentSettings {
        cache_dir: "/does/not/exist".into(),
        python_fallback: PythonFallback::Fail,
        index_url: None,
        offline: true,
        conda_channels: Vec::new(),
        tools_dir: "/does/not/exist".into(),
        ..EnvironmentSettings::default()
    };
    let prepared = super::prepare(&spec, &settings, &mut log, &cancel).await.unwrap();
    assert_eq!(prepared.interpreter, PathBuf::from("/bin/sh"));
    assert!(prepared.hash.is_none() && prepared.lock.is_none() && prepared.cached && prepared.warnings.is_empty());
}
