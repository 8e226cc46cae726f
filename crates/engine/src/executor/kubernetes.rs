//! Kubernetes, through its API: an attempt is an (indexed) Job named after it, with a Secret that holds its order.
//!
//! [`client`] speaks to the cluster, [`view`] and [`watch`] keep a picture of all Jobs and pods, [`manifest`] and [`template`] write documents,
//! [`submission`] hands them in, [`pods`], [`reason`] and [`ending`] say what is seen, [`tick`] does what is due. This file puts them together.
//!
//! Nothing of an attempt is on this machine. What its agent had not delivered when its pod went is lost; so the agent delivers its own end, and the
//! engine only says what it could not.
//!
//! Invariant: no pod begins without its Secret, no Secret outlives its Job, and a pod that had begun is not replaced by another one. So an
//! answer that got lost, or a Job that appears late, is never a reason for a second execution.

mod check;
mod client;
mod documents;
mod ending;
mod jobs;
mod manifest;
mod nodes;
mod observe;
mod pods;
mod reason;
mod submission;
mod target;
mod template;
mod tick;
mod view;
mod watch;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};
use trainyard_core::{
    Error, Result,
    definition::Definition,
    ids::{AttemptId, ComputeName},
    run::Cause,
};
use trainyard_wire::native::AttemptOrder;
use uuid::Uuid;

pub use self::{
    client::KubernetesSettings,
    manifest::CACHE,
    target::{KubernetesTarget, Volume, read_template},
};
use self::{
    client::{Api, Failure},
    jobs::{Jobs, Stop},
    manifest::Plan,
    nodes::Nodes,
    submission::SECRETS,
    view::{Kind, View},
};
use super::{Executor, Machine, Observation, asking::Checks, ticking::Ticking};

/// Attempts that are handed in at once.
const SENDING: usize = 8;

/// How long a first picture is waited for: for a pass it is better than none.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// How soon pods that are given up must end; 0 would only take them off the books.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Runs attempts as Kubernetes Jobs.
pub struct KubernetesExecutor {
    inner: Arc<Inner>,
    watches: Mutex<JoinSet<()>>,
}

struct Inner {
    server: String,
    targets: BTreeMap<ComputeName, KubernetesTarget>,
    api: Api,
    jobs: Jobs,
    view: View,
    nodes: Nodes,
    checks: Checks<String>,
    sending: Semaphore,
    ticking: Ticking,
}

impl KubernetesExecutor {
    /// `server` tells this server's objects from those of others in the namespace, and stays the same as long as its data does; `targets` are the compute
    /// targets on this cluster. Nothing is asked of the cluster yet.
    pub fn new(settings: &KubernetesSettings, server: Uuid, targets: BTreeMap<ComputeName, KubernetesTarget>) -> Self {
        let server = server.to_string();
        let inner = Inner {
            targets,
            api: Api::new(settings.clone()),
            jobs: Jobs::default(),
            view: View::new(&server),
            nodes: Nodes::default(),
            checks: Checks::default(),
            sending: Semaphore::new(SENDING),
            ticking: Ticking::default(),
            server,
        };
        Self { inner: Arc::new(inner), watches: Mutex::default() }
    }

    /// Watches begin with the first look.
    fn watch(&self) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        if watches.is_empty() {
            for kind in Kind::ALL {
                watches.spawn(watch::follow(Arc::clone(&self.inner), kind));
            }
        }
    }
}

impl Inner {
    /// How a run goes into a pod.
    fn plan<'a>(&'a self, definition: &'a Definition) -> Result<Plan<'a>> {
        let target = self.targets.get(&definition.target);
        let target = target.ok_or_else(|| Error::invalid(format!("target `{}` is not on this cluster", definition.target)))?;
        Plan::new(target, definition)
    }

    /// Waits for the first picture, unless Kubernetes has already not answered.
    async fn first_look(&self) {
        if self.view.snapshot().is_none() && self.view.trouble().is_none() {
            let _ = tokio::time::timeout(FIRST_LOOK, self.view.fresh(&self.api, Instant::now())).await;
        }
    }

    /// Lays `document` over the Secret of an attempt, if there is one.
    async fn change_secret(&self, attempt: AttemptId, document: &Value) -> Result<()> {
        match self.api.merge(&secret_path(attempt), document).await {
            Err(failure) if failure.code() == Some(404) => Ok(()),
            result => result.map_err(|failure| unanswered("the order of the attempt cannot be changed", &failure)),
        }
    }

    async fn order(&self, attempt: AttemptId) -> Result<Option<AttemptOrder>> {
        match self.api.get::<Value>(&secret_path(attempt)).await {
            Ok(secret) => Ok(manifest::read_order(&secret)),
            Err(failure) if failure.code() == Some(404) => Ok(None),
            Err(failure) => Err(unanswered("the order of the attempt cannot be read", &failure)),
        }
    }

