//! The one place where run states become the status words of this dialect, and back (azureml-wire C.5).
//!
//! The service and its SDK say `Canceled`, the founding document polls for `Cancelled`. Whoever identifies as the SDK hears
//! the first, everyone else the second, so that neither waits for ever.

use std::collections::BTreeMap;

use trainyard_core::{
    Error, ErrorKind, Result,
    ids::RunId,
    run::{Cause, Desired, RunEvent, RunState},
};
use trainyard_store::runs::RunRecord;

use crate::context::CancelSpelling;

/// Whether the agent of a run is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    /// It is, or there is none.
    Heard,
    /// Nothing was heard of it for longer than the heartbeat limit.
    Silent,
}

/// The status word of a run.
pub(crate) fn word_of(run: &RunRecord, spelling: CancelSpelling) -> &'static str {
    word(run.state, run.desired, if run.silent { Voice::Silent } else { Voice::Heard }, spelling)
}

fn word(state: RunState, desired: Desired, voice: Voice, spelling: CancelSpelling) -> &'static str {
    match (state, desired) {
        (RunState::Canceled, _) => canceled(spelling),
        (RunState::Completed, _) => "Completed",
        (RunState::Failed, _) => "Failed",
        (
            RunState::NotStarted | RunState::Queued | RunState::Starting | RunState::Preparing | RunState::Running | RunState::Finalizing,
            Desired::Cancel,
        ) => "CancelRequested",
        (RunState::NotStarted, Desired::Run) => "NotStarted",
        (RunState::Queued, Desired::Run) => "Queued",
        (RunState::Starting | RunState::Preparing | RunState::Running | RunState::Finalizing, Desired::Run) if voice == Voice::Silent => {
            "NotResponding"
        }
        (RunState::Starting, Desired::Run) => "Starting",
        (RunState::Preparing, Desired::Run) => "Preparing",
        (RunState::Running, Desired::Run) => "Running",
        (RunState::Finalizing, Desired::Run) => "Finalizing",
    }
}

fn canceled(spelling: CancelSpelling) -> &'static str {
    match spelling {
        CancelSpelling::Sdk => "Canceled",
        CancelSpelling::Plain => "Cancelled",
    }
}

/// How many runs are in each state, by the names of azureml-wire C.3 `runcounts`; states without runs are 0.
pub(crate) fn counts(found: &[(RunState, i64)]) -> BTreeMap<&'static str, i64> {
    let mut counts: BTreeMap<_, _> = ["provisioning", "notResponding"].into_iter().map(|never| (never, 0)).collect();
    for state in RunState::ALL {
        let name = match state {
            RunState::NotStarted => "notStarted",
            RunState::Queued => "queued",
            RunState::Starting => "starting",
            RunState::Preparing => "preparing",
            RunState::Running => "running",
            RunState::Finalizing => "finalizing",
            RunState::Completed => "completed",
            RunState::Failed => "failed",
            RunState::Canceled => "canceled",
        };
        counts.insert(name, found.iter().filter(|(of, _)| *of == state).map(|(_, count)| count).sum());
    }
    counts
}

/// What a client means that sets the status of a run it executes itself; `None`: the word asks for nothing to happen.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a word that is none of C.5.
pub(crate) fn asked(word: &str, by: &str) -> Result<Option<RunEvent>> {
    let ended = |cause| Ok(Some(RunEvent::ClientEnded { cause }));
    match word.to_ascii_lowercase().as_str() {
        // Steps before the code runs: this server has nothing to do with them on a run that a client executes.
        "notstarted" | "unapproved" | "queued" | "starting" | "provisioning" | "preparing" => Ok(None),
        "running" | "finalizing" | "notresponding" | "pausing" | "paused" => Ok(Some(RunEvent::ClientStarted)),
        "completed" => ended(Cause::Completed),
        "failed" => ended(reported_failure(None)),
        "canceled" | "cancelled" => ended(Cause::Cancelled { by: Some(by.to_owned()), why: None }),
        "cancelrequested" => Ok(Some(RunEvent::CancelRequested { by: by.to_owned(), why: None })),
        _ => Err(Error::invalid(format!(
            "`{word}` is not a status: expected NotStarted, Queued, Starting, Preparing, Running, Finalizing, CancelRequested, \
             Completed, Failed or Canceled"
        ))
        .with_target("status")),
    }
}

