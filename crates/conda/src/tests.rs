//! Against a real channel: `scripts/conda-channel` makes one, with a Python that runs.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};
use trainyard_core::environment::{LockedConda, MatchSpec};

use crate::{
    Access, Channels, CondaError, Credential, Request, Secret, Watch, fetch, install, kept_package, kept_packages, resolve, solve,
};

const ALIAS: &str = "https://conda.invalid";

/// The channel of tests, made once for all of them.
fn channel() -> &'static Path {
    static CHANNEL: OnceLock<PathBuf> = OnceLock::new();
    CHANNEL.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
        let channel = root.join("target/test-channel");
        let made = Command::new(root.join("scripts/conda-channel")).arg(&channel).status().expect("python3 runs scripts/conda-channel");
        assert!(made.success(), "scripts/conda-channel failed");
        channel
    })
}

fn quiet() -> Watch {
    Arc::new(|_| {})
}

struct Case {
    folder: tempfile::TempDir,
    access: Access,
    channels: Vec<String>,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let access = Access { downloads: folder.path().join("downloads"), offline: false, credentials: Vec::new(), brought: None };
        Self { folder, access, channels: vec![channel().to_str().unwrap().to_owned()] }
    }

    fn with_channel(channel: &str) -> Self {
        Self { channels: vec![channel.to_owned()], ..Self::new() }
    }

    fn prefix(&self) -> PathBuf {
        self.folder.path().join("env")
    }

    async fn solve(&self, packages: &[&str]) -> Result<Vec<LockedConda>, CondaError> {
        let packages: Vec<MatchSpec> = packages.iter().map(|package| MatchSpec::parse(package).unwrap()).collect();
        let Channels { urls, credentials } = resolve(&self.channels, ALIAS)?;
        let access = Access { credentials: [self.access.credentials.clone(), credentials].concat(), ..self.access.clone() };
        let channels = Channels { urls, credentials: Vec::new() };
        solve(Request { packages: &packages, channels: &channels, alias: ALIAS }, &access, &quiet()).await
    }

    async fn refused(&self, packages: &[&str]) -> String {
        self.solve(packages).await.unwrap_err().to_string()
    }

    async fn install(&self, packages: &[LockedConda]) -> Result<(), CondaError> {
        install(packages, &self.prefix(), &self.access, &quiet(), ()).await
    }

    async fn installing(&self, packages: &[&str]) -> String {
        let locked = self.solve(packages).await.unwrap();
        self.install(&locked).await.unwrap_err().to_string()
    }
}

fn names(packages: &[LockedConda]) -> Vec<String> {
    let mut names: Vec<String> = packages.iter().map(|package| format!("{} {} {}", package.name, package.version, package.build)).collect();
    names.sort();
    names
}

/// What stands in the folder, or was put beside it by a package.
fn intruders(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().ends_with("-was-here") {
                found.push(entry.path());
            }
        }
    }
    found
}

#[tokio::test]
async fn packages_are_solved_installed_and_run() {
    let case = Case::new();
    let locked = case.solve(&["greeting", "python"]).await.unwrap();
    assert_eq!(names(&locked)[..2], ["greeting 2.0 py_0", "libgreet 2.0 0"]);
    assert!(locked[2].name == "greeting", "dependencies come first: {locked:?}");
    assert!(
        locked.iter().all(|package| package.url.starts_with("file:///") && package.sha256.as_ref().is_some_and(|hash| hash.len() == 64))
    );

    let seen = Arc::new(Mutex::new(Vec::new()));
    let watch: Watch = {
        let seen = seen.clone();
        Arc::new(move |progress| seen.lock().unwrap().push(progress.to_string()))
    };
    install(&locked, &case.prefix(), &case.access, &watch, ()).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!((seen[0].as_str(), seen.last().unwrap().as_str()), ("downloading 0 of 3 packages", "linking 3 of 3 packages"));

    let words = case.prefix().join("share/libgreet/words.txt");
    let output = Command::new(case.prefix().join("bin/greet")).env("LIBGREET_WORDS", words).env_remove("PYTHONHOME").output().unwrap();
    let expected = format!("greeting 2.0 hello from libgreet 2.0 in {}\n", case.prefix().display());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{}", String::from_utf8_lossy(&output.stderr));
    let code = "import json, ssl, sys; print(sys.prefix)";
    let output = Command::new(case.prefix().join("bin/python")).args(["-I", "-c", code]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), case.prefix().to_str().unwrap());
}

