//! Looks at every attempt in execution and does what is missing: starts the agent that is not there, asks one to stop, closes
//! the books of one that is done, notes which are silent.
//!
//! What the user's code did is the agent's to say (its exit record decides); this pass only sees to it that there is an agent to say it. An
//! attempt is given up when its executor says that it is gone, or behind a fence; what to do when is in [`super::sight`].

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use trainyard_core::{
    Result,
    ids::AttemptId,
    run::{Cause, Desired, RunEvent, RunState},
};
use trainyard_store::{attempt_nodes::NodePhase, queue::LiveRun, runs::RunWarning, transitions::Applied};

use super::{
    Passes,
    sight::{Limits, Sight, Step, decide, node_count},
};
use crate::{clock::now_us, engine::Target, executor::Observation, heartbeat::Silence, hub::RunKey};

impl Passes {
    pub(super) async fn attempts(&mut self) -> Result<()> {
        let live = self.options.store.runs_in_execution().await?;
        let ids: HashSet<AttemptId> = live.iter().map(|live| live.attempt.id).collect();
        self.refreshed.retain(|attempt, _| ids.contains(attempt));
        self.stopping.retain(|attempt, _| ids.contains(attempt));
        self.told.retain(|attempt| ids.contains(attempt));
        self.handle.shared.heartbeats.keep(&ids);
        self.handle.shared.preparations.keep(&ids);
        self.handle.shared.keep_waits(&ids);
        self.look(&live);
        for live in &live {
            // Looking is work on files; whoever waits for an answer goes first.
            tokio::task::yield_now().await;
            let Some(target) = self.options.targets.iter().find(|target| target.name == live.attempt.target).cloned() else {
                tracing::warn!(run = %live.run, target = %live.attempt.target, "the target of a running attempt is not configured any more; it cannot be observed");
                continue;
            };
            // One attempt that cannot be handled must not keep the others from being.
            if let Err(error) = self.attempt(live, &target).await {
                tracing::error!(run = %live.run, attempt = %live.attempt.id, error = error.chain(), "reconciling an attempt failed; trying again");
            }
        }
        self.handle.shared.set_attended();
        Ok(())
    }

    /// Has every engine that attempts are on look at all of them at once.
    fn look(&self, live: &[LiveRun]) {
        let names: HashSet<_> = live.iter().map(|live| &live.attempt.target).collect();
        for target in self.options.targets.iter().filter(|target| names.contains(&target.name)) {
            target.executor.look();
        }
    }

    /// What is seen of an attempt now, and since when it should have been heard.
    async fn sight(&self, live: &LiveRun, target: &Target) -> Result<Sight> {
        let (attempt, shared) = (live.attempt.id, &self.handle.shared);
        let observation = target.executor.observe(attempt).await?;
        let why = match &observation {
            Observation::Pending { why } => {
                shared.heartbeats.excuse(attempt, Instant::now());
                Some(why.clone())
            }
            _ => None,
        };
        if shared.set_wait(attempt, why) {
            shared.hub.touch(&RunKey::new(live.workspace, &live.run));
        }
        Ok(Sight {
            observation,
            silence: self.silence(live).await?,
            stopping: self.stopping.get(&attempt).map_or(Duration::ZERO, Instant::elapsed),
        })
    }

    /// How long nothing was heard of the quietest node of an attempt. One that has delivered everything has nothing more to say.
    async fn silence(&self, live: &LiveRun) -> Result<Silence> {
        let (key, heartbeats) = ((live.attempt.id, node_count(live)), &self.handle.shared.heartbeats);
        let silence = heartbeats.silence(key, Instant::now());
        if key.1 == 1 || silence.lasts <= self.options.patience.heartbeat_limit {
            return Ok(silence);
        }
        let nodes = self.options.store.attempt_nodes(live.attempt.id).await?;
        for node in nodes.iter().filter(|node| node.node > 0 && node.phase == NodePhase::Collected) {
            heartbeats.done(live.attempt.id, node.node);
        }
        Ok(heartbeats.silence(key, Instant::now()))
    }

