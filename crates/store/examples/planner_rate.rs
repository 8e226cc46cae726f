//! What a pass of the planner costs with a long queue: who holds slots, the heads of the queue, the decision.
//!
//! ```text
//! cargo run --release -p trainyard-store --example planner_rate -- [DATABASE] [RUNS] [USERS] [EXPERIMENTS PER USER]
//! ```
//!
//! DATABASE is `sqlite` (the default, in a folder under the current one) or a `postgres://` URL. Half of the target's 100 slots are free at every pass,
//! and nobody is admitted, so that every pass finds the same queue.

#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Map, json};
use trainyard_core::{
    ids::{ComputeName, ExperimentId, ExperimentName, RunId, WorkspaceId, WorkspacePath},
    plan::{TargetView, is_certain, plan},
    run::{Desired, Ownership, Retries, RunState, TimelineEntry},
};
use trainyard_store::{
    Store, StoreOptions,
    experiments::Experiment,
    queue::FreeSlots,
    runs::{NewRun, RunRecord},
    workspaces::Workspace,
};
use uuid::Uuid;

type Failure = Box<dyn std::error::Error>;

/// Slots of the target, and how many of them are free.
const SLOTS: FreeSlots = FreeSlots { free: 50, all: 100 };

/// Passes that are measured.
const PASSES: usize = 200;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let database = arguments.next().unwrap_or_else(|| "sqlite".into());
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (runs, users, experiments) = (number(10_000)?, number(20)?, number(5)?);
    let folder = tempfile::tempdir_in(".")?;
    let store = Store::open(&StoreOptions { database, blobs: "file".into(), data_dir: folder.path().to_owned() }).await?;
    fill(&store, runs, (users, experiments)).await?;
    let target = ComputeName::new("cpu-cluster")?;
    let mut latencies = Vec::with_capacity(PASSES);
    for _ in 0..PASSES {
        let began = Instant::now();
        pass(&store, &target).await?;
        latencies.push(began.elapsed());
    }
    latencies.sort_unstable();
    let milliseconds = |at: usize| Duration::as_secs_f64(&latencies[at]) * 1000.0;
    let (median, worst) = (milliseconds(PASSES / 2), milliseconds(PASSES * 99 / 100));
    println!("{runs} queued runs of {users} users with {experiments} experiments each: median {median:.2} ms, p99 {worst:.2} ms");
    store.close().await;
    Ok(())
}

/// What the engine does before it writes intents.
async fn pass(store: &Store, target: &ComputeName) -> Result<(), Failure> {
    store.is_drained().await?;
    let busy = store.busy_shares().await?.remove(target).unwrap_or_default();
    let mut depth = 2;
    loop {
        let heads = store.queue_heads(&[(target.clone(), FreeSlots { free: SLOTS.free.min(depth), ..SLOTS })], i64::MAX).await?;
        let view = |(name, queue)| TargetView { name, slots: SLOTS.free, busy: busy.clone(), queue };
        let views: Vec<TargetView> = heads.into_iter().map(view).collect();
        let admissions = plan(&views, i64::MAX);
        if is_certain(&views, &admissions, depth) {
            assert_eq!(admissions.len(), SLOTS.free as usize, "there is always enough to admit");
            return Ok(());
        }
        depth *= 8;
    }
}

async fn fill(store: &Store, runs: usize, (users, experiments): (usize, usize)) -> Result<(), Failure> {
    let workspace = WorkspaceId(Uuid::new_v4());
    let path =
        WorkspacePath { subscription_id: Uuid::new_v4().to_string(), resource_group: "group".into(), workspace_name: "workspace".into() };
    store.create_workspace(&Workspace { id: workspace, path, region: "local".into(), created_us: 0 }).await?;
    let mut places = Vec::new();
    for place in 0..users * experiments {
        let experiment = Experiment {
            id: ExperimentId(Uuid::new_v4()),
            workspace,
            name: ExperimentName::new(format!("experiment_{place}"))?,
            description: None,
            tags: BTreeMap::new(),
            created_us: 0,
            archived_us: None,
            latest_run_id: None,
            latest_run_created_us: None,
        };
        places.push((store.create_or_get_experiment(&experiment).await?, format!("user {}", place % users)));
    }
    for first in (0..runs).step_by(64) {
        let batch = (first..runs.min(first + 64)).map(|n| {
            let (experiment, user) = &places[n % places.len()];
            store.create_run(NewRun {
                record: record(experiment, user, n),
                first_event: TimelineEntry::run("Queued", json!({})),
                snapshot: None,
                slots: 1,
            })
        });
        futures_util::future::try_join_all(batch).await?;
    }
    Ok(())
}

fn record(experiment: &Experiment, user: &str, n: usize) -> RunRecord {
    let id = RunId::new(format!("run_{n}")).expect("letters and digits");
    RunRecord {
        workspace: experiment.workspace,
        id: id.clone(),
        uuid: Uuid::new_v4(),
        number: 0,
        experiment: experiment.id,
        experiment_name: experiment.name.clone(),
        parent: None,
        root: id,
        ownership: Ownership::Managed,
        state: RunState::Queued,
        desired: Desired::Run,
        version: 0,
        attempt: None,
        cause: None,
        created_us: i64::try_from(n).unwrap_or_default(),
        started_us: None,
        ended_us: None,
        priority: i64::try_from(n % 3).unwrap_or_default(),
        target: Some("cpu-cluster".into()),
        name: None,
        display_name: None,
        description: None,
        run_type: Some("azureml.scriptrun".into()),
        script_name: None,
        cancel_reason: None,
        cancelled_by: None,
        silent: false,
        retries: Retries::default(),
        not_before_us: None,
        hidden: false,
        created_by: json!({ "userName": user }),
        properties: BTreeMap::new(),
        tags: BTreeMap::new(),
        extra: Map::new(),
        warnings: Vec::new(),
        error: None,
        snapshot: None,
        definition: None,
        document: None,
        environment: None,
        request_digest: None,
    }
}
