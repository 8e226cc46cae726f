//! The reconcilers, one file each. Each takes no input but the store and the executors, so that the path after a crash is the path
//! of every second.

mod admit;
mod adopt;
mod attempts;
mod invariants;
mod janitor;
mod order;
mod sight;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use trainyard_core::ids::AttemptId;

use crate::engine::{EngineOptions, Handle};

/// A round that begins this long after the one before says that the server did not run in between: stopped, suspended or starved.
const AWAY: Duration = Duration::from_secs(5);

/// The state that passes keep between rounds: nothing that a restart would miss.
pub(crate) struct Passes {
    options: EngineOptions,
    handle: Handle,
    /// Attempts whose living agent has the server's present endpoint and a token that holds.
    refreshed: HashMap<AttemptId, Instant>,
    /// Attempts that are to stop: since when that is known here.
    stopping: HashMap<AttemptId, Instant>,
    /// Those of them whose agents were left a note.
    told: HashSet<AttemptId>,
    /// Closed attempts whose agents are still there: since when.
    lingering: HashMap<AttemptId, Instant>,
    swept: Option<Instant>,
    /// When rows that break an invariant were last counted.
    counted: Option<Instant>,
    /// Whether attempts that the rows did not know were taken back.
    adopted: bool,
    round: Instant,
}

impl Passes {
    pub(crate) fn new(options: EngineOptions, handle: Handle) -> Self {
        Self {
            options,
            handle,
            refreshed: HashMap::new(),
            stopping: HashMap::new(),
            told: HashSet::new(),
            lingering: HashMap::new(),
            swept: None,
            counted: None,
            adopted: false,
            round: Instant::now(),
        }
    }

    /// One round of every pass. A pass that fails is logged and tried again in the next round.
    pub(crate) async fn run_all(&mut self) {
        if self.round.elapsed() > AWAY {
            let away_seconds = self.round.elapsed().as_secs();
            tracing::info!(away_seconds, "this server did not run for a while; silence of agents is counted anew");
            self.handle.shared.heartbeats.forgive(Instant::now());
        }
        self.round = Instant::now();
        if !self.adopted {
            if let Err(error) = self.adopt().await {
                return tracing::error!(error = error.chain(), "attempts that are under way could not be looked for; trying again");
            }
            self.adopted = true;
            self.handle.shared.adopted.send_replace(true);
        }
        if let Err(error) = self.admit().await {
            tracing::error!(error = error.chain(), "admitting runs failed; trying again");
        }
        if let Err(error) = self.attempts().await {
            tracing::error!(error = error.chain(), "reconciling attempts failed; trying again");
        }
        if let Err(error) = self.janitor().await {
            tracing::error!(error = error.chain(), "sweeping failed; trying again");
        }
        if let Err(error) = self.invariants().await {
            tracing::error!(error = error.chain(), "counting rows that break an invariant failed; trying again");
        }
    }
}
