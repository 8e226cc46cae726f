//! Against a real channel with a Python that runs, made by `scripts/conda-channel`; the pip side by the real uv from a folder of wheels.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use trainyard_core::environment::{EnvironmentSpec, Progress, PythonEnvironment};

use super::{
    super::{
        BuildLog, Difference, Downloads, Form, How, PruneOptions, PythonFallback, Repair, downloads, export, import, prepare::prepare_on,
        prune, verify,
    },
    *,
};

/// The channel of tests, made once for all of them.
fn channel() -> &'static str {
    static CHANNEL: OnceLock<PathBuf> = OnceLock::new();
    let made = CHANNEL.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
        let channel = root.join("target/test-channel");
        let made = Command::new(root.join("scripts/conda-channel")).arg(&channel).status().expect("python3 runs scripts/conda-channel");
        assert!(made.success(), "scripts/conda-channel failed");
        channel
    });
    made.to_str().unwrap()
}

struct Node {
    folder: tempfile::TempDir,
    host: Host,
    settings: EnvironmentSettings,
}

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    progress: Vec<String>,
}

impl BuildLog for Log {
    fn line(&mut self, line: &str) {
        self.lines.push(line.to_owned());
    }

    fn progress(&mut self, progress: &Progress) {
        self.progress.push(progress.to_string());
    }
}

impl Node {
    fn new() -> Self {
        let executable = std::env::current_exe().unwrap();
        let shared = executable.ancestors().nth(2).unwrap().join("environment-tests");
        let folder = tempfile::tempdir().unwrap();
        let settings = EnvironmentSettings {
            cache_dir: folder.path().join("cache"),
            conda_channels: vec![channel().to_owned()],
            tools_dir: shared.join("tools"),
            ..EnvironmentSettings::default()
        };
        Self { host: Host::current(), settings, folder }
    }

    async fn prepare(&self, spec: &EnvironmentSpec) -> (Result<Prepared, PrepareError>, Log) {
        let (mut log, cancel) = (Log::default(), CancellationToken::new());
        let outcome = prepare_on(&self.host, spec, &self.settings, &mut Console::new(&mut log, &cancel)).await;
        (outcome, log)
    }

    async fn ready(&self, spec: &EnvironmentSpec) -> (Prepared, Log) {
        let (outcome, log) = self.prepare(spec).await;
        (outcome.unwrap_or_else(|error| panic!("{error}\n{}", log.lines.join("\n"))), log)
    }

    async fn refused(&self, packages: &[&str]) -> String {
        self.prepare(&conda(packages, &[])).await.0.unwrap_err().to_string()
    }

    /// Whether the pip side can be tried; if not, the test says so.
    async fn has_uv(&self, test: &str) -> bool {
        let (mut log, cancel) = (Log::default(), CancellationToken::new());
        match uv::locate(&self.host, &self.settings, &mut Console::new(&mut log, &cancel)).await {
            Ok(_) => true,
            Err(error) => {
                skip(test, &format!("uv can not be had ({error})"));
                false
            }
        }
    }

    fn environments(&self) -> usize {
        std::fs::read_dir(self.settings.cache_dir.join("envs")).map_or(0, Iterator::count)
    }
}

#[expect(clippy::print_stderr, reason = "a test that could not do its work must say so")]
fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|&entry| entry.to_owned()).collect()
}

fn conda(packages: &[&str], pip: &[&str]) -> EnvironmentSpec {
    EnvironmentSpec::Conda(CondaEnvironment { packages: owned(packages), channels: Vec::new(), pip: owned(pip) })
}

/// A pip list from the folder of wheels alone.
fn wheel() -> [String; 3] {
    ["--no-index".to_owned(), format!("--find-links {}/wheels", channel()), "trainyard-wheel".to_owned()]
}

