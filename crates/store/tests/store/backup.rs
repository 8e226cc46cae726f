//! What comes back from a backup, and what a restore does to what is there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use sqlx::{Column as _, Row as _};
use trainyard_core::{
    ErrorKind,
    ids::AttemptId,
    run::{Cause, RunEvent, RunState},
};
use trainyard_store::{
    LiveKey, Store, StoreOptions,
    artifacts::Artifact,
    backup::{self, Contents, Replace, Restored, Written},
    progress::Silent,
    runs::NewSnapshot,
};
use uuid::Uuid;

use crate::{
    database::{Bench, execute_at},
    fixtures::{NOW, Place, run_id},
};

const LOG: &str = "azureml-logs/70_driver_log.txt";

async fn write(bench: &Bench, name: &str) -> (PathBuf, Written) {
    let file = bench.options().data_dir.join(name);
    let written = backup::write(bench.options(), &file, NOW, Arc::new(Silent)).await.expect("a backup");
    (file, written)
}

async fn verify(file: &Path) -> Contents {
    backup::verify(file, Arc::new(Silent)).await.expect("the backup is whole")
}

async fn restore(file: &Path, options: &StoreOptions, replace: Replace) -> trainyard_core::Result<Restored> {
    let contents = verify(file).await;
    backup::restore((file, &contents), options, replace, NOW, Arc::new(Silent)).await
}

/// A run with a snapshot and an output.
async fn completed_run(bench: &Bench, place: &Place, id: &str) {
    let snapshot = bench.store.blobs().put_bytes(Bytes::from(format!("zip of {id}"))).await.expect("a blob");
    let output = bench.store.blobs().put_bytes(Bytes::from(format!("model of {id}"))).await.expect("a blob");
    let code = Uuid::new_v4();
    let mut run = place.run_with(id, |record| record.snapshot = Some(code));
    run.snapshot = Some(NewSnapshot { id: code, digest: snapshot.digest, size_bytes: snapshot.size.cast_signed() });
    let run = bench.store_run(run).await;
    bench.execute(&run, Cause::Completed).await;
    let artifact = Artifact {
        workspace: place.workspace,
        container: format!("dcid.{id}"),
        path: "outputs/model".into(),
        size_bytes: output.size.cast_signed(),
        digest: Some(output.digest),
        attempt: None,
        created_us: NOW,
        updated_us: NOW,
    };
    bench.store.upsert_artifact(&artifact).await.expect("an artifact");
}

/// A run in execution whose log grows.
async fn growing_run(bench: &Bench, place: &Place, id: &str, log: &str) -> (LiveKey, Artifact) {
    let run = bench.store_run(place.run(id)).await;
    let attempt = AttemptId(Uuid::new_v4());
    bench.change(&run, RunEvent::Admitted { attempt }, NOW + 1).await;
    bench.change(&run, RunEvent::Started { attempt }, NOW + 2).await;
    let artifact = Artifact {
        workspace: place.workspace,
        container: format!("dcid.{id}"),
        path: LOG.into(),
        size_bytes: 0,
        digest: None,
        attempt: Some(attempt),
        created_us: NOW,
        updated_us: NOW,
    };
    bench.store.upsert_artifact(&artifact).await.expect("an artifact");
    let key = LiveKey::of(&artifact).expect("it is a run's");
    bench.store.live_files().append(&key, 0, Bytes::from(log.to_owned())).await.expect("a log");
    (key, artifact)
}

