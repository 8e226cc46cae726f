//! The configuration: one TOML file, then variables, then flags; later ones win.
//!
//! Every key stands once in [`KEYS`], with its documentation: the check for unknown keys, the variables and `docs/configuration.md` come from
//! that list. A key that is not in it is refused with its line and the nearest known one, because a typing error that is
//! ignored is found weeks later.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};
use trainyard_core::{container::ContainerPolicy, run::RetryPolicy, slurm::SlurmWish};
use trainyard_engine::{
    container::EngineChoice,
    environment::{EnvironmentSettings, PythonFallback},
    executor::slurm::SlurmSettings,
};

use crate::curated::CuratedSection;

/// A key of the configuration file.
pub struct Key {
    /// The section; `compute.NAME` stands for every compute target, `curated.NAME` for every named environment.
    pub section: &'static str,
    /// The key.
    pub name: &'static str,
    /// The default, as it would be written.
    pub default: &'static str,
    /// What it does.
    pub doc: &'static str,
}

const fn key(section: &'static str, name: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key { section, name, default, doc }
}

/// Every key there is.
pub const KEYS: &[Key] = &[
    key(
        "server",
        "listen",
        "\"127.0.0.1:8443\"",
        "Address and port; port 0 takes a free one. A public address is refused while only the generated credentials exist.",
    ),
    key(
        "server",
        "public_url",
        "the listen address",
        "Where clients reach the server, when that is not the listen address. Its host name is added to the certificate.",
    ),
    key(
        "server",
        "agent_url",
        "the listen address",
        "Where agents reach the server, when that is not the listen address: through a proxy, or from other machines. Its host name is added to the certificate.",
    ),
    key(
        "server",
        "tls_cert",
        "none",
        "PEM file with the certificate chain for `public_url`. Without it the server uses a certificate of its own private CA.",
    ),
    key("server", "tls_key", "none", "PEM file with the private key of `tls_cert`."),
    key("server", "region", "\"local\"", "The region that workspaces made from now on say they are in."),
    key("server", "max_upload_bytes", "314572800", "The largest project zip."),
    key("server", "max_definition_bytes", "1048576", "The largest run definition."),
    key("server", "max_unpacked_bytes", "314572800", "The largest content of a project zip, in all."),
    key("server", "max_archive_files", "20000", "The most files in a project zip."),
    key("server", "max_archive_ratio", "200", "The most that a file in a project zip may shrink by compression."),
    key("server", "cancel_grace_seconds", "10", "Time between TERM and KILL when a run is stopped."),
    key(
        "server",
        "heartbeat_limit_seconds",
        "30",
        "A run whose agent is silent for longer is `NotResponding`; agents speak three times as often. At least 3.",
    ),
    key(
        "server",
        "silence_limit_seconds",
        "86400",
        "An attempt that is silent for longer is given up behind a fence (cause: node lost) even if its executor cannot say that it is gone. 0: never.",
    ),
    key(
        "server",
        "spool_limit_bytes",
        "1073741824",
        "How much of a log an agent keeps for a server that it cannot reach; beyond, the middle is cut out, which the log and the run say. Outputs are never cut.",
    ),
    key("store", "database", "\"sqlite\"", "`sqlite` (a file in the data directory) or `postgres://user:password@host/database`."),
    key(
        "store",
        "blobs",
        "\"file\"",
        "`file` (a folder in the data directory) or `s3://bucket/prefix`, with credentials in the usual AWS variables.",
    ),
    key("environments", "cache_dir", "the data directory's `environments`", "Where environments are built and kept."),
    key(
        "environments",
        "python_fallback",
        "\"closest\"",
        "What happens when the Python asked for cannot be had: `closest` uses the closest one with a warning, `fail` fails the run.",
    ),
    key(
        "environments",
        "conda_channels",
        "[]",
        "Conda channels, for definitions that name none: names, `https://` or `file://` URLs (credentials in them are never shown) or absolute paths, the preferred one first. Conda packages come from them, and a Python that a node lacks.",
    ),
    key(
        "environments",
        "conda_channel_alias",
        "\"https://conda.anaconda.org\"",
        "Where conda channels with a name are: `conda-forge` means `conda-forge` below it. For mirrors.",
    ),
    key(
        "environments",
        "conda_credentials",
        "{}",
        "What hosts of conda channels are shown, by host or `*.domain`: `{ \"conda.example.com\" = \"user:password\" }`, `\"bearer TOKEN\"`, or a token of conda. Never shown.",
    ),
    key(
        "environments",
        "index_url",
        "the package index that `uv` uses by itself",
        "Package index for pip requirements; may hold credentials, which are never shown.",
    ),
    key("environments", "offline", "false", "Build from caches only."),
    key(
        "environments",
        "max_bytes",
        "53687091200",
        "How many bytes environments may take, and as many again the downloads they are made of. Beyond that the ones that were not used for the longest time are removed, never one that a run uses or that is pinned. 0: no limit.",
    ),
    key(
        "environments",
        "build_limit_seconds",
        "3600",
        "After how many seconds a build that is not done is ended; waiting for another builder does not count. 0: never.",
    ),
    key(
        "curated.NAME",
        "file",
        "none",
        "A conda file (`environment.yml`), relative to the folder of this file. It is read when the server starts. Definitions may name the environment `NAME` instead of describing it (write `[curated.\"AzureML-sklearn-1.0\"]` for a name with a dot).",
    ),
    key("curated.NAME", "python", "any", "The Python version, instead of a file."),
    key("curated.NAME", "conda", "[]", "conda requirements, instead of a file."),
    key("curated.NAME", "channels", "`conda_channels`", "conda channels, instead of a file."),
    key("curated.NAME", "pip", "[]", "pip requirements, instead of a file."),
    key(
        "curated.NAME",
        "image",
        "none",
        "A container image that runs go into; the packages are put on top of it. Without packages its own Python runs the script.",
    ),
    key("curated.NAME", "version", "\"1\"", "Its version: change it with the content, so that runs tell the two apart."),
    key(
        "compute.NAME",
        "engine",
        "\"local\"",
        "What executes the runs of this target: `local` (processes on the server's machine) or `slurm` (jobs; see `deploy/slurm/README.md`).",
    ),
    key(
        "compute.NAME",
        "slots",
        "the number of cores; 1000 with Slurm, which has a queue of its own",
        "How many runs at once, those in the engine's own queue included. 0 holds every run back.",
    ),
    key(
        "compute.NAME",
        "retries",
        "2",
        "How often a run is tried again after a failure of machines or of the server; a definition's `Retries.Infrastructure` wins.",
    ),
    key("compute.NAME", "user_retries", "0", "The same after a failure of the user's code; a definition's `Retries.UserCode` wins."),
    key(
        "compute.NAME",
        "retry_backoff_seconds",
        "10",
        "Wait before the first retry; each further one waits twice as long, up to ten minutes. A definition's `Retries.BackoffSeconds` wins.",
    ),
    key(
        "compute.NAME",
        "containers",
        "\"when-asked\"",
        "Whether runs go into containers: `required` (always, also where the definition only names an image; a definition without an image is refused), `when-asked` (where the definition enables it) or `never` (such a definition is refused).",
    ),
    key(
        "compute.NAME",
        "container_engine",
        "\"auto\"",
        "What runs containers: `podman`, `docker`, `apptainer`, or `auto`, the first of them that answers on the machine.",
    ),
    key(
        "compute.NAME",
        "container_runtime",
        "the engine's own",
        "The OCI runtime of the engine, e.g. `runc` on machines with old control groups.",
    ),
    key(
        "compute.NAME",
        "container_ulimits",
        "[]",
        "`--ulimit` of every container, e.g. `[\"nofile=1024:1024\", \"nproc=1000:1000\"]` where the machine's own limits are lower than the engine's defaults.",
    ),
    key("compute.NAME", "container_arguments", "[]", "More arguments of the engine's `run`, before those of the definition."),
    key(
        "compute.NAME",
        "container_volumes",
        "[]",
        "What containers see of the machine unless the definition says `SharedVolumes: false`: `/path/on/the/machine:/path/inside[:ro]`.",
    ),
    key(
        "registry.NAME",
        "username",
        "none",
        "User at the container registry whose host is the name: `[registry.\"registry.example:5000\"]`.",
    ),
    key("registry.NAME", "password", "none", "Password or token of that user; never shown."),
    key(
        "compute.NAME",
        "shared_dir",
        "none; Slurm needs one",
        "Slurm: a folder that this machine and every node see under the same path. Attempts, the program for the nodes and environments are kept in it. Targets may share one, servers may not.",
    ),
    key(
        "compute.NAME",
        "partition",
        "Slurm's own",
        "Slurm: the partition; a definition's `Slurm.Partition` wins, and so on for the next seven.",
    ),
    key("compute.NAME", "account", "Slurm's own", "Slurm: the account (`Slurm.Account`)."),
    key("compute.NAME", "qos", "Slurm's own", "Slurm: the QOS (`Slurm.Qos`)."),
    key("compute.NAME", "time_limit", "Slurm's own", "Slurm: the time limit of a job, as `sbatch --time` takes it (`Slurm.TimeLimit`)."),
    key("compute.NAME", "gres", "none", "Slurm: generic resources, e.g. `\"gpu:1\"` (`Slurm.Gres`)."),
    key("compute.NAME", "memory", "Slurm's own", "Slurm: memory of the node, e.g. `\"16G\"` (`Slurm.Memory`)."),
    key("compute.NAME", "cpus", "Slurm's own", "Slurm: CPUs of the run (`Slurm.Cpus`)."),
    key("compute.NAME", "constraint", "none", "Slurm: features that the node must have (`Slurm.Constraint`)."),
    key(
        "compute.NAME",
        "sbatch_arguments",
        "[]",
        "Slurm: further options of `sbatch`, each as `\"--name=value\"`; a definition's `Slurm.Arguments` come after them.",
    ),
    key("compute.NAME", "slurm_bin", "where PATH finds them", "Slurm: the folder of `sbatch`, `squeue`, `sacct` and `scancel`."),
    key(
        "compute.NAME",
        "ssh",
        "none",
        "Slurm: run its commands on this login node, as `ssh` takes it (`\"user@login\"`), without a password; the user must own the shared folder.",
    ),
];

