//! Locks: what a build notes, and what following one gives.

use tokio_util::sync::CancellationToken;
use trainyard_core::environment::{EnvironmentLock, EnvironmentSpec, LockedImage, LockedPackage};

use super::{
    Node, builds,
    index::{Index, Manner},
    python, run,
};
use crate::environment::{EnvironmentSettings, PrepareError, prepare};

/// `app` wants `lib`.
const PACKAGES: [(&str, &str, &str); 4] = [("app", "1.0", "lib>=1"), ("app", "2.0", "lib>=1"), ("lib", "1.0", ""), ("lib", "1.1", "")];

fn package<'a>(lock: &'a EnvironmentLock, name: &str) -> &'a LockedPackage {
    lock.packages.iter().find(|package| package.name == name).unwrap_or_else(|| panic!("{name} in {lock:?}"))
}

#[tokio::test]
async fn a_lock_names_every_package_with_its_hash() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("a_lock_names_every_package", &index).await else { return };
    let (prepared, log) = node.prepare(&python(None, &["app==1.0"])).await;
    let lock = prepared.unwrap_or_else(|error| panic!("{error}\n{}", log.join("\n"))).lock.unwrap();
    assert_eq!(package(&lock, "app").hashes, [format!("sha256:{}", index.sha256("app", "1.0"))]);
    assert_eq!((package(&lock, "lib").version.as_str(), package(&lock, "lib").url.as_deref()), ("1.1", None));
    assert!(lock.platform.starts_with("linux-"), "{lock:?}");
}

#[tokio::test]
async fn the_lock_of_a_cached_environment_is_that_environment() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("the_lock_of_a_cached_environment", &index).await else { return };
    let built = node.prepare(&python(None, &["app"])).await.0.unwrap();
    let (again, log) = node.prepare(&EnvironmentSpec::Locked(built.lock.clone().unwrap())).await;
    let again = again.unwrap();
    assert!(again.cached && again.hash == built.hash && again.lock == built.lock && builds(&log) == 0, "{log:?}");
}

#[tokio::test]
async fn another_machine_gets_exactly_the_lock_although_there_is_something_newer() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(here) = Node::with_index("another_machine_gets_exactly_the_lock", &index).await else { return };
    let lock = here.prepare(&python(None, &["app==1.0", "lib==1.0"])).await.0.unwrap().lock.unwrap();
    let there = Node::with_index("another_machine_gets_exactly_the_lock", &index).await.unwrap();
    let (built, log) = there.prepare(&EnvironmentSpec::Locked(lock.clone())).await;
    let built = built.unwrap_or_else(|error| panic!("{error}\n{}", log.join("\n")));
    assert!(!built.cached && built.warnings.is_empty(), "{built:?}");
    assert_eq!(built.lock.as_ref().unwrap().packages, lock.packages);
    assert_eq!(run(&built, "import app, lib; print(app.version, lib.version)"), "1.0 1.0");
    let (again, _) = there.prepare(&EnvironmentSpec::Locked(lock)).await;
    assert!(again.unwrap().cached);
}

/// What comes of a lock that was changed.
async fn followed(test: &str, change: impl FnOnce(&mut EnvironmentLock)) -> Option<Result<super::Prepared, PrepareError>> {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let node = Node::with_index(test, &index).await?;
    let mut lock = node.prepare(&python(None, &["app==1.0"])).await.0.unwrap().lock.unwrap();
    change(&mut lock);
    let outcome = node.prepare(&EnvironmentSpec::Locked(lock)).await.0;
    assert!(outcome.is_ok() || node.environments().len() == 1, "something is left of the failed build");
    Some(outcome)
}