/// A server's small files.
fn settle(data_dir: &Path) {
    for (name, text) in
        [("keys/token.pem", "key"), ("keys/.lock", ""), ("tls/ca.pem", "ca"), ("identity.json", "{}"), ("config.toml", "# mine\n")]
    {
        let path = data_dir.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
}

/// Every row of every table, as text, without the order of columns and rows.
async fn rows(options: &StoreOptions) -> BTreeMap<String, Vec<String>> {
    const TABLES: [&str; 11] = [
        "workspaces",
        "apps",
        "experiments",
        "snapshots",
        "runs",
        "run_documents",
        "events",
        "attempts",
        "artifacts",
        "environments",
        "server_settings",
    ];
    let mut found = BTreeMap::new();
    for table in TABLES {
        let mut lines = Vec::new();
        macro_rules! read {
            ($conn:expr) => {{
                let mut conn = $conn;
                let rows = sqlx::query(sqlx::AssertSqlSafe(format!("select * from {table}"))).fetch_all(&mut conn).await.expect("a table");
                for row in rows {
                    let mut line: Vec<String> = (0..row.columns().len())
                        .map(|at| {
                            let name = row.columns()[at].name().to_owned();
                            let value = row
                                .try_get::<Option<i64>, _>(at)
                                .map(|value| format!("{value:?}"))
                                .or_else(|_| row.try_get::<Option<bool>, _>(at).map(|value| format!("{value:?}")))
                                .or_else(|_| row.try_get::<Option<String>, _>(at).map(|value| format!("{value:?}")))
                                .expect("a known type");
                            format!("{name}={value}")
                        })
                        .collect();
                    line.sort();
                    lines.push(line.join(" ").replace("Some(1)", "Some(true)").replace("Some(0)", "Some(false)"));
                }
            }};
        }
        if options.database == "sqlite" {
            use sqlx::ConnectOptions as _;
            read!(
                sqlx::sqlite::SqliteConnectOptions::new()
                    .filename(options.data_dir.join("trainyard.sqlite"))
                    .connect()
                    .await
                    .expect("the file opens")
            );
        } else {
            read!(<sqlx::PgConnection as sqlx::Connection>::connect(&options.database).await.expect("the server answers"));
        }
        lines.sort();
        found.insert(table.to_owned(), lines);
    }
    found
}

/// The rows without what a restore changes on purpose: what is held, and that the server is drained.
fn unheld(mut rows: BTreeMap<String, Vec<String>>) -> BTreeMap<String, Vec<String>> {
    rows.remove("server_settings");
    for run in rows.get_mut("runs").expect("runs") {
        let words: Vec<&str> = run.split(' ').filter(|word| !word.starts_with("retries=")).collect();
        *run = words.join(" ");
    }
    rows
}

pub(crate) async fn a_restored_server_has_everything_and_is_drained(bench: &Bench) {
    settle(&bench.options().data_dir);
    let place = bench.place().await;
    completed_run(bench, &place, "done").await;
    let waiting = bench.store_run(place.run("waiting")).await;
    let (key, _) = growing_run(bench, &place, "running", "so far\n").await;
    let (file, written) = write(bench, "one.tar").await;
    assert_eq!((written.live_files, written.manifest.blobs, written.ending.missing.len()), (1, 2, 0));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).expect("the file").permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds the keys");
    assert!(!bench.options().data_dir.join("one.tar.partial").exists());

    let vacancy = bench.vacancy().await;
    let restored = restore(&file, &vacancy.options, Replace::Refuse).await.expect("a restore");
    assert_eq!((restored.held_runs, restored.blobs), (2, 2));
    assert_eq!(unheld(rows(bench.options()).await), unheld(rows(&vacancy.options).await));
    let data_dir = &vacancy.options.data_dir;
    for (name, text) in [("keys/token.pem", "key"), ("tls/ca.pem", "ca"), ("identity.json", "{}"), ("config.toml", "# mine\n")] {
        assert_eq!(fs::read_to_string(data_dir.join(name)).expect("restored"), text);
    }
    assert!(!data_dir.join("restore.json").exists() && !data_dir.join("restoring").exists());
    let store = Store::open(&vacancy.options).await.expect("it opens");
    assert!(store.is_drained().await.expect("a read"));
    assert!(store.run(place.workspace, &waiting.id).await.expect("a read").expect("the run").retries.held);
    assert!(!store.run(place.workspace, &run_id("done")).await.expect("a read").expect("the run").retries.held);
    assert_eq!(store.live_files().read(&key, 0..99).await.expect("the log"), "so far\n");
    for content in ["zip of done", "model of done"] {
        let digest = bench.store.blobs().put_bytes(Bytes::from(content)).await.expect("a blob").digest;
        assert_eq!(store.blobs().size(&digest).await.expect("an answer"), Some(content.len() as u64));
    }
    store.close().await;
    vacancy.close().await;
}