/// The cause of a failure that a client reports; `message` is what it said, if anything.
pub(crate) fn reported_failure(message: Option<&str>) -> Cause {
    let message = message.unwrap_or("the client that runs the code reported that it failed, and gave no reason");
    Cause::Reported { message: message.to_owned() }
}

/// The refusal of a client that sets the status of a run that this server executes (azureml-wire C.4).
pub(crate) fn managed_status(run: &RunId) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("client is not permitted to update the status of system-managed run {run}; use its cancelUri to stop it"),
    )
    .with_target("status")
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header::USER_AGENT};

    use super::*;

    #[test]
    fn every_state_has_its_word() {
        let table = [
            (RunState::NotStarted, "NotStarted", "CancelRequested"),
            (RunState::Queued, "Queued", "CancelRequested"),
            (RunState::Starting, "Starting", "CancelRequested"),
            (RunState::Preparing, "Preparing", "CancelRequested"),
            (RunState::Running, "Running", "CancelRequested"),
            (RunState::Finalizing, "Finalizing", "CancelRequested"),
            (RunState::Completed, "Completed", "Completed"),
            (RunState::Failed, "Failed", "Failed"),
            (RunState::Canceled, "Canceled", "Canceled"),
        ];
        assert_eq!(table.map(|(state, ..)| state), RunState::ALL);
        for (state, wanted, unwanted) in table {
            assert_eq!(word(state, Desired::Run, Voice::Heard, CancelSpelling::Sdk), wanted);
            assert_eq!(word(state, Desired::Cancel, Voice::Silent, CancelSpelling::Sdk), unwanted);
        }
        assert_eq!(word(RunState::Canceled, Desired::Cancel, Voice::Heard, CancelSpelling::Plain), "Cancelled");
        assert_eq!(word(RunState::Running, Desired::Run, Voice::Silent, CancelSpelling::Sdk), "NotResponding");
    }

    #[test]
    fn every_state_is_counted() {
        let counts = counts(&[(RunState::Queued, 2), (RunState::Canceled, 1)]);
        assert_eq!((counts["queued"], counts["canceled"], counts["running"]), (2, 1, 0));
        assert_eq!(counts.len(), RunState::ALL.len() + 2);
    }

    #[test]
    fn only_the_sdk_hears_canceled_with_one_l() {
        let agent = |text: &'static str| HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(text))]);
        for sdk in [
            "Python/3.11.7 (Linux) msrest/0.7.1 azureml._restclient/core.1.61.0 azureml-sdk-core/1.61.0",
            "azure-ai-ml/1.35.2 azsdk-python-mgmt-machinelearningservices/0.1.0 Python/3.11.7",
            "AzureML-CLI",
        ] {
            assert_eq!(CancelSpelling::of(&agent(sdk)), CancelSpelling::Sdk, "{sdk}");
        }
        for other in ["python-requests/2.34.2", "curl/8.5.0", "trainyard/0.1.0"] {
            assert_eq!(CancelSpelling::of(&agent(other)), CancelSpelling::Plain, "{other}");
        }
        let mut session = agent("python-requests/2.34.2");
        session.insert("x-ms-client-session-id", HeaderValue::from_static("7f0b"));
        assert_eq!(CancelSpelling::of(&session), CancelSpelling::Sdk);
        assert_eq!(CancelSpelling::of(&HeaderMap::new()), CancelSpelling::Plain);
    }

    #[test]
    fn status_words_that_a_client_sets_become_events() {
        let by = "ada";
        assert_eq!(asked("NotStarted", by).unwrap(), None);
        assert_eq!(asked("running", by).unwrap(), Some(RunEvent::ClientStarted));
        assert_eq!(asked("Completed", by).unwrap(), Some(RunEvent::ClientEnded { cause: Cause::Completed }));
        for spelling in ["Canceled", "Cancelled", "CANCELED"] {
            let cause = Cause::Cancelled { by: Some(by.into()), why: None };
            assert_eq!(asked(spelling, by).unwrap(), Some(RunEvent::ClientEnded { cause }));
        }
        assert_eq!(asked("CancelRequested", by).unwrap(), Some(RunEvent::CancelRequested { by: by.into(), why: None }));
        assert!(matches!(asked("Failed", by).unwrap(), Some(RunEvent::ClientEnded { cause: Cause::Reported { .. } })));
        let error = asked("Done", by).unwrap_err();
        assert_eq!((error.kind(), error.target()), (ErrorKind::Invalid, Some("status")));
    }
}