    async fn attempt(&mut self, live: &LiveRun, target: &Target) -> Result<()> {
        let attempt = live.attempt.id;
        if live.desired == Desired::Cancel {
            // Whatever is done about it: how long it takes is counted from here.
            self.stopping.entry(attempt).or_insert_with(Instant::now);
        }
        let sight = self.sight(live, target).await?;
        let limits = Limits { patience: self.options.patience, grace: self.options.orders.grace };
        let step = decide(live, &sight, &limits);
        if step != Step::Leave {
            tracing::debug!(run = %live.run, %attempt, ?sight, ?step, "attempt observed");
        }
        match step {
            Step::Leave => {
                self.note_silence(live, sight.silence).await?;
                self.refresh(live, target).await
            }
            Step::Start => {
                let order = self.order(live, target).await?;
                self.refreshed.insert(attempt, Instant::now());
                target.executor.submit(&order).await
            }
            Step::Stop => {
                self.note_silence(live, sight.silence).await?;
                self.refresh(live, target).await?;
                self.stop(live, target).await
            }
            Step::Close(cause) => self.close(live, cause).await,
            Step::GiveUp(cause) => self.give_up(live, cause).await,
            Step::Fence(cause) => {
                tracing::warn!(run = %live.run, %attempt, cause = cause.label(), silent_seconds = sight.silence.lasts.as_secs(), "giving an attempt up");
                if let Err(error) = target.executor.fence(attempt).await {
                    // The row is the fence that counts; this one is to end what can be reached.
                    tracing::warn!(run = %live.run, %attempt, error = error.chain(), "what is left of an attempt could not be ended");
                }
                self.give_up(live, cause).await
            }
            Step::Finalize => self.finalize(live, attempt).await,
        }
    }

    /// Says on the run that its agent is silent, or is not any more.
    async fn note_silence(&mut self, live: &LiveRun, silence: Silence) -> Result<()> {
        let (attempt, limit) = (live.attempt.id, self.options.patience.heartbeat_limit);
        let event = match (silence.lasts > limit, live.silent) {
            (true, false) => {
                RunEvent::Silent { attempt, limit_seconds: limit.as_secs(), node: (node_count(live) > 1).then_some(silence.node) }
            }
            (false, true) => RunEvent::Heard { attempt },
            (true, true) | (false, false) => return Ok(()),
        };
        if let Applied::Changed(_) = self.options.store.apply(live.workspace, &live.run, &event, now_us()).await? {
            tracing::warn!(run = %live.run, %attempt, silent_seconds = silence.lasts.as_secs(), node = silence.node, event = event.name(), "the agent of a run");
            // It may be silent because its order is of no use any more.
            self.refreshed.remove(&attempt);
            self.handle.shared.hub.touch(&RunKey::new(live.workspace, &live.run));
        }
        Ok(())
    }

    /// Once per attempt and server life, and again after a silence: the server may have come back on another port or with another key.
    async fn refresh(&mut self, live: &LiveRun, target: &Target) -> Result<()> {
        let attempt = live.attempt.id;
        if self.refreshed.contains_key(&attempt) {
            return Ok(());
        }
        let settings = &self.options.orders;
        let present = target.executor.order(attempt).await?.filter(|order| {
            order.endpoint == settings.endpoint && order.ca_pem == settings.ca_pem && self.options.tokens.lasts(&order.token)
        });
        if present.is_none() {
            let order = self.order(live, target).await?;
            target.executor.refresh(&order).await?;
        }
        self.refreshed.insert(attempt, Instant::now());
        Ok(())
    }

    /// Leaves the agent a note, once: it hears the same from the server.
    async fn stop(&mut self, live: &LiveRun, target: &Target) -> Result<()> {
        let attempt = live.attempt.id;
        if self.told.contains(&attempt) {
            return Ok(());
        }
        let by = live.cancelled_by.as_deref().unwrap_or("unknown");
        target.executor.stop(attempt, by, live.cancel_reason.as_deref()).await?;
        self.told.insert(attempt);
        Ok(())
    }

    /// The attempt cannot deliver any more. What already arrived is kept; what may be missing is said on the run.
    async fn give_up(&mut self, live: &LiveRun, cause: Cause) -> Result<()> {
        // A cancelled attempt that had not reported yet has nothing to deliver.
        if !matches!(cause, Cause::Cancelled { .. }) || live.state != RunState::Starting {
            let number = live.attempt.number;
            let message = format!("the agent of attempt {number} could not deliver everything: its logs and outputs may be incomplete");
            let warning = RunWarning { source: "trainyard".into(), message };
            self.options.store.add_run_warnings(live.workspace, &live.run, &[warning]).await?;
        }
        self.close(live, cause).await
    }

    async fn close(&mut self, live: &LiveRun, cause: Cause) -> Result<()> {
        let ended = RunEvent::Ended { attempt: live.attempt.id, cause };
        self.options.store.apply(live.workspace, &live.run, &ended, now_us()).await?;
        self.finalize(live, live.attempt.id).await
    }

    async fn finalize(&mut self, live: &LiveRun, attempt: AttemptId) -> Result<()> {
        crate::finalize::finalize(&self.options.store, &self.handle, (live.workspace, &live.run, attempt), now_us()).await
    }
}
