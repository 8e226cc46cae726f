//! The reconcilers, one file each. Each takes no input but the store and the executors, so that the path after a crash is the path
//! of every second.

mod admit;
mod attempts;
mod janitor;
mod order;

use std::{collections::HashMap, sync::Arc, time::Instant};

use trainyard_core::ids::AttemptId;

use crate::engine::{EngineOptions, Shared};

/// The state that passes keep between rounds: nothing that a restart would miss.
pub(crate) struct Passes {
    options: EngineOptions,
    shared: Arc<Shared>,
    /// Attempts whose living agent was told the server's present endpoint and token.
    refreshed: HashMap<AttemptId, Instant>,
    swept: Option<Instant>,
}

impl Passes {
    pub(crate) fn new(options: EngineOptions, shared: Arc<Shared>) -> Self {
        Self { options, shared, refreshed: HashMap::new(), swept: None }
    }

    /// One round of every pass. A pass that fails is logged and tried again in the next round.
    pub(crate) async fn run_all(&mut self) {
        if let Err(error) = self.admit().await {
            tracing::error!(error = error.chain(), "admitting runs failed; trying again");
        }
        if let Err(error) = self.attempts().await {
            tracing::error!(error = error.chain(), "reconciling attempts failed; trying again");
        }
        if let Err(error) = self.janitor().await {
            tracing::error!(error = error.chain(), "sweeping failed; trying again");
        }
    }
}
