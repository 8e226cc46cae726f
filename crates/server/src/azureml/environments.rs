//! The environment service (azureml-wire E.2): environments under names, in versions.
//!
//! What is registered here was found good by the same conversion that a submission goes through, so that a name never stands for something
//! that no run could have. Where a definition refers to a name, [`super::references`] looks it up.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::Value;
use trainyard_core::{Error, ErrorKind, Result, access::Action};
use trainyard_store::{
    page::PageRequest,
    registered_environments::{NewEnvironment, Which},
};
use trainyard_wire::azureml::{
    environments::{EnvironmentDefinition, EnvironmentMetadata, ImageDetails},
    execution::SubmittedConfiguration,
    paging::Page,
};

use super::{
    body::Document,
    convert::{
        environment_name::{checked_name, checked_version},
        environments::{Named, build_definition, to_image, to_stored},
    },
    error::AzureError,
    execution::Accepted,
    references,
};
use crate::{context::Context, query::Query, state::AppState};

/// The parameters of a path.
pub(super) type Parameters = Path<BTreeMap<String, String>>;

/// The name in the path, and the version if there is one.
pub(super) fn named(path: &BTreeMap<String, String>) -> Result<(&str, Option<&str>)> {
    let name = checked_name(path.get("name").map(String::as_str).unwrap_or_default())?;
    let version = path.get("version").map(|version| checked_version(version)).transpose()?;
    Ok((name, version))
}

/// The environment that the path means.
pub(super) async fn found(state: &AppState, context: &Context, path: &BTreeMap<String, String>) -> Result<Named> {
    let (name, version) = named(path)?;
    references::find(state, context, name, version.map_or(Which::Latest, Which::Version)).await
}

/// `GET environments`: the latest version of each; curated ones come on the first page.
pub(crate) async fn list(State(state): State<AppState>, context: Context, query: Query) -> Result<Json<Page<Value>>, AzureError> {
    context.allow(Action::Read)?;
    let page = page_request(&query)?;
    let rows = state.store.list_registered_environments(context.workspace.id, &page).await?;
    let curated = state.settings.curated.iter().filter(|_| page.token.is_none());
    let mut value: Vec<Value> = curated.map(|curated| Named::of_curated(curated).document()).collect();
    for row in rows.items {
        value.push(Named::of_row(row)?.document());
    }
    Ok(Json(Page::new(value, rows.token)))
}

/// `GET environments/{name}/versions`: every version of a name, the one that was registered last first.
pub(crate) async fn list_versions(
    State(state): State<AppState>,
    context: Context,
    Path(path): Parameters,
    query: Query,
) -> Result<Json<Page<Value>>, AzureError> {
    context.allow(Action::Read)?;
    // An unknown name is told like everywhere else; a curated one has the version of the configuration.
    let latest = found(&state, &context, &path).await?;
    let name = latest.definition.name.clone().unwrap_or_default();
    if state.settings.curated.iter().any(|curated| curated.name == name) {
        return Ok(Json(Page::new(vec![latest.document()], None)));
    }
    let rows = state.store.list_versions_of_environment(context.workspace.id, &name, &page_request(&query)?).await?;
    let value = rows.items.into_iter().map(|row| Ok(Named::of_row(row)?.document())).collect::<Result<Vec<Value>>>()?;
    Ok(Json(Page::new(value, rows.token)))
}

fn page_request(query: &Query) -> Result<PageRequest> {
    let token = query.non_empty("continuation").or_else(|| query.non_empty("continuationToken"));
    Ok(PageRequest { top: query.parsed("count", "a number")?.unwrap_or(0), token: token.map(str::to_owned) })
}

/// `GET environments/{name}` and `…/versions/{version}`.
pub(crate) async fn get(State(state): State<AppState>, context: Context, Path(path): Parameters) -> Result<Json<Value>, AzureError> {
    context.allow(Action::Read)?;
    Ok(Json(found(&state, &context, &path).await?.document()))
}

/// `GET environments/{name}/labels/{label}`; every environment has `Latest`.
pub(crate) async fn by_label(State(state): State<AppState>, context: Context, Path(path): Parameters) -> Result<Json<Value>, AzureError> {
    context.allow(Action::Read)?;
    let (name, _) = named(&path)?;
    let label = path.get("label").map(String::as_str).unwrap_or_default();
    Ok(Json(references::find(&state, &context, name, Which::Label(label)).await?.document()))
}

