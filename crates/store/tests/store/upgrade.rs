//! Databases of other versions of the server: older ones are brought forward, newer ones refused.

use std::borrow::Cow;

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::SqliteConnectOptions,
};
use trainyard_core::{
    ids::{AttemptId, RunId, WorkspaceId},
    run::{Cause, Desired, RunState},
};
use trainyard_store::{PageRequest, Store, StoreOptions, attempts::AttemptState, backup, progress::Silent};
use uuid::Uuid;

use crate::database::{Bench, Vacancy};

const FIRST: &str = include_str!("../../migrations/0001_initial.sql");

const WORKSPACE: &str = "00000000-0000-4000-8000-000000000001";
const EXPERIMENT: &str = "00000000-0000-4000-8000-0000000000e1";

/// Makes the schema of the first server that was ever released, the way that it did.
async fn first_schema(options: &StoreOptions) {
    let migrator = |text_type: &str, without_rowid: &str| {
        let text = FIRST.replace("{text}", text_type).replace("{without_rowid}", without_rowid);
        let text = AssertSqlSafe(text).into_sql_str();
        Migrator::with_migrations(vec![Migration::new(1, Cow::Borrowed("initial"), MigrationType::Simple, text, false)])
    };
    if options.database == "sqlite" {
        let file = SqliteConnectOptions::new().filename(options.data_dir.join("trainyard.sqlite")).create_if_missing(true);
        let mut conn = file.connect().await.expect("a SQLite file");
        migrator("text", " without rowid").run(&mut conn).await.expect("the first schema");
        sqlx::Connection::close(conn).await.expect("closed");
    } else {
        let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&options.database).await.expect("the PostgreSQL server answers");
        migrator("text collate \"C\"", "").run(&mut conn).await.expect("the first schema");
        sqlx::Connection::close(conn).await.expect("closed");
    }
}

/// One run of the first schema. `more` is `state, desired, attempt, cause, started_us, ended_us, cancel_reason` as they stand in SQL.
fn run(number: u32, ownership: &str, more: &str) -> String {
    format!(
        "insert into runs (workspace, id, uuid, number, experiment, root, ownership, version, created_us, priority, target, hidden, created_by, \
         properties, tags, extra, warnings, snapshot, state, desired, attempt, cause, started_us, ended_us, cancel_reason) values \
         ('{WORKSPACE}', 'run-{number}', '{}', {number}, '{EXPERIMENT}', 'run-{number}', '{ownership}', 3, {number}00, 0, 'local', false, \
         '{{}}', '{{}}', '{{\"a\":\"b\"}}', '{{}}', '[]', '{}', {more});\n",
        uuid(100 + number),
        uuid(7),
    )
}

fn attempt(number: u32, state: &str, more: &str) -> String {
    format!(
        "insert into attempts (id, workspace, run, number, target, state, intended_us, ended_us, cause, node) values \
         ('{}', '{WORKSPACE}', 'run-{number}', 1, 'local', '{state}', {number}10, {more}, 'node');\n",
        uuid(200 + number)
    )
}

fn uuid(number: u32) -> Uuid {
    Uuid::from_u128(u128::from(number))
}

