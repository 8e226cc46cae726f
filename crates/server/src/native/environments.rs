//! Built environments: what was asked for, what is installed, and how it lies in the cache of the server's machine.
//!
//! Whoever may read a workspace sees the environments that its runs used, and no others: what a specification asks for may be nobody
//! else's business. The cache is shared by all workspaces, so only an Owner of the server sees all of it, pins and prunes.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::Value;
use trainyard_core::{Error, Result, access::Action, ids::EnvironmentHash};
use trainyard_engine::environment::{self, Downloads, EnvironmentSettings, How, PruneOptions, Repair};
use trainyard_store::{Page, PageRequest, environments::EnvironmentRecord};
use trainyard_wire::native::{
    CacheTotals, CachedEnvironment, DownloadSizes, Environment, EnvironmentList, EnvironmentSummary, FileDifference, Pin, PruneWish,
    Pruned, Verified, VerifyWish,
};

use super::error::NativeError;
use crate::{
    clock,
    context::{Caller, Context},
    json::JsonBody,
    query::Query,
    state::AppState,
};

type Parameters = Path<BTreeMap<String, String>>;
type Cached = BTreeMap<EnvironmentHash, CachedEnvironment>;

/// `GET {W}/environments`: those that runs of the workspace used.
pub(crate) async fn list(State(state): State<AppState>, context: Context, query: Query) -> Result<Json<EnvironmentList>, NativeError> {
    context.allow(Action::Read)?;
    let found = state.store.list_environments_used_in(context.workspace.id, &page_request(&query)?).await?;
    Ok(Json(page_of(found, &mut cached(&state).await?)))
}

/// `GET {W}/environments/{hash}`: one that a run of the workspace used.
pub(crate) async fn get(State(state): State<AppState>, context: Context, Path(path): Parameters) -> Result<Json<Environment>, NativeError> {
    let record = used(&state, &context, &path).await?;
    Ok(Json(whole(&state, record).await?))
}

/// `GET {W}/environments/{hash}/lock`: what is installed in one that a run of the workspace used.
pub(crate) async fn lock(State(state): State<AppState>, context: Context, Path(path): Parameters) -> Result<Json<Value>, NativeError> {
    Ok(Json(lock_of(used(&state, &context, &path).await?)?))
}

/// `GET /api/v1/environments`: all that the server knows; the first page begins with those that only lie in its cache.
pub(crate) async fn list_all(State(state): State<AppState>, caller: Caller, query: Query) -> Result<Json<EnvironmentList>, NativeError> {
    caller.allow_in(Action::Administer, None)?;
    let request = page_request(&query)?;
    let found = state.store.list_environments(&request).await?;
    let mut cached = cached(&state).await?;
    let totals = if request.token.is_none() { Some(totals(&state, &cached).await?) } else { None };
    let mut list = EnvironmentList { cache: totals, ..page_of(found, &mut cached) };
    if request.token.is_none() {
        let mut unknown = Vec::new();
        for (hash, cached) in cached {
            if state.store.environment(&hash).await?.is_none() {
                unknown.push(only_cached(&hash, cached));
            }
        }
        list.value.splice(0..0, unknown);
    }
    Ok(Json(list))
}

/// `GET /api/v1/environments/{hash}`.
pub(crate) async fn get_any(
    State(state): State<AppState>,
    caller: Caller,
    Path(path): Parameters,
) -> Result<Json<Environment>, NativeError> {
    caller.allow_in(Action::Administer, None)?;
    let record = known(&state, &hash(&path)?).await?;
    Ok(Json(whole(&state, record).await?))
}

/// `GET /api/v1/environments/{hash}/lock`.
pub(crate) async fn lock_of_any(State(state): State<AppState>, caller: Caller, Path(path): Parameters) -> Result<Json<Value>, NativeError> {
    caller.allow_in(Action::Administer, None)?;
    Ok(Json(lock_of(known(&state, &hash(&path)?).await?)?))
}