/// The whole configuration, with defaults filled in.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// `[server]`
    pub server: ServerSection,
    /// `[store]`
    pub store: StoreSection,
    /// `[environments]`
    pub environments: EnvironmentsSection,
    /// `[compute.NAME]`
    pub compute: BTreeMap<String, ComputeSection>,
    /// `[registry.NAME]`, by host.
    pub registry: BTreeMap<String, RegistrySection>,
    /// `[curated.NAME]`
    pub curated: BTreeMap<String, CuratedSection>,
    /// The folder of the configuration file, which paths in it are relative to.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ServerSection {
    /// See [`KEYS`].
    pub listen: String,
    /// See [`KEYS`].
    pub public_url: Option<url::Url>,
    /// See [`KEYS`].
    pub agent_url: Option<url::Url>,
    /// See [`KEYS`].
    pub tls_cert: Option<PathBuf>,
    /// See [`KEYS`].
    pub tls_key: Option<PathBuf>,
    /// See [`KEYS`].
    pub region: String,
    /// See [`KEYS`].
    pub max_upload_bytes: u64,
    /// See [`KEYS`].
    pub max_definition_bytes: u64,
    /// See [`KEYS`].
    pub max_unpacked_bytes: u64,
    /// See [`KEYS`].
    pub max_archive_files: usize,
    /// See [`KEYS`].
    pub max_archive_ratio: u64,
    /// See [`KEYS`].
    pub cancel_grace_seconds: u64,
    /// See [`KEYS`].
    pub heartbeat_limit_seconds: u64,
    /// See [`KEYS`].
    pub silence_limit_seconds: u64,
    /// See [`KEYS`].
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
    /// See [`KEYS`].
    pub database: String,
    /// See [`KEYS`].
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
    /// See [`KEYS`].
    pub cache_dir: Option<PathBuf>,
    /// See [`KEYS`].
    pub python_fallback: PythonFallback,
    /// See [`KEYS`].
    pub conda_channels: Vec<String>,
    /// See [`KEYS`].
    pub conda_channel_alias: String,
    /// See [`KEYS`].
    pub conda_credentials: BTreeMap<String, String>,
    /// See [`KEYS`].
    pub index_url: Option<String>,
    /// See [`KEYS`].
    pub offline: bool,
    /// See [`KEYS`].
    pub max_bytes: u64,
    /// See [`KEYS`].
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
    /// See [`KEYS`].
    pub engine: Engine,
    /// See [`KEYS`].
    pub slots: Option<u32>,
    /// See [`KEYS`].
    pub retries: u32,
    /// See [`KEYS`].
    pub user_retries: u32,
    /// See [`KEYS`].
    pub retry_backoff_seconds: u64,
    /// See [`KEYS`].
    pub containers: ContainerPolicy,
    /// See [`KEYS`].
    pub container_engine: EngineChoice,
    /// See [`KEYS`].
    pub container_runtime: Option<String>,
    /// See [`KEYS`].
    pub container_ulimits: Vec<String>,
    /// See [`KEYS`].
    pub container_arguments: Vec<String>,
    /// See [`KEYS`].
    pub container_volumes: Vec<String>,
    pub shared_dir: Option<PathBuf>,
    /// See [`KEYS`].
    pub partition: Option<String>,
    /// See [`KEYS`].
    pub account: Option<String>,
    /// See [`KEYS`].
    pub qos: Option<String>,
    /// See [`KEYS`].
    pub time_limit: Option<String>,
    /// See [`KEYS`].
    pub gres: Option<String>,
    /// See [`KEYS`].
    pub memory: Option<String>,
    /// See [`KEYS`].
    pub cpus: Option<u32>,
    /// See [`KEYS`].
    pub constraint: Option<String>,
    /// See [`KEYS`].
    pub sbatch_arguments: Vec<String>,
    /// See [`KEYS`].
    pub slurm_bin: Option<PathBuf>,
    /// See [`KEYS`].
    pub ssh: Option<String>,
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
        }
    }
}

