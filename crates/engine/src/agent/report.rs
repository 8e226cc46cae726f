//! Tells the server what the agent is doing: one report after the other, in order, each repeated until it is answered; and
//! that it is alive when there is nothing else to tell.
//!
//! How far a preparation is stands beside the queue and never in it: only the last word counts, it is told once a second at most, and
//! it is given up the moment that there is a real report.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use trainyard_core::environment::Progress;
use trainyard_wire::native::{Instruction, Report};

use super::{
    client::{Client, Refusal},
    control::Control,
};

/// Between two words about progress.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);

/// Where reports are handed in.
#[derive(Clone)]
pub(super) struct Reporter {
    queue: mpsc::UnboundedSender<Entry>,
    progress: watch::Sender<Option<Progress>>,
    node: u32,
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
        let (progress, steps) = watch::channel(None);
        let node = client.node();
        tokio::spawn(Sender { client, control, heartbeat }.send_all(entries, steps));
        Self { queue, progress, node }
    }

    /// Says how far the preparation is; `None`: it is over. What was not sent yet is forgotten.
    pub(super) fn progress(&self, progress: Option<Progress>) {
        if self.node == 0 {
            self.progress.send_replace(progress);
        }
    }

    /// Hands in a report without waiting. How the attempt is, only its first node says; the others tell what they have seen.
    pub(super) fn tell(&self, report: Report) {
        let Some(report) = self.voiced(report) else { return };
        // Fails only once the attempt was given up: nobody wants to know any more.
        let _ = self.queue.send(Entry { report, answered: None });
    }

    /// Hands in a report (see [`Reporter::tell`]); resolves once the server has answered it (or has given the attempt up) and its
    /// instruction was taken over.
    pub(super) async fn deliver(&self, report: Report) {
        let Some(report) = self.voiced(report) else { return };
        let (answered, answer) = oneshot::channel();
        let _ = self.queue.send(Entry { report, answered: Some(answered) });
        let _ = answer.await;
    }
}

impl Reporter {
    fn voiced(&self, report: Report) -> Option<Report> {
        match report {
            report if self.node == 0 => Some(report),
            Report::Warning { message } => Some(Report::Warning { message: format!("node {}: {message}", self.node) }),
            Report::Alive => Some(Report::Alive),
            Report::Preparing { .. }
            | Report::Progress { .. }
            | Report::EnvironmentReady { .. }
            | Report::Started
            | Report::Ended { .. }
            | Report::Collected { .. } => None,
        }
    }
}

/// The task behind the queue.
struct Sender {
    client: Arc<Client>,
    control: Arc<Control>,
    heartbeat: Duration,
}

/// What is to be told next.
enum Due {
    Report(Entry),
    Progress(Progress),
    Nothing,
}

impl Sender {
    async fn send_all(self, mut entries: mpsc::UnboundedReceiver<Entry>, mut steps: watch::Receiver<Option<Progress>>) {
        let mut next_step = Instant::now();
        let mut interrupting = None;
        loop {
            let due = match interrupting.take() {
                Some(entry) => Due::Report(entry),
                None => {
                    tokio::select! {
                        biased;
                        entry = entries.recv() => match entry {
                            Some(entry) => Due::Report(entry),
                            None => return,
                        },
                        step = last_step(&mut steps, next_step) => Due::Progress(step),
                        () = tokio::time::sleep(self.heartbeat) => Due::Nothing,
                    }
                }
            };
            let outcome = match due {
                Due::Report(entry) => {
                    let answer = self.client.report(&entry.report).await;
                    let outcome = self.take(answer);
                    if let (Ok(()), Some(answered)) = (outcome, entry.answered) {
                        let _ = answered.send(());
                    }
                    outcome
                }
                Due::Progress(step) => {
                    next_step = Instant::now() + PROGRESS_PAUSE;
                    let report = Report::Progress { progress: serde_json::to_value(step).unwrap_or_default() };
                    tokio::select! {
                        biased;
                        entry = entries.recv() => match entry {
                            Some(entry) => {
                                interrupting = Some(entry);
                                Ok(())
                            }
                            None => return,
                        },
                        answer = self.client.report(&report) => self.take(answer),
                    }
                }
                Due::Nothing => {
                    let answer = self.client.report(&Report::Alive).await;
                    self.take(answer)
                }
            };
            if outcome.is_err() {
                return;
            }
        }
    }

    /// `Err`: the attempt was given up.
    fn take(&self, answer: Result<Instruction, Refusal>) -> Result<(), ()> {
        match answer {
            Ok(instruction) => self.control.obey(instruction),
            Err(Refusal::Abandoned) => return Err(()),
            Err(refusal) => tracing::error!(%refusal, "the server refused a report"),
        }
        Ok(())
    }
}

/// The last word about progress, not before `not_before`. Cancel-safe.
async fn last_step(steps: &mut watch::Receiver<Option<Progress>>, not_before: Instant) -> Progress {
    tokio::time::sleep_until(not_before).await;
    loop {
        if steps.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Some(step) = steps.borrow_and_update().clone() {
            return step;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_last_word_about_progress_counts_and_not_before_its_time() {
        let (tell, mut steps) = watch::channel(None);
        for done in 0..50 {
            tell.send_replace(Some(Progress::counted("downloading", done, 50, "packages")));
        }
        let begun = Instant::now();
        let step = last_step(&mut steps, begun + Duration::from_millis(50)).await;
        assert_eq!(step.done, 49);
        assert!(begun.elapsed() >= Duration::from_millis(50));
        tell.send_replace(Some(Progress::step("linking")));
        tell.send_replace(None);
        let over = tokio::time::timeout(Duration::from_millis(50), last_step(&mut steps, Instant::now())).await;
        assert!(over.is_err(), "what was over was told");
    }
}
