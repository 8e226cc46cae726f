//! The environment of a run configuration (azureml-wire D.4), and the same as the environment service keeps it under a name (E.2).

use serde::Serialize;
use serde_json::Value;

use super::runs::TextMap;
use crate::json::{object, words};

object! {
    /// `environment`. Two forms exist: a definition that travels with the run, and the bare name of a registered one; `python`
    /// and `docker` are `None` where the client wrote none.
    pub struct EnvironmentDefinition {
        /// Name.
        "name" name: Option<String> = None,
        /// Version.
        "version" version: Option<String> = None,
        /// Id of a registered environment.
        "assetId" asset_id: Option<String> = None,
        /// For models; means nothing to runs.
        "inferencingStackVersion" inferencing_stack_version: Option<String> = None,
        /// Variables; the run's own go before these.
        "environmentVariables" environment_variables: TextMap = TextMap::new(),
        /// Python.
        "python" python: Option<PythonSection> = None,
        /// Container.
        "docker" docker: Option<DockerSection> = None,
        /// Spark packages.
        "spark" spark: EnvironmentSparkSection = EnvironmentSparkSection::default(),
        /// R packages.
        "r" r: Option<RSection> = None,
        /// Databricks libraries.
        "databricks" databricks: DatabricksSection = DatabricksSection::default(),
        /// Exactly these packages; a word of this server, which the service does not know.
        "lock" lock: Option<Value> = None,
        /// A run whose lock is taken; a word of this server, too.
        "sameAsRun" same_as_run: Option<String> = None,
    }
}

impl EnvironmentDefinition {
    /// Whether only a name or an id stands here: the environment itself is to be looked up.
    pub fn is_reference(&self) -> bool {
        let named = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.trim().is_empty());
        self.python.is_none() && self.docker.is_none() && self.lock.is_none() && (named(&self.name) || named(&self.asset_id))
    }

    /// Written out, without the words of this server that were not used and without the password of a registry.
    pub fn document(&self) -> Value {
        let mut shown = self.clone();
        if let Some(docker) = &mut shown.docker {
            drop(docker.base_image_registry.take_password());
        }
        let mut document = serde_json::to_value(shown).unwrap_or_default();
        if let Some(document) = document.as_object_mut() {
            for name in ["lock", "sameAsRun"] {
                if document.get(name).is_some_and(Value::is_null) {
                    document.remove(name);
                }
            }
        }
        document
    }
}

object! {
    /// Body of `PUT …/metadata`.
    pub struct EnvironmentMetadata {
        /// The labels that the version has from now on.
        "labels" labels: Vec<String> = Vec::new(),
    }
}

/// Answer of `GET …/image`: what would be pulled and used. This server pushes no images, so none "exists in the registry".
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageDetails {
    /// Whether a built image was pushed to a registry.
    pub image_exists_in_registry: bool,
    /// The image.
    pub docker_image: DockerImage,
    /// Python in it.
    pub python_environment: PythonInImage,
    /// What it would be made of.
    pub ingredients: ImageIngredients,
    /// Always null: images are not assets here.
    pub vulnerability_findings: Option<Value>,
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DockerImage {
    /// Its name; `None`: runs do not go into a container.
    pub name: Option<String>,
    /// Where it is.
    pub registry: ImageRegistry,
}

/// A registry, without its password.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRegistry {
    /// Host; `None`: the image's name begins with it.
    pub address: Option<String>,
    /// User.
    pub username: Option<String>,
    /// Never shown.
    pub password: Option<String>,
}

/// Where Python is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PythonInImage {
    /// The interpreter that runs the script.
    pub interpreter_path: String,
    /// The prefix; `None`: chosen on the node.
    pub conda_environment_path: Option<String>,
}

/// What an image would be made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIngredients {
    /// The Dockerfile, if the environment has one.
    pub dockerfile: Option<String>,
    /// The conda file as JSON.
    pub conda_specification: Option<Value>,
}

/// Answer of `POST …/image`: where to look how the build is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildStarted {
    /// An absolute URL, for [`BuildStatus`].
    pub location: String,
}

/// How a build is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildStatus {
    /// `Queued`, `Running`, `Succeeded`, `Failed` or `Canceled`: the SDK waits while it is one of the first two.
    pub status: &'static str,
    /// A URL of the log that needs no token; `None` while there is none.
    pub log_url: Option<String>,
    /// What went wrong.
    pub error: Option<Value>,
    /// The run that builds.
    pub run_id: String,
}

object! {
    /// `environment.python`
    pub struct PythonSection {
        /// The interpreter, used when the user manages the dependencies.
        "interpreterPath" interpreter_path: String = "python".to_owned(),
        /// Nothing is built; the interpreter is used as it is.
        "userManagedDependencies" user_managed_dependencies: bool = false,
        /// A conda file as JSON, unread.
        "condaDependencies" conda_dependencies: Option<Value> = None,
        /// An environment to start from.
        "baseCondaEnvironment" base_conda_environment: Option<String> = None,
        /// A conda file in the snapshot.
        "condaDependenciesFile" conda_dependencies_file: Option<String> = None,
    }
}

