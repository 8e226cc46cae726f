//! Things to store, with only what a test is about said by the test.

use std::collections::BTreeMap;

use serde_json::{Map, json};
use trainyard_core::{
    ids::{AttemptId, ExperimentId, ExperimentName, RunId, WorkspaceId, WorkspacePath},
    run::{Cause, Desired, Ownership, Retries, RetryPolicy, RunEvent, RunState, TimelineEntry},
};
use trainyard_store::{
    experiments::Experiment,
    runs::{Created, NewRun, RunRecord},
    transitions::Applied,
    workspaces::Workspace,
};
use uuid::Uuid;

use crate::database::Bench;

/// A rule under which nothing is tried again.
pub(crate) const NO_RETRY: RetryPolicy = RetryPolicy { infrastructure: 0, user_code: 0, backoff_seconds: 0 };

/// When everything here happens, unless said otherwise.
pub(crate) const NOW: i64 = 1_700_000_000_000_000;

impl Bench {
    /// Overwrites the content of a small blob, where it lies, with as many other bytes.
    pub(crate) fn damage(&self, content: &str, with: &str) {
        let packs = std::fs::read_dir(self.options().data_dir.join("blobs/packs")).expect("there are packs");
        let hit = packs.map(|entry| entry.expect("an entry").path()).any(|path| {
            let mut bytes = std::fs::read(&path).expect("it is read");
            let Some(at) = bytes.windows(content.len()).position(|window| window == content.as_bytes()) else { return false };
            bytes[at..at + with.len()].copy_from_slice(with.as_bytes());
            std::fs::write(&path, bytes).expect("damaged");
            true
        });
        assert!(hit, "no pack holds `{content}`");
    }

    /// A workspace.
    pub(crate) async fn workspace(&self) -> WorkspaceId {
        let id = WorkspaceId(Uuid::new_v4());
        let workspace = Workspace { id, path: path(&format!("workspace-{}", self.next())), region: "local".into(), created_us: NOW };
        self.store.create_workspace(&workspace).await.expect("a workspace");
        id
    }

    /// An experiment.
    pub(crate) async fn experiment(&self, workspace: WorkspaceId) -> Experiment {
        let name = format!("experiment-{}", self.next());
        self.store.create_or_get_experiment(&experiment(workspace, &name)).await.expect("an experiment")
    }

    /// A workspace with an experiment.
    pub(crate) async fn place(&self) -> Place {
        let workspace = self.workspace().await;
        Place { workspace, experiment: self.experiment(workspace).await }
    }

    /// Stores a run, which must be new.
    pub(crate) async fn store_run(&self, run: NewRun) -> RunRecord {
        let (workspace, id) = (run.record.workspace, run.record.id.clone());
        match self.store.create_run(run).await.expect("a run") {
            Created::New(_) => self.store.run(workspace, &id).await.expect("a read").expect("the run is there"),
            Created::Existing(run) => panic!("run {} was there already", run.id),
        }
    }

    /// Applies an event that must change the run.
    pub(crate) async fn change(&self, run: &RunRecord, event: RunEvent, at_us: i64) -> RunRecord {
        let name = event.name();
        match self.store.apply(run.workspace, &run.id, &event, at_us).await.expect("an answer") {
            Applied::Changed(run) => *run,
            other => panic!("{name} did not change the run: {other:?}"),
        }
    }

    /// Takes a managed run through an attempt to its end.
    pub(crate) async fn execute(&self, run: &RunRecord, cause: Cause) -> RunRecord {
        let attempt = AttemptId(Uuid::new_v4());
        self.change(run, RunEvent::Admitted { attempt }, NOW + 1).await;
        self.change(run, RunEvent::Started { attempt }, NOW + 2).await;
        self.change(run, RunEvent::Ended { attempt, cause }, NOW + 3).await;
        self.change(run, RunEvent::Finalized { attempt, policy: NO_RETRY }, NOW + 4).await
    }
}

/// Where runs go.
pub(crate) struct Place {
    pub(crate) workspace: WorkspaceId,
    pub(crate) experiment: Experiment,
}

impl Place {
    /// A managed, queued run for `cpu-cluster`.
    pub(crate) fn run(&self, id: &str) -> NewRun {
        new_run(self.workspace, &self.experiment, id)
    }

    /// The same, changed.
    pub(crate) fn run_with(&self, id: &str, change: impl FnOnce(&mut RunRecord)) -> NewRun {
        let mut run = self.run(id);
        change(&mut run.record);
        run
    }
}

pub(crate) fn path(name: &str) -> WorkspacePath {
    WorkspacePath { subscription_id: "Subscription".into(), resource_group: "Group".into(), workspace_name: name.into() }
}

pub(crate) fn experiment(workspace: WorkspaceId, name: &str) -> Experiment {
    Experiment {
        id: ExperimentId(Uuid::new_v4()),
        workspace,
        name: ExperimentName::new(name).expect("a name"),
        description: None,
        tags: BTreeMap::new(),
        created_us: NOW,
        archived_us: None,
        latest_run_id: None,
        latest_run_created_us: None,
    }
}

pub(crate) fn run_id(id: &str) -> RunId {
    RunId::new(id).expect("a run id")
}

/// Texts of a map: `None` is a key without a value.
pub(crate) fn texts(pairs: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<String>> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect()
}

fn new_run(workspace: WorkspaceId, experiment: &Experiment, id: &str) -> NewRun {
    let record = RunRecord {
        workspace,
        id: run_id(id),
        uuid: Uuid::new_v4(),
        number: 0,
        experiment: experiment.id,
        experiment_name: experiment.name.clone(),
        parent: None,
        root: run_id(id),
        ownership: Ownership::Managed,
        state: RunState::Queued,
        desired: Desired::Run,
        version: 0,
        attempt: None,
        cause: None,
        created_us: NOW,
        started_us: None,
        ended_us: None,
        priority: 0,
        target: Some("cpu-cluster".into()),
        name: None,
        display_name: None,
        description: None,
        run_type: None,
        script_name: None,
        cancel_reason: None,
        cancelled_by: None,
        silent: false,
        retries: Retries::default(),
        not_before_us: None,
        hidden: false,
        created_by: json!({ "userObjectId": "me", "userTenantId": "tenant", "userName": "Me" }),
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
    };
    NewRun { record, first_event: TimelineEntry::run("Queued", json!({})), snapshot: None, slots: 1 }
}
