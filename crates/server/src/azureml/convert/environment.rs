//! From the environment of a run configuration (azureml-wire D.4) to what the engine prepares.
//!
//! What is refused outright is in [`super::refusals`]; the conda specification is read by core.

use std::collections::BTreeMap;

use serde_json::Value;
use trainyard_core::{
    Error, ErrorKind, Result,
    environment::{EnvironmentSpec, PythonEnvironment, parse_conda},
};
use trainyard_wire::azureml::environments::{EnvironmentDefinition, PythonSection};

use super::definition::Places;

/// An environment that can be prepared.
#[derive(Clone, Debug)]
pub(crate) struct ConvertedEnvironment {
    /// What is prepared.
    pub(crate) spec: EnvironmentSpec,
    /// Variables that the conda specification sets; every other word on a variable goes before these.
    pub(crate) variables: BTreeMap<String, String>,
    /// Sentences for the run's warnings.
    pub(crate) warnings: Vec<String>,
}

/// Converts `asked`; without one the run gets a plain Python, and a warning that says so.
pub(crate) fn to_spec(asked: Option<&EnvironmentDefinition>, places: Places<'_>) -> Result<ConvertedEnvironment> {
    let python = asked.and_then(|asked| asked.python.as_ref());
    let mut warnings: Vec<String> = Vec::new();
    let mut variables = BTreeMap::new();
    if asked.is_some_and(|asked| asked.is_reference() || (asked.same_as_run.is_some() && asked.lock.is_none())) {
        return Err(Error::internal("an environment that is only named was not looked up before it was converted"));
    }
    if let Some(lock) = asked.and_then(|asked| asked.lock.as_ref()) {
        let (spec, more) = super::lock::to_spec(lock, python, places)?;
        warnings.extend(more);
        return Ok(ConvertedEnvironment { spec, variables, warnings });
    }
    let spec = match python {
        Some(python) if python.user_managed_dependencies => EnvironmentSpec::UserManaged { interpreter_path: interpreter(python, places)? },
        Some(python) => {
            if python.interpreter_path != PythonSection::default().interpreter_path {
                warnings.push(format!(
                    "{} = `{}` is not used: the run has an environment of its own; set {} to true to use the interpreter as it is",
                    places.path("Environment.Python.InterpreterPath"),
                    python.interpreter_path,
                    places.path("Environment.Python.UserManagedDependencies")
                ));
            }
            refuse_unread_file(python, places)?;
            let place = places.path("Environment.Python.CondaDependencies");
            let conda = parse_conda(python.conda_dependencies.as_ref().unwrap_or(&Value::Null), &place)?;
            warnings.extend(conda.warnings);
            variables = conda.variables;
            conda.environment
        }
        None => {
            warnings.push(format!("{} is not given: the run has a Python without packages", places.path("Environment.Python")));
            EnvironmentSpec::Python(PythonEnvironment::default())
        }
    };
    Ok(ConvertedEnvironment { spec, variables, warnings })
}

/// A file of the snapshot is read before the conversion, where there is a snapshot.
fn refuse_unread_file(python: &PythonSection, places: Places<'_>) -> Result<()> {
    let named = python.conda_dependencies_file.as_deref().is_some_and(|name| !name.trim().is_empty());
    if named && python.conda_dependencies.is_none() {
        let path = places.path("Environment.Python.CondaDependenciesFile");
        let instead = places.path("Environment.Python.CondaDependencies");
        let message = format!("{path} names a file of a snapshot, and there is none here: describe the packages in {instead} itself");
        return Err(Error::new(ErrorKind::Unsupported, message).with_target(path));
    }
    Ok(())
}

fn interpreter(python: &PythonSection, places: Places<'_>) -> Result<String> {
    let path = python.interpreter_path.trim();
    if path.is_empty() || path.contains('\0') {
        let rest = " is empty or not a path: with UserManagedDependencies it names the interpreter that runs the script";
        return Err(places.invalid("Environment.Python.InterpreterPath", rest));
    }
    Ok(path.to_owned())
}
