//! The sections of the configuration and their defaults.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use serde::Deserialize;
use trainyard_core::{
    container::ContainerPolicy,
    data::Medium,
    run::RetryPolicy,
    slurm::{SlurmWish, SubmitAs},
};
use trainyard_engine::{
    container::EngineChoice,
    data::{Datastore, DatastoreAccess, S3Keys},
    environment::{EnvironmentSettings, PythonFallback},
    executor::{
        local::gpus::{Gpu, GpuRule},
        slurm::{SlurmSettings, SlurmTarget, UserDir},
    },
};

use super::kubernetes::{KUBERNETES_SLOTS, KubernetesKeys, optional_text_or_number, text_or_number};

/// `[server]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ServerSection {
    /// See [`KEYS`](super::KEYS).
    pub listen: String,
    /// See [`KEYS`](super::KEYS).
    pub public_url: Option<url::Url>,
    /// See [`KEYS`](super::KEYS).
    pub agent_url: Option<url::Url>,
    /// See [`KEYS`](super::KEYS).
    pub tls_cert: Option<PathBuf>,
    /// See [`KEYS`](super::KEYS).
    pub tls_key: Option<PathBuf>,
    /// See [`KEYS`](super::KEYS).
    pub region: String,
    /// See [`KEYS`](super::KEYS).
    pub max_upload_bytes: u64,
    /// See [`KEYS`](super::KEYS).
    pub max_definition_bytes: u64,
    /// See [`KEYS`](super::KEYS).
    pub max_unpacked_bytes: u64,
    /// See [`KEYS`](super::KEYS).
    pub max_archive_files: usize,
    /// See [`KEYS`](super::KEYS).
    pub max_archive_ratio: u64,
    /// See [`KEYS`](super::KEYS).
    pub cancel_grace_seconds: u64,
    /// See [`KEYS`](super::KEYS).
    pub heartbeat_limit_seconds: u64,
    /// See [`KEYS`](super::KEYS).
    pub silence_limit_seconds: u64,
    /// See [`KEYS`](super::KEYS).
    pub spool_limit_bytes: u64,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8443".into(),
            public_url: None,
            agent_url: None,
            tls_cert: None,
            tls_key: None,
            region: "local".into(),
            max_upload_bytes: 300 << 20,
            max_definition_bytes: 1 << 20,
            max_unpacked_bytes: 300 << 20,
            max_archive_files: 20_000,
            max_archive_ratio: 200,
            cancel_grace_seconds: 10,
            heartbeat_limit_seconds: 30,
            silence_limit_seconds: 86_400,
            spool_limit_bytes: 1 << 30,
        }
    }
}

/// `[store]`
#[derive(Clone, Deserialize)]
#[serde(default)]
pub struct StoreSection {
    /// See [`KEYS`](super::KEYS).
    pub database: String,
    /// See [`KEYS`](super::KEYS).
    pub blobs: String,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self { database: "sqlite".into(), blobs: "file".into() }
    }
}

impl std::fmt::Debug for StoreSection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The database's URL may hold a password.
        let database = self.database.split_once("://").map_or(self.database.as_str(), |(scheme, _)| scheme);
        f.debug_struct("StoreSection").field("database", &database).field("blobs", &self.blobs).finish()
    }
}

/// `[environments]`
#[derive(Clone, Deserialize)]
#[serde(default)]
pub struct EnvironmentsSection {
    /// See [`KEYS`](super::KEYS).
    pub cache_dir: Option<PathBuf>,
    /// See [`KEYS`](super::KEYS).
    pub python_fallback: PythonFallback,
    /// See [`KEYS`](super::KEYS).
    pub conda_channels: Vec<String>,
    /// See [`KEYS`](super::KEYS).
    pub conda_channel_alias: String,
    /// See [`KEYS`](super::KEYS).
    pub conda_credentials: BTreeMap<String, String>,
    /// See [`KEYS`](super::KEYS).
    pub index_url: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub offline: bool,
    /// See [`KEYS`](super::KEYS).
    pub max_bytes: u64,
    /// See [`KEYS`](super::KEYS).
    pub build_limit_seconds: u64,
}