/// `PUT /api/v1/environments/{hash}/pin`: it is not removed, however long nobody uses it.
pub(crate) async fn pin(State(state): State<AppState>, caller: Caller, Path(path): Parameters) -> Result<Json<Pin>, NativeError> {
    caller.allow_in(Action::Administer, None)?;
    let hash = hash(&path)?;
    let pinned = hash.clone();
    in_cache(&state, move |settings| environment::pin(settings, &pinned)).await?;
    tracing::info!(environment = %hash, by = caller.principal.display_name(), "an environment was pinned");
    Ok(Json(Pin { hash: hash.to_string(), pinned: true }))
}

/// `DELETE /api/v1/environments/{hash}/pin`: it may be removed again. Repeating it is harmless.
pub(crate) async fn unpin(State(state): State<AppState>, caller: Caller, Path(path): Parameters) -> Result<Json<Pin>, NativeError> {
    caller.allow_in(Action::Administer, None)?;
    let hash = hash(&path)?;
    let unpinned = hash.clone();
    in_cache(&state, move |settings| environment::unpin(settings, &unpinned)).await?;
    tracing::info!(environment = %hash, by = caller.principal.display_name(), "an environment was unpinned");
    Ok(Json(Pin { hash: hash.to_string(), pinned: false }))
}

/// `POST /api/v1/environments/prune`: removes what is not needed, or says what that would be.
pub(crate) async fn prune(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(wish): JsonBody<PruneWish>,
) -> Result<Json<Pruned>, NativeError> {
    caller.allow_in(Action::Administer, None)?;
    let PruneWish { dry_run, max_bytes, unused_seconds, downloads, imported } = wish;
    let options = PruneOptions { max_bytes, unused_for_seconds: unused_seconds, downloads, imported, dry_run };
    let pruned = in_cache(&state, move |settings| environment::prune(settings, &options)).await?;
    let removed: Vec<String> = pruned.removed.iter().map(|environment| environment.hash.to_string()).collect();
    tracing::info!(
        removed = removed.len(),
        freed_bytes = pruned.freed_bytes,
        dry_run,
        by = caller.principal.display_name(),
        "environments were pruned"
    );
    Ok(Json(Pruned {
        dry_run,
        removed,
        freed_bytes: pruned.freed_bytes,
        kept: pruned.kept,
        kept_bytes: pruned.kept_bytes,
        downloads_bytes: pruned.downloads_bytes,
        downloads_kept: sizes(&pruned.downloads_kept),
    }))
}

/// `POST /api/v1/environments/{hash}/verify`: whether it is still what was built; with `repair` it is removed if it is not.
pub(crate) async fn verify(
    State(state): State<AppState>,
    caller: Caller,
    Path(path): Parameters,
    JsonBody(VerifyWish { repair }): JsonBody<VerifyWish>,
) -> Result<Json<Verified>, NativeError> {
    caller.allow_in(Action::Administer, None)?;
    let hash = hash(&path)?;
    let repair = if repair { Repair::Remove } else { Repair::No };
    let found = environment::verify(&state.settings.environments, &hash, repair).await?;
    if found.removed {
        tracing::info!(environment = %hash, files = found.differences.len(), by = caller.principal.display_name(), "a changed environment was removed");
    }
    let differences =
        found.differences.into_iter().map(|difference| FileDifference { path: difference.path, how: word(difference.how).into() });
    Ok(Json(Verified { hash: hash.to_string(), files: found.files, differences: differences.collect(), removed: found.removed }))
}

fn word(how: How) -> &'static str {
    match how {
        How::Changed => "changed",
        How::Missing => "missing",
        How::Added => "added",
        How::NotAsPackaged => "not_as_packaged",
    }
}

fn sizes(found: &Downloads) -> DownloadSizes {
    let Downloads { pip, conda, indexes, images, imported } = *found;
    DownloadSizes { pip, conda, indexes, images, imported }
}

/// What the cache holds as a whole.
async fn totals(state: &AppState, cached: &Cached) -> Result<CacheTotals> {
    let downloads = in_cache(state, |settings| Ok(environment::downloads(settings))).await?;
    let environment_bytes = cached.values().map(|cached| cached.bytes).sum();
    Ok(CacheTotals { environments: cached.len() as u64, environment_bytes, downloads: sizes(&downloads) })
}

