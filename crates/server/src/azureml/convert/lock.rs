//! A lock that comes with a definition (`Environment.Lock`, a word of this server): it says exactly what is installed, and so goes before
//! the section that says what is wanted.

use serde_json::Value;
use trainyard_core::{
    Result,
    environment::{EnvironmentLock, EnvironmentSpec},
};
use trainyard_wire::azureml::environments::PythonSection;

use super::definition::Places;

/// What is prepared, and the sentences for the run's warnings.
pub(super) fn to_spec(lock: &Value, python: Option<&PythonSection>, places: Places<'_>) -> Result<(EnvironmentSpec, Vec<String>)> {
    let place = places.path("Environment.Lock");
    let lock = EnvironmentLock::read(lock, &place)?;
    let Some(python) = python else { return Ok((EnvironmentSpec::Locked(lock), Vec::new())) };
    if python.user_managed_dependencies {
        let rest = format!(" is true and {place} is given: an interpreter is used as it is, or a lock is installed, not both");
        return Err(places.invalid("Environment.Python.UserManagedDependencies", rest));
    }
    let asks = python.conda_dependencies.as_ref().is_some_and(|dependencies| !dependencies.is_null());
    let asks = asks || python.conda_dependencies_file.as_deref().is_some_and(|file| !file.is_empty());
    let warnings = asks
        .then(|| format!("{} is not used: {place} says exactly what is installed", places.path("Environment.Python.CondaDependencies")));
    Ok((EnvironmentSpec::Locked(lock), warnings.into_iter().collect()))
}