impl Default for EnvironmentsSection {
    fn default() -> Self {
        let EnvironmentSettings {
            python_fallback,
            conda_channels,
            conda_channel_alias,
            index_url,
            offline,
            max_bytes,
            build_limit_seconds,
            ..
        } = EnvironmentSettings::default();
        Self {
            cache_dir: None,
            python_fallback,
            conda_channels,
            conda_channel_alias,
            conda_credentials: BTreeMap::new(),
            index_url,
            offline,
            max_bytes,
            build_limit_seconds,
        }
    }
}

impl std::fmt::Debug for EnvironmentsSection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The index's URL may hold credentials.
        f.debug_struct("EnvironmentsSection").field("cache_dir", &self.cache_dir).field("offline", &self.offline).finish_non_exhaustive()
    }
}

/// `[compute.NAME]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ComputeSection {
    /// See [`KEYS`](super::KEYS).
    pub engine: Engine,
    /// See [`KEYS`](super::KEYS).
    pub slots: Option<u32>,
    /// See [`KEYS`](super::KEYS).
    pub retries: u32,
    /// See [`KEYS`](super::KEYS).
    pub user_retries: u32,
    /// See [`KEYS`](super::KEYS).
    pub retry_backoff_seconds: u64,
    /// See [`KEYS`](super::KEYS).
    pub containers: ContainerPolicy,
    /// See [`KEYS`](super::KEYS).
    pub container_engine: EngineChoice,
    /// See [`KEYS`](super::KEYS).
    pub container_runtime: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub container_ulimits: Vec<String>,
    /// See [`KEYS`](super::KEYS).
    pub container_arguments: Vec<String>,
    /// See [`KEYS`](super::KEYS).
    pub container_volumes: Vec<String>,
    /// See [`KEYS`](super::KEYS).
    #[serde(deserialize_with = "text_or_number")]
    pub gpus: String,
    /// See [`KEYS`](super::KEYS).
    pub gpus_per_run: u32,
    /// See [`KEYS`](super::KEYS).
    pub shared_dir: Option<PathBuf>,
    /// See [`KEYS`](super::KEYS).
    pub partition: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub account: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub qos: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub time_limit: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub gres: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub memory: Option<String>,
    /// See [`KEYS`](super::KEYS).
    #[serde(deserialize_with = "optional_text_or_number")]
    pub cpus: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub constraint: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub sbatch_arguments: Vec<String>,
    /// See [`KEYS`](super::KEYS).
    pub slurm_bin: Option<PathBuf>,
    /// See [`KEYS`](super::KEYS).
    pub ssh: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub mpi: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub submit_as: Option<SubmitAs>,
    /// See [`KEYS`](super::KEYS).
    pub user_dir: Option<String>,
    /// The keys that are for Kubernetes.
    #[serde(flatten)]
    pub kubernetes: KubernetesKeys,
}

impl Default for ComputeSection {
    fn default() -> Self {
        let rule = RetryPolicy::default();
        Self {
            engine: Engine::Local,
            slots: None,
            retries: rule.infrastructure,
            user_retries: rule.user_code,
            retry_backoff_seconds: rule.backoff_seconds,
            containers: ContainerPolicy::default(),
            container_engine: EngineChoice::default(),
            container_runtime: None,
            container_ulimits: Vec::new(),
            container_arguments: Vec::new(),
            container_volumes: Vec::new(),
            gpus: NO_GPUS.into(),
            gpus_per_run: 1,
            shared_dir: None,
            partition: None,
            account: None,
            qos: None,
            time_limit: None,
            gres: None,
            memory: None,
            cpus: None,
            constraint: None,
            sbatch_arguments: Vec::new(),
            slurm_bin: None,
            ssh: None,
            mpi: None,
            submit_as: None,
            user_dir: None,
            kubernetes: KubernetesKeys::default(),
        }
    }
}

/// `[registry.NAME]`
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySection {
    /// See [`KEYS`](super::KEYS).
    pub username: String,
    /// See [`KEYS`](super::KEYS).
    pub password: String,
}

impl std::fmt::Debug for RegistrySection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistrySection").field("username", &self.username).finish_non_exhaustive()
    }
}

