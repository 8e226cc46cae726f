//! The environment of a run configuration (azureml-wire D.4).

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
    }
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
