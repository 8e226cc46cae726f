use uuid::Uuid;

use super::*;

fn key(path: &str) -> LiveKey {
    LiveKey { workspace: WorkspaceId(Uuid::from_u128(7)), run: RunId::new("run").expect("an id"), attempt: None, path: path.into() }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn files() -> (LiveFiles, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    (LiveFiles::new(dir.path()), dir)
}

#[tokio::test]
async fn bytes_that_were_sent_before_are_skipped() {
    let (files, _dir) = files();
    let log = key("azureml-logs/70_driver_log.txt");
    assert_eq!(files.len(&log).await.expect("an answer"), None);
    assert_eq!(files.append(&log, 0, bytes("Hello")).await.expect("appended"), 5);
    assert_eq!(files.append(&log, 0, bytes("Hello")).await.expect("a repetition"), 5);
    assert_eq!(files.append(&log, 2, bytes("llo, you")).await.expect("an overlap"), 10);
    assert_eq!(files.append(&log, 1, bytes("ell")).await.expect("all of it known"), 10);
    assert_eq!(files.append(&log, 10, bytes("")).await.expect("nothing"), 10);
    assert_eq!(&files.read(&log, 0..100).await.expect("read")[..], b"Hello, you");
    assert_eq!(&files.read(&log, 5..7).await.expect("read")[..], b", ");
    assert_eq!(files.read(&log, 10..20).await.expect("read"), Bytes::new());
    assert_eq!(files.len(&log).await.expect("an answer"), Some(10));
    assert_eq!(std::fs::read(files.path(&log).await.expect("a path")).expect("a file"), b"Hello, you");
}

#[tokio::test]
async fn a_gap_is_refused_with_the_present_length() {
    let (files, _dir) = files();
    let log = key("a");
    files.append(&log, 0, bytes("123")).await.expect("appended");
    let error = files.append(&log, 4, bytes("5")).await.expect_err("a gap");
    assert_eq!((error.kind(), LiveFiles::gap(&error)), (ErrorKind::Conflict, Some(3)));
    assert!(error.message().contains("`a` has 3 bytes"), "{error}");
    assert_eq!(files.len(&log).await.expect("an answer"), Some(3));
    assert_eq!(LiveFiles::gap(&Error::invalid("other")), None);
}

#[tokio::test]
async fn concurrent_appends_to_one_file_do_not_mix() {
    let (files, _dir) = files();
    let whole: String = (0..200).map(|n| format!("line {n}\n")).collect();
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let (files, whole) = (files.clone(), whole.clone());
            tokio::spawn(async move {
                let mut offset = 0;
                for piece in whole.as_bytes().chunks(37) {
                    files.append(&key("log"), offset, Bytes::copy_from_slice(piece)).await.expect("appended");
                    offset += piece.len() as u64;
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.expect("no panic");
    }
    assert_eq!(files.read(&key("log"), 0..u64::MAX).await.expect("read"), whole.as_bytes());
}

#[tokio::test]
async fn paths_that_leave_the_run_are_refused() {
    let (files, dir) = files();
    let long = "x".repeat(256);
    let deep = "d/".repeat(600) + "x";
    let bad = ["", "/etc/passwd", "..", "a/../b", "a//b", "a/", "./a", "a\\b", "a\0b", "a\nb", long.as_str(), deep.as_str()];
    for path in bad {
        let error = files.append(&key(path), 0, bytes("x")).await.expect_err("refused");
        assert_eq!((error.kind(), error.target()), (ErrorKind::Invalid, Some("path")), "{path:?}");
        assert!(files.read(&key(path), 0..1).await.is_err() && files.len(&key(path)).await.is_err());
    }
    assert!(!dir.path().join("live").exists(), "nothing was made");
    for path in ["a", "a b/c..d", "logs/ü.txt", "..a"] {
        files.append(&key(path).clone(), 0, bytes("x")).await.unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

#[tokio::test]
async fn a_file_is_not_a_folder() {
    let (files, _dir) = files();
    files.append(&key("a"), 0, bytes("x")).await.expect("appended");
    files.append(&key("b/c"), 0, bytes("x")).await.expect("appended");
    for path in ["a/b", "b"] {
        let error = files.append(&key(path), 0, bytes("x")).await.expect_err("refused");
        assert_eq!((error.kind(), LiveFiles::gap(&error)), (ErrorKind::Conflict, None), "{path}");
    }
    assert_eq!(files.read(&key("none"), 0..1).await.expect_err("not there").kind(), ErrorKind::NotFound);
    assert_eq!(files.path(&key("none")).await.expect_err("not there").kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_attempt_is_listed_and_removed_alone() {
    let (files, _dir) = files();
    let attempt = Some(AttemptId(Uuid::from_u128(3)));
    let other = LiveKey { attempt, ..key("kept") };
    files.append(&other, 0, bytes("x")).await.expect("appended");
    for path in ["logs/b", "logs/a", "azureml-logs/70_driver_log.txt", "z"] {
        files.append(&key(path), 0, bytes("x")).await.expect("appended");
    }
    let workspace = other.workspace;
    let listed = files.list(workspace, &key("").run, None).await.expect("a list");
    assert_eq!(listed, ["azureml-logs/70_driver_log.txt", "logs/a", "logs/b", "z"]);
    files.remove_all(workspace, &key("").run, None).await.expect("removed");
    files.remove_all(workspace, &key("").run, None).await.expect("nothing to remove is fine");
    assert!(files.list(workspace, &key("").run, None).await.expect("a list").is_empty());
    assert_eq!(files.list(workspace, &other.run, attempt).await.expect("a list"), ["kept"]);
}

#[tokio::test]
async fn the_longest_run_ids_have_folders_of_their_own() {
    let (files, _dir) = files();
    let long = |end: &str| LiveKey { run: RunId::new("r".repeat(255) + end).expect("an id"), ..key("log") };
    files.append(&long("a"), 0, bytes("first")).await.expect("appended");
    files.append(&long("b"), 0, bytes("second")).await.expect("appended");
    assert_eq!(files.read(&long("a"), 0..9).await.expect("read"), "first");
    assert_eq!(files.read(&long("b"), 0..9).await.expect("read"), "second");
}
