//! Tells the server what the agent is doing: one report after the other, in order, each repeated until it is answered; and
//! that it is alive when there is nothing else to tell.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};
use trainyard_wire::native::Report;

use super::{client::Client, control::Control};

/// Where reports are handed in.
#[derive(Clone)]
pub(super) struct Reporter {
    queue: mpsc::UnboundedSender<Entry>,
}

struct Entry {
    report: Report,
    answered: Option<oneshot::Sender<()>>,
}

impl Reporter {
    /// Starts the task that sends; it ends when the last handle is dropped or the attempt was given up. After `heartbeat` without a
    /// report the server is told that the agent is alive.
    pub(super) fn start(client: Arc<Client>, control: Arc<Control>, heartbeat: Duration) -> Self {
        // Unbounded: an attempt makes a handful of reports, and the code must not wait for a server that is away.
        let (queue, entries) = mpsc::unbounded_channel();
        tokio::spawn(send_all(client, control, heartbeat, entries));
        Self { queue }
    }

    /// Hands in a report without waiting.
    pub(super) fn tell(&self, report: Report) {
        // Fails only once the attempt was given up: nobody wants to know any more.
        let _ = self.queue.send(Entry { report, answered: None });
    }

    /// Hands in a report; resolves once the server has answered it (or has given the attempt up) and its
    /// instruction was taken over.
    pub(super) async fn deliver(&self, report: Report) {
        let (answered, answer) = oneshot::channel();
        let _ = self.queue.send(Entry { report, answered: Some(answered) });
        let _ = answer.await;
    }
}

async fn send_all(client: Arc<Client>, control: Arc<Control>, heartbeat: Duration, mut entries: mpsc::UnboundedReceiver<Entry>) {
    loop {
        let entry = match tokio::time::timeout(heartbeat, entries.recv()).await {
            Ok(Some(entry)) => entry,
            Ok(None) => return,
            Err(_) => Entry { report: Report::Alive, answered: None },
        };
        match client.report(&entry.report).await {
            Ok(instruction) => control.obey(instruction),
            Err(super::client::Refusal::Abandoned) => return,
            Err(refusal) => tracing::error!(%refusal, "the server refused a report"),
        }
        if let Some(answered) = entry.answered {
            let _ = answered.send(());
        }
    }
}