/// `[datastore.NAME]`
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatastoreSection {
    /// See [`KEYS`](super::KEYS).
    pub url: String,
    /// See [`KEYS`](super::KEYS).
    #[serde(default)]
    pub read_only: bool,
    /// See [`KEYS`](super::KEYS).
    pub endpoint: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub region: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub access_key_id: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub secret_access_key: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub session_token: Option<String>,
}

impl std::fmt::Debug for DatastoreSection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may hold credentials.
        f.debug_struct("DatastoreSection").field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

impl DatastoreSection {
    /// What runs open; keys that are not given are taken from `variable`, the server's own.
    pub fn datastore(&self, variable: impl Fn(&str) -> Option<String>) -> Datastore {
        let own = S3Keys {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            access_key_id: self.access_key_id.clone(),
            secret_access_key: self.secret_access_key.clone(),
            session_token: self.session_token.clone(),
        };
        let access = if self.read_only { DatastoreAccess::Read } else { DatastoreAccess::ReadWrite };
        // Only a bucket is opened with keys.
        let keys = if Medium::of(&self.url) == Some(Medium::S3) { own.or_from(variable) } else { S3Keys::default() };
        Datastore { url: self.url.clone(), access, keys }
    }
}

/// `gpus` of a target that gives none away.
pub(super) const NO_GPUS: &str = "none";

/// Runs of one target that may be in Slurm at once, unless the configuration says otherwise: most clusters take some thousands of a user.
pub(super) const SLURM_SLOTS: u32 = 1000;

impl ComputeSection {
    /// How many runs at once.
    pub fn slots(&self) -> u32 {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.slots.unwrap_or_else(|| match self.engine {
            Engine::Local => u32::try_from(cores()).unwrap_or(u32::MAX),
            Engine::Slurm => SLURM_SLOTS,
            Engine::Kubernetes => KUBERNETES_SLOTS,
        })
    }

    /// What its runs ask of Slurm, unless they say otherwise.
    pub fn slurm_wish(&self) -> SlurmWish {
        SlurmWish {
            partition: self.partition.clone(),
            account: self.account.clone(),
            qos: self.qos.clone(),
            time_limit: self.time_limit.clone(),
            gres: self.gres.clone(),
            memory: self.memory.clone(),
            cpus: self.cpus.as_deref().and_then(|cpus| cpus.parse().ok()),
            constraint: self.constraint.clone(),
            arguments: self.sbatch_arguments.clone(),
            submit_as: None,
        }
    }

    /// How its runs become jobs.
    ///
    /// # Errors
    /// If a key cannot be meant.
    pub fn slurm_target(&self) -> Result<SlurmTarget> {
        if self.user_dir.is_some() && self.submit_as.is_none() {
            bail!("`user_dir` is for jobs of accounts of the cluster, and there is no `submit_as`");
        }
        let user_dir = self.user_dir.as_deref().map_or_else(|| Ok(UserDir::default()), UserDir::new);
        let user_dir = user_dir.map_err(|error| anyhow::anyhow!("user_dir: {error}"))?;
        Ok(SlurmTarget { wish: self.slurm_wish(), user_dir: self.submit_as.as_ref().map(|_| user_dir) })
    }

    /// How its cluster is reached; `None`: it is not on Slurm.
    pub fn slurm(&self) -> Option<SlurmSettings> {
        let shared_dir = self.shared_dir.clone().filter(|_| self.engine == Engine::Slurm)?;
        Some(SlurmSettings { shared_dir, slurm_bin: self.slurm_bin.clone(), ssh: self.ssh.clone() })
    }

    /// Which of the machine's GPUs its runs get; `None`: none.
    ///
    /// # Errors
    /// When it names some that are not there, or fewer than a run is to get.
    pub fn gpu_rule(&self, present: &[Gpu]) -> Result<Option<GpuRule>> {
        let Some(named) = self.named_gpus()? else { return Ok(None) };
        let there: Vec<u32> = present.iter().map(|gpu| gpu.index).collect();
        if let Some(missing) = named.iter().find(|index| !there.contains(index)) {
            bail!("`gpus` names GPU {missing}, and this machine has {there:?}");
        }
        let devices = if named.is_empty() { there } else { named };
        if devices.len() < self.gpus_per_run as usize {
            bail!("`gpus_per_run` is {}, and the target has {} GPUs", self.gpus_per_run, devices.len());
        }
        Ok(Some(GpuRule { devices, per_run: self.gpus_per_run }))
    }

