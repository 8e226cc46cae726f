//! The cache as runs share it: who is kept, who goes, and what a run installs for itself.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use tokio_util::sync::CancellationToken;

use super::{
    Node, builds,
    index::{Index, Manner},
    python, run,
};
use crate::environment::{
    How, InUse, Prepared, PruneOptions, Repair, cache::Cache, cached, overlay, pin, prune, unpin, verify, verify::walk,
};

const PACKAGES: [(&str, &str, &str); 5] =
    [("one", "1.0", ""), ("two", "1.0", ""), ("three", "1.0", ""), ("four", "1.0", ""), ("four", "2.0", "")];

/// Last used `days` days ago, by nobody since.
fn age(node: &Node, prepared: &mut Prepared, days: u64) {
    prepared.in_use = None;
    let hash = prepared.hash.as_ref().unwrap();
    let then = SystemTime::now() - Duration::from_secs(days * 86_400);
    for file in [node.settings.cache_dir.join(format!("uses/{hash}.lock")), node.settings.cache_dir.join(format!("envs/{hash}/.complete"))]
    {
        fs::File::open(file).unwrap().set_modified(then).unwrap();
    }
}

fn exists(prepared: &Prepared) -> bool {
    prepared.interpreter.exists()
}

#[tokio::test]
async fn room_is_made_by_the_least_recently_used_and_never_by_what_is_used_or_pinned() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(mut node) = Node::with_index("room_is_made", &index).await else { return };
    let mut all = Vec::new();
    for (name, days) in [("one", 40), ("two", 30), ("three", 20)] {
        let mut prepared = node.prepare(&python(None, &[name])).await.0.unwrap();
        age(&node, &mut prepared, days);
        all.push(prepared);
    }
    let [pinned, old, young] = all.try_into().unwrap();
    pin(&node.settings, pinned.hash.as_ref().unwrap()).unwrap();
    let listed = cached(&node.settings);
    assert_eq!(
        listed.iter().map(|environment| &environment.hash).collect::<Vec<_>>(),
        [&pinned, &old, &young].map(|p| p.hash.as_ref().unwrap())
    );
    assert!(listed[0].pinned && !listed[1].pinned && listed.iter().all(|environment| environment.bytes > 1000 && !environment.in_use));

    // Room for three of four.
    node.settings.max_bytes = listed.iter().map(|environment| environment.bytes).sum::<u64>() + 1000;
    let (built, log) = node.prepare(&python(None, &["four==1.0"])).await;
    let built = built.unwrap();
    assert!(log.iter().any(|line| line.contains("was removed") && line.contains("not used for 30 days")), "{log:?}");
    assert!(exists(&built) && exists(&pinned) && !exists(&old) && exists(&young));

    // Room for none: what was just built, what is used and what is pinned stays all the same.
    node.settings.max_bytes = 1;
    let another = node.prepare(&python(None, &["four==2.0"])).await.0.unwrap();
    assert!(exists(&another) && exists(&built) && exists(&pinned) && !exists(&young));
    unpin(&node.settings, pinned.hash.as_ref().unwrap()).unwrap();
    drop(built);
    let pruned = prune(&node.settings, &PruneOptions::default()).unwrap();
    assert_eq!((pruned.removed.len(), pruned.kept), (2, 1), "{pruned:?}");
    assert!(exists(&another) && fs::read_dir(node.settings.cache_dir.join("trash")).unwrap().next().is_none());
}

#[tokio::test]
async fn a_dry_prune_says_what_would_go_and_removes_nothing() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("a_dry_prune", &index).await else { return };
    let mut prepared = node.prepare(&python(None, &["one"])).await.0.unwrap();
    age(&node, &mut prepared, 3);
    let options = PruneOptions { unused_for_seconds: Some(86_400), dry_run: true, ..PruneOptions::default() };
    let pruned = prune(&node.settings, &options).unwrap();
    assert!(pruned.removed.len() == 1 && pruned.freed_bytes > 0 && pruned.kept_bytes == 0 && exists(&prepared));
    let pruned = prune(&node.settings, &PruneOptions { dry_run: false, downloads: true, ..options }).unwrap();
    assert!(pruned.removed.len() == 1 && !exists(&prepared));
    let unknown = pin(&node.settings, prepared.hash.as_ref().unwrap()).unwrap_err();
    assert!(unknown.message().contains("is not in the cache"), "{unknown}");
}

