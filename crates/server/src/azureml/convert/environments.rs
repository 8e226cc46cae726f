//! Registered environments between the wire and the store (azureml-wire E.2).

use serde_json::{Value, json};
use trainyard_core::{Error, Result};
use trainyard_store::{registered_environments::RegisteredEnvironment, runs::RunRecord};
use trainyard_wire::{
    azureml::environments::{DockerImage, EnvironmentDefinition, ImageDetails, ImageIngredients, ImageRegistry, PythonInImage},
    json::FromJson,
};

use super::status::word_of;
use crate::{context::CancelSpelling, curated::CuratedEnvironment};

/// An environment that has a name: registered, or curated.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    /// What it is, with its name and version in it and without the password of a registry.
    pub(crate) definition: EnvironmentDefinition,
    /// The password of the image's registry, sealed.
    pub(crate) sealed_password: Option<String>,
}

impl Named {
    /// What the store keeps under a name.
    pub(crate) fn of_row(row: RegisteredEnvironment) -> Result<Self> {
        let definition = EnvironmentDefinition::from_json("", row.document).map_err(Error::internal)?;
        let definition = EnvironmentDefinition { name: Some(row.name), version: Some(row.version), ..definition };
        Ok(Self { definition, sealed_password: row.sealed_password })
    }

    /// What the configuration keeps under a name.
    pub(crate) fn of_curated(curated: &CuratedEnvironment) -> Self {
        let (name, version) = (Some(curated.name.clone()), Some(curated.version.clone()));
        Self { definition: EnvironmentDefinition { name, version, ..curated.definition.clone() }, sealed_password: None }
    }

    /// The document that clients get.
    pub(crate) fn document(&self) -> Value {
        self.definition.document()
    }
}

/// What is stored and compared: everything but the name, the version and the password.
pub(crate) fn to_stored(definition: EnvironmentDefinition) -> Value {
    EnvironmentDefinition { name: None, version: None, asset_id: None, ..definition }.document()
}

/// What is known of the image of an environment.
pub(crate) fn to_image(definition: &EnvironmentDefinition) -> ImageDetails {
    let docker = definition.docker.clone().unwrap_or_default();
    let python = definition.python.clone().unwrap_or_default();
    let named = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
    ImageDetails {
        image_exists_in_registry: false,
        docker_image: DockerImage {
            name: named(docker.base_image),
            registry: ImageRegistry {
                address: named(docker.base_image_registry.address),
                username: named(docker.base_image_registry.username),
                password: None,
            },
        },
        python_environment: PythonInImage { interpreter_path: python.interpreter_path, conda_environment_path: None },
        ingredients: ImageIngredients { dockerfile: named(docker.base_dockerfile), conda_specification: python.conda_dependencies },
        vulnerability_findings: None,
    }
}

/// The word of a build for the state of the run that builds: the SDK waits while it is `Queued` or `Running`.
pub(crate) fn to_build_status(run: &RunRecord) -> &'static str {
    match word_of(run, CancelSpelling::Sdk) {
        "Completed" => "Succeeded",
        "Failed" => "Failed",
        "Canceled" => "Canceled",
        "NotStarted" | "Queued" => "Queued",
        _ => "Running",
    }
}

/// The definition of the run that builds an environment: it prepares it and does nothing in it.
pub(crate) fn build_definition(definition: &EnvironmentDefinition, target: &str) -> Value {
    let mut environment = definition.document();
    if let Some(docker) = &definition.docker
        && let Some(password) = &docker.base_image_registry.password
    {
        environment["docker"]["baseImageRegistry"]["password"] = json!(password);
    }
    json!({ "configuration": { "command": "true", "target": target, "environment": environment, "history": { "outputCollection": false } } })
}
