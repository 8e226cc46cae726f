//! Building an environment ahead of its runs (azureml-wire E.2, `POST …/image`): a run in the experiment `environments` that prepares it and does
//! nothing in it, so that the queue, the log, the cancel and the crash-safety of a build are those of every run.

use axum::{
    Json,
    extract::{Path, State},
};
use http::StatusCode;
use trainyard_core::{
    Error, Result,
    access::Action,
    ids::{ExperimentName, RunId},
};
use trainyard_wire::azureml::environments::{BuildStarted, BuildStatus};

use super::{
    artifacts::Links,
    convert::environments::{build_definition, to_build_status},
    environments::{Parameters, found},
    error::AzureError,
    execution::{Accepted, start_without_code},
    references::with_password,
};
use crate::{context::Context, state::AppState};

/// The experiment of these runs.
const EXPERIMENT: &str = "environments";
/// The target of a build that names none, where there is one of this name.
const TARGET: &str = "local";
const BUILD_LOG: &str = "azureml-logs/20_image_build_log.txt";

/// `POST environment/v2.0…/image` and `…/imageoncompute/{compute}`: starts a build and says where to look.
pub(crate) async fn start(
    State(state): State<AppState>,
    context: Context,
    Path(path): Parameters,
) -> Result<(StatusCode, Json<BuildStarted>), AzureError> {
    context.allow(Action::Write)?;
    let definition = with_password(&state, found(&state, &context, &path).await?)?;
    let target = match path.get("compute") {
        Some(target) => target.clone(),
        None => default_target(&state)?,
    };
    let mut accepted = Accepted::of(&state, Accepted::read(build_definition(&definition, &target))?)?;
    accepted.settle_user(&state, &context).await?;
    let run = start_without_code(&state, &context, ExperimentName::new(EXPERIMENT)?, accepted).await?;
    let location = format!("{}/environment/v1.0{}/builds/{run}", context.base_url, context.workspace.path.arm_id());
    Ok((StatusCode::ACCEPTED, Json(BuildStarted { location })))
}

/// `GET environment/v1.0…/builds/{run}`: how a build is.
pub(crate) async fn status(
    State(state): State<AppState>,
    context: Context,
    Path(path): Parameters,
) -> Result<Json<BuildStatus>, AzureError> {
    context.allow(Action::Read)?;
    let id = RunId::new(path.get("run").map(String::as_str).unwrap_or_default())?;
    let run = state.store.run(context.workspace.id, &id).await?.filter(|run| run.experiment_name.as_str() == EXPERIMENT);
    let run = run.ok_or_else(|| Error::not_found(format!("there is no build `{id}`")))?;
    let log = state.store.artifact(context.workspace.id, &format!("dcid.{id}"), BUILD_LOG).await?;
    let log_url = log.map(|log| Links::new(&state, &context).read_url(&log));
    Ok(Json(BuildStatus { status: to_build_status(&run), log_url, error: run.error, run_id: id.to_string() }))
}

fn default_target(state: &AppState) -> Result<String> {
    let targets = state.engine.targets();
    let target = targets.iter().find(|target| target.name.as_str() == TARGET).or_else(|| targets.first());
    target.map(|target| target.name.to_string()).ok_or_else(|| Error::invalid("no compute target is configured, so nothing can be built"))
}