    async fn fence(&self, attempt: AttemptId) -> Result<()> {
        let failed = |failure: Failure| unanswered("what is left of the attempt cannot be ended", &failure);
        // In this order: without its Job nothing makes another pod.
        self.remove(attempt).await.map_err(failed)?;
        self.end_pods(attempt, AT_ONCE).await.map_err(failed)
    }

    async fn clean(&self, attempt: AttemptId) -> Result<()> {
        let there = self.view.snapshot().is_some_and(|snapshot| snapshot.job(attempt).is_some());
        if there {
            return self.remove(attempt).await.map_err(|failure| unanswered("what is left of the attempt cannot be removed", &failure));
        }
        self.jobs.forget(attempt);
        Ok(())
    }
}

fn secret_path(attempt: AttemptId) -> String {
    format!("{SECRETS}/{}", manifest::name(attempt))
}

fn unanswered(what: &str, failure: &Failure) -> Error {
    Error::internal(format!("{what}: Kubernetes says: {}", failure.words()))
}

impl Executor for KubernetesExecutor {
    fn check<'a>(&'a self, definition: &'a Definition) -> BoxFuture<'a, Result<Option<String>>> {
        self.inner.check(definition).boxed()
    }

    /// Busy are those with pods of this server: others' it does not see.
    fn machines<'a>(&'a self, target: &'a ComputeName) -> BoxFuture<'a, Result<Option<Vec<Machine>>>> {
        async move {
            let Some(settings) = self.inner.targets.get(target) else { return Ok(None) };
            let busy = self.inner.view.snapshot().map(|snapshot| snapshot.nodes()).unwrap_or_default();
            Ok(self.inner.nodes.machines(&self.inner.api, &settings.wish.node_selector, (&busy, &settings.gpu_resource)).await)
        }
        .boxed()
    }

    fn look(&self) {
        self.watch();
        tick::begin(&self.inner);
    }

    fn explain(&self, attempt: AttemptId) -> BoxFuture<'_, Option<Cause>> {
        self.inner.explain(attempt).boxed()
    }

    fn submit<'a>(&'a self, order: &'a AttemptOrder) -> BoxFuture<'a, Result<()>> {
        async move {
            self.inner.first_look().await;
            submission::submit(&self.inner, order)
        }
        .boxed()
    }

    fn refresh<'a>(&'a self, order: &'a AttemptOrder) -> BoxFuture<'a, Result<()>> {
        async move {
            let attempt = AttemptId(order.attempt);
            self.inner.change_secret(attempt, &json!({ "data": manifest::notes(order)? })).await
        }
        .boxed()
    }

    fn order(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Option<AttemptOrder>>> {
        self.inner.order(attempt).boxed()
    }

    fn observe(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Observation>> {
        async move {
            self.inner.first_look().await;
            Ok(self.inner.observe(attempt))
        }
        .boxed()
    }

    /// The agent hears it from the server. What has no agent is removed at the next look, and one that does not hear is told by Kubernetes.
    fn stop<'a>(&'a self, attempt: AttemptId, by: &'a str, why: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        async move {
            self.inner.jobs.note(attempt, |known| {
                let stop = || Stop { since: Instant::now(), by: by.to_owned(), why: why.map(str::to_owned), told: None };
                known.stop.get_or_insert_with(stop);
            });
            tick::begin(&self.inner);
            Ok(())
        }
        .boxed()
    }

    fn redeliver(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        async move {
            self.inner.first_look().await;
            if self.inner.view.snapshot().is_some_and(|snapshot| snapshot.job(attempt).is_some_and(documents::Job::is_over)) {
                self.inner.jobs.note(attempt, |known| known.undelivered = true);
                return Ok(());
            }
            // A value that it never had before: the agent looks whether it has changed.
            let wish = json!({ "stringData": { manifest::AGAIN_KEY: Uuid::new_v4().to_string() } });
            self.inner.change_secret(attempt, &wish).await
        }
        .boxed()
    }

    fn fence(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        self.inner.fence(attempt).boxed()
    }

    fn clean(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        self.inner.clean(attempt).boxed()
    }

    /// Empty as long as Kubernetes has not answered: one cluster that is away keeps no other target from being served.
    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<AttemptId>>> {
        async move {
            self.look();
            if self.inner.view.trouble().is_none() {
                let _ = tokio::time::timeout(FIRST_LOOK, self.inner.view.fresh(&self.inner.api, Instant::now())).await;
            }
            Ok(self.inner.view.snapshot().map(|snapshot| snapshot.attempts()).unwrap_or_default())
        }
        .boxed()
    }
}