pub(crate) async fn a_backup_moves_to_the_other_database(bench: &Bench) {
    let Some(other) = bench.other_vacancy().await else { return };
    let place = bench.place().await;
    completed_run(bench, &place, "done").await;
    let text = place.run_with("texts", |record| {
        record.description = Some("quotes ' \" \\ and \n lines, ü, 🚂".into());
        record.hidden = true;
        record.priority = i64::MIN;
    });
    bench.store_run(text).await;
    let (file, _) = write(bench, "one.tar").await;
    restore(&file, &other.options, Replace::Refuse).await.expect("a restore");
    assert_eq!(unheld(rows(bench.options()).await), unheld(rows(&other.options).await));
    other.close().await;
}

pub(crate) async fn a_backup_is_of_one_moment_while_runs_are_made(bench: &Bench) {
    let place = bench.place().await;
    for n in 0..30 {
        bench.store_run(place.run(&format!("before-{n}"))).await;
    }
    let making = async {
        for n in 0..200 {
            bench.store_run(place.run(&format!("meanwhile-{n}"))).await;
        }
    };
    let ((file, written), ()) = tokio::join!(write(bench, "one.tar"), making);
    let rows = |name: &str| written.manifest.tables.iter().find(|table| table.name == name).expect("a table").rows;
    assert_eq!(rows("runs"), rows("events"), "each run has one event, in the same moment");
    assert!(rows("runs") >= 30);
    let vacancy = bench.vacancy().await;
    restore(&file, &vacancy.options, Replace::Refuse).await.expect("a restore");
    let store = Store::open(&vacancy.options).await.expect("it opens");
    let experiment = store.experiment(place.workspace, place.experiment.id).await.expect("a read").expect("the experiment");
    let counted = store.run_counts(place.workspace, Some(experiment.id)).await.expect("a read");
    assert_eq!(counted, [(RunState::Queued, i64::try_from(rows("runs")).expect("few"))]);
    store.close().await;
    vacancy.close().await;
}

/// Seals a log at the moment when the backup has read the rows and turns to the logs.
struct SealThen {
    store: Store,
    artifact: Artifact,
}

impl trainyard_store::progress::Progress for SealThen {
    fn begin(&self, what: &'static str, _total: u64, _unit: trainyard_store::progress::Unit) {
        if what != "copying growing logs" {
            return;
        }
        let (store, artifact) = (self.store.clone(), self.artifact.clone());
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async move {
                let blob = store.blobs().put_bytes(Bytes::from("the whole log\n")).await.expect("a blob");
                let sealed = Artifact { digest: Some(blob.digest), size_bytes: blob.size.cast_signed(), ..artifact.clone() };
                store.upsert_artifact(&sealed).await.expect("sealed");
                store.live_files().remove(&LiveKey::of(&artifact).expect("a run's")).await.expect("removed");
            });
        });
    }

    fn advance(&self, _by: u64) {}
}

pub(crate) async fn a_log_that_is_sealed_during_the_backup_is_in_it(bench: &Bench) {
    let place = bench.place().await;
    let (key, artifact) = growing_run(bench, &place, "running", "so far\n").await;
    let file = bench.options().data_dir.join("one.tar");
    let progress = Arc::new(SealThen { store: bench.store.clone(), artifact });
    let written = backup::write(bench.options(), &file, NOW, progress).await.expect("a backup");
    assert_eq!((written.live_files, written.ending.missing), (1, Vec::new()));
    let vacancy = bench.vacancy().await;
    restore(&file, &vacancy.options, Replace::Refuse).await.expect("a restore");
    let store = Store::open(&vacancy.options).await.expect("it opens");
    assert_eq!(store.live_files().read(&key, 0..99).await.expect("the log"), "the whole log\n");
    store.close().await;
    vacancy.close().await;
}

pub(crate) async fn a_restore_refuses_what_is_occupied(bench: &Bench) {
    let place = bench.place().await;
    bench.store_run(place.run("old")).await;
    let (file, _) = write(bench, "one.tar").await;
    bench.store_run(place.run("younger")).await;
    let refused = restore(&file, bench.options(), Replace::Refuse).await.expect_err("there is a server");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    if bench.options().database != "sqlite" {
        let refused = restore(&file, bench.options(), Replace::MoveAside).await.expect_err("rows are never removed");
        assert!(refused.message().contains("createdb"), "{refused}");
        return;
    }
    bench.store.close().await;
    let restored = restore(&file, bench.options(), Replace::MoveAside).await.expect("moved aside");
    let aside = restored.moved_aside.iter().find(|path| path.to_string_lossy().contains("trainyard.sqlite.before-restore-")).expect("kept");
    let kept = StoreOptions { data_dir: tempfile::tempdir().expect("a folder").keep(), ..bench.options().clone() };
    for suffix in ["", "-wal"] {
        let from = PathBuf::from(format!("{}{suffix}", aside.display()));
        if from.exists() {
            fs::copy(from, kept.data_dir.join(format!("trainyard.sqlite{suffix}"))).expect("a copy");
        }
    }
    let runs = |rows: BTreeMap<String, Vec<String>>| rows["runs"].len();
    assert_eq!((runs(rows(&kept).await), runs(rows(bench.options()).await)), (2, 1));
    fs::remove_dir_all(&kept.data_dir).expect("removed");
}

