//! Looks environments up that a definition only names: registered and curated ones by name and version, the lock of another run's.
//!
//! This happens before a definition is converted, so that everything behind it sees the whole environment. The name and the version stay in
//! the definition, where the run shows them.

use serde_json::Value;
use trainyard_core::{Error, ErrorKind, Result, environment::EnvironmentLock, ids::RunId};
use trainyard_engine::Unseal as _;
use trainyard_store::registered_environments::Which;
use trainyard_wire::azureml::{environments::EnvironmentDefinition, execution::SubmittedConfiguration};

use super::convert::{
    definition::Places,
    environment_name::{EnvironmentName, nearest, of_asset_id, shown},
    environments::Named,
};
use crate::{context::Context, state::AppState};

/// The label under which every environment's last version is found, if no version has it by a client's wish.
const LATEST: &str = "latest";

/// Puts the environment itself in the place of its name, and a lock in the place of a run's id.
///
/// # Errors
/// [`ErrorKind::Invalid`] for what cannot be found; the sentence offers the nearest names. Its target is the property, as the client spelt it.
pub(crate) async fn resolve(state: &AppState, context: &Context, submitted: &mut SubmittedConfiguration) -> Result<()> {
    let places = Places(&submitted.spelling);
    let Some(asked) = &mut submitted.asked.environment else { return Ok(()) };
    if asked.is_reference() {
        *asked = referred(state, context, asked, places).await?;
    }
    if let Some(run) = asked.same_as_run.clone() {
        let path = places.path("Environment.SameAsRun");
        if asked.lock.is_some() {
            return Err(Error::invalid(format!("{path} is given and so is {}: give one of them", places.path("Environment.Lock")))
                .with_target(path));
        }
        let lock = lock_of_run(state, context, &run).await.map_err(|error| about(&error, &path))?;
        asked.lock = Some(lock);
    }
    Ok(())
}

fn about(error: &Error, path: &str) -> Error {
    let kind = if error.kind() == ErrorKind::NotFound { ErrorKind::Invalid } else { error.kind() };
    Error::new(kind, format!("{path}: {}", error.message())).with_target(path)
}

/// The environment that `asked` names, with the variables that the definition adds.
async fn referred(state: &AppState, context: &Context, asked: &EnvironmentDefinition, places: Places<'_>) -> Result<EnvironmentDefinition> {
    let named = asked.name.as_deref().map(str::trim).filter(|name| !name.is_empty());
    let (wanted, path) = match named {
        Some(name) => {
            let version = asked.version.as_deref().map(str::trim).filter(|version| !version.is_empty()).map(str::to_owned);
            (Some(EnvironmentName { name: name.to_owned(), version }), places.path("Environment.Name"))
        }
        None => (of_asset_id(asked.asset_id.as_deref().unwrap_or_default()), places.path("Environment.AssetId")),
    };
    let wanted = wanted.ok_or_else(|| {
        Error::invalid(format!(
            "{path} = `{}` is not the id of an environment: expected azureml:NAME:VERSION",
            shown(asked.asset_id.as_deref().unwrap_or_default())
        ))
        .with_target(path.clone())
    })?;
    let which = wanted.version.as_deref().map_or(Which::Latest, Which::Version);
    let found = find(state, context, &wanted.name, which).await.map_err(|error| about(&error, &path))?;
    let mut definition = with_password(state, found)?;
    definition.environment_variables.extend(asked.environment_variables.clone());
    Ok(definition)
}

/// The environment with the password of its registry, for the conversion, which seals it again.
pub(crate) fn with_password(state: &AppState, found: Named) -> Result<EnvironmentDefinition> {
    let Named { mut definition, sealed_password } = found;
    if let Some(sealed) = sealed_password {
        definition.docker.get_or_insert_default().base_image_registry.password = Some(state.sealer.unseal(&sealed)?);
    }
    Ok(definition)
}

/// Takes the password of the image's registry out and seals it. `None`: there is none.
pub(crate) fn seal_password(state: &AppState, environment: &mut EnvironmentDefinition) -> Result<Option<String>> {
    let password = environment.docker.as_mut().and_then(|docker| docker.base_image_registry.take_password());
    password.map(|password| state.sealer.seal(&password)).transpose()
}

/// The environment of a name.
///
/// # Errors
/// [`ErrorKind::NotFound`] with the nearest names, or the versions that there are.
pub(crate) async fn find(state: &AppState, context: &Context, name: &str, which: Which<'_>) -> Result<Named> {
    if let Some(curated) = state.settings.curated.iter().find(|curated| curated.name == name) {
        let fits = match which {
            Which::Latest => true,
            Which::Version(version) => version == curated.version,
            Which::Label(label) => label.eq_ignore_ascii_case(LATEST),
        };
        return fits.then(|| Named::of_curated(curated)).ok_or_else(|| not_found(name, which, std::slice::from_ref(&curated.version)));
    }
    let workspace = context.workspace.id;
    let row = match state.store.registered_environment(workspace, name, which).await? {
        None if matches!(which, Which::Label(label) if label.eq_ignore_ascii_case(LATEST)) => {
            state.store.registered_environment(workspace, name, Which::Latest).await?
        }
        found => found,
    };
    match row {
        Some(row) => Named::of_row(row),
        None => {
            let versions = state.store.registered_environment_versions(workspace, name).await?;
            if !versions.is_empty() {
                return Err(not_found(name, which, &versions));
            }
            let mut known = state.store.registered_environment_names(workspace).await?;
            known.extend(state.settings.curated.iter().map(|curated| curated.name.clone()));
            Err(Error::not_found(format!("environment `{}` was not found; {}", shown(name), nearest(name, &known))))
        }
    }
}

fn not_found(name: &str, which: Which<'_>, versions: &[String]) -> Error {
    let wanted = match which {
        Which::Latest => "version".to_owned(),
        Which::Version(version) => format!("version `{}`", shown(version)),
        Which::Label(label) => format!("version with the label `{}`", shown(label)),
    };
    let versions: Vec<&str> = versions.iter().take(20).map(String::as_str).collect();
    Error::not_found(format!("environment `{}` has no {wanted}; it has {}", shown(name), versions.join(", ")))
}

/// The lock of the environment that a run used.
async fn lock_of_run(state: &AppState, context: &Context, id: &str) -> Result<Value> {
    let id = RunId::new(id)?;
    let run = state.store.run(context.workspace.id, &id).await?;
    let run = run.ok_or_else(|| Error::not_found(format!("run `{id}` was not found")))?;
    let Some(hash) = &run.environment else {
        let reason = match run.state.is_terminal() {
            true => "it used an interpreter as it was, or ended before its environment was ready",
            false => "it uses an interpreter as it is, or its environment is not ready yet",
        };
        return Err(Error::invalid(format!("run `{id}` has built no environment: {reason}")));
    };
    let record = state.store.environment(hash).await?;
    let lock = record.map(|record| record.lock).filter(|lock| !lock.is_null());
    let lock =
        lock.ok_or_else(|| Error::invalid(format!("nothing is known of what is installed in the environment `{hash}` of run `{id}`")))?;
    // Read here, so that one which an older server stored and nobody can build again is found before the run is.
    EnvironmentLock::read(&lock, &format!("the lock of run `{id}`"))?;
    Ok(lock)
}