fn hash(path: &BTreeMap<String, String>) -> Result<EnvironmentHash> {
    EnvironmentHash::new(path.get("hash").map(String::as_str).unwrap_or_default()).map_err(|error| error.with_target("hash"))
}

fn page_request(query: &Query) -> Result<PageRequest> {
    let token = query.non_empty("continuationToken").map(str::to_owned);
    Ok(PageRequest { top: query.parsed("top", "a number")?.unwrap_or(0), token })
}

/// The environment in the path, if a run of the workspace used it.
async fn used(state: &AppState, context: &Context, path: &BTreeMap<String, String>) -> Result<EnvironmentRecord> {
    context.allow(Action::Read)?;
    let hash = hash(path)?;
    let record = state.store.environment_used_in(context.workspace.id, &hash).await?;
    record.ok_or_else(|| Error::not_found(format!("no run of this workspace used an environment `{hash}`")))
}

async fn known(state: &AppState, hash: &EnvironmentHash) -> Result<EnvironmentRecord> {
    let record = state.store.environment(hash).await?;
    record.ok_or_else(|| Error::not_found(format!("environment `{hash}` was not found")))
}

fn lock_of(record: EnvironmentRecord) -> Result<Value> {
    if record.lock.is_null() {
        return Err(Error::not_found(format!("nothing is known of what is installed in environment `{}`", record.hash)));
    }
    Ok(record.lock)
}

async fn whole(state: &AppState, record: EnvironmentRecord) -> Result<Environment> {
    let cached = cached(state).await?.remove(&record.hash);
    let created = clock::rfc3339(record.created_us);
    Ok(Environment { hash: record.hash.to_string(), spec: record.spec, lock: record.lock, created, cached })
}

fn page_of(found: Page<EnvironmentRecord>, cached: &mut Cached) -> EnvironmentList {
    let value = found.items.into_iter().map(|record| summary(&record, cached.remove(&record.hash))).collect();
    EnvironmentList { value, continuation_token: found.token, cache: None }
}

fn summary(record: &EnvironmentRecord, cached: Option<CachedEnvironment>) -> EnvironmentSummary {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let count = |name: &str| record.lock[name].as_array().map_or(0, |list| list.len() as u64);
    EnvironmentSummary {
        hash: record.hash.to_string(),
        kind: record.spec.as_object().and_then(|spec| spec.keys().next()).cloned(),
        python: text(&record.lock["python"]),
        pip_packages: count("packages"),
        conda_packages: count("conda"),
        image: text(&record.lock["image"]["reference"]),
        created: Some(clock::rfc3339(record.created_us)),
        cached,
    }
}

/// One that lies in the cache and of which no run has told this server: warmed by another server, or imported.
fn only_cached(hash: &EnvironmentHash, cached: CachedEnvironment) -> EnvironmentSummary {
    EnvironmentSummary {
        hash: hash.to_string(),
        kind: None,
        python: None,
        pip_packages: 0,
        conda_packages: 0,
        image: None,
        created: None,
        cached: Some(cached),
    }
}

/// What lies in the cache of this machine.
async fn cached(state: &AppState) -> Result<Cached> {
    let found = in_cache(state, |settings| Ok(environment::cached(settings))).await?;
    let described = found.into_iter().map(|found| {
        let last_used = clock::rfc3339(found.last_used_us);
        (found.hash, CachedEnvironment { bytes: found.bytes, last_used, pinned: found.pinned, in_use: found.in_use })
    });
    Ok(described.collect())
}

/// Does something in the cache, which may take a while, off the threads that answer requests.
async fn in_cache<T, F>(state: &AppState, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce(&EnvironmentSettings) -> Result<T> + Send + 'static,
{
    let settings = state.settings.environments.clone();
    tokio::task::spawn_blocking(move || work(&settings)).await.map_err(Error::internal)?
}