fn refusal(outcome: Result<super::Prepared, PrepareError>) -> String {
    match outcome.unwrap_err() {
        PrepareError::Lock(words) => words,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_with_another_hash_is_refused_by_name() {
    let wrong = |lock: &mut EnvironmentLock| {
        lock.packages.iter_mut().for_each(|package| package.hashes = vec![format!("sha256:{}", "0".repeat(64))]);
    };
    let Some(outcome) = followed("a_file_with_another_hash", wrong).await else { return };
    let words = refusal(outcome);
    assert!(words.contains("Hash mismatch") && (words.contains("app") || words.contains("lib")), "{words}");
}

#[tokio::test]
async fn a_package_that_is_gone_is_named() {
    let gone = |lock: &mut EnvironmentLock| {
        lock.packages.iter_mut().filter(|package| package.name == "lib").for_each(|package| package.version = "9.9".into());
    };
    let Some(outcome) = followed("a_package_that_is_gone", gone).await else { return };
    let words = refusal(outcome);
    assert!(words.contains("lib==9.9"), "{words}");
}

#[tokio::test]
async fn another_python_and_another_platform_are_refused() {
    let Some(outcome) = followed("another_python", |lock| lock.python = "3.2.1".into()).await else { return };
    let words = refusal(outcome);
    assert!(words.contains("Python 3.2.1") && words.contains("at hand: 3."), "{words}");
    let outcome = followed("another_platform", |lock| lock.platform = "linux-riscv64-glibc-2.36".into()).await.unwrap();
    assert!(refusal(outcome).contains("the lock was made on linux-riscv64-glibc-2.36"));
}

#[tokio::test]
async fn a_lock_of_an_older_server_is_followed_with_a_warning() {
    let older = |lock: &mut EnvironmentLock| lock.packages.iter_mut().for_each(|package| package.hashes.clear());
    let Some(outcome) = followed("a_lock_of_an_older_server", older).await else { return };
    let warnings = outcome.unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("no hashes of app, lib"), "{warnings:?}");
}

#[tokio::test]
async fn hashes_in_the_list_itself_are_demanded() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("hashes_in_the_list_itself", &index).await else { return };
    let with = |digest: &str| python(None, &[&format!("lib==1.0 --hash=sha256:{digest}")]);
    let (right, log) = node.prepare(&with(&index.sha256("lib", "1.0"))).await;
    assert!(right.is_ok(), "{right:?}\n{log:?}");
    let wrong = node.prepare(&with(&"0".repeat(64))).await.0.unwrap_err().to_string();
    assert!(wrong.to_lowercase().contains("hash") && wrong.contains("lib"), "{wrong}");
}

#[tokio::test]
async fn a_private_index_is_used_and_its_credentials_are_nowhere() {
    let index = Index::start(Manner::Private, &PACKAGES).await;
    let Some(node) = Node::with_index("a_private_index_is_used", &index).await else { return };
    let (prepared, log) = node.prepare(&python(None, &["app"])).await;
    let prepared = prepared.unwrap_or_else(|error| panic!("{error}\n{}", log.join("\n")));
    assert_eq!(run(&prepared, "import app; print(app.version)"), "2.0");
    let lock = serde_json::to_string(&prepared.lock).unwrap();
    assert!(!lock.contains("s3cret") && !log.join("\n").contains("s3cret"));
    let found = std::process::Command::new("grep").args(["-rl", "s3cret"]).arg(node.settings.cache_dir.join("envs")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "the environment has the credentials in a file");
    // And following the lock asks the same index.
    let there = Node::with_index("a_private_index_is_used", &index).await.unwrap();
    let (followed, log) = there.prepare(&EnvironmentSpec::Locked(prepared.lock.unwrap())).await;
    assert!(followed.is_ok(), "{followed:?}\n{log:?}");
    assert!(!log.join("\n").contains("s3cret"));
}

#[tokio::test]
async fn a_lock_that_was_made_on_an_image_is_refused_outside_of_it() {
    let image = LockedImage { reference: "team/train:1".into(), digest: format!("sha256:{}", "a".repeat(64)) };
    let lock = EnvironmentLock { python: "3.11.7".into(), image: Some(image), ..EnvironmentLock::default() };
    let folder = tempfile::tempdir().unwrap();
    let settings = EnvironmentSettings { cache_dir: folder.path().into(), ..EnvironmentSettings::default() };
    let error = prepare(&EnvironmentSpec::Locked(lock), &settings, &mut Vec::new(), &CancellationToken::new()).await.unwrap_err();
    let PrepareError::Lock(words) = error else { panic!("{error:?}") };
    assert!(words.contains("`team/train:1` (sha256:aaa") && words.contains("goes into no container"), "{words}");
}