pub(crate) async fn a_restore_that_was_cut_is_finished_by_the_same_command(bench: &Bench) {
    let place = bench.place().await;
    bench.store_run(place.run("one")).await;
    let (file, _) = write(bench, "one.tar").await;
    bench.store_run(place.run("two")).await;
    let (other, _) = write(bench, "two.tar").await;
    // As a crash right after the intent was written leaves it: everything lies beside its place.
    let vacancy = bench.vacancy().await;
    restore(&file, &vacancy.options, Replace::Refuse).await.expect("a restore");
    let data_dir = &vacancy.options.data_dir;
    fs::create_dir(data_dir.join("restoring")).expect("a folder");
    if vacancy.options.database == "sqlite" {
        fs::rename(data_dir.join("trainyard.sqlite"), data_dir.join("restoring/trainyard.sqlite")).expect("moved");
    }
    let sums = verify(&file).await.ending.sums_sha256;
    fs::write(data_dir.join("restore.json"), format!(r#"{{"backup":"{sums}","file":"one.tar","stamp":"T"}}"#)).expect("an intent");
    let refused = backup::refuse_unfinished(data_dir).expect_err("a server must not start");
    assert!(refused.message().contains("trainyard restore one.tar"), "{refused}");
    let refused = restore(&other, &vacancy.options, Replace::MoveAside).await.expect_err("it is another backup");
    assert!(refused.message().contains("restore of another backup"), "{refused}");
    restore(&file, &vacancy.options, Replace::Refuse).await.expect("finished");
    backup::refuse_unfinished(data_dir).expect("nothing is left");
    assert_eq!(rows(&vacancy.options).await["runs"].len(), 1);
    vacancy.close().await;
}

pub(crate) async fn a_missing_blob_is_said_and_does_not_stop_a_backup(bench: &Bench) {
    let place = bench.place().await;
    completed_run(bench, &place, "done").await;
    let gone = bench.store.blobs().put_bytes(Bytes::from("zip of done")).await.expect("a blob").digest;
    let damaged = bench.store.blobs().put_bytes(Bytes::from("model of done")).await.expect("a blob").digest;
    bench.store.blobs().delete(&gone).await.expect("deleted");
    // The last one of a pack would pass for one that a crash cut off.
    bench.store.blobs().put_bytes(Bytes::from("another")).await.expect("a blob");
    bench.damage("model of done", "MODEL of done");
    let (file, written) = write(bench, "one.tar").await;
    assert!(written.ending.missing.len() == 1 && written.ending.missing[0].ends_with(gone.as_str()), "{:?}", written.ending);
    assert!(written.ending.damaged.len() == 1 && written.ending.damaged[0].ends_with(damaged.as_str()), "{:?}", written.ending);
    let vacancy = bench.vacancy().await;
    restore(&file, &vacancy.options, Replace::Refuse).await.expect("the rest is restored");
    let store = Store::open(&vacancy.options).await.expect("it opens");
    assert_eq!(store.blobs().size(&damaged).await.expect("an answer"), None, "nobody is given what is damaged");
    store.close().await;
    vacancy.close().await;
}

pub(crate) async fn the_list_of_tables_is_the_schema(bench: &Bench) {
    // Whatever table the schema has, a backup has; a row in each is too much to ask of every migration, so the names are compared.
    let (_, written) = write(bench, "one.tar").await;
    let listed: BTreeMap<String, Vec<String>> = written
        .manifest
        .tables
        .iter()
        .map(|table| {
            let mut columns = table.columns.clone();
            columns.sort();
            (table.name.clone(), columns)
        })
        .collect();
    let mut schema: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let options = bench.options();
    if options.database == "sqlite" {
        use sqlx::ConnectOptions as _;
        let file = sqlx::sqlite::SqliteConnectOptions::new().filename(options.data_dir.join("trainyard.sqlite"));
        let mut conn = file.connect().await.expect("the file opens");
        let sql =
            "select m.name, c.name from sqlite_master m, pragma_table_info(m.name) c where m.type = 'table' and m.name not like 'sqlite_%'";
        for row in sqlx::query(sql).fetch_all(&mut conn).await.expect("the schema") {
            schema.entry(row.get(0)).or_default().push(row.get(1));
        }
    } else {
        let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&options.database).await.expect("the server answers");
        let sql = "select table_name::text, column_name::text from information_schema.columns where table_schema = current_schema()";
        for row in sqlx::query(sql).fetch_all(&mut conn).await.expect("the schema") {
            schema.entry(row.get(0)).or_default().push(row.get(1));
        }
    }
    schema.remove("_sqlx_migrations");
    schema.values_mut().for_each(|columns| columns.sort());
    assert_eq!(listed, schema);
}

/// A backup of a small server, for tests of the file alone.
async fn small_backup() -> (Bench, PathBuf) {
    let bench = crate::database::sqlite().await;
    settle(&bench.options().data_dir);
    let place = bench.place().await;
    completed_run(&bench, &place, "done").await;
    let (file, _) = write(&bench, "one.tar").await;
    (bench, file)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_cut_or_damaged_anywhere_is_refused() {
    let (bench, file) = small_backup().await;
    let whole = fs::read(&file).expect("the file");
    let spoiled = bench.options().data_dir.join("spoiled.tar");
    for cut in [0, 100, 512, 3000, whole.len() / 2, whole.len() - 2048] {
        fs::write(&spoiled, &whole[..cut]).expect("written");
        let error = backup::verify(&spoiled, Arc::new(Silent)).await.expect_err("it is cut");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{cut}: {error}");
    }
    // A byte in each entry's content: tar guards its own headers only.
    let mut archive = tar::Archive::new(whole.as_slice());
    let mut spots = Vec::new();
    for entry in archive.entries().expect("entries") {
        let entry = entry.expect("an entry");
        if entry.size() > 0 {
            let name = entry.path().expect("a name").display().to_string();
            spots.push((name, usize::try_from(entry.raw_file_position() + entry.size() / 2).expect("small")));
        }
    }
    for (name, at) in spots {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&spoiled, &bytes).expect("written");
        let error = backup::verify(&spoiled, Arc::new(Silent)).await.err();
        let error = error.unwrap_or_else(|| panic!("a changed byte in {name} was not seen"));
        assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unavailable), "{name}: {error:?}");
        if name.starts_with("rows/") || name.starts_with("files/") {
            assert!(error.message().contains(&name), "{name}: {error}");
        }
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_newer_program_is_refused_by_name() {
    let (bench, file) = small_backup().await;
    let mut bytes = fs::read(&file).expect("the file");
    let at = bytes.windows(10).position(|text| text == b"\"schema\": ").expect("the manifest says it");
    bytes[at + 10] = b'9';
    fs::write(&file, bytes).expect("written");
    let error = backup::verify(&file, Arc::new(Silent)).await.expect_err("it is newer");
    assert!(error.message().contains("newer program (trainyard ") && error.message().contains("version 9"), "{error}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_cannot_be_written_leaves_nothing() {
    let (bench, file) = small_backup().await;
    let folder = bench.options().data_dir.join("no/such/folder");
    backup::write(bench.options(), &folder.join("b.tar"), NOW, Arc::new(Silent)).await.expect_err("there is no folder");
    execute_at(bench.options(), "drop table environments".into()).await;
    let broken = file.with_file_name("broken.tar");
    backup::write(bench.options(), &broken, NOW, Arc::new(Silent)).await.expect_err("a table is missing");
    let left: Vec<_> = fs::read_dir(&bench.options().data_dir).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("broken")), "{left:?}");
    let nothing = StoreOptions { data_dir: folder.clone(), ..bench.options().clone() };
    let error = backup::write(&nothing, &file, NOW, Arc::new(Silent)).await.expect_err("there is no server");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    bench.close().await;
}
