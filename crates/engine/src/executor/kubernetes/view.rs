//! All Jobs and pods of this server, as Kubernetes last listed them.
//!
//! A watch only says that there is something new; what is true is what a list says. So a watch that breaks, skips or repeats costs a list and
//! nothing else: as long as none is open, lists are asked for as if there were news all the time.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use trainyard_core::ids::AttemptId;

use super::{
    client::{Api, Failure},
    documents::{Job, List, MANAGED_BY, Pod, SERVER_LABEL},
};

/// Lists begin at least this long after the one before, however much is new.
const INTERVAL: Duration = Duration::from_secs(1);

/// And so many times as long as that one took: a cluster that is slow is not asked all the time.
const REST: u32 = 5;

/// Without news a list is asked for all the same after this.
const RESYNC: Duration = Duration::from_secs(30);

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Jobs,
    Pods,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Jobs, Self::Pods];

    /// Where they are; `{}` stands for the namespace.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Jobs => "/apis/batch/v1/namespaces/{}/jobs",
            Self::Pods => "/api/v1/namespaces/{}/pods",
        }
    }
}

/// All there is, at one time.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// When it was asked for.
    pub(super) began: Instant,
    jobs: HashMap<AttemptId, Job>,
    pods: HashMap<AttemptId, Vec<Pod>>,
}

impl Snapshot {
    pub(super) fn job(&self, attempt: AttemptId) -> Option<&Job> {
        self.jobs.get(&attempt)
    }

    /// The pods of an attempt, older ones first.
    pub(super) fn pods(&self, attempt: AttemptId) -> &[Pod] {
        self.pods.get(&attempt).map_or(&[], Vec::as_slice)
    }

    /// Nodes with pods that are not over.
    pub(super) fn nodes(&self) -> BTreeSet<String> {
        let there = self.pods.values().flatten().filter(|pod| !pod.is_over());
        there.filter_map(|pod| pod.spec.node_name.clone()).collect()
    }

    pub(super) fn attempts(&self) -> Vec<AttemptId> {
        self.jobs.keys().copied().collect()
    }
}

#[derive(Default)]
struct Known {
    snapshot: Option<Arc<Snapshot>>,
    /// Of the last lists, for the watches to begin at.
    versions: [Option<String>; 2],
    /// What Kubernetes said last, or why it does not answer.
    trouble: Option<String>,
    /// When the last list ended, and how long it took.
    listed: Option<(Instant, Duration)>,
}

/// What is known of the namespace.
pub(super) struct View {
    selector: String,
    known: Mutex<Known>,
    asking: tokio::sync::Mutex<()>,
    news: AtomicBool,
    watching: [AtomicBool; 2],
    /// A list has come in.
    listed: Notify,
}

impl View {
    /// `server` is what this server's objects are labelled with.
    pub(super) fn new(server: &str) -> Self {
        let (key, value) = MANAGED_BY;
        Self {
            selector: format!("{}%3D{value}%2C{SERVER_LABEL}%3D{server}", key.replace('/', "%2F")),
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            news: AtomicBool::new(true),
            watching: Default::default(),
            listed: Notify::new(),
        }
    }

