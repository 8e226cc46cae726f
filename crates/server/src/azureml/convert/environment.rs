//! From the environment of a run configuration (azureml-wire D.4) to what the engine prepares.
//!
//! What is refused outright is in [`super::refusals`]; the conda specification is read by core.

use serde_json::Value;
use trainyard_core::{
    Error, ErrorKind, Result,
    environment::{EnvironmentSpec, PythonEnvironment, parse_conda},
};
use trainyard_wire::azureml::environments::{DockerSection, EnvironmentDefinition, PythonSection};

use super::definition::Places;

/// An environment that can be prepared.
#[derive(Clone, Debug)]
pub(crate) struct ConvertedEnvironment {
    /// What is prepared.
    pub(crate) spec: EnvironmentSpec,
    /// Sentences for the run's warnings.
    pub(crate) warnings: Vec<String>,
}

/// Converts `asked`; without one the run gets a plain Python, and a warning that says so.
pub(crate) fn to_spec(asked: Option<&EnvironmentDefinition>, places: Places<'_>) -> Result<ConvertedEnvironment> {
    let python = asked.and_then(|asked| asked.python.as_ref());
    let docker = asked.and_then(|asked| asked.docker.as_ref());
    if let Some(asked) = asked
        && python.is_none()
        && docker.is_none()
    {
        refuse_reference(asked, places)?;
    }
    let mut warnings: Vec<String> = docker.map(|docker| image_warnings(docker, places)).unwrap_or_default();
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
            let place = places.path("Environment.Python.CondaDependencies");
            let conda = parse_conda(python.conda_dependencies.as_ref().unwrap_or(&Value::Null), &place)?;
            warnings.extend(conda.warnings);
            EnvironmentSpec::Python(conda.environment)
        }
        None => {
            warnings.push(format!("{} is not given: the run has a Python without packages", places.path("Environment.Python")));
            EnvironmentSpec::Python(PythonEnvironment::default())
        }
    };
    Ok(ConvertedEnvironment { spec, warnings })
}

/// A bare name means an environment that was registered before.
fn refuse_reference(asked: &EnvironmentDefinition, places: Places<'_>) -> Result<()> {
    let named = [("Environment.Name", &asked.name), ("Environment.AssetId", &asked.asset_id)];
    let Some((property, name)) = named.into_iter().find_map(|(property, name)| Some((property, name.as_deref()?))) else {
        return Ok(());
    };
    let path = places.path(property);
    let shown: String = name.chars().take(80).collect();
    let message = format!(
        "{path} = `{shown}` names a registered environment, and this server keeps none yet: send the environment itself, in {}",
        places.path("Environment.Python.CondaDependencies")
    );
    Err(Error::new(ErrorKind::Unsupported, message).with_target(path))
}

fn interpreter(python: &PythonSection, places: Places<'_>) -> Result<String> {
    let path = python.interpreter_path.trim();
    if path.is_empty() || path.contains('\0') {
        let rest = " is empty or not a path: with UserManagedDependencies it names the interpreter that runs the script";
        return Err(places.invalid("Environment.Python.InterpreterPath", rest));
    }
    Ok(path.to_owned())
}

/// What is said about a container image that is only named.
fn image_warnings(docker: &DockerSection, places: Places<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(image) = docker.base_image.as_deref().filter(|image| !image.trim().is_empty()) {
        warnings
            .push(format!("{} = `{image}` is not used: the run does not go into a container", places.path("Environment.Docker.BaseImage")));
    }
    if docker.base_image_registry.password.as_deref().is_some_and(|password| !password.is_empty()) {
        warnings.push(format!(
            "{} was thrown away and not stored: no image is pulled for the run",
            places.path("Environment.Docker.BaseImageRegistry.Password")
        ));
    }
    warnings
}
