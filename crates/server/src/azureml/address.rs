//! Which experiment and run a path speaks of: run history answers for every run under three bases (azureml-wire C.3),
//! `experiments/{experiment}/runs/{run}`, `experimentids/{experiment_id}/runs/{run}` and `runs/{run}`.
//!
//! A run is found only under its own experiment. What is not found and what the caller named wrongly are told apart: a name
//! that can not exist is [`Invalid`](trainyard_core::ErrorKind::Invalid) with the rule, a possible one is
//! [`NotFound`](trainyard_core::ErrorKind::NotFound).

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;
use trainyard_core::{
    Error, Result,
    ids::{ExperimentId, ExperimentName, RunId},
};
use trainyard_store::{experiments::Experiment, runs::RunRecord};

use crate::{context::Context, failure::Rejection, state::AppState};

/// How a path names an experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExperimentRef {
    /// `experiments/{experiment}`
    Name(ExperimentName),
    /// `experimentids/{experiment_id}`
    Id(ExperimentId),
    /// Not at all: the path speaks of the whole workspace.
    Any,
}

/// The experiment of a path. Extractor.
#[derive(Clone, Debug)]
pub(crate) struct ExperimentPath(pub(crate) ExperimentRef);

/// The run of a path. Extractor.
#[derive(Clone, Debug)]
pub(crate) struct RunPath {
    /// The experiment it must be in.
    pub(crate) experiment: ExperimentRef,
    /// The run.
    pub(crate) run: RunId,
}

impl ExperimentRef {
    fn from_params(params: &RawPathParams) -> Result<Self> {
        if let Some(name) = param(params, "experiment") {
            return Ok(Self::Name(ExperimentName::new(name).map_err(|error| error.with_target("experimentName"))?));
        }
        match param(params, "experiment_id") {
            Some(id) => Ok(Self::Id(id.parse().map_err(|error: Error| error.with_target("experimentId"))?)),
            None => Ok(Self::Any),
        }
    }

    /// The experiment's row; `None` when the path names none.
    pub(crate) async fn find(&self, state: &AppState, context: &Context) -> Result<Option<Experiment>> {
        let workspace = context.workspace.id;
        let (found, shown) = match self {
            Self::Any => return Ok(None),
            Self::Name(name) => (state.store.experiment_by_name(workspace, name).await?, name.to_string()),
            Self::Id(id) => (state.store.experiment(workspace, *id).await?, id.to_string()),
        };
        let missing = || {
            let place = &context.workspace.path.workspace_name;
            Error::not_found(format!("experiment `{shown}` was not found in workspace `{place}`"))
        };
        found.map(Some).ok_or_else(missing)
    }

    /// Like [`Self::find`] for a path that must name one.
    pub(crate) async fn required(&self, state: &AppState, context: &Context) -> Result<Experiment> {
        self.find(state, context).await?.ok_or_else(|| Error::not_found("no experiment is named in the path"))
    }

    /// Whether the run is in this experiment.
    pub(crate) fn holds(&self, run: &RunRecord) -> bool {
        match self {
            Self::Any => true,
            Self::Name(name) => run.experiment_name == *name,
            Self::Id(id) => run.experiment == *id,
        }
    }
}

impl std::fmt::Display for ExperimentRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("the workspace"),
            Self::Name(name) => write!(f, "experiment `{name}`"),
            Self::Id(id) => write!(f, "experiment `{id}`"),
        }
    }
}

impl RunPath {
    /// The run's row, if it is there and in the experiment that the path names.
    pub(crate) async fn lookup(&self, state: &AppState, context: &Context) -> Result<Option<RunRecord>> {
        let found = state.store.run(context.workspace.id, &self.run).await?;
        Ok(found.filter(|run| self.experiment.holds(run)))
    }

    /// The run's row; [`NotFound`](trainyard_core::ErrorKind::NotFound) otherwise.
    pub(crate) async fn find(&self, state: &AppState, context: &Context) -> Result<RunRecord> {
        self.lookup(state, context).await?.ok_or_else(|| self.missing())
    }

    /// The answer when there is no such run.
    pub(crate) fn missing(&self) -> Error {
        Error::not_found(format!("run {} was not found in {}", self.run, self.experiment))
    }
}

impl FromRequestParts<AppState> for ExperimentPath {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Rejection> {
        Ok(Self(ExperimentRef::from_params(&params(parts, state).await?)?))
    }
}

impl FromRequestParts<AppState> for RunPath {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Rejection> {
        let params = params(parts, state).await?;
        let run = RunId::new(param(&params, "run").unwrap_or_default()).map_err(|error| error.with_target("runId"))?;
        Ok(Self { experiment: ExperimentRef::from_params(&params)?, run })
    }
}

async fn params(parts: &mut Parts, state: &AppState) -> Result<RawPathParams> {
    RawPathParams::from_request_parts(parts, state).await.map_err(|_| Error::invalid("the path is not valid UTF-8 once decoded"))
}

fn param<'a>(params: &'a RawPathParams, wanted: &str) -> Option<&'a str> {
    params.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value)
}
