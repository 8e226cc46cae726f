//! Lists of runs: of an experiment, of the workspace, of a compute target, below a parent; and their counts
//! (azureml-wire C.3, C.7).

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, RawQuery, State},
};
use trainyard_core::{
    Error, ErrorKind, Result,
    access::Action,
    filter::{Direction, Field, Filter, Literal, Operator, OrderBy, OrderField},
    ids::RunId,
};
use trainyard_store::runs::{Hidden, RunQuery};
use trainyard_wire::azureml::{paging::Page, query::QueryParams, runs::RunDto};

use super::{
    address::{ExperimentPath, ExperimentRef, RunPath},
    body::Document,
    convert::{
        paging::{page_request, query_from_both, query_from_string},
        status::counts,
    },
    error::AzureError,
    present,
};
use crate::{context::Context, state::AppState};

/// Which runs a list is about, before its filter.
struct Scope {
    experiment: ExperimentRef,
    parent: Option<RunId>,
    target: Option<String>,
}

/// `GET …/runs`: of an experiment or of the workspace.
pub(crate) async fn list(
    State(state): State<AppState>,
    context: Context,
    ExperimentPath(experiment): ExperimentPath,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<RunDto>>, AzureError> {
    let scope = Scope { experiment, parent: None, target: None };
    listed(&state, &context, scope, query_from_string(query.as_deref())?).await
}

/// `POST …/runs:query`: of an experiment or of the workspace.
pub(crate) async fn query(
    State(state): State<AppState>,
    context: Context,
    ExperimentPath(experiment): ExperimentPath,
    RawQuery(query): RawQuery,
    Document(body): Document<QueryParams>,
) -> Result<Json<Page<RunDto>>, AzureError> {
    let scope = Scope { experiment, parent: None, target: None };
    listed(&state, &context, scope, query_from_both(body, query.as_deref())?).await
}

/// `GET R/children`.
pub(crate) async fn children(
    State(state): State<AppState>,
    context: Context,
    path: RunPath,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<RunDto>>, AzureError> {
    context.allow(Action::Read)?;
    let parent = path.find(&state, &context).await?;
    // A child may be in another experiment than its parent.
    let scope = Scope { experiment: ExperimentRef::Any, parent: Some(parent.id), target: None };
    listed(&state, &context, scope, query_from_string(query.as_deref())?).await
}

/// `GET computes/{compute}/runs`.
pub(crate) async fn on_compute(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<RunDto>>, AzureError> {
    let scope = Scope { experiment: ExperimentRef::Any, parent: None, target: path.get("compute").cloned() };
    listed(&state, &context, scope, query_from_string(query.as_deref())?).await
}

async fn listed(state: &AppState, context: &Context, scope: Scope, query: QueryParams) -> Result<Json<Page<RunDto>>, AzureError> {
    context.allow(Action::Read)?;
    let experiment = scope.experiment.find(state, context).await?.map(|experiment| experiment.id);
    let wanted = RunQuery {
        workspace: context.workspace.id,
        experiment,
        parent: scope.parent,
        filter: filter(&query, scope.target)?,
        order: OrderBy::parse(query.orderby.as_deref(), query.sort_order.as_deref())?.unwrap_or(NEWEST_FIRST),
        // The SDK drops hidden runs itself and the service lists them (azureml-wire C.4).
        hidden: Hidden::Include,
        page: page_request(&query),
    };
    let found = state.store.list_runs(&wanted).await?;
    Ok(Json(present::page(state, context, found).await?))
}

/// How a list is ordered that does not say.
const NEWEST_FIRST: OrderBy = OrderBy { field: OrderField::CreatedUtc, direction: Direction::Descending };

/// The filter of a query, on one target if the list is about one.
fn filter(query: &QueryParams, target: Option<String>) -> Result<Option<Filter>> {
    let asked = Filter::parse_optional(query.filter.as_deref())?;
    let on_target = target.map(|name| Filter::Compare { field: Field::Target, op: Operator::Eq, value: Literal::Text(name) });
    let parts: Vec<Filter> = on_target.into_iter().chain(asked).collect();
    Ok(if parts.is_empty() { None } else { Some(Filter::and(parts)) })
}

/// `GET …/runcounts`: how many runs of the experiment are in each state.
pub(crate) async fn run_counts(
    State(state): State<AppState>,
    context: Context,
    ExperimentPath(experiment): ExperimentPath,
    RawQuery(query): RawQuery,
) -> Result<Json<BTreeMap<&'static str, i64>>, AzureError> {
    context.allow(Action::Read)?;
    if query_from_string(query.as_deref())?.filter.is_some() {
        let message = "runs are counted without a filter; ask runs:query with the filter instead";
        return Err(Error::new(ErrorKind::Unsupported, message).with_target("$filter").into());
    }
    let experiment = experiment.required(&state, &context).await?;
    Ok(Json(counts(&state.store.run_counts(context.workspace.id, Some(experiment.id)).await?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_on_one_target_keeps_the_callers_filter() {
        let query = QueryParams { filter: Some("Status eq Failed or Status eq Canceled".into()), ..QueryParams::default() };
        let both = filter(&query, Some("cpu-cluster".into())).unwrap().unwrap();
        assert_eq!(both.to_string(), "Target eq 'cpu-cluster' and (Status eq 'Failed' or Status eq 'Canceled')");
        assert_eq!(filter(&QueryParams::default(), None).unwrap(), None);
    }
}
