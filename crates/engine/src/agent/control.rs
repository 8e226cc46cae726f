//! What is wanted of the agent, and how it hears about it: the server's long poll and its answers to reports, notes in the folder, and
//! signals to the agent itself.
//!
//! A demand only ever grows: once stopping, an agent does not go on; once given up, it does nothing more.

use std::{sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::Instant,
};
use trainyard_core::run::Cause;
use trainyard_wire::native::{Command, Instruction};

use super::{client::Client, folder::AttemptFolder};

/// How often notes in the folder are looked for.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);

/// Between two questions to a server that answers at once instead of waiting for news.
const POLL_PAUSE: Duration = Duration::from_secs(2);

/// What is wanted, in rising order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// Go on.
    Continue,
    /// The system ends this agent: stop the code while there is time.
    Terminate,
    /// Another node of the attempt ended badly.
    Leave {
        /// What ended it.
        cause: Cause,
    },
    /// Somebody cancelled the run.
    Cancel {
        /// Who, as far as known.
        by: Option<String>,
        /// Why, if they said so.
        why: Option<String>,
    },
    /// The attempt was given up: stop everything, write nothing more.
    Abandon,
}

impl Demand {
    fn rank(&self) -> u8 {
        match self {
            Self::Continue => 0,
            Self::Terminate => 1,
            Self::Leave { .. } => 2,
            Self::Cancel { .. } => 3,
            Self::Abandon => 4,
        }
    }
}

/// The present demand.
#[derive(Debug)]
pub(super) struct Control {
    demand: watch::Sender<Demand>,
}

impl Control {
    pub(super) fn new() -> Self {
        Self { demand: watch::Sender::new(Demand::Continue) }
    }

    /// Makes `demand` the present one if it is more than the present one.
    pub(super) fn raise(&self, demand: Demand) {
        self.demand.send_if_modified(|present| {
            let more = demand.rank() > present.rank();
            if more {
                tracing::info!(?demand, "new demand");
                *present = demand;
            }
            more
        });
    }

    /// Takes over what the server answered.
    pub(super) fn obey(&self, instruction: Instruction) {
        match instruction.command {
            Command::Continue => {}
            Command::Cancel => self.raise(Demand::Cancel { by: instruction.by, why: instruction.why }),
            Command::Abandon => self.raise(Demand::Abandon),
        }
    }

    /// What is wanted now.
    pub(super) fn now(&self) -> Demand {
        self.demand.borrow().clone()
    }

    /// Resolves once the agent is to stop, with why.
    pub(super) async fn stop_demanded(&self) -> Demand {
        self.wait_for(|demand| *demand != Demand::Continue).await
    }

    /// Resolves once the attempt was given up.
    pub(super) async fn abandoned(&self) {
        self.wait_for(|demand| *demand == Demand::Abandon).await;
    }

    async fn wait_for(&self, wanted: impl FnMut(&Demand) -> bool) -> Demand {
        let mut receiver = self.demand.subscribe();
        // The sender lives in `self`, so the channel can't close while somebody waits.
        receiver.wait_for(wanted).await.map_or(Demand::Abandon, |demand| demand.clone())
    }
}

/// Keeps one question open at the server, from its first answer to something else on (which says what is wanted, too), for ever.
pub(super) async fn listen_to_server(client: Arc<Client>, control: Arc<Control>) {
    client.answered().await;
    loop {
        let asked = Instant::now();
        match client.instruction().await {
            Ok(instruction) => control.obey(instruction),
            Err(refusal) => tracing::warn!(%refusal, "the server did not say what to do"),
        }
        if control.now() == Demand::Abandon {
            return;
        }
        // Answers at once are normal after a cancel; asking again at once would be a storm.
        if asked.elapsed() < POLL_PAUSE {
            tokio::time::sleep(POLL_PAUSE).await;
        }
    }
}

/// Looks for the notes in the folder until the fence is up: a stop does not rule out that the attempt is given up later.
pub(super) async fn watch_notes(folder: AttemptFolder, control: Arc<Control>) {
    loop {
        if folder.is_fenced() {
            return control.raise(Demand::Abandon);
        }
        if let Some(request) = folder.stop_request() {
            control.raise(Demand::Cancel { by: request.by, why: request.why });
        }
        tokio::time::sleep(NOTE_INTERVAL).await;
    }
}

/// Takes TERM and INT to the agent as the system's wish to end it.
pub(super) async fn watch_signals(control: Arc<Control>) {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("signals can not be watched; TERM will kill this agent");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    control.raise(Demand::Terminate);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demand_only_grows() {
        let control = Control::new();
        let cancel = |by: &str| Demand::Cancel { by: Some(by.into()), why: Some("too slow".into()) };
        control.raise(cancel("ada"));
        control.raise(cancel("bob"));
        control.raise(Demand::Terminate);
        assert_eq!(control.now(), cancel("ada"), "the first to ask is named");
        control.obey(Instruction { command: Command::Abandon, by: None, why: None });
        control.obey(Instruction { command: Command::Continue, by: None, why: None });
        assert_eq!(control.now(), Demand::Abandon);
    }
}
