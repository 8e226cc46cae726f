//! How many runs a second can be created durably, and what one costs in processor time.
//!
//! ```text
//! cargo run --release -p trainyard-store --example create_rate -- [DATABASE] [CALLERS] [SECONDS]
//! ```
//!
//! DATABASE is `sqlite` (the default, in a folder under the current one, whose disk is what is measured) or a `postgres://` URL.
//! Then it reads and lists, to show what a table of that size costs a reader.

#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Map, json};
use trainyard_core::{
    definition::{Definition, Entry, Framework, History},
    environment::EnvironmentSpec,
    filter::{Direction, OrderBy, OrderField},
    ids::{ComputeName, Digest, ExperimentId, ExperimentName, RunId, WorkspaceId, WorkspacePath},
    run::{Desired, Ownership, Retries, RetryWish, RunState, TimelineEntry},
};
use trainyard_store::{
    PageRequest, Store, StoreOptions,
    experiments::Experiment,
    runs::{Hidden, NewRun, NewSnapshot, RunQuery, RunRecord},
    workspaces::Workspace,
};
use uuid::Uuid;

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let database = arguments.next().unwrap_or_else(|| "sqlite".into());
    let callers: usize = arguments.next().map_or(Ok(32), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let folder = tempfile::tempdir_in(".")?;
    let store = Store::open(&StoreOptions { database, blobs: "file".into(), data_dir: folder.path().to_owned() }).await?;
    let place = place(&store).await?;

    let mut latencies = create(&store, &place, callers, Duration::from_secs(seconds)).await?;
    report("created", &mut latencies.0, latencies.1);
    let mut reads = read(&store, &place, latencies.0.len()).await?;
    report("read", &mut reads.0, reads.1);
    let mut lists = list(&store, &place).await?;
    report("first pages of 100 listed", &mut lists.0, lists.1);
    store.close().await;
    Ok(())
}

/// Latencies and what they took together.
type Measured = (Vec<Duration>, Spent);

struct Spent {
    wall: Duration,
    processor: Duration,
}

fn report(what: &str, latencies: &mut [Duration], spent: Spent) {
    latencies.sort_unstable();
    let count = latencies.len();
    let at = |share: f64| latencies[((count - 1) as f64 * share) as usize];
    println!(
        "{count} runs {what} in {:.2?}: {:.0}/s, median {:.2?}, p99 {:.2?}, worst {:.2?}; processor {:.0} us each, {:.2} cores",
        spent.wall,
        count as f64 / spent.wall.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0),
        spent.processor.as_micros() as f64 / count as f64,
        spent.processor.as_secs_f64() / spent.wall.as_secs_f64(),
    );
}

async fn create(store: &Store, place: &Arc<RunRecord>, callers: usize, time: Duration) -> Result<Measured, Failure> {
    let next = Arc::new(AtomicU64::new(0));
    let (began, processor) = (Instant::now(), processor_time());
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let (store, place, next) = (store.clone(), Arc::clone(place), Arc::clone(&next));
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while began.elapsed() < time {
                    let run = new_run(&place, next.fetch_add(1, Ordering::Relaxed))?;
                    let sent = Instant::now();
                    store.create_run(run).await?;
                    latencies.push(sent.elapsed());
                }
                Ok::<_, trainyard_core::Error>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for caller in callers {
        latencies.extend(caller.await??);
    }
    Ok((latencies, Spent { wall: began.elapsed(), processor: processor_time() - processor }))
}

async fn read(store: &Store, place: &RunRecord, runs: usize) -> Result<Measured, Failure> {
    let (began, processor) = (Instant::now(), processor_time());
    let mut latencies = Vec::new();
    for n in 0..2000 {
        let id = RunId::new(format!("run_{}", n * 7919 % runs))?;
        let asked = Instant::now();
        store.run(place.workspace, &id).await?;
        latencies.push(asked.elapsed());
    }
    Ok((latencies, Spent { wall: began.elapsed(), processor: processor_time() - processor }))
}