    /// The numbers in `gpus`; an empty list: all of them. `None`: the target gives none away.
    pub fn named_gpus(&self) -> Result<Option<Vec<u32>>> {
        match self.gpus.trim() {
            NO_GPUS => Ok(None),
            "all" => Ok(Some(Vec::new())),
            list => {
                let numbers: Option<Vec<u32>> = list.split(',').map(|number| number.trim().parse().ok()).collect();
                match numbers {
                    Some(mut numbers) => {
                        numbers.sort_unstable();
                        numbers.dedup();
                        Ok(Some(numbers))
                    }
                    None => bail!("`gpus` is `{list}`: expected `none`, `all`, or numbers such as `0,1`"),
                }
            }
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.gpus_per_run == 0 {
            bail!("`gpus_per_run` is 0: it must be at least 1");
        }
        if self.engine == Engine::Slurm && self.named_gpus()?.is_some() {
            bail!("`gpus` is not for `engine = \"slurm\"`; say `gres`");
        }
        if self.engine != Engine::Kubernetes && self.kubernetes != KubernetesKeys::default() {
            bail!("it has keys that are for Kubernetes only, and `engine` is not \"kubernetes\"");
        }
        if self.engine != Engine::Slurm && (self.submit_as.is_some() || self.user_dir.is_some()) {
            bail!("`submit_as` and `user_dir` are for Slurm only, and `engine` is not \"slurm\"");
        }
        let wish = self.slurm_wish();
        match self.engine {
            Engine::Local => {
                self.named_gpus()?;
                if !wish.is_empty() || self.shared_dir.is_some() || self.slurm_bin.is_some() || self.ssh.is_some() || self.mpi.is_some() {
                    bail!("it has keys that are for Slurm only, and `engine` is not \"slurm\"");
                }
            }
            Engine::Slurm => {
                let kind = |mpi: &str| mpi == "mpirun" || mpi.strip_prefix("srun:").is_some_and(|kind| !kind.is_empty());
                if let Some(mpi) = self.mpi.as_deref().filter(|mpi| !kind(mpi)) {
                    bail!(
                        "`mpi` is \"{mpi}\"; it must be \"mpirun\", or \"srun:\" with a type that `srun --mpi=list` knows, e.g. \"srun:pmix\""
                    );
                }
                let Some(shared) = &self.shared_dir else { bail!("`engine` is \"slurm\" and `shared_dir` is missing") };
                if !shared.is_absolute() {
                    bail!("`shared_dir` is `{}`: it must be an absolute path", shared.display());
                }
                if self.ssh.as_deref().is_some_and(|login| login.is_empty() || login.starts_with('-')) {
                    bail!("`ssh` must be `user@host`, a host, or a name in the configuration of ssh");
                }
                if self.cpus.is_some() && wish.cpus.is_none() {
                    bail!("`cpus` is `{}`: with Slurm it must be a whole number", self.cpus.as_deref().unwrap_or_default());
                }
                wish.check().map_err(|error| anyhow::anyhow!("{}: {error}", error.target().unwrap_or_default()))?;
                self.slurm_target()?;
            }
            Engine::Kubernetes => {
                let shared = SlurmWish { memory: None, cpus: None, ..wish };
                if !shared.is_empty() || self.shared_dir.is_some() || self.slurm_bin.is_some() || self.ssh.is_some() || self.mpi.is_some() {
                    bail!("it has keys that are for Slurm only, and `engine` is \"kubernetes\"");
                }
                // The template is read when the server starts: here its path is not known yet.
                Self { kubernetes: KubernetesKeys { pod_template: None, ..self.kubernetes.clone() }, ..self.clone() }
                    .kubernetes_target(Path::new(""))?;
            }
        }
        Ok(())
    }
}

/// What executes the runs of a compute target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Processes on the server's machine.
    Local,
    /// Jobs of a Slurm cluster.
    Slurm,
    /// Jobs of a Kubernetes cluster.
    Kubernetes,
}