fn run(prepared: &Prepared, code: &str) -> String {
    let output = Command::new(&prepared.interpreter).args(["-c", code]).envs(&prepared.variables).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn conda_packages_are_built_activated_and_found_again_without_a_channel() {
    let mut node = Node::new();
    let (prepared, log) = node.ready(&conda(&["greeting"], &[])).await;
    assert!(!prepared.cached && prepared.warnings.is_empty());
    let prefix = prepared.bin_dir.as_deref().unwrap().parent().unwrap().to_owned();
    let words = format!("greeting 2.0 hello from libgreet 2.0 in {}", prefix.display());
    assert_eq!(run(&prepared, "import greeting; greeting.main()"), words);
    assert_eq!(run(&prepared, "import os; print(os.environ['LIBGREET_LINES'])"), "one\ntwo = 2.0");
    assert_eq!(prepared.variables["PATH"], format!("{}/share/libgreet/bin", prefix.display()));
    assert_eq!(prepared.variables["CONDA_PREFIX"], prefix.to_str().unwrap());
    for expected in ["reading channels", "solving", "downloading 0 of 3 packages", "linking 3 of 3 packages", "writing to the disk"] {
        assert!(log.progress.iter().any(|progress| progress == expected), "{expected}: {:?}", log.progress);
    }
    let lock = prepared.lock.clone().unwrap();
    assert_eq!((lock.conda.len(), lock.packages.len(), lock.builder.as_str()), (3, 0, LINKER));
    assert_eq!(lock.python, run(&prepared, "import platform; print(platform.python_version())"));
    assert!(log.lines.iter().any(|line| line.contains("libgreet 2.0 0  file://")), "{:?}", log.lines);

    node.settings.offline = true;
    node.settings.tools_dir = "/does/not/exist".into();
    let (again, log) = node.ready(&conda(&["GREETING *"], &[])).await;
    assert_eq!(again, Prepared { cached: true, ..prepared });
    assert_eq!(log.lines.len(), 1, "{:?}", log.lines);
    assert_eq!(node.environments(), 1);
}

#[tokio::test]
async fn the_pip_list_goes_into_the_same_environment_and_the_lock_leads_to_it_again() {
    let mut node = Node::new();
    if !node.has_uv("the_pip_list_goes_into_the_same_environment").await {
        return;
    }
    let pip = wheel();
    let (prepared, _) = node.ready(&conda(&["greeting=1", "python"], &pip.each_ref().map(String::as_str))).await;
    let code = "import greeting, trainyard_wheel; print(greeting.__version__, trainyard_wheel.WORDS)";
    assert_eq!(run(&prepared, code), "1.0 from a wheel");
    let lock = prepared.lock.unwrap();
    assert_eq!((lock.packages.len(), lock.packages[0].name.as_str(), lock.packages[0].version.as_str()), (1, "trainyard-wheel", "1.0"));

    node.settings.cache_dir = node.folder.path().join("another");
    let (locked, log) = node.ready(&EnvironmentSpec::Locked(lock.clone())).await;
    assert_eq!(run(&locked, code), "1.0 from a wheel");
    assert!(locked.variables.contains_key("LIBGREET_WORDS") && !log.progress.iter().any(|progress| progress == "solving"));
    assert_eq!(locked.lock.unwrap().conda, lock.conda);
    let mut wrong = lock;
    wrong.conda[0].sha256 = Some("0".repeat(64));
    node.settings.cache_dir = node.folder.path().join("third");
    let error = node.prepare(&EnvironmentSpec::Locked(wrong)).await.0.unwrap_err();
    assert!(matches!(&error, PrepareError::Lock(text) if text.contains("to the letter") && text.contains("hash")), "{error:?}");
    assert_eq!(node.environments(), 0);
}

#[tokio::test]
async fn a_python_that_the_node_lacks_comes_from_the_channels() {
    let mut node = Node::new();
    // A node without any Python.
    let nothing = node.folder.path().join("bin");
    std::fs::create_dir(&nothing).unwrap();
    for tool in ["sh", "env"] {
        std::os::unix::fs::symlink(format!("/bin/{tool}"), nothing.join(tool)).unwrap();
    }
    let home = node.folder.path().as_os_str().to_owned();
    let variables = [(OsString::from("PATH"), nothing.into_os_string()), (OsString::from("HOME"), home)];
    node.host = Host::with(variables);
    let version = {
        let output = Command::new("python3").args(["-c", "import platform; print(platform.python_version())"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let minor = version.rsplit_once('.').unwrap().0;
    let python = |version: &str, channels: &[&str]| {
        EnvironmentSpec::Python(PythonEnvironment {
            python: Some(version.into()),
            channels: owned(channels),
            ..PythonEnvironment::default()
        })
    };
    node.settings.offline = true;
    let wanted = Wanted::of(
        &node.host,
        &CondaEnvironment { packages: vec![format!("python={minor}")], ..CondaEnvironment::default() },
        &node.settings,
    );
    let (mut log, cancel) = (Log::default(), CancellationToken::new());
    let prepared = wanted.unwrap().prepare(&mut Console::new(&mut log, &cancel)).await.unwrap();
    assert!(run(&prepared, "import sys; print(sys.prefix)").starts_with(node.folder.path().to_str().unwrap()));

    node.host = Host::current();
    node.settings.conda_channels.clear();
    let (closest, log) = node.ready(&python("3.6.2", &[])).await;
    assert!(closest.warnings[0].contains("no conda channel is configured"), "{:?}", closest.warnings);
    assert!(!log.progress.iter().any(|progress| progress == "reading channels"), "nobody names a channel, so nobody is asked");
    let (closest, log) = node.ready(&python("3.6.2", &[channel()])).await;
    assert!(
        closest.warnings[0].contains("can not be had from a conda channel (no package matches `python 3.6.2.*`"),
        "{:?}",
        closest.warnings
    );
    assert!(log.progress.iter().any(|progress| progress == "reading channels"));
    node.settings.python_fallback = PythonFallback::Fail;
    let error = node.prepare(&python("3.6.2", &["http://127.0.0.1:1/none"])).await.0.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1") || error.contains("offline"), "{error}");
}

#[tokio::test]
async fn what_can_not_be_had_is_told_in_the_words_of_packages_and_leaves_nothing() {
    let node = Node::new();
    for (packages, parts) in [
        (&["nosuchthing"][..], &["there is no package `nosuchthing`"][..]),
        (&["libgreet=9"], &["no package matches `libgreet 9.*`", "2.0, 1.0"]),
        (&["greeting=2", "oldtool"], &["can not be installed together", "greeting", "oldtool", "libgreet"]),
        (&["liar"], &["liar", "hash"]),
        (&["evil"], &["evil"]),
        (&["python=3.1"], &["no package matches `python 3.1.*`"]),
    ] {
        let error = node.refused(packages).await;
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(node.environments(), 0, "{packages:?}");
    }
    assert!(!Path::new("/tmp/trainyard-evil-was-here").exists());
}

#[tokio::test]
async fn credentials_of_channels_are_in_no_line_and_no_error() {
    let mut node = Node::new();
    node.settings.conda_channels = vec!["http://jo:s3cret-word@127.0.0.1:1/t/t0ken-word/c".into()];
    node.settings.conda_credentials = [("127.0.0.1".to_owned(), "bearer b3arer-word".to_owned())].into();
    let (outcome, log) = node.prepare(&conda(&["libgreet"], &[])).await;
    let error = outcome.unwrap_err();
    let all = format!("{error} {error:?} {:?} {:?} {:?}", log.lines, log.progress, node.settings);
    assert!(all.contains("127.0.0.1:1"), "{all}");
    for word in ["s3cret-word", "t0ken-word", "b3arer-word"] {
        assert!(!all.contains(word), "{word}: {all}");
    }
}

#[tokio::test]
async fn a_build_that_is_cancelled_or_dropped_leaves_nothing_and_the_next_one_succeeds() {
    let node = Node::new();
    let spec = conda(&["greeting", "big"], &[]);
    let (mut log, cancel) = (Log::default(), CancellationToken::new());
    cancel.cancel();
    let cancelled = prepare_on(&node.host, &spec, &node.settings, &mut Console::new(&mut log, &cancel)).await;
    assert!(cancelled.unwrap_err().is_cancelled());

    struct Linking(tokio::sync::mpsc::UnboundedSender<()>);
    impl BuildLog for Linking {
        fn line(&mut self, _line: &str) {}
        fn progress(&mut self, progress: &Progress) {
            if progress.done > 0 {
                let _ = self.0.send(());
            }
        }
    }
    let (sender, mut linking) = tokio::sync::mpsc::unbounded_channel();
    let (mut log, cancel) = (Linking(sender), CancellationToken::new());
    let mut console = Console::new(&mut log, &cancel);
    tokio::select! {
        biased;
        _ = linking.recv() => {}
        outcome = prepare_on(&node.host, &spec, &node.settings, &mut console) => {
            panic!("it was done before anybody could drop it: {outcome:?}")
        }
    }
    let again = tokio::time::timeout(Duration::from_secs(400), node.ready(&spec)).await.expect("the lock comes free");
    assert!(!again.0.cached);
    assert_eq!(run(&again.0, "import greeting; print(greeting.__version__)"), "2.0");
}

#[tokio::test]
async fn the_downloads_of_a_lock_with_conda_and_pip_build_it_on_a_machine_without_network() {
    let here = Node::new();
    if !here.has_uv("the_downloads_of_a_lock_with_conda_and_pip").await {
        return;
    }
    let pip = wheel();
    let (original, _) = here.ready(&conda(&["greeting=1", "python"], &pip.each_ref().map(String::as_str))).await;
    let mut archive = Vec::new();
    let hash = original.hash.clone().unwrap();
    let exported = export(&here.settings, &hash, Form::Downloads, &mut archive, &mut |_: &Progress| {}).await;
    if let Err(error) = &exported
        && error.message().contains("pip")
        && error.message().contains("index")
    {
        // Its Python has no pip, and one to fetch wheels with comes from an index.
        return skip("the_downloads_of_a_lock_with_conda_and_pip", error.message());
    }
    assert!(exported.unwrap().files >= 4);

    let mut there = Node::new();
    there.settings.offline = true;
    there.settings.conda_channels.clear();
    let brought = import(&there.settings, &mut archive.as_slice(), &mut |_: &Progress| {}).await.unwrap();
    assert_eq!((brought.form, brought.lock.conda.len()), (Form::Downloads, 3));
    assert!(downloads(&there.settings).imported > 1 << 20);
    assert!(import(&there.settings, &mut archive.as_slice(), &mut |_: &Progress| {}).await.is_ok(), "the second time changes nothing");
    // The channel of the first machine is out of reach here.
    let mut lock = brought.lock;
    lock.conda.iter_mut().for_each(|package| package.url = package.url.replace("file://", "https://unreachable.invalid"));
    let (built, _) = there.ready(&EnvironmentSpec::Locked(lock.clone())).await;
    let code = "import greeting, trainyard_wheel; print(greeting.__version__, trainyard_wheel.WORDS)";
    assert_eq!(run(&built, code), "1.0 from a wheel");
    assert_eq!(built.lock.unwrap().conda, lock.conda);

    let options = PruneOptions { max_bytes: Some(u64::MAX), downloads: true, ..PruneOptions::default() };
    assert!(prune(&there.settings, &options).unwrap().downloads_kept.imported > 1 << 20, "what was brought stays");
    let pruned = prune(&there.settings, &PruneOptions { imported: true, ..options }).unwrap();
    assert_eq!(pruned.downloads_kept, Downloads::default());
}

#[tokio::test]
async fn an_archive_that_lacks_a_package_or_brings_another_one_is_refused() {
    let here = Node::new();
    let (original, _) = here.ready(&conda(&["libgreet", "python"], &[])).await;
    let mut archive = Vec::new();
    let hash = original.hash.clone().unwrap();
    export(&here.settings, &hash, Form::Downloads, &mut archive, &mut |_: &Progress| {}).await.unwrap();
    let there = Node::new();
    let refused = async |archive: Vec<u8>| {
        let error = import(&there.settings, &mut archive.as_slice(), &mut |_: &Progress| {}).await.unwrap_err();
        assert!(!there.settings.cache_dir.join("packages").exists(), "{error}");
        error.message().to_owned()
    };
    let renamed = |from: &str, to: &str| {
        let (from, to) = (from.as_bytes(), to.as_bytes());
        let at = archive.windows(from.len()).position(|window| window == from).unwrap();
        let mut changed = archive.clone();
        changed[at..at + from.len()].copy_from_slice(to);
        changed
    };
    // In the manifest, which stands first: the lock then names a file that is not there.
    let words = refused(renamed("libgreet-2.0-0.tar.bz2", "libgreet-2.0-1.tar.bz2")).await;
    assert!(words.contains("is not one of the files that its lock names"), "{words}");
    let damaged = {
        let mut changed = archive.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        changed
    };
    assert!(refused(damaged).await.contains("is damaged"));
}

#[tokio::test]
async fn conda_downloads_are_counted_and_the_longest_unused_go_first_but_never_while_somebody_builds() {
    let node = Node::new();
    let (prepared, _) = node.ready(&conda(&["libgreet", "pinned", "python"], &[])).await;
    let sizes = downloads(&node.settings);
    assert!(sizes.conda > 10 << 20 && sizes.imported == 0, "{sizes:?}");
    let packages = node.settings.cache_dir.join("conda/pkgs");
    let kept = || {
        let mut names: Vec<String> = std::fs::read_dir(&packages)
            .map(|entries| entries.map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir()).collect::<Vec<_>>())
            .unwrap_or_default()
            .iter()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let all = kept();
    assert_eq!(all.len(), 3, "{all:?}");
    let python = packages.join(all.iter().find(|name| name.starts_with("python")).unwrap());
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(86_400 * 30);
    std::fs::File::open(&python).unwrap().set_modified(long_ago).unwrap();

    let mut settings = node.settings.clone();
    settings.max_bytes = sizes.removable() - 1;
    let keep_environments = PruneOptions { max_bytes: Some(u64::MAX), ..PruneOptions::default() };
    let building = InUse::share(Cache::at(&settings.cache_dir).unwrap().downloads_lock(), &CancellationToken::new()).await.unwrap();
    assert_eq!(prune(&settings, &keep_environments).unwrap().downloads_bytes, 0, "somebody builds with them");
    drop(building);
    let told = prune(&settings, &PruneOptions { dry_run: true, ..keep_environments.clone() }).unwrap();
    assert!(told.downloads_bytes > 10 << 20 && kept() == all);
    let pruned = prune(&settings, &keep_environments).unwrap();
    assert_eq!((pruned.downloads_bytes, pruned.downloads_kept), (told.downloads_bytes, told.downloads_kept));
    assert_eq!(kept().len(), 2, "only the one that was not used for the longest time went: {:?}", kept());
    assert!(!python.exists() && run(&prepared, "print(1)") == "1", "what is built does not notice");

    // Where there is no network nothing could be fetched again.
    settings.offline = true;
    settings.max_bytes = 1;
    assert_eq!(prune(&settings, &keep_environments).unwrap().downloads_bytes, 0);
    let pruned = prune(&settings, &PruneOptions { downloads: true, ..keep_environments }).unwrap();
    assert_eq!((kept().len(), pruned.downloads_kept.removable()), (0, 0));
    let (again, _) = node.ready(&conda(&["libgreet", "pinned=1.0=plain_0", "python"], &[])).await;
    assert!(!again.cached && run(&again, "print(1)") == "1");
}

#[tokio::test]
async fn a_file_of_a_conda_package_that_was_rewritten_in_place_is_found_and_repaired_with_what_it_was_linked_from() {
    let node = Node::new();
    let spec = conda(&["libgreet", "pinned", "python"], &[]);
    let (prepared, _) = node.ready(&spec).await;
    let hash = prepared.hash.clone().unwrap();
    let folder = node.settings.cache_dir.join("envs").join(hash.as_str());
    let good = verify(&node.settings, &hash, Repair::No).await.unwrap();
    assert_eq!((good.differences.as_slice(), good.files > 500), (&[][..], true));
    let path = "share/pinned.txt";
    // Through the link also what the package was unpacked into.
    std::fs::write(folder.join(path), "something else\n").unwrap();
    let found = verify(&node.settings, &hash, Repair::No).await.unwrap();
    assert_eq!(found.differences, [Difference { path: path.into(), how: How::Changed }]);
    let error = verify(&node.settings, &hash, Repair::Remove).await.unwrap_err();
    assert!(error.message().contains("a run uses it"), "{error}");
    drop(prepared);
    assert!(verify(&node.settings, &hash, Repair::Remove).await.unwrap().removed);
    let (again, _) = node.ready(&spec).await;
    assert!(!again.cached);
    assert_eq!(std::fs::read_to_string(folder.join(path)).unwrap(), "special_1\n");
    assert_eq!(verify(&node.settings, &hash, Repair::No).await.unwrap().differences, []);
}

#[tokio::test]
async fn many_who_ask_at_once_build_once() {
    let node = Node::new();
    let spec = conda(&["libgreet", "pinned"], &[]);
    let outcomes = futures_util::future::join_all((0..8).map(|_| node.prepare(&spec))).await;
    let built = outcomes.iter().filter(|(outcome, _)| !outcome.as_ref().unwrap().cached).count();
    assert_eq!((built, node.environments()), (1, 1));
}