async fn list(store: &Store, place: &RunRecord) -> Result<Measured, Failure> {
    let query = RunQuery {
        workspace: place.workspace,
        experiment: Some(place.experiment),
        parent: None,
        filter: None,
        order: OrderBy { field: OrderField::StartTimeUtc, direction: Direction::Descending },
        hidden: Hidden::Exclude,
        page: PageRequest::first(100),
    };
    let (began, processor) = (Instant::now(), processor_time());
    let mut latencies = Vec::new();
    for _ in 0..100 {
        let asked = Instant::now();
        store.list_runs(&query).await?;
        latencies.push(asked.elapsed());
    }
    Ok((latencies, Spent { wall: began.elapsed(), processor: processor_time() - processor }))
}

/// What this process used so far, all threads together.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// A workspace, an experiment, and a run in them to copy: what a `startrun` of the usual size stores.
async fn place(store: &Store) -> Result<Arc<RunRecord>, Failure> {
    let workspace = WorkspaceId(Uuid::new_v4());
    let path =
        WorkspacePath { subscription_id: Uuid::new_v4().to_string(), resource_group: "group".into(), workspace_name: "workspace".into() };
    store.create_workspace(&Workspace { id: workspace, path, region: "local".into(), created_us: 0 }).await?;
    let experiment = Experiment {
        id: ExperimentId(Uuid::new_v4()),
        workspace,
        name: ExperimentName::new("rate")?,
        description: None,
        tags: BTreeMap::new(),
        created_us: 0,
        archived_us: None,
        latest_run_id: None,
        latest_run_created_us: None,
    };
    let experiment = store.create_or_get_experiment(&experiment).await?;
    let definition = Definition {
        entry: Entry::Script { path: "hello.py".into() },
        arguments: vec!["--rate".into(), "0.1".into()],
        target: ComputeName::new("cpu-cluster")?,
        framework: Framework::Python,
        environment: EnvironmentSpec::UserManaged { interpreter_path: "python3".into() },
        environment_variables: BTreeMap::new(),
        max_run_duration_seconds: Some(3600),
        priority: 0,
        history: History::default(),
        container: None,
        retries: RetryWish::default(),
        slurm: Default::default(),
        kubernetes: Default::default(),
        distribution: Default::default(),
        data: Default::default(),
    };
    let id = RunId::new("template")?;
    Ok(Arc::new(RunRecord {
        workspace,
        id: id.clone(),
        uuid: Uuid::nil(),
        number: 0,
        experiment: experiment.id,
        experiment_name: experiment.name,
        parent: None,
        root: id,
        ownership: Ownership::Managed,
        state: RunState::Queued,
        desired: Desired::Run,
        version: 0,
        attempt: None,
        cause: None,
        created_us: 0,
        started_us: None,
        ended_us: None,
        priority: 0,
        target: Some("cpu-cluster".into()),
        name: None,
        display_name: None,
        description: None,
        run_type: Some("azureml.scriptrun".into()),
        script_name: Some("hello.py".into()),
        cancel_reason: None,
        cancelled_by: None,
        silent: false,
        retries: Retries::default(),
        not_before_us: None,
        hidden: false,
        created_by: json!({ "userObjectId": workspace, "userTenantId": workspace, "userName": "create_rate" }),
        properties: [("ContentSnapshotId".to_owned(), Some(Uuid::new_v4().to_string()))].into(),
        tags: BTreeMap::new(),
        extra: Map::new(),
        warnings: Vec::new(),
        error: None,
        snapshot: None,
        definition: Some(definition),
        document: Some(json!({ "Script": "hello.py", "Filler": "x".repeat(1500) })),
        environment: None,
        request_digest: Some(Digest::new("ab".repeat(32))?),
    }))
}

fn new_run(place: &RunRecord, n: u64) -> trainyard_core::Result<NewRun> {
    let id = RunId::new(format!("run_{n}"))?;
    let snapshot = Uuid::new_v4();
    let record = RunRecord {
        id: id.clone(),
        root: id,
        uuid: Uuid::new_v4(),
        created_us: i64::try_from(n).unwrap_or_default(),
        snapshot: Some(snapshot),
        ..place.clone()
    };
    let snapshot = NewSnapshot { id: snapshot, digest: Digest::new("cd".repeat(32))?, size_bytes: 100_000 };
    Ok(NewRun { record, first_event: TimelineEntry::run("Queued", json!({})), snapshot: Some(snapshot), slots: 1 })
}