#[tokio::test]
async fn a_lock_leads_to_the_same_packages_from_the_cache_alone() {
    let server = Server::start(None).await;
    let mut case = Case::with_channel(&server.url());
    let locked = case.solve(&["libgreet=1", "pinned"]).await.unwrap();
    case.install(&locked).await.unwrap();
    server.stop();
    case.access.offline = true;
    std::fs::remove_dir_all(case.prefix()).unwrap();
    case.install(&locked).await.unwrap();
    assert!(std::fs::read_to_string(case.prefix().join("share/libgreet/words.txt")).unwrap().contains("libgreet 1.0"));
    assert_eq!(names(&case.solve(&["libgreet=1", "pinned"]).await.unwrap()), names(&locked));
}

#[tokio::test]
async fn packages_are_fetched_as_files_and_installed_elsewhere_without_a_channel() {
    let server = Server::start(Some("Basic am86czNjcmV0")).await;
    let credential = Credential { host: "127.0.0.1".into(), secret: Secret::parse("jo:s3cret") };
    let mut here = Case::with_channel(&server.url());
    here.access.credentials.push(credential);
    let mut locked = here.solve(&["libgreet=1", "pinned"]).await.unwrap();
    // As in a channel that gives nothing better.
    locked[0].sha256 = None;
    let files = here.folder.path().join("files");
    std::fs::create_dir(&files).unwrap();
    let hashes = fetch(&locked, &files, &here.access, &quiet()).await.unwrap();
    server.stop();
    for (package, sha256) in locked.iter_mut().zip(&hashes) {
        let name = package.url.rsplit('/').next().unwrap();
        assert!(files.join(sha256).join(name).is_file(), "{package:?}");
        package.sha256 = Some(sha256.clone());
    }
    assert_eq!(std::fs::read_dir(&files).unwrap().count(), locked.len(), "nothing else is left there");

    let mut there = Case::new();
    there.access.offline = true;
    let error = there.install(&locked).await.unwrap_err();
    assert!(matches!(&error, CondaError::Offline(_)), "{error:?}");
    there.access.brought = Some(files.clone());
    there.install(&locked).await.unwrap();
    assert!(std::fs::read_to_string(there.prefix().join("share/libgreet/words.txt")).unwrap().contains("libgreet 1.0"));
    // And on from there, to a third machine.
    let again = there.folder.path().join("again");
    std::fs::create_dir(&again).unwrap();
    assert_eq!(fetch(&locked, &again, &there.access, &quiet()).await.unwrap(), hashes);

    let damaged = files.join(&hashes[1]).join(locked[1].url.rsplit('/').next().unwrap());
    std::fs::write(&damaged, std::fs::read(files.join(&hashes[0]).join(locked[0].url.rsplit('/').next().unwrap())).unwrap()).unwrap();
    let third = Case { access: Access { downloads: there.folder.path().join("third"), ..there.access.clone() }, ..Case::new() };
    let error = third.install(&locked).await.unwrap_err().to_string();
    assert!(error.contains("hash"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_not_what_the_lock_says_or_is_gone_is_not_fetched() {
    let case = Case::new();
    let files = case.folder.path().join("files");
    std::fs::create_dir(&files).unwrap();
    let locked = case.solve(&["liar"]).await.unwrap();
    let error = fetch(&locked, &files, &case.access, &quiet()).await.unwrap_err();
    assert!(matches!(&error, CondaError::Package(text) if text.contains("liar 1.0") && text.contains("another hash")), "{error:?}");
    let mut locked = case.solve(&["libgreet"]).await.unwrap();
    locked[0].sha256 = None;
    locked[0].md5 = Some("0".repeat(32));
    let error = fetch(&locked, &files, &case.access, &quiet()).await.unwrap_err().to_string();
    assert!(error.contains("another hash"), "{error}");
    locked[0].url = locked[0].url.replace("libgreet", "libgone");
    let error = fetch(&locked, &files, &case.access, &quiet()).await.unwrap_err().to_string();
    assert!(error.contains("is gone"), "{error}");
    let server = Server::start(None).await;
    locked[0].url = format!("{}/noarch/libgone-1.0-0.tar.bz2", server.url());
    let error = fetch(&locked, &files, &case.access, &quiet()).await.unwrap_err().to_string();
    assert!(error.contains("404"), "{error}");
}

#[tokio::test]
async fn what_is_kept_is_listed_with_its_last_use() {
    let case = Case::new();
    let locked = case.solve(&["libgreet", "pinned"]).await.unwrap();
    case.install(&locked).await.unwrap();
    let kept = kept_packages(&case.access.downloads);
    assert_eq!(kept.len(), 2);
    let libgreet = kept_package(&case.access.downloads, locked.iter().find(|package| package.name == "libgreet").unwrap());
    assert!(kept.contains(&libgreet) && libgreet.note.is_file(), "{kept:?}");
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    std::fs::File::open(&libgreet.folder).unwrap().set_modified(long_ago).unwrap();
    std::fs::remove_dir_all(case.prefix()).unwrap();
    case.install(&locked).await.unwrap();
    assert!(kept_packages(&case.access.downloads).iter().all(|package| package.last_used > long_ago), "linking is a use");
}

#[tokio::test]
async fn versions_builds_and_channels_of_one_package_are_respected() {
    let case = Case::new();
    let solve = async |packages: &[&str]| names(&case.solve(packages).await.unwrap());
    assert_eq!(solve(&["libgreet<2"]).await, ["libgreet 1.0 0"]);
    assert_eq!(solve(&["pinned"]).await, ["pinned 1.0 special_1"]);
    assert_eq!(solve(&["pinned=1.0=plain*"]).await, ["pinned 1.0 plain_0"]);
    assert_eq!(solve(&["pinned[build_number=0]"]).await, ["pinned 1.0 plain_0"]);
    let own = format!("file://{}::libgreet", channel().display());
    let bare = Case { channels: Vec::new(), ..Case::new() };
    assert_eq!(names(&bare.solve(&[&own]).await.unwrap()), ["libgreet 2.0 0"]);
    assert!(bare.refused(&["libgreet"]).await.contains("no conda channel is named"));
}

#[tokio::test]
async fn an_unknown_package_and_an_unknown_version_are_named() {
    let case = Case::new();
    let error = case.refused(&["python", "nosuchthing>=2"]).await;
    assert!(error.contains("there is no package `nosuchthing` in file:///"), "{error}");
    let error = case.refused(&["libgreet=7.5"]).await;
    assert_eq!(error, "no package matches `libgreet 7.5.*`; the channels have libgreet 2.0, 1.0");
    let error = case.refused(&["pinned=1.0=nosuch_9"]).await;
    assert!(error.contains("no package matches `pinned ==1.0 nosuch_9`"), "{error}");
}

#[tokio::test]
async fn conflicting_requirements_are_explained_by_the_packages_that_conflict() {
    let error = Case::new().refused(&["greeting=2", "oldtool"]).await;
    for part in ["can not be installed together", "greeting", "oldtool", "libgreet"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = Case::new().refused(&["libgreet>=2", "libgreet<2"]).await;
    assert!(error.contains("libgreet"), "{error}");
}

#[tokio::test]
async fn a_channel_that_can_not_be_reached_or_answers_garbage_is_named() {
    let error = Case::with_channel("http://127.0.0.1:1/team").refused(&["libgreet"]).await;
    assert!(error.contains("can not be read") && error.contains("127.0.0.1:1"), "{error}");
    let missing = Case::with_channel("/no/such/channel").refused(&["libgreet"]).await;
    assert!(missing.contains("can not be read") && missing.contains("/no/such/channel"), "{missing}");

    let folder = tempfile::tempdir().unwrap();
    for subdir in ["noarch", "linux-64"] {
        std::fs::create_dir(folder.path().join(subdir)).unwrap();
        std::fs::write(folder.path().join(subdir).join("repodata.json"), "<html>Not a channel</html>").unwrap();
    }
    let garbage = Case::with_channel(folder.path().to_str().unwrap()).solve(&["libgreet"]).await.unwrap_err();
    assert!(matches!(garbage, CondaError::Channel(_)), "{garbage:?}");
    let served = Server::serving(folder.path(), None).await;
    let garbage = Case::with_channel(&served.url()).solve(&["libgreet"]).await.unwrap_err();
    assert!(matches!(garbage, CondaError::Channel(_)), "{garbage:?}");
}

#[tokio::test]
async fn a_package_with_another_hash_is_refused() {
    let error = Case::new().installing(&["liar"]).await;
    assert!(error.contains("liar") && error.contains("hash"), "{error}");
    let case = Case::new();
    let mut locked = case.solve(&["libgreet"]).await.unwrap();
    locked[0].sha256 = Some("ab".repeat(32));
    let error = case.install(&locked).await.unwrap_err().to_string();
    assert!(error.contains("libgreet") && error.contains("hash"), "{error}");
    locked[0].sha256 = Some("not hex".into());
    assert!(case.install(&locked).await.unwrap_err().to_string().contains("not a hash of 32 bytes"));
}

#[tokio::test]
async fn a_package_that_leads_out_of_its_folder_is_refused_and_writes_nothing() {
    for package in ["evil", "slip"] {
        let case = Case::new();
        let error = case.installing(&[package]).await;
        assert!(error.contains(package), "{error}");
        let outside: Vec<_> = intruders(case.folder.path())
            .into_iter()
            .filter(|path| !path.starts_with(case.prefix()) && !path.starts_with(&case.access.downloads))
            .collect();
        assert_eq!(outside, Vec::<PathBuf>::new());
        assert!(!Path::new("/tmp/trainyard-evil-was-here").exists());
    }
}

#[tokio::test]
async fn credentials_reach_the_channel_and_nothing_else() {
    let server = Server::start(Some("Basic am86czNjcmV0")).await;
    let with = server.url().replace("http://", "http://jo:s3cret@");
    let locked = Case::with_channel(&with).solve(&["libgreet"]).await.unwrap();
    assert!(!format!("{locked:?}").contains("s3cret"));
    let mut case = Case::with_channel(&server.url());
    case.access.credentials.push(Credential { host: "127.0.0.1".into(), secret: Secret::parse("jo:s3cret") });
    case.install(&locked).await.unwrap();

    let wrong = server.url().replace("http://", "http://jo:wr0ng@");
    let error = Case::with_channel(&wrong).solve(&["libgreet"]).await.unwrap_err();
    assert!(error.to_string().contains("401") && !format!("{error} {error:?}").contains("wr0ng"), "{error:?}");
    let token = server.url().replace("/c", "/t/t0ken/c");
    let error = Case::with_channel(&token).solve(&["libgreet"]).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("t0ken"), "{error:?}");
    let dead = Case::with_channel("http://jo:s3cret@127.0.0.1:1/t/t0ken/c").solve(&["libgreet"]).await.unwrap_err();
    assert!(!format!("{dead} {dead:?}").contains("s3cret") && !format!("{dead} {dead:?}").contains("t0ken"), "{dead:?}");
}

#[tokio::test]
async fn offline_without_an_index_says_what_to_do() {
    let mut case = Case::with_channel("http://127.0.0.1:1/team");
    case.access.offline = true;
    let error = case.solve(&["libgreet"]).await.unwrap_err();
    assert!(matches!(&error, CondaError::Offline(text) if text.contains("offline = true") && text.contains("127.0.0.1")), "{error:?}");
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "a test that could not do its work must say so")]
async fn a_full_disk_in_the_middle_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=20m", "tmpfs"]).arg(folder.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped a_full_disk_in_the_middle_is_told_as_such: a small file system can only be mounted by root");
        return;
    }
    let mut case = Case::new();
    case.access.downloads = folder.path().join("downloads");
    let locked = case.solve(&["big", "libgreet"]).await.unwrap();
    let error = case.install(&locked).await.unwrap_err();
    let unmounted = Command::new("umount").arg(folder.path()).status().unwrap();
    assert!(matches!(&error, CondaError::Node { what, .. } if what.contains("No space left")), "{error:?}");
    assert!(unmounted.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_nobody_waits_for_keeps_its_hold_until_it_rests() {
    struct Hold(std::sync::mpsc::Sender<()>);
    impl Drop for Hold {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let case = Case::new();
    let locked = case.solve(&["greeting", "python", "big"]).await.unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let linking = Arc::new(tokio::sync::Notify::new());
    let watch: Watch = {
        let linking = linking.clone();
        Arc::new(move |progress| {
            if progress.done > 0 {
                linking.notify_one();
            }
        })
    };
    {
        let (prefix, access) = (case.prefix(), case.access.clone());
        let work = install(&locked, &prefix, &access, &watch, Hold(sender));
        tokio::select! {
            biased;
            () = linking.notified() => {}
            result = work => panic!("it was done before anybody could give it up: {result:?}"),
        }
    }
    tokio::task::spawn_blocking(move || receiver.recv_timeout(Duration::from_secs(60))).await.unwrap().unwrap();
    std::fs::remove_dir_all(case.prefix()).unwrap();
    // Whatever still stood in the queue of the pool would have been done before this, and have made the folder again.
    let queue = tokio::task::spawn_blocking(|| {
        let (begun, wait) = std::sync::mpsc::channel();
        rayon::spawn_fifo(move || begun.send(()).unwrap());
        wait.recv().unwrap();
        rayon::broadcast(|_| ());
    });
    queue.await.unwrap();
    assert!(!case.prefix().exists());
}

/// The channel over HTTP, at `/c/`.
struct Server {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(authorization: Option<&str>) -> Self {
        Self::serving(channel(), authorization).await
    }

    async fn serving(folder: &Path, authorization: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (folder, authorization) = (folder.to_owned(), authorization.map(ToOwned::to_owned));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, folder.clone(), authorization.clone()));
            }
        });
        Self { address, task }
    }

    fn url(&self) -> String {
        format!("http://{}/c", self.address)
    }

    fn stop(&self) {
        self.task.abort();
    }
}

async fn answer(stream: tokio::net::TcpStream, folder: PathBuf, authorization: Option<String>) {
    let mut stream = BufReader::new(stream);
    let (mut path, mut shown) = (String::new(), None);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        let line = line.trim();
        if path.is_empty() {
            path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        } else if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("authorization")
        {
            shown = Some(value.trim().to_owned());
        }
    }
    let file = path.strip_prefix("/c/").map(|path| folder.join(path)).and_then(|path| std::fs::read(path).ok());
    let (status, body) = match file {
        _ if authorization != shown && authorization.is_some() => ("401 Unauthorized", Vec::new()),
        Some(body) => ("200 OK", body),
        None => ("404 Not Found", Vec::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(&body).await;
    let _ = stream.flush().await;
}
