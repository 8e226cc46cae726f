//! Tells whoever waits for one run that something about it changed.
//!
//! A touch carries nothing: the waiter reads the store again. So a lost touch costs at most one timer interval, and there is no second
//! path for what a touch might have said.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use trainyard_core::ids::{RunId, WorkspaceId};

/// A run, addressed across workspaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunKey {
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// Its id there.
    pub run: RunId,
}

impl RunKey {
    /// The key of `run` in `workspace`.
    pub fn new(workspace: WorkspaceId, run: &RunId) -> Self {
        Self { workspace, run: run.clone() }
    }
}

/// Waiters by run. Entries exist only while somebody waits.
#[derive(Clone, Default)]
pub(crate) struct Hub {
    runs: Arc<Mutex<HashMap<RunKey, watch::Sender<u64>>>>,
}

impl Hub {
    /// Wakes everyone who waits for `run`, and forgets the entry once nobody does.
    pub(crate) fn touch(&self, run: &RunKey) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = runs.get(run) else { return };
        if sender.receiver_count() == 0 {
            runs.remove(run);
        } else {
            sender.send_modify(|count| *count += 1);
        }
    }

    /// From now on [`Subscription::changed`] resolves for each touch (several touches in a row may resolve it once).
    pub(crate) fn subscribe(&self, run: &RunKey) -> Subscription {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.len() > 1024 {
            runs.retain(|_, sender| sender.receiver_count() > 0);
        }
        let sender = runs.entry(run.clone()).or_insert_with(|| watch::channel(0).0);
        Subscription { receiver: sender.subscribe() }
    }
}

/// One waiter.
pub struct Subscription {
    receiver: watch::Receiver<u64>,
}

impl Subscription {
    /// Resolves at the next touch after subscribing, or after the last time this resolved.
    pub async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            // The entry was dropped because nobody seemed to wait; the caller's timer takes over.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(name: &str) -> RunKey {
        RunKey::new(WorkspaceId(Uuid::from_u128(1)), &RunId::new(name).unwrap())
    }

    #[tokio::test]
    async fn a_touch_between_subscribing_and_waiting_is_not_lost() {
        let hub = Hub::default();
        let mut subscription = hub.subscribe(&key("a"));
        hub.touch(&key("a"));
        subscription.changed().await;
    }

    #[tokio::test]
    async fn a_touch_wakes_only_its_own_run_and_entries_go_away() {
        let hub = Hub::default();
        let mut a = hub.subscribe(&key("a"));
        let b = hub.subscribe(&key("b"));
        hub.touch(&key("b"));
        assert!(futures_util::FutureExt::now_or_never(a.changed()).is_none());
        drop((a, b));
        hub.touch(&key("a"));
        hub.touch(&key("b"));
        assert!(hub.runs.lock().unwrap().is_empty());
    }
}
