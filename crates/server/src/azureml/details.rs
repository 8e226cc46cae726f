//! A run with its configuration and its logs (azureml-wire C.4).

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use trainyard_core::{Result, access::Action};
use trainyard_store::{artifacts::Artifact, page::PageRequest, runs::RunRecord};
use trainyard_wire::azureml::run_details::RunDetailsDto;

use super::{address::RunPath, artifacts::Links, convert::runs::to_details, error::AzureError, present};
use crate::{context::Context, state::AppState};

/// Where logs are: the older and the newer layout of the service, and what the code itself writes.
const LOG_FOLDERS: [&str; 4] = ["azureml-logs/", "logs/", "system_logs/", "user_logs/"];
/// Where the files of attempts before the last are.
const EARLIER_ATTEMPTS: &str = "attempts/";

/// `GET R/details`.
pub(crate) async fn get(State(state): State<AppState>, context: Context, path: RunPath) -> Result<Json<RunDetailsDto>, AzureError> {
    context.allow(Action::Read)?;
    let run = path.find(&state, &context).await?;
    let log_files = log_files(&state, &context, &run).await?;
    let attempts = state.store.attempts(context.workspace.id, &run.id).await?;
    let document = run.document.clone();
    let mut details = to_details(present::run(&state, &context, run).await?, document, log_files);
    details.current_attempt_id = attempts.iter().map(|attempt| attempt.number).max();
    Ok(Json(details))
}

/// Each log with a URL that needs no token.
async fn log_files(state: &AppState, context: &Context, run: &RunRecord) -> Result<BTreeMap<String, String>> {
    let links = Links::new(state, context);
    let mut files = BTreeMap::new();
    for folder in LOG_FOLDERS {
        for artifact in all_below(state, run, folder).await? {
            files.insert(artifact.path.clone(), links.read_url(&artifact));
        }
    }
    for artifact in all_below(state, run, EARLIER_ATTEMPTS).await? {
        if is_earlier_log(&artifact.path) {
            files.insert(artifact.path.clone(), links.read_url(&artifact));
        }
    }
    Ok(files)
}

/// Whether a path is that of a log of an attempt before the last: `attempts/{number}/{log}`.
fn is_earlier_log(path: &str) -> bool {
    let below = path.strip_prefix(EARLIER_ATTEMPTS).and_then(|rest| rest.split_once('/'));
    below.is_some_and(|(_, path)| LOG_FOLDERS.iter().any(|folder| path.starts_with(folder)))
}

/// All artifacts of the run whose path starts with `prefix`.
async fn all_below(state: &AppState, run: &RunRecord, prefix: &str) -> Result<Vec<Artifact>> {
    let container = format!("dcid.{}", run.id);
    let mut found = Vec::new();
    let mut request = PageRequest::default();
    loop {
        let page = state.store.list_artifacts(run.workspace, &container, prefix, &request).await?;
        found.extend(page.items);
        match page.token {
            Some(token) => request.token = Some(token),
            None => return Ok(found),
        }
    }
}
