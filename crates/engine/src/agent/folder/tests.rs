//! What stands in an attempt's folder, and who sees it.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn folder() -> (tempfile::TempDir, AttemptFolder) {
    let dir = tempfile::tempdir().unwrap();
    let folder = AttemptFolder::new(dir.path());
    (dir, folder)
}

#[test]
fn an_agent_is_alive_exactly_as_long_as_it_holds_the_lock() {
    let (_dir, folder) = folder();
    assert!(!folder.agent_is_alive());
    let lock = folder.lock(Duration::ZERO).unwrap().expect("nobody holds it");
    assert!(folder.agent_is_alive());
    assert!(folder.lock(Duration::ZERO).unwrap().is_none(), "one agent at a time");
    drop(lock);
    assert!(!folder.agent_is_alive());
}

#[test]
fn looking_whether_an_agent_is_alive_does_not_keep_one_from_starting() {
    let (_dir, folder) = folder();
    drop(folder.lock(Duration::ZERO).unwrap());
    let looker = folder.open_lock().unwrap();
    looker.try_lock_shared().unwrap();
    let waiting = std::thread::spawn({
        let folder = folder.clone();
        move || folder.lock(Duration::from_secs(30)).unwrap().is_some()
    });
    drop(looker);
    assert!(waiting.join().unwrap());
}

#[test]
fn starts_are_counted() {
    let (_dir, folder) = folder();
    assert_eq!(folder.starts(), 0);
    folder.count_start().unwrap();
    folder.count_start().unwrap();
    assert_eq!(folder.starts(), 2);
}

#[test]
fn a_stop_request_says_who_asked() {
    let (_dir, folder) = folder();
    assert_eq!(folder.stop_request(), None);
    folder.request_stop("ada", Some("too slow")).unwrap();
    assert_eq!(folder.stop_request(), Some(StopRequest { by: Some("ada".into()), why: Some("too slow".into()) }));
    folder.request_stop("", None).unwrap();
    assert_eq!(folder.stop_request(), Some(StopRequest::default()));
    fs::write(folder.path().join(STOP), "bob\n").unwrap();
    assert_eq!(
        folder.stop_request(),
        Some(StopRequest { by: Some("bob".into()), why: None }),
        "as it was written before there were reasons"
    );
}

#[test]
fn a_fence_stays() {
    let (_dir, folder) = folder();
    assert!(!folder.is_fenced());
    folder.fence().unwrap();
    folder.fence().unwrap();
    assert!(folder.is_fenced());
}

#[test]
fn the_holder_of_the_lock_is_known_while_it_holds_it() {
    let (dir, folder) = folder();
    assert_eq!(folder.agent_pid(), None);
    let lock = folder.lock(Duration::ZERO).unwrap().unwrap();
    assert_eq!(folder.agent_pid(), Some(own_pid()));
    fs::write(dir.path().join(LOCK), format!("{} 1", own_pid())).unwrap();
    assert_eq!(folder.agent_pid(), None, "the number of a former agent that is another process's now");
    drop(lock);
    drop(folder.lock(Duration::ZERO).unwrap());
    assert_eq!(folder.agent_pid(), None);
}

#[test]
fn who_is_asked_to_deliver_again_is_not_done() {
    let (_dir, folder) = folder();
    folder.mark_collected().unwrap();
    folder.ask_again().unwrap();
    assert!(!folder.is_collected() && folder.is_asked_again());
    folder.answer_again().unwrap();
    folder.answer_again().unwrap();
    assert!(!folder.is_asked_again());
}

#[test]
fn the_exit_record_is_read_as_it_was_written() {
    let (_dir, folder) = folder();
    assert_eq!(folder.exit_record().unwrap(), None);
    let record = ExitRecord { cause: Cause::ExitCode { code: 3 }, ended_us: 17, with_others: false };
    folder.write_exit_record(&record).unwrap();
    assert_eq!(folder.exit_record().unwrap(), Some(record));
}

#[test]
fn the_nodes_of_an_attempt_share_its_order_and_its_notes_and_nothing_else() {
    let (dir, folder) = folder();
    let second = AttemptFolder::of_node(dir.path(), 2);
    second.create().unwrap();
    folder.request_stop("ada", None).unwrap();
    second.mark_collected().unwrap();
    assert_eq!(second.stop_request().and_then(|request| request.by).as_deref(), Some("ada"));
    assert!(second.is_collected() && !folder.is_collected());
    second.fence().unwrap();
    assert!(folder.is_fenced());
    assert_eq!(folder.nodes().iter().map(AttemptFolder::node).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn a_damaged_document_is_named() {
    let (dir, folder) = folder();
    fs::write(dir.path().join(EXIT), "{").unwrap();
    let error = folder.exit_record().unwrap_err();
    assert!(error.to_string().contains("exit.json` is damaged"), "{error}");
}

#[test]
fn only_the_owner_can_read_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let folder = AttemptFolder::new(dir.path().join("attempts/one"));
    let order = AttemptOrder {
        protocol: 1,
        attempt: uuid::Uuid::nil(),
        run_id: "run".into(),
        endpoint: "https://localhost:1".into(),
        ca_pem: String::new(),
        token: "secret".into(),
        token_expires_on: 0,
        definition: serde_json::Value::Null,
        snapshot_sha256: None,
        environments: serde_json::Value::Null,
        containers: serde_json::Value::Null,
        data: serde_json::Value::Null,
        archive_limits: serde_json::Value::Null,
        variables: std::collections::BTreeMap::new(),
        grace_seconds: 1,
        started_at: None,
        workspace: None,
        heartbeat_seconds: 10,
        spool_limit_bytes: 1 << 20,
        mpi: None,
        node_key: None,
    };
    folder.create().unwrap();
    folder.write_order(&order).unwrap();
    assert_eq!(folder.read_order().unwrap().token, "secret");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(folder.path()), mode(&folder.path().join(ORDER))), (0o700, 0o600));
}
