//! Nodes: those that Kubernetes does not hear of, asked for one by one and only where a pod shows that something may be wrong with its node; and all of
//! them, for people who want to know what there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    client::Api,
    documents::{List, Node, Pod},
};
use crate::executor::{Machine, MachineState};

/// Nodes under suspicion are asked for this often.
const INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Known {
    lost: BTreeMap<String, String>,
    asked: Option<Instant>,
    /// This server may not ask: said once.
    forbidden: bool,
}

/// How long the list of all nodes holds.
const LISTED: Duration = Duration::from_secs(5);

/// When nodes were listed, and what there was; `None`: this server may not know.
type Listed = (Instant, Option<Vec<Machine>>);

/// What is known of nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    known: Mutex<Known>,
    /// By the selector that they fit.
    listed: tokio::sync::Mutex<BTreeMap<String, Listed>>,
}

impl Nodes {
    /// Those that are lost, and Kubernetes' words for it.
    pub(super) fn lost(&self) -> BTreeMap<String, String> {
        self.lock().lost.clone()
    }

    /// The nodes with the labels `selector`; `busy` are those that have pods of this server, and `gpu` is what their GPUs are called. `None`: this
    /// server may not know, or Kubernetes does not say.
    pub(super) async fn machines(
        &self,
        api: &Api,
        selector: &BTreeMap<String, String>,
        (busy, gpu): (&BTreeSet<String>, &str),
    ) -> Option<Vec<Machine>> {
        let pairs: Vec<String> = selector.iter().map(|(key, value)| format!("{}%3D{value}", key.replace('/', "%2F"))).collect();
        let selector = pairs.join("%2C");
        let mut listed = self.listed.lock().await;
        if let Some((_, machines)) = listed.get(&selector).filter(|(at, _)| at.elapsed() < LISTED) {
            return machines.clone();
        }
        let answer = api.get::<List<Node>>(&format!("/api/v1/nodes?labelSelector={selector}")).await;
        let machines = answer.ok().map(|list| {
            let mut machines: Vec<Machine> = list.items.unwrap_or_default().iter().map(|node| machine(node, busy, gpu)).collect();
            machines.sort_by(|a, b| a.name.cmp(&b.name));
            machines
        });
        listed.insert(selector, (Instant::now(), machines.clone()));
        machines
    }

    /// Asks for the nodes of those `pods` that run and are not ready: they have no probe, so that only their node can make them so.
    pub(super) async fn look(&self, api: &Api, pods: impl Iterator<Item = &Pod>) {
        let is_suspect = |pod: &&Pod| pod.status.phase == "Running" && pod.lacks("Ready").is_some() && pod.is_up();
        let suspects: BTreeSet<String> = pods.filter(is_suspect).filter_map(|pod| pod.spec.node_name.clone()).collect();
        {
            let mut known = self.lock();
            known.lost.retain(|node, _| suspects.contains(node));
            if suspects.is_empty() || known.forbidden || known.asked.is_some_and(|at| at.elapsed() < INTERVAL) {
                return;
            }
            known.asked = Some(Instant::now());
        }
        for node in suspects {
            match api.get::<Node>(&format!("/api/v1/nodes/{node}")).await {
                Ok(found) => {
                    let lost = found.lost().map(|condition| format!("{} ({})", condition.message, condition.reason));
                    let mut known = self.lock();
                    match lost {
                        Some(words) => drop(known.lost.insert(node, words)),
                        None => drop(known.lost.remove(&node)),
                    }
                }
                Err(failure) if failure.code() == Some(404) => {
                    self.lock().lost.insert(node, "it was removed from the cluster".to_owned());
                }
                Err(failure) if failure.code() == Some(403) => {
                    tracing::info!(
                        words = failure.words(),
                        "this server may not look at nodes; a lost one is noticed when Kubernetes evicts its pods"
                    );
                    self.lock().forbidden = true;
                    return;
                }
                Err(failure) => tracing::debug!(node, error = failure.words(), "a node could not be looked at"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn machine(node: &Node, busy: &BTreeSet<String>, gpu: &str) -> Machine {
    let (name, amounts) = (node.metadata.name.clone(), &node.status.allocatable);
    let not_ready = node.status.conditions.iter().find(|condition| condition.kind == "Ready" && condition.status != "True");
    let (state, word) = match node {
        _ if !node.is_ready() => {
            let why = not_ready.map(|condition| format!(": {} ({})", condition.message, condition.reason)).unwrap_or_default();
            (MachineState::Unusable, format!("not ready{why}"))
        }
        _ if node.spec.unschedulable => (MachineState::Leaving, "cordoned".to_owned()),
        _ if busy.contains(&name) => (MachineState::Running, "ready".to_owned()),
        _ => (MachineState::Idle, "ready".to_owned()),
    };
    let amount = |what: &str, called: &str| amounts.get(what).map(|amount| format!(", {amount} {called}")).unwrap_or_default();
    Machine { name, state, says: format!("{word}{}{}{}", amount("cpu", "CPUs"), amount("memory", "memory"), amount(gpu, gpu)) }
}