/// Rows of every table, with a run in every state.
async fn first_rows(place: &Vacancy) {
    let attempt_of = |number: u32| format!("'{}'", uuid(200 + number));
    let exit = r#"'{"kind":"exit_code","code":3}'"#;
    let lost = r#"'{"kind":"agent_lost","message":"gone"}'"#;
    let cancelled = r#"'{"kind":"cancelled","by":"ada"}'"#;
    let mut sql = format!(
        "insert into workspaces values ('{WORKSPACE}', 's', 'g', 'w', 's', 'g', 'w', 'local', 1);\n\
         insert into apps values ('{}', 'app', 'hash', '[]', 1, true);\n\
         insert into experiments values ('{WORKSPACE}', '{EXPERIMENT}', 'e', null, '{{}}', 1, null, 9, 'run-9', 900);\n\
         insert into snapshots values ('{WORKSPACE}', '{}', '{}', 3, 1);\n\
         insert into environments values ('{}', '{{}}', '{{}}', 1);\n",
        uuid(3),
        uuid(7),
        "ab".repeat(32),
        "0123456789abcdef0123456789abcdef",
    );
    sql += &run(1, "External", "'NotStarted', 'Run', null, null, null, null, null");
    sql += &run(2, "Managed", "'Queued', 'Run', null, null, null, null, null");
    sql += &run(3, "Managed", &format!("'Starting', 'Run', {}, null, null, null, null", attempt_of(3)));
    sql += &run(4, "Managed", &format!("'Preparing', 'Cancel', {}, null, null, null, 'ada'", attempt_of(4)));
    sql += &run(5, "Managed", &format!("'Running', 'Run', {}, null, 555, null, null", attempt_of(5)));
    sql += &run(6, "Managed", &format!("'Finalizing', 'Run', {}, {exit}, 666, null, null", attempt_of(6)));
    sql += &run(7, "Managed", r#"'Completed', 'Run', null, '{"kind":"completed"}', 777, 778, 'said by a client'"#);
    sql += &run(8, "Managed", &format!("'Failed', 'Run', null, {lost}, 888, 889, null"));
    sql += &run(9, "Managed", &format!("'Canceled', 'Cancel', null, {cancelled}, 999, 1000, 'ada'"));
    for (number, state, more) in [
        (3, "Intended", "null, null"),
        (4, "Intended", "null, null"),
        (5, "Intended", "null, null"),
        (6, "Ended", &*format!("667, {exit}")),
        (7, "Closed", r#"778, '{"kind":"completed"}'"#),
        (8, "Closed", &*format!("889, {lost}")),
        (9, "Closed", &*format!("1000, {cancelled}")),
    ] {
        sql += &attempt(number, state, more);
    }
    for number in 1..=9 {
        sql += &format!("insert into run_documents values ('{WORKSPACE}', 'run-{number}', null, '{{}}');\n");
        sql += &format!("insert into events values ('{WORKSPACE}', 'run-{number}', 1, {number}00, 'Queued', '{{}}');\n");
    }
    sql += &format!("insert into artifacts values ('{WORKSPACE}', 'dcid.run-7', 'outputs/m', 3, '{}', 1, 2);\n", "ab".repeat(32));
    sql += &format!("insert into artifacts values ('{WORKSPACE}', 'dcid.run-5', 'azureml-logs/70_driver_log.txt', 0, null, 1, 2);\n");
    place.execute(&sql).await;
}

async fn everything_reads_right(store: &Store) {
    let workspace: WorkspaceId = WORKSPACE.parse().expect("an id");
    let mut runs = Vec::new();
    for number in 1..=9 {
        let id = RunId::new(format!("run-{number}")).expect("an id");
        runs.push(store.run(workspace, &id).await.expect("a read").expect("the run is there"));
    }
    let states: Vec<RunState> = runs.iter().map(|run| run.state).collect();
    assert_eq!(states, RunState::ALL);
    assert!(runs.iter().all(|run| !run.silent && !run.retries.held && run.not_before_us.is_none() && run.experiment_name.as_str() == "e"));
    let who = |number: usize| (runs[number - 1].cancelled_by.as_deref(), runs[number - 1].cancel_reason.as_deref());
    assert_eq!(who(4), (Some("ada"), None), "who asked stood in the reason");
    assert_eq!(who(9), (Some("ada"), None));
    assert_eq!(who(7), (None, Some("said by a client")), "what a client said stays");
    assert_eq!(runs[8].cause, Some(Cause::Cancelled { by: Some("ada".into()), why: None }));
    assert_eq!(runs[7].cause, Some(Cause::AgentLost { message: "gone".into() }));
    assert_eq!(runs[5].cause, Some(Cause::ExitCode { code: 3 }));
    assert_eq!((runs[4].started_us, runs[6].ended_us), (Some(555), Some(778)));
    let live = store.runs_in_execution().await.expect("a read");
    let live: Vec<_> = live.iter().map(|live| (live.run.as_str(), live.attempt.started_us, live.desired)).collect();
    assert_eq!(
        live,
        [
            ("run-3", None, Desired::Run),
            ("run-4", None, Desired::Cancel),
            ("run-5", Some(555), Desired::Run),
            ("run-6", Some(666), Desired::Run)
        ]
    );
    let attempt = store.attempt(AttemptId(uuid(206))).await.expect("a read").expect("the attempt");
    assert_eq!((attempt.state, attempt.ended_us, attempt.node.as_deref()), (AttemptState::Ended, Some(667), Some("node")));
    let artifact = store.artifact(workspace, "dcid.run-7", "outputs/m").await.expect("a read").expect("the artifact");
    assert_eq!((artifact.size_bytes, artifact.attempt), (3, None));
    assert_eq!(store.list_apps().await.expect("a read").len(), 1);
    assert!(store.snapshot(workspace, uuid(7)).await.expect("a read").is_some());
    assert_eq!(store.events(workspace, &runs[1].id, 0, 9).await.expect("a read").len(), 1);
    let names = store.list_registered_environments(workspace, &PageRequest::default()).await.expect("a list");
    assert!(names.items.is_empty(), "older servers kept none");
    assert_eq!(store.list_environments(&PageRequest::default()).await.expect("a list").items.len(), 1);
    assert!(store.list_environments_used_in(workspace, &PageRequest::default()).await.expect("a list").items.is_empty());
}

pub(crate) async fn a_database_of_the_first_schema_is_brought_forward(bench: &Bench) {
    let old = bench.vacancy().await;
    first_schema(&old.options).await;
    first_rows(&old).await;
    for _ in 0..2 {
        let store = Store::open(&old.options).await.expect("an old database opens");
        everything_reads_right(&store).await;
        assert!(!store.is_drained().await.expect("a read"));
        store.close().await;
    }
    old.close().await;
}

pub(crate) async fn a_database_of_a_newer_server_is_refused(bench: &Bench) {
    let newer = bench.vacancy().await;
    Store::open(&newer.options).await.expect("the store opens").close().await;
    newer
        .execute(
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
             select 99, 'of the future', success, checksum, 0 from _sqlx_migrations where version = 1",
        )
        .await;
    let refused = [
        Store::open(&newer.options).await.err(),
        Store::open_as_is(&newer.options).await.err(),
        backup::write(&newer.options, &newer.options.data_dir.join("b.tar"), 1, std::sync::Arc::new(Silent)).await.err(),
    ];
    for error in refused {
        let message = error.expect("it is refused").to_string();
        assert!(message.contains("has version 99") && message.contains("newer version of the program"), "{message}");
    }
    newer.close().await;
}

pub(crate) async fn an_old_database_is_backed_up_and_restored_forward(bench: &Bench) {
    let old = bench.vacancy().await;
    first_schema(&old.options).await;
    first_rows(&old).await;
    let file = old.options.data_dir.join("old.tar");
    let progress = std::sync::Arc::new(Silent);
    let written = backup::write(&old.options, &file, 1, progress.clone()).await.expect("a backup of what is there");
    assert_eq!(written.manifest.schema, 1);
    let contents = backup::verify(&file, progress.clone()).await.expect("it is whole");
    let place = bench.vacancy().await;
    let restored = backup::restore((&file, &contents), &place.options, backup::Replace::Refuse, 2, progress).await;
    assert_eq!(restored.expect("it is restored").held_runs, 5, "queued to finalizing");
    let store = Store::open(&place.options).await.expect("it opens");
    assert!(store.is_drained().await.expect("a read"));
    let live = store.runs_in_execution().await.expect("a read");
    assert!(live.len() == 4 && live.iter().all(|run| run.retries.held), "{live:?}");
    store.close().await;
    old.close().await;
    place.close().await;
}