    /// The last list.
    pub(super) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.lock().snapshot.clone()
    }

    /// Why Kubernetes does not answer, if it does not.
    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Something is new, or may be.
    pub(super) fn mark(&self) {
        self.news.store(true, Ordering::Release);
    }

    /// Notes whether a watch is open.
    pub(super) fn set_watching(&self, kind: Kind, open: bool) {
        self.watching[kind as usize].store(open, Ordering::Release);
    }

    /// Where a watch begins. Waits for a list, if what the last one said is of no use any more.
    pub(super) async fn version(&self, kind: Kind) -> String {
        loop {
            let listed = self.listed.notified();
            if let Some(version) = self.lock().versions[kind as usize].clone() {
                return version;
            }
            listed.await;
        }
    }

    /// Kubernetes does not remember what was new since then.
    pub(super) fn forget_version(&self, kind: Kind) {
        self.lock().versions[kind as usize] = None;
        self.mark();
    }

    /// The address of a watch.
    pub(super) fn watch_path(&self, kind: Kind, version: &str, timeout: Duration) -> String {
        format!("{}?watch=1&labelSelector={}&resourceVersion={version}&timeoutSeconds={}", kind.path(), self.selector, timeout.as_secs())
    }

    /// Asks for a list, if there is news, none is watched for, or the last one is old.
    pub(super) async fn look(&self, api: &Api) {
        let blind = self.watching.iter().any(|open| !open.load(Ordering::Acquire));
        let due = match self.lock().listed {
            None => true,
            Some((at, took)) => {
                let rest = INTERVAL.max(took * REST).min(RESYNC);
                at.elapsed() >= rest && (blind || self.news.load(Ordering::Acquire) || at.elapsed() >= RESYNC)
            }
        };
        if due {
            // Somebody who lists already does it for all.
            if let Ok(_turn) = self.asking.try_lock() {
                let _ = self.list(api).await;
            }
        }
    }

    /// A list that was asked for after `after`.
    pub(super) async fn fresh(&self, api: &Api, after: Instant) -> Result<Arc<Snapshot>, String> {
        let _turn = self.asking.lock().await;
        // Somebody else may have asked while this one waited.
        if let Some(snapshot) = self.snapshot().filter(|snapshot| snapshot.began > after) {
            return Ok(snapshot);
        }
        self.list(api).await
    }

    async fn list(&self, api: &Api) -> Result<Arc<Snapshot>, String> {
        let began = Instant::now();
        // Before the question: what is new while it is answered is news.
        self.news.store(false, Ordering::Release);
        let answer = async {
            // In this order: a pod without its job would be nobody's.
            let pods: List<Pod> = self.all(api, Kind::Pods).await?;
            let jobs: List<Job> = self.all(api, Kind::Jobs).await?;
            Ok::<_, Failure>((jobs, pods))
        };
        let answer = answer.await;
        let mut known = self.lock();
        known.listed = Some((Instant::now(), began.elapsed()));
        let result = match answer {
            Ok((jobs, pods)) => {
                known.versions = [Some(jobs.metadata.resource_version.clone()), Some(pods.metadata.resource_version.clone())];
                let snapshot = Arc::new(snapshot(began, jobs, pods));
                if known.trouble.take().is_some() {
                    tracing::info!("Kubernetes answers again");
                }
                known.snapshot = Some(Arc::clone(&snapshot));
                Ok(snapshot)
            }
            Err(failure) => {
                let words = failure.words().to_owned();
                if known.trouble.is_none() {
                    tracing::warn!(error = words, "Kubernetes does not answer; attempts stay as they are");
                }
                known.trouble = Some(words.clone());
                self.mark();
                Err(words)
            }
        };
        drop(known);
        self.listed.notify_waiters();
        result
    }

    async fn all<T: DeserializeOwned>(&self, api: &Api, kind: Kind) -> Result<List<T>, Failure> {
        api.get(&format!("{}?labelSelector={}", kind.path(), self.selector)).await
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn snapshot(began: Instant, jobs: List<Job>, pods: List<Pod>) -> Snapshot {
    let jobs = jobs.items.unwrap_or_default().into_iter();
    let mut by_attempt: HashMap<AttemptId, Vec<Pod>> = HashMap::new();
    for pod in pods.items.unwrap_or_default() {
        if let Some(attempt) = pod.metadata.attempt() {
            by_attempt.entry(attempt).or_default().push(pod);
        }
    }
    for pods in by_attempt.values_mut() {
        pods.sort_by(|a, b| (&a.metadata.creation_timestamp, &a.metadata.name).cmp(&(&b.metadata.creation_timestamp, &b.metadata.name)));
    }
    Snapshot { began, jobs: jobs.filter_map(|job| Some((job.metadata.attempt()?, job))).collect(), pods: by_attempt }
}
