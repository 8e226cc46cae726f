//! Environments that the operator's configuration gives a name, for every workspace: definitions may refer to them like to registered
//! ones. They come before what clients registered, and nobody can register one of their names.

use trainyard_wire::azureml::environments::EnvironmentDefinition;

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct CuratedEnvironment {
    /// Its name, e.g. `AzureML-sklearn-1.0`.
    pub name: String,
    /// Its one version.
    pub version: String,
    /// What it is.
    pub definition: EnvironmentDefinition,
}
