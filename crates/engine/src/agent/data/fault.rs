//! What goes wrong with data, told by who can mend it, and how long is waited for what passes.

use std::{
    cell::Cell,
    fmt, io,
    time::{Duration, Instant},
};

use trainyard_core::run::Cause;

use super::journal::Journal;

/// For how long a place that does not answer is asked again, counted from the last byte that came.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// The first and the longest pause between two tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Why something with data did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The data is not there, or its place says no: another try would end the same way.
    Refused(String),
    /// This machine is in the way: the disk is full, a folder is not mounted.
    Machine(String),
    /// The place does not answer, or broke off: another try may go.
    Passing(String),
}

impl Fault {
    /// A failure to write or read a file of this machine.
    pub(super) fn disk(what: impl fmt::Display, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Machine(format!("{what}: the disk of the node is full")),
            _ => Self::Machine(format!("{what}: {error}")),
        }
    }

    /// Its sentence.
    pub(super) fn message(&self) -> &str {
        match self {
            Self::Refused(message) | Self::Machine(message) | Self::Passing(message) => message,
        }
    }

    /// What it makes of an attempt whose code needs the data that `what` names.
    pub(super) fn into_cause(self, what: &str) -> Cause {
        let message = format!("{what}: {}", self.message());
        match self {
            Self::Refused(_) => Cause::DataFailed { message },
            // On another machine or later it may go.
            Self::Machine(_) | Self::Passing(_) => Cause::StartFailed { message, by_definition: false },
        }
    }
}

/// The farthest that any try of something got, in bytes.
#[derive(Debug, Default)]
pub(super) struct Reached(Cell<u64>);

impl Reached {
    /// A try got to `position`.
    pub(super) fn at(&self, position: u64) {
        self.0.set(self.0.get().max(position));
    }
}

/// Does `work` until it is done or has failed for good. What passes is tried again, ever more seldom, for `patience` after the farthest point.
pub(super) async fn patiently<T>(
    (journal, patience): (&Journal, Duration),
    reached: &Reached,
    mut work: impl AsyncFnMut() -> Result<T, Fault>,
) -> Result<T, Fault> {
    let (mut since, mut before, mut pause) = (Instant::now(), 0, PAUSE.0);
    loop {
        let why = match work().await {
            Err(Fault::Passing(why)) => why,
            ended => return ended,
        };
        if reached.0.get() > before {
            (since, before, pause) = (Instant::now(), reached.0.get(), PAUSE.0);
        }
        if since.elapsed() >= patience {
            return Err(Fault::Passing(format!("{why}; it was tried for {} s", patience.as_secs())));
        }
        journal.line(&format!("{why}; trying again"));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_passes_is_tried_again_as_long_as_something_comes() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("log"));
        let (reached, mut tries) = (Reached::default(), 0);
        // Less than the first pause: only what came makes it go on.
        let patience = PAUSE.0 / 2;
        let result = patiently((&journal, patience), &reached, async || {
            tries += 1;
            reached.at(tries);
            if tries < 3 { Err(Fault::Passing("cut".into())) } else { Ok(tries) }
        });
        assert_eq!(result.await, Ok(3));
    }

    #[tokio::test]
    async fn what_does_not_pass_is_told_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("log"));
        let result: Result<(), Fault> =
            patiently((&journal, Duration::ZERO), &Reached::default(), async || Err(Fault::Passing("gone".into()))).await;
        let cause = result.unwrap_err().into_cause("data `a`");
        assert_eq!(cause.sentence(), "the code could not be started: data `a`: gone; it was tried for 0 s");
        assert!(cause.retry_class().is_some(), "another attempt may find it");
        assert_eq!(Fault::Refused("404".into()).into_cause("data `a`").retry_class(), None);
    }
}