#[tokio::test]
async fn what_a_killed_builder_and_a_broken_removal_left_is_tidied() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("what_a_killed_builder_left", &index).await else { return };
    let cache = &node.settings.cache_dir;
    let half = cache.join("envs/0123456789abcdef0123456789abcdef/lib");
    let trash = cache.join("trash/0123456789abcdef0123456789abcdef.1.1/bin");
    fs::create_dir_all(&half).unwrap();
    fs::create_dir_all(&trash).unwrap();
    let prepared = node.prepare(&python(None, &["one"])).await.0.unwrap();
    // The look after a build, in a thread of its own, may have the same in its hands just now.
    let deadline = Instant::now() + Duration::from_secs(20);
    while half.exists() || trash.exists() {
        assert!(Instant::now() < deadline, "{} and {} are still there", half.display(), trash.display());
        prune(&node.settings, &PruneOptions::default()).unwrap();
    }
    assert!(exists(&prepared));
}

#[tokio::test]
async fn an_environment_that_somebody_installed_into_is_built_again_once_nobody_uses_it() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("an_environment_that_somebody_installed_into", &index).await else { return };
    let spec = python(None, &["one"]);
    let first = node.prepare(&spec).await.0.unwrap();
    let site = run(&first, "import sysconfig; print(sysconfig.get_path('purelib'))");
    fs::write(Path::new(&site).join("smuggled.py"), "").unwrap();
    let (second, log) = node.prepare(&spec).await;
    let second = second.unwrap();
    assert!(second.cached && second.warnings[0].contains("smuggled.py") && builds(&log) == 0, "{second:?}");
    drop((first, second));
    let (third, log) = node.prepare(&spec).await;
    let third = third.unwrap();
    assert!(!third.cached && third.warnings.is_empty() && builds(&log) == 1, "{log:?}");
    assert!(!Path::new(&site).join("smuggled.py").exists());
}

#[tokio::test]
async fn a_file_that_was_rewritten_in_place_is_found_by_the_walk_beside_a_use_and_built_again_from_fresh_downloads() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("a_file_that_was_rewritten_in_place", &index).await else { return };
    let spec = python(None, &["one"]);
    let first = node.prepare(&spec).await.0.unwrap();
    let (hash, cache) = (first.hash.clone().unwrap(), Cache::at(&node.settings.cache_dir).unwrap());
    let module = run(&first, "import one; print(one.__file__)");
    let good = fs::read(&module).unwrap();
    drop(first);
    fs::write(&module, "version = 'rewritten'\n").unwrap();
    walk(&cache, &hash);
    let (again, log) = node.prepare(&spec).await;
    let again = again.unwrap_or_else(|error| panic!("{error}\n{log:?}"));
    assert!(!again.cached && builds(&log) == 1, "{log:?}");
    assert!(log.iter().any(|line| line.contains("was changed since it was built") && line.contains("one.py")), "{log:?}");
    assert_eq!(fs::read(&module).unwrap(), good, "what uv keeps shared the file, and was not linked again");
    walk(&cache, &hash);
    drop(again);
    assert!(node.prepare(&spec).await.0.unwrap().cached, "nothing is held against the new one");
}