/// `[registry.NAME]`
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySection {
    /// See [`KEYS`].
    pub username: String,
    /// See [`KEYS`].
    pub password: String,
}

impl std::fmt::Debug for RegistrySection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistrySection").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Runs of one target that may be in Slurm at once, unless the configuration says otherwise: most clusters take some thousands of a user.
const SLURM_SLOTS: u32 = 1000;

impl ComputeSection {
    /// How many runs at once.
    pub fn slots(&self) -> u32 {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.slots.unwrap_or_else(|| match self.engine {
            Engine::Local => u32::try_from(cores()).unwrap_or(u32::MAX),
            Engine::Slurm => SLURM_SLOTS,
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
            cpus: self.cpus,
            constraint: self.constraint.clone(),
            arguments: self.sbatch_arguments.clone(),
        }
    }

    /// How its cluster is reached; `None`: it is not on Slurm.
    pub fn slurm(&self) -> Option<SlurmSettings> {
        let shared_dir = self.shared_dir.clone().filter(|_| self.engine == Engine::Slurm)?;
        Some(SlurmSettings { shared_dir, slurm_bin: self.slurm_bin.clone(), ssh: self.ssh.clone() })
    }

    fn check(&self) -> Result<()> {
        let wish = self.slurm_wish();
        match self.engine {
            Engine::Local => {
                if !wish.is_empty() || self.shared_dir.is_some() || self.slurm_bin.is_some() || self.ssh.is_some() {
                    bail!("it has keys that are for Slurm only, and `engine` is not \"slurm\"");
                }
            }
            Engine::Slurm => {
                let Some(shared) = &self.shared_dir else { bail!("`engine` is \"slurm\" and `shared_dir` is missing") };
                if !shared.is_absolute() {
                    bail!("`shared_dir` is `{}`: it must be an absolute path", shared.display());
                }
                if self.ssh.as_deref().is_some_and(|login| login.is_empty() || login.starts_with('-')) {
                    bail!("`ssh` must be `user@host`, a host, or a name in the configuration of ssh");
                }
                wish.check().map_err(|error| anyhow::anyhow!("{}: {error}", error.target().unwrap_or_default()))?;
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
}

impl Settings {
    /// Reads the file (if given), lays the variables over it and checks every key.
    /// `variables` are all variables of the process; those that start with `TRAINYARD_` and hold a double underscore are keys:
    /// `TRAINYARD_SERVER__LISTEN` is `listen` in `[server]`, `TRAINYARD_COMPUTE__GPU__SLOTS` is `slots` in `[compute.gpu]`.
    pub fn load(file: Option<&Path>, variables: impl Iterator<Item = (String, String)>) -> Result<Self> {
        let mut table = match file {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("the configuration file {} cannot be read", path.display()))?;
                check_keys(&text).with_context(|| format!("in the configuration file {}", path.display()))?;
                text.parse::<Table>().with_context(|| format!("the configuration file {} is not TOML", path.display()))?
            }
            None => Table::new(),
        };
        for (name, text) in variables {
            if let Some(path) = name.strip_prefix("TRAINYARD_").filter(|rest| rest.contains("__")) {
                overlay(&mut table, path, &text).with_context(|| format!("in the variable {name}"))?;
            }
        }
        let mut settings: Self = table.try_into().context("the configuration does not fit")?;
        if settings.compute.is_empty() {
            settings.compute = ["cpu-cluster", "local"].map(|name| (name.to_owned(), ComputeSection::default())).into();
        }
        settings.folder = file.and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        if self.server.tls_cert.is_some() != self.server.tls_key.is_some() {
            bail!("`tls_cert` and `tls_key` in [server] go together: one of them is missing");
        }
        if self.server.heartbeat_limit_seconds < 3 {
            bail!("`heartbeat_limit_seconds` in [server] is {}: it must be at least 3", self.server.heartbeat_limit_seconds);
        }
        for (name, section) in &self.compute {
            trainyard_core::ids::ComputeName::new(name.as_str()).with_context(|| format!("in [compute.{name}]"))?;
            section.check().with_context(|| format!("in [compute.{name}]"))?;
        }
        Ok(())
    }
}

/// Every section; one that ends in `.NAME` stands for many.
const SECTIONS: [&str; 6] = ["server", "store", "environments", "curated.NAME", "registry.NAME", "compute.NAME"];

/// Whether the tables of this section have names.
fn has_names(section: &str) -> bool {
    SECTIONS.iter().any(|known| known.strip_suffix(".NAME") == Some(section))
}

/// The keys of a section, `compute.NAME` for every target.
fn known<'a>(section: &'a str) -> impl Iterator<Item = &'static str> + 'a {
    KEYS.iter().filter(move |key| key.section == section).map(|key| key.name)
}

/// Refuses keys that are not in [`KEYS`], with the line and the nearest known one.
fn check_keys(text: &str) -> Result<()> {
    let document = DeTable::parse(text)?;
    let line = |offset: usize| text[..offset.min(text.len())].lines().count().max(1);
    for (section, content) in document.get_ref() {
        let at = line(section.span().end);
        let section = section.get_ref().as_ref();
        let DeValue::Table(content) = content.get_ref() else {
            bail!(
                "line {at}: `{section}` stands outside any section; {}",
                nearest(section, &SECTIONS.map(|section| section.trim_end_matches(".NAME")))
            );
        };
        let tables: Vec<(String, &DeTable<'_>)> = match section {
            _ if has_names(section) => content
                .iter()
                .filter_map(|(name, value)| Some((format!("{section}.{}", name.get_ref()), value.get_ref().as_table()?)))
                .collect(),
            _ if SECTIONS.contains(&section) => vec![(section.to_owned(), content)],
            _ => bail!("line {at}: there is no section [{section}]; {}", nearest(section, &SECTIONS)),
        };
        let schema = if has_names(section) { format!("{section}.NAME") } else { section.to_owned() };
        for (label, table) in tables {
            for (key, _) in table {
                let names: Vec<&str> = known(&schema).collect();
                if !names.contains(&key.get_ref().as_ref()) {
                    bail!(
                        "line {}: there is no key `{}` in [{label}]; {}",
                        line(key.span().end),
                        key.get_ref(),
                        nearest(key.get_ref(), &names)
                    );
                }
            }
        }
    }
    Ok(())
}

/// "did you mean …", or the list when nothing is near.
fn nearest(word: &str, known: &[&str]) -> String {
    let best = known.iter().map(|name| (strsim::jaro_winkler(word, name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((likeness, name)) if likeness > 0.75 => format!("did you mean `{name}`?"),
        _ => format!("known: {}", known.join(", ")),
    }
}

/// Lays one variable over the table: `SERVER__LISTEN`, `COMPUTE__GPU__SLOTS`. Dashes in names of targets are written as they are in the file
/// where the shell allows it, else as single underscores.
fn overlay(table: &mut Table, path: &str, text: &str) -> Result<()> {
    let parts: Vec<String> = path.split("__").map(str::to_lowercase).collect();
    let (section, key, schema) = match parts.as_slice() {
        [section, key] => (vec![section.clone()], key.clone(), section.clone()),
        [section, name, key] if section == "compute" => {
            (vec![section.clone(), configured_name(table, name)], key.clone(), "compute.NAME".to_owned())
        }
        _ => bail!("expected TRAINYARD_SECTION__KEY or TRAINYARD_COMPUTE__NAME__KEY"),
    };
    let names: Vec<&str> = known(&schema).collect();
    if names.is_empty() {
        bail!("there is no section `{schema}`; {}", nearest(&schema, &SECTIONS.map(|section| section.trim_end_matches(".NAME"))));
    }
    if !names.contains(&key.as_str()) {
        bail!("there is no key `{key}` in `{schema}`; {}", nearest(&key, &names));
    }
    let mut at = table;
    for part in section {
        let next = at.entry(part.clone()).or_insert_with(|| Value::Table(Table::new()));
        at = next.as_table_mut().with_context(|| format!("`{part}` is not a section"))?;
    }
    at.insert(key, parsed(text));
    Ok(())
}

/// The name of a target as the file spells it, if it has one that differs only in `-` and `_`.
fn configured_name(table: &Table, name: &str) -> String {
    let same = |candidate: &&String| candidate.to_lowercase().replace('-', "_") == name.replace('-', "_");
    let targets = table.get("compute").and_then(Value::as_table);
    targets.and_then(|targets| targets.keys().find(same)).cloned().unwrap_or_else(|| name.replace('_', "-"))
}

/// A variable's text as a TOML value where it is one (numbers, booleans, lists, tables), else as a string.
fn parsed(text: &str) -> Value {
    let attempt = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    match attempt {
        Some(value @ (Value::Integer(_) | Value::Boolean(_) | Value::Array(_) | Value::Table(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// The reference page, `docs/configuration.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\nOne TOML file, given with `--config FILE`; without the flag, `config.toml` in the data directory if it is there. A variable \
         `TRAINYARD_SECTION__KEY` wins over the file (`TRAINYARD_SERVER__LISTEN`, `TRAINYARD_COMPUTE__GPU__SLOTS`), a flag over both. An unknown key is an error.\n\n\
         Without any `[compute.NAME]` section the server has the targets `cpu-cluster` and `local`, both on its own machine.\n",
    );
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            text.push_str(&format!("\n## `[{section}]`\n\n| key | default | what it does |\n| --- | --- | --- |\n"));
        }
        let default = if key.default.starts_with(|c: char| c.is_ascii_digit() || c == '"' || c == '[') || key.default == "false" {
            format!("`{}`", key.default)
        } else {
            key.default.to_owned()
        };
        text.push_str(&format!("| `{}` | {default} | {} |\n", key.name, key.doc));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Settings::load(Some(file.path()), variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn message(result: Result<Settings>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn an_empty_configuration_has_the_two_default_targets() {
        let settings = load("", &[]).unwrap();
        assert_eq!(settings.compute.keys().collect::<Vec<_>>(), ["cpu-cluster", "local"]);
        assert_eq!(settings.server.listen, "127.0.0.1:8443");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
        let text = message(load("[server]\nlisten = \"127.0.0.1:1\"\nlisen = 1\n", &[]));
        assert!(text.contains("line 3: there is no key `lisen` in [server]; did you mean `listen`?"), "{text}");
        let text = message(load("[sever]\nlisten = \"x\"\n", &[]));
        assert!(text.contains("there is no section [sever]; did you mean `server`?"), "{text}");
        let text = message(load("[compute.gpu]\nslot = 3\n", &[]));
        assert!(text.contains("line 2: there is no key `slot` in [compute.gpu]; did you mean `slots`?"), "{text}");
    }

    #[test]
    fn variables_win_over_the_file_and_are_checked_like_it() {
        let file = "[server]\nlisten = \"127.0.0.1:1\"\n[compute.cpu-cluster]\nslots = 1\n";
        let settings = load(file, &[("TRAINYARD_SERVER__LISTEN", "127.0.0.1:2"), ("TRAINYARD_COMPUTE__CPU_CLUSTER__SLOTS", "7")]).unwrap();
        assert_eq!(settings.server.listen, "127.0.0.1:2");
        assert_eq!(settings.compute["cpu-cluster"].slots(), 7);
        assert_eq!(settings.compute.len(), 1);
        let text = message(load("", &[("TRAINYARD_SERVER__LISTE", "x")]));
        assert!(text.contains("TRAINYARD_SERVER__LISTE") && text.contains("did you mean `listen`?"), "{text}");
    }

    #[test]
    fn named_environments_are_read_and_their_keys_are_checked() {
        let file = "[curated.\"AzureML-sklearn-1.0\"]\npip = [\"scikit-learn==1.0\"]\n[curated.torch]\nfile = \"torch.yml\"\n";
        let settings = load(file, &[]).unwrap();
        assert_eq!(settings.curated["AzureML-sklearn-1.0"].pip, ["scikit-learn==1.0"]);
        assert_eq!(settings.curated["torch"].file.as_deref(), Some(Path::new("torch.yml")));
        assert!(settings.folder.is_absolute(), "paths are relative to the file's folder");
        let text = message(load("[curated.torch]\npips = []\n", &[]));
        assert!(text.contains("line 2: there is no key `pips` in [curated.torch]; did you mean `pip`?"), "{text}");
        let text = message(load("[curate.torch]\npip = []\n", &[]));
        assert!(text.contains("there is no section [curate]; did you mean `curated.NAME`?"), "{text}");
    }

    #[test]
    fn a_wrong_type_names_the_key() {
        let text = message(load("[compute.gpu]\nslots = \"many\"\n", &[]));
        assert!(text.contains("slots"), "{text}");
        let text = message(load("[compute.gpu]\nengine = \"slum\"\n", &[]));
        assert!(text.contains("slum") && text.contains("local"), "{text}");
    }

    #[test]
    fn a_slurm_target_needs_a_shared_folder_and_a_local_one_has_no_use_for_it() {
        let settings = load("[compute.gpu]\nengine = \"slurm\"\nshared_dir = \"/shared\"\npartition = \"gpu\"\ncpus = 4\n", &[]).unwrap();
        let gpu = &settings.compute["gpu"];
        assert_eq!((gpu.slots(), gpu.slurm_wish().options()), (SLURM_SLOTS, vec!["--partition=gpu".into(), "--cpus-per-task=4".into()]));
        for (text, part) in [
            ("engine = \"slurm\"\n", "`shared_dir` is missing"),
            ("engine = \"slurm\"\nshared_dir = \"shared\"\n", "must be an absolute path"),
            ("engine = \"slurm\"\nshared_dir = \"/s\"\nssh = \"-oProxyCommand=x\"\n", "`ssh` must be"),
            ("engine = \"slurm\"\nshared_dir = \"/s\"\nsbatch_arguments = [\"--array=1-2\"]\n", "Arguments[0]"),
            ("partition = \"gpu\"\n", "for Slurm only"),
        ] {
            let text = message(load(&format!("[compute.gpu]\n{text}"), &[]));
            assert!(text.contains("[compute.gpu]") && text.contains(part), "{text}");
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let settings =
            load("[store]\ndatabase = \"postgres://u:hunter2@h/d\"\n[environments]\nindex_url = \"https://u:hunter2@h/\"\n", &[]).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn the_reference_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            reference(),
            "run: cargo run -- doctor --configuration-reference > docs/configuration.md"
        );
    }
}