/// `PUT environments/{name}` and `…/versions/{version}`: registers. Content that equals the latest version (or the version named) is that one.
pub(crate) async fn put(
    State(state): State<AppState>,
    context: Context,
    Path(path): Parameters,
    Document(asked): Document<EnvironmentDefinition>,
) -> Result<Json<Value>, AzureError> {
    context.allow(Action::Write)?;
    let (name, version) = named(&path)?;
    refuse_curated(&state, name)?;
    let (asked, sealed_password) = checked(&state, &context, asked).await?;
    let row = state
        .store
        .register_environment(NewEnvironment {
            workspace: context.workspace.id,
            name: name.to_owned(),
            version: version.map(str::to_owned),
            document: to_stored(asked),
            sealed_password,
            created_us: context.now_us,
            created_by: context.principal.display_name(),
        })
        .await?;
    tracing::info!(environment = row.name, version = row.version, "an environment was registered");
    Ok(Json(Named::of_row(row)?.document()))
}

/// `PUT environments/{name}/versions/{version}/metadata`: the labels of a version.
pub(crate) async fn put_metadata(
    State(state): State<AppState>,
    context: Context,
    Path(path): Parameters,
    Document(metadata): Document<EnvironmentMetadata>,
) -> Result<Json<Value>, AzureError> {
    context.allow(Action::Write)?;
    let (name, version) = named(&path)?;
    refuse_curated(&state, name)?;
    let found = references::find(&state, &context, name, version.map_or(Which::Latest, Which::Version)).await?;
    let version = found.definition.version.clone().unwrap_or_default();
    let mut labels = metadata.labels;
    labels.iter().try_for_each(|label| checked_name(label).map(|_| ()).map_err(|error| error.with_target("labels")))?;
    labels.sort();
    labels.dedup();
    state.store.label_environment(context.workspace.id, name, &version, &labels).await?;
    Ok(Json(found.document()))
}

/// `GET environments/{name}/versions/{version}/image`.
pub(crate) async fn image(
    State(state): State<AppState>,
    context: Context,
    Path(path): Parameters,
) -> Result<Json<ImageDetails>, AzureError> {
    context.allow(Action::Read)?;
    Ok(Json(to_image(&found(&state, &context, &path).await?.definition)))
}

/// `POST environments/{name}/versions/{version}/recipe`: scripts for a build on the client's machine, which this server does not write.
pub(crate) async fn recipe(State(state): State<AppState>, context: Context, Path(path): Parameters) -> Result<Json<Value>, AzureError> {
    context.allow(Action::Write)?;
    let found = found(&state, &context, &path).await?;
    let name = found.definition.name.unwrap_or_default();
    let message = format!(
        "recipes for a build on the client's machine are not made: environments are built where runs are executed. Build `{name}` there with \
         Environment.build or `trainyard environments build`"
    );
    Err(Error::new(ErrorKind::Unsupported, message).into())
}

fn refuse_curated(state: &AppState, name: &str) -> Result<()> {
    if state.settings.curated.iter().any(|curated| curated.name == name) {
        let message = format!("`{name}` is an environment of the server's configuration; register yours under another name");
        return Err(Error::new(ErrorKind::Conflict, message).with_target("name"));
    }
    Ok(())
}

/// What is asked for, found good, and the sealed password of its registry.
async fn checked(state: &AppState, context: &Context, asked: EnvironmentDefinition) -> Result<(EnvironmentDefinition, Option<String>)> {
    let mut asked = EnvironmentDefinition { name: None, version: None, asset_id: None, ..asked };
    if asked.python.as_ref().and_then(|python| python.conda_dependencies_file.as_deref()).is_some_and(|file| !file.trim().is_empty()) {
        let place = "python.condaDependenciesFile";
        let message = format!(
            "{place} names a file of a snapshot, which a registered environment has none of: send its content in condaDependencies"
        );
        return Err(Error::new(ErrorKind::Unsupported, message).with_target(place));
    }
    if asked.lock.is_none() && asked.same_as_run.is_none() {
        // What says nothing of Python is a plain one; without the section it would pass for a name.
        asked.python.get_or_insert_default();
    }
    let mut submitted = Accepted::read(build_definition(&asked, ""))?.configuration;
    references::resolve(state, context, &mut submitted).await.map_err(|error| in_document(&error))?;
    usable(state, &submitted).map_err(|error| in_document(&error))?;
    let mut asked = submitted.asked.environment.unwrap_or_default();
    let sealed = references::seal_password(state, &mut asked)?;
    asked.same_as_run = None;
    Ok((asked, sealed))
}

/// Fails if no target could execute a run in this environment.
fn usable(state: &AppState, submitted: &SubmittedConfiguration) -> Result<()> {
    let mut last = Ok(());
    for target in state.engine.targets() {
        let mut submitted = submitted.clone();
        submitted.asked.target = Some(target.name.to_string());
        last = Accepted::convert(state, &submitted).map(|_| ());
        if last.is_ok() {
            break;
        }
    }
    last
}

/// The same error with places as they are in the document of an environment.
fn in_document(error: &Error) -> Error {
    let shorter = |text: &str| text.replace("configuration.environment.", "").replace("configuration.Environment.", "");
    let shown = Error::new(error.kind(), shorter(error.message()));
    match error.target() {
        Some(target) => shown.with_target(shorter(target)),
        None => shown,
    }
}