object! {
    /// `environment.docker`
    pub struct DockerSection {
        /// Whether the run goes into a container.
        "enabled" enabled: bool = false,
        /// The image.
        "baseImage" base_image: Option<String> = None,
        /// A Dockerfile, as text.
        "baseDockerfile" base_dockerfile: Option<String> = None,
        /// Where an image is built from.
        "buildContext" build_context: Option<BuildContext> = None,
        /// Where the image is.
        "baseImageRegistry" base_image_registry: RegistrySection = RegistrySection::default(),
        /// What the image is for.
        "platform" platform: PlatformSection = PlatformSection::default(),
        /// Whether volumes are shared.
        "sharedVolumes" shared_volumes: bool = true,
        /// Size of the shared memory.
        "shmSize" shm_size: Option<String> = Some("2g".to_owned()),
        /// More arguments of `docker run`.
        "arguments" arguments: Vec<String> = Vec::new(),
        /// Whether the container sees GPUs; an older property.
        "gpuSupport" gpu_support: bool = false,
    }
}

words! {
    /// `buildContext.locationType`
    pub enum BuildContextLocation {
        /// A repository.
        Git = "Git",
        /// A blob container.
        StorageAccount = "StorageAccount",
    }
}

object! {
    /// `environment.docker.buildContext`
    pub struct BuildContext {
        /// Kind of place.
        "locationType" location_type: Option<BuildContextLocation> = None,
        /// URL.
        "location" location: Option<String> = None,
        /// Path of the Dockerfile in it.
        "dockerfilePath" dockerfile_path: String = "Dockerfile".to_owned(),
    }
}

object! {
    /// `environment.docker.baseImageRegistry`
    pub struct RegistrySection {
        /// Host.
        "address" address: Option<String> = None,
        /// User.
        "username" username: Option<String> = None,
        /// A secret: taken out before anything is stored, see [`RegistrySection::take_password`].
        "password" password: Option<String> = None,
        /// An identity instead of user and password.
        "registryIdentity" registry_identity: Option<Value> = None,
    }
}

impl RegistrySection {
    /// Takes the password out, so that what is left can be stored and shown. `None`: there was none.
    pub fn take_password(&mut self) -> Option<String> {
        self.password.take().filter(|password| !password.is_empty())
    }
}

object! {
    /// `environment.docker.platform`
    pub struct PlatformSection {
        /// Operating system.
        "os" os: String = "Linux".to_owned(),
        /// Architecture.
        "architecture" architecture: String = "amd64".to_owned(),
    }
}

object! {
    /// `environment.spark`
    pub struct EnvironmentSparkSection {
        /// Where packages come from.
        "repositories" repositories: Vec<String> = Vec::new(),
        /// Packages.
        "packages" packages: Vec<SparkPackage> = Vec::new(),
        /// Whether they are fetched when the image is built.
        "precachePackages" precache_packages: bool = true,
    }
}

object! {
    /// A Maven package.
    pub struct SparkPackage {
        /// Group.
        "group" group: Option<String> = None,
        /// Artifact.
        "artifact" artifact: Option<String> = None,
        /// Version.
        "version" version: Option<String> = None,
    }
}

object! {
    /// `environment.r`; package lists are kept unread.
    pub struct RSection {
        /// Version of R.
        "rVersion" r_version: Option<String> = None,
        /// Whether the user manages the dependencies.
        "userManaged" user_managed: bool = false,
        /// Path of Rscript.
        "rscriptPath" rscript_path: Option<String> = None,
        /// Day whose packages are taken.
        "snapshotDate" snapshot_date: Option<String> = None,
        /// Packages of CRAN.
        "cranPackages" cran_packages: Vec<Value> = Vec::new(),
        /// Packages of GitHub; may hold a secret, never stored: definitions with an R section are refused.
        "gitHubPackages" github_packages: Vec<Value> = Vec::new(),
        /// Packages by URL.
        "customUrlPackages" custom_url_packages: Vec<Value> = Vec::new(),
        /// Packages of Bioconductor.
        "bioConductorPackages" bioconductor_packages: Vec<Value> = Vec::new(),
    }
}

object! {
    /// `environment.databricks`; libraries are kept unread.
    pub struct DatabricksSection {
        /// Maven.
        "mavenLibraries" maven_libraries: Vec<Value> = Vec::new(),
        /// PyPI.
        "pypiLibraries" pypi_libraries: Vec<Value> = Vec::new(),
        /// CRAN.
        "rcranLibraries" rcran_libraries: Vec<Value> = Vec::new(),
        /// Jars.
        "jarLibraries" jar_libraries: Vec<Value> = Vec::new(),
        /// Eggs.
        "eggLibraries" egg_libraries: Vec<Value> = Vec::new(),
    }
}