#[tokio::test]
async fn verifying_names_what_differs_and_repairs_what_nobody_uses() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("verifying_names_what_differs", &index).await else { return };
    let spec = python(None, &["one", "two"]);
    let prepared = node.prepare(&spec).await.0.unwrap();
    let hash = prepared.hash.clone().unwrap();
    let site = run(&prepared, "import one, os; print(os.path.dirname(one.__file__))");
    assert_eq!(verify(&node.settings, &hash, Repair::No).await.unwrap().differences, []);
    fs::write(Path::new(&site).join("one.py"), "").unwrap();
    fs::remove_file(Path::new(&site).join("two.py")).unwrap();
    fs::write(Path::new(&site).join("three.py"), "").unwrap();
    let found: Vec<(String, How)> = verify(&node.settings, &hash, Repair::No)
        .await
        .unwrap()
        .differences
        .into_iter()
        .map(|file| (file.path.rsplit('/').next().unwrap().to_owned(), file.how))
        .collect();
    assert_eq!(found, [("one.py".into(), How::Changed), ("two.py".into(), How::Missing), ("three.py".into(), How::Added)]);
    pin(&node.settings, &hash).unwrap();
    drop(prepared);
    assert!(verify(&node.settings, &hash, Repair::Remove).await.unwrap_err().message().contains("pinned"));
    unpin(&node.settings, &hash).unwrap();
    let cache = Cache::at(&node.settings.cache_dir).unwrap();
    let building = InUse::share(cache.downloads_lock(), &CancellationToken::new()).await.unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(500), verify(&node.settings, &hash, Repair::Remove)).await;
    assert!(waits.is_err() && cache.is_complete(&hash), "its downloads go first, and somebody builds with them");
    drop(building);
    assert!(verify(&node.settings, &hash, Repair::Remove).await.unwrap().removed);
    assert!(verify(&node.settings, &hash, Repair::No).await.unwrap_err().message().contains("is not in the cache"));
}

#[tokio::test]
async fn what_a_run_installs_is_in_its_own_layer_even_for_root() {
    let Some(node) = Node::new("what_a_run_installs").await else { return };
    let spec = python(None, &["six==1.16.0"]);
    let mut prepared = node.prepare(&spec).await.0.unwrap();
    let environment = prepared.bin_dir.clone().unwrap();
    let layer = node._folder.path().join("attempt/venv");
    // A layer of a former agent is in the way.
    fs::create_dir_all(layer.join("bin")).unwrap();
    overlay(&mut prepared, &layer).unwrap();
    assert_eq!(prepared.interpreter, layer.join("bin/python"));
    assert_eq!(run(&prepared, "import six, sys; print(six.__version__, sys.prefix)"), format!("1.16.0 {}", layer.display()));
    // With the program, as scripts do it: an upgrade of what is cached, and something new.
    let pip = Command::new(layer.join("bin/pip"))
        .args(["install", "-q", "--disable-pip-version-check", "six==1.15.0", "iniconfig"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(pip.status.success(), "{}", String::from_utf8_lossy(&pip.stderr));
    assert_eq!(run(&prepared, "import six, iniconfig; print(six.__version__)"), "1.15.0");
    let mut again = node.prepare(&spec).await.0.unwrap();
    assert!(again.cached && again.warnings.is_empty() && again.bin_dir.as_ref() == Some(&environment), "{again:?}");
    overlay(&mut again, &node._folder.path().join("other")).unwrap();
    assert_eq!(run(&again, "import six, importlib.util as u; print(six.__version__, u.find_spec('iniconfig'))"), "1.16.0 None");
}

#[tokio::test]
async fn scripts_of_packages_run_in_the_layer() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("scripts_of_packages", &index).await else { return };
    let mut prepared = node.prepare(&python(None, &["one"])).await.0.unwrap();
    let layer = node._folder.path().join("venv");
    overlay(&mut prepared, &layer).unwrap();
    let output = Command::new(layer.join("bin/one")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one 1.0\n", "{}", String::from_utf8_lossy(&output.stderr));
    let shebang = fs::read_to_string(layer.join("bin/one")).unwrap();
    assert!(shebang.contains(layer.to_str().unwrap()), "{shebang}");
}
