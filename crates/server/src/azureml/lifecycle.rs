//! What happens to runs through this dialect: who may change one, and events on their way to the state machine.
//!
//! Nothing here decides what an event does to a run; that is [`trainyard_core::run::transition`], by way of
//! [`Store::apply`](trainyard_store::Store::apply).

use trainyard_core::{
    Error, ErrorKind, Result,
    access::{Action, Principal},
    ids::RunId,
    run::{Ownership, Refused, RunEvent, transition},
};
use trainyard_engine::RunKey;
use trainyard_store::{runs::RunRecord, transitions::Applied};

use crate::{context::Context, state::AppState};

/// Fails unless the caller may change `run`. The code of a run changes its own run and the runs below it that it executes itself
/// (azureml-wire E.4, step 23).
pub(crate) fn allow_change(context: &Context, run: &RunRecord) -> Result<()> {
    match &context.principal {
        Principal::Run { run: caller, .. } if run.ownership == Ownership::External && is_above(caller, run) => {
            context.allow(Action::WriteRun(caller))
        }
        Principal::Run { .. } | Principal::App { .. } => context.allow(Action::WriteRun(&run.id)),
    }
}

/// Whether `id` is the parent or the root of `run`.
fn is_above(id: &RunId, run: &RunRecord) -> bool {
    run.parent.as_ref() == Some(id) || (run.parent.is_some() && run.root == *id)
}

/// Whether the caller is the code of `run` or the agent beside it.
pub(crate) fn is_run_itself(context: &Context, run: &RunRecord) -> bool {
    matches!(&context.principal, Principal::Run { run: caller, .. } if *caller == run.id)
}

/// Fails when `event` makes no sense for the run as it was read. Asked before anything is written, so that a refused request
/// changes nothing; the store decides again on the row as it then is.
pub(crate) fn check(run: &RunRecord, event: &RunEvent) -> Result<()> {
    match transition(&run.standing(), event) {
        Ok(_) | Err(Refused::AlreadySo) => Ok(()),
        Err(Refused::Fenced | Refused::NotAllowed { .. }) => Err(not_allowed(run, event)),
    }
}

/// Gives `event` to the state machine; the run as it is afterwards.
///
/// # Errors
/// [`ErrorKind::Conflict`] when the event makes no sense in the run's state.
pub(crate) async fn apply(state: &AppState, context: &Context, run: &RunRecord, event: &RunEvent) -> Result<RunRecord> {
    let applied = state.store.apply(context.workspace.id, &run.id, event, context.now_us).await?;
    match applied {
        Applied::Changed(changed) => {
            touch(state, context, run);
            Ok(*changed)
        }
        Applied::AlreadySo => reread(state, context, run).await,
        Applied::Fenced => Err(not_allowed(run, event)),
        Applied::NotAllowed { .. } => Err(not_allowed(&reread(state, context, run).await?, event)),
        Applied::NoRun => Err(gone(run)),
    }
}

/// The run's row as it is now.
pub(crate) async fn reread(state: &AppState, context: &Context, run: &RunRecord) -> Result<RunRecord> {
    state.store.run(context.workspace.id, &run.id).await?.ok_or_else(|| gone(run))
}

/// Tells everyone who follows the run to look again.
pub(crate) fn touch(state: &AppState, context: &Context, run: &RunRecord) {
    state.engine.touch(&RunKey::new(context.workspace.id, &run.id));
}

fn gone(run: &RunRecord) -> Error {
    Error::not_found(format!("run {} was not found", run.id))
}

fn not_allowed(run: &RunRecord, event: &RunEvent) -> Error {
    let state = run.state.as_str();
    let message = match event {
        RunEvent::ClientStarted => format!("run {} is {state} already; it can not be started again", run.id),
        RunEvent::ClientEnded { cause } => {
            format!("run {} is {state} already; it can not become {} any more", run.id, cause.end_state().as_str())
        }
        RunEvent::CancelRequested { .. }
        | RunEvent::Admitted { .. }
        | RunEvent::Preparing { .. }
        | RunEvent::Started { .. }
        | RunEvent::Ended { .. }
        | RunEvent::Finalized { .. }
        | RunEvent::Silent { .. }
        | RunEvent::Heard { .. } => format!("run {} is {state}; {} is not possible now", run.id, event.name()),
    };
    Error::new(ErrorKind::Conflict, message)
}
