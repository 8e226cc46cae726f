//! Datastores and datasets (azureml-wire E.3), as far as a script that submits runs asks for them.
//!
//! Datastores come from the configuration, and nothing here opens one: clients get their names and no credentials. Datasets are not kept.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
};
use trainyard_core::{Error, ErrorKind, Result, access::Action, data::DEFAULT_DATASTORE};
use trainyard_engine::data::{Datastore, Found};
use trainyard_wire::azureml::{datastores::DataStore, paging::Page};

use super::error::AzureError;
use crate::{context::Context, state::AppState};

/// `GET /datastore/v1.0{WS}/datastores`
pub(crate) async fn list(State(state): State<AppState>, context: Context) -> Result<Json<Page<DataStore>>, AzureError> {
    context.allow(Action::Read)?;
    Ok(Json(Page::new(state.engine.datastores().all().into_iter().map(document).collect(), None)))
}

/// `GET /datastore/v1.0{WS}/datastores/{datastore}`
pub(crate) async fn get(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
) -> Result<Json<DataStore>, AzureError> {
    context.allow(Action::Read)?;
    Ok(Json(document(find(&state, path.get("datastore").map(String::as_str).unwrap_or_default())?)))
}

/// `GET /datastore/v1.0{WS}/default`
pub(crate) async fn get_default(State(state): State<AppState>, context: Context) -> Result<Json<DataStore>, AzureError> {
    context.allow(Action::Read)?;
    Ok(Json(document(find(&state, DEFAULT_DATASTORE)?)))
}

/// Everything that would change a datastore, or which one is the default.
pub(crate) async fn change(context: Context) -> Result<(), AzureError> {
    context.allow(Action::Write)?;
    let message = "datastores come from the server's configuration; its operator adds and changes them in [datastore.NAME]";
    Err(Error::new(ErrorKind::Unsupported, message).into())
}

/// `GET /dataset/v1.0{WS}/datasets`: there are none.
pub(crate) async fn list_datasets(context: Context) -> Result<Json<Page<DataStore>>, AzureError> {
    context.allow(Action::Read)?;
    Ok(Json(Page::new(Vec::new(), None)))
}

const NO_DATASETS: &str =
    "no datasets are registered on this server; give the data itself to the run, with DataReferences, Data.DataLocation.DataPath or Uri";

/// One dataset, however it is asked for.
pub(crate) async fn get_dataset(context: Context) -> Result<(), AzureError> {
    context.allow(Action::Read)?;
    Err(Error::not_found(NO_DATASETS).into())
}

/// Everything that would make or change a dataset.
pub(crate) async fn change_dataset(context: Context) -> Result<(), AzureError> {
    context.allow(Action::Write)?;
    Err(Error::new(ErrorKind::Unsupported, NO_DATASETS).into())
}

fn find<'a>(state: &'a AppState, name: &str) -> Result<Found<'a>> {
    let datastores = state.engine.datastores();
    datastores.find(name).ok_or_else(|| {
        let known: Vec<&str> = datastores.all().into_iter().map(|found| found.name).collect();
        let shown: String = name.chars().take(80).collect();
        Error::not_found(format!("datastore `{shown}` is not configured; known datastores: {}", known.join(", ")))
    })
}

fn document(found: Found<'_>) -> DataStore {
    let address = found.configured.map_or_else(|| "a folder of the server's machine".to_owned(), Datastore::shown);
    DataStore::new(found.name, address)
}
